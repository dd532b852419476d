//! One pass: it lists every host, then takes, sends and destroys. Each of these steps is decided from the state that
//! the previous step left.
//!
//! An entry of the policy is worked on as soon as the hosts that concern it have been listed. A host that answers
//! slowly, or never, delays only the entries that need it.
//!
//! Hosts and datasets are worked on side by side, but the orders of one dataset in sequence. A host that is down or a
//! dataset that fails does not stop work on the others. `orders` gives the orders.

mod orders;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_lock::Semaphore;
use chrono::{DateTime, TimeDelta, Utc};
use futures_lite::future;
use parking_lot::Mutex;

use crate::actions::{Destroyed, Engine, Order, Plan, PolicyIndex};
use crate::catalog::{CatalogError, CatalogWrite, Outcome};
use crate::director::firsthand::{Firsthand, needs};
use crate::director::leader::Leadership;
use crate::director::progress::PassProgress;
use crate::director::report::Report;
use crate::director::saved;
use crate::director::slots::OrderSlots;
use crate::fleet::dispatch::{Dispatcher, fitting};
use crate::fleet::health::ServiceHealth;
use crate::fleet::poll::{self, Poll, PollOptions, PollReport, PollTask, SIDE_BY_SIDE, begin};
use crate::fleet::state::FleetState;
use crate::model::Place;
use crate::model::{Counter, DatasetName, HostName, ResponseStatus};
use crate::policy::Policy;
use crate::server::acceptor::ABORT_TIMEOUT;
use crate::sys::runtime;
use crate::wire::Fence;
use crate::zfs::Zfs;

/// How long the snapshots of a dataset that has been listed wait for hosts that may concern it.
const WAIT_FOR_PEERS: Duration = Duration::from_secs(5);

/// The orders of a saved plan, by entry of the policy.
type SavedOrders = BTreeMap<usize, Vec<Order>>;

/// Everything that a pass needs. Clones share one state.
pub struct Pass<Z, C: ?Sized> {
    policy: Arc<Policy>,
    index: Arc<PolicyIndex>,
    dispatcher: Arc<Dispatcher<Z>>,
    state: FleetState<C>,
    progress: PassProgress,
    /// Determines when each order may begin.
    slots: Arc<OrderSlots>,
    /// Limits how many entries are pruned at once. Before that, hosts may have to be asked what they have.
    pruning: Arc<Semaphore>,
    /// Closes when no task of the pass uses its state any more.
    tasks_ended: runtime::channel::Receiver<()>,
    /// When the pass was created, by the clock and as an [`Instant`].
    at: DateTime<Utc>,
    began: Instant,
    /// The lock that allows orders, if several directors share a catalog.
    leadership: Option<Leadership>,
    services: ServiceHealth,
    /// Whether every host is listed, even if its records are known to be current.
    resync: bool,
    /// Which datasets were listed by their own host.
    firsthand: Firsthand,
    /// What the pass has destroyed so far.
    destroyed: Arc<Mutex<Destroyed>>,
}

impl<Z, C: ?Sized> Clone for Pass<Z, C> {
    fn clone(&self) -> Self {
        Self {
            policy: Arc::clone(&self.policy),
            index: Arc::clone(&self.index),
            dispatcher: Arc::clone(&self.dispatcher),
            state: self.state.clone(),
            progress: self.progress.clone(),
            slots: Arc::clone(&self.slots),
            pruning: Arc::clone(&self.pruning),
            tasks_ended: self.tasks_ended.clone(),
            at: self.at,
            began: self.began,
            leadership: self.leadership.clone(),
            services: self.services.clone(),
            resync: self.resync,
            firsthand: self.firsthand.clone(),
            destroyed: Arc::clone(&self.destroyed),
        }
    }
}

