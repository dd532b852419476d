//! Begins a transfer: locks the source and, on this host, the destination, lists them, waits for a slot, and opens the
//! conversation with the receiving side.

use std::sync::Arc;

use crate::agent::cache::{FRESH, Sides};
use crate::agent::context::{OrderContext, Success};
use crate::agent::request::SendRequest;
use crate::agent::service::Agent;
use crate::agent::transfer::peer::{LocalReservation, Outgoing, Peer, SlaveAddress};
use crate::agent::transfer::state::{RetryState, SendPlan, SourceHolds, Transfer, TransferProgress};
use crate::host::error::OrderError;
use crate::host::queue::QueueSlot;
use crate::model::{Counter, DatasetName, HostName, OrderId, SendFlags, Turn};
use crate::policy::SLAVE_PORT;
use crate::slave::Slave;
use crate::sys::clock;
use crate::wire::codec::Conn;
use crate::zfs::Zfs;

/// Where the receiving side is.
enum Receiving<'a, Z> {
    /// On this host.
    Here(LocalReservation),
    /// At the other end of a connection that it has opened.
    On(&'a mut Conn),
    /// In this process.
    Within(Arc<Slave<Z>>),
    /// At an address to which this host connects.
    Elsewhere,
}

impl<Z: Zfs> Agent<Z> {
    /// Makes one attempt to send the order's snapshot. If an attempt that was planned from the cache fails before any
    /// byte was sent, it is repeated at once with a new listing, because the cache may be the reason.
    pub(in crate::agent) async fn send(
        &self,
        id: OrderId,
        request: &SendRequest,
        retry: &mut RetryState,
        context: &OrderContext,
    ) -> Result<Success, OrderError> {
        let bytes_before = context.counter.get();
        let mut ended = self.attempt_send(id, request, retry, context, None).await;
        if let Err(error) = &ended {
            let may_repeat = !std::mem::replace(&mut retry.has_failed, true) && retry.from_cache;
            if may_repeat && context.counter.get() == bytes_before {
                log::debug!("{id}: trying again with a new listing: {error}");
                ended = self.attempt_send(id, request, retry, context, None).await;
            }
        }
        if let Some((source, _)) = &retry.claim {
            self.cache.invalidate(source);
        }
        ended
    }

    /// Sends on a connection that the receiving side has opened.
    pub(in crate::agent) async fn send_on(
        &self,
        id: OrderId,
        request: &SendRequest,
        context: &OrderContext,
        line: &mut Conn,
    ) -> Result<Success, OrderError> {
        self.attempt_send(id, request, &mut RetryState::default(), context, Some(line)).await
    }

    /// Makes one attempt. `line` is the connection to the receiving side, if that side has opened it.
    async fn attempt_send(
        &self,
        id: OrderId,
        request: &SendRequest,
        retry: &mut RetryState,
        context: &OrderContext,
        line: Option<&mut Conn>,
    ) -> Result<Success, OrderError> {
        retry.from_cache = false;
        // The source is locked before anything is listed. So a second order is refused at once, and an order that
        // follows this one is planned from what this one leaves.
        let source = self.lock_source(request, retry).await?;
        let to = &request.to;
        let is_local = to.host == self.host && line.is_none();
        let receiver = self.receiver.for_purpose(request.purpose.clone());
        if is_local && (source.is_within(&to.dataset) || to.dataset.is_within(&source)) {
            let reason = format!("cannot send {source} into {}: one contains the other", to.dataset);
            return Err(OrderError::refused(reason));
        }
        let turn = Turn::new(request.oldest_unsent.unwrap_or_else(clock::now), request.start_by);
        let reserve = || LocalReservation::claim(&receiver, &self.host, &to.dataset, turn);
        let mut reservation = is_local.then(reserve).transpose()?;
        // Both sides are listed before there is a slot, so that transfers that wait at the same time share a listing.
        let destination = is_local.then_some(&to.dataset);
        let is_restore = request.purpose.is_restore();
        let may_use_cache =
            !retry.has_failed && !is_restore && request.renamed_from.is_none() && request.origin_dataset.is_none();
        let mut sides = self.sides(&source, request.snapshot, destination, may_use_cache).await?;
        retry.from_cache = sides.from_cache;
        let slot = self.send_slot(&to.host, turn, &context.counter).await?;
        if let Some(reservation) = &mut reservation {
            reservation.wait_for_slot(&receiver).await?;
        }
        if sides.at.elapsed() > FRESH {
            sides = self.sides(&source, request.snapshot, destination, false).await?;
            retry.from_cache = false;
        }
        if is_restore {
            // What came without encryption goes back without it, even if the copy was encrypted where it is.
            sides.ours.encrypted &= !matches!(sides.ours.flags, Some(SendFlags::Plain { .. }));
        }
        if is_restore && is_local {
            (sides.theirs, sides.surroundings) =
                receiver.without_what_is_in_the_way(&to.dataset, sides.theirs, sides.surroundings).await?;
            receiver.check_restorable(&to.dataset, sides.theirs.as_ref(), &sides.surroundings).await?;
        }
        let plan = self.plan_send(request, source, &sides.ours).await?;
        let receiving = match (reservation, line) {
            (Some(reservation), _) => Receiving::Here(reservation),
            (None, Some(line)) => Receiving::On(line),
            (None, None) => match self.slaves.get(&plan.to.host) {
                Some(slave) => Receiving::Within(Arc::clone(slave)),
                None => Receiving::Elsewhere,
            },
        };
        let mut transfer = self.open(id, request, plan, receiving, sides, context).await?;
        (transfer.turn, transfer.slot) = (turn, Some(slot));
        transfer.follow_renames(request.awaits_rename).await?;
        transfer.run().await
    }

