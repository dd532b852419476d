//! send_snapshot: brings a destination up to a snapshot, by guid, step by step.
//!
//! Around each transfer (the order matters, so that a crash at any point loses nothing): send; once that takes time, or
//! where it breaks off and can be gone on with, hold base and target on the source; verify; hold the received snapshot
//! on the destination, then release the older hold there, and meanwhile move the cursor; release the source. Leftovers
//! of an attempt that broke off are the same names again, and are put right by the next one.

pub mod cache;
pub mod conflict;
pub mod course;
pub mod holds;
pub mod peer;
pub mod request;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_lite::future;

use crate::actions::divergence::{Allowed, Trouble};
use crate::actions::lineage;
use crate::actions::steps::{Base, Resume, Step, Transfer, steps};
use crate::agent::transfer::cache::{FRESH, Moment, Sides};
use crate::agent::transfer::course::{RetryState, SendRequest, TransferState};
use crate::agent::transfer::peer::{Ended, Found, LocalReservation, Outgoing, Receiver};
use crate::agent::transfer::request::{errand, named, newest_common};
use crate::agent::{Agent, Failure, OrderContext, Success};
use crate::host::locks::Claim;
use crate::host::queue::QueueSlot;
use crate::model::{DatasetInventory, DatasetName, PeerRole, Place, ResponseStatus, SnapshotId};
use crate::policy::SLAVE_PORT;
use crate::slave::receive::{Around, Incoming};
use crate::sys::{clock, runtime};
use crate::transport::tcp::Dial;
use crate::wire::{CloneOf, DirectorsOrder, Facts, Listing, OrderToSlave};
use crate::zfs::{Depth, ErrorKind, SendFrom, SendSpec, Zfs};

/// From when on a stream is one that takes time: what it needs is held, and it is found out how long it will be. ZFS itself
/// keeps what it sends for as long as it does; a hold is for going on later with what broke off. Of a stream that is over
/// in a moment nothing is left to go on with.
const TAKES_TIME: Duration = Duration::from_secs(10);
/// How many streams one order may take: a full one, a resumed one, one from a bookmark, the increments, and some
/// that have to be planned again.
const MOST_STREAMS: usize = 8;

impl<Z: Zfs> Agent<Z> {
    /// Sends the order's snapshot, with what the destination lacks before it.
    pub(crate) async fn send(
        &self,
        order: &DirectorsOrder,
        kept: &mut RetryState,
        desk: &OrderContext,
    ) -> Result<Success, Failure> {
        let before = desk.counter.get();
        let ended = match self.try_to_send(order, kept, desk).await {
            // Nobody has looked, and nothing has gone: that may be why.
            Err(failure) if std::mem::replace(&mut kept.failed, true) || !kept.unseen => Err(failure),
            Err(failure) if desk.counter.get() == before => {
                log::debug!("{}: is looked at now: {}", order.order_uuid, failure.reason);
                self.try_to_send(order, kept, desk).await
            }
            ended => ended,
        };
        if let Some((source, _)) = &kept.claim {
            self.held.changed(source, None);
        }
        ended
    }

