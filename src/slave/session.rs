//! Defines a slave, and holds its conversations with agents.

use std::sync::Arc;

use crate::host::error::OrderError;
use crate::host::locks::Claim;
use crate::host::publish::publisher::Publisher;
use crate::host::queue::{QueueSlot, queue_timeout};
use crate::model::{Counter, DatasetInventory, DatasetStatus, Guid, PeerRole, ResponseStatus, SourceRecord};
use crate::policy::Local;
use crate::server::{Counters, acceptor, counters};
use crate::slave::idle::Idleness;
use crate::slave::listing::list_uuids;
use crate::slave::receive::{IncomingStream, Receiver, Settled, occupied};
use crate::slave::stream::{ListedDestination, StepFailure, StreamReceive, alive_while, queued_while, turn};
use crate::sys::log_limit::Complaint;
use crate::wire::codec::{Conn, SILENCE, WireError};
use crate::wire::{DestinationInfo, ListUuids, OrderToSlave, PROTOCOL, Response, Step};
use crate::zfs::Zfs;

/// The slave of one host.
pub struct Slave<Z> {
    receiver: Receiver<Z>,
    counters: Counters,
}

/// The lock and the slot of a conversation. While it lasts, nothing else receives into its dataset.
struct Admission {
    claim: Claim,
    slot: QueueSlot,
}

/// One conversation with an agent, after its order was admitted.
struct Session<'a, Z> {
    slave: &'a Slave<Z>,
    conn: &'a mut Conn,
    order: &'a OrderToSlave,
    claim: Option<Claim>,
    /// The slot of the first stream; later streams take one each.
    slot: Option<QueueSlot>,
    idleness: Idleness,
    destination: ListedDestination,
    /// The createtxg of the newest snapshot that was there when the conversation began; `None` if there was none.
    known: Option<u64>,
    /// Whether a stream arrived.
    has_received: bool,
    /// Whether the dataset may have changed since it was published.
    is_unpublished: bool,
    /// Counts the bytes of all streams.
    counter: Counter,
}

/// A step that succeeded.
struct StepDone {
    /// A remark for the agent, such as a new name.
    remark: String,
    listing: ListingAfterStep,
}

/// What is known about the dataset after a step.
enum ListingAfterStep {
    /// The step listed it; `None` if it does not exist.
    Listed(Option<Box<DatasetInventory>>),
    /// It has to be listed again.
    Outdated,
}

impl StepDone {
    fn new() -> Self {
        Self { remark: String::new(), listing: ListingAfterStep::Outdated }
    }
}

impl<Z: Zfs> Slave<Z> {
    /// Creates a slave with this host's ZFS and configuration.
    #[must_use]
    pub fn new(zfs: Arc<Z>, local: Arc<Local>) -> Self {
        Self { receiver: Receiver::for_others(zfs, local), counters: Counters::new(counters::SLAVE) }
    }

    /// Returns the slave with another configuration. Running conversations keep their locks and slots.
    #[must_use]
    pub fn with_local(&self, local: Arc<Local>) -> Self {
        Self { receiver: self.receiver.with_local(local), counters: self.counters.clone() }
    }

    /// Makes the slave publish what it receives.
    #[must_use]
    pub fn publishing(self, publisher: Option<Arc<Publisher>>) -> Self {
        Self { receiver: self.receiver.publishing(publisher), ..self }
    }

    /// Holds one conversation with an agent in this process.
    pub(crate) async fn serve(self: Arc<Self>, mut conn: Conn) {
        let ended = match conn.recv_line(SILENCE).await {
            Ok(Some(line)) => Self::converse(&self, &mut conn, &line).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            log::debug!("{error}");
        }
    }

    /// Holds one conversation with an agent.
    async fn converse(&self, conn: &mut Conn, first_line: &[u8]) -> Result<(), WireError> {
        conn.set_stall_timeout(self.receiver.local.stall_timeout);
        let order: OrderToSlave = conn.parse(first_line)?;
        let Some(Admission { claim, slot }) = self.admit(conn, &order).await? else { return Ok(()) };
        let mut session = Session {
            slave: self,
            conn,
            order: &order,
            claim: Some(claim),
            slot: Some(slot),
            idleness: Idleness::default(),
            destination: ListedDestination::default(),
            known: None,
            has_received: false,
            is_unpublished: false,
            counter: Counter::default(),
        };
        let result = session.run().await;
        let (is_unpublished, known) = (session.is_unpublished, session.known);
        drop(session);
        if is_unpublished {
            // The conversation was interrupted, but something may have arrived.
            if let Ok(Some(found)) = self.receiver.list(&order.dest_dataset).await {
                self.receiver.record_arrivals(&order.dest_dataset, &found, known).await;
            }
            self.publish(&order).await;
        }
        result
    }

