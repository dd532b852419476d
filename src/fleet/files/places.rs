//! Finds out which datasets, on this host and on others, have the files that are wanted.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::bail;

use crate::actions::whereabouts;
use crate::fleet::files::known_here;
use crate::fleet::files::remote::{Refusal, Remote};
use crate::fleet::known::{self, Overview};
use crate::model::{DatasetName, HostName, Inventory, Place};
use crate::policy::{Local, Policy};
use crate::sys::runtime;
use crate::transport::tls::Tls;
use crate::zfs::{Depth, Listed, ZfsRead};

/// How many other hosts are asked at a time.
const CONCURRENT_HOSTS: usize = 8;

/// The host that wants files, and what it knows.
pub struct Seeker<'a, Z> {
    /// The host.
    pub here: &'a HostName,
    /// The policy, if there is one.
    pub policy: Option<&'a Policy>,
    /// What this host permits, if it says so.
    pub local: Option<&'a Local>,
    /// The certificate with which this host reads from others.
    pub tls: Option<Arc<Tls>>,
    /// The ZFS of this host.
    pub zfs: &'a Z,
}

/// A dataset that is the wanted one or a copy of it, with all below it.
#[derive(Clone)]
pub struct Tree {
    /// The dataset.
    pub root: DatasetName,
    /// How it is read; `None`: it is on this host.
    pub remote: Option<Arc<Remote>>,
    /// The datasets.
    pub datasets: Vec<Listed>,
}

/// What can be read.
#[derive(Default)]
pub struct Reached {
    /// The datasets: those on this host, then those on others. At least one.
    pub trees: Vec<Tree>,
    /// Which places let this host read nothing.
    pub notes: Vec<String>,
    /// Which places could not be asked.
    pub problems: Vec<String>,
}

/// Finds the places of a dataset: itself, and those that the policy connects with it, or without a policy those that
/// transfers have recorded in the ZFS of this host. Returns those that can be read, at least one. `from` is the only
/// place that is used, if there is one.
pub async fn reachable<Z: ZfsRead>(
    seeker: &Seeker<'_, Z>,
    wanted: &Place,
    from: Option<&Place>,
) -> anyhow::Result<Reached> {
    let Seeker { here, policy, tls, zfs, .. } = seeker;
    let mut reached = Reached::default();
    let places = match from {
        Some(from) => vec![from.clone()],
        None => places(seeker, wanted, &mut reached.problems).await?,
    };
    let (own, others): (Vec<Place>, Vec<Place>) = places.into_iter().partition(|place| place.host == **here);
    for Place { dataset: root, .. } in own {
        let datasets = zfs.list(std::slice::from_ref(&root), Depth::Recursive).await?;
        if !datasets.is_empty() {
            reached.trees.push(Tree { root, remote: None, datasets });
        }
    }
    let asking = others.into_iter().map(|root| {
        let address = policy.and_then(|policy| policy.hosts.get(&root.host)?.address.clone());
        let remote = Arc::new(Remote { root, address, here: (*here).clone(), tls: tls.clone() });
        async move {
            let listed = remote.list().await;
            (remote, listed)
        }
    });
    for (remote, listed) in runtime::side_by_side(CONCURRENT_HOSTS, asking).await {
        let root = remote.root.dataset.clone();
        match listed {
            Ok(datasets) => reached.trees.push(Tree { root, remote: Some(remote), datasets }),
            Err(Refusal { reason, is_forbidden }) => {
                let text = format!("cannot read the files of {}: {reason}", remote.root);
                if is_forbidden { reached.notes.push(text) } else { reached.problems.push(text) }
            }
        }
    }
    if reached.trees.is_empty() {
        let tried = reached.notes.iter().chain(&reached.problems).map(String::as_str).collect::<Vec<_>>();
        match (tried.is_empty(), policy) {
            (false, _) => bail!("{}", tried.join("\n")),
            (true, Some(_)) => bail!(
                "cannot read the files of {wanted}: neither it nor any copy of it exists, as far as the policy and this host \
                 ({here}) know; hint: name a copy with --from"
            ),
            (true, None) => bail!(
                "cannot read the files of {wanted}: no copy of it is known on this host ({here}); hint: name a copy with \
                 --from, as zsync snapshots shows it on the director"
            ),
        }
    }
    Ok(reached)
}

/// The places that may have the files, without duplicates.
async fn places<Z: ZfsRead>(
    seeker: &Seeker<'_, Z>,
    wanted: &Place,
    problems: &mut Vec<String>,
) -> anyhow::Result<Vec<Place>> {
    let Seeker { here, policy, local, zfs, .. } = seeker;
    let mut places = vec![wanted.clone()];
    match policy {
        Some(policy) => {
            // Where datasets are sent is in the policy. The catalog only says which of them exist.
            let (inventory, unseen) = match known::overview(policy, here, *local, *zfs).await {
                Ok(Overview { inventory, unseen, .. }) => (inventory, unseen),
                Err(error) => {
                    log::info!("searching without the catalog: {error}");
                    let own = known::with_own_zfs(policy, here, *local, Inventory::default(), *zfs).await;
                    (own.unwrap_or_default(), Default::default())
                }
            };
            let found = whereabouts(policy, &inventory, &unseen, wanted).places.into_iter();
            let existing = found.filter(|place| place.exists != Some(false));
            places.extend(existing.map(|place| Place { host: place.host, dataset: place.dataset }));
        }
        None => match known_here::places(here, wanted, *local, *zfs).await {
            Ok(known) => places.extend(known),
            Err(error) => problems.push(format!("cannot find out where {wanted} was sent: {error}")),
        },
    }
    let mut seen = BTreeSet::new();
    places.retain(|place| seen.insert(place.clone()));
    Ok(places)
}
