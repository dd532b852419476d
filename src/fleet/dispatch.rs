//! Dispatches an order to a host: to the agent within this process, or to an agent over TCP.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_lite::future;
use parking_lot::Mutex;

use crate::actions::{Occupied, Order};
use crate::agent::{Agent, CheckedOrder, FactSink};
use crate::fleet::certificates::SeenCertificates;
use crate::model::{
    Action, Counter, DatasetInventory, Guid, HostName, Inventory, OnDivergence, OrderId, PeerRole, Place, Record,
    ResponseStatus, SnapName, Snapshot, hint,
};
use crate::policy::{AGENT_PORT, Policy};
use crate::sys::retry::Retry;
use crate::sys::runtime::{self, channel};
use crate::transport::tcp::{Dial, TransportError};
use crate::transport::tls::Tls;
use crate::wire::codec::{Conn, WireError};
use crate::wire::memory::{self, LISTINGS, ListingMemory, TooMuchMemory};
use crate::wire::{
    AgentLine, CommonBase, DirectorsOrder, ExpectedSnapshot, Facts, LONGEST_LINE, PROTOCOL, Progress, RenamedFrom,
    Response,
};
use crate::zfs::Zfs;

/// How to wait for a host, and how to learn that it is alive.
#[derive(Clone)]
pub struct Contact {
    /// Closed once the host has sent anything.
    alive: channel::Sender<()>,
    /// How long the host may send nothing, if it gets less time than others and only one attempt.
    patience: Option<Duration>,
    /// When the host's certificate expires, once the host has presented it.
    certificate: Arc<Mutex<Option<DateTime<Utc>>>>,
}

impl Contact {
    /// A contact with a host, and a channel that closes once the host has sent anything. If `patience` is given, the
    /// host may send nothing for so long only, and no failed attempt is repeated.
    pub(super) fn new(patience: Option<Duration>) -> (Self, channel::Receiver<()>) {
        let (alive, is_alive) = channel::bounded(1);
        (Self { alive, patience, certificate: Arc::default() }, is_alive)
    }

    /// When the certificate that the host has presented expires; `None` if it has presented none.
    pub(super) fn certificate(&self) -> Option<DateTime<Utc>> {
        *self.certificate.lock()
    }
}

impl Default for Contact {
    fn default() -> Self {
        Self::new(None).0
    }
}

/// Sends orders to the agent of every host.
pub struct Dispatcher<Z> {
    /// The director's own host.
    pub here: HostName,
    /// The agent within this process, or why there is none.
    pub own: Result<Arc<Agent<Z>>, String>,
    /// The certificate with which the director authenticates itself to agents; if `None`, it connects in plaintext.
    pub tls: Option<Arc<Tls>>,
}

/// An order with this action, in which everything else is empty.
#[must_use]
pub fn blank(action: Action) -> DirectorsOrder {
    DirectorsOrder {
        order_uuid: OrderId(uuid::Uuid::now_v7()),
        action,
        destination: String::new(),
        snapshot_uuid: Vec::new(),
        snapshot_name: String::new(),
        dest_dataset: String::new(),
        rollback_if_needed: false,
        skip_if_renamed: false,
        skip_if_not_written: false,
        skip_if_cloned: false,
        protocol: PROTOCOL,
        datasets: Vec::new(),
        dataset: None,
        destination_address: None,
        rollback_may_destroy: false,
        on_divergence: OnDivergence::Stop,
        origin_dataset: None,
        renamed_from: None,
        awaits_rename: false,
        destinations: Vec::new(),
        fence: None,
        keep_common_with: Vec::new(),
        follows: false,
        retry_for: None,
        oldest_unsent: None,
        start_by: None,
        resume_token: None,
        from_scratch: false,
        forget: Vec::new(),
        read_only: false,
        restore: None,
        expected: Vec::new(),
    }
}

/// How many bytes of names one order contains at most, so that it stays well below the longest line.
const NAMES_PER_ORDER: usize = LONGEST_LINE * 3 / 4;
/// Bytes of a snapshot besides its names: a UUID, separators, quotes, and what is expected of it.
const BESIDES_NAMES: usize = 48 + 100;

