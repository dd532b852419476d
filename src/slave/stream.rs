//! Receives one stream: from the connection into `zfs receive`, with every wait limited.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_lite::future;
use futures_lite::io::{AsyncWrite, AsyncWriteExt};

use crate::host::error::OrderError;
use crate::host::queue::QueueSlot;
use crate::model::{Counter, DatasetInventory, ResponseStatus, SendFlags, Turn};
use crate::slave::flow::{Flow, window_of};
use crate::slave::receive::{IncomingStream, Receiver, Surroundings};
use crate::sys::log_limit::Complaint;
use crate::sys::{clock, runtime};
use crate::wire::codec::{ALIVE_EVERY, Conn, StreamEnd, WireError};
use crate::wire::{Alive, OrderToSlave};
use crate::zfs::{End, ExpectedStream, Inspect, ReceiveStream, Zfs, ZfsError};

/// Why a step failed.
pub(super) enum StepFailure {
    /// The connection failed, which ends the conversation.
    Connection(WireError),
    /// Only the step failed; the conversation continues.
    Step(OrderError),
}

impl From<WireError> for StepFailure {
    fn from(error: WireError) -> Self {
        Self::Connection(error)
    }
}

impl From<OrderError> for StepFailure {
    fn from(error: OrderError) -> Self {
        Self::Step(error)
    }
}

/// A dataset as last listed.
#[derive(Default)]
pub(super) struct ListedDestination {
    /// The dataset; `None` if it does not exist.
    pub(super) found: Option<DatasetInventory>,
    pub(super) surroundings: Surroundings,
}

/// One stream that an agent announced.
pub(super) struct StreamReceive<'a, Z> {
    pub(super) receiver: &'a Receiver<Z>,
    pub(super) order: &'a OrderToSlave,
    pub(super) incoming: &'a IncomingStream,
    /// The dataset before the stream.
    pub(super) before: &'a ListedDestination,
    /// Counts the bytes that arrived.
    pub(super) counter: &'a Counter,
}

/// How the stream on the connection ended.
enum Fed {
    /// The whole stream was passed to `zfs receive`.
    All(StreamEnd),
    /// `zfs receive` ended before the end of the stream.
    Closed,
    /// `zfs receive` accepted no data for too long.
    Stalled,
    /// The stream is not what was announced, for this reason. Nothing of the offending part was passed on.
    Refused(String),
}

