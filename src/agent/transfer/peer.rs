//! The other end of a send: a slave reached over TCP, or another pool of this host.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;

use crate::agent::Failure;
use crate::host::locks::Claim;
use crate::host::queue::QueueSlot;
use crate::host::throttle::Throttle;
use crate::model::{Counter, Place};
use crate::model::{DatasetInventory, DatasetName, DatasetStatus, Guid, HostName, ResponseStatus, Unchanged};
use crate::policy::Zstd;
use crate::slave::receive::{Around, Incoming, Receiving, StepError, occupied, stalled};
use crate::sys::{clock, runtime};
use crate::transport::tcp::{Dial, TransportError};
use crate::wire::codec::{Conn, Sent, StreamEnd, StreamOptions, WireError};
use crate::wire::{self, Alive, ListUuids, OrderToSlave, Response, Step};
use crate::zfs::{SendSpec, Zfs};

/// A receiver of streams.
pub(crate) enum Receiver<Z> {
    /// A slave.
    Remote(Box<Remote>),
    /// This host.
    Local(Box<Local<Z>>),
}

/// A conversation with a slave.
pub(crate) struct Remote {
    conn: Conn,
    host: HostName,
    dataset: DatasetName,
    out: Outgoing,
    place: wire::Place,
}

/// How streams to a slave go out, as this host's configuration says.
pub(crate) struct Outgoing {
    /// How fast.
    pub throttle: Arc<Throttle>,
    /// How compressed, if at all.
    pub compression: Option<Zstd>,
}

/// This host as a receiver.
pub(crate) struct Local<Z> {
    receiving: Receiving<Z>,
    order: OrderToSlave,
    place: wire::Place,
    /// The dataset and what surrounds it, as they were last seen.
    last: Found,
    around: Around,
    berth: LocalReservation,
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Self {
        let temporary = error.is_temporary();
        let reason = format!("{:#}", anyhow::Error::from(error));
        Self { status: ResponseStatus::Unreachable, reason, temporary }
    }
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        let temporary = error.is_temporary();
        let reason = format!("{:#}", anyhow::Error::from(error));
        Self { status: ResponseStatus::Unreachable, reason, temporary }
    }
}

impl From<StepError> for Failure {
    fn from(StepError { status, reason, temporary, no_space: _ }: StepError) -> Self {
        Self { status, reason, temporary }
    }
}

/// A dataset as the receiver has it; `None` where it does not exist.
pub(crate) type Found = Option<DatasetInventory>;

/// How a step ended, and what is there now.
pub(crate) type Ended<T = ()> = (Result<T, StepError>, Found);

/// A dataset of this host that nobody else receives into, and in time a place among the receives.
pub(crate) struct LocalReservation {
    _claim: Claim,
    since: DateTime<Utc>,
    slot: Option<QueueSlot>,
}

impl LocalReservation {
    /// Claims a dataset of this host, before it is looked at, for data that waits `since` then.
    pub(crate) fn claim<Z: Zfs>(
        receiving: &Receiving<Z>,
        host: &HostName,
        dataset: &DatasetName,
        since: DateTime<Utc>,
    ) -> Result<Self, Failure> {
        receiving.permit(host, None, dataset).map_err(|denied| Failure::refused(denied.to_string()))?;
        let claim = receiving.busy.claim(dataset).ok_or_else(|| Failure::busy(occupied(dataset)))?;
        Ok(Self { _claim: claim, since, slot: None })
    }

    /// Waits for a place, unless there is one.
    pub(crate) async fn wait<Z: Zfs>(&mut self, receiving: &Receiving<Z>) -> Result<(), Failure> {
        if self.slot.is_none() {
            let slot = receiving.slots.take(self.since).await;
            self.slot = Some(slot.map_err(|limit| Failure::queue_timeout("max_receives", limit))?);
        }
        Ok(())
    }
}

impl<Z: Zfs> Receiver<Z> {
    /// What is to be known of the place, besides what is there.
    pub(crate) fn place(&self) -> wire::Place {
        match self {
            Self::Remote(remote) => remote.place,
            Self::Local(local) => local.place,
        }
    }

    /// Reaches a slave, and gives what it has.
    pub(crate) async fn remote(
        to: &Place,
        dial: Dial<'_>,
        order: &OrderToSlave,
        stall: Duration,
        out: Outgoing,
    ) -> Result<(Self, Found), Failure> {
        let mut conn: Conn = dial.connect().await.map(Conn::from).map_err(|error| {
            let silent = !matches!(error, TransportError::Tls { .. });
            let mut failure = Failure::from(error);
            if silent {
                failure.reason = format!("{} (is zsync slave running on {}?)", failure.reason, to.host);
            }
            failure
        })?;
        conn.set_stall_timeout(stall);
        let Place { host, dataset } = to.clone();
        let mut remote = Remote { conn, host, dataset, out, place: wire::Place::default() };
        remote.conn.send(order).await?;
        let found = remote.hear_listing().await?;
        if let Some(compression) = remote.out.compression.filter(|_| !remote.place.takes_zstd) {
            log::info!("{} does not take {compression} yet: streams go as they are", remote.conn.peer);
            remote.out.compression = None;
        }
        Ok((Self::Remote(Box::new(remote)), found))
    }