/// Splits an order into orders that each fit into one line of the protocol.
#[must_use]
pub fn fitting(order: Order) -> Vec<Order> {
    match order {
        Order::Destroy { ref dataset, ref snapshots, .. } => {
            let length = |(_, name): &(Guid, SnapName)| dataset.as_str().len() + name.as_str().len();
            let with = |part: &[_]| {
                let mut order = order.clone();
                if let Order::Destroy { snapshots, .. } = &mut order {
                    *snapshots = part.to_vec();
                }
                order
            };
            pieces(snapshots, length).into_iter().map(with).collect()
        }
        Order::Take { ref datasets, .. } => {
            let with = |part: &[_]| {
                let mut order = order.clone();
                if let Order::Take { datasets, .. } = &mut order {
                    *datasets = part.to_vec();
                }
                order
            };
            pieces(datasets, |name| name.as_str().len()).into_iter().map(with).collect()
        }
        Order::Send { .. } => vec![order],
    }
}

/// Splits a list so that each piece fits into one order.
fn pieces<T>(mut rest: &[T], length: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let mut total = 0;
        let fits = |item: &&T| {
            total += length(item) + BESIDES_NAMES;
            total <= NAMES_PER_ORDER
        };
        let (piece, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        pieces.push(piece);
        rest = later;
    }
    pieces
}

/// An order in the form that is sent over the wire. `inventory` is the one for which it was decided.
#[must_use]
pub fn wire_order(order: &Order, policy: &Policy, inventory: &Inventory) -> DirectorsOrder {
    let wire = match order {
        Order::Take { name, datasets, skip_if_not_written, .. } => DirectorsOrder {
            snapshot_name: name.to_string(),
            dest_dataset: datasets.first().map(ToString::to_string).unwrap_or_default(),
            datasets: datasets.iter().skip(1).cloned().collect(),
            skip_if_not_written: *skip_if_not_written,
            ..blank(Action::TakeSnapshot)
        },
        Order::Send { dataset, snapshot, guid, to, allowed, route, oldest_unsent, .. } => DirectorsOrder {
            oldest_unsent: Some(*oldest_unsent),
            destination: to.host.to_string(),
            snapshot_uuid: vec![guid.uuid().to_string()],
            snapshot_name: snapshot.to_string(),
            dest_dataset: to.dataset.to_string(),
            rollback_if_needed: allowed.rollback,
            rollback_may_destroy: allowed.may_destroy,
            on_divergence: allowed.on_divergence,
            origin_dataset: route.origin.clone(),
            renamed_from: route.renamed.as_ref().map(|renamed| RenamedFrom {
                dataset: renamed.dataset.clone(),
                source_dataset: renamed.source.clone(),
                guid: renamed.guid,
                exchange: route.occupied == Some(Occupied::Exchange),
                displace: route.occupied == Some(Occupied::Displace),
            }),
            awaits_rename: route.occupied == Some(Occupied::Wait),
            destinations: route.destinations.iter().map(|to| (to.host.clone(), to.dataset.clone())).collect(),
            dataset: Some(dataset.clone()),
            destination_address: policy.hosts.get(&to.host).and_then(|h| h.receive_address.clone()),
            ..blank(Action::SendSnapshot)
        },
        Order::Destroy {
            host,
            dataset,
            snapshots,
            keep_common_with,
            skip_if_renamed,
            skip_if_cloned,
            entry,
            policy: name,
            ..
        } => {
            let record = |(guid, name): &(_, _)| {
                let guid: &Guid = guid;
                let record = Record {
                    uuid: guid.uuid(),
                    dataset: dataset.clone(),
                    name: Clone::clone(name),
                    marks: crate::model::Marks::default(),
                };
                record.to_string()
            };
            let of = Place { host: host.clone(), dataset: dataset.clone() };
            let awaiting = awaiting(policy, *entry, name, &of);
            DirectorsOrder {
                snapshot_uuid: snapshots.iter().map(record).collect(),
                dest_dataset: dataset.to_string(),
                skip_if_renamed: *skip_if_renamed,
                skip_if_cloned: *skip_if_cloned,
                keep_common_with: bases(&of, keep_common_with, &awaiting, inventory),
                expected: expected(&of, snapshots, inventory),
                ..blank(Action::DestroySnapshot)
            }
        }
    };
    DirectorsOrder { retry_for: Some(policy.retry_for.as_secs()), ..wire }
}

/// What is known about snapshots that are to be destroyed.
fn expected(of: &Place, snapshots: &[(Guid, SnapName)], inventory: &Inventory) -> Vec<ExpectedSnapshot> {
    let known: BTreeMap<Guid, &Snapshot> = inventory
        .dataset(&of.host, &of.dataset)
        .map(|dataset| dataset.snapshots.iter().map(|s| (s.guid, s)).collect())
        .unwrap_or_default();
    let found = snapshots.iter().filter_map(|(guid, _)| known.get(guid));
    found.map(|s| ExpectedSnapshot { guid: s.guid, createtxg: s.createtxg, creation: s.creation }).collect()
}

