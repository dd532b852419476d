//! Receives a transfer into another pool of this host.

use crate::agent::transfer::peer::outcome::{Destination, StepOutcome, StreamToSend};
use crate::host::error::OrderError;
use crate::host::locks::Claim;
use crate::host::queue::QueueSlot;
use crate::model::{Counter, DatasetName, Guid, HostName, ResponseStatus, SourceRecord, Turn, Unchanged};
use crate::slave::receive::{Receiver, Settled, Surroundings, occupied};
use crate::sys::clock;
use crate::wire::{DestinationInfo, OrderToSlave};
use crate::zfs::Zfs;

/// This host as a receiver.
pub(crate) struct LocalPeer<Z> {
    receiver: Receiver<Z>,
    order: OrderToSlave,
    pub(super) place: DestinationInfo,
    /// The destination and the datasets above it, as last listed.
    destination: Destination,
    surroundings: Surroundings,
    /// The createtxg of the newest snapshot that was there at the beginning; `None` if there was none.
    known: Option<u64>,
    reservation: Option<LocalReservation>,
}

/// The lock on a destination of this host, and the slot for its next stream.
pub(crate) struct LocalReservation {
    _claim: Claim,
    host: HostName,
    turn: Turn,
    slot: Option<QueueSlot>,
}

impl LocalReservation {
    /// Locks a destination before it is listed. `turn` is the transfer's turn in the queue.
    pub(crate) fn claim<Z: Zfs>(
        receiver: &Receiver<Z>,
        host: &HostName,
        dataset: &DatasetName,
        turn: Turn,
    ) -> Result<Self, OrderError> {
        receiver.check_permission(host, None, dataset)?;
        let claim = receiver.locks.claim(dataset).ok_or_else(|| OrderError::busy(occupied(dataset)))?;
        Ok(Self { _claim: claim, host: host.clone(), turn, slot: None })
    }

    /// Waits for a slot, unless this reservation has one already.
    pub(crate) async fn wait_for_slot<Z: Zfs>(&mut self, receiver: &Receiver<Z>) -> Result<(), OrderError> {
        if self.slot.is_none() {
            let slot = receiver.queue.take(&self.host, self.turn).await;
            self.slot = Some(slot.map_err(|limit| OrderError::queue_timeout("max_receives", limit))?);
        }
        Ok(())
    }
}

impl<Z: Zfs> LocalPeer<Z> {
    /// Creates the receiver of the reserved dataset, which was listed after it was reserved.
    pub(crate) async fn new(
        receiver: &Receiver<Z>,
        order: OrderToSlave,
        reservation: LocalReservation,
        destination: &Destination,
        surroundings: Surroundings,
    ) -> Result<Self, OrderError> {
        let place = receiver.place(&order, destination.as_ref(), &surroundings).await?;
        let known = destination.as_ref().and_then(|found| found.newest()).map(|newest| newest.createtxg);
        let (receiver, destination, reservation) = (receiver.clone(), destination.clone(), Some(reservation));
        Ok(Self { receiver, order, place, destination, surroundings, known, reservation })
    }

    pub(super) async fn receive(
        &mut self,
        zfs: &Z,
        stream: StreamToSend<'_>,
        counter: &Counter,
        slot: QueueSlot,
    ) -> Result<StepOutcome, OrderError> {
        let StreamToSend { spec, incoming, status: _ } = stream;
        if let Some(reservation) = &mut self.reservation {
            reservation.wait_for_slot(&self.receiver).await?;
        }
        let began = clock::now();
        let stall = self.receiver.local.stall_timeout;
        let copied = match self.receiver.prepare(&self.order, incoming, &self.surroundings).await {
            Ok(receive) => zfs.copy(spec, &receive, counter, stall).await.map_err(OrderError::receiving),
            Err(error) => Err(error),
        };
        drop((slot, self.reservation.as_mut().and_then(|reservation| reservation.slot.take())));
        let ended = clock::now();
        let dataset = &self.order.dest_dataset;
        let verified = self.receiver.verify(dataset, incoming, self.destination.as_ref(), copied).await;
        let outcome = match verified {
            Ok(mut destination) => {
                if let Some(found) = &mut destination {
                    // What changed while the stream was running came with the stream: nothing else receives into the
                    // dataset, and it was listed afterwards. In the second in which the stream ended, somebody may
                    // have changed more since the listing, and ZFS counts whole seconds.
                    let (from, listed) = (began.timestamp(), ended.timestamp());
                    found.unchanged = Some(Unchanged { from, to: listed - 1, listed });
                }
                StepOutcome::new(Ok(()), destination)
            }
            // What is above the destination, or in its place, may have changed as well.
            Err(error) => StepOutcome::new(Err(error), self.list().await?),
        };
        self.destination.clone_from(&outcome.destination);
        Ok(outcome)
    }

    pub(super) async fn rollback(&mut self, guid: Guid, destroys: &[Guid]) -> Result<StepOutcome, OrderError> {
        let result = self.receiver.rollback(&self.order, guid, destroys).await;
        Ok(StepOutcome::new(result, self.list().await?))
    }

    pub(super) async fn set_aside(&mut self, newest: Option<Guid>) -> Result<StepOutcome<String>, OrderError> {
        let result = self.receiver.set_aside(&self.order, newest).await;
        Ok(StepOutcome::new(result.map(|name| name.to_string()), self.list().await?))
    }

    pub(super) async fn follow_rename(&mut self) -> Result<StepOutcome, OrderError> {
        let result = self.receiver.follow_rename(&self.order).await;
        Ok(StepOutcome::new(result, self.list().await?))
    }

    pub(super) async fn abort(&mut self) -> Result<StepOutcome, OrderError> {
        self.receiver.zfs.abort_receive(&self.order.dest_dataset).await?;
        Ok(StepOutcome::new(Ok(()), self.list().await?))
    }

    pub(super) async fn finish(
        &mut self,
        status: ResponseStatus,
        guid: Option<Guid>,
        recorded: Option<SourceRecord>,
        destination: &mut Destination,
    ) -> Result<(), OrderError> {
        let reservation = self.reservation.take();
        if let (Some(guid), Some(found)) = (guid, destination) {
            let Self { receiver, order, known, .. } = &*self;
            let settled = Settled { from: &order.source, guid, known: *known, recorded };
            receiver.settle(&order.dest_dataset, found, settled).await?;
        }
        if matches!(status, ResponseStatus::Full | ResponseStatus::Incremental) {
            self.receiver.after_receive(&self.order).await?;
        }
        drop(reservation);
        Ok(())
    }

    /// Lists the destination and the datasets above it.
    async fn list(&mut self) -> Result<Destination, OrderError> {
        let (destination, surroundings) = self.receiver.list_around(&self.order.dest_dataset).await?;
        self.place = self.receiver.place(&self.order, destination.as_ref(), &surroundings).await?;
        self.surroundings = surroundings;
        self.destination.clone_from(&destination);
        Ok(destination)
    }
}
