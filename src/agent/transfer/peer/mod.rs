//! A [`Peer`] is the receiving end of a transfer: a slave on another host, or another pool of this host.
//!
//! Both take the same steps. An error that a method returns ends the transfer. An error in a [`StepOutcome`] concerns
//! only that step, and comes with the destination as it is after the step.

mod local;
mod outcome;
mod remote;

use std::sync::Arc;

use crate::agent::transfer::peer::local::LocalPeer;
use crate::agent::transfer::peer::remote::{Line, RemotePeer};
use crate::host::error::OrderError;
use crate::host::queue::QueueSlot;
use crate::model::{Counter, Guid, HostName, OrderId, Place, ResponseStatus, SourceRecord};
use crate::slave::Slave;
use crate::slave::receive::{Receiver, Surroundings};
use crate::sys::runtime;
use crate::transport::within;
use crate::wire::codec::Conn;
use crate::wire::{DestinationInfo, OrderToSlave, Step};
use crate::zfs::Zfs;

pub(crate) use local::LocalReservation;
pub(crate) use outcome::{Destination, StepOutcome, StreamToSend};
pub(crate) use remote::{Outgoing, SlaveAddress};

/// A receiver of streams.
pub(crate) enum Peer<'a, Z> {
    Remote(Box<RemotePeer<'a>>),
    Local(Box<LocalPeer<Z>>),
}

impl<'a, Z: Zfs> Peer<'a, Z> {
    /// Connects to a slave; also returns what the destination has.
    pub(crate) async fn remote(
        slave: SlaveAddress<'_>,
        order: &OrderToSlave,
        outgoing: Outgoing,
    ) -> Result<(Self, Destination), OrderError> {
        let (remote, destination) = RemotePeer::connect(slave, order, outgoing).await?;
        Ok((Self::Remote(Box::new(remote)), destination))
    }

    /// Begins a conversation with a slave in this process; also returns what the destination has. `source` is the host
    /// that sends.
    pub(crate) async fn within(
        slave: Arc<Slave<Z>>,
        source: &HostName,
        to: &Place,
        order: &OrderToSlave,
        outgoing: Outgoing,
    ) -> Result<(Self, Destination), OrderError> {
        let cannot = |error| OrderError::new(ResponseStatus::Zerror, format!("cannot make a pair of sockets: {error}"));
        let (ours, theirs) = within::pair(source.as_str(), to.host.as_str()).map_err(cannot)?;
        // It ends with the conversation, or when this end is closed.
        drop(runtime::spawn(async move { slave.serve(Conn::from(theirs)).await }));
        let (remote, destination) = RemotePeer::begin(Conn::from(ours), to, order, outgoing).await?;
        Ok((Self::Remote(Box::new(remote)), destination))
    }

    /// Begins a conversation on a connection that the receiving side has opened; also returns what the destination has.
    pub(crate) async fn on(
        line: &'a mut Conn,
        to: &Place,
        order: OrderId,
        outgoing: Outgoing,
    ) -> Result<(Self, Destination), OrderError> {
        let (remote, destination) = RemotePeer::on(Line::Lent(line), to, order, outgoing).await?;
        Ok((Self::Remote(Box::new(remote)), destination))
    }

    /// Prepares to receive on this host, into a dataset that was listed after it was reserved.
    pub(crate) async fn local(
        receiver: &Receiver<Z>,
        order: OrderToSlave,
        reservation: LocalReservation,
        destination: &Destination,
        surroundings: Surroundings,
    ) -> Result<Self, OrderError> {
        let local = LocalPeer::new(receiver, order, reservation, destination, surroundings).await?;
        Ok(Self::Local(Box::new(local)))
    }

    /// What has to be known about the destination besides its snapshots.
    pub(crate) fn place(&self) -> &DestinationInfo {
        match self {
            Self::Remote(remote) => &remote.place,
            Self::Local(local) => &local.place,
        }
    }

    /// Sends one stream, which the peer receives and verifies. The slot is released when the stream has ended.
    pub(crate) async fn receive(
        &mut self,
        zfs: &Arc<Z>,
        stream: StreamToSend<'_>,
        counter: &Counter,
        slot: QueueSlot,
    ) -> Result<StepOutcome, OrderError> {
        match self {
            Self::Remote(remote) => remote.receive(&**zfs, stream, counter, slot).await,
            Self::Local(local) => local.receive(&**zfs, stream, counter, slot).await,
        }
    }

    /// Rolls back to the newest common snapshot, `guid`, which destroys the snapshots in `destroys`.
    pub(crate) async fn rollback(&mut self, guid: Guid, destroys: Vec<Guid>) -> Result<StepOutcome, OrderError> {
        match self {
            Self::Remote(remote) => Ok(remote.step(&Step::Rollback { guid, destroys }).await?.map(drop)),
            Self::Local(local) => local.rollback(guid, &destroys).await,
        }
    }

    /// Renames the dataset, with everything below it, so that a new copy can begin; returns its new name.
    pub(crate) async fn set_aside(&mut self, newest: Option<Guid>) -> Result<StepOutcome<String>, OrderError> {
        match self {
            Self::Remote(remote) => remote.step(&Step::SetAside { guid: newest }).await,
            Self::Local(local) => local.set_aside(newest).await,
        }
    }

    /// Renames the copy as its source was renamed.
    pub(crate) async fn follow_rename(&mut self) -> Result<StepOutcome, OrderError> {
        match self {
            Self::Remote(remote) => Ok(remote.step(&Step::Follow).await?.map(drop)),
            Self::Local(local) => local.follow_rename().await,
        }
    }

    /// Discards the partial state of an interrupted receive.
    pub(crate) async fn abort(&mut self) -> Result<StepOutcome, OrderError> {
        match self {
            Self::Remote(remote) => Ok(remote.step(&Step::Abort).await?.map(drop)),
            Self::Local(local) => local.abort().await,
        }
    }

    /// Ends the conversation after a failure. It does not matter whether the receiver is still connected.
    pub(crate) async fn leave(&mut self, status: ResponseStatus) {
        if let Self::Remote(remote) = self {
            remote.leave(status).await;
        }
    }

    /// Ends the conversation after a success: the receiver holds the newest common snapshot, `guid`, and records what is
    /// `recorded` of the source. `destination` is updated where the change is known.
    pub(crate) async fn finish(
        &mut self,
        status: ResponseStatus,
        guid: Option<Guid>,
        recorded: Option<SourceRecord>,
        destination: &mut Destination,
    ) -> Result<(), OrderError> {
        match self {
            Self::Remote(remote) => remote.finish(status, guid, recorded).await,
            Self::Local(local) => local.finish(status, guid, recorded, destination).await,
        }
    }
}
