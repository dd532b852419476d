//! `zsync slave`: receives streams from agents.

pub mod receive;
use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_lite::future;
use futures_lite::io::{AsyncWrite, AsyncWriteExt};

use crate::host::publish::publisher::Publisher;
use crate::host::queue::{QueueSlot, queue_timeout};
use crate::model::Counter;
use crate::model::{DatasetInventory, DatasetName, DatasetStatus, ResponseStatus};
use crate::policy::Local;
use crate::server::{Counters, acceptor, counters};
use crate::slave::receive::{Around, Incoming, Receiving, StepError, occupied, stalled};
use crate::sys::{clock, runtime};
use crate::wire::codec::{ALIVE_EVERY, Conn, StreamEnd, WireError};
use crate::wire::{Alive, ListUuids, Listing, OrderToSlave, PROTOCOL, Place, Response, Step};
use crate::zfs::{ReceiveStream, Zfs, ZfsError};

/// A dataset as a listing shows it; `None` where it does not exist.
type Found = Option<DatasetInventory>;

/// A dataset as it was last seen.
struct Seen {
    found: Found,
    around: Around,
    /// What an agent is to be told of the place, if anything is new.
    place: Option<Place>,
}

/// A slave with its ZFS.
pub struct Slave<Z> {
    receiving: Receiving<Z>,
    tally: Counters,
}

/// What a slave answers before any stream, and after each step.
#[must_use]
pub fn list_uuids(found: Option<DatasetInventory>, place: Option<Place>) -> Vec<ListUuids> {
    let Some(inventory) = found else {
        return vec![ListUuids { status: Some(DatasetStatus::False), place, ..ListUuids::default() }];
    };
    let status = if inventory.snapshots.is_empty() { DatasetStatus::False } else { DatasetStatus::True };
    // Only the parts are of use here; host and dataset are those of the conversation.
    let (Ok(host), Ok(dataset)) = ("slave".parse(), "listing".parse()) else { return Vec::new() };
    let parts = Listing::parts(&host, &dataset, inventory);
    let last = parts.len() - 1;
    let line = |(n, part): (usize, Listing)| ListUuids {
        map_uuid: part.inventory.snapshots.iter().map(|s| s.guid.uuid().to_string()).collect(),
        status: (n == 0).then_some(status),
        place: place.filter(|_| n == 0),
        error: String::new(),
        inventory: Some(part.inventory),
        more: n < last,
    };
    parts.into_iter().enumerate().map(line).collect()
}

impl<Z: Zfs> Slave<Z> {
    /// A slave for this host.
    #[must_use]
    pub fn new(zfs: Arc<Z>, local: Arc<Local>) -> Self {
        Self { receiving: Receiving::new(zfs, local), tally: Counters::new(counters::SLAVE) }
    }

    /// The same with another configuration; what is under way keeps its claims on datasets.
    #[must_use]
    pub fn with_local(&self, local: Arc<Local>) -> Self {
        Self { receiving: self.receiving.with_local(local), tally: self.tally.clone() }
    }

    /// The same, which publishes what it received.
    #[must_use]
    pub fn publishing(self, publisher: Option<Arc<Publisher>>) -> Self {
        Self { receiving: self.receiving.publishing(publisher), ..self }
    }

    /// Publishes a dataset as it is now.
    async fn publish(&self, dataset: &DatasetName) {
        if let Some(publisher) = &self.receiving.publisher {
            // Whether it is behind, its check tells.
            publisher.publish([dataset.clone()].into(), Vec::new()).await;
        }
    }

    /// Has one conversation with an agent.
    pub async fn converse(&self, conn: &mut Conn, line: &[u8]) -> Result<(), WireError> {
        conn.set_stall_timeout(self.receiving.local.stall_timeout);
        let mut changed = BTreeSet::new();
        let result = self.talk(conn, line, &mut changed).await;
        for dataset in changed {
            // It broke off, and something may have arrived all the same.
            self.publish(&dataset).await;
        }
        result
    }

