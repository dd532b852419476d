//! `zsync agent`: carries out orders on one host.
//!
//! Every order is checked against local.json and against ZFS as it is at that moment; every failure leaves ZFS as
//! it was and says so.

mod destroy;
mod estimate;
mod receiver;
mod resync;
mod send;
mod take;

pub use send::SLAVE_PORT;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_lite::future;

use super::busy::Busy;
use super::fences::Fences;
use super::publisher::Publisher;
use super::receiving::Receiving;
use super::serve;
use crate::catalog::Change;
use crate::clock;
use crate::config::Local;
use crate::model::Counter;
use crate::model::{Action, DatasetName, HostName, Marks, ResponseStatus};
use crate::runtime;
use crate::transport::tls::{Tls, TlsError};
use crate::wire::codec::{ALIVE_EVERY, Conn, SILENCE, WireError};
use crate::wire::{AgentLine, DirectorsOrder, Facts, PROTOCOL, Progress, Response};
use crate::zfs::{Zfs, ZfsError};

/// Where facts go while an order is carried out: to the director, over the wire or within the process.
pub type FactSink = runtime::channel::Sender<Facts>;

/// An agent with its ZFS.
pub struct Agent<Z> {
    host: HostName,
    zfs: Arc<Z>,
    local: Arc<Local>,
    /// Datasets being sent from.
    busy: Busy,
    /// How long a slave may be silent.
    patience: Duration,
    /// What this host proves itself with to slaves.
    tls: Option<Arc<Tls>>,
    receiving: Receiving<Z>,
    /// Where what this host holds is published, if anywhere.
    publisher: Option<Arc<Publisher>>,
    fences: Option<Fences>,
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
pub(crate) struct Desk {
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

impl Desk {
    async fn tell(&self, facts: Facts) {
        self.note(&facts);
        // Nobody listens any more: the catalog learns it at the next resync.
        drop(self.facts.send(facts).await);
    }

    fn note(&self, facts: &Facts) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
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
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).touched.insert(dataset.clone());
    }
}

impl<Z: Zfs> Agent<Z> {
    /// An agent for this host.
    #[must_use]
    pub fn new(host: HostName, zfs: Arc<Z>, local: Arc<Local>) -> Self {
        let receiving = Receiving { zfs: Arc::clone(&zfs), local: Arc::clone(&local), busy: Busy::default() };
        Self {
            host,
            zfs,
            local,
            busy: Busy::default(),
            patience: SILENCE,
            tls: None,
            receiving,
            publisher: None,
            fences: None,
        }
    }

    /// The same, which publishes what it does.
    #[must_use]
    pub fn publishing(self, publisher: Option<Arc<Publisher>>) -> Self {
        Self { publisher, ..self }
    }

    /// The same, which refuses destroys of directors that others have taken over from.
    #[must_use]
    pub fn fenced(self, fences: Fences) -> Self {
        Self { fences: Some(fences), ..self }
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
            Err(reason) if order.action == Action::DestroySnapshot => Err(Failure::refused(reason)),
            Err(reason) => {
                // Takes and sends lose nothing, whoever orders them.
                log::warn!("{}: {}: {reason}", order.order_uuid, order.action);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Publishes what an order did.
    async fn publish(&self, publisher: &Publisher, order: &DirectorsOrder, desk: &Desk) -> bool {
        match order.action {
            // It published everything itself.
            Action::KvResync => return publisher.behind().is_none(),
            Action::SendSnapshot => order.dataset.iter().for_each(|dataset| desk.touch(dataset)),
            _ => {}
        }
        let Notes { mut touched, marks } =
            std::mem::take(&mut *desk.notes.lock().unwrap_or_else(PoisonError::into_inner));
        touched.retain(|dataset| self.local.permission_to_take(dataset).is_ok());
        publisher.publish(&*self.zfs, &touched, marks).await
    }

    /// The same with another patience for silent slaves.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
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
        let desk = Desk { facts, counter, notes: Mutex::default(), host: self.host.clone() };
        let result = if order.protocol > PROTOCOL {
            Err(Failure::refused(format!("protocol {} is newer than this agent's, {PROTOCOL}", order.protocol)))
        } else if let Err(old) = self.heed(order).await {
            Err(old)
        } else {
            match order.action {
                Action::TakeSnapshot => self.take(order, &desk).await,
                Action::SendSnapshot => self.send(order, &desk).await,
                Action::DestroySnapshot => self.destroy(order, &desk).await,
                Action::KvResync => self.resync(order, &desk).await,
                Action::EstimateSend => self.estimate_send(order).await,
                Action::EstimateDestroy => self.estimate_destroy(order).await,
            }
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
        response.millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        response
    }

    async fn converse(&self, conn: &mut Conn, line: &[u8]) -> Result<(), WireError> {
        let order: DirectorsOrder = conn.understand(line)?;
        log::debug!("{}: {} from {}", order.order_uuid, order.action, conn.peer);
        if let Err(denied) = self.local.permission_to_order(conn.identity.as_ref()) {
            log::warn!("{}: {denied}", conn.peer);
            let refusal = Response::failure(Some(order.order_uuid), ResponseStatus::Refused, denied.to_string());
            return conn.say(&AgentLine::Response(refusal)).await;
        }
        let (sender, told) = runtime::channel::bounded(16);
        let counter = Counter::default();
        let (counted, mouth) = (counter.clone(), &mut *conn);
        // The receiver is its own: when the director is gone, facts are kept for nobody and hold nothing up.
        let telling = async move {
            loop {
                match runtime::timeout(ALIVE_EVERY.min(Duration::from_secs(2)), told.recv()).await {
                    Ok(Ok(facts)) => mouth.say(&AgentLine::Facts { facts }).await?,
                    Ok(Err(_)) => return Ok::<_, WireError>(()),
                    Err(runtime::Elapsed) => {
                        let progress = Progress { bytes: counted.get() };
                        mouth.say(&AgentLine::Progress { progress }).await?;
                    }
                }
            }
        };
        // The sender is dropped with the order's end, which ends the telling. A director that went away does not
        // stop the order: what was begun is finished, and found by the next listing.
        let (response, told) = future::zip(self.carry_out(&order, sender, counter), telling).await;
        log_end(&order, &response);
        told?;
        conn.say(&AgentLine::Response(response)).await
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

impl<Z: Zfs> serve::Role for Agent<Z> {
    const NAME: &'static str = "agent";

    async fn converse(self: Arc<Self>, conn: &mut Conn, first_line: Vec<u8>) -> Result<(), WireError> {
        Agent::converse(&self, conn, &first_line).await
    }
}