    /// Receives on this host, into what was claimed and looked at.
    pub(crate) async fn local(
        receiving: &Receiving<Z>,
        order: OrderToSlave,
        berth: LocalReservation,
        (found, around): (Found, Around),
    ) -> Result<(Self, Found), Failure> {
        let place = receiving.place(&order, found.as_ref(), around).await?;
        let local = Local { receiving: receiving.clone(), order, place, last: found.clone(), around, berth };
        Ok((Self::Local(Box::new(local)), found))
    }

    /// Has one stream received and verified. The inner error is the step's: the conversation goes on, with the
    /// dataset as it is now. The place for the stream is free again once it is over.
    pub(crate) async fn receive(
        &mut self,
        zfs: &Arc<Z>,
        send: &SendSpec,
        incoming: &Incoming,
        status: ResponseStatus,
        counter: &Counter,
        slot: QueueSlot,
    ) -> Result<Ended, Failure> {
        match self {
            Self::Remote(remote) => remote.receive(zfs, send, incoming, status, counter, slot).await,
            Self::Local(local) => {
                let dataset = local.order.dest_dataset.clone();
                local.berth.wait(&local.receiving).await?;
                let began = clock::now();
                let ended = match local.receiving.prepare(&local.order, incoming, local.around).await {
                    Ok(spec) => zfs
                        .copy(send, &spec, counter, local.receiving.local.stall_timeout)
                        .await
                        .map_err(StepError::from),
                    Err(error) => Err(error),
                };
                drop((slot, local.berth.slot.take()));
                let ended_at = clock::now();
                let (result, mut found) =
                    match local.receiving.verify(&dataset, incoming, local.last.as_ref(), ended).await {
                        Ok(found) => (Ok(()), found),
                        Err(error) => (Err(error), local.receiving.look(&dataset).await?),
                    };
                if let (Ok(()), Some(found)) = (&result, &mut found) {
                    // Listed after the stream, into what is claimed: what changed in that second came with it.
                    let (from, to) = (began.timestamp(), ended_at.timestamp());
                    found.unchanged = Some(Unchanged { from, to, listed: to });
                }
                local.last.clone_from(&found);
                Ok((result, found))
            }
        }
    }

    /// Rolls back to the newest common snapshot, which loses those that are named.
    pub(crate) async fn rollback(&mut self, guid: Guid, destroys: Vec<Guid>) -> Result<Ended, Failure> {
        match self {
            Self::Remote(remote) => Ok(wordless(remote.step(&Step::Rollback { guid, destroys }).await?)),
            Self::Local(local) => {
                let result = local.receiving.rollback(&local.order, guid, &destroys).await;
                Ok((result, local.look().await?))
            }
        }
    }

    /// Has the dataset renamed, with all below it; gives its new name.
    pub(crate) async fn set_aside(&mut self, newest: Option<Guid>) -> Result<Ended<String>, Failure> {
        match self {
            Self::Remote(remote) => remote.step(&Step::SetAside { guid: newest }).await,
            Self::Local(local) => {
                let result = local.receiving.set_aside(&local.order, newest).await;
                Ok((result.map(|name| name.to_string()), local.look().await?))
            }
        }
    }

    /// Has the copy renamed as its source was.
    pub(crate) async fn follow(&mut self) -> Result<Ended, Failure> {
        match self {
            Self::Remote(remote) => Ok(wordless(remote.step(&Step::Follow).await?)),
            Self::Local(local) => {
                let result = local.receiving.follow(&local.order).await;
                Ok((result, local.look().await?))
            }
        }
    }

    /// Throws away what an interrupted receive left.
    pub(crate) async fn abort(&mut self) -> Result<Ended, Failure> {
        match self {
            Self::Remote(remote) => Ok(wordless(remote.step(&Step::Abort).await?)),
            Self::Local(local) => {
                local.receiving.zfs.abort_receive(&local.order.dest_dataset).await?;
                Ok((Ok(()), local.look().await?))
            }
        }
    }

    /// Ends the conversation with nothing more to come. How the receiver takes it is its own affair.
    pub(crate) async fn leave(self, status: ResponseStatus) {
        if let Self::Remote(mut remote) = self {
            if let Err(error) = remote.conn.send(&Step::Finish { status, guid: None }).await {
                log::debug!("{error}");
            }
            remote.conn.close().await;
        }
    }

    /// Ends the conversation: the receiver holds the newest common snapshot. `found`, where given, is then as it is after
    /// that, if that is known.
    pub(crate) async fn finish(
        self,
        status: ResponseStatus,
        guid: Option<Guid>,
        found: &mut Found,
    ) -> Result<(), Failure> {
        match self {
            Self::Remote(mut remote) => {
                remote.conn.send(&Step::Finish { status, guid }).await?;
                let response: Response = remote.hear().await?;
                remote.conn.close().await;
                if response.is_success {
                    return Ok(());
                }
                Err(Failure { status: response.status, reason: response.error, temporary: response.temporary })
            }
            Self::Local(local) => {
                if let (Some(guid), Some(last)) = (guid, found) {
                    local.receiving.settle(&local.order.dest_dataset, last, &local.order.source, guid).await?;
                }
                if matches!(status, ResponseStatus::Full | ResponseStatus::Incremental) {
                    local.receiving.arrived(&local.order).await?;
                }
                drop(local.berth);
                Ok(())
            }
        }
    }
}