/// The destinations that must have a snapshot of this policy before it may be destroyed.
fn awaiting(policy: &Policy, entry: usize, name: &str, of: &Place) -> Vec<Place> {
    let Some(entry) = policy.datasets.get(entry).filter(|e| e.hostname == of.host) else { return Vec::new() };
    let Some(below) = of.dataset.below(&entry.dataset) else { return Vec::new() };
    let policies = entry.policies.iter().filter(|p| p.name == name && !p.prune_unsent);
    let place = |t: &Place| Some(Place { host: t.host.clone(), dataset: t.dataset.join(below).ok()? });
    policies.flat_map(|p| &p.sync_on).filter_map(place).collect()
}

/// The newest snapshot that a dataset has in common with each of its peers.
fn bases(of: &Place, peers: &[Place], awaiting: &[Place], inventory: &Inventory) -> Vec<CommonBase> {
    let Some(ours) = inventory.dataset(&of.host, &of.dataset) else { return Vec::new() };
    let base = |peer: &Place| {
        let theirs = inventory.dataset(&peer.host, &peer.dataset)?;
        // Both have the snapshot, or one has the snapshot and the other a bookmark of it.
        let has =
            |of: &DatasetInventory, guid| of.by_guid(guid).is_some() || of.bookmarks.iter().any(|b| b.guid == guid);
        let snapshots = ours.snapshots.iter().filter(|s| has(theirs, s.guid)).map(|s| (s.createtxg, s.guid));
        let bookmarks = ours.bookmarks.iter().filter(|b| theirs.by_guid(b.guid).is_some());
        let (_, guid) = snapshots.chain(bookmarks.map(|b| (b.createtxg, b.guid))).max()?;
        Some(CommonBase {
            host: peer.host.clone(),
            dataset: peer.dataset.clone(),
            guid,
            awaits: awaiting.contains(peer),
        })
    };
    peers.iter().filter_map(base).collect()
}

impl<Z: Zfs> Dispatcher<Z> {
    /// Sends one order to a host's agent, and returns its response. Facts are sent to `facts`, bytes are counted in
    /// `counter`.
    pub async fn dispatch(
        &self,
        policy: &Policy,
        host: &HostName,
        order: &DirectorsOrder,
        facts: FactSink,
        counter: Counter,
    ) -> Response {
        let mut retry = Retry::within(policy.retry_for);
        loop {
            // Retries send the same order: the agent recognizes its OrderUUID, and carries it out once.
            let error = match self.attempt(policy, host, order, &facts, &counter, &Contact::default()).await {
                Ok(response) => return response,
                Err(error) => error,
            };
            if let Err(failure) = self.pause(&mut retry, policy, host, order, &error).await {
                return *failure;
            }
        }
    }

    /// Asks a host's agent to list the host. Each attempt is a new order and begins with no facts, so that parts of two
    /// listings are never put together. An incomplete listing is repeated.
    pub async fn list(
        &self,
        policy: &Policy,
        host: &HostName,
        mut order: DirectorsOrder,
        contact: &Contact,
    ) -> (Response, Vec<Facts>) {
        let mut retry = Retry::within(if contact.patience.is_some() { Duration::ZERO } else { policy.retry_for });
        loop {
            order.order_uuid = OrderId(uuid::Uuid::now_v7());
            let attempt = |facts| {
                let order = &order;
                async move { self.attempt(policy, host, order, &facts, &Counter::default(), contact).await }
            };
            let (result, facts) = match with_facts(&LISTINGS, attempt).await {
                Ok(done) => done,
                Err(too_much) => (Err(too_much.into()), Vec::new()),
            };
            let error = match result {
                Ok(response) => match missing_datasets(&response, &facts) {
                    Some(reason) => anyhow::anyhow!("{host} answered with an incomplete listing: {reason}"),
                    None => match not_of(host, &facts) {
                        None => return (response, facts),
                        Some(reason) => anyhow::anyhow!(reason),
                    },
                },
                Err(error) => error,
            };
            if let Err(failure) = self.pause(&mut retry, policy, host, &order, &error).await {
                return (*failure, Vec::new());
            }
        }
    }

    /// Notes when the certificates of the director and of the agent within this process expire.
    pub(super) fn note_certificates(&self, seen: &SeenCertificates) {
        let until = |tls: &Option<Arc<Tls>>| tls.as_ref().and_then(|tls| tls.own().until);
        seen.note(&self.here, PeerRole::Director, until(&self.tls));
        if let (Ok(agent), Some(_)) = (&self.own, &self.tls) {
            seen.note(&self.here, PeerRole::Agent, until(&agent.tls));
        }
    }

