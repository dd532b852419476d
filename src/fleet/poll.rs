//! Polls hosts: asks their agents to list all snapshots. A pass begins with this, and so does `zsync plan`.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_lock::{Semaphore, SemaphoreGuardArc};
use chrono::{DateTime, Utc};
use futures_lite::future;
use parking_lot::{Mutex, MutexGuard};

use crate::catalog::{CatalogError, CatalogWrite};
use crate::fleet::dispatch::{Contact, Dispatcher, blank};
use crate::fleet::facts;
use crate::fleet::health::ServiceHealth;
use crate::fleet::state::FleetState;
use crate::fleet::touched::Moment;
use crate::model::{Action, Counter, HostInventory, HostName, PeerRole};
use crate::policy::Policy;
use crate::sys::runtime::channel::Receiver;
use crate::sys::runtime::{Tasks, channel};
use crate::sys::{clock, runtime};
use crate::wire::{DirectorsOrder, Fence, Permit};
use crate::zfs::Zfs;

/// How long a host may take to list all its snapshots. A listing of millions of snapshots takes minutes.
const LIST_TIMEOUT: Duration = Duration::from_secs(1800);

/// How many hosts are polled, and how many datasets are worked on, at once.
pub(crate) const SIDE_BY_SIDE: usize = 64;

/// How long a host keeps its turn to be polled without having sent anything. An agent that carries out an order reports
/// its progress every two seconds.
const TURN_WITHOUT_ANSWER: Duration = Duration::from_secs(3);

/// How many hosts that have sent nothing in their turn are waited for at once, beside those that have a turn.
const WAITED_FOR: usize = 256;

/// How long a host may send nothing that did not answer the last time.
const PATIENCE_WITH_SILENT: Duration = Duration::from_secs(10);

/// Which hosts are polled, and how.
#[derive(Clone, Debug, Default)]
pub struct PollOptions {
    /// The health of the hosts' services, if they are registered in Consul.
    pub services: ServiceHealth,
    /// Poll every host that was not listed since then, and report where the catalog differed.
    pub resync_since: Option<DateTime<Utc>>,
    /// The fence of the polling orders.
    pub fence: Option<Fence>,
}

/// What a poll found besides the listings.
#[derive(Debug, Default)]
pub struct PollReport {
    /// Hosts that could not be listed, each with the reason.
    pub unseen: BTreeMap<HostName, String>,
    /// Where the catalog differed from what hosts hold: the host, and a line for each difference.
    pub corrected: Vec<(HostName, String)>,
}

/// The outcome of polling one host.
enum HostPoll {
    /// The host was listed. In a resync, these lines are the differences from the catalog.
    Listed(Vec<String>),
    /// The host could not be listed, for this reason.
    Failed(String),
}

/// A running poll. Clones share one state.
#[derive(Clone, Default)]
pub struct Poll {
    /// For each polled host a channel that is closed once the host has been listed or has failed.
    finished: Arc<BTreeMap<HostName, Receiver<()>>>,
    /// The moment before all listings of this poll.
    pub began: Moment,
    report: Arc<Mutex<PollReport>>,
}

/// Polls one host.
pub struct PollTask {
    work: Pin<Box<dyn Future<Output = Result<(), CatalogError>> + Send>>,
    /// Closed once the host has sent anything.
    is_alive: Receiver<()>,
}

impl PollTask {
    /// This task, which calls a function after its work.
    pub fn then(self, after: impl FnOnce() + Send + 'static) -> Self {
        let Self { work, is_alive } = self;
        let work = Box::pin(async move {
            let result = work.await;
            after();
            result
        });
        Self { work, is_alive }
    }

    /// Runs the task, and holds the turn until its end. If the host does not answer soon, the turn is passed on, and
    /// the host is waited for beside the others.
    async fn run(self, turn: SemaphoreGuardArc, waited_for: Arc<Semaphore>) -> Result<(), CatalogError> {
        let Self { work, is_alive } = self;
        let yielding = async {
            let turn = turn;
            // The channel is only ever closed.
            let answered = runtime::timeout(TURN_WITHOUT_ANSWER, is_alive.recv()).await.is_ok();
            let _held = if answered {
                turn
            } else {
                let waited_for = waited_for.acquire_arc().await;
                drop(turn);
                waited_for
            };
            future::pending().await
        };
        future::or(work, yielding).await
    }
}

