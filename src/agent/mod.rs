//! `zsync agent`: carries out orders on one host.
//!
//! Every order is checked against local.json and against ZFS as it is at that moment; every failure leaves ZFS as
//! it was and says so.

pub mod dedup;
mod destroy;
mod estimate;
mod journal;
pub mod list;
mod take;
pub mod transfer;

pub use journal::{Journal, JournalError};

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_lite::future;
use parking_lot::Mutex;

use crate::agent::dedup::{Begin, Dedup, Running};
use crate::agent::transfer::cache::ListingCache;

use crate::catalog::Change;
use crate::host::locks::DatasetLocks;
use crate::host::publish::fences::Fences;
use crate::host::publish::publisher::Publisher;
use crate::host::queue::{TransferQueue, queue_timeout};
use crate::host::throttle::Throttle;
use crate::model::Counter;
use crate::model::{Action, DatasetName, HostName, Marks, OnDivergence, ResponseStatus};
use crate::policy::{DEFAULT_RETRY_FOR as RETRY_FOR, Local};
use crate::server::{Counters, acceptor, counters};
use crate::slave::receive::Receiving;
use crate::sys::retry::Retry;
use crate::sys::{clock, runtime};
use crate::transport::tls::{Tls, TlsError};
use crate::wire::codec::{Conn, WireError};
use crate::wire::{AgentLine, DirectorsOrder, Facts, PROTOCOL, Progress, Response};
use crate::zfs::{Zfs, ZfsError};

/// How many names one order has at the most; directors send several orders where there are more.
const MOST_NAMES: usize = 20_000;
/// How often a director hears of an order that has nothing else to say.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// Where facts go while an order is carried out: to the director, over the wire or within the process.
pub type FactSink = runtime::channel::Sender<Facts>;

/// An agent with its ZFS.
pub struct Agent<Z> {
    host: HostName,
    zfs: Arc<Z>,
    local: Arc<Local>,
    /// Datasets being sent from.
    busy: DatasetLocks,
    /// Places for sends.
    sends: TransferQueue,
    /// How much goes to other hosts.
    throttle: Arc<Throttle>,
    /// What this host proves itself with to slaves.
    tls: Option<Arc<Tls>>,
    receiving: Receiving<Z>,
    once: Arc<Dedup>,
    tally: Counters,
    held: ListingCache,
    /// Where what this host holds is published, if anywhere.
    publisher: Option<Arc<Publisher>>,
    /// Whose word counts, where several directors share a catalog.
    fences: Option<Arc<Fences>>,
}

/// An order that was not carried out.
#[derive(Debug)]
pub(crate) struct Failure {
    status: ResponseStatus,
    reason: String,
    temporary: bool,
}

impl Failure {
    fn refused(reason: impl Into<String>) -> Self {
        Self { status: ResponseStatus::Refused, reason: reason.into(), temporary: false }
    }

    /// Something else is under way.
    fn busy(reason: String) -> Self {
        Self { status: ResponseStatus::Busy, reason, temporary: true }
    }

    /// The order found no place among the transfers of this host.
    fn queue_timeout(key: &str, limit: usize) -> Self {
        Self::busy(queue_timeout(key, limit))
    }
}

impl From<ZfsError> for Failure {
    fn from(error: ZfsError) -> Self {
        Self { status: ResponseStatus::Zerror, temporary: error.kind.is_temporary(), reason: error.to_string() }
    }
}

/// How an order ended well.
pub(crate) struct Success {
    status: ResponseStatus,
    remark: String,
    /// Of an estimate, as far as ZFS can tell.
    estimate: Option<u64>,
}

impl Success {
    fn new(status: ResponseStatus, remark: impl Into<String>) -> Self {
        Self { status, remark: remark.into(), estimate: None }
    }
}

/// What an order's work may use besides ZFS.
pub(crate) struct OrderContext {
    facts: FactSink,
    counter: Counter,
    /// What is to be published, of datasets of this host.
    notes: Mutex<Notes>,
    host: HostName,
}

/// What an order did to this host.
#[derive(Default)]
struct Notes {
    touched: BTreeSet<DatasetName>,
    marks: Vec<(DatasetName, Change)>,
}