    async fn try_to_send(
        &self,
        order: &DirectorsOrder,
        kept: &mut RetryState,
        desk: &OrderContext,
    ) -> Result<Success, Failure> {
        kept.unseen = false;
        let (id, to) = errand(order)?;
        // Claimed before it is looked at: who comes second is told so at once, and whatever is planned is planned on
        // what the one before left.
        let source = match &kept.claim {
            Some((source, _)) => source.clone(),
            None => {
                let source = self.whose(order, id).await?;
                kept.claim = Some((source.clone(), self.claim(&source)?));
                source
            }
        };
        let is_here = to.host == self.host;
        if is_here && (source.is_within(&to.dataset) || to.dataset.is_within(&source)) {
            return Err(Failure::refused(format!(
                "{source} cannot be sent into {}: one contains the other",
                to.dataset
            )));
        }
        let (since, other) = (order.oldest_unsent.unwrap_or_else(clock::now), is_here.then_some(&to.dataset));
        let claim = || LocalReservation::claim(&self.receiving, &self.host, &to.dataset, since);
        let mut berth = is_here.then(claim).transpose()?;
        // Looked at before there is a place: what waits together is listed together.
        let known = match other {
            Some(other) if !kept.failed && order.renamed_from.is_none() && order.origin_dataset.is_none() => {
                self.local.permission_to_send(&source).map_err(|denied| Failure::refused(denied.to_string()))?;
                self.held.sides(&source, id, other)
            }
            _ => None,
        };
        kept.unseen = known.is_some();
        let (looked_at, mut sees_all, mut sides) = match known {
            Some(Sides { at, sees_all, ours, theirs, around }) => (at, sees_all, (ours, (theirs, around))),
            None => (Instant::now(), true, self.sides(&source, other).await?),
        };
        let slot = self.slot(since).await?;
        if let Some(berth) = &mut berth {
            berth.wait(&self.receiving).await?;
        }
        if looked_at.elapsed() > FRESH {
            (kept.unseen, sees_all) = (false, true);
            sides = self.sides(&source, other).await?;
        }
        let mut course = TransferState { sees_all, ..TransferState::new(since, slot) };
        let (ours, there) = sides;
        let target = named(&source, &ours, id)?.clone();
        let allowed = Allowed {
            rollback: order.rollback_if_needed,
            may_destroy: order.rollback_may_destroy,
            on_divergence: order.on_divergence,
        };
        let origin = self.origin(&ours, order.origin_dataset.as_ref()).await?;
        let to_slave = OrderToSlave {
            source: self.host.clone(),
            order_uuid: order.order_uuid,
            snapshot_uuid: id.to_string(),
            snapshot_name: target.name.clone(),
            dest_dataset: to.dataset.clone(),
            protocol: order.protocol,
            source_dataset: Some(source.clone()),
            rollback_if_needed: allowed.rollback,
            rollback_may_destroy: allowed.may_destroy,
            on_divergence: allowed.on_divergence,
            clone_of: order
                .origin_dataset
                .clone()
                .zip(origin.as_ref())
                .map(|(dataset, (_, guid))| CloneOf { dataset, guid: *guid }),
            renamed_from: order.renamed_from.clone(),
            oldest_unsent: order.oldest_unsent,
        };
        let (mut receiver, mut theirs) = if let Some(berth) = berth {
            Receiver::local(&self.receiving, to_slave, berth, there).await?
        } else {
            let address = order.destination_address.clone().unwrap_or_else(|| format!("{}:{SLAVE_PORT}", to.host));
            let dial = Dial { host: &to.host, role: PeerRole::Slave, address: &address, tls: self.tls.as_deref() };
            let out =
                Outgoing { throttle: Arc::clone(&self.throttle), compression: self.local.compression.to(&to.host) };
            Receiver::remote(&to, dial, &to_slave, self.local.stall_timeout, out).await?
        };
        let destinations =
            order.destinations.iter().map(|(host, dataset)| Place { host: host.clone(), dataset: dataset.clone() });
        let job = SendRequest { dataset: source, target, to, allowed, origin, destinations: destinations.collect() };
        if theirs.is_none() {
            theirs = self.follow(order, &job, &mut receiver, &ours, &mut course).await?;
        }
        self.transfer(&job, receiver, ours, theirs, course, desk).await
    }

    /// The place for the next stream of a transfer: what comes after one is written down while others send.
    async fn next_slot(&self, course: &mut TransferState) -> Result<QueueSlot, Failure> {
        match course.slot.take() {
            Some(slot) => Ok(slot),
            None => self.slot(course.since).await,
        }
    }

    /// A place for one stream.
    async fn slot(&self, since: DateTime<Utc>) -> Result<QueueSlot, Failure> {
        self.sends.take(since).await.map_err(|limit| Failure::queue_timeout("max_sends", limit))
    }

    fn claim(&self, source: &DatasetName) -> Result<Claim, Failure> {
        let reason = || format!("{source} is being sent already; what it lacks then is sent by the next order");
        self.busy.claim(source).ok_or_else(|| Failure::busy(reason()))
    }

    /// The dataset of the order's snapshot, as it is now.
    pub(crate) async fn find(
        &self,
        order: &DirectorsOrder,
        id: SnapshotId,
    ) -> Result<(DatasetName, DatasetInventory), Failure> {
        let source = self.whose(order, id).await?;
        let ours = self.ours(&source).await?;
        Ok((source, ours))
    }

    /// The dataset of the order's snapshot: as the order says, else as is found.
    async fn whose(&self, order: &DirectorsOrder, id: SnapshotId) -> Result<DatasetName, Failure> {
        if let Some(dataset) = &order.dataset {
            return Ok(dataset.clone());
        }
        let listed = self.zfs.list(&self.local.roots(), Depth::Recursive).await?;
        let found = listed.into_iter().find(|(name, inventory)| {
            self.local.permission_to_send(name).is_ok() && inventory.snapshots.iter().any(|s| s.guid.uuid() == id)
        });
        let none = || Failure::refused(format!("no dataset here has a snapshot with the UUID {id}"));
        found.map(|(name, _)| name).ok_or_else(none)
    }