/// Runs polls side by side. They begin in this order.
pub(crate) async fn run(polls: Vec<PollTask>) -> Result<(), CatalogError> {
    let (turns, waited_for) = (Arc::new(Semaphore::new(SIDE_BY_SIDE)), Arc::new(Semaphore::new(WAITED_FOR)));
    let tasks = Tasks::default();
    let (done, results) = channel::unbounded();
    for poll in polls {
        let (turn, waited_for, done) = (turns.acquire_arc().await, Arc::clone(&waited_for), done.clone());
        // The receiver lives until every poll has ended.
        tasks.start(async move { drop(done.send(poll.run(turn, waited_for).await).await) });
    }
    drop(done);
    let mut all = Ok(());
    while let Ok(result) = results.recv().await {
        all = all.and(result);
    }
    all
}

impl Poll {
    /// Waits until each of the hosts has been listed or has failed.
    pub async fn wait_for(&self, hosts: &BTreeSet<HostName>) {
        for finished in hosts.iter().filter_map(|host| self.finished.get(host)) {
            // The channel is only ever closed.
            finished.recv().await.unwrap_or_default();
        }
    }

    /// Whether a host was polled and has been listed.
    pub fn has_listed(&self, host: &HostName) -> bool {
        self.finished.contains_key(host) && !self.report.lock().unseen.contains_key(host)
    }

    /// What was found so far.
    pub fn report(&self) -> MutexGuard<'_, PollReport> {
        self.report.lock()
    }
}

/// Begins to poll the hosts of the policy. Their listings are stored in the catalog and in `state`. Hosts that publish
/// in a shared catalog are polled only if their records there are incomplete or not current. Until a polled host has
/// been listed, it counts as not listed.
///
/// Nothing happens unless the [`PollTask`]s run. `polled` counts the hosts that were polled.
pub(crate) async fn begin<Z: Zfs, C: CatalogWrite + ?Sized + 'static>(
    policy: &Arc<Policy>,
    dispatcher: &Arc<Dispatcher<Z>>,
    state: &FleetState<C>,
    mut options: PollOptions,
    polled: &Counter,
) -> Result<(Poll, Vec<PollTask>), CatalogError> {
    let fence = options.fence.take();
    if options.resync_since.is_none() {
        let resting = state.silent().resting(policy).into_iter().filter(|(host, _)| *host != dispatcher.here);
        options.services.absent.extend(resting);
    }
    state.certificates().forget_others(policy);
    dispatcher.note_certificates(state.certificates());
    let to_poll = hosts_to_poll(policy, dispatcher, state, &options).await?;
    let absent = options.services.absent;
    let current = policy.hosts_named().into_iter();
    let current = current.filter(|host| !to_poll.contains_key(host) && !absent.contains_key(host));
    state.begin(&current.collect(), &to_poll.keys().cloned().collect()).await?;
    if let (Ok(own), false) = (&dispatcher.own, state.is_shared()) {
        // The agent in this process need not list again what the catalog has of this host.
        own.remember(
            state.inventory().hosts.get(&dispatcher.here).map(|known| known.datasets.clone()).unwrap_or_default(),
        );
    }
    let began = state.moment();
    let report = Arc::new(Mutex::new(PollReport { unseen: absent, ..PollReport::default() }));
    let (mut finished, mut tasks) = (BTreeMap::new(), Vec::<PollTask>::new());
    polled.expect(to_poll.len() as u64);
    // This host comes first. Hosts that did not answer the last time come last: they would keep the others waiting.
    let silent = state.silent().names();
    let mut to_poll: Vec<(HostName, bool)> = to_poll.into_iter().collect();
    to_poll.sort_by_key(|(host, _)| (*host != dispatcher.here, silent.contains(host)));
    for (host, resync) in to_poll {
        let (open_until_finished, closed) = channel::bounded::<()>(1);
        finished.insert(host.clone(), closed);
        let (policy, dispatcher, state) = (Arc::clone(policy), Arc::clone(dispatcher), state.clone());
        let (polled, report) = (polled.clone(), Arc::clone(&report));
        let patience = silent.contains(&host).then_some(PATIENCE_WITH_SILENT);
        let (contact, is_alive) = Contact::new(patience);
        let fence = fence.clone();
        let work = Box::pin(async move {
            let began = Instant::now();
            let mut order = blank(Action::KvResync);
            (order.fence, order.from_scratch) = (fence, resync);
            let outcome = poll_host(&policy, &dispatcher, &state, &host, order, &contact).await;
            polled.add(1);
            state.certificates().note(&host, PeerRole::Agent, contact.certificate());
            match &outcome {
                Ok(HostPoll::Failed(reason)) => state.silent().failed(&policy, &host, reason, began.elapsed()),
                Ok(HostPoll::Listed(_)) | Err(_) => state.silent().answered(&host),
            }
            if !matches!(outcome, Ok(HostPoll::Listed(_))) {
                state.not_listed(&host);
            }
            let mut report = report.lock();
            let result = match outcome {
                Ok(HostPoll::Listed(differences)) => {
                    report.corrected.extend(differences.into_iter().map(|line| (host.clone(), line)));
                    Ok(())
                }
                Ok(HostPoll::Failed(reason)) => {
                    report.unseen.insert(host, reason);
                    Ok(())
                }
                Err(error) => {
                    report.unseen.insert(host, "its listing could not be stored in the catalog".into());
                    Err(error)
                }
            };
            drop((report, open_until_finished));
            result
        });
        tasks.push(PollTask { work, is_alive });
    }
    Ok((Poll { finished: Arc::new(finished), began, report }, tasks))
}