impl<Z: Zfs, C: CatalogWrite + ?Sized + 'static> Pass<Z, C> {
    /// Creates a pass that begins at `at`.
    #[must_use]
    pub fn new(policy: Arc<Policy>, dispatcher: Arc<Dispatcher<Z>>, state: FleetState<C>, at: DateTime<Utc>) -> Self {
        let (state, tasks_ended) = state.tracked();
        // The index is built once, because every entry is decided several times.
        let index = Arc::new(PolicyIndex::new(&policy));
        let slots = Arc::new(OrderSlots::new(&policy));
        let progress = PassProgress::noting(state.certificates().clone());
        Self {
            policy,
            index,
            dispatcher,
            state,
            progress,
            slots,
            pruning: Arc::new(Semaphore::new(SIDE_BY_SIDE)),
            tasks_ended,
            at,
            began: Instant::now(),
            leadership: None,
            services: ServiceHealth::default(),
            resync: false,
            firsthand: Firsthand::default(),
            destroyed: Arc::default(),
        }
    }

    /// The progress of the pass.
    #[must_use]
    pub fn progress(&self) -> PassProgress {
        self.progress.clone()
    }

    /// This pass for a director that holds the lock: it gives orders only as long as the lock is held.
    #[must_use]
    pub fn led(self, leadership: Leadership, services: ServiceHealth) -> Self {
        Self { leadership: Some(leadership), services, ..self }
    }

    /// This pass, with `resync` set or not. A resync lists every host and reports where the catalog differed.
    #[must_use]
    pub fn resyncing(self, resync: bool) -> Self {
        Self { resync, ..self }
    }

    /// The moment for which is decided now. A pass may last for hours, and a snapshot is named by when it is due, not by
    /// when the pass began. A clock that is changed during the pass has no effect on it.
    fn now(&self) -> DateTime<Utc> {
        let elapsed = TimeDelta::from_std(self.began.elapsed()).unwrap_or_default();
        self.at.checked_add_signed(elapsed).unwrap_or(self.at)
    }

    /// The fence for an order that is given now.
    fn fence(&self) -> Result<Option<Fence>, CatalogError> {
        self.leadership.as_ref().map(Leadership::fence).transpose()
    }

    /// Makes the pass. An error means that the catalog failed; a failed order is in the report.
    pub async fn run(self) -> Result<Report, CatalogError> {
        self.work(None).await
    }

    /// Carries out these orders instead of those that are due. Outdated orders are refused.
    pub async fn run_saved(self, orders: Vec<Order>) -> Result<Report, CatalogError> {
        let mut by_entry = SavedOrders::new();
        for order in orders.into_iter().flat_map(fitting) {
            by_entry.entry(order.entry()).or_default().push(order);
        }
        self.work(Some(Arc::new(by_entry))).await
    }

    /// Polls the hosts, and works on each dataset as soon as its hosts have been listed.
    async fn work(self, saved: Option<Arc<SavedOrders>>) -> Result<Report, CatalogError> {
        let (poll, polling) = self.begin_poll(saved.is_some()).await?;
        let working = self
            .entries_by_dataset()
            .into_iter()
            .map(|((host, _), entries)| self.clone().work_on_dataset(host, entries, poll.clone(), saved.clone()));
        let working: Vec<_> = working.collect();
        let polled = async {
            let polled = poll::run(polling).await;
            self.progress.note_clocks(self.state.clocks_behind());
            polled
        };
        let (polled, worked) = future::zip(polled, runtime::side_by_side(usize::MAX, working)).await;
        polled?;
        let PollReport { unseen, corrected } = std::mem::take(&mut *poll.report());
        let mut outcomes = Vec::new();
        for result in worked {
            outcomes.extend(result?);
        }
        let notices = self.decide(None).notices;
        // A host that could not be listed is reported once, with the reason.
        let notices = notices.into_iter().filter(|n| !unseen.contains_key(&n.host)).collect();
        let unsaved = self.flush().await;
        let took = self.began.elapsed();
        Ok(Report { at: self.at, took, unseen, corrected, outcomes, notices, unsaved, interrupted: None })
    }

    /// Begins to poll the hosts. The returned tasks do the work, and keep the progress current.
    async fn begin_poll(&self, has_saved_plan: bool) -> Result<(Poll, Vec<PollTask>), CatalogError> {
        // A saved plan is compared with what hosts hold now, even if the catalog has missed a change.
        let all = self.resync || has_saved_plan;
        let resync_since = if all { Some(self.at) } else { self.policy.resync_since(self.at) };
        let options = PollOptions { services: self.services.clone(), resync_since, fence: self.fence()? };
        let (poll, tasks) = begin(&self.policy, &self.dispatcher, &self.state, options, &Counter::default()).await?;
        self.progress.unseen(&poll.report().unseen);
        let tracked = tasks.into_iter().map(|task| {
            let (progress, poll) = (self.progress.clone(), poll.clone());
            task.then(move || progress.unseen(&poll.report().unseen))
        });
        let tracked = tracked.collect();
        Ok((poll, tracked))
    }

    /// The entries of the policy by dataset, because the entries of one dataset are worked on in sequence.
    fn entries_by_dataset(&self) -> BTreeMap<(HostName, DatasetName), Vec<usize>> {
        let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (index, entry) in self.policy.datasets.iter().enumerate() {
            groups.entry((entry.hostname.clone(), entry.dataset.clone())).or_default().push(index);
        }
        groups
    }

    /// Works on the entries of one dataset of `host`, once the hosts that concern them have been polled.
    async fn work_on_dataset(
        self,
        host: HostName,
        entries: Vec<usize>,
        poll: Poll,
        saved: Option<Arc<SavedOrders>>,
    ) -> Result<Vec<Outcome>, CatalogError> {
        let mut outcomes = Vec::new();
        poll.wait_for(&[host.clone()].into()).await;
        let peers = self.index.hosts_of(&self.policy, &entries);
        let all_answer = runtime::timeout(WAIT_FOR_PEERS, poll.wait_for(&peers)).await.is_ok();
        if poll.report().unseen.contains_key(&host) {
            return Ok(outcomes);
        }
        if !all_answer && saved.is_none() {
            // The snapshots are taken as if the silent peers were down. What else is due waits for them.
            for entry in &entries {
                self.take_due(*entry, &mut outcomes).await?;
            }
        }
        poll.wait_for(&peers).await;
        // A transfer of one entry may run for days, so the snapshots of all entries are taken first.
        let mut taken = Vec::new();
        for entry in entries {
            let left = match &saved {
                None => self.take_due(entry, &mut outcomes).await?,
                Some(saved) => self.take_saved(saved.get(&entry).cloned().unwrap_or_default(), &mut outcomes).await?,
            };
            taken.push((entry, left));
        }
        for (entry, left) in taken {
            match &saved {
                None => self.finish_due(entry, left, &poll, &mut outcomes).await?,
                Some(_) => self.finish_saved(entry, left, &poll, &mut outcomes).await?,
            }
        }
        Ok(outcomes)
    }

    /// Writes what the catalog has buffered. Returns why there was no room for the catalog during the pass, if so.
    async fn flush(&self) -> Option<String> {
        let unsaved = self.state.unsaved();
        if let Err(error) = self.state.flush().await {
            let error = anyhow::Error::from(error);
            log::warn!("cannot write the outcomes of orders to the catalog, and will write them later: {error:#}");
        }
        unsaved
    }

    /// The report of a pass whose [`run`](Self::run) was dropped before its end. Orders that were running count as
    /// failed, also in the catalog.
    pub async fn interrupted(mut self, took: Duration, reason: String) -> Result<Report, CatalogError> {
        // The tracked state must be dropped here: otherwise this function would wait for itself.
        self.state = self.state.untracked();
        // Each task ends at its next step, and its processes end with it.
        let _ = runtime::timeout(ABORT_TIMEOUT, self.tasks_ended.recv()).await;
        let error = format!("{reason}; the next pass resumes it");
        let (unseen, outcomes) = self.progress.interrupt(&error);
        for outcome in outcomes.iter().filter(|o| o.error.as_deref() == Some(&error)) {
            self.state.record_outcome(outcome.clone()).await?;
        }
        let unsaved = self.flush().await;
        let (corrected, notices, interrupted) = (Vec::new(), Vec::new(), Some(reason));
        Ok(Report { at: self.at, took, unseen, corrected, outcomes, notices, unsaved, interrupted })
    }

    /// Decides one entry of the policy, or all.
    fn decide(&self, entry: Option<usize>) -> Plan {
        let inventory = self.state.inventory();
        let engine = Engine::with(&self.policy, Arc::clone(&self.index));
        match entry {
            Some(entry) => engine.decide_entry_after(entry, &inventory, self.now(), &self.destroyed.lock()),
            None => engine.decide_after(&inventory, self.now(), &self.destroyed.lock()),
        }
    }

    /// Takes the snapshots that are due in one entry. Returns the transfers that were due before.
    async fn take_due(&self, entry: usize, outcomes: &mut Vec<Outcome>) -> Result<Vec<Order>, CatalogError> {
        let (takes, due_before): (Vec<Order>, Vec<Order>) =
            self.due(entry, |order| !matches!(order, Order::Destroy { .. })).into_iter().partition(is_take);
        outcomes.extend(self.carry_out_chains([takes]).await?);
        Ok(due_before)
    }

    /// Sends, then destroys what is due in one entry. Each step is decided again after the step before it. A transfer
    /// that was due before the takes stays due: if takes and transfers share a schedule, the newest snapshot would
    /// otherwise always be too new to be sent. A transfer of a newer snapshot replaces it.
    async fn finish_due(
        &self,
        entry: usize,
        due_before: Vec<Order>,
        poll: &Poll,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), CatalogError> {
        let due_now = self.due(entry, |o| matches!(o, Order::Send { .. }));
        let mut due: BTreeMap<(DatasetName, Place), Order> = BTreeMap::new();
        for order in due_before.into_iter().chain(due_now) {
            if let Order::Send { dataset, to, .. } = &order {
                due.insert((dataset.clone(), to.clone()), order);
            }
        }
        outcomes.extend(self.send(due.into_values()).await?);
        let _pruning = self.pruning.acquire().await;
        let destroys = || self.due(entry, |o| matches!(o, Order::Destroy { .. }));
        let first = destroys();
        let destroys = match self.ask_before(&first, poll).await? {
            (false, _) => first,
            (true, failed) => {
                let again = self.without_unasked(destroys(), &failed, outcomes).await?;
                // What has only now become due waits for the next pass.
                again.into_iter().filter(|order| self.firsthand.covers(order, |host| poll.has_listed(host))).collect()
            }
        };
        outcomes.extend(self.carry_out_chains(destroys.into_iter().map(|order| vec![order])).await?);
        Ok(())
    }

    /// Takes the snapshots of a saved plan for one entry, and returns the other orders. Outdated orders are refused.
    async fn take_saved(&self, orders: Vec<Order>, outcomes: &mut Vec<Outcome>) -> Result<Vec<Order>, CatalogError> {
        let (takes, left): (Vec<Order>, Vec<Order>) = orders.into_iter().partition(is_take);
        let takes = self.refuse_outdated(takes, None, outcomes).await?;
        outcomes.extend(self.carry_out_chains([takes]).await?);
        Ok(left)
    }

    /// Carries out the transfers and the destroys of a saved plan for one entry. Outdated orders are refused.
    async fn finish_saved(
        &self,
        entry: usize,
        orders: Vec<Order>,
        poll: &Poll,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), CatalogError> {
        let (sends, destroys): (Vec<Order>, Vec<Order>) =
            orders.into_iter().partition(|order| matches!(order, Order::Send { .. }));
        let sends = self.refuse_outdated(sends, None, outcomes).await?;
        outcomes.extend(self.send(sends).await?);
        let _pruning = self.pruning.acquire().await;
        let (_, failed) = self.ask_before(&destroys, poll).await?;
        let destroys = self.without_unasked(destroys, &failed, outcomes).await?;
        let plan = self.decide(Some(entry));
        let destroys = self.refuse_outdated(destroys, Some(&plan), outcomes).await?;
        outcomes.extend(self.carry_out_chains(destroys.into_iter().map(|order| vec![order])).await?);
        Ok(())
    }

    /// Returns the orders that can still be carried out. The others are refused, which is recorded as their outcome.
    async fn refuse_outdated(
        &self,
        orders: Vec<Order>,
        plan: Option<&Plan>,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<Vec<Order>, CatalogError> {
        let mut valid = Vec::new();
        for order in orders {
            let reason = saved::outdated(&order, &self.state.inventory(), plan);
            let Some(reason) = reason else {
                valid.push(order);
                continue;
            };
            outcomes.push(self.refuse(&order, ResponseStatus::Refused, reason).await?);
        }
        Ok(valid)
    }

    /// Asks hosts for what these destroys have to be decided on, and is known only from others. Returns whether any was
    /// asked, and those that did not answer.
    async fn ask_before(
        &self,
        destroys: &[Order],
        poll: &Poll,
    ) -> Result<(bool, BTreeMap<HostName, String>), CatalogError> {
        let fleet = (&*self.policy, &*self.dispatcher, &self.state);
        self.firsthand.ask(destroys, |host| poll.has_listed(host), fleet, self.fence()?).await
    }

    /// Returns the destroys that can be decided. The others are refused, which is recorded as their outcome.
    async fn without_unasked(
        &self,
        destroys: Vec<Order>,
        failed: &BTreeMap<HostName, String>,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<Vec<Order>, CatalogError> {
        let mut valid = Vec::new();
        for order in destroys {
            match failed.iter().find(|(host, _)| needs(&order, host)) {
                None => valid.push(order),
                Some((host, reason)) => {
                    let reason = format!("nothing is destroyed, because {host} cannot be asked what it has: {reason}");
                    outcomes.push(self.refuse(&order, ResponseStatus::Unreachable, reason).await?);
                }
            }
        }
        Ok(valid)
    }

    /// The orders of one entry that are due and `wanted`; none once the pass is to end.
    fn due(&self, entry: usize, wanted: impl Fn(&Order) -> bool) -> Vec<Order> {
        if self.progress.is_stopped() {
            return Vec::new();
        }
        self.decide(Some(entry)).orders(&self.policy).into_iter().filter(wanted).flat_map(fitting).collect()
    }
}

fn is_take(order: &Order) -> bool {
    matches!(order, Order::Take { .. })
}