    /// A dataset as it is now.
    async fn ours(&self, dataset: &DatasetName) -> Result<DatasetInventory, Failure> {
        Ok(self.sides(dataset, None).await?.0)
    }

    /// A dataset as it is now, and another one of this host beside it, with what surrounds that.
    async fn sides(
        &self,
        dataset: &DatasetName,
        other: Option<&DatasetName>,
    ) -> Result<(DatasetInventory, (Found, Around)), Failure> {
        self.local.permission_to_send(dataset).map_err(|denied| Failure::refused(denied.to_string()))?;
        let names: Vec<DatasetName> = [Some(dataset), other].into_iter().flatten().cloned().collect();
        // Not as what is listed after a stream, for which others are waited for: who waits for a place is in the queue first.
        let listed = self.zfs.list(&names, Depth::Around).await?;
        let around = other.map(|other| Around::of(other, &listed)).unwrap_or_default();
        let mut listed: BTreeMap<_, _> = listed.into_iter().collect();
        let ours = listed.remove(dataset).ok_or_else(|| Failure::refused(format!("{dataset} does not exist")))?;
        Ok((ours, (other.and_then(|other| listed.remove(other)), around)))
    }

    async fn transfer(
        &self,
        job: &SendRequest,
        mut receiver: Receiver<Z>,
        ours: DatasetInventory,
        mut theirs: Found,
        mut course: TransferState,
        desk: &OrderContext,
    ) -> Result<Success, Failure> {
        self.release_leftovers(job, &ours).await?;
        let began = Moment::now();
        let ended = loop {
            // Planned from how both sides are after the stream before it; our own snapshots may only become more
            // meanwhile, or fail to be held.
            match self.stream(job, &mut receiver, &ours, &theirs, &mut course, desk).await {
                Ok(Some((result, now))) => {
                    theirs = now;
                    if let Err(error) = result {
                        break Err(error.into());
                    }
                }
                Ok(None) => break Ok(()),
                Err(failure) => break Err(failure),
            }
        };
        if let Err(failure) = ended {
            self.held.changed(&job.dataset, None);
            if job.to.host == self.host {
                self.held.changed(&job.to.dataset, None);
            }
            self.tell_theirs(job, &theirs, desk).await;
            self.break_off(job, receiver, &ours, &theirs, course, &failure).await;
            return Err(failure);
        }
        let status = course.status;
        let common = theirs.as_ref().and_then(|theirs| newest_common(&ours, theirs));
        // A full pool has no room for a bookmark. The holds are released all the same: what they keep is what pruning
        // would free, and the common snapshot stays without a cursor.
        let moving = async {
            match common {
                Some(guid) => self.move_cursor(job, &ours, guid).await,
                None => Ok(()),
            }
        };
        // Side by side: each waits for a transaction group of its own pool.
        let (settled, moved) = future::zip(receiver.finish(status, common, &mut theirs), moving).await;
        if job.to.host == self.host {
            self.held.changed(&job.to.dataset, theirs.as_ref().map(|theirs| (began, theirs)));
        }
        self.tell_theirs(job, &theirs, desk).await;
        let mut remarks = std::mem::take(&mut course.remarks);
        match settled {
            Ok(()) => {
                self.release(job, &ours, &mut course).await?;
                moved.map_err(|f| Failure { reason: format!("it arrived, but the cursor here: {}", f.reason), ..f })?;
            }
            // It arrived, that was verified. The source keeps its holds until the next transfer puts things right.
            Err(failure) if failure.status == ResponseStatus::Unreachable => {
                self.keep(job, &mut course).await;
                let lost = format!("it arrived, but the end of the conversation was lost: {}", failure.reason);
                log::warn!("{}: {lost}", job.dataset);
                remarks.push(lost);
            }
            Err(failure) => {
                self.keep(job, &mut course).await;
                let reason = format!("it arrived, but not all is well there: {}", failure.reason);
                return Err(Failure { reason, ..failure });
            }
        }
        Ok(Success::new(status, remarks.join("; ")))
    }

