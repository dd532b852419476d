//! Implements the operations that only read: listings and estimates.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::tags::set_holds;
use crate::model::{DatasetName, HostListing, KeyState, SnapName};
use crate::zfs::fake::pools::{Fake, failed};
use crate::zfs::fake::token::Token;
use crate::zfs::{Depth, History, Known, Listed, Resumable, SendFrom, SendSpec, ZfsError, ZfsRead, argv};

impl ZfsRead for Fake {
    async fn list(&self, roots: &[DatasetName], depth: Depth) -> Result<Vec<Listed>, ZfsError> {
        let mut pools = self.pools();
        if let Some(error) = pools.fail("list") {
            return Err(error);
        }
        let wanted = |name: &DatasetName| {
            roots.iter().any(|root| match depth {
                Depth::Recursive => name.is_within(root),
                Depth::Around => root.is_within(name),
                Depth::Only | Depth::Bare => name == root,
            })
        };
        let mut listed = Vec::new();
        for name in pools.datasets.keys().filter(|name| wanted(name) && !pools.away.contains_key(name.pool())) {
            let Some(mut inventory) = pools.inventory(name) else { continue };
            if depth == Depth::Bare || !roots.contains(name) && depth == Depth::Around {
                inventory.snapshots.clear();
                inventory.bookmarks.clear();
            }
            listed.push((name.clone(), inventory));
        }
        Ok(listed)
    }

    async fn list_pools(&self, roots: &[DatasetName], _: &Known) -> Result<HostListing, ZfsError> {
        let away = self.pools().away.clone();
        let is_away = |name: &DatasetName| away.contains_key(name.pool());
        let pools: BTreeSet<&str> = roots.iter().filter(|root| is_away(root)).map(DatasetName::pool).collect();
        let unlisted = pools.into_iter().map(|pool| (pool.to_owned(), away[pool].clone())).collect();
        let listed: Vec<DatasetName> = roots.iter().filter(|root| !is_away(root)).cloned().collect();
        let mut datasets = self.list(&listed, Depth::Recursive).await?;
        let pools = self.pools();
        for (name, found) in &mut datasets {
            let held: BTreeSet<&SnapName> = found.held_by_unknown().map(|s| &s.name).collect();
            let on = pools.holds.iter().filter(|(dataset, snapshot, _)| dataset == name && held.contains(snapshot));
            let holds = on.map(|(_, snapshot, tag)| (snapshot.clone(), tag.clone())).collect();
            set_holds(found, holds);
        }
        drop(pools);
        Ok(HostListing { datasets, unlisted })
    }

    async fn snapshots(&self, dataset: &DatasetName) -> Result<Option<History>, ZfsError> {
        let listed = self.list(std::slice::from_ref(dataset), Depth::Only).await?;
        Ok(listed.into_iter().next().map(|(_, found)| (found.snapshots, found.bookmarks)))
    }

    async fn cloned(&self, dataset: &DatasetName, names: &[SnapName]) -> Result<Vec<SnapName>, ZfsError> {
        let pools = self.pools();
        Ok(names.iter().filter(|name| pools.has_clones(dataset, name)).cloned().collect())
    }

    async fn holds(&self, dataset: &DatasetName, names: &[SnapName]) -> Result<Vec<(SnapName, String)>, ZfsError> {
        let pools = self.pools();
        let on = |(d, n, _): &&(DatasetName, SnapName, String)| d == dataset && names.contains(n);
        let holds: Vec<_> = pools.holds.iter().filter(on).map(|(_, name, tag)| (name.clone(), tag.clone())).collect();
        let call = "holds -H";
        let missing = names.iter().filter_map(|name| pools.snapshot(call, dataset, name).err());
        let mut words: Vec<String> = missing.map(|error| error.stderr).collect();
        if words.is_empty() {
            return Ok(holds);
        }
        if holds.is_empty() {
            words.push("no datasets available".to_owned());
        }
        Err(failed(call, words.join("\n")))
    }

    async fn written_since(
        &self,
        datasets: &[DatasetName],
        name: &SnapName,
    ) -> Result<Vec<(DatasetName, u64)>, ZfsError> {
        let pools = self.pools();
        let mut all = Vec::new();
        for dataset in datasets {
            let inventory = pools.dataset("get written@", dataset)?;
            if !inventory.snapshots.iter().any(|s| s.name == *name) {
                continue;
            }
            let newer = inventory.snapshots.iter().skip_while(|s| s.name != *name).skip(1);
            let between: u64 = newer.filter_map(|s| pools.written_before.get(&s.guid)).sum();
            all.push((dataset.clone(), between + inventory.written.unwrap_or(0)));
        }
        Ok(all)
    }