    /// `changed` is what was worked on and is not published yet.
    async fn talk(&self, conn: &mut Conn, line: &[u8], changed: &mut BTreeSet<DatasetName>) -> Result<(), WireError> {
        let order: OrderToSlave = conn.parse(line)?;
        if order.protocol > PROTOCOL {
            let reason = format!("protocol {} is newer than this slave's, {PROTOCOL}", order.protocol);
            return conn.send(&Response::failure(Some(order.order_uuid), ResponseStatus::Refused, reason)).await;
        }
        let dataset = &order.dest_dataset;
        let peer = conn.peer.clone();
        let not_open = |reason: String, status| {
            log::warn!("{peer}: {} may not send to {dataset}: {reason}", order.source);
            ListUuids { status: Some(status), error: reason, ..ListUuids::default() }
        };
        if let Err(denied) = self.receiving.permit(&order.source, conn.identity.as_ref(), dataset) {
            return conn.send(&not_open(denied.to_string(), denied.status())).await;
        }
        let none = Counter::default();
        // The one before may be an agent that is gone, of which the end is on its way, or what it sent still runs out: a
        // silent peer is known to be gone after as long.
        let claiming = self.receiving.busy.claim_within(conn.patience, dataset);
        let Some(claim) = alive_while(conn, &none, claiming).await? else {
            return conn.send(&not_open(occupied(dataset), DatasetStatus::True)).await;
        };
        let mut slot = match alive_while(conn, &none, self.receiving.slots.take(since(&order))).await? {
            Ok(slot) => Some(slot),
            Err(limit) => {
                let (status, error) = (Some(DatasetStatus::True), queue_timeout("max_receives", limit));
                return conn.send(&ListUuids { status, error, ..ListUuids::default() }).await;
            }
        };
        let found = alive_while(conn, &none, self.look(&order)).await?;
        let Some(mut seen) = tell(conn, found).await? else { return Ok(()) };
        let mut came = false;
        loop {
            // An agent between two steps may wait for its own ZFS.
            let step: Step = conn.recv(acceptor::BETWEEN_STEPS).await?;
            changed.insert(dataset.clone());
            let mut remark = String::new();
            // After a success its own listing is at hand; after a failure a fresh look tells what is left.
            let result: Result<Option<Found>, StepError> = match step {
                Step::Receive { status: _, guid, snapshot_name, create, overwrite, cloned, flags, properties } => {
                    let overwrite = overwrite && order.rollback_if_needed;
                    let incoming = Incoming { guid, name: snapshot_name, create, overwrite, cloned, flags, properties };
                    let (_underway, received) = (self.tally.begin(), Counter::default());
                    let result = self.receive(conn, &order, &incoming, &seen, &received, slot.take()).await;
                    self.tally.ended("receive", matches!(result, Ok(Ok(_))), received.get());
                    let result = result?;
                    came |= result.is_ok();
                    result
                }
                Step::Rollback { guid, destroys } => {
                    alive_while(conn, &none, self.receiving.rollback(&order, guid, &destroys)).await?.map(|()| None)
                }
                Step::SetAside { guid } => {
                    let aside = alive_while(conn, &none, self.receiving.set_aside(&order, guid)).await?;
                    aside.map(|name| {
                        remark = name.to_string();
                        None
                    })
                }
                Step::Follow => alive_while(conn, &none, self.receiving.follow(&order)).await?.map(|()| None),
                Step::Abort => {
                    let aborted = alive_while(conn, &none, self.receiving.zfs.abort_receive(dataset)).await?;
                    aborted.map(|()| None).map_err(StepError::from)
                }
                Step::Finish { status, guid } => {
                    let settled = match (guid, &mut seen.found) {
                        (Some(guid), Some(found)) => {
                            let settling = self.receiving.settle(dataset, found, &order.source, guid);
                            alive_while(conn, &none, settling).await?
                        }
                        _ => Ok(()),
                    };
                    let settled = match settled {
                        Ok(()) if came => alive_while(conn, &none, self.receiving.arrived(&order)).await?,
                        settled => settled.map_err(StepError::from),
                    };
                    log::info!("{}: {dataset} from {}: {status:?}", order.order_uuid, order.source);
                    for dataset in std::mem::take(changed) {
                        alive_while(conn, &none, self.publish(&dataset)).await?;
                    }
                    drop((claim, slot.take()));
                    return conn.send(&finished(&order, status, settled)).await;
                }
            };
            let (response, found) = match result {
                Ok(found) => (Response::success(order.order_uuid, ResponseStatus::Done, remark), found),
                Err(StepError { status, reason, temporary, no_space: _ }) => {
                    log::warn!("{}: {dataset} from {}: {reason}", order.order_uuid, order.source);
                    (Response { temporary, ..Response::failure(Some(order.order_uuid), status, reason) }, None)
                }
            };
            conn.send(&response).await?;
            // What the place is like was told at the beginning, and may be another one once the dataset is away.
            let now = match found {
                Some(found) => Ok(Seen { found, place: None, around: seen.around }),
                None => alive_while(conn, &none, self.look(&order)).await?,
            };
            let Some(now) = tell(conn, now).await? else { return Ok(()) };
            seen = now;
        }
    }