    /// Receives what this host has asked another one to send back, on a connection that this host has opened. The
    /// dataset is locked with `claim`.
    pub(crate) async fn take_back(
        receiver: Receiver<Z>,
        conn: &mut Conn,
        order: &OrderToSlave,
        claim: Claim,
        counter: Counter,
    ) -> Result<(), WireError> {
        let slave = Self { receiver, counters: Counters::new(counters::SLAVE) };
        let mut session = Session {
            slave: &slave,
            conn,
            order,
            claim: Some(claim),
            slot: None,
            idleness: Idleness::default(),
            destination: ListedDestination::default(),
            known: None,
            has_received: false,
            is_unpublished: false,
            counter,
        };
        session.run().await
    }

    /// Checks an order, locks its dataset and waits for a slot. Returns `None` if the order was refused, after sending
    /// the refusal.
    async fn admit(&self, conn: &mut Conn, order: &OrderToSlave) -> Result<Option<Admission>, WireError> {
        if order.protocol > PROTOCOL {
            let reason = format!("protocol {} is newer than this slave's, {PROTOCOL}", order.protocol);
            let refusal = Response::failure(Some(order.order_uuid), ResponseStatus::Refused, reason);
            return conn.send(&refusal).await.map(|()| None);
        }
        let dataset = &order.dest_dataset;
        if let Err(denied) = self.receiver.check_permission(&order.source, conn.identity.as_ref(), dataset) {
            let refusal =
                ListUuids { status: Some(denied.status()), hint: Some(denied.hint()), ..ListUuids::default() };
            return refuse(conn, order, ListUuids { error: denied.to_string(), ..refusal }).await.map(|()| None);
        }
        let no_bytes = Counter::default();
        // Otherwise, any host that may send could keep the owner of a copy waiting.
        let checking = self.receiver.check_owner_unlocked(&order.source, dataset);
        if let Err(error) = alive_while(conn, &no_bytes, checking).await? {
            return refuse(conn, order, listing_failure(error)).await.map(|()| None);
        }
        // An agent that has vanished, or a receive that is still running, may have locked the dataset. This waits as
        // long as it takes to notice a silent peer.
        let claiming = self.receiver.locks.claim_within(conn.patience, dataset);
        let Some(claim) = alive_while(conn, &no_bytes, claiming).await? else {
            let status = Some(DatasetStatus::True);
            let busy = ListUuids { status, error: occupied(dataset), ..ListUuids::default() };
            return refuse(conn, order, busy).await.map(|()| None);
        };
        let taking = self.receiver.queue.take(&order.source, turn(order));
        match queued_while(conn, &no_bytes, taking).await? {
            Ok(slot) => Ok(Some(Admission { claim, slot })),
            Err(limit) => {
                let (status, error) = (Some(DatasetStatus::True), queue_timeout("max_receives", limit));
                conn.send(&ListUuids { status, error, ..ListUuids::default() }).await.map(|()| None)
            }
        }
    }

    /// Publishes the order's dataset as it is now.
    async fn publish(&self, order: &OrderToSlave) {
        if let Some(publisher) = &self.receiver.publisher {
            // Whether the records are behind is reported by the publisher's health check.
            publisher.publish([order.dest_dataset.clone()].into(), Vec::new()).await;
        }
    }

    /// Lists the destination, with what an agent has to know about it.
    /// Fails if the destination is another host's copy.
    async fn list(&self, order: &OrderToSlave) -> Result<(ListedDestination, DestinationInfo), OrderError> {
        let dataset = &order.dest_dataset;
        let (found, surroundings) = self.receiver.list_around(dataset).await?;
        self.receiver.check_owner(&order.source, dataset, found.as_ref(), &surroundings).await?;
        let place = self.receiver.place(order, found.as_ref(), &surroundings).await?;
        Ok((ListedDestination { found, surroundings }, DestinationInfo { takes_zstd: true, ..place }))
    }
}

