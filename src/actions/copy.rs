//! Decides what `zsync copy` sends: a dataset, or a tree, to another place, without a policy.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use glob::Pattern;
use serde::Serialize;

use crate::actions::route::ranks;
use crate::actions::steps::{Base, Step, Transfer, steps};
use crate::model::{DatasetInventory, DatasetName, Guid, Place, SnapName, Snapshot, hint};
use crate::policy::Exclude;

/// The datasets of a tree, as listed.
pub type Tree = BTreeMap<DatasetName, DatasetInventory>;

/// What is to be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyWanted {
    /// The dataset to copy.
    pub from: Place,
    /// Its copy.
    pub to: Place,
    /// Whether everything below it is copied as well.
    pub is_recursive: bool,
    /// What is left out below it.
    pub exclude: Exclude,
    /// The newest snapshot that one of these patterns matches is copied, with all before it; empty: the newest of all.
    pub snapshots: Vec<Pattern>,
}

/// One dataset to copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CopyStep {
    /// The dataset.
    pub from: Place,
    /// Its copy.
    pub to: Place,
    /// The snapshot that the copy gets, with all between.
    pub snapshot: SnapName,
    /// The identity of the snapshot.
    pub guid: Guid,
    /// When the snapshot was taken.
    pub creation: DateTime<Utc>,
    /// The newest snapshot that both have; `None` if the copy begins.
    pub since: Option<SnapName>,
    /// The identity of the newest snapshot that both have.
    #[serde(skip)]
    pub common: Option<Guid>,
    /// The token of an interrupted receive at the copy.
    #[serde(skip)]
    pub resume_token: Option<String>,
    /// For a clone whose copy begins: the copy of the dataset that it was cloned from.
    #[serde(skip)]
    pub origin: Option<DatasetName>,
    /// The sources that have to be copied before this one.
    #[serde(skip)]
    pub waits_for: Vec<DatasetName>,
}

/// How to copy a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyPlan {
    /// The datasets to copy, each after those that it waits for.
    pub steps: Vec<CopyStep>,
    /// The copies that have everything already.
    pub current: Vec<Place>,
    /// What is not copied although nothing is wrong with it, in sentences.
    pub left_out: Vec<String>,
    /// Why datasets cannot be copied, each with a way out.
    pub problems: Vec<String>,
}

/// Decides what to copy, from what is at both ends. Nothing at the destination is ever overwritten or rolled back.
#[must_use]
pub fn copy(ours: &Tree, theirs: &Tree, wanted: &CopyWanted) -> CopyPlan {
    let CopyWanted { from, to, is_recursive, exclude, .. } = wanted;
    let mut plan = CopyPlan::default();
    if !ours.contains_key(&from.dataset) {
        let hint = format!("see what there is with: zfs list -r {}", hint::word(&from.dataset.pool()));
        plan.problems.push(hint::join(format!("cannot copy {from}: it does not exist"), Some(&hint)));
        return plan;
    }
    if from.host == to.host && (from.dataset.is_within(&to.dataset) || to.dataset.is_within(&from.dataset)) {
        plan.problems.push(format!("cannot copy {from} to {to}: one contains the other"));
        return plan;
    }
    // The copy of each dataset, also of those that need nothing: they may be origins.
    let mut copies: BTreeMap<&DatasetName, DatasetName> = BTreeMap::new();
    for name in ours.keys() {
        let Some(below) = name.below(&from.dataset) else { continue };
        if !below.is_empty() && (!is_recursive || exclude.covers(below)) {
            continue;
        }
        match to.dataset.join(below) {
            Ok(copy) => drop(copies.insert(name, copy)),
            Err(error) => plan.problems.push(format!("cannot copy {}:{name}: {error}", from.host)),
        }
    }
    let mut planned = BTreeMap::new();
    for (&name, copy) in &copies {
        let inventory = &ours[name];
        let source = Place { host: from.host.clone(), dataset: name.clone() };
        let copy = Place { host: to.host.clone(), dataset: copy.clone() };
        let there = theirs.get(&copy.dataset);
        let Some(snapshot) = newest(inventory, &wanted.snapshots) else {
            let is_root = name == &from.dataset;
            if is_root && !is_recursive {
                plan.problems.push(no_snapshot(&source, wanted));
            } else {
                let which = if wanted.snapshots.is_empty() { "has no snapshot" } else { "has no such snapshot" };
                plan.left_out.push(format!("{source} is left out: it {which}"));
            }
            continue;
        };
        let origin = inventory.origin.as_ref().filter(|_| there.is_none_or(|there| there.snapshots.is_empty()));
        let origin = origin.and_then(|origin| copies.get_key_value(&origin.dataset));
        match step(&source, &copy, inventory, there, snapshot) {
            Ok(Some(mut step)) => {
                step.origin = origin.map(|(_, copy)| copy.clone());
                step.waits_for = origin.map(|(name, _)| (*name).clone()).into_iter().chain(name.ancestors()).collect();
                planned.insert(name.clone(), step);
            }
            Ok(None) => plan.current.push(copy),
            Err(problem) => plan.problems.push(problem),
        }
    }
    let waiting = planned.iter().map(|(name, step)| (name.clone(), step.waits_for.clone())).collect();
    let ranks = ranks(&waiting);
    plan.steps = planned.into_values().collect();
    plan.steps.sort_by_key(|step| ranks.get(&step.from.dataset).copied().unwrap_or_default());
    if plan.steps.is_empty() && plan.current.is_empty() && plan.problems.is_empty() {
        plan.problems.push(no_snapshot(from, wanted));
    }
    plan
}