    /// Waits before the next attempt after a temporary error. Otherwise returns the response for a host that did not
    /// answer.
    async fn pause(
        &self,
        retry: &mut Retry,
        policy: &Policy,
        host: &HostName,
        order: &DirectorsOrder,
        error: &anyhow::Error,
    ) -> Result<(), Box<Response>> {
        let is_temporary = error.downcast_ref().is_none_or(TransportError::is_temporary)
            && error.downcast_ref().is_none_or(WireError::is_temporary);
        let is_down = error.downcast_ref().is_some_and(|error| !matches!(error, TransportError::Tls { .. }));
        let mut error = format!("{error:#}");
        if is_down {
            let has_address = policy.hosts.get(host).is_some_and(|h| h.address.is_some());
            error = hint::join(error, Some(&self.way_to(host, has_address)));
        }
        let Some(pause) = retry.pause().filter(|_| is_temporary) else {
            let failure = Response::failure(Some(order.order_uuid), ResponseStatus::Unreachable, error);
            return Err(Box::new(Response { temporary: true, ..failure }));
        };
        log::debug!("{host}: retrying in {pause:.1?}: {error}");
        runtime::sleep(pause).await;
        Ok(())
    }

    /// What to check if a host cannot be reached.
    fn way_to(&self, host: &HostName, has_address: bool) -> String {
        if has_address || self.own.is_ok() && *host == self.here {
            return format!("check that zsync agent is running on {host}");
        }
        format!(
            "check that zsync agent is running on {host}, and the host's name in server.json: this host is called {}",
            self.here
        )
    }

    /// Sends one order to a host's agent once. An error means that the host did not answer.
    async fn attempt(
        &self,
        policy: &Policy,
        host: &HostName,
        order: &DirectorsOrder,
        facts: &FactSink,
        counter: &Counter,
        contact: &Contact,
    ) -> anyhow::Result<Response> {
        let address = policy.hosts.get(host).and_then(|h| h.address.clone());
        if address.is_none() && *host == self.here {
            return Ok(match &self.own {
                Ok(agent) => match CheckedOrder::try_from(order.clone()) {
                    Ok(order) => agent.carry_out(order, facts.clone(), counter.clone()).await,
                    Err(error) => error.response(order.order_uuid),
                },
                Err(reason) => Response::failure(Some(order.order_uuid), ResponseStatus::Refused, reason.clone()),
            });
        }
        let address = address.unwrap_or_else(|| format!("{host}:{AGENT_PORT}"));
        let dial = Dial { host, role: PeerRole::Agent, address: &address, tls: self.tls.as_deref() };
        over_tcp(dial, order, facts, counter, contact).await
    }

    /// Sends one order to a host's agent, and returns its response with all facts.
    pub async fn ask(
        &self,
        policy: &Policy,
        host: &HostName,
        order: &DirectorsOrder,
        counter: Counter,
    ) -> (Response, Vec<Facts>) {
        answered(order, |facts| self.dispatch(policy, host, order, facts, counter)).await
    }
}

/// Has an order carried out, and returns the response with all facts. It fails if there is too little memory for them.
pub(super) async fn answered<F: Future<Output = Response>>(
    order: &DirectorsOrder,
    run: impl FnOnce(FactSink) -> F,
) -> (Response, Vec<Facts>) {
    with_facts(&LISTINGS, run).await.unwrap_or_else(|error: TooMuchMemory| {
        let failure = Response::failure(Some(order.order_uuid), ResponseStatus::Busy, error.to_string());
        (Response { temporary: true, ..failure }, Vec::new())
    })
}

/// Runs something that reports facts, and returns them with its result. Gives up, and drops the facts, if they are the
/// most of all that arrive at the same time, and `memory` is not enough for all.
async fn with_facts<T, F: Future<Output = T>>(
    memory: &ListingMemory,
    run: impl FnOnce(FactSink) -> F,
) -> Result<(T, Vec<Facts>), TooMuchMemory> {
    let receiving = memory.receive();
    let (sender, received) = channel::bounded(16);
    let collecting = async {
        let mut all = Vec::new();
        while let Ok(facts) = received.recv().await {
            receiving.add(memory::of_facts(&facts));
            all.push(facts);
        }
        all
    };
    receiving.unless_too_much(future::zip(Box::pin(run(sender)), collecting)).await
}

/// Compares the number of datasets that arrived with the number in the response to a listing, and describes a
/// difference. An agent of an older version does not state the number.
fn missing_datasets(response: &Response, facts: &[Facts]) -> Option<String> {
    let expected = response.datasets.filter(|_| response.is_success)?;
    let arrived = facts.iter().filter_map(|fact| fact.listing.as_ref()).filter(|part| !part.continued).count() as u64;
    (arrived != expected).then(|| format!("{arrived} of {expected} datasets arrived"))
}

