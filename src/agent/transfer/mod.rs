//! Carries out send_snapshot: brings a destination up to a snapshot, one stream after the other. Snapshots are compared
//! by guid.
//!
//! A transfer repeats one step until the destination has the snapshot: compare both sides, send the one stream that
//! comes next, and verify with a listing what arrived. The order of operations around a stream makes a crash at any
//! point harmless:
//!
//! 1. The stream is sent. If it takes long, or is interrupted and may be resumed, its base and its target are held on
//!    the source.
//! 2. The destination is listed.
//! 3. The received snapshot is held on the destination, then the older hold there is released. Meanwhile, the cursor on
//!    the source is moved.
//! 4. The holds on the source are released.
//!
//! The next attempt uses the same names for holds and bookmarks as the interrupted one, so it corrects whatever that
//! one left.
//!
//! `attempt` begins: it locks both sides, lists them, and opens the transfer. `request` finds what the order names, with
//! the help of `cache`; `state` defines the transfer and its progress; `next_step` compares both sides; `peer` is the
//! receiving end; `conflict` handles destinations that cannot take the next stream; `holds` maintains what a transfer
//! leaves in ZFS on the source; `record` finds out what the destination records of the source.

mod attempt;
mod conflict;
mod holds;
mod next_step;
mod peer;
pub(super) mod record;
pub(super) mod request;
pub(super) mod state;

use std::collections::BTreeMap;
use std::time::Duration;

use futures_lite::future;

use crate::actions::divergence::Trouble;
use crate::actions::lineage::{self, FlagMismatch};
use crate::agent::cache::Moment;
use crate::agent::context::Success;
use crate::agent::transfer::next_step::{NextStep, NextStream};
use crate::agent::transfer::peer::{StepOutcome, StreamToSend};
use crate::agent::transfer::request::newest_common;
use crate::agent::transfer::state::{SendPlan, Transfer, TransferProgress};
use crate::host::error::OrderError;
use crate::model::{DatasetInventory, ResponseStatus, SendFlags};
use crate::slave::receive::IncomingStream;
use crate::sys::runtime;
use crate::wire::{Facts, Listing};
use crate::zfs::{ErrorKind, SendFrom, SendSpec, Zfs};

/// How long a stream must run to count as long. The snapshots that a long stream needs are held, and its size is
/// estimated. ZFS keeps the snapshots that it is sending in any case; the holds are for resuming later, and a shorter
/// stream leaves nothing worth resuming.
const LONG_STREAM: Duration = Duration::from_secs(10);
/// How many streams one order may need: a full one, a resumed one, one from a bookmark, the increments, and some that
/// are planned again.
const MAX_STREAMS: usize = 8;

/// How one step of a transfer ended.
enum StepEnd {
    /// A step was taken at the destination; it may have failed.
    Taken(Box<StepOutcome>),
    /// The destination has the snapshot, or a newer one: nothing is left to do.
    Arrived,
}

