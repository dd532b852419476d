//! One pass: it lists every host, then takes, sends and destroys. Each of these steps is decided from the state that
//! the previous step left. Another pass may take over while transfers run: they continue, and the pass begins nothing
//! more.
//!
//! An entry of the policy is worked on as soon as the hosts that concern it have been listed. A host that answers
//! slowly, or never, delays only the entries that need it.
//!
//! Hosts and datasets are worked on side by side, but the orders of one dataset in sequence. Entries that share datasets,
//! such as the links of a chain, wait for each other for a limited time. A host that is down or a
//! dataset that fails does not stop work on the others. `orders` gives the orders.

mod begun;
mod orders;
mod saved_orders;
mod sequence;
mod slot;

pub use begun::Begun;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_lock::Semaphore;
use chrono::{DateTime, TimeDelta, Utc};
use futures_lite::future;
use parking_lot::Mutex;

use crate::actions::{Destroyed, Engine, Group, Order, Plan, PolicyIndex, groups};
use crate::catalog::{CatalogError, CatalogWrite};
use crate::director::firsthand::needs;
use crate::director::lanes::Lanes;
use crate::director::leader::Leadership;
use crate::director::pass::sequence::GroupTurn;
use crate::director::progress::PassProgress;
use crate::director::report::Report;
use crate::director::send_lanes::PassNumber;
use crate::director::transfer_steps::is_unsent;
use crate::fleet::dispatch::{Dispatcher, fitting};
use crate::fleet::durations;
use crate::fleet::health::ServiceHealth;
use crate::fleet::poll::{self, Poll, PollOptions, PollTask, SIDE_BY_SIDE, begin};
use crate::fleet::state::FleetState;
use crate::model::Place;
use crate::model::{Counter, DatasetName, HostName, Inventory, ResponseStatus};
use crate::policy::Policy;
use crate::sys::runtime::{self, Tasks, channel};
use crate::wire::Fence;
use crate::zfs::Zfs;

/// How long the snapshots of a dataset that has been listed wait for hosts that may concern it.
const WAIT_FOR_PEERS: Duration = Duration::from_secs(5);

/// How long an entry waits for others that share datasets with it, so that it sends what they have sent. Their transfers
/// may run for days, and nothing waits for those.
const PATIENCE: Duration = Duration::from_secs(60);

/// The orders of a saved plan, by entry of the policy.
type SavedOrders = BTreeMap<usize, Vec<Order>>;

/// Everything that a pass needs. Clones share one state.
pub struct Pass<Z, C: ?Sized> {
    policy: Arc<Policy>,
    index: Arc<PolicyIndex>,
    dispatcher: Arc<Dispatcher<Z>>,
    state: FleetState<C>,
    /// What is at work, also by other passes.
    lanes: Lanes,
    /// The number of this pass among those that share the lanes.
    number: PassNumber,
    /// The number of the policy when the pass was created.
    policy_number: u64,
    /// The sequence in which the entries are worked on that share datasets.
    groups: Arc<Vec<Group>>,
    /// How long entries wait for others that share datasets with them.
    patience: Duration,
    /// Limits how many entries are pruned at once. Before that, hosts may have to be asked what they have.
    pruning: Arc<Semaphore>,
    /// Closed once another pass has taken over.
    over: (channel::Sender<()>, channel::Receiver<()>),
    /// When the pass was created, by the clock and as an [`Instant`].
    at: DateTime<Utc>,
    began: Instant,
    /// The lock that allows orders, if several directors share a catalog.
    leadership: Option<Leadership>,
    services: ServiceHealth,
    /// Whether every host is listed, even if its records are known to be current.
    resync: bool,
    /// What the pass has destroyed so far.
    destroyed: Arc<Mutex<Destroyed>>,
    /// Whether its orders are those of a saved plan, which are not decided again.
    is_saved: bool,
}

impl<Z, C: ?Sized> Clone for Pass<Z, C> {
    fn clone(&self) -> Self {
        Self {
            policy: Arc::clone(&self.policy),
            index: Arc::clone(&self.index),
            dispatcher: Arc::clone(&self.dispatcher),
            state: self.state.clone(),
            lanes: self.lanes.clone(),
            number: self.number,
            policy_number: self.policy_number,
            groups: Arc::clone(&self.groups),
            patience: self.patience,
            pruning: Arc::clone(&self.pruning),
            over: self.over.clone(),
            at: self.at,
            began: self.began,
            leadership: self.leadership.clone(),
            services: self.services.clone(),
            resync: self.resync,
            destroyed: Arc::clone(&self.destroyed),
            is_saved: self.is_saved,
        }
    }
}