impl<Z: Zfs> StreamReceive<'_, Z> {
    /// Receives the stream and verifies what arrived; returns the dataset as it is then. The slot is released once the
    /// stream has ended.
    pub(super) async fn run(
        &self,
        conn: &mut Conn,
        slot: Option<QueueSlot>,
    ) -> Result<Option<DatasetInventory>, StepFailure> {
        let (slot, ReceiveStream { mut data, end }) = match self.begin(conn, slot).await? {
            Ok(begun) => begun,
            Err(error) => return self.refuse(conn, error).await,
        };
        let mut inspector = self.receiver.zfs.inspector(self.expected());
        let mut flow = Flow::new(slot, window_of(conn));
        let fed = self.feed(conn, &mut *data, &mut *inspector, &mut flow).await;
        if let Ok(Fed::Refused(reason)) = fed {
            // Killed before its input is closed, so that it does not take this for the end of the stream.
            // The rest of the stream is read without a slot.
            drop((end, data, flow));
            let OrderToSlave { source, dest_dataset, .. } = self.order;
            let text = format!("{}: refused the stream of {source} into {dest_dataset}: {reason}", conn.peer);
            conn.log.warn(Complaint::Forbidden, &text);
            let error = OrderError::refused(format!("the stream is not as announced: {reason}"));
            return self.refuse(conn, error).await;
        }
        // zfs receive ends when its input is closed.
        drop(data);
        if let Ok(Fed::Stalled) = fed {
            drop((end, flow));
            let error = OrderError::stalled("zfs receive accepted no data", conn.stall);
            return self.refuse(conn, error).await;
        }
        let (fed, ended) = self.wait_for_end(conn, fed, end).await?;
        drop(flow);
        let ended = match (fed, ended) {
            // The failure of the sender explains that of the receiver.
            (Fed::All(StreamEnd { is_success: false, error }), _) => {
                Err(OrderError::temporary(ResponseStatus::Zerror, error))
            }
            (Fed::All(_), ended) => ended,
            (_, ended) => {
                let early = || OrderError::temporary(ResponseStatus::Zerror, "zfs receive ended before the stream did");
                let error = ended.err().unwrap_or_else(early);
                drain(conn, self.order).await?;
                Err(error)
            }
        };
        let verifying =
            self.receiver.verify(&self.order.dest_dataset, self.incoming, self.before.found.as_ref(), ended);
        Ok(alive_while(conn, self.counter, verifying).await??)
    }

    /// Checks that the announcement fits what this host has listed. The sender must not decide whether a dataset is
    /// created (and gets safe properties), or whether it is empty (and may be replaced).
    fn check_announcement(&self) -> Result<(), OrderError> {
        let IncomingStream { guid, create, overwrite, .. } = self.incoming;
        let found = self.before.found.as_ref();
        let has_snapshots = found.is_some_and(|found| !found.snapshots.is_empty());
        let fits = match (guid, create) {
            (None, create) => !overwrite && create.is_none() && found.is_some_and(|found| found.resume_token.is_some()),
            (Some(_), Some(_)) => !has_snapshots && found.is_some() == *overwrite,
            (Some(_), None) => has_snapshots && !overwrite,
        };
        if fits {
            return Ok(());
        }
        let reason = format!("the announced stream does not fit the current state of {}", self.order.dest_dataset);
        Err(OrderError::temporary(ResponseStatus::Refused, reason))
    }

    /// What the stream must be, according to this host's listing and the announcement.
    fn expected(&self) -> ExpectedStream {
        let bases = match (self.incoming.create, &self.order.clone_of) {
            (Some(_), Some(of)) if self.incoming.cloned => [of.guid].into(),
            (Some(_), _) => BTreeSet::new(),
            (None, _) => self.before.found.iter().flat_map(|found| &found.snapshots).map(|s| s.guid).collect(),
        };
        // A resumed stream has the flags of the first attempt, of which nothing is known here.
        let may_be_raw = self.incoming.flags.is_none_or(|flags| flags == SendFlags::Raw)
            && self.before.surroundings.key_conflict.is_none();
        let may_be_clone = self.incoming.cloned || self.incoming.guid.is_none();
        let found = self.before.found.as_ref().map(|found| found.kind);
        let kind = self.incoming.guid.and_then(|_| self.incoming.create.or(found));
        ExpectedStream { bases, guid: self.incoming.guid, kind, may_be_raw, may_be_clone }
    }

    /// Starts `zfs receive` once there is a slot. The first stream of a conversation has one already.
    async fn begin(
        &self,
        conn: &mut Conn,
        slot: Option<QueueSlot>,
    ) -> Result<Result<(QueueSlot, ReceiveStream), OrderError>, WireError> {
        let slot = match slot {
            Some(slot) => slot,
            None => match self.take_slot(conn).await? {
                Ok(slot) => slot,
                Err(error) => return Ok(Err(error)),
            },
        };
        let starting = async {
            self.check_announcement()?;
            let spec = self.receiver.prepare(self.order, self.incoming, &self.before.surroundings).await?;
            self.receiver.zfs.receive(&spec).await.map_err(OrderError::receiving)
        };
        Ok(alive_while(conn, self.counter, starting).await?.map(|stream| (slot, stream)))
    }

    /// Waits for a slot, and reports that to the agent.
    async fn take_slot(&self, conn: &mut Conn) -> Result<Result<QueueSlot, OrderError>, WireError> {
        let taking = self.receiver.queue.take(&self.order.source, turn(self.order));
        let taken = queued_while(conn, self.counter, taking).await?;
        Ok(taken.map_err(|limit| OrderError::queue_timeout("max_receives", limit)))
    }

    /// Passes frames from the connection to the input of a process.
    async fn feed(
        &self,
        conn: &mut Conn,
        data: &mut (dyn AsyncWrite + Send + Unpin),
        inspector: &mut dyn Inspect,
        flow: &mut Flow,
    ) -> Result<Fed, WireError> {
        let (mut frame, stall) = (Vec::new(), conn.stall);
        loop {
            match flow.measure(conn.recv_frame(&mut frame)).await {
                // A frame may have been interrupted, so the conversation cannot continue.
                None => return Err(flow.too_slow(conn)),
                Some(Ok(true)) => {}
                Some(Ok(false)) => break,
                Some(Err(error)) => {
                    // The part of the frame that arrived is passed on, so that it need not be sent again.
                    if inspector.feed(&frame).is_ok() {
                        drop(runtime::timeout(stall, data.write_all(&frame)).await);
                    }
                    return Err(error);
                }
            }
            if let Err(reason) = inspector.feed(&frame) {
                return Ok(Fed::Refused(reason));
            }
            if flow.needs_slot(frame.len()) {
                match self.take_slot(conn).await? {
                    Ok(slot) => flow.resume(slot),
                    Err(_) => return Err(flow.too_slow(conn)),
                }
            }
            match alive_while(conn, self.counter, runtime::timeout(stall, data.write_all(&frame))).await? {
                Ok(Ok(())) => self.counter.add(frame.len() as u64),
                Ok(Err(_)) => return Ok(Fed::Closed),
                Err(runtime::Elapsed) => return Ok(Fed::Stalled),
            }
        }
        let end = conn.recv_stream_end().await?;
        if let Err(error) = data.close().await {
            log::debug!("cannot close the input of zfs receive: {error}");
        }
        Ok(Fed::All(end))
    }

    /// Waits for `zfs receive` to end.
    ///
    /// This is also necessary after a lost connection: what arrived is kept for resuming, and may even be the whole
    /// stream, so nothing else may use the dataset before `zfs receive` has ended.
    async fn wait_for_end(
        &self,
        conn: &mut Conn,
        fed: Result<Fed, WireError>,
        mut end: End,
    ) -> Result<(Fed, Result<(), OrderError>), WireError> {
        let stall = conn.stall;
        let ended = match fed {
            Ok(fed) => {
                alive_while(conn, self.counter, runtime::timeout(stall, &mut end)).await.map(|ended| (fed, ended))
            }
            Err(error) => Err(error),
        };
        match ended {
            Ok((fed, ended)) => Ok((fed, receive_ended(ended, stall))),
            Err(error) => {
                if let Err(runtime::Elapsed) = runtime::timeout(stall, end).await {
                    let stalled = OrderError::stalled("zfs receive kept running after its last byte", stall);
                    log::warn!("{}: {}", self.order.dest_dataset, stalled.message());
                }
                Err(error)
            }
        }
    }

    /// Fails the step: asks the agent to stop sending, and discards the rest of the stream.
    async fn refuse<T>(&self, conn: &mut Conn, error: OrderError) -> Result<T, StepFailure> {
        drain(conn, self.order).await?;
        Err(error.into())
    }
}