/// The hosts that have to be polled, each with whether this is a resync.
async fn hosts_to_poll<Z: Zfs, C: CatalogWrite + ?Sized + 'static>(
    policy: &Policy,
    dispatcher: &Dispatcher<Z>,
    state: &FleetState<C>,
    options: &PollOptions,
) -> Result<BTreeMap<HostName, bool>, CatalogError> {
    let PollOptions { services, resync_since, .. } = options;
    let hosts: BTreeSet<HostName> = policy.hosts_named();
    let complete = state.catch_up(&hosts).await?;
    let own_is_behind = dispatcher.own.as_ref().is_ok_and(|own| own.is_behind());
    let needs_resync =
        |host: &HostName| resync_since.is_some_and(|since| state.last_listed(host).is_none_or(|listed| listed < since));
    let is_outdated = |host: &HostName| {
        !complete.contains(host) || services.ask.contains(host) || (own_is_behind && *host == dispatcher.here)
    };
    let present = hosts.into_iter().filter(|host| !services.absent.contains_key(host));
    let all = present.map(|host| {
        let resync = needs_resync(&host);
        (host, resync)
    });
    Ok(all.filter(|(host, resync)| *resync || is_outdated(host)).collect())
}

/// Polls one host.
async fn poll_host<Z: Zfs, C: CatalogWrite + ?Sized + 'static>(
    policy: &Arc<Policy>,
    dispatcher: &Arc<Dispatcher<Z>>,
    state: &FleetState<C>,
    host: &HostName,
    order: DirectorsOrder,
    contact: &Contact,
) -> Result<HostPoll, CatalogError> {
    let resync = order.from_scratch;
    let began = state.moment();
    let listing = dispatcher.list(policy, host, order, contact);
    // A host that is alive but never ends its listing must not delay the pass for the others.
    let answer = runtime::timeout(LIST_TIMEOUT, listing).await;
    let Ok((response, facts)) = answer else {
        let limit = humantime::format_duration(LIST_TIMEOUT);
        return Ok(HostPoll::Failed(format!("it did not list all its snapshots within {limit}")));
    };
    if !response.is_success {
        return Ok(HostPoll::Failed(response.message()));
    }
    // Storing the listing may take long, so the clocks are compared first.
    let (now, is_here) = (clock::now(), *host == dispatcher.here);
    let behind = facts::clock_behind(&response, now).filter(|_| !is_here);
    let differences = state.store_listing(host, (now, began), facts, resync).await?;
    state.set_clock(host, behind);
    if response.unpublished {
        state.mark_unpublished(host);
    }
    Ok(HostPoll::Listed(differences))
}

/// Polls the hosts of the policy, and waits for all. Their listings are stored in the catalog and in `state`.
pub async fn poll_all<Z: Zfs, C: CatalogWrite + ?Sized + 'static>(
    policy: &Arc<Policy>,
    dispatcher: &Arc<Dispatcher<Z>>,
    state: &FleetState<C>,
    options: PollOptions,
    polled: &Counter,
) -> Result<PollReport, CatalogError> {
    let (poll, tasks) = begin(policy, dispatcher, state, options, polled).await?;
    run(tasks).await?;
    let report = std::mem::take(&mut *poll.report());
    Ok(report)
}

