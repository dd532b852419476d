//! What there is to know without asking anybody: the catalog, this host's ZFS, or a file instead of both.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;

use chrono::{DateTime, Utc};

use crate::catalog::file::FileError;
use crate::catalog::{CatalogError, file, open};
use crate::cli::exit::Error;
use crate::director::{LiveStatus, Place};
use crate::fleet::estimate::Answers;
use crate::model::{DatasetInventory, DatasetName, Guid, HostInventory, HostName, Inventory, Marks};
use crate::plan::Settings;
use crate::policy::{Local, Policy};
use crate::sys::{clock, runtime};
use crate::zfs::{Depth, ZfsError, ZfsRead};

/// How much of a catalog file is read at once.
const BUFFER: usize = 1 << 18;

/// An exported catalog.
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

/// The policy's catalog, and for this host what its ZFS has now; and what was estimated for the latest plan.
pub async fn from_catalog(
    settings: &Settings,
    policy: &Policy,
    zfs: &impl ZfsRead,
) -> Result<(Inventory, Answers), Error> {
    let config = policy.catalog.clone();
    let known = runtime::blocking(move || {
        let catalog = open::reader(&config)?;
        Ok::<_, CatalogError>((catalog.inventory()?, catalog.estimates()?))
    });
    let (known, estimates) = known.await.map_err(Error::unable)?;
    let inventory = with_own_zfs(policy, &settings.here, settings.opened.as_ref(), known, zfs).await;
    Ok((inventory.map_err(Error::unable)?, estimates))
}

/// What is known to somebody who only looks on.
pub struct Overview {
    /// What the catalog remembers, and for this host what its ZFS has now.
    pub inventory: Inventory,
    /// Hosts that the last pass could not look at, and this one where its ZFS cannot be asked; each with the reason.
    pub unseen: BTreeMap<HostName, String>,
    /// What the director is doing.
    pub live: Option<LiveStatus>,
}

/// Looks on. Where this host's ZFS cannot be asked, the catalog's word counts.
pub async fn glance(
    policy: &Policy,
    here: &HostName,
    opened: Option<&Local>,
    zfs: &impl ZfsRead,
) -> Result<Overview, CatalogError> {
    let catalog = open::inventory(&policy.catalog).await?;
    let live = LiveStatus::read(&Place::of(&policy.catalog), clock::now()).await;
    let mut unseen = live.as_ref().map(|live| live.unseen.clone()).unwrap_or_default();
    let inventory = match with_own_zfs(policy, here, opened, catalog.clone(), zfs).await {
        Ok(inventory) => inventory,
        Err(error) => {
            unseen.insert(here.clone(), error.to_string());
            catalog
        }
    };
    Ok(Overview { inventory, unseen, live })
}

/// What this host's ZFS has now in the place of what was known of it, where orders for it are carried out without an
/// agent. `opened` is what it lets in, if that is known.
pub async fn with_own_zfs(
    policy: &Policy,
    here: &HostName,
    opened: Option<&Local>,
    mut inventory: Inventory,
    zfs: &impl ZfsRead,
) -> Result<Inventory, ZfsError> {
    let roots = roots(policy, here);
    if roots.is_empty() || policy.hosts.get(here).is_some_and(|h| h.address.is_some()) {
        return Ok(inventory);
    }
    let mut listed = zfs.list(&roots, Depth::Recursive).await?;
    if let Some(local) = opened {
        // What this host's agent may not touch, it does not tell of either.
        listed.retain(|(name, _)| local.permission_to_take(name).is_ok());
    }
    let now = HostInventory { observed: Some(clock::now()), datasets: listed.into_iter().collect() };
    renew(&mut inventory, here, now);
    Ok(inventory)
}

/// Puts what a host holds now in the place of what was known of it.
pub fn renew(inventory: &mut Inventory, host: &HostName, mut now: HostInventory) {
    let known = inventory.hosts.remove(host).unwrap_or_default();
    for (name, dataset) in &mut now.datasets {
        if let Some(remembered) = known.datasets.get(name) {
            remember(dataset, remembered);
        }
    }
    inventory.hosts.insert(host.clone(), now);
}

/// Marks are the catalog's alone.
fn remember(dataset: &mut DatasetInventory, remembered: &DatasetInventory) {
    let marks: BTreeMap<Guid, Marks> = remembered.snapshots.iter().map(|s| (s.guid, s.marks)).collect();
    for snapshot in &mut dataset.snapshots {
        if let Some(marks) = marks.get(&snapshot.guid) {
            snapshot.marks = *marks;
        }
    }
    dataset.not_written.clone_from(&remembered.not_written);
}

/// The datasets of a policy on one host, as sources and as destinations.
fn roots(policy: &Policy, host: &HostName) -> Vec<DatasetName> {
    let sources = policy.datasets.iter().filter(|e| e.hostname == *host).map(|e| e.dataset.clone());
    let targets = policy.datasets.iter().flat_map(|e| &e.policies).flat_map(|p| &p.sync_on);
    let all: BTreeSet<DatasetName> =
        sources.chain(targets.filter(|t| t.host == *host).map(|t| t.dataset.clone())).collect();
    all.into_iter().collect()
}
