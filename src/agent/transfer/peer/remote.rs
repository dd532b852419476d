//! Sends a transfer to a slave on another host.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::agent::transfer::peer::outcome::{Destination, StepOutcome, StreamToSend};
use crate::host::error::OrderError;
use crate::host::queue::QueueSlot;
use crate::host::throttle::Throttle;
use crate::model::Place;
use crate::model::{Counter, DatasetStatus, Guid, OrderId, PeerRole, ResponseStatus, SourceRecord};
use crate::policy::Zstd;
use crate::slave::receive::IncomingStream;
use crate::sys::runtime;
use crate::transport::tcp::{Dial, TransportError};
use crate::transport::tls::Tls;
use crate::wire::codec::{Conn, Sent, StreamEnd, StreamOptions, WireError};
use crate::wire::memory::{self, LISTINGS};
use crate::wire::{Alive, DestinationInfo, ListUuids, OrderToSlave, Response, Step};
use crate::zfs::{End, Zfs};

/// A connection to the receiving side.
pub(super) enum Line<'a> {
    /// This side has opened it.
    Own(Box<Conn>),
    /// The receiving side has opened it, and something else is said on it afterwards.
    Lent(&'a mut Conn),
}

impl Deref for Line<'_> {
    type Target = Conn;

    fn deref(&self) -> &Conn {
        match self {
            Self::Own(conn) => conn,
            Self::Lent(conn) => conn,
        }
    }
}

impl DerefMut for Line<'_> {
    fn deref_mut(&mut self) -> &mut Conn {
        match self {
            Self::Own(conn) => conn,
            Self::Lent(conn) => conn,
        }
    }
}

impl Line<'_> {
    /// Closes this side of the connection, unless more is said on it.
    async fn end(&mut self) {
        if let Self::Own(conn) = self {
            conn.end().await;
        }
    }
}

/// A conversation with a slave.
pub(crate) struct RemotePeer<'a> {
    conn: Line<'a>,
    to: Place,
    order: OrderId,
    outgoing: Outgoing,
    pub(super) place: DestinationInfo,
}

/// The address of a slave, and how to connect to it.
pub(crate) struct SlaveAddress<'a> {
    pub(crate) to: &'a Place,
    /// `host:port`
    pub(crate) address: &'a str,
    pub(crate) tls: Option<&'a Tls>,
    /// How long a stream may make no progress.
    pub(crate) stall_timeout: Duration,
}

/// This host's settings for streams to a slave.
pub(crate) struct Outgoing {
    pub(crate) throttle: Arc<Throttle>,
    pub(crate) compression: Option<Zstd>,
    /// Is told when the slave makes the transfer wait.
    pub(crate) counter: Counter,
}

impl<'a> RemotePeer<'a> {
    /// Connects to a slave and sends it the order. The slave answers with its listing of the destination.
    pub(crate) async fn connect(
        slave: SlaveAddress<'_>,
        order: &OrderToSlave,
        outgoing: Outgoing,
    ) -> Result<(Self, Destination), OrderError> {
        let SlaveAddress { to, address, tls, stall_timeout } = slave;
        let dial = Dial { host: &to.host, role: PeerRole::Slave, address, tls };
        let mut conn = dial.connect().await.map(Conn::from).map_err(|error| {
            let may_be_down = !matches!(error, TransportError::Tls { .. });
            let error = OrderError::from(error);
            if may_be_down {
                return error.with_hint(format!("check that zsync slave is running on {}", to.host));
            }
            error
        })?;
        conn.set_stall_timeout(stall_timeout);
        Self::begin(conn, to, order, outgoing).await
    }

    /// Begins the conversation about an order on a new connection.
    pub(super) async fn begin(
        mut conn: Conn,
        to: &Place,
        order: &OrderToSlave,
        outgoing: Outgoing,
    ) -> Result<(Self, Destination), OrderError> {
        conn.send(order).await?;
        Self::on(Line::Own(Box::new(conn)), to, order.order_uuid, outgoing).await
    }

    /// Begins the conversation on a connection. The slave knows the order, and sends its listing of the destination.
    pub(super) async fn on(
        conn: Line<'a>,
        to: &Place,
        order: OrderId,
        outgoing: Outgoing,
    ) -> Result<(Self, Destination), OrderError> {
        let mut remote = Self { conn, to: to.clone(), order, outgoing, place: DestinationInfo::default() };
        let destination = remote.recv_listing().await?;
        if let Some(compression) = remote.outgoing.compression.filter(|_| !remote.place.takes_zstd) {
            log::info!("{} does not support {compression} yet: sending uncompressed", remote.conn.peer);
            remote.outgoing.compression = None;
        }
        Ok((remote, destination))
    }

    /// Asks for a step other than a stream. If it succeeds, the result is the slave's remark.
    pub(super) async fn step(&mut self, step: &Step) -> Result<StepOutcome<String>, OrderError> {
        self.conn.send(step).await?;
        self.recv_outcome().await
    }