/// What an agent gets instead of a listing.
fn listing_failure(error: OrderError) -> ListUuids {
    let is_refusal = error.status == ResponseStatus::Refused;
    let status = Some(if is_refusal { DatasetStatus::Docker } else { DatasetStatus::False });
    ListUuids { status, error: error.to_string(), hint: error.hint, ..ListUuids::default() }
}

/// Reports to an agent why it may not send, and logs that.
async fn refuse(conn: &mut Conn, order: &OrderToSlave, refusal: ListUuids) -> Result<(), WireError> {
    let (peer, source, dataset) = (&conn.peer, &order.source, &order.dest_dataset);
    let hint = refusal.hint.as_ref().map(|hint| format!("; hint: {hint}")).unwrap_or_default();
    let text = format!("{peer}: {source} may not send into {dataset}: {}{hint}", refusal.error);
    conn.log.warn(Complaint::Forbidden, &text);
    conn.send(&refusal).await
}

impl<Z: Zfs> Session<'_, Z> {
    /// Carries out steps until the agent ends the conversation.
    async fn run(&mut self) -> Result<(), WireError> {
        let mut can_continue = self.report_destination().await?;
        self.known = self.destination.found.as_ref().and_then(|found| found.newest()).map(|newest| newest.createtxg);
        while can_continue {
            let step = self.idleness.next_step(self.conn, &mut self.slot).await?;
            self.is_unpublished = true;
            can_continue = match step {
                Step::Finish { status, guid, recorded } => return self.finish(status, guid, recorded).await,
                step => match self.carry_out(step).await {
                    Ok(done) => self.report_success(done).await?,
                    Err(StepFailure::Step(error)) => self.report_failure(&error).await?,
                    Err(StepFailure::Connection(error)) => return Err(error),
                },
            };
        }
        Ok(())
    }

    async fn carry_out(&mut self, step: Step) -> Result<StepDone, StepFailure> {
        let (receiver, order, none) = (&self.slave.receiver, self.order, Counter::default());
        match step {
            Step::Receive {
                status: _,
                guid,
                snapshot_name: name,
                create,
                overwrite,
                cloned,
                flags,
                is_unresumable,
                properties,
            } => {
                let found = self.destination.found.as_ref();
                let overwrite = overwrite
                    && (order.rollback_if_needed
                        || receiver.is_placeholder(&order.dest_dataset, found).await.map_err(OrderError::from)?);
                let incoming =
                    IncomingStream { guid, name, create, overwrite, cloned, flags, is_unresumable, properties };
                let listing = ListingAfterStep::Listed(self.receive(&incoming).await?.map(Box::new));
                return Ok(StepDone { listing, ..StepDone::new() });
            }
            Step::Rollback { guid, destroys } => {
                alive_while(self.conn, &none, receiver.rollback(order, guid, &destroys)).await??;
            }
            Step::SetAside { guid } => {
                let aside = alive_while(self.conn, &none, receiver.set_aside(order, guid)).await??;
                return Ok(StepDone { remark: aside.to_string(), ..StepDone::new() });
            }
            Step::Follow => alive_while(self.conn, &none, receiver.follow_rename(order)).await??,
            Step::Abort => {
                let aborting = receiver.zfs.abort_receive(&order.dest_dataset);
                alive_while(self.conn, &none, aborting).await?.map_err(OrderError::from)?;
            }
            // It ends the conversation, see `run`.
            Step::Finish { .. } => {}
        }
        Ok(StepDone::new())
    }

    /// Receives one stream, and counts it.
    async fn receive(&mut self, incoming: &IncomingStream) -> Result<Option<DatasetInventory>, StepFailure> {
        let (_in_progress, counter) = (self.slave.counters.begin(), self.counter.clone());
        let before = counter.get();
        let stream = StreamReceive {
            receiver: &self.slave.receiver,
            order: self.order,
            incoming,
            before: &self.destination,
            counter: &counter,
        };
        let result = stream.run(self.conn, self.slot.take()).await;
        self.slave.counters.ended("receive", result.is_ok(), counter.get() - before);
        if result.is_ok() {
            self.has_received = true;
            self.idleness.arrived();
        }
        result
    }

    /// Reports a step's success, and the dataset after it; `false` ends the conversation.
    async fn report_success(&mut self, StepDone { remark, listing }: StepDone) -> Result<bool, WireError> {
        self.conn.send(&Response::success(self.order.order_uuid, ResponseStatus::Done, remark)).await?;
        match listing {
            // The rest of the destination's properties was reported before and has not changed.
            ListingAfterStep::Listed(found) => {
                self.destination.found = found.map(|found| *found);
                self.send_listing(None).await.map(|()| true)
            }
            ListingAfterStep::Outdated => self.report_destination().await,
        }
    }

    /// Reports a step's failure, and what it left of the dataset; `false` ends the conversation.
    async fn report_failure(&mut self, error: &OrderError) -> Result<bool, WireError> {
        let OrderToSlave { order_uuid, dest_dataset, source, .. } = self.order;
        let text = format!("{order_uuid}: {dest_dataset} from {source}: {}", error.message());
        self.conn.log.warn(Complaint::Order, &text);
        self.conn.send(&error.response(*order_uuid)).await?;
        self.report_destination().await
    }

    /// Lists the dataset and reports it; `false`, which ends the conversation, if it cannot be listed.
    async fn report_destination(&mut self) -> Result<bool, WireError> {
        match alive_while(self.conn, &Counter::default(), self.slave.list(self.order)).await? {
            Ok((destination, place)) => {
                self.destination = destination;
                self.send_listing(Some(place)).await.map(|()| true)
            }
            Err(error) => refuse(self.conn, self.order, listing_failure(error)).await.map(|()| false),
        }
    }

    async fn send_listing(&mut self, place: Option<DestinationInfo>) -> Result<(), WireError> {
        for line in list_uuids(self.destination.found.clone(), place) {
            self.conn.send(&line).await?;
        }
        Ok(())
    }

    /// Ends the conversation: moves the hold, updates the clone and runs the hook of the received dataset, and
    /// publishes it.
    async fn finish(
        &mut self,
        status: ResponseStatus,
        guid: Option<Guid>,
        recorded: Option<SourceRecord>,
    ) -> Result<(), WireError> {
        let OrderToSlave { order_uuid, dest_dataset, source, .. } = self.order;
        let response = match self.complete(guid, recorded).await {
            Ok(()) => Response::success(*order_uuid, status, ""),
            // The agent must not repeat the transfer because of this failure.
            Err(StepFailure::Step(error)) => Response { temporary: false, ..error.response(*order_uuid) },
            Err(StepFailure::Connection(error)) => return Err(error),
        };
        log::info!("{order_uuid}: {dest_dataset} from {source}: {status:?}");
        self.is_unpublished = false;
        alive_while(self.conn, &Counter::default(), self.slave.publish(self.order)).await?;
        drop((self.claim.take(), self.slot.take()));
        self.conn.send(&response).await
    }

    async fn complete(&mut self, guid: Option<Guid>, recorded: Option<SourceRecord>) -> Result<(), StepFailure> {
        let (receiver, order, none) = (&self.slave.receiver, self.order, Counter::default());
        match (guid, &mut self.destination.found) {
            (Some(guid), Some(found)) => {
                let recorded = recorded.filter(|_| self.has_received).map(SourceRecord::fitting);
                let settled = Settled { from: &order.source, guid, known: self.known, recorded };
                let settling = receiver.settle(&order.dest_dataset, found, settled);
                alive_while(self.conn, &none, settling).await?.map_err(OrderError::from)?;
            }
            // A later stream of the transfer failed.
            (None, Some(found)) if self.has_received => {
                let recording = receiver.record_arrivals(&order.dest_dataset, found, self.known);
                alive_while(self.conn, &none, recording).await?;
            }
            _ => {}
        }
        if self.has_received {
            alive_while(self.conn, &none, receiver.after_receive(order)).await??;
        }
        Ok(())
    }
}

impl<Z: Zfs> acceptor::Role for Slave<Z> {
    const NAME: &'static str = "slave";
    const ROLE: PeerRole = PeerRole::Slave;

    async fn converse(self: Arc<Self>, conn: &mut Conn, first_line: Vec<u8>) -> Result<(), WireError> {
        Slave::converse(&self, conn, &first_line).await
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}