/// What is wrong if a listing is that of another host. Without this, everything on `host` would seem to be gone.
pub(super) fn not_of(host: &HostName, facts: &[Facts]) -> Option<String> {
    let other = facts.iter().filter_map(|fact| fact.listing.as_ref()).find(|listing| listing.host != *host)?;
    Some(hint::join(
        format!("the agent at the address of {host} is that of {}, not of {host}", other.host),
        Some(&format!("check the address of {host} in server.json or, if it has none there, in Consul's services")),
    ))
}

async fn over_tcp(
    dial: Dial<'_>,
    order: &DirectorsOrder,
    facts: &FactSink,
    counter: &Counter,
    contact: &Contact,
) -> anyhow::Result<Response> {
    let host = dial.host;
    let mut conn = dial.connect().await.map(Conn::from).map_err(|error| match error {
        TransportError::Tls { .. } => anyhow::Error::new(error),
        error => anyhow::Error::new(error).context(format!("cannot reach {host}")),
    })?;
    *contact.certificate.lock() = conn.identity.as_ref().and_then(|identity| identity.until);
    if let Some(patience) = contact.patience {
        conn.patience = conn.patience.min(patience);
    }
    conn.send(order).await?;
    loop {
        let line = conn.recv(conn.patience).await?;
        contact.alive.close();
        match line {
            AgentLine::Response(response) => {
                conn.check_answers(&response, order.order_uuid)?;
                conn.close().await;
                return Ok(response);
            }
            AgentLine::Progress { progress: Progress { bytes, expected, waits_for } } => {
                counter.set_waiting(waits_for);
                counter.add(bytes.saturating_sub(counter.get()));
                counter.expect(expected.unwrap_or_default().saturating_sub(counter.expected().unwrap_or_default()));
            }
            // Facts have no receiver only while the pass is being interrupted.
            AgentLine::Facts { facts: told } => drop(facts.send(*told).await),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::Side;

    #[test]
    fn huge_listing_is_given_up_and_others_arrive() {
        let part = |n: u64| Facts { destroyed: vec![("tank".parse().unwrap(), Guid(n)); 1000], ..Facts::default() };
        let memory = ListingMemory::new(20 * memory::of_facts(&part(0)));
        let sending = |count: u64| {
            let memory = &memory;
            async move {
                let run = |facts: FactSink| async move {
                    for n in 0..count {
                        drop(facts.send(part(n)).await);
                        future::yield_now().await;
                    }
                };
                with_facts(memory, run).await.map(|((), facts)| facts.len())
            }
        };
        let (endless, honest) = runtime::block_on(future::zip(sending(u64::MAX), async {
            let mut all = Vec::new();
            for _ in 0..100 {
                all.push(sending(9).await);
            }
            all
        }));
        assert!(endless.unwrap_err().to_string().contains("MiB"));
        assert!(honest.iter().all(|listed| *listed == Ok(9)), "{honest:?}");
    }

    #[test]
    fn fitting_splits_a_large_destroy_into_lines_that_fit() {
        let dataset: crate::model::DatasetName = format!("tank/{}", "d".repeat(100)).parse().unwrap();
        let snapshots: Vec<(Guid, SnapName)> =
            (0..20_000).map(|n| (Guid(n), format!("{}{n:05}", "s".repeat(140)).parse().unwrap())).collect();
        let order = Order::Destroy {
            entry: 0,
            host: "alpha".parse().unwrap(),
            dataset,
            side: Side::Source,
            snapshots: snapshots.clone(),
            keep_common_with: Vec::new(),
            skip_if_renamed: true,
            skip_if_cloned: true,
            policy: "sync".into(),
            reason: String::new(),
            bytes: 0,
        };
        let policy = r#"{ "datasets": [ { "hostname": "alpha", "dataset": "tank/d",
            "sync": { "prefix": "S", "creation": "@daily", "retention": ["1 in last day"] } } ] }"#;
        let policy = crate::config::parse_policy("server.json", policy).unwrap();
        let mut all = Vec::new();
        for part in fitting(order) {
            let line = serde_json::to_vec(&wire_order(&part, &policy, &Inventory::default())).unwrap();
            assert!(line.len() < LONGEST_LINE, "{}", line.len());
            let Order::Destroy { snapshots, .. } = part else { panic!() };
            all.extend(snapshots);
        }
        assert_eq!(all, snapshots);
    }
}