fn receive_ended(ended: Result<Result<(), ZfsError>, runtime::Elapsed>, stall: Duration) -> Result<(), OrderError> {
    match ended {
        Ok(ended) => ended.map_err(OrderError::receiving),
        Err(runtime::Elapsed) => Err(OrderError::stalled("zfs receive kept running after its last byte", stall)),
    }
}

/// Reports to the agent at once that its stream is refused, and discards the rest of it.
async fn drain(conn: &mut Conn, order: &OrderToSlave) -> Result<(), WireError> {
    conn.send(&Alive { refused: true, ..Alive::default() }).await?;
    let mut frame = Vec::new();
    while conn.recv_frame(&mut frame).await? {}
    conn.recv_stream_end().await?;
    log::debug!("{}: discarded the rest of the stream", order.order_uuid);
    Ok(())
}

/// The turn of an order in the queue, by what its sender claims.
pub(super) fn turn(order: &OrderToSlave) -> Turn {
    Turn::new(order.oldest_unsent.unwrap_or_else(clock::now), order.start_by)
}

/// Does some work, and sends signs of life to the peer meanwhile.
pub(super) async fn alive_while<T>(
    conn: &mut Conn,
    counter: &Counter,
    work: impl Future<Output = T>,
) -> Result<T, WireError> {
    signalling(conn, counter, false, work).await
}

/// Waits for a slot, and reports that to the peer meanwhile.
pub(super) async fn queued_while<T>(
    conn: &mut Conn,
    counter: &Counter,
    waiting: impl Future<Output = T>,
) -> Result<T, WireError> {
    signalling(conn, counter, true, waiting).await
}

async fn signalling<T>(
    conn: &mut Conn,
    counter: &Counter,
    queued: bool,
    work: impl Future<Output = T>,
) -> Result<T, WireError> {
    let signalling = async {
        loop {
            runtime::sleep(ALIVE_EVERY).await;
            conn.send(&Alive { alive: counter.get(), queued, refused: false }).await?;
        }
    };
    future::or(async { Ok(work.await) }, signalling).await
}
