//! One pass: look at every host; take, send and destroy, each decided from how things are by then.
//!
//! A dataset's turn comes when the hosts are seen that have to do with it: one that is slow to answer, or never does,
//! keeps nobody waiting but those that need to know of it.
//!
//! Hosts and datasets go side by side; what belongs to one dataset goes in sequence. A host that is down or a
//! dataset that fails stops nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_lock::Semaphore;
use chrono::{DateTime, Utc};
use futures_lite::future;

use crate::actions::route::ranks;
use crate::actions::{Engine, Order, PolicyIndex};
use crate::catalog::{CatalogError, CatalogWrite, Outcome};
use crate::director::leader::Leadership;
use crate::director::progress::{PassProgress, RunningOrder};
use crate::director::report::Report;
use crate::director::saved;
use crate::fleet::dispatch::{Dispatcher, fitting, wire_order};
use crate::fleet::health::ServiceHealth;
use crate::fleet::poll::{PollOptions, PollReport, SIDE_BY_SIDE, begin};
use crate::fleet::state::FleetState;
use crate::model::{Action, Counter, DatasetName, HostName, Inventory, OrderId, Place, ResponseStatus};
use crate::policy::Policy;
use crate::server::acceptor::ABORT_TIMEOUT;
use crate::sys::{clock, runtime};
use crate::wire::{DirectorsOrder, Facts, Fence, Listing, Response};
use crate::zfs::Zfs;

/// How many orders one host has at once. It carries out as many transfers as it likes: what waits there is looked at
/// together, and what comes after a stream is done together, while others send.
const ORDERS_AT_ONCE: usize = 64;

/// Everything that a pass needs; cheap to clone into its tasks.
pub struct Pass<Z, C: ?Sized> {
    policy: Arc<Policy>,
    index: Arc<PolicyIndex>,
    dispatcher: Arc<Dispatcher<Z>>,
    state: FleetState<C>,
    progress: PassProgress,
    /// Each host's room for orders.
    rooms: Arc<BTreeMap<HostName, Semaphore>>,
    /// Closes when nothing of the pass works on its world any more.
    gone: runtime::channel::Receiver<()>,
    at: DateTime<Utc>,
    /// The office that allows orders, where several directors share a catalog.
    leadership: Option<Leadership>,
    services: ServiceHealth,
    /// Whether every host is asked, whatever is known.
    resync: bool,
}

impl<Z, C: ?Sized> Clone for Pass<Z, C> {
    fn clone(&self) -> Self {
        Self {
            policy: Arc::clone(&self.policy),
            index: Arc::clone(&self.index),
            dispatcher: Arc::clone(&self.dispatcher),
            state: self.state.clone(),
            progress: self.progress.clone(),
            rooms: Arc::clone(&self.rooms),
            gone: self.gone.clone(),
            at: self.at,
            leadership: self.leadership.clone(),
            services: self.services.clone(),
            resync: self.resync,
        }
    }
}

