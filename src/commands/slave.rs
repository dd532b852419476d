//! `zsync slave`: receives streams from agents.

use std::sync::Arc;

use futures_lite::AsyncWriteExt;
use futures_lite::future;

use super::busy::Busy;
use super::receiving::{Incoming, NotOpen, Receiving, StepError};
use super::serve;
use crate::config::Local;
use crate::model::Counter;
use crate::model::{DatasetInventory, DatasetStatus, ResponseStatus};
use crate::policy::Target;
use crate::runtime;
use crate::wire::codec::{ALIVE_EVERY, Conn, SILENCE, StreamEnd, WireError};
use crate::wire::{Alive, ListUuids, Listing, OrderToSlave, Response, Step};
use crate::zfs::{Zfs, ZfsError};

/// A dataset as a listing shows it; `None` where it does not exist.
type Found = Option<DatasetInventory>;

/// A slave with its ZFS.
pub struct Slave<Z>(pub Receiving<Z>);

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
        Self(Receiving { zfs, local, busy: Busy::default() })
    }

    /// Has one conversation with an agent.
    pub async fn converse(&self, conn: &mut Conn) -> Result<(), WireError> {
        let Some(line) = conn.hear_line(SILENCE).await? else { return Ok(()) };
        let order: OrderToSlave = match conn.understand(&line) {
            Ok(order) => order,
            Err(error) => {
                conn.say(&Response::failure(None, ResponseStatus::Refused, error.to_string())).await?;
                return Err(error);
            }
        };
        let dataset = &order.dest_dataset;
        let claim = match self.0.open(&order.source, dataset) {
            Ok(claim) => claim,
            Err(NotOpen { status, reason }) => {
                log::warn!("{}: {} may not send to {dataset}: {reason}", conn.peer, order.source);
                let status = Some(status.unwrap_or(DatasetStatus::True));
                return conn.say(&ListUuids { status, error: reason, ..ListUuids::default() }).await;
            }
        };
        tell(conn, self.0.look(dataset).await).await?;
        let from = Target {
            host: order.source.clone(),
            dataset: order.source_dataset.clone().unwrap_or_else(|| dataset.clone()),
        };
        loop {
            // An agent between two steps may wait for its own ZFS.
            let step: Step = conn.hear(serve::BETWEEN_STEPS).await?;
            // After a success its own listing is at hand; after a failure a fresh look tells what is left.
            let result: Result<Option<Found>, StepError> = match step {
                Step::Receive { status: _, guid, snapshot_name, create, overwrite } => {
                    let overwrite = overwrite && order.rollback_if_needed;
                    let incoming = Incoming { guid, name: snapshot_name, create, overwrite };
                    self.receive(conn, &order, &incoming).await?
                }
                Step::Rollback { guid } if order.rollback_if_needed => {
                    self.0.rollback(dataset, guid).await.map(|()| None)
                }
                Step::Rollback { .. } => Err(StepError {
                    status: ResponseStatus::Refused,
                    reason: "the order does not allow a rollback".into(),
                    temporary: false,
                }),
                Step::Abort => self.0.zfs.abort_receive(dataset).await.map(|()| None).map_err(StepError::from),
                Step::Finish { status, guid } => {
                    let settled = match guid {
                        Some(guid) => self.0.settle(dataset, &from, guid).await,
                        None => Ok(()),
                    };
                    log::info!("{}: {dataset} from {}: {status:?}", order.order_uuid, order.source);
                    drop(claim);
                    return conn.say(&finished(&order, status, settled)).await;
                }
            };
            let (response, found) = match result {
                Ok(found) => (Response::success(order.order_uuid, ResponseStatus::Done, ""), found),
                Err(StepError { status, reason, temporary }) => {
                    log::warn!("{}: {dataset} from {}: {reason}", order.order_uuid, order.source);
                    (Response { temporary, ..Response::failure(Some(order.order_uuid), status, reason) }, None)
                }
            };
            conn.say(&response).await?;
            let found = match found {
                Some(found) => Ok(found),
                None => self.0.look(dataset).await,
            };
            tell(conn, found).await?;
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
        let receive = match self.0.prepare(dataset, incoming).await {
            Ok(spec) => self.0.zfs.receive(&spec).await,
            Err(error) => Err(error),
        };
        let mut receive = match receive {
            Ok(receive) => receive,
            Err(error) => return self.give_up(conn, order, error.into()).await,
        };
        let counter = Counter::default();
        let mut frame = Vec::new();
        while conn.hear_frame(&mut frame).await? {
            if receive.data.write_all(&frame).await.is_err() {
                // Its own words tell why.
                drop(receive.data);
                let error = match receive.end.await {
                    Err(error) => error.into(),
                    Ok(()) => StepError {
                        status: ResponseStatus::Zerror,
                        reason: "zfs receive ended before the stream did".into(),
                        temporary: true,
                    },
                };
                return self.give_up(conn, order, error).await;
            }
            counter.add(frame.len() as u64);
        }
        let end: StreamEnd = conn.hear(SILENCE).await?;
        if let Err(error) = receive.data.close().await {
            log::debug!("{dataset}: closing the input of zfs receive: {error}");
        }
        drop(receive.data);
        let ended = alive_while(conn, &counter, receive.end).await?;
        let ended = match ended {
            // The sender's failure explains the receiver's.
            _ if !end.is_success => {
                Err(StepError { status: ResponseStatus::Zerror, reason: end.error, temporary: true })
            }
            ended => ended.map_err(StepError::from),
        };
        Ok(self.0.verify(dataset, incoming, ended).await.map(Some))
    }

    /// Tells the agent at once that its stream is not wanted, then lets what is under way run out.
    async fn give_up(
        &self,
        conn: &mut Conn,
        order: &OrderToSlave,
        error: StepError,
    ) -> Result<Result<Option<Found>, StepError>, WireError> {
        conn.say(&Alive::default()).await?;
        let mut frame = Vec::new();
        while conn.hear_frame(&mut frame).await? {}
        let _: StreamEnd = conn.hear(SILENCE).await?;
        log::debug!("{}: the stream is not received", order.order_uuid);
        Ok(Err(error))
    }
}

/// Tells what the dataset holds.
async fn tell(conn: &mut Conn, found: Result<Found, ZfsError>) -> Result<(), WireError> {
    match found {
        Ok(found) => {
            for line in list_uuids(found) {
                conn.say(&line).await?;
            }
            Ok(())
        }
        Err(error) => {
            let status = Some(DatasetStatus::False);
            conn.say(&ListUuids { status, error: error.to_string(), ..ListUuids::default() }).await
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
            conn.say(&Alive { alive: counter.get() }).await?;
        }
    };
    future::or(async { Ok(work.await) }, saying).await
}

impl<Z: Zfs> serve::Role for Slave<Z> {
    const NAME: &'static str = "slave";

    async fn converse(self: Arc<Self>, mut conn: Conn) {
        match Slave::converse(&self, &mut conn).await {
            Ok(()) => {}
            Err(error) => log::warn!("{:#}", anyhow::Error::from(error)),
        }
        conn.close().await;
    }
}