/// The newest snapshot that is to be copied.
fn newest<'a>(of: &'a DatasetInventory, patterns: &[Pattern]) -> Option<&'a Snapshot> {
    let is_wanted = |s: &&Snapshot| patterns.is_empty() || patterns.iter().any(|p| p.matches(s.name.as_str()));
    of.snapshots.iter().rev().find(is_wanted)
}

fn no_snapshot(source: &Place, wanted: &CopyWanted) -> String {
    if wanted.snapshots.is_empty() {
        let hint = "take one with --take, as in --take backup";
        return hint::join(format!("cannot copy {source}: it has no snapshot"), Some(hint));
    }
    let patterns: Vec<&str> = wanted.snapshots.iter().map(Pattern::as_str).collect();
    let hint = format!("see them with: zfs list -t snapshot {}", hint::word(&source.dataset));
    hint::join(format!("cannot copy {source}: no snapshot of it matches {}", patterns.join(" or ")), Some(&hint))
}

/// How to copy one dataset; `None` if its copy has the snapshot.
fn step(
    from: &Place,
    to: &Place,
    ours: &DatasetInventory,
    theirs: Option<&DatasetInventory>,
    snapshot: &Snapshot,
) -> Result<Option<CopyStep>, String> {
    let there = theirs.map(|theirs| theirs.snapshots.as_slice()).unwrap_or_default();
    let transfer =
        steps(&to.dataset, &ours.snapshots, &ours.bookmarks, there, None, None, snapshot.guid).map_err(|conflict| {
            let away = hint::word(&format!("{}_old", to.dataset));
            let hint = format!(
                "copy to another place, or rename what is there on {} (zfs rename {} {away})",
                to.host,
                hint::word(&to.dataset)
            );
            hint::join(format!("cannot copy {from} to {to}: {conflict}"), Some(&hint))
        })?;
    let Transfer::Steps { steps } = transfer else { return Ok(None) };
    let base = steps.into_iter().find_map(|step| match step {
        Step::Incremental { from: Base::Snapshot(base) | Base::Bookmark(base), .. } => Some(base),
        _ => None,
    });
    // In the first copy of a dataset with several snapshots, the second step continues from the first one.
    let base = base.filter(|base| there.iter().any(|snapshot| snapshot.guid == base.guid));
    Ok(Some(CopyStep {
        from: from.clone(),
        to: to.clone(),
        snapshot: snapshot.name.clone(),
        guid: snapshot.guid,
        creation: snapshot.creation,
        since: base.as_ref().map(|base| base.name.clone()),
        common: base.map(|base| base.guid),
        resume_token: theirs.and_then(|theirs| theirs.resume_token.clone()),
        origin: None,
        waits_for: Vec::new(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Origin;

    fn snapshot(text: &str) -> Snapshot {
        let guid = text.bytes().fold(7, |sum, byte| sum * 31 + u64::from(byte));
        Snapshot {
            name: text.split('~').next().unwrap().parse().unwrap(),
            guid: Guid(guid),
            createtxg: 1,
            creation: DateTime::UNIX_EPOCH,
            userrefs: 0,
            has_clones: false,
            used: 0,
            marks: Default::default(),
        }
    }

    /// `tank/a:x,y` is tank/a with the snapshots x and y; `tank/a<tank/b@x:y` is a clone. `x~2` is another snapshot of
    /// the name x.
    fn tree(text: &str) -> Tree {
        let dataset = |word: &str| {
            let (head, snapshots) = word.split_once(':').unwrap();
            let (name, origin) = head.split_once('<').map_or((head, None), |(name, origin)| (name, Some(origin)));
            let origin = origin.map(|origin| {
                let (dataset, name) = origin.split_once('@').unwrap();
                Origin { dataset: dataset.parse().unwrap(), name: name.parse().unwrap() }
            });
            let mut snapshots: Vec<Snapshot> = snapshots.split(',').filter(|s| !s.is_empty()).map(snapshot).collect();
            (1..).zip(&mut snapshots).for_each(|(txg, snapshot)| snapshot.createtxg = txg);
            (name.parse().unwrap(), DatasetInventory { snapshots, origin, ..DatasetInventory::default() })
        };
        text.split_whitespace().map(dataset).collect()
    }

    fn wanted(from: &str, to: &str) -> CopyWanted {
        let place = |text: &str| {
            let (host, dataset) = text.split_once(':').unwrap();
            Place { host: host.parse().unwrap(), dataset: dataset.parse().unwrap() }
        };
        CopyWanted {
            from: place(from),
            to: place(to),
            is_recursive: true,
            exclude: Exclude::default(),
            snapshots: Vec::new(),
        }
    }

    /// What is decided, in one line.
    fn shown(ours: &str, theirs: &str, wanted: &CopyWanted) -> String {
        let CopyPlan { steps, current, left_out, problems } = copy(&tree(ours), &tree(theirs), wanted);
        let step = |CopyStep { to, snapshot, since, origin, .. }: CopyStep| {
            let since = since.map_or_else(|| "full".to_owned(), |since| format!("since {since}"));
            let origin = origin.map(|origin| format!(" of {origin}")).unwrap_or_default();
            format!("{}@{snapshot} {since}{origin}", to.dataset)
        };
        let current = current.iter().map(|place| format!("{} is current", place.dataset));
        steps.into_iter().map(step).chain(current).chain(left_out).chain(problems).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn tree_is_copied_parents_and_origins_first() {
        let all = wanted("a:tank", "b:pool/x");
        assert_eq!(shown("tank:s", "", &all), "pool/x@s full");
        assert_eq!(shown("tank:r,s tank/u:r", "pool/x:r", &all), "pool/x@s since r; pool/x/u@r full");
        assert_eq!(shown("tank:s tank/u:r", "pool/x:s", &all), "pool/x/u@r full; pool/x is current");
        let clone = "tank:s tank/c<tank/z@s:t tank/z:s";
        assert_eq!(shown(clone, "", &all), "pool/x@s full; pool/x/z@s full; pool/x/c@t full of pool/x/z");
        assert_eq!(shown("tank:s tank/u:", "", &all), "pool/x@s full; a:tank/u is left out: it has no snapshot");
    }

    #[test]
    fn selection_chooses_datasets_and_snapshots() {
        let all = wanted("a:tank", "b:pool/x");
        let one = CopyWanted { is_recursive: false, ..all.clone() };
        assert_eq!(shown("tank:s tank/u:r", "", &one), "pool/x@s full");
        let some = CopyWanted { exclude: Exclude::new(vec![Pattern::new("u*").unwrap()]), ..all.clone() };
        assert_eq!(shown("tank:s tank/u:r tank/v:q", "", &some), "pool/x@s full; pool/x/v@q full");
        let daily = CopyWanted { snapshots: vec![Pattern::new("*_daily").unwrap()], ..all };
        assert_eq!(shown("tank:1_daily,2_hourly", "", &daily), "pool/x@1_daily full");
        assert_eq!(
            shown("tank:2_hourly", "", &daily),
            "a:tank is left out: it has no such snapshot; cannot copy a:tank: no snapshot of it matches *_daily; hint: \
             see them with: zfs list -t snapshot tank"
        );
    }

    #[test]
    fn what_cannot_be_copied_says_why() {
        let all = wanted("a:tank", "b:pool/x");
        assert!(shown("other:s", "", &all).starts_with("cannot copy a:tank: it does not exist; hint: "));
        assert!(
            shown("tank:", "", &all).contains("cannot copy a:tank: it has no snapshot; hint: take one with --take")
        );
        let diverged = shown("tank:r,s", "pool/x:r,t", &all);
        assert!(diverged.contains("cannot copy a:tank to b:pool/x: the destination has diverged"), "{diverged}");
        let inside = wanted("a:tank", "a:tank/copy");
        assert_eq!(shown("tank:s", "", &inside), "cannot copy a:tank to a:tank/copy: one contains the other");
    }
}