impl<Z: Zfs, C: CatalogWrite + ?Sized + 'static> Pass<Z, C> {
    /// A pass for this moment.
    #[must_use]
    pub fn new(policy: Arc<Policy>, dispatcher: Arc<Dispatcher<Z>>, state: FleetState<C>, at: DateTime<Utc>) -> Self {
        let (state, gone) = state.tracked();
        let (progress, services) = (PassProgress::default(), ServiceHealth::default());
        // Every entry is decided several times.
        let index = Arc::new(PolicyIndex::new(&policy));
        let rooms = policy.hosts_named().into_iter().map(|host| (host, Semaphore::new(ORDERS_AT_ONCE))).collect();
        let (rooms, leadership, resync) = (Arc::new(rooms), None, false);
        Self { policy, index, dispatcher, state, progress, rooms, gone, at, leadership, services, resync }
    }

    /// What the pass has in hand.
    #[must_use]
    pub fn progress(&self) -> PassProgress {
        self.progress.clone()
    }

    /// The same for a director that has the lock: it gives no order without.
    #[must_use]
    pub fn led(self, leadership: Leadership, services: ServiceHealth) -> Self {
        Self { leadership: Some(leadership), services, ..self }
    }

    /// The same, which asks every host and tells how what it holds differs from what was known.
    #[must_use]
    pub fn resyncing(self, resync: bool) -> Self {
        Self { resync, ..self }
    }

    /// The fence for an order that is given now.
    fn fence(&self) -> Result<Option<Fence>, CatalogError> {
        self.leadership.as_ref().map(Leadership::fence).transpose()
    }

    /// Makes the pass. An error means that the catalog failed; a failed order is in the report.
    pub async fn run(self) -> Result<Report, CatalogError> {
        self.work(None).await
    }

    /// Carries out exactly these orders, as far as they are still right, instead of what is due.
    pub async fn run_saved(self, orders: Vec<Order>) -> Result<Report, CatalogError> {
        let mut by_entry: BTreeMap<usize, Vec<Order>> = BTreeMap::new();
        for order in orders.into_iter().flat_map(fitting) {
            by_entry.entry(order.entry()).or_default().push(order);
        }
        self.work(Some(Arc::new(by_entry))).await
    }

    async fn work(self, saved: Option<Arc<BTreeMap<usize, Vec<Order>>>>) -> Result<Report, CatalogError> {
        let began = std::time::Instant::now();
        // What was decided earlier is held against what there is now, whatever happened behind the catalog's back.
        let all = self.resync || saved.is_some();
        let resync_since = if all { Some(self.at) } else { self.policy.resync_since(self.at) };
        let options = PollOptions { services: self.services.clone(), resync_since, fence: self.fence()? };
        let asked = Counter::default();
        let (poll, polling) = begin(&self.policy, &self.dispatcher, &self.state, options, &asked).await?;
        self.progress.unseen(&poll.report().unseen);
        let mut groups: BTreeMap<(HostName, DatasetName), Vec<usize>> = BTreeMap::new();
        for (entry, of) in self.policy.datasets.iter().enumerate() {
            groups.entry((of.hostname.clone(), of.dataset.clone())).or_default().push(entry);
        }
        let turns = Arc::new(Semaphore::new(SIDE_BY_SIDE));
        let chains = groups.into_iter().map(|((host, _), entries)| {
            let (pass, saved, poll, turns) = (self.clone(), saved.clone(), poll.clone(), Arc::clone(&turns));
            async move {
                let needed = pass.index.hosts_of(&pass.policy, &entries);
                poll.seen(&needed).await;
                let _turn = turns.acquire_arc().await;
                let mut outcomes = Vec::new();
                let is_unseen = poll.report().unseen.contains_key(&host);
                for entry in entries.into_iter().filter(|_| !is_unseen) {
                    outcomes.extend(match &saved {
                        None => pass.entry(entry).await?,
                        Some(saved) => pass.saved(entry, saved.get(&entry).cloned().unwrap_or_default()).await?,
                    });
                }
                Ok(outcomes)
            }
        });
        let polling = polling.into_iter().map(|task| {
            let (progress, poll) = (self.progress.clone(), poll.clone());
            async move {
                let result = task.await;
                progress.unseen(&poll.report().unseen);
                result
            }
        });
        let (polling, chains): (Vec<_>, Vec<_>) = (polling.collect(), chains.collect());
        let working = runtime::side_by_side(usize::MAX, chains);
        let (asked, done) = future::zip(runtime::side_by_side(SIDE_BY_SIDE, polling), working).await;
        let done: Vec<Result<Vec<Outcome>, CatalogError>> = done;
        asked.into_iter().collect::<Result<(), CatalogError>>()?;
        let PollReport { unseen, corrected } = std::mem::take(&mut *poll.report());
        let mut outcomes = Vec::new();
        for result in done {
            outcomes.extend(result?);
        }
        let notices = self.decide(None).notices;
        // A host that was not listed is told once, with its reason.
        let notices = notices.into_iter().filter(|n| !unseen.contains_key(&n.host)).collect();
        self.flush().await;
        let took = began.elapsed();
        Ok(Report { at: self.at, took, unseen, corrected, outcomes, notices, interrupted: None })
    }

    async fn flush(&self) {
        if let Err(error) = self.state.flush().await {
            log::warn!("how orders ended is written down later: {:#}", anyhow::Error::from(error));
        }
    }

    /// The report of a pass whose [`run`](Self::run) was dropped before its end. What was under way counts as failed,
    /// in the catalog as well.
    pub async fn interrupted(self, took: Duration, reason: String) -> Result<Report, CatalogError> {
        // Its tasks end each at its own next step, and with them the processes that they run.
        let (at, gone, progress) = (self.at, self.gone.clone(), self.progress.clone());
        let pass = Self { state: self.state.untracked(), ..self };
        let _ = runtime::timeout(ABORT_TIMEOUT, gone.recv()).await;
        let told = format!("{reason}; the next pass resumes it");
        let (unseen, outcomes) = progress.interrupt(&told);
        for outcome in outcomes.iter().filter(|o| o.error.as_deref() == Some(&told)) {
            pass.state.record(outcome.clone()).await?;
        }
        pass.flush().await;
        let (corrected, notices, interrupted) = (Vec::new(), Vec::new(), Some(reason));
        Ok(Report { at, took, unseen, corrected, outcomes, notices, interrupted })
    }

    fn decide(&self, entry: Option<usize>) -> crate::actions::Plan {
        let inventory = self.state.inventory();
        let engine = Engine::with(&self.policy, Arc::clone(&self.index));
        match entry {
            Some(entry) => engine.decide_entry(entry, &inventory, self.at),
            None => engine.decide(&inventory, self.at),
        }
    }

    /// Works on one entry: takes, then sends, then destroys, each decided anew from what the one before it did.
    async fn entry(&self, entry: usize) -> Result<Vec<Outcome>, CatalogError> {
        let mut outcomes = Vec::new();
        let (takes, due_before): (Vec<Order>, Vec<Order>) =
            self.orders(entry, |_| true).into_iter().partition(|o| matches!(o, Order::Take { .. }));
        outcomes.extend(self.side_by_side([takes]).await?);
        // A transfer that was due before the takes stays due: where takes and transfers share a schedule, the
        // newest snapshot would otherwise always be too new to go. One that names a newer snapshot replaces it.
        let due_now = self.orders(entry, |o| matches!(o, Order::Send { .. }));
        let mut due: BTreeMap<(DatasetName, Place), Order> = BTreeMap::new();
        for order in due_before.into_iter().chain(due_now) {
            if let Order::Send { dataset, to, .. } = &order {
                due.insert((dataset.clone(), to.clone()), order);
            }
        }
        outcomes.extend(self.send(due.into_values()).await?);
        let destroys = self.orders(entry, |o| matches!(o, Order::Destroy { .. }));
        outcomes.extend(self.side_by_side(destroys.into_iter().map(|order| vec![order])).await?);
        Ok(outcomes)
    }

    /// Carries out what a saved plan has of one entry. An order whose world has moved is refused.
    async fn saved(&self, entry: usize, orders: Vec<Order>) -> Result<Vec<Outcome>, CatalogError> {
        let mut outcomes = Vec::new();
        let (mut takes, mut sends, mut destroys) = (Vec::new(), Vec::new(), Vec::new());
        for order in orders {
            match order {
                Order::Take { .. } => takes.push(order),
                Order::Send { .. } => sends.push(order),
                Order::Destroy { .. } => destroys.push(order),
            }
        }
        let moved = |order: &Order, inventory: &Inventory| saved::moved(order, inventory, None);
        let takes = self.still_right(takes, moved, &mut outcomes).await?;
        outcomes.extend(self.side_by_side([takes]).await?);
        let sends = self.still_right(sends, moved, &mut outcomes).await?;
        outcomes.extend(self.send(sends).await?);
        let now = self.decide(Some(entry));
        let moved = |order: &Order, inventory: &Inventory| saved::moved(order, inventory, Some(&now));
        let destroys = self.still_right(destroys, moved, &mut outcomes).await?;
        outcomes.extend(self.side_by_side(destroys.into_iter().map(|order| vec![order])).await?);
        Ok(outcomes)
    }

    /// Those of the orders that may be carried out; the others are refused, which is recorded.
    async fn still_right(
        &self,
        orders: Vec<Order>,
        moved: impl Fn(&Order, &Inventory) -> Option<String>,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<Vec<Order>, CatalogError> {
        let mut right = Vec::new();
        for order in orders {
            let reason = moved(&order, &self.state.inventory());
            let Some(reason) = reason else {
                right.push(order);
                continue;
            };
            let id = OrderId(uuid::Uuid::now_v7());
            let refusal = Response::failure(Some(id), ResponseStatus::Refused, reason);
            let outcome = outcome(&order, id, &refusal);
            self.state.record(outcome.clone()).await?;
            outcomes.push(outcome);
        }
        Ok(right)
    }

    /// Carries out transfers, of each source dataset one at a time.
    async fn send(&self, due: impl IntoIterator<Item = Order>) -> Result<Vec<Outcome>, CatalogError> {
        let mut outcomes = Vec::new();
        // By source dataset, one transfer at a time.
        let mut sends: BTreeMap<DatasetName, Vec<Order>> = BTreeMap::new();
        for order in due {
            if let Order::Send { dataset, .. } = &order {
                sends.entry(dataset.clone()).or_default().push(order);
            }
        }
        // Parents before their children where these are new, and origins before their clones, level by level: a child
        // cannot arrive where its parent is missing, a clone not as a clone where its origin is. Who takes over a name at
        // a destination comes after who gives it up. A parent that may be set aside takes along what is below it.
        let ranks = {
            let inventory = self.state.inventory();
            // All are of one entry, and so of one host.
            let host = sends.values().flatten().next().map(Order::host);
            let known = host.and_then(|host| inventory.hosts.get(host));
            let gives_up = |order: &Order| match order {
                Order::Send { dataset, to, route, .. } => {
                    let place = Place { host: to.host.clone(), dataset: route.renamed.as_ref()?.dataset.clone() };
                    Some((place, dataset.clone()))
                }
                _ => None,
            };
            let given_up: BTreeMap<Place, DatasetName> = sends.values().flatten().filter_map(gives_up).collect();
            let is_settled = |order: &Order| match order {
                Order::Send { to, allowed, .. } => {
                    allowed.on_divergence.is_stop() && inventory.dataset(&to.host, &to.dataset).is_some()
                }
                _ => false,
            };
            let waits_for = |dataset: &DatasetName| {
                let orders = &sends[dataset];
                let origin = known.and_then(|known| known.datasets.get(dataset)?.origin.as_ref());
                let givers = orders.iter().filter_map(|order| given_up.get(destination(order)?)).cloned();
                let waits_for = origin.map(|origin| origin.dataset.clone()).into_iter().chain(givers);
                let above = (!orders.iter().all(is_settled)).then(|| dataset.ancestors());
                waits_for.chain(above.into_iter().flatten()).collect()
            };
            ranks(&sends.keys().map(|dataset| (dataset.clone(), waits_for(dataset))).collect())
        };
        let mut levels: BTreeMap<usize, Vec<Vec<Order>>> = BTreeMap::new();
        for (dataset, orders) in sends {
            levels.entry(ranks.get(&dataset).copied().unwrap_or_default()).or_default().push(orders);
        }
        let mut failed: BTreeSet<Place> = BTreeSet::new();
        for (_, mut level) in levels {
            level.sort_by_key(|orders| orders.iter().map(waiting_since).min());
            for orders in &mut level {
                orders.retain(|order| !self.lacks_parent(order, &failed));
            }
            for outcome in self.side_by_side(level).await? {
                if let (false, Some(to)) = (outcome.success, &outcome.to) {
                    failed.insert(to.clone());
                }
                outcomes.push(outcome);
            }
        }
        Ok(outcomes)
    }

    /// Whether a dataset would arrive below one that has just failed to arrive and is not there.
    fn lacks_parent(&self, order: &Order, failed: &BTreeSet<Place>) -> bool {
        let Order::Send { to, .. } = order else { return false };
        let Some(parent) = to.dataset.parent().map(|dataset| Place { host: to.host.clone(), dataset }) else {
            return false;
        };
        failed.contains(&parent) && self.state.inventory().dataset(&parent.host, &parent.dataset).is_none()
    }

    fn orders(&self, entry: usize, wanted: impl Fn(&Order) -> bool) -> Vec<Order> {
        if self.progress.is_stopped() {
            return Vec::new();
        }
        self.decide(Some(entry)).orders(&self.policy).into_iter().filter(wanted).flat_map(fitting).collect()
    }

    /// Carries out chains of orders side by side, each chain in sequence.
    async fn side_by_side(&self, chains: impl IntoIterator<Item = Vec<Order>>) -> Result<Vec<Outcome>, CatalogError> {
        let chains = chains.into_iter().map(|orders| {
            let pass = self.clone();
            async move {
                let mut outcomes = Vec::new();
                for order in orders {
                    let _room = match pass.rooms.get(host(&order)) {
                        Some(room) => Some(room.acquire().await),
                        None => None,
                    };
                    if !pass.progress.is_stopped() {
                        outcomes.push(pass.carry_out(&order).await?);
                    }
                }
                Ok(outcomes)
            }
        });
        let chains: Vec<_> = chains.collect();
        let done: Vec<Result<Vec<Outcome>, CatalogError>> = runtime::side_by_side(usize::MAX, chains).await;
        let mut outcomes = Vec::new();
        for result in done {
            outcomes.extend(result?);
        }
        Ok(outcomes)
    }

    /// Has one order carried out, and takes over what it did.
    async fn carry_out(&self, order: &Order) -> Result<Outcome, CatalogError> {
        let fence = self.fence()?;
        let wire = DirectorsOrder { fence, ..wire_order(order, &self.policy, &self.state.inventory()) };
        let host = host(order);
        let counter = Counter::default();
        let unfinished = Response::failure(Some(wire.order_uuid), ResponseStatus::Unreachable, "it has not ended");
        self.progress.begin(RunningOrder {
            outcome: outcome(order, wire.order_uuid, &unfinished),
            since: std::time::Instant::now(),
            counter: counter.clone(),
        });
        let (response, facts) = self.dispatcher.ask(&self.policy, host, &wire, counter).await;
        self.state.learn(host, credible(order, facts)).await?;
        if response.unpublished {
            self.state.doubt(host);
        }
        let outcome = outcome(order, wire.order_uuid, &response);
        self.state.record(outcome.clone()).await?;
        self.progress.end(&outcome);
        Ok(outcome)
    }
}