    /// The order's dataset, locked until the order has ended.
    async fn lock_source(&self, request: &SendRequest, retry: &mut RetryState) -> Result<DatasetName, OrderError> {
        if let Some((source, _)) = &retry.claim {
            return Ok(source.clone());
        }
        let source = self.dataset_of(request.dataset.as_ref(), request.snapshot, &request.to.host).await?;
        self.check_may_send(&source, &request.to.host, &request.purpose).await?;
        let Some(claim) = self.locks.claim(&source) else {
            return Err(OrderError::busy(format!("{source} is being sent already"))
                .with_hint("the next order will send what is still missing"));
        };
        retry.claim = Some((source.clone(), claim));
        Ok(source)
    }

    /// A slot for one stream to a host.
    pub(super) async fn send_slot(
        &self,
        to: &HostName,
        turn: Turn,
        counter: &Counter,
    ) -> Result<QueueSlot, OrderError> {
        let taken = counter.waiting_for("a slot (max_sends)", self.queue.take(to, turn)).await;
        taken.map_err(|limit| OrderError::queue_timeout("max_sends", limit))
    }

    /// Opens the transfer: connects to the slave, or prepares this host as the receiver, and finds out what the
    /// destination has.
    async fn open<'a>(
        &'a self,
        id: OrderId,
        request: &SendRequest,
        plan: SendPlan,
        receiving: Receiving<'a, Z>,
        sides: Sides,
        context: &'a OrderContext,
    ) -> Result<Transfer<'a, Z>, OrderError> {
        let order = self.order_to_slave(id, request, &plan);
        let Sides { sees_all, ours, theirs, surroundings, .. } = sides;
        let outgoing = || {
            let (throttle, compression) = (Arc::clone(&self.throttle), self.local.compression.to(&plan.to.host));
            Outgoing { throttle, compression, counter: context.counter.clone() }
        };
        let (peer, theirs) = match receiving {
            Receiving::Here(reservation) => {
                let receiver = self.receiver.for_purpose(plan.purpose.clone());
                (Peer::local(&receiver, order, reservation, &theirs, surroundings).await?, theirs)
            }
            Receiving::On(line) => Peer::on(line, &plan.to, id, outgoing()).await?,
            Receiving::Within(slave) => Peer::within(slave, &self.host, &plan.to, &order, outgoing()).await?,
            Receiving::Elsewhere => {
                let to = &plan.to;
                let default_address = || format!("{}:{SLAVE_PORT}", to.host);
                let address = request.address.clone().unwrap_or_else(default_address);
                let (tls, stall_timeout) = (self.tls.as_deref(), self.local.stall_timeout);
                let slave = SlaveAddress { to, address: &address, tls, stall_timeout };
                Peer::remote(slave, &order, outgoing()).await?
            }
        };
        let (holds, progress) = (SourceHolds::new(&plan.source, &plan.to), TransferProgress::default());
        let (turn, slot, recording) = (clock::now().into(), None, None);
        Ok(Transfer {
            agent: self,
            context,
            plan,
            peer,
            ours,
            theirs,
            sees_all,
            progress,
            holds,
            turn,
            slot,
            recording,
        })
    }
}