    pub(super) async fn receive<Z: Zfs>(
        &mut self,
        zfs: &Z,
        stream: StreamToSend<'_>,
        counter: &Counter,
        slot: QueueSlot,
    ) -> Result<StepOutcome, OrderError> {
        let StreamToSend { spec, incoming, status } = stream;
        let sending = zfs.send(spec).await?;
        let mut data = sending.data;
        self.conn.send(&receive_step(status, incoming)).await?;
        let sent = {
            let pace = self.outgoing.throttle.towards(&self.to.host);
            let way = StreamOptions { pace: Some(&pace), zstd: self.outgoing.compression.map(Zstd::level) };
            self.conn.send_stream(&mut *data, way, counter).await?
        };
        // Closes the pipe: zfs send ends even if it is blocked on a full one.
        drop(data);
        let ended = wait_for_send(sent, sending.end, self.conn.stall).await;
        let end = StreamEnd {
            is_success: ended.is_ok(),
            error: ended.as_ref().err().map(OrderError::message).unwrap_or_default(),
        };
        self.conn.end_stream(&end).await?;
        drop(slot);
        let outcome = self.recv_outcome().await?.map(drop);
        match ended {
            // The error of `zfs send` on this host explains the failure best.
            Err(error) if outcome.result.is_err() && sent != Sent::Refused => {
                Ok(StepOutcome::new(Err(error), outcome.destination))
            }
            _ => Ok(outcome),
        }
    }

    pub(super) async fn leave(&mut self, status: ResponseStatus) {
        if let Err(error) = self.conn.send(&Step::Finish { status, guid: None, recorded: None }).await {
            log::debug!("{error}");
        }
        self.conn.end().await;
    }

    pub(super) async fn finish(
        &mut self,
        status: ResponseStatus,
        guid: Option<Guid>,
        recorded: Option<SourceRecord>,
    ) -> Result<(), OrderError> {
        self.conn.send(&Step::Finish { status, guid, recorded }).await?;
        let response = self.recv_response().await?;
        self.conn.end().await;
        if response.is_success { Ok(()) } else { Err(OrderError::reported(None, response)) }
    }

    /// Receives the answer to a step, and the destination after it.
    async fn recv_outcome(&mut self) -> Result<StepOutcome<String>, OrderError> {
        let response = self.recv_response().await?;
        let result = if response.is_success {
            Ok(response.error)
        } else {
            Err(OrderError::reported(Some(&self.conn.peer), response))
        };
        Ok(StepOutcome::new(result, self.recv_listing().await?))
    }

    async fn recv_response(&mut self) -> Result<Response, OrderError> {
        let response = self.recv().await?;
        self.conn.check_answers(&response, self.order)?;
        Ok(response)
    }

    async fn recv_listing(&mut self) -> Result<Destination, OrderError> {
        let receiving = LISTINGS.receive();
        let mut destination: Destination = None;
        loop {
            let line: ListUuids = self.recv().await?;
            receiving.add(line.inventory.as_ref().map_or(0, memory::of_dataset));
            if let Some(too_much) = receiving.is_given_up() {
                return Err(OrderError::temporary(ResponseStatus::Busy, too_much.to_string()));
            }
            if !line.error.is_empty() {
                return Err(self.refusal(line));
            }
            if !line.is_consistent() {
                return Err(self.conn.damaged("its list of UUIDs does not match its snapshots").into());
            }
            self.place = line.place.unwrap_or_else(|| self.place.clone());
            match (&mut destination, line.inventory) {
                (Some(found), Some(part)) => {
                    found.snapshots.extend(part.snapshots);
                    found.bookmarks.extend(part.bookmarks);
                }
                (found, Some(first)) => *found = Some(first),
                (_, None) => {}
            }
            if !line.more {
                return Ok(destination);
            }
        }
    }

    /// The error for a slave that refuses to receive.
    fn refusal(&self, ListUuids { status, error, hint, .. }: ListUuids) -> OrderError {
        let error = match status {
            Some(DatasetStatus::Disable | DatasetStatus::Docker | DatasetStatus::NotConf) => OrderError::refused(error),
            Some(DatasetStatus::True) => OrderError::busy(error),
            _ => OrderError::new(ResponseStatus::Zerror, error),
        };
        let mut error = error.context(format!("{} does not receive into {}", self.conn.peer, self.to.dataset));
        error.hint = hint;
        error
    }

    /// Receives a message, and skips the slave's signs of life.
    async fn recv<T: DeserializeOwned>(&mut self) -> Result<T, OrderError> {
        loop {
            let patience = self.conn.patience;
            let line = self.conn.recv_line(patience).await?;
            let line = line.ok_or_else(|| WireError::Closed { peer: self.conn.peer.clone() })?;
            match self.conn.parse::<Alive>(&line) {
                Ok(alive) => self.conn.note_waiting(&alive, &self.outgoing.counter),
                Err(_) => {
                    self.outgoing.counter.set_waiting(None);
                    return Ok(self.conn.parse_or_reason(&line)?);
                }
            }
        }
    }
}

fn receive_step(status: ResponseStatus, incoming: &IncomingStream) -> Step {
    let IncomingStream { guid, name, create, overwrite, cloned, flags, is_unresumable, properties } = incoming.clone();
    Step::Receive { status, guid, snapshot_name: name, create, overwrite, cloned, flags, is_unresumable, properties }
}

/// Waits for `zfs send` to end. If the slave refused the stream or the stream stalled, `end` is dropped, which kills
/// the process.
async fn wait_for_send(sent: Sent, end: End, stall: Duration) -> Result<(), OrderError> {
    match sent {
        Sent::All => match runtime::timeout(stall, end).await {
            Ok(ended) => ended.map_err(OrderError::receiving),
            Err(runtime::Elapsed) => Err(OrderError::stalled("zfs send kept running after its last byte", stall)),
        },
        Sent::Refused => Err(OrderError::new(ResponseStatus::Zerror, "refused")),
        Sent::Stalled => Err(OrderError::stalled("zfs send produced no data", stall)),
    }
}