/// How long a host may take to list its snapshots for `zsync status`, because a user waits for the result.
const STATUS_TIMEOUT: Duration = Duration::from_secs(20);

/// The listing of a host, or why it could not be listed.
pub type Answer = Result<HostInventory, String>;

/// The answer of a host that was asked as in a pass, with what its local.json permits, if it says so.
pub type FullAnswer = Result<(HostInventory, Vec<Permit>), String>;

/// Lists every host of the policy that has an agent of its own, without storing anything.
pub async fn ask_all<Z: Zfs>(policy: &Arc<Policy>, dispatcher: &Arc<Dispatcher<Z>>) -> Vec<(HostName, Answer)> {
    let here = &dispatcher.here;
    let has_agent = |host: &HostName| host != here || policy.hosts.get(host).is_some_and(|h| h.address.is_some());
    let hosts = policy.hosts_named().into_iter().filter(has_agent);
    let answers = ask_hosts(policy, dispatcher, hosts, STATUS_TIMEOUT, &Counter::default()).await;
    answers.into_iter().map(|(host, answer)| (host, answer.map(|(listing, _)| listing))).collect()
}

/// Lists the hosts of the policy as a pass would, except these, without storing anything. `asked` counts the answers.
pub async fn ask_as_in_a_pass<Z: Zfs>(
    policy: &Arc<Policy>,
    dispatcher: &Arc<Dispatcher<Z>>,
    except: &BTreeMap<HostName, String>,
    asked: &Counter,
) -> Vec<(HostName, FullAnswer)> {
    let hosts = policy.hosts_named().into_iter().filter(|host| !except.contains_key(host));
    ask_hosts(policy, dispatcher, hosts, LIST_TIMEOUT, asked).await
}

/// Lists these hosts as a pass would, without storing anything, whether or not the policy names them. `asked` counts the
/// answers.
pub async fn ask_these<Z: Zfs>(
    policy: &Arc<Policy>,
    dispatcher: &Arc<Dispatcher<Z>>,
    hosts: impl Iterator<Item = HostName>,
    asked: &Counter,
) -> Vec<(HostName, Answer)> {
    let answers = ask_hosts(policy, dispatcher, hosts, LIST_TIMEOUT, asked).await;
    answers.into_iter().map(|(host, answer)| (host, answer.map(|(listing, _)| listing))).collect()
}

async fn ask_hosts<Z: Zfs>(
    policy: &Arc<Policy>,
    dispatcher: &Arc<Dispatcher<Z>>,
    hosts: impl Iterator<Item = HostName>,
    limit: Duration,
    asked: &Counter,
) -> Vec<(HostName, FullAnswer)> {
    let tasks = hosts.map(|host| {
        let (policy, dispatcher, asked) = (Arc::clone(policy), Arc::clone(dispatcher), asked.clone());
        async move {
            let answer = ask_host(&policy, &dispatcher, &host, limit).await;
            asked.add(1);
            (host, answer)
        }
    });
    let tasks: Vec<_> = tasks.collect();
    asked.expect(tasks.len() as u64);
    runtime::side_by_side(SIDE_BY_SIDE, tasks).await
}

async fn ask_host<Z: Zfs>(policy: &Policy, dispatcher: &Dispatcher<Z>, host: &HostName, limit: Duration) -> FullAnswer {
    let order = DirectorsOrder { read_only: true, ..blank(Action::KvResync) };
    match runtime::timeout(limit, dispatcher.list(policy, host, order, &Contact::default())).await {
        Ok((response, mut facts)) if response.is_success => {
            let permits = facts.iter_mut().flat_map(|fact| std::mem::take(&mut fact.permits)).collect();
            let unlisted = facts::unlisted(&facts);
            let listed = facts::assemble(facts.into_iter().filter_map(|fact| fact.listing)).into_iter();
            let datasets = listed.filter_map(|((of, dataset), listed)| (of == *host).then_some((dataset, listed)));
            let (now, datasets) = (clock::now(), datasets.collect());
            let clock_behind = facts::clock_behind(&response, now).filter(|_| *host != dispatcher.here);
            Ok((HostInventory { observed: Some(now), unlisted, clock_behind, datasets }, permits))
        }
        Ok((response, _)) => Err(response.message()),
        Err(runtime::Elapsed) => Err(format!("no answer within {}", humantime::format_duration(limit))),
    }
}