impl<Z: Zfs> Local<Z> {
    /// The dataset as it is; the place is noted.
    async fn look(&mut self) -> Result<Found, Failure> {
        let (found, around) = self.receiving.look_around(&self.order.dest_dataset).await?;
        self.place = self.receiving.place(&self.order, found.as_ref(), around).await?;
        self.around = around;
        self.last.clone_from(&found);
        Ok(found)
    }
}

/// A step whose success needs no words.
fn wordless((result, found): Ended<String>) -> Ended {
    (result.map(drop), found)
}

impl Remote {
    async fn hear_listing(&mut self) -> Result<Found, Failure> {
        let mut found: Found = None;
        loop {
            let line: ListUuids = self.hear().await?;
            if !line.error.is_empty() {
                let (status, temporary) = match line.status {
                    Some(DatasetStatus::Disable | DatasetStatus::Docker | DatasetStatus::NotConf) => {
                        (ResponseStatus::Refused, false)
                    }
                    Some(DatasetStatus::True) => (ResponseStatus::Busy, true),
                    _ => (ResponseStatus::Zerror, false),
                };
                let reason = format!("{} does not receive into {}: {}", self.conn.peer, self.dataset, line.error);
                return Err(Failure { status, reason, temporary });
            }
            self.place = line.place.unwrap_or(self.place);
            match (&mut found, line.inventory) {
                (Some(found), Some(part)) => {
                    found.snapshots.extend(part.snapshots);
                    found.bookmarks.extend(part.bookmarks);
                }
                (found, Some(first)) => *found = Some(first),
                (_, None) => {}
            }
            if !line.more {
                return Ok(found);
            }
        }
    }

    /// Hears what the slave has to say, past its words that it is alive.
    async fn hear<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        loop {
            let line = self.conn.recv_line(self.conn.patience).await?;
            let line = line.ok_or_else(|| WireError::Closed { peer: self.conn.peer.clone() })?;
            if self.conn.parse::<Alive>(&line).is_err() {
                return Ok(self.conn.parse_or_reason(&line)?);
            }
        }
    }

    async fn step_ended(&mut self) -> Result<Ended<String>, Failure> {
        let response: Response = self.hear().await?;
        let result = if response.is_success {
            Ok(response.error)
        } else {
            let reason = format!("{}: {}", self.conn.peer, response.error);
            Err(StepError { status: response.status, reason, temporary: response.temporary, no_space: false })
        };
        Ok((result, self.hear_listing().await?))
    }

    async fn step(&mut self, step: &Step) -> Result<Ended<String>, Failure> {
        self.conn.send(step).await?;
        self.step_ended().await
    }

    async fn receive<Z: Zfs>(
        &mut self,
        zfs: &Arc<Z>,
        send: &SendSpec,
        incoming: &Incoming,
        status: ResponseStatus,
        counter: &Counter,
        slot: QueueSlot,
    ) -> Result<Ended, Failure> {
        let stream = zfs.send(send).await?;
        let mut data = stream.data;
        let Incoming { guid, name: snapshot_name, create, overwrite, cloned, flags, properties } = incoming.clone();
        let step = Step::Receive { status, guid, snapshot_name, create, overwrite, cloned, flags, properties };
        self.conn.send(&step).await?;
        let sent = {
            let pace = self.out.throttle.towards(&self.host);
            let way = StreamOptions { pace: Some(&pace), zstd: self.out.compression.map(Zstd::level) };
            self.conn.send_stream(&mut *data, way, counter).await?
        };
        // The read end goes first: a process that is blocked on a full pipe ends when the pipe does.
        drop(data);
        let ended: Result<(), StepError> = match sent {
            Sent::All => match runtime::timeout(self.conn.stall, stream.end).await {
                Ok(ended) => ended.map_err(StepError::from),
                Err(runtime::Elapsed) => Err(stalled("zfs send does not end", self.conn.stall)),
            },
            // Nobody waits for what it still has to say: dropped, it is killed.
            Sent::Refused => {
                drop(stream.end);
                Err(StepError::new(ResponseStatus::Zerror, "refused"))
            }
            Sent::Stalled => {
                drop(stream.end);
                Err(stalled("zfs send gives nothing", self.conn.stall))
            }
        };
        let end = StreamEnd {
            is_success: ended.is_ok(),
            error: ended.as_ref().err().map(|e| e.reason.clone()).unwrap_or_default(),
        };
        self.conn.end_stream(&end).await?;
        drop(slot);
        match (wordless(self.step_ended().await?), ended) {
            // What went wrong here is known here best.
            ((Err(_), found), Err(error)) if sent != Sent::Refused => Ok((Err(error), found)),
            (told, _) => Ok(told),
        }
    }
}
