//! `zsync slave`: receives streams from agents.

use std::sync::Arc;
use std::time::Duration;

use futures_lite::AsyncWriteExt;
use futures_lite::future;

use super::busy::Busy;
use super::publisher::Publisher;
use super::receiving::{Incoming, NotOpen, Receiving, StepError};
use super::serve;
use crate::config::Local;
use crate::model::Counter;
use crate::model::{DatasetInventory, DatasetName, DatasetStatus, ResponseStatus};
use crate::policy::Target;
use crate::runtime;
use crate::wire::codec::{ALIVE_EVERY, Conn, StreamEnd, WireError};
use crate::wire::{Alive, ListUuids, Listing, OrderToSlave, PROTOCOL, Response, Step};
use crate::zfs::{Zfs, ZfsError};

/// How long `zfs receive` may take nothing before a transfer is given up.
const STALL: Duration = Duration::from_secs(600);
/// A dataset as a listing shows it; `None` where it does not exist.
type Found = Option<DatasetInventory>;

/// A slave with its ZFS.
pub struct Slave<Z>(pub Receiving<Z>, Option<Arc<Publisher>>);

/// What a slave answers before any stream.
#[must_use]
pub fn list_uuids(found: Option<DatasetInventory>) -> Vec<ListUuids> {
    let Some(inventory) = found else {
        return vec![ListUuids { status: Some(DatasetStatus::False), ..ListUuids::default() }];
    };
    let status = if inventory.snapshots.is_empty() { DatasetStatus::False } else { DatasetStatus::True };
    // Only the parts are of use here; host and dataset are those of the conversation.
    let (Ok(host), Ok(dataset)) = ("slave".parse(), "listing".parse()) else { return Vec::new() };
    let parts = Listing::parts(&host, &dataset, inventory);
    let last = parts.len() - 1;
    let line = |(n, part): (usize, Listing)| ListUuids {
        map_uuid: part.inventory.snapshots.iter().map(|s| s.guid.uuid().to_string()).collect(),
        status: (n == 0).then_some(status),
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
        Self(Receiving { zfs, local, busy: Busy::default() }, None)
    }

    /// The same, which publishes what it received.
    #[must_use]
    pub fn publishing(self, publisher: Option<Arc<Publisher>>) -> Self {
        Self(self.0, publisher)
    }

    /// Publishes a dataset as it is now.
    async fn publish(&self, dataset: &DatasetName) {
        if let Some(publisher) = &self.1 {
            // Whether it is behind, its check tells.
            publisher.publish(&*self.0.zfs, &[dataset.clone()].into(), Vec::new()).await;
        }
    }

    /// Has one conversation with an agent.
    pub async fn converse(&self, conn: &mut Conn, line: &[u8]) -> Result<(), WireError> {
        let mut changed = None;
        let result = self.talk(conn, line, &mut changed).await;
        if let Some(dataset) = changed {
            // It broke off, and something may have arrived all the same.
            self.publish(&dataset).await;
        }
        result
    }

    /// `changed` is what was worked on and is not published yet.
    async fn talk(&self, conn: &mut Conn, line: &[u8], changed: &mut Option<DatasetName>) -> Result<(), WireError> {
        let order: OrderToSlave = conn.understand(line)?;
        if order.protocol > PROTOCOL {
            let reason = format!("protocol {} is newer than this slave's, {PROTOCOL}", order.protocol);
            return conn.say(&Response::failure(Some(order.order_uuid), ResponseStatus::Refused, reason)).await;
        }
        let dataset = &order.dest_dataset;
        let claim = match self.0.open(&order.source, conn.identity.as_ref(), dataset) {
            Ok(claim) => claim,
            Err(NotOpen { status, reason }) => {
                log::warn!("{}: {} may not send to {dataset}: {reason}", conn.peer, order.source);
                let status = Some(status.unwrap_or(DatasetStatus::True));
                return conn.say(&ListUuids { status, error: reason, ..ListUuids::default() }).await;
            }
        };
        let none = Counter::default();
        let found = alive_while(conn, &none, self.0.look(dataset)).await?;
        if !tell(conn, found).await? {
            return Ok(());
        }
        let from = Target {
            host: order.source.clone(),
            dataset: order.source_dataset.clone().unwrap_or_else(|| dataset.clone()),
        };
        loop {
            // An agent between two steps may wait for its own ZFS.
            let step: Step = conn.hear(serve::BETWEEN_STEPS).await?;
            *changed = Some(dataset.clone());
            // After a success its own listing is at hand; after a failure a fresh look tells what is left.
            let result: Result<Option<Found>, StepError> = match step {
                Step::Receive { status: _, guid, snapshot_name, create, overwrite } => {
                    let overwrite = overwrite && order.rollback_if_needed;
                    let incoming = Incoming { guid, name: snapshot_name, create, overwrite };
                    self.receive(conn, &order, &incoming).await?
                }
                Step::Rollback { guid } if order.rollback_if_needed => {
                    alive_while(conn, &none, self.0.rollback(dataset, guid)).await?.map(|()| None)
                }
                Step::Rollback { .. } => {
                    Err(StepError::new(ResponseStatus::Refused, "the order does not allow a rollback"))
                }
                Step::Abort => {
                    let aborted = alive_while(conn, &none, self.0.zfs.abort_receive(dataset)).await?;
                    aborted.map(|()| None).map_err(StepError::from)
                }
                Step::Finish { status, guid } => {
                    let settled = match guid {
                        Some(guid) => alive_while(conn, &none, self.0.settle(dataset, &from, guid)).await?,
                        None => Ok(()),
                    };
                    log::info!("{}: {dataset} from {}: {status:?}", order.order_uuid, order.source);
                    if let Some(dataset) = changed.take() {
                        alive_while(conn, &none, self.publish(&dataset)).await?;
                    }
                    drop(claim);
                    return conn.say(&finished(&order, status, settled)).await;
                }
            };
            let (response, found) = match result {
                Ok(found) => (Response::success(order.order_uuid, ResponseStatus::Done, ""), found),
                Err(StepError { status, reason, temporary, no_space: _ }) => {
                    log::warn!("{}: {dataset} from {}: {reason}", order.order_uuid, order.source);
                    (Response { temporary, ..Response::failure(Some(order.order_uuid), status, reason) }, None)
                }
            };
            conn.say(&response).await?;
            let found = match found {
                Some(found) => Ok(found),
                None => alive_while(conn, &none, self.0.look(dataset)).await?,
            };
            if !tell(conn, found).await? {
                return Ok(());
            }
        }
    }

    /// Receives one stream; the outer error ends the conversation, the inner one only the step.
    async fn receive(
        &self,
        conn: &mut Conn,
        order: &OrderToSlave,
        incoming: &Incoming,
    ) -> Result<Result<Option<Found>, StepError>, WireError> {
        let dataset = &order.dest_dataset;
        let receive = match alive_while(conn, &Counter::default(), self.0.prepare(dataset, incoming)).await? {
            Ok(spec) => self.0.zfs.receive(&spec).await.map_err(StepError::from),
            Err(error) => Err(error),
        };
        let mut receive = match receive {
            Ok(receive) => receive,
            Err(error) => return self.give_up(conn, order, error).await,
        };
        let counter = Counter::default();
        let mut frame = Vec::new();
        loop {
            match conn.hear_frame(&mut frame).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    // What arrived is kept for going on later. Nobody else gets at the dataset before that is done.
                    drop(receive.data);
                    if runtime::timeout(STALL, receive.end).await.is_err() {
                        log::warn!("{dataset}: {}", stalled());
                    }
                    return Err(error);
                }
            }
            let writing = runtime::timeout(STALL, receive.data.write_all(&frame));
            match alive_while(conn, &counter, writing).await? {
                Ok(Ok(())) => counter.add(frame.len() as u64),
                Err(runtime::Elapsed) => {
                    return self.give_up(conn, order, StepError::new(ResponseStatus::Zerror, stalled())).await;
                }
                Ok(Err(_)) => {
                    // Its own words tell why.
                    drop(receive.data);
                    let ended = match receive.end.await {
                        Err(error) => error.into(),
                        Ok(()) => {
                            StepError::temporary(ResponseStatus::Zerror, "zfs receive ended before the stream did")
                        }
                    };
                    let refused = self.give_up(conn, order, ended).await?;
                    let refused = refused.map(drop);
                    return Ok(alive_while(conn, &counter, self.0.verify(dataset, incoming, refused)).await?.map(Some));
                }
            }
        }
        let end: StreamEnd = conn.hear(conn.patience).await?;
        if let Err(error) = receive.data.close().await {
            log::debug!("{dataset}: closing the input of zfs receive: {error}");
        }
        drop(receive.data);
        let mut ending = receive.end;
        let ended = match alive_while(conn, &counter, runtime::timeout(STALL, &mut ending)).await {
            Ok(ended) => ended,
            Err(error) => {
                // All of it may have arrived: it is let end.
                drop(runtime::timeout(STALL, ending).await);
                return Err(error);
            }
        };
        let ended = match ended {
            // The sender's failure explains the receiver's.
            _ if !end.is_success => Err(StepError::temporary(ResponseStatus::Zerror, end.error)),
            Ok(ended) => ended.map_err(StepError::from),
            Err(runtime::Elapsed) => Err(StepError::new(ResponseStatus::Zerror, stalled())),
        };
        Ok(alive_while(conn, &counter, self.0.verify(dataset, incoming, ended)).await?.map(Some))
    }

    /// Tells the agent at once that its stream is not wanted, then lets what is under way run out.
    async fn give_up(
        &self,
        conn: &mut Conn,
        order: &OrderToSlave,
        error: StepError,
    ) -> Result<Result<Option<Found>, StepError>, WireError> {
        conn.say(&Alive { alive: 0, refused: true }).await?;
        let mut frame = Vec::new();
        while conn.hear_frame(&mut frame).await? {}
        let _: StreamEnd = conn.hear(conn.patience).await?;
        log::debug!("{}: the stream is not received", order.order_uuid);
        Ok(Err(error))
    }
}

