//! Gathers what is known of a fleet without writing anything: from the hosts themselves, or without asking any agent,
//! from the catalog and this host's ZFS, or from an exported catalog instead of both.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::actions::health::{Finding, Health};
use crate::catalog::file::FileError;
use crate::catalog::{CatalogError, file, open};
use crate::fleet::certificates;
use crate::fleet::estimate::Answers;
use crate::fleet::live_status::{LiveStatus, StatusPlace};
use crate::fleet::obstacles::Obstacles;
use crate::fleet::{Dispatcher, ask_as_in_a_pass};
use crate::model::{
    CertificateExpiry, Counter, DatasetInventory, DatasetName, Guid, HostInventory, HostListing, HostName, Inventory,
    Marks,
};
use crate::policy::{Local, LocalDataset, Policy};
use crate::sys::{clock, runtime};
use crate::wire::Permit;
use crate::zfs::{Known, Zfs, ZfsError, ZfsRead};

/// Read buffer for a catalog file, in bytes.
const BUFFER: usize = 1 << 18;

/// Reads an exported catalog; `-` is standard input. `listed` is when its hosts count as listed.
pub fn from_file(path: &Path, listed: DateTime<Utc>) -> Result<Inventory, FileError> {
    if path == Path::new("-") {
        return file::read(BufReader::with_capacity(BUFFER, io::stdin().lock()), "(standard input)", listed);
    }
    let name = path.display().to_string();
    match File::open(path) {
        Ok(input) => file::read(BufReader::with_capacity(BUFFER, input), &name, listed),
        Err(source) => Err(FileError::Unreadable { file: name, source }),
    }
}

/// Reads the policy's catalog and the estimates of the latest plan. This host's part of the catalog is replaced with
/// what its ZFS has now. `local` is this host's `local.json`, if it exists.
pub async fn from_catalog(
    policy: &Policy,
    here: &HostName,
    local: Option<&Local>,
    zfs: &impl ZfsRead,
) -> anyhow::Result<(Inventory, Answers)> {
    let config = policy.catalog.clone();
    let known = runtime::blocking(move || {
        let catalog = open::reader(&config)?;
        Ok::<_, CatalogError>((catalog.inventory()?, catalog.estimates()?))
    });
    let (known, estimates) = known.await?;
    Ok((with_own_zfs(policy, here, local, known, zfs).await?, estimates))
}

/// What hosts hold, asked as a pass would, without writing anything.
pub struct Asked {
    /// The answers, with the marks of the catalog. A host that did not answer counts as not listed, and the catalog's
    /// part of it remains.
    pub inventory: Inventory,
    /// What stands in the way of orders.
    pub obstacles: Obstacles,
}

/// Asks the hosts of a policy for what they hold. `remembered` is the catalog's inventory. `absent` are hosts that need
/// not be asked, each with the reason. `asked` counts the answers.
pub async fn from_hosts<Z: Zfs>(
    policy: &Arc<Policy>,
    dispatcher: &Arc<Dispatcher<Z>>,
    remembered: Inventory,
    absent: BTreeMap<HostName, String>,
    asked: &Counter,
) -> Asked {
    let mut inventory = remembered;
    inventory.hosts.values_mut().for_each(|known| known.observed = None);
    let answers = ask_as_in_a_pass(policy, dispatcher, &absent, asked).await;
    let mut obstacles = Obstacles { unseen: absent, permits: BTreeMap::new() };
    for (host, answer) in answers {
        match answer {
            Ok((now, permits)) => {
                replace(&mut inventory, &host, now);
                if !permits.is_empty() {
                    let file = format!("local.json on {host}");
                    obstacles.permits.insert(host, Local::of_entries(file, permits.into_iter().map(entry)));
                }
            }
            Err(reason) => drop(obstacles.unseen.insert(host, reason)),
        }
    }
    Asked { inventory, obstacles }
}

/// The entry of local.json that a host has reported.
fn entry(permit: Permit) -> LocalDataset {
    let Permit { dataset, enable, slave, take, append_only, rollback, sources, destinations } = permit;
    LocalDataset { enable, sources, destinations, take, append_only, rollback, ..LocalDataset::new(dataset, slave) }
}

/// What is known of a fleet without asking any agent.
pub struct Overview {
    /// The catalog, in which this host's part is replaced with what its ZFS has now.
    pub inventory: Inventory,
    /// Hosts that the last pass could not list, and this host if its ZFS cannot be listed; each with the reason.
    pub unseen: BTreeMap<HostName, String>,
    /// What the director is doing, if it has written its status.
    pub live: Option<LiveStatus>,
    /// When certificates expire.
    pub certificates: Vec<CertificateExpiry>,
    /// When this host's list of revoked certificates expires, if it has one.
    pub list_until: Option<DateTime<Utc>>,
}