    async fn resumable(&self, token: &str) -> Result<Resumable, ZfsError> {
        let call = argv::resumable(token).join(" ");
        let pools = self.pools();
        let (token, dataset) = pools.resume(token).map_err(|words| failed(&call, words))?;
        Ok(Resumable { dataset, guid: token.toguid, raw: token.rawok })
    }

    async fn properties(&self, dataset: &DatasetName) -> Result<BTreeMap<String, String>, ZfsError> {
        let pools = self.pools();
        pools.dataset("get all", dataset)?;
        Ok(pools.properties.get(dataset).cloned().unwrap_or_default())
    }

    async fn arrivals(&self, dataset: &DatasetName) -> Result<BTreeMap<SnapName, String>, ZfsError> {
        let pools = self.pools();
        let snapshots = pools.dataset("get zsync:arrived", dataset)?.snapshots.iter();
        let value =
            |s: &crate::model::Snapshot| Some((s.name.clone(), pools.arrived.get(&(dataset.clone(), s.guid))?.clone()));
        Ok(snapshots.filter_map(value).collect())
    }

    async fn key_users(&self, root: &DatasetName) -> Result<Vec<DatasetName>, ZfsError> {
        let pools = self.pools();
        pools.dataset("list -o encryptionroot", root)?;
        let users = pools.datasets.iter().filter(|(_, found)| found.key_from.as_ref() == Some(root));
        Ok(users.map(|(name, _)| name.clone()).collect())
    }

    async fn keys(&self, root: &DatasetName) -> Result<BTreeMap<DatasetName, KeyState>, ZfsError> {
        let pools = self.pools();
        pools.dataset("list -o keystatus", root)?;
        let near = pools.datasets.keys().filter(|name| name.is_within(root) || root.is_within(name));
        Ok(near.filter_map(|name| Some((name.clone(), pools.key(name)?))).collect())
    }

    async fn size_of_send(&self, spec: &SendSpec) -> Result<Option<u64>, ZfsError> {
        let call = argv::size_of_send(spec).join(" ");
        let pools = self.pools();
        let (dataset, to, from) = match spec {
            SendSpec::Snapshot { dataset, to, from, .. } => (dataset, to, from),
            SendSpec::Resume { token } => {
                let (Token { toguid, fromguid, bytes, .. }, dataset) =
                    pools.resume(token).map_err(|words| failed(&call, words))?;
                let inventory = pools.dataset(&call, &dataset)?;
                let to = inventory.snapshots.iter().find(|s| s.guid == toguid);
                return Ok(to.map(|to| pools.length(inventory, fromguid, to).saturating_sub(bytes)));
            }
        };
        let (inventory, _, last) = match pools.range(&call, dataset, to, from) {
            Err(error) if matches!(from, SendFrom::Bookmark(_)) && error.stderr.starts_with("warning") => {
                return Err(failed(&call, format!("warning: cannot send '{}': No such process", dataset.at(to))));
            }
            found => found?,
        };
        let first = match from {
            SendFrom::Nothing => 0,
            SendFrom::Snapshot(base) | SendFrom::Before(base) => {
                inventory.snapshots.iter().position(|s| s.name == *base).map_or(0, |at| at + 1)
            }
            SendFrom::Bookmark(_) | SendFrom::Origin(..) => return Ok(None),
        };
        let written = inventory.snapshots[first..=last].iter().filter_map(|s| pools.written_before.get(&s.guid));
        Ok(Some(written.sum()))
    }

    async fn size_of_destroy(&self, dataset: &DatasetName, names: &[SnapName]) -> Result<Option<u64>, ZfsError> {
        let pools = self.pools();
        let inventory = pools.dataset("destroy -nvp", dataset)?;
        let victims: Vec<_> = inventory.snapshots.iter().filter(|s| names.contains(&s.name)).collect();
        if victims.is_empty() {
            return Err(failed("destroy -nvp", "could not find any snapshots to destroy; check snapshot names."));
        }
        Ok(Some(victims.into_iter().filter_map(|s| pools.written_before.get(&s.guid)).sum()))
    }

    async fn check_version(&self) -> Result<String, ZfsError> {
        Ok("zfs-fake".into())
    }
}