impl OrderContext {
    async fn tell(&self, facts: Facts) {
        self.note(&facts);
        // Nobody listens any more: the catalog learns it at the next resync.
        drop(self.facts.send(facts).await);
    }

    fn note(&self, facts: &Facts) {
        let mut notes = self.notes.lock();
        let deleted = Marks { deleted: true, ..Marks::default() };
        for (name, guid) in &facts.destroyed {
            let change = Change::Mark { guid: *guid, marks: deleted, at: clock::now() };
            notes.marks.push((name.clone(), change));
            notes.touched.insert(name.clone());
        }
        for (name, mark) in &facts.not_written {
            notes.marks.push((name.clone(), Change::NotWritten(mark.clone())));
        }
        notes.touched.extend(facts.taken.iter().map(|(name, _)| name.clone()));
        if let Some(listing) = facts.listing.as_ref().filter(|listing| listing.host == self.host) {
            notes.touched.insert(listing.dataset.clone());
        }
    }

    /// A dataset that changes without a fact about it.
    fn touch(&self, dataset: &DatasetName) {
        self.notes.lock().touched.insert(dataset.clone());
    }
}

impl<Z: Zfs> Agent<Z> {
    /// An agent for this host.
    #[must_use]
    pub fn new(host: HostName, zfs: Arc<Z>, local: Arc<Local>) -> Self {
        let receiving = Receiving::new(Arc::clone(&zfs), Arc::clone(&local));
        let (sends, throttle) = (TransferQueue::new(local.max_sends), Throttle::new(local.bandwidth.clone()));
        Self {
            host,
            zfs,
            local,
            busy: DatasetLocks::default(),
            sends,
            throttle,
            tls: None,
            receiving,
            once: Arc::default(),
            tally: Counters::new(counters::AGENT),
            held: ListingCache::default(),
            publisher: None,
            fences: None,
        }
    }

    /// The same, which publishes what it does.
    #[must_use]
    pub fn publishing(self, publisher: Option<Arc<Publisher>>) -> Self {
        let receiving = self.receiving.publishing(publisher.clone());
        Self { publisher, receiving, ..self }
    }

    /// The same, which refuses what loses snapshots to directors that others have taken over from.
    #[must_use]
    pub fn fenced(self, fences: Fences) -> Self {
        Self { fences: Some(Arc::new(fences)), ..self }
    }