impl<Z: Zfs> Transfer<'_, Z> {
    /// Takes steps until the destination has the snapshot, then ends the transfer on both sides.
    async fn run(mut self) -> Result<Success, OrderError> {
        self.release_obsolete_holds().await?;
        let began = Moment::now();
        loop {
            let error = match self.step().await {
                Ok(StepEnd::Arrived) => return self.complete(began).await,
                // The next step is planned from the destination as it is now, and from the source as it was listed at
                // the beginning. If the source lacks by now what that step needs, zfs send fails.
                Ok(StepEnd::Taken(outcome)) => {
                    self.theirs = outcome.destination;
                    match outcome.result {
                        Ok(()) => continue,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            self.interrupt(&error).await;
            return Err(error);
        }
    }

    /// Plans the next step from what both sides have, and takes it.
    async fn step(&mut self) -> Result<StepEnd, OrderError> {
        if self.progress.streams >= MAX_STREAMS {
            let reason = format!("{} has not arrived after {MAX_STREAMS} streams", self.plan.target.name);
            return Err(OrderError::temporary(ResponseStatus::Zerror, reason));
        }
        let outcome = match self.next_step().await? {
            NextStep::Arrived => return Ok(StepEnd::Arrived),
            NextStep::Send(stream) => self.send_stream(stream).await?,
            NextStep::Resume { token } => self.resume(token).await?,
            NextStep::Discard { why } => {
                let SendPlan { source, to, .. } = &self.plan;
                log::info!("{source}: discarding an interrupted stream at {}: {why}", to.host);
                self.peer.abort().await?
            }
            NextStep::Resolve(trouble) => self.resolve(&trouble).await?,
        };
        Ok(StepEnd::Taken(Box::new(outcome)))
    }

    /// Sends one new stream.
    async fn send_stream(&mut self, stream: NextStream) -> Result<StepOutcome, OrderError> {
        let NextStream { from, to, base } = stream;
        let cloned = matches!(from, SendFrom::Origin(..));
        let creates = cloned || from == SendFrom::Nothing;
        let exists = self.theirs.is_some();
        if creates && exists && !self.may_replace() {
            return self.resolve(&Trouble::Bare).await;
        }
        let flags = match lineage::flags(&self.ours, self.theirs.as_ref()) {
            Ok(flags) => flags,
            Err(flip) => return self.resolve(&flip.into()).await,
        };
        let flags = self.progress.flags.unwrap_or(flags);
        if let (SendFlags::Raw, false, Some(conflict)) = (flags, creates, &self.peer.place().key_conflict) {
            return self.resolve(&conflict.clone().into()).await;
        }
        // A restore of several streams has one chance to get the snapshot that is wanted.
        let wanted =
            Some(&self.plan.target.name).filter(|wanted| self.plan.purpose.is_restore() && **wanted != to.name);
        self.holds.needed = base.into_iter().chain([to.name.clone()]).chain(wanted.cloned()).collect();
        let source = &self.plan.source;
        let spec = SendSpec::Snapshot { dataset: source.clone(), to: to.name.clone(), from, flags };
        let mut properties = BTreeMap::new();
        if self.peer.place().wants_properties {
            properties = self.agent.zfs.properties(source).await?;
            properties.retain(|name, _| !self.progress.left_out.contains(name));
        }
        let incoming = IncomingStream {
            guid: Some(to.guid),
            name: to.name,
            create: creates.then_some(self.ours.kind),
            overwrite: creates && exists,
            cloned,
            flags: Some(flags),
            is_unresumable: self.progress.unresumable,
            properties,
        };
        let status = if creates { ResponseStatus::Full } else { ResponseStatus::Incremental };
        let StepOutcome { result, destination } = self.run_stream(&spec, &incoming, status).await?;
        let result = match result {
            Err(error) => match other_flags(flags, creates, error.zfs_error_kind()) {
                Some(next) => return Ok(StepOutcome::new(self.send_otherwise(flags, next, error), destination)),
                None => Err(error),
            },
            arrived => arrived,
        };
        if let Err(error) = &result
            && error.zfs_error_kind() == ErrorKind::Property
            && let Some(remark) = self.leave_out(&incoming.properties, error)
        {
            log::info!("{}: {remark}", self.plan.source);
            self.progress.remarks.push(remark);
            return Ok(StepOutcome::new(Ok(()), destination));
        }
        if let Err(error) = &result
            && error.zfs_error_kind() == ErrorKind::Feature
            && !std::mem::replace(&mut self.progress.unresumable, true)
        {
            log::info!("{}: sending so that the receive cannot be resumed: {error}", self.plan.source);
            let remark = "received without -s, because the destination's pool lacks the feature extensible_dataset: \
                          if the transfer is interrupted, it starts from the beginning";
            self.progress.remarks.push(remark.to_owned());
            return Ok(StepOutcome::new(Ok(()), destination));
        }
        if let Err(error) = &result
            && creates
            && !exists
            && error.zfs_error_kind() == ErrorKind::Exists
            && self.peer.place().is_placeholder
            && !std::mem::replace(&mut self.progress.met_placeholder, true)
        {
            // Meanwhile, another transfer needed the dataset to contain its own. The next attempt replaces it.
            log::info!("{}: trying again, as another transfer created its destination: {error}", self.plan.source);
            return Ok(StepOutcome::new(Ok(()), destination));
        }
        if matches!(&result, Err(error) if error.zfs_error_kind() == ErrorKind::NotRaw) {
            self.theirs = destination;
            let mismatch = FlagMismatch { made: SendFlags::PLAIN, needs: SendFlags::Raw };
            return self.resolve(&mismatch.into()).await;
        }
        match (result, destination.as_ref().and_then(Trouble::written)) {
            // The destination was modified since its newest snapshot. Only the policy can permit discarding these
            // changes.
            (Err(error), Some(written)) if error.status == ResponseStatus::WasWritten => {
                log::debug!("{}: {error}", self.plan.source);
                self.theirs = destination;
                if written.is_after_common(&self.ours) {
                    return self.resolve(&written).await;
                }
                // Meanwhile, somebody took a snapshot there that the source does not have. Rolling back to it would
                // lose what was written since, and would not help. So the transfer is planned again from what is there
                // now.
                Ok(StepOutcome::new(Ok(()), self.theirs.clone()))
            }
            (result, _) => Ok(StepOutcome::new(result, destination)),
        }
    }

    /// Prepares for a stream with the flags `next`, after the destination has refused one with other flags.
    fn send_otherwise(&mut self, refused: SendFlags, next: SendFlags, error: OrderError) -> Result<(), OrderError> {
        let TransferProgress { refused: all, remarks, flags, .. } = &mut self.progress;
        if all.iter().any(|(refused, _)| *refused == next) {
            // The copy has large blocks, and its pool lacks a feature that no flag can replace.
            return Err(all.swap_remove(0).1);
        }
        log::info!("{}: sending with the flags {next} instead of {refused}: {error}", self.plan.source);
        remarks.push(format!("sent with the flags {next}: the destination refuses {refused}"));
        *flags = Some(next);
        all.push((refused, error));
        Ok(())
    }

    /// Leaves out what the destination refuses of the properties that were sent: those that the error names, or all.
    /// Returns a remark about it, unless there was nothing to leave out.
    fn leave_out(&mut self, sent: &BTreeMap<String, String>, error: &OrderError) -> Option<String> {
        let message = error.message();
        let named: Vec<&String> = sent.keys().filter(|name| message.contains(&format!("'{name}'"))).collect();
        let left_out = if named.is_empty() { sent.keys().collect() } else { named };
        self.progress.left_out.extend(left_out.iter().map(|name| (*name).clone()));
        let names: Vec<&str> = left_out.iter().map(|name| name.as_str()).collect();
        (!names.is_empty()).then(|| format!("sent without {}, which the destination refuses", names.join(", ")))
    }

    /// Resumes an interrupted stream.
    async fn resume(&mut self, token: String) -> Result<StepOutcome, OrderError> {
        let SendPlan { source, target, to, .. } = &self.plan;
        log::info!("{source}: resuming the interrupted stream to {}", to.host);
        self.progress.resumed = true;
        let has_snapshots = self.theirs.as_ref().is_some_and(|theirs| !theirs.snapshots.is_empty());
        let status = if has_snapshots { ResponseStatus::Incremental } else { ResponseStatus::Full };
        let incoming = IncomingStream {
            guid: None,
            name: target.name.clone(),
            create: None,
            overwrite: false,
            cloned: false,
            flags: None,
            is_unresumable: false,
            properties: BTreeMap::new(),
        };
        let StepOutcome { result, destination } =
            self.run_stream(&SendSpec::Resume { token: token.clone() }, &incoming, status).await?;
        let has_token = destination.as_ref().is_some_and(|now| now.resume_token.is_some());
        let result = match result {
            Ok(()) => {
                // A later stream of this transfer may be interrupted and resumed as well.
                self.progress.resumed = false;
                self.agent.resumes.ended(&self.plan.source, &self.plan.to);
                Ok(())
            }
            // What has arrived may be what is damaged: then the rest never fits, however often it is sent.
            Err(error)
                if error.zfs_error_kind() == ErrorKind::Stream && self.is_hopeless(&token, destination.as_ref()) =>
            {
                let remark =
                    format!("discarded what had arrived: the destination has refused its rest several times ({error})");
                log::warn!("{}: {remark}", self.plan.source);
                self.progress.remarks.push(remark);
                self.progress.resumed = false;
                return self.peer.abort().await;
            }
            // The partial state may be unusable: the next step discards it, and the transfer is planned again.
            Err(error) if !error.temporary && has_token => {
                log::info!("{}: cannot resume the stream: {error}", self.plan.source);
                Ok(())
            }
            Err(error) => Err(error),
        };
        Ok(StepOutcome::new(result, destination))
    }

    /// Whether the rest of an interrupted stream, which was just refused, will always be refused.
    fn is_hopeless(&self, token: &str, destination: Option<&DatasetInventory>) -> bool {
        let next = destination.and_then(|now| now.resume_token.as_deref());
        next.is_some_and(|next| self.agent.resumes.refused(&self.plan.source, &self.plan.to, token, next))
    }

    /// Runs one stream. If it takes long, the snapshots that it needs are held meanwhile, and its size is estimated for
    /// the progress display.
    async fn run_stream(
        &mut self,
        spec: &SendSpec,
        incoming: &IncomingStream,
        status: ResponseStatus,
    ) -> Result<StepOutcome, OrderError> {
        self.progress.count_stream(status);
        self.begin_recording();
        let slot = match self.slot.take() {
            Some(slot) => slot,
            // The slot is released after each stream, so that other transfers can send while this one lists and records
            // what arrived.
            None => self.agent.send_slot(&self.plan.to.host, self.turn, &self.context.counter).await?,
        };
        let Self { agent, context, peer, holds, .. } = self;
        let (zfs, counter) = (&agent.zfs, &context.counter);
        let bytes_before = counter.get();
        let receiving = peer.receive(zfs, StreamToSend { spec, incoming, status }, counter, slot);
        let alongside = async {
            runtime::sleep(LONG_STREAM).await;
            holds.start(zfs);
            match zfs.size_of_send(spec).await {
                Ok(Some(size)) => {
                    // The counter's expectation includes the streams before this one.
                    let expected = counter.expected().unwrap_or_default();
                    counter.expect((bytes_before + size).saturating_sub(expected));
                }
                Ok(None) => {}
                Err(error) => log::debug!("the size of the stream is unknown: {error}"),
            }
            future::pending().await
        };
        future::or(receiving, alongside).await
    }

    /// Ends a transfer whose snapshot arrived: moves the destination's hold and the source's cursor, and releases the
    /// holds on the source.
    async fn complete(mut self, began: Moment) -> Result<Success, OrderError> {
        let status = self.progress.status;
        let common = self.theirs.as_ref().and_then(|theirs| newest_common(&self.ours, theirs));
        let copy = self.theirs.as_ref().and_then(|theirs| theirs.guid);
        let recorded = self.recorded().await;
        let Self { agent, plan, peer, ours, theirs, .. } = &mut self;
        // A full pool has no room for a bookmark. The holds are released nevertheless, so that pruning can free space.
        // Pruning does not destroy the common snapshot. It merely has no cursor.
        let moving = async {
            match common {
                Some(guid) => plan.move_cursor(&*agent.zfs, ours, guid, copy).await,
                None => Ok(()),
            }
        };
        // Both run at the same time, because each waits for a transaction group of its own pool.
        let (finished, moved) = future::zip(peer.finish(status, common, recorded, theirs), moving).await;
        self.cache_destination(Some(began));
        self.report_destination().await;
        match finished {
            Ok(()) => {
                // The source of a rescue is often imported read-only. Nothing was held there by this order.
                match self.release_holds().await {
                    Err(error) if error.zfs_error_kind() == ErrorKind::ReadOnly => {
                        log::debug!("{}: {}", self.plan.source, error.message());
                    }
                    released => released?,
                }
                if let Err(error) = moved {
                    let error = error.context("the stream arrived, but the cursor on the source cannot be moved");
                    // The snapshot in common is kept without it.
                    self.progress.remarks.push(match error.zfs_error_kind() {
                        ErrorKind::Feature => format!(
                            "the source has no bookmark of it, because its pool lacks a feature: {}",
                            error.message()
                        ),
                        ErrorKind::ReadOnly => {
                            "the source has no bookmark of it, because its pool was imported read-only".to_owned()
                        }
                        _ => return Err(error),
                    });
                }
            }
            // The listing has proved that the stream arrived. The source keeps its holds until the next transfer
            // corrects both sides.
            Err(error) if error.status == ResponseStatus::Unreachable => {
                self.keep_holds().await;
                let remark = format!("the stream arrived, but the connection was lost at the end: {}", error.message());
                log::warn!("{}: {remark}", self.plan.source);
                self.progress.remarks.push(remark);
            }
            Err(error) => {
                self.keep_holds().await;
                return Err(error.context("the stream arrived, but the destination cannot complete the transfer"));
            }
        }
        Ok(Success::new(status, self.progress.remarks.join("; ")))
    }

    /// Ends a transfer that failed. The source is left as it was before, unless the destination can resume the transfer
    /// later, or its state is unknown. In that case, the snapshots that the transfer needs stay held.
    async fn interrupt(mut self, error: &OrderError) {
        self.agent.cache.invalidate(&self.plan.source);
        self.cache_destination(None);
        self.report_destination().await;
        if error.status == ResponseStatus::Unreachable {
            self.keep_holds().await;
            return;
        }
        self.peer.leave(error.status).await;
        if self.theirs.as_ref().is_some_and(|theirs| theirs.resume_token.is_some()) {
            self.keep_holds().await;
        } else if let Err(left) = self.release_holds().await {
            log::warn!("{}: cannot release the holds of the failed transfer: {left}", self.plan.source);
        }
    }

    /// If the destination is on this host, stores it in the cache as it was listed at `since`, or as unknown.
    fn cache_destination(&self, since: Option<Moment>) {
        let SendPlan { to, .. } = &self.plan;
        if to.host != self.agent.host {
            return;
        }
        match since.zip(self.theirs.as_ref()) {
            Some((since, theirs)) => self.agent.cache.update(&to.dataset, since, theirs),
            None => self.agent.cache.invalidate(&to.dataset),
        }
    }

    /// Reports to the director what the destination has now.
    async fn report_destination(&mut self) {
        let Some(mut inventory) = self.theirs.clone() else { return };
        if self.plan.to.host == self.agent.host {
            // The agent's own listing does not say what local.json permits.
            inventory = self.agent.receiver.with_permission((self.plan.to.dataset.clone(), inventory));
        }
        for listing in Listing::parts(&self.plan.to.host, &self.plan.to.dataset, inventory) {
            self.context.report(Facts { listing: Some(listing), ..Facts::default() }).await;
        }
    }
}

/// The flags to try after the destination has refused a stream with these flags.
fn other_flags(refused: SendFlags, creates: bool, error: ErrorKind) -> Option<SendFlags> {
    match error {
        ErrorKind::Feature => refused.with_fewer_features(),
        ErrorKind::LargeBlocks if !creates => refused.with_large_blocks(),
        _ => None,
    }
}