    /// The dataset as it is, and the place.
    async fn look(&self, order: &OrderToSlave) -> Result<Seen, ZfsError> {
        let (found, around) = self.receiving.look_around(&order.dest_dataset).await?;
        let place = self.receiving.place(order, found.as_ref(), around).await?;
        Ok(Seen { found, around, place: Some(Place { takes_zstd: true, ..place }) })
    }

    /// Begins to receive once there is a place for it, which the first stream of a conversation has already.
    async fn begin(
        &self,
        order: &OrderToSlave,
        incoming: &Incoming,
        around: Around,
        slot: Option<QueueSlot>,
    ) -> Result<(QueueSlot, ReceiveStream), StepError> {
        let slot =
            match slot {
                Some(slot) => slot,
                None => self.receiving.slots.take(since(order)).await.map_err(|limit| {
                    StepError::temporary(ResponseStatus::Busy, queue_timeout("max_receives", limit))
                })?,
            };
        let spec = self.receiving.prepare(order, incoming, around).await?;
        Ok((slot, self.receiving.zfs.receive(&spec).await?))
    }

    /// Receives one stream; the outer error ends the conversation, the inner one only the step. The place is free again
    /// once the stream is there.
    async fn receive(
        &self,
        conn: &mut Conn,
        order: &OrderToSlave,
        incoming: &Incoming,
        before: &Seen,
        counter: &Counter,
        slot: Option<QueueSlot>,
    ) -> Result<Result<Option<Found>, StepError>, WireError> {
        let dataset = &order.dest_dataset;
        let begun = self.begin(order, incoming, before.around, slot);
        let (slot, ReceiveStream { mut data, mut end }) = match alive_while(conn, &Counter::default(), begun).await? {
            Ok(begun) => begun,
            Err(error) => return self.give_up(conn, order, error).await,
        };
        let stall = conn.stall;
        let fed = feed(conn, &mut *data, counter).await;
        // The write end goes first: its end is what zfs receive waits for.
        drop(data);
        let fed = match fed {
            Ok(Fed::Stalled) => {
                drop(end);
                return self.give_up(conn, order, stalled("zfs receive takes nothing", stall)).await;
            }
            Ok(fed) => alive_while(conn, counter, runtime::timeout(stall, &mut end)).await.map(|ended| (fed, ended)),
            Err(error) => Err(error),
        };
        let (fed, ended) = match fed {
            Ok(ended) => ended,
            Err(error) => {
                // What arrived is kept for going on later, and all of it may have arrived. Nobody else gets at the
                // dataset before that is done.
                if runtime::timeout(stall, end).await.is_err() {
                    log::warn!("{dataset}: {}", stalled("zfs receive does not end", stall).reason);
                }
                return Err(error);
            }
        };
        drop(slot);
        let ended = match ended {
            Ok(ended) => ended.map_err(StepError::from),
            Err(runtime::Elapsed) => Err(stalled("zfs receive does not end", stall)),
        };
        let ended = match (fed, ended) {
            // The sender's failure explains the receiver's.
            (Fed::All(StreamEnd { is_success: false, error }), _) => {
                Err(StepError::temporary(ResponseStatus::Zerror, error))
            }
            (Fed::All(_), ended) => ended,
            // Its own words tell why.
            (_, Err(error)) => self.give_up(conn, order, error).await?.map(drop),
            (_, Ok(())) => {
                let early = StepError::temporary(ResponseStatus::Zerror, "zfs receive ended before the stream did");
                self.give_up(conn, order, early).await?.map(drop)
            }
        };
        let verifying = self.receiving.verify(dataset, incoming, before.found.as_ref(), ended);
        Ok(alive_while(conn, counter, verifying).await?.map(Some))
    }

