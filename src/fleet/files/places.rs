//! Finds out which datasets of this host have the files that are wanted.

use anyhow::bail;

use crate::actions::whereabouts;
use crate::fleet::known::{self, Overview};
use crate::model::{DatasetName, HostName, Place};
use crate::policy::{Local, Policy};
use crate::zfs::{Depth, Listed, ZfsRead};

/// A dataset of this host that is the wanted one or a copy of it, with all below it.
#[derive(Clone, Debug)]
pub struct Tree {
    /// The dataset.
    pub root: DatasetName,
    /// The datasets.
    pub datasets: Vec<Listed>,
}

/// Finds the places of a dataset: itself, if it is on this host, and if there is a policy, the places that it connects
/// with the dataset. Returns those on this host, at least one. `from` is the only place that is used, if there is one.
pub async fn reachable(
    policy: Option<&Policy>,
    (here, local): (&HostName, Option<&Local>),
    wanted: &Place,
    from: Option<&Place>,
    zfs: &impl ZfsRead,
) -> anyhow::Result<Vec<Tree>> {
    let mut places = vec![wanted.clone()];
    if let (Some(policy), None) = (policy, from) {
        let Overview { inventory, unseen, .. } = known::overview(policy, here, local, zfs).await?;
        let found = whereabouts(policy, &inventory, &unseen, wanted).places.into_iter();
        let existing = found.filter(|place| place.exists != Some(false));
        places.extend(existing.map(|place| Place { host: place.host, dataset: place.dataset }));
    }
    if let Some(from) = from {
        places = vec![from.clone()];
    }
    let mut seen = Vec::new();
    let (mut trees, mut elsewhere) = (Vec::new(), Vec::new());
    for place in places {
        if seen.contains(&place) {
            continue;
        }
        seen.push(place.clone());
        if place.host != *here {
            elsewhere.push(place);
            continue;
        }
        let datasets = zfs.list(std::slice::from_ref(&place.dataset), Depth::Recursive).await?;
        if !datasets.is_empty() {
            trees.push(Tree { root: place.dataset, datasets });
        }
    }
    if trees.is_empty() {
        match elsewhere.iter().find(|place| policy.is_some() || *place != wanted) {
            Some(other) => bail!(
                "cannot read the files of {wanted}: no copy of it is on this host ({here}); hint: run this command on {}, \
                 for {other}",
                other.host
            ),
            None => bail!(
                "cannot read the files of {wanted}: no copy of it is known on this host ({here}); hint: run this command \
                 on a host that has a copy, with the name of the copy, as zsync snapshots shows it"
            ),
        }
    }
    Ok(trees)
}