/// Gathers an overview. If this host's ZFS cannot be listed, the catalog's part of it is used.
pub async fn overview(
    policy: &Policy,
    here: &HostName,
    local: Option<&Local>,
    zfs: &impl ZfsRead,
) -> Result<Overview, CatalogError> {
    let catalog = open::inventory(&policy.catalog).await?;
    let live = LiveStatus::read(&StatusPlace::of(&policy.catalog), clock::now()).await;
    let mut unseen = live.as_ref().map(|live| live.unseen.clone()).unwrap_or_default();
    let certificates = certificates::known(policy, here, local, live.as_ref());
    let mut inventory = match with_own_zfs(policy, here, local, catalog.clone(), zfs).await {
        Ok(inventory) => inventory,
        Err(error) => {
            unseen.insert(here.clone(), error.to_string());
            catalog
        }
    };
    for (host, behind) in live.iter().flat_map(|live| &live.clocks_behind) {
        if let Some(known) = inventory.hosts.get_mut(host) {
            known.clock_behind = Some(Duration::from_secs(*behind));
        }
    }
    let list_until = certificates::list_until(policy, local);
    Ok(Overview { inventory, unseen, live, certificates, list_until })
}

/// Adds to findings what only this host knows: the tags of the holds on its snapshots, and its own name where a host
/// was never listed, whose name is then perhaps misspelt.
pub async fn add_own_knowledge(health: &mut Health, host_name: &HostName, zfs: &impl ZfsRead) {
    for finding in health.hosts.iter_mut().flat_map(|state| &mut state.findings) {
        if let Finding::NeverListed { here } = finding {
            *here = Some(host_name.clone());
        }
    }
    let here = host_name;
    for row in health.rows.iter_mut().filter(|row| row.host == *here) {
        for finding in &mut row.findings {
            if let Finding::HeldLong { snapshot, tags, .. } = finding
                && let Ok(holds) = zfs.holds(&row.dataset, std::slice::from_ref(snapshot)).await
            {
                *tags = holds.into_iter().map(|(_, tag)| tag).collect();
            }
        }
    }
}

/// Replaces this host's part of the inventory with what its ZFS has now, if orders to this host are carried out without
/// an agent. `local` is what the host permits, if that is known.
pub async fn with_own_zfs(
    policy: &Policy,
    here: &HostName,
    local: Option<&Local>,
    mut inventory: Inventory,
    zfs: &impl ZfsRead,
) -> Result<Inventory, ZfsError> {
    let mut roots = roots(policy, here);
    if roots.is_empty() || policy.hosts.get(here).is_some_and(|h| h.address.is_some()) {
        return Ok(inventory);
    }
    // As an agent does, list everything that zsync may touch: something may be left on datasets that the policy no longer
    // names.
    roots.extend(local.map(Local::roots).unwrap_or_default());
    roots.sort();
    let all = roots.clone();
    roots.retain(|root| !all.iter().any(|other| other != root && root.is_within(other)));
    roots.dedup();
    let HostListing { mut datasets, unlisted } = zfs.list_pools(&roots, &Known::default()).await?;
    if let Some(local) = local {
        // As in an agent's listing, only the datasets that zsync may touch remain.
        local.restrict(&mut datasets);
    }
    let datasets = datasets.into_iter().collect();
    let now = HostInventory { observed: Some(clock::now()), datasets, unlisted, clock_behind: None };
    replace(&mut inventory, here, now);
    Ok(inventory)
}

/// Replaces what was known of a host with a new listing. Marks, which only the catalog has, are carried over.
pub fn replace(inventory: &mut Inventory, host: &HostName, mut now: HostInventory) {
    let known = inventory.hosts.remove(host).unwrap_or_default();
    for (name, dataset) in &mut now.datasets {
        if let Some(remembered) = known.datasets.get(name) {
            carry_over_marks(dataset, remembered);
        }
    }
    let unlisted = known.datasets.into_iter().filter(|(name, _)| now.unlisted.contains_key(name.pool()));
    now.datasets.extend(unlisted.collect::<Vec<_>>());
    inventory.hosts.insert(host.clone(), now);
}

fn carry_over_marks(dataset: &mut DatasetInventory, remembered: &DatasetInventory) {
    let marks: BTreeMap<Guid, Marks> = remembered.snapshots.iter().map(|s| (s.guid, s.marks)).collect();
    for snapshot in &mut dataset.snapshots {
        if let Some(marks) = marks.get(&snapshot.guid) {
            snapshot.marks = *marks;
        }
    }
    dataset.not_written.clone_from(&remembered.not_written);
}

/// The datasets that a policy names on one host, as sources or as destinations.
fn roots(policy: &Policy, host: &HostName) -> Vec<DatasetName> {
    let sources = policy.datasets.iter().filter(|e| e.hostname == *host).map(|e| e.dataset.clone());
    let targets = policy.datasets.iter().flat_map(|e| &e.policies).flat_map(|p| &p.sync_on);
    let all: BTreeSet<DatasetName> =
        sources.chain(targets.filter(|t| t.host == *host).map(|t| t.dataset.clone())).collect();
    all.into_iter().collect()
}