    /// Leaves the source as it was before a transfer that failed, unless the destination can go on with it later: then
    /// what it needs for that stays held. So it does where nobody knows what the destination has.
    async fn break_off(
        &self,
        job: &SendRequest,
        receiver: Receiver<Z>,
        ours: &DatasetInventory,
        theirs: &Found,
        mut course: TransferState,
        failure: &Failure,
    ) {
        if failure.status == ResponseStatus::Unreachable {
            self.keep(job, &mut course).await;
            return;
        }
        receiver.leave(failure.status).await;
        if theirs.as_ref().is_some_and(|theirs| theirs.resume_token.is_some()) {
            self.keep(job, &mut course).await;
        } else if let Err(left) = self.release(job, ours, &mut course).await {
            log::warn!("{}: holds of the failed transfer are left: {}", job.dataset, left.reason);
        }
    }

    /// Plans one stream from how both sides are, and has it received; `None` when nothing is left to send.
    async fn stream(
        &self,
        job: &SendRequest,
        receiver: &mut Receiver<Z>,
        ours: &DatasetInventory,
        theirs: &Found,
        course: &mut TransferState,
        desk: &OrderContext,
    ) -> Result<Option<Ended>, Failure> {
        if course.streams >= MOST_STREAMS {
            return Err(Failure {
                status: ResponseStatus::Zerror,
                reason: format!("{} is not there after {MOST_STREAMS} streams", job.target.name),
                temporary: true,
            });
        }
        let there = theirs.as_ref().map(|t| t.snapshots.as_slice()).unwrap_or_default();
        let resume = match theirs.as_ref().and_then(|t| t.resume_token.clone()) {
            None => None,
            Some(token) => match self.resumable(job, token, ours.encrypted, course).await? {
                Some(resume) => Some(resume),
                None => return receiver.abort().await.map(Some),
            },
        };
        let origin = job.origin.as_ref().filter(|_| receiver.place().has_origin);
        let planned = steps(&ours.snapshots, &ours.bookmarks, there, resume.as_ref(), origin, job.target.guid);
        let next = match planned {
            Ok(Transfer::Steps { steps }) => steps.into_iter().next(),
            Ok(arrived) => {
                course.arrived(&arrived);
                None
            }
            Err(conflict) => return self.resolve(job, receiver, theirs, &conflict.into(), course).await.map(Some),
        };
        let (from, to, base) = match next {
            Some(Step::Full { to }) => (SendFrom::Nothing, to, None),
            Some(Step::Incremental { from: Base::Snapshot(base), to, intermediates }) => {
                // Where some may be between that were not seen, ZFS itself finds them.
                let from = SendFrom::since(base.name.clone(), intermediates || !course.sees_all);
                (from, to, Some(base.name))
            }
            Some(Step::Incremental { from: Base::Bookmark(base), to, .. }) => (SendFrom::Bookmark(base.name), to, None),
            Some(Step::Incremental { from: Base::Origin(of, _), to, .. }) => {
                (SendFrom::Origin(of.dataset, of.name), to, None)
            }
            Some(Step::Resume { token }) => {
                let status = if there.is_empty() { ResponseStatus::Full } else { ResponseStatus::Incremental };
                return self.resume(job, receiver, token, status, course, desk).await.map(Some);
            }
            Some(Step::Discard { .. }) => {
                log::info!("{}: what {} has of an earlier stream leads nowhere: thrown away", job.dataset, job.to.host);
                return receiver.abort().await.map(Some);
            }
            None => return Ok(None),
        };
        let cloned = matches!(from, SendFrom::Origin(..));
        let creates = cloned || from == SendFrom::Nothing;
        let exists = theirs.is_some();
        if creates && exists && !self.may_replace(job) {
            return self.resolve(job, receiver, theirs, &Trouble::Bare, course).await.map(Some);
        }
        let flags = match lineage::flags(ours, theirs.as_ref(), receiver.place().encrypts) {
            Ok(flags) => flags,
            Err(flip) => return self.resolve(job, receiver, theirs, &flip.into(), course).await.map(Some),
        };
        course.needed = base.into_iter().chain([to.name.clone()]).collect();
        let properties =
            if receiver.place().wants_properties { self.zfs.properties(&job.dataset).await? } else { BTreeMap::new() };
        let spec = SendSpec::Snapshot { dataset: job.dataset.clone(), to: to.name.clone(), from, flags };
        let incoming = Incoming {
            guid: Some(to.guid),
            name: to.name,
            create: creates.then_some(ours.kind),
            overwrite: creates && exists,
            cloned,
            flags: Some(flags),
            properties,
        };
        let status = if creates { ResponseStatus::Full } else { ResponseStatus::Incremental };
        course.sends(status);
        let slot = self.next_slot(course).await?;
        let received = receiver.receive(&self.zfs, &spec, &incoming, status, &desk.counter, slot);
        let (result, now) = self.beside(job, &spec, course, desk, received).await?;
        match (result, now.as_ref().and_then(Trouble::written)) {
            // Written to since its newest snapshot: only the policy may say that this does not matter.
            (Err(error), Some(written)) if error.status == ResponseStatus::WasWritten => {
                log::debug!("{}: {}", job.dataset, error.reason);
                self.resolve(job, receiver, &now, &written, course).await.map(Some)
            }
            (result, _) => Ok(Some((result, now))),
        }
    }