    /// Whether what this host holds is not published yet.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.publisher.as_ref().is_some_and(|publisher| publisher.behind().is_some())
    }

    /// Whether the order is of the director that counts.
    async fn heed(&self, order: &DirectorsOrder) -> Result<(), Failure> {
        let (Some(fence), Some(fences)) = (order.fence, &self.fences) else { return Ok(()) };
        match fences.pass(fence).await {
            Err(reason) if may_lose(order) => Err(Failure::refused(reason)),
            Err(reason) => {
                // Nothing is lost by it, whoever orders it.
                log::warn!("{}: {}: {reason}", order.order_uuid, order.action);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Publishes what an order did.
    async fn publish(&self, publisher: &Arc<Publisher>, order: &DirectorsOrder, desk: &OrderContext) -> bool {
        match order.action {
            // They published everything themselves, or did nothing.
            Action::KvResync | Action::EstimateSend | Action::EstimateDestroy => return publisher.behind().is_none(),
            Action::SendSnapshot => order.dataset.iter().for_each(|dataset| desk.touch(dataset)),
            Action::TakeSnapshot | Action::DestroySnapshot => {}
        }
        let Notes { mut touched, marks } = std::mem::take(&mut *desk.notes.lock());
        touched.retain(|dataset| self.local.permission_to_take(dataset).is_ok());
        publisher.publish(&self.zfs, touched, marks).await
    }

    /// The same with another configuration; what is under way keeps its claims on datasets and its places, and
    /// goes as fast as that one says.
    #[must_use]
    pub fn with_local(&self, host: HostName, local: Arc<Local>) -> Self {
        let sends = if local.max_sends == self.local.max_sends {
            self.sends.clone()
        } else {
            TransferQueue::new(local.max_sends)
        };
        let receiving = self.receiving.with_local(Arc::clone(&local));
        self.throttle.set(local.bandwidth.clone());
        let (zfs, busy, once) = (Arc::clone(&self.zfs), self.busy.clone(), Arc::clone(&self.once));
        let (tls, throttle, tally) = (self.tls.clone(), Arc::clone(&self.throttle), self.tally.clone());
        let (held, publisher, fences) = (self.held.clone(), self.publisher.clone(), self.fences.clone());
        Self { host, zfs, local, busy, sends, throttle, tls, receiving, once, tally, held, publisher, fences }
    }

    /// The same with a memory of the orders that it carried out.
    #[must_use]
    pub fn remembering(self, journal: Journal) -> Self {
        Self { once: Arc::new(Dedup::remembering(journal)), ..self }
    }

    /// The same, proving itself to slaves.
    #[must_use]
    pub fn with_tls(self, tls: Option<Arc<Tls>>) -> Self {
        Self { tls, ..self }
    }

    /// Reads anew what it proves itself with.
    pub fn reload_tls(&self) -> Result<(), TlsError> {
        self.tls.as_ref().map_or(Ok(()), |tls| tls.reload())
    }

    /// Carries out one order. Facts go to `facts` meanwhile, the bytes of a transfer are counted in `counter`.
    pub async fn carry_out(&self, order: &DirectorsOrder, facts: FactSink, counter: Counter) -> Response {
        let began = Instant::now();
        let _underway = self.tally.begin();
        let desk = OrderContext { facts, counter, notes: Mutex::default(), host: self.host.clone() };
        let names = order.snapshot_uuid.len().max(order.datasets.len()).max(order.keep_common_with.len());
        let result = if order.protocol > PROTOCOL {
            Err(Failure::refused(format!("protocol {} is newer than this agent's, {PROTOCOL}", order.protocol)))
        } else if names > MOST_NAMES {
            Err(Failure::refused(format!(
                "it names {names} snapshots or datasets; {MOST_NAMES} are allowed in one order"
            )))
        } else if let Err(old) = self.heed(order).await {
            Err(old)
        } else {
            self.persist(order, &desk).await
        };
        let mut response = match result {
            Ok(Success { status, remark, estimate }) => {
                Response { estimate, ..Response::success(order.order_uuid, status, remark) }
            }
            Err(Failure { status, reason, temporary }) => {
                Response { temporary, ..Response::failure(Some(order.order_uuid), status, reason) }
            }
        };
        if let Some(publisher) = &self.publisher {
            response.unpublished = !self.publish(publisher, order, &desk).await;
        }
        response.bytes = desk.counter.get();
        self.tally.ended(&order.action.to_string(), response.is_success, response.bytes);
        response.millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        response
    }

    /// Carries out one order, and tries again what failed for a reason that may pass. Every try looks afresh.
    async fn persist(&self, order: &DirectorsOrder, desk: &OrderContext) -> Result<Success, Failure> {
        let mut retry = Retry::within(order.retry_for.map_or(RETRY_FOR, Duration::from_secs));
        let mut kept = transfer::course::RetryState::default();
        loop {
            let before = desk.counter.get();
            let ended = match order.action {
                Action::TakeSnapshot => self.take(order, desk).await,
                Action::SendSnapshot => self.send(order, &mut kept, desk).await,
                Action::DestroySnapshot => self.destroy(order, desk).await,
                Action::KvResync => self.resync(order, desk).await,
                Action::EstimateSend => self.estimate_send(order).await,
                Action::EstimateDestroy => self.estimate_destroy(order).await,
            };
            let failure = match ended {
                Err(failure) if failure.temporary => failure,
                ended => return ended,
            };
            // Who comes second is told so; a slave that does not know yet that the try before this one is over is waited
            // for.
            if failure.status == ResponseStatus::Busy && retry.is_first() {
                return Err(failure);
            }
            if desk.counter.get() > before {
                retry.moved();
            }
            // Told as it is, not how often: what fails in the same way at each pass is said once.
            let Some(pause) = retry.pause() else { return Err(failure) };
            log::info!("{}: tries again in {pause:.1?}: {}", order.order_uuid, failure.reason);
            runtime::sleep(pause).await;
        }
    }

    async fn converse(&self, conn: &mut Conn, line: &[u8]) -> Result<(), WireError> {
        let order: DirectorsOrder = conn.parse(line)?;
        log::debug!("{}: {} from {}", order.order_uuid, order.action, conn.peer);
        if let Err(denied) = self.local.permission_to_order(conn.identity.as_ref()) {
            log::warn!("{}: {denied}", conn.peer);
            let refusal = Response::failure(Some(order.order_uuid), ResponseStatus::Refused, denied.to_string());
            return conn.send(&AgentLine::Response(refusal)).await;
        }
        match self.once.begin(&order).await {
            Begin::New(running) => self.answer(conn, &order, running).await,
            Begin::Again(response) => {
                log::info!("{}: came again, and is answered as before", order.order_uuid);
                conn.send(&AgentLine::Response(*response)).await
            }
            Begin::Join(answer, counter) => {
                log::info!("{}: came again while it is carried out", order.order_uuid);
                loop {
                    match runtime::timeout(TELL_EVERY, answer.recv()).await {
                        Ok(Ok(response)) => return conn.send(&AgentLine::Response(response)).await,
                        Ok(Err(_)) => return Ok(()),
                        Err(runtime::Elapsed) => tell_progress(conn, &counter).await?,
                    }
                }
            }
            Begin::Other => {
                let reason = "another order had this OrderUUID: give each its own, as from uuidgen(1)";
                let refused = Response::failure(Some(order.order_uuid), ResponseStatus::Refused, reason);
                conn.send(&AgentLine::Response(refused)).await
            }
        }
    }

    async fn answer(&self, conn: &mut Conn, order: &DirectorsOrder, running: Running) -> Result<(), WireError> {
        let (sender, told) = runtime::channel::bounded(16);
        let counter = running.counter.clone();
        let (counted, mouth) = (counter.clone(), &mut *conn);
        // The receiver is its own: when the director is gone, facts are kept for nobody and hold nothing up.
        let telling = async move {
            loop {
                match runtime::timeout(TELL_EVERY, told.recv()).await {
                    Ok(Ok(facts)) => mouth.send(&AgentLine::Facts { facts: Box::new(facts) }).await?,
                    Ok(Err(_)) => return Ok::<_, WireError>(()),
                    Err(runtime::Elapsed) => tell_progress(mouth, &counted).await?,
                }
            }
        };
        // The sender is dropped with the order's end, which ends the telling. A director that went away does not
        // stop the order: what was begun is finished, and found by the next listing.
        let working = async {
            let response = self.carry_out(order, sender, counter).await;
            // Before it is said: whoever has the answer may count on it.
            running.ended(&response).await;
            response
        };
        let (response, told) = future::zip(working, telling).await;
        log_end(order, &response);
        told?;
        conn.send(&AgentLine::Response(response)).await
    }
}

async fn tell_progress(conn: &mut Conn, counter: &Counter) -> Result<(), WireError> {
    let progress = Progress { bytes: counter.get(), expected: counter.expected() };
    conn.send(&AgentLine::Progress { progress }).await
}

/// Whether something may be gone after an order.
fn may_lose(order: &DirectorsOrder) -> bool {
    match order.action {
        Action::DestroySnapshot => true,
        Action::SendSnapshot => order.rollback_if_needed || order.on_divergence != OnDivergence::Stop,
        Action::TakeSnapshot | Action::KvResync | Action::EstimateSend | Action::EstimateDestroy => false,
    }
}

/// Logs how an order ended; within a director's process the director tells it.
fn log_end(order: &DirectorsOrder, response: &Response) {
    let Response { is_success, status, error, .. } = response;
    let level = match order.action {
        _ if !is_success => log::Level::Warn,
        // The director asks for a listing at each pass.
        Action::KvResync | Action::EstimateSend | Action::EstimateDestroy => log::Level::Debug,
        _ => log::Level::Info,
    };
    let words = [order.order_uuid.to_string(), order.action.to_string(), order.dest_dataset.clone()];
    log::log!(level, "{}: {status:?} {error}", words.join(" ").trim_end());
}

impl<Z: Zfs> acceptor::Role for Agent<Z> {
    const NAME: &'static str = "agent";

    async fn converse(self: Arc<Self>, conn: &mut Conn, first_line: Vec<u8>) -> Result<(), WireError> {
        Agent::converse(&self, conn, &first_line).await
    }

    fn tally(&self) -> &Counters {
        &self.tally
    }
}