    /// Tells the agent at once that its stream is not wanted, then lets what is under way run out.
    async fn give_up(
        &self,
        conn: &mut Conn,
        order: &OrderToSlave,
        error: StepError,
    ) -> Result<Result<Option<Found>, StepError>, WireError> {
        conn.send(&Alive { alive: 0, refused: true }).await?;
        let mut frame = Vec::new();
        while conn.recv_frame(&mut frame).await? {}
        conn.recv_stream_end().await?;
        log::debug!("{}: the stream is not received", order.order_uuid);
        Ok(Err(error))
    }
}

/// How a process was fed with a stream.
enum Fed {
    /// To the stream's end.
    All(StreamEnd),
    /// It takes no more.
    Ended,
    /// It took nothing for too long.
    Stalled,
}

/// Hands what comes in over to a process.
async fn feed(
    conn: &mut Conn,
    data: &mut (dyn AsyncWrite + Send + Unpin),
    counter: &Counter,
) -> Result<Fed, WireError> {
    let (mut frame, stall) = (Vec::new(), conn.stall);
    loop {
        match conn.recv_frame(&mut frame).await {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                // What came of a frame that was cut need not come again.
                drop(runtime::timeout(stall, data.write_all(&frame)).await);
                return Err(error);
            }
        }
        match alive_while(conn, counter, runtime::timeout(stall, data.write_all(&frame))).await? {
            Ok(Ok(())) => counter.add(frame.len() as u64),
            Ok(Err(_)) => return Ok(Fed::Ended),
            Err(runtime::Elapsed) => return Ok(Fed::Stalled),
        }
    }
    let end = conn.recv_stream_end().await?;
    if let Err(error) = data.close().await {
        log::debug!("closing the input of zfs receive: {error}");
    }
    Ok(Fed::All(end))
}

/// Since when the oldest data of an order waits.
fn since(order: &OrderToSlave) -> DateTime<Utc> {
    order.oldest_unsent.unwrap_or_else(clock::now)
}

/// Tells what the dataset holds; `None` where that cannot be found out, which ends the conversation.
async fn tell(conn: &mut Conn, seen: Result<Seen, ZfsError>) -> Result<Option<Seen>, WireError> {
    match seen {
        Ok(seen) => {
            for line in list_uuids(seen.found.clone(), seen.place) {
                conn.send(&line).await?;
            }
            Ok(Some(seen))
        }
        Err(error) => {
            log::warn!("{}: {error}", conn.peer);
            let status = Some(DatasetStatus::False);
            conn.send(&ListUuids { status, error: error.to_string(), ..ListUuids::default() }).await?;
            Ok(None)
        }
    }
}

fn finished(order: &OrderToSlave, status: ResponseStatus, settled: Result<(), StepError>) -> Response {
    match settled {
        Ok(()) => Response::success(order.order_uuid, status, ""),
        Err(error) => Response::failure(Some(order.order_uuid), error.status, error.reason),
    }
}

/// Says that we are alive while something takes its time.
async fn alive_while<T>(conn: &mut Conn, counter: &Counter, work: impl Future<Output = T>) -> Result<T, WireError> {
    let saying = async {
        loop {
            runtime::sleep(ALIVE_EVERY).await;
            conn.send(&Alive { alive: counter.get(), refused: false }).await?;
        }
    };
    future::or(async { Ok(work.await) }, saying).await
}

impl<Z: Zfs> acceptor::Role for Slave<Z> {
    const NAME: &'static str = "slave";

    async fn converse(self: Arc<Self>, conn: &mut Conn, first_line: Vec<u8>) -> Result<(), WireError> {
        Slave::converse(&self, conn, &first_line).await
    }

    fn counters(&self) -> &Counters {
        &self.tally
    }
}