    /// Has what a stream needs held once it takes time, and finds out how much there is to send, so that who looks on may
    /// tell how long it takes.
    async fn beside<T>(
        &self,
        job: &SendRequest,
        spec: &SendSpec,
        course: &mut TransferState,
        desk: &OrderContext,
        work: impl Future<Output = T>,
    ) -> T {
        let before = desk.counter.get();
        let beside = async {
            runtime::sleep(TAKES_TIME).await;
            self.begin_to_hold(job, course);
            match self.zfs.size_of_send(spec).await {
                Ok(Some(size)) => {
                    // What was sent before this stream counts, too.
                    let expected = desk.counter.expected().unwrap_or_default();
                    desk.counter.expect((before + size).saturating_sub(expected));
                }
                Ok(None) => {}
                Err(error) => log::debug!("how much there is to send is not known: {error}"),
            }
            future::pending().await
        };
        future::or(work, beside).await
    }

    /// What the destination can go on with; `None` where that leads nowhere and is to be thrown away.
    async fn resumable(
        &self,
        job: &SendRequest,
        token: String,
        raw: bool,
        course: &TransferState,
    ) -> Result<Option<Resume>, Failure> {
        let useless = |why: &str| {
            log::info!("{}: what {} has of an earlier stream is thrown away: {why}", job.dataset, job.to.host);
            Ok(None)
        };
        if course.resumed {
            return useless("it cannot be gone on with");
        }
        match self.zfs.resumable(&token).await {
            // A token is the destination's word: it must not make this host send anything else.
            Ok(of) if of.dataset != job.dataset => useless(&format!("it is of {}", of.dataset)),
            Ok(of) if of.raw != raw => useless(if raw { "it is not of a raw stream" } else { "it is of a raw stream" }),
            Ok(of) => Ok(Some(Resume { token, to: Some(of.guid) })),
            Err(error) if error.kind == ErrorKind::StaleToken => useless(&error.to_string()),
            Err(error) => Err(error.into()),
        }
    }

    /// Goes on with a stream that broke off.
    async fn resume(
        &self,
        job: &SendRequest,
        receiver: &mut Receiver<Z>,
        token: String,
        status: ResponseStatus,
        course: &mut TransferState,
        desk: &OrderContext,
    ) -> Result<Ended, Failure> {
        log::info!("{}: goes on with the stream to {} that broke off", job.dataset, job.to.host);
        course.resumed = true;
        course.sends(status);
        let incoming = Incoming {
            guid: None,
            name: job.target.name.clone(),
            create: None,
            overwrite: false,
            cloned: false,
            flags: None,
            properties: BTreeMap::new(),
        };
        let spec = SendSpec::Resume { token };
        let slot = self.next_slot(course).await?;
        let received = receiver.receive(&self.zfs, &spec, &incoming, status, &desk.counter, slot);
        let (result, now) = self.beside(job, &spec, course, desk, received).await?;
        match result {
            Ok(()) => {
                // There may be another one later in this transfer.
                course.resumed = false;
                Ok((Ok(()), now))
            }
            // What is there may be what cannot be gone on with: thrown away, and all planned anew.
            Err(error) if !error.temporary && now.as_ref().is_some_and(|n| n.resume_token.is_some()) => {
                log::info!("{}: the stream cannot be gone on with: {}", job.dataset, error.reason);
                Ok((Ok(()), now))
            }
            result => Ok((result, now)),
        }
    }

    /// Tells the director what the destination has now.
    async fn tell_theirs(&self, job: &SendRequest, theirs: &Found, desk: &OrderContext) {
        let Some(inventory) = theirs.clone() else { return };
        for listing in Listing::parts(&job.to.host, &job.to.dataset, inventory) {
            desk.tell(Facts { listing: Some(listing), ..Facts::default() }).await;
        }
    }
}