fn stalled() -> String {
    let stall = humantime::format_duration(STALL);
    format!("zfs receive does nothing for {stall}; is the pool suspended? see zpool status")
}

/// Tells what the dataset holds; `false` where that cannot be found out, which ends the conversation.
async fn tell(conn: &mut Conn, found: Result<Found, ZfsError>) -> Result<bool, WireError> {
    match found {
        Ok(found) => {
            for line in list_uuids(found) {
                conn.say(&line).await?;
            }
            Ok(true)
        }
        Err(error) => {
            log::warn!("{}: {error}", conn.peer);
            let status = Some(DatasetStatus::False);
            conn.say(&ListUuids { status, error: error.to_string(), ..ListUuids::default() }).await?;
            Ok(false)
        }
    }
}

fn finished(order: &OrderToSlave, status: ResponseStatus, settled: Result<(), ZfsError>) -> Response {
    match settled {
        Ok(()) => Response::success(order.order_uuid, status, ""),
        Err(error) => Response::failure(Some(order.order_uuid), ResponseStatus::Zerror, error.to_string()),
    }
}

/// Says that we are alive while something takes its time.
async fn alive_while<T>(conn: &mut Conn, counter: &Counter, work: impl Future<Output = T>) -> Result<T, WireError> {
    let saying = async {
        loop {
            runtime::sleep(ALIVE_EVERY).await;
            conn.say(&Alive { alive: counter.get(), refused: false }).await?;
        }
    };
    future::or(async { Ok(work.await) }, saying).await
}

impl<Z: Zfs> serve::Role for Slave<Z> {
    const NAME: &'static str = "slave";

    async fn converse(self: Arc<Self>, conn: &mut Conn, first_line: Vec<u8>) -> Result<(), WireError> {
        Slave::converse(&self, conn, &first_line).await
    }
}
