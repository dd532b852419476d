//! Finds out what every host holds: how a pass begins, and how `zsync plan` gets to know the state.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};

use crate::catalog::{CatalogError, CatalogWrite};
use crate::fleet::dispatch::{Dispatcher, blank};
use crate::fleet::facts;
use crate::fleet::health::ServiceHealth;
use crate::fleet::state::FleetState;
use crate::model::{Action, Counter, HostInventory, HostName};
use crate::policy::Policy;
use crate::sys::runtime::channel;
use crate::sys::runtime::channel::Receiver;
use crate::sys::{clock, runtime};
use crate::wire::Fence;
use crate::zfs::Zfs;

/// How long a host may take to tell all that it holds; a listing of millions of snapshots takes minutes.
const LISTED_WITHIN: Duration = Duration::from_secs(1800);

/// How many hosts are polled, and entries worked on, at once.
pub(crate) const SIDE_BY_SIDE: usize = 64;

/// What to look for beyond what has to be report for.
#[derive(Clone, Debug, Default)]
pub struct PollOptions {
    /// What is known of the hosts before anything is read.
    pub services: ServiceHealth,
    /// Ask every host that was not listed since then, and tell what was wrong.
    pub resync_since: Option<DateTime<Utc>>,
    /// The fence of orders.
    pub fence: Option<Fence>,
}

/// What was found out besides the inventory.
#[derive(Debug, Default)]
pub struct PollReport {
    /// Hosts that could not be listed, each with the reason.
    pub unseen: BTreeMap<HostName, String>,
    /// How what hosts hold differed from what was known.
    pub corrected: Vec<(HostName, String)>,
}

/// A look at hosts that is under way; clones are of the same one.
#[derive(Clone)]
pub struct Poll {
    /// For each host that is asked a channel that closes when it has answered, or will not.
    answered: Arc<BTreeMap<HostName, Receiver<()>>>,
    report: Arc<Mutex<PollReport>>,
}

/// Asks one host.
pub type PollTask = Pin<Box<dyn Future<Output = Result<(), CatalogError>> + Send>>;

impl Poll {
    /// Waits until each of the hosts was seen, or is known not to be.
    pub async fn seen(&self, hosts: &BTreeSet<HostName>) {
        for answer_sent in hosts.iter().filter_map(|host| self.answered.get(host)) {
            // Nothing is ever sent.
            answer_sent.recv().await.unwrap_or_default();
        }
    }

    /// What was found out so far.
    pub fn report(&self) -> MutexGuard<'_, PollReport> {
        self.report.lock()
    }
}

/// Begins to ask every host of the policy what it holds; what they answer is written to the catalog, and the world is
/// that. In a shared catalog hosts write it themselves, and only those are asked whose records are not whole. What is
/// known of a host that is asked counts for nothing until it has answered.
///
/// Nothing happens unless the [`PollTask`]s run. `asked` counts the hosts that were asked.
pub(crate) async fn begin<Z: Zfs, C: CatalogWrite + ?Sized + 'static>(
    policy: &Arc<Policy>,
    dispatcher: &Arc<Dispatcher<Z>>,
    state: &FleetState<C>,
    wish: PollOptions,
    asked: &Counter,
) -> Result<(Poll, Vec<PollTask>), CatalogError> {
    let PollOptions { services, resync_since, fence } = wish;
    let hosts: BTreeSet<HostName> = policy.hosts_named();
    let whole = state.catch_up(&hosts).await?;
    let own_behind = dispatcher.own.as_ref().is_ok_and(|own| own.is_behind());
    let is_due = |host: &HostName| {
        resync_since.is_some_and(|since| state.observed(host).is_none_or(|observed| observed < since))
    };
    let asks = |host: &HostName| {
        let behind = services.ask.contains(host) || (own_behind && *host == dispatcher.here);
        !whole.contains(host) || is_due(host) || behind
    };
    let present = hosts.iter().filter(|host| !services.absent.contains_key(*host));
    let to_ask: BTreeMap<HostName, bool> =
        present.filter(|host| asks(host)).map(|host| (host.clone(), is_due(host))).collect();
    let known = hosts.iter().filter(|host| !to_ask.contains_key(*host) && !services.absent.contains_key(*host));
    state.begin(&known.cloned().collect()).await?;
    if let (Ok(own), false) = (&dispatcher.own, state.is_shared()) {
        // What is written down of this host, it need not list again.
        own.remember(
            state.inventory().hosts.get(&dispatcher.here).map(|known| known.datasets.clone()).unwrap_or_default(),
        );
    }
    let report = Arc::new(Mutex::new(PollReport { unseen: services.absent, ..PollReport::default() }));
    let (mut answered, mut tasks) = (BTreeMap::new(), Vec::<PollTask>::new());
    asked.expect(to_ask.len() as u64);
    for (host, due) in to_ask {
        let (answer_sent, seen) = channel::bounded::<()>(1);
        answered.insert(host.clone(), seen);
        let (policy, dispatcher, state) = (Arc::clone(policy), Arc::clone(dispatcher), state.clone());
        let (asked, report) = (asked.clone(), Arc::clone(&report));
        tasks.push(Box::pin(async move {
            let told = ask(&policy, &dispatcher, &state, &host, due, fence, &asked).await;
            let mut report = report.lock();
            let result = match told {
                Ok(Ok(told)) => {
                    report.corrected.extend(told.into_iter().map(|line| (host.clone(), line)));
                    Ok(())
                }
                Ok(Err(reason)) => {
                    report.unseen.insert(host, reason);
                    Ok(())
                }
                Err(error) => {
                    report.unseen.insert(host, "what it told could not be written down".into());
                    Err(error)
                }
            };
            drop((report, answer_sent));
            result
        }));
    }
    Ok((Poll { answered: Arc::new(answered), report }, tasks))
}

