//! Finds the places of a dataset without any policy: from what transfers have left in the ZFS of this host.

use crate::model::{DatasetName, HostName, Place, SentTo, SourceRecord, tags};
use crate::policy::Local;
use crate::zfs::{Depth, Listed, ZfsError, ZfsRead};

/// The places of a dataset that this host knows of: where it was sent, if it is on this host, and its copies on this
/// host, if it is on another one. A place may be gone.
pub(super) async fn places(
    here: &HostName,
    wanted: &Place,
    local: Option<&Local>,
    zfs: &impl ZfsRead,
) -> Result<Vec<Place>, ZfsError> {
    if wanted.host == *here {
        return sent_to(&wanted.dataset, zfs).await;
    }
    let copies = copies(wanted, &local.map(Local::roots).unwrap_or_default(), zfs).await?;
    Ok(copies.into_iter().map(|dataset| Place { host: here.clone(), dataset }).collect())
}

/// Where a dataset was sent, or if it does not exist any more, the dataset above it.
async fn sent_to(dataset: &DatasetName, zfs: &impl ZfsRead) -> Result<Vec<Place>, ZfsError> {
    let mut at = Some(dataset.clone());
    while let Some(above) = at {
        let listed = zfs.list(std::slice::from_ref(&above), Depth::Only).await?;
        let Some((_, found)) = listed.into_iter().find(|(name, _)| *name == above) else {
            at = above.parent();
            continue;
        };
        let tags = zfs.holds(&above, &found.held()).await?.into_iter().map(|(_, tag)| tag);
        let of_holds = tags.filter_map(|tag| SentTo::of_hold(&tag));
        let cursors = found.bookmarks.iter().rev().filter_map(|b| SentTo::of_cursor(&b.name).into_iter().next());
        let below = dataset.below(&above).unwrap_or_default();
        let mut places: Vec<Place> = Vec::new();
        for place in cursors.chain(of_holds).filter_map(|to| place_of(&to, below)) {
            if !places.contains(&place) {
                places.push(place);
            }
        }
        if !places.is_empty() {
            return Ok(places);
        }
        at = above.parent();
    }
    Ok(Vec::new())
}

/// The place that a destination names, or one below it.
fn place_of(to: &SentTo, below: &str) -> Option<Place> {
    if to.is_uuid() {
        return None;
    }
    let text = to.to_string();
    let (host, dataset) = text.split_once(':')?;
    let dataset: DatasetName = dataset.parse().ok()?;
    Some(Place { host: host.parse().ok()?, dataset: dataset.join(below).ok()? })
}

/// The copies on this host that say that they come from a dataset, or from one above it.
async fn copies(wanted: &Place, roots: &[DatasetName], zfs: &impl ZfsRead) -> Result<Vec<DatasetName>, ZfsError> {
    if roots.is_empty() {
        return Ok(Vec::new());
    }
    let mut found: Vec<(usize, DatasetName)> = Vec::new();
    for (dataset, _) in zfs.list(roots, Depth::Recursive).await?.iter().filter(is_copy) {
        let recorded = zfs.properties(dataset).await?.remove(tags::PROPERTIES);
        let Some(source) = recorded.and_then(|value| SourceRecord::parse(&value)).and_then(|record| record.source)
        else {
            continue;
        };
        if source.host != wanted.host {
            continue;
        }
        let copy = wanted.dataset.below(&source.dataset).and_then(|below| dataset.join(below).ok());
        found.extend(copy.map(|copy| (source.dataset.as_str().len(), copy)));
    }
    // The record that is most about this dataset.
    let best = found.iter().map(|(length, _)| *length).max();
    found.retain(|(length, _)| Some(*length) == best);
    Ok(found.into_iter().map(|(_, dataset)| dataset).collect())
}

fn is_copy((_, found): &&Listed) -> bool {
    found.flags.is_some()
}