fn destination(order: &Order) -> Option<&Place> {
    if let Order::Send { to, .. } = order { Some(to) } else { None }
}

/// What a host may tell of: its own datasets, and the one that it was to send to. One in the wrong hands must not have
/// others pruned by what it says of them.
fn credible(order: &Order, mut facts: Vec<Facts>) -> Vec<Facts> {
    let is_destination =
        |told: &Listing| matches!(order, Order::Send { to, .. } if told.host == to.host && told.dataset == to.dataset);
    for fact in &mut facts {
        if let Some(told) = fact.listing.take_if(|told| told.host != *host(order) && !is_destination(told)) {
            log::warn!("{} tells of {}:{}, which is not its to tell", host(order), told.host, told.dataset);
        }
    }
    facts
}

fn waiting_since(order: &Order) -> DateTime<Utc> {
    match order {
        Order::Send { oldest_unsent, .. } => *oldest_unsent,
        _ => DateTime::UNIX_EPOCH,
    }
}

fn host(order: &Order) -> &HostName {
    match order {
        Order::Take { host, .. } | Order::Send { host, .. } | Order::Destroy { host, .. } => host,
    }
}

fn outcome(order: &Order, order_id: OrderId, response: &Response) -> Outcome {
    let (action, dataset, snapshot, to) = match order {
        Order::Take { name, datasets, .. } => (Action::TakeSnapshot, datasets.first(), Some(name), None),
        Order::Send { dataset, snapshot, to, .. } => (Action::SendSnapshot, Some(dataset), Some(snapshot), Some(to)),
        Order::Destroy { dataset, snapshots, .. } => {
            let only = if let [(_, only)] = snapshots.as_slice() { Some(only) } else { None };
            (Action::DestroySnapshot, Some(dataset), only, None)
        }
    };
    Outcome {
        order_id,
        at: clock::now(),
        host: host(order).clone(),
        action,
        dataset: dataset.cloned(),
        snapshot: snapshot.cloned(),
        to: to.cloned(),
        success: response.is_success,
        status: Some(response.status),
        bytes: response.bytes,
        seconds: response.millis as f64 / 1000.0,
        error: Some(response.message()).filter(|message| !message.is_empty()),
    }
}