/// Asks one host what it holds; how that differs from what was known, or why it was not seen.
async fn ask<Z: Zfs, C: CatalogWrite + ?Sized + 'static>(
    policy: &Arc<Policy>,
    dispatcher: &Dispatcher<Z>,
    state: &FleetState<C>,
    host: &HostName,
    due: bool,
    fence: Option<Fence>,
    asked: &Counter,
) -> Result<Result<Vec<String>, String>, CatalogError> {
    let mut order = blank(Action::KvResync);
    (order.fence, order.anew) = (fence, due);
    let tasks = dispatcher.ask(policy, host, &order, Counter::default());
    // One that is alive and never comes to an end must not keep the pass from the others.
    let answered = runtime::timeout(LISTED_WITHIN, tasks).await;
    asked.add(1);
    let Ok((response, facts)) = answered else {
        let within = humantime::format_duration(LISTED_WITHIN);
        return Ok(Err(format!("it did not tell all that it holds within {within}")));
    };
    if !response.is_success {
        return Ok(Err(response.message()));
    }
    let told = state.listed(host, clock::now(), facts, due).await?;
    if response.unpublished {
        state.doubt(host);
    }
    Ok(Ok(told))
}

/// Asks every host of the policy what it holds, and waits for all: what they answer is written to the catalog, and the
/// world is that.
pub async fn poll_all<Z: Zfs, C: CatalogWrite + ?Sized + 'static>(
    policy: &Arc<Policy>,
    dispatcher: &Arc<Dispatcher<Z>>,
    state: &FleetState<C>,
    wish: PollOptions,
    asked: &Counter,
) -> Result<PollReport, CatalogError> {
    let (poll, tasks) = begin(policy, dispatcher, state, wish, asked).await?;
    for result in runtime::side_by_side(SIDE_BY_SIDE, tasks).await {
        result?;
    }
    let report = std::mem::take(&mut *poll.report());
    Ok(report)
}

/// How long a host may take to tell what it holds to somebody who only wants to see.
const GLANCE: Duration = Duration::from_secs(20);

/// What an agent answers: what its host holds, or why that is not known.
pub type Answer = Result<HostInventory, String>;

/// Asks every host of the policy that has an agent what it holds, once, and writes it nowhere.
pub async fn ask_all<Z: Zfs>(policy: &Arc<Policy>, dispatcher: &Arc<Dispatcher<Z>>) -> Vec<(HostName, Answer)> {
    let here = &dispatcher.here;
    let elsewhere = |host: &HostName| host != here || policy.hosts.get(host).is_some_and(|h| h.address.is_some());
    let asked: Vec<HostName> = policy.hosts_named().into_iter().filter(elsewhere).collect();
    let tasks = asked.into_iter().map(|host| {
        let (policy, dispatcher) = (Arc::clone(policy), Arc::clone(dispatcher));
        async move {
            let order = blank(Action::KvResync);
            let answer = dispatcher.ask(&policy, &host, &order, Counter::default());
            let answer = match runtime::timeout(GLANCE, answer).await {
                Ok((response, facts)) if response.is_success => Ok(HostInventory {
                    observed: Some(clock::now()),
                    datasets: facts::assemble(facts.into_iter().filter_map(|fact| fact.listing))
                        .into_iter()
                        .filter_map(|((of, dataset), listed)| (of == host).then_some((dataset, listed)))
                        .collect(),
                }),
                Ok((response, _)) => Err(response.message()),
                Err(runtime::Elapsed) => Err(format!("no answer within {}", humantime::format_duration(GLANCE))),
            };
            (host, answer)
        }
    });
    let tasks: Vec<_> = tasks.collect();
    runtime::side_by_side(SIDE_BY_SIDE, tasks).await
}