impl<Z: Zfs, C: CatalogWrite + ?Sized + 'static> Pass<Z, C> {
    /// Creates a pass that begins at `at`.
    #[must_use]
    pub fn new(policy: Arc<Policy>, dispatcher: Arc<Dispatcher<Z>>, state: FleetState<C>, at: DateTime<Utc>) -> Self {
        // The index is built once, because every entry is decided several times.
        let index = Arc::new(PolicyIndex::new(&policy));
        let groups = Arc::new(groups(&policy));
        Self {
            policy,
            index,
            dispatcher,
            state,
            lanes: Lanes::default(),
            number: 0,
            policy_number: 0,
            groups,
            patience: PATIENCE,
            pruning: Arc::new(Semaphore::new(SIDE_BY_SIDE)),
            over: channel::bounded(1),
            at,
            began: Instant::now(),
            leadership: None,
            services: ServiceHealth::default(),
            resync: false,
            destroyed: Arc::default(),
            is_saved: false,
        }
        .beside(Lanes::default())
    }

    /// This pass beside others that share these lanes.
    #[must_use]
    pub(super) fn beside(self, lanes: Lanes) -> Self {
        let (number, policy_number) = (lanes.next_pass(), lanes.policy_number());
        lanes.progress().note_certificates(self.state.certificates());
        Self { state: self.state.tracked(lanes.token()), number, policy_number, lanes, ..self }
    }

    /// The progress of the pass, and of all others that share its lanes.
    #[must_use]
    pub fn progress(&self) -> PassProgress {
        self.lanes.progress().clone()
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

    /// This pass if it is to hand over to another one after `limit`: its entries wait for each other for at most half of
    /// that time.
    #[must_use]
    pub(super) fn within(self, limit: Option<Duration>) -> Self {
        let patience = limit.map_or(self.patience, |limit| self.patience.min(limit / 2));
        Self { patience, ..self }
    }

    /// The policy of the pass.
    pub(super) fn policy(&self) -> &Arc<Policy> {
        &self.policy
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
        self.run_to_the_end(None).await
    }

    /// Carries out these orders instead of those that are due. Outdated orders are refused.
    pub async fn run_saved(self, orders: Vec<Order>) -> Result<Report, CatalogError> {
        self.run_to_the_end(Some(orders)).await
    }

    async fn run_to_the_end(self, saved: Option<Vec<Order>>) -> Result<Report, CatalogError> {
        // If this future is dropped, its tasks are dropped as well.
        let tasks = Tasks::default();
        let begun = self.begin(&tasks, saved).await?;
        begun.ended().await;
        begun.report().await
    }

    /// Begins to poll the hosts, and to work on each dataset as soon as its hosts have been listed. `saved` are the
    /// orders of a saved plan, which are carried out instead of those that are due.
    pub(super) async fn begin(mut self, tasks: &Tasks, saved: Option<Vec<Order>>) -> Result<Begun<Z, C>, CatalogError> {
        self.is_saved = saved.is_some();
        if durations::matters(&self.policy) {
            // They only improve the order of transfers, so a pass does without them.
            if let Err(error) = self.state.learn_durations().await {
                log::debug!("cannot read how long earlier transfers took: {error}");
            }
        }
        let saved = saved.map(|orders| {
            let mut by_entry = SavedOrders::new();
            for order in orders.into_iter().flat_map(fitting) {
                by_entry.entry(order.entry()).or_default().push(order);
            }
            Arc::new(by_entry)
        });
        let (poll, polling) = self.begin_poll(saved.is_some()).await?;
        let turns = GroupTurn::all(&self.groups);
        let working = self.groups.iter().zip(turns).map(|(group, turn)| {
            let (host, entries) = (group.host.clone(), group.entries.clone());
            self.clone().work_on_dataset(host, entries, poll.clone(), saved.clone(), turn)
        });
        let working: Vec<_> = working.collect();
        let ((has_polled, polled), (has_ended, ended)) = (channel::bounded(1), channel::bounded(1));
        let (lanes, state) = (self.lanes.clone(), self.state.clone());
        tasks.start(async move {
            let polling = async {
                let result = poll::run(polling).await;
                lanes.progress().note_clocks(state.clocks_behind());
                has_polled.close();
                result
            };
            let (polled, worked) = future::zip(polling, runtime::side_by_side(usize::MAX, working)).await;
            for result in worked.into_iter().chain([polled]) {
                result.unwrap_or_else(|error| lanes.failed(error));
            }
            has_ended.close();
        });
        Ok(Begun { pass: self, poll, polled, ended })
    }

    /// Begins to poll the hosts. The returned tasks do the work, and keep the progress current.
    async fn begin_poll(&self, has_saved_plan: bool) -> Result<(Poll, Vec<PollTask>), CatalogError> {
        // A saved plan is compared with what hosts hold now, even if the catalog has missed a change.
        let all = self.resync || has_saved_plan;
        let resync_since = if all { Some(self.at) } else { self.policy.resync_since(self.at) };
        let options = PollOptions { services: self.services.clone(), resync_since, fence: self.fence()? };
        let (poll, tasks) = begin(&self.policy, &self.dispatcher, &self.state, options, &Counter::default()).await?;
        self.progress().unseen(&poll.report().unseen);
        let tracked = tasks.into_iter().map(|task| {
            let (progress, poll) = (self.progress(), poll.clone());
            task.then(move || progress.unseen(&poll.report().unseen))
        });
        let tracked = tracked.collect();
        Ok((poll, tracked))
    }

    /// Works on the entries of one dataset of `host`, once the hosts that concern them have been polled.
    async fn work_on_dataset(
        self,
        host: HostName,
        entries: Vec<usize>,
        poll: Poll,
        saved: Option<Arc<SavedOrders>>,
        mut turn: GroupTurn,
    ) -> Result<(), CatalogError> {
        poll.wait_for(&[host.clone()].into()).await;
        let peers = self.index.hosts_of(&self.policy, &entries);
        let all_answer = runtime::timeout(WAIT_FOR_PEERS, poll.wait_for(&peers)).await.is_ok();
        if poll.report().unseen.contains_key(&host) {
            return Ok(());
        }
        if !all_answer && saved.is_none() {
            // The snapshots are taken as if the silent peers were down. What else is due waits for them.
            for entry in &entries {
                self.take_due(*entry).await?;
            }
        }
        poll.wait_for(&peers).await;
        // A transfer of one entry may run for days, so the snapshots of all entries are taken first.
        let mut taken = Vec::new();
        for entry in entries {
            let left = match &saved {
                None => self.take_due(entry).await?,
                Some(saved) => self.take_saved(saved.get(&entry).cloned().unwrap_or_default()).await?,
            };
            taken.push((entry, left));
        }
        turn.has_taken();
        let _ = runtime::timeout(self.patience, future::or(turn.comes(), self.is_over())).await;
        for (entry, left) in taken {
            match &saved {
                None => {
                    self.send_due(entry, left).await?;
                    self.prune_due(entry, &poll).await?;
                }
                Some(_) => self.finish_saved(entry, left, &poll).await?,
            }
        }
        Ok(())
    }

    /// Decides one entry of the policy, or all.
    fn decide(&self, entry: Option<usize>) -> Plan {
        self.decide_in(entry, &self.state.inventory())
    }

    /// Decides one entry of the policy, or all, for an inventory that is locked.
    fn decide_in(&self, entry: Option<usize>, inventory: &Inventory) -> Plan {
        let engine = Engine::with(&self.policy, Arc::clone(&self.index));
        match entry {
            Some(entry) => engine.decide_entry_after(entry, inventory, self.now(), &self.destroyed.lock()),
            None => engine.decide_after(inventory, self.now(), &self.destroyed.lock()),
        }
    }

    /// Takes the snapshots that are due in one entry. Returns the transfers that were due before.
    async fn take_due(&self, entry: usize) -> Result<Vec<Order>, CatalogError> {
        // The takes are claimed in the same step in which they are decided: another pass decides after that.
        let (takes, due_before) = {
            let inventory = self.state.inventory();
            let due = self.due_in(entry, &inventory, |order| !matches!(order, Order::Destroy { .. }));
            let (takes, due_before): (Vec<Order>, Vec<Order>) = due.into_iter().partition(is_take);
            let takes: Vec<_> = takes.into_iter().filter_map(|order| self.lanes.claim_take(order)).collect();
            (takes, due_before)
        };
        self.carry_out_chains([takes.into_iter().map(|(order, claim)| (order, Some(claim))).collect()]).await?;
        Ok(due_before)
    }

    /// Sends what is due in one entry. A transfer that was due before the takes stays due: if takes and transfers share
    /// a schedule, the newest snapshot would otherwise always be too new to be sent. A transfer of a newer snapshot
    /// replaces it.
    async fn send_due(&self, entry: usize, due_before: Vec<Order>) -> Result<(), CatalogError> {
        let decided = self.state.moment();
        let due_now = self.due(entry, |o| matches!(o, Order::Send { .. }));
        let due_before: Vec<Order> = {
            // Entries that share datasets with this one may have sent something since.
            let inventory = self.state.inventory();
            due_before.into_iter().filter(|order| is_unsent(order, &inventory)).collect()
        };
        let mut due: BTreeMap<(DatasetName, Place), Order> = BTreeMap::new();
        for order in due_before.into_iter().filter(|_| !self.begins_nothing()).chain(due_now) {
            if let Order::Send { dataset, to, .. } = &order {
                due.insert((dataset.clone(), to.clone()), order);
            }
        }
        self.send(due.into_values(), decided).await
    }

    /// Destroys what is due in one entry, also after another pass has taken over: a dataset whose transfers are longer
    /// than the interval would otherwise never be pruned. Where another pass is sending, it waits for that transfer
    /// until another pass takes over.
    async fn prune_due(&self, entry: usize, poll: &Poll) -> Result<(), CatalogError> {
        let busy = self.prune_idle(entry, poll).await?;
        if busy.is_empty() {
            return Ok(());
        }
        for place in &busy {
            future::or(self.lanes.sending_ended(place), self.is_over()).await;
        }
        if !self.begins_nothing() {
            self.prune_idle(entry, poll).await?;
        }
        Ok(())
    }

    /// Destroys what is due in one entry, except in datasets that other passes are sending or receiving, which are
    /// returned.
    async fn prune_idle(&self, entry: usize, poll: &Poll) -> Result<Vec<Place>, CatalogError> {
        let _pruning = self.pruning.acquire().await;
        let destroys = || -> Vec<Order> {
            if self.begins_no_order() {
                return Vec::new();
            }
            let decided = self.decided_orders(entry, &self.state.inventory()).into_iter();
            let destroys = decided.filter(|order| matches!(order, Order::Destroy { .. }));
            destroys.filter(|order| !self.rests(order)).flat_map(fitting).collect()
        };
        let first = destroys();
        let destroys = match self.ask_before(&first, poll).await? {
            (false, _) => first,
            (true, failed) => {
                let again = self.without_unasked(destroys(), &failed).await?;
                // What has only now become due waits for the next pass.
                again.into_iter().filter(|order| self.lanes.firsthand().covers(order, poll)).collect()
            }
        };
        self.destroy(destroys).await
    }

    /// Asks hosts for what these destroys have to be decided on, and is known only from others. Returns whether any was
    /// asked, and those that did not answer.
    async fn ask_before(
        &self,
        destroys: &[Order],
        poll: &Poll,
    ) -> Result<(bool, BTreeMap<HostName, String>), CatalogError> {
        let fleet = (&*self.policy, &*self.dispatcher, &self.state);
        self.lanes.firsthand().ask(destroys, poll, fleet, self.fence()?).await
    }

    /// Returns the destroys that can be decided. The others are refused, which is recorded as their outcome.
    async fn without_unasked(
        &self,
        destroys: Vec<Order>,
        failed: &BTreeMap<HostName, String>,
    ) -> Result<Vec<Order>, CatalogError> {
        let mut valid = Vec::new();
        for order in destroys {
            match failed.iter().find(|(host, _)| needs(&order, host)) {
                None => valid.push(order),
                Some((host, reason)) => {
                    let reason = format!("nothing is destroyed, because {host} cannot be asked what it has: {reason}");
                    self.refuse(&order, ResponseStatus::Unreachable, reason).await?;
                }
            }
        }
        Ok(valid)
    }

    /// Whether nothing new is decided in this pass any more: another pass has taken over, the policy has changed, or
    /// the process is to end.
    fn begins_nothing(&self) -> bool {
        self.over.0.is_closed() || self.begins_no_order()
    }

    /// Whether no order of this pass begins any more: the policy has changed, or the process is to end.
    fn begins_no_order(&self) -> bool {
        self.lanes.progress().is_stopped() || self.policy_number != self.lanes.policy_number()
    }

    /// Waits until another pass has taken over.
    async fn is_over(&self) {
        // The channel is only ever closed.
        let _ = self.over.1.recv().await;
    }

    /// The orders of one entry that are due and `wanted`; none once the pass begins nothing any more.
    fn due(&self, entry: usize, wanted: impl Fn(&Order) -> bool) -> Vec<Order> {
        let inventory = self.state.inventory();
        self.due_in(entry, &inventory, wanted)
    }

    fn due_in(&self, entry: usize, inventory: &Inventory, wanted: impl Fn(&Order) -> bool) -> Vec<Order> {
        if self.begins_nothing() {
            return Vec::new();
        }
        self.decided_orders(entry, inventory).into_iter().filter(wanted).flat_map(fitting).collect()
    }

    fn decided_orders(&self, entry: usize, inventory: &Inventory) -> Vec<Order> {
        self.decide_in(Some(entry), inventory).orders(&self.policy)
    }
}

fn is_take(order: &Order) -> bool {
    matches!(order, Order::Take { .. })
}
