//! Finds out which dataset is a copy of which, from what transfers have left in ZFS and from shared snapshots.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::model::{DatasetInventory, Guid, HostName, Inventory, Place, SentTo, SnapName, counted, some_of};

/// How many names a note has at most.
const NAMED: usize = 3;

/// A copy, and the dataset that is sent to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// The dataset that is sent.
    pub from: Place,
    /// Its copy.
    pub to: Place,
    /// The newest snapshot of the copy that its source has or had, by its name at the copy.
    pub last: SnapName,
    /// Whether the source itself says so, by a cursor or a hold, and not only a shared snapshot.
    is_recorded: bool,
    /// When that snapshot was taken: of two sources of a copy, the one that sent last counts.
    sent: i64,
}

/// The links that were found, at most one to each copy and without any loop, and what could not be found out.
#[derive(Debug, Default)]
pub(super) struct Links {
    pub links: Vec<Link>,
    pub notes: Vec<String>,
    /// What is a copy, but of an unknown dataset.
    pub orphans: BTreeSet<Place>,
}

/// All datasets of the hosts that were listed, but for those that are excluded from policies.
pub(super) fn datasets(inventory: &Inventory) -> impl Iterator<Item = (Place, &DatasetInventory)> {
    let hosts = inventory.hosts.iter().filter(|(_, known)| known.observed.is_some());
    let all = hosts.flat_map(|(host, known)| known.datasets.iter().map(move |(name, found)| (host, name, found)));
    all.filter(|(.., found)| !found.excluded)
        .map(|(host, dataset, found)| (Place { host: host.clone(), dataset: dataset.clone() }, found))
}

/// Finds the links.
pub(super) fn links(inventory: &Inventory) -> Links {
    let mut found = Links::default();
    let mut candidates = recorded(inventory, &mut found.notes);
    let has_source: HashSet<Place> = candidates.iter().map(|link| link.to.clone()).collect();
    candidates.extend(shared(inventory, &has_source));
    // The most certain links come first.
    candidates.sort_by(|a, b| (b.is_recorded, b.sent, &a.from, &a.to).cmp(&(a.is_recorded, a.sent, &b.from, &b.to)));
    let mut source_of: BTreeMap<Place, Place> = BTreeMap::new();
    for link in candidates {
        if let Some(other) = source_of.get(&link.to) {
            if *other != link.from {
                found
                    .notes
                    .push(format!("{} was also sent to {}, which has received from {other} since", link.from, link.to));
            }
        } else if comes_from(&source_of, &link.from, &link.to) {
            found.notes.push(format!("{} was also sent to {}, from which it comes itself", link.from, link.to));
        } else {
            source_of.insert(link.to.clone(), link.from.clone());
            found.links.push(link);
        }
    }
    for (place, _) in datasets(inventory).filter(|(_, of)| of.flags.is_some()) {
        if !source_of.contains_key(&place) {
            found.orphans.insert(place);
        }
    }
    note_orphans(&mut found);
    found.links.sort_by(|a, b| (&a.from, &a.to).cmp(&(&b.from, &b.to)));
    found
}

/// Whether a dataset is another one, or receives from it through any number of others.
fn comes_from(source_of: &BTreeMap<Place, Place>, place: &Place, origin: &Place) -> bool {
    let mut at = Some(place);
    while let Some(place) = at {
        if place == origin {
            return true;
        }
        at = source_of.get(place);
    }
    false
}

/// The links that sources have recorded in cursors and holds, if the copies are there and still share a snapshot with
/// their sources.
fn recorded(inventory: &Inventory, notes: &mut Vec<String>) -> Vec<Link> {
    let mut by_name: HashMap<SentTo, Vec<(Place, &DatasetInventory)>> = HashMap::new();
    for (place, copy) in datasets(inventory) {
        for name in SentTo::both(&place) {
            by_name.entry(name).or_default().push((place.clone(), copy));
        }
    }
    let (mut links, mut elsewhere) = (Vec::new(), BTreeMap::<String, BTreeSet<String>>::new());
    for (from, source) in datasets(inventory) {
        let of_holds = source.transfer_holds.iter().filter_map(|tag| SentTo::of_hold(tag));
        let sent_to = of_holds.map(|to| vec![to]).chain(source.bookmarks.iter().map(|b| SentTo::of_cursor(&b.name)));
        let known = guids_of(source);
        let mut seen = BTreeSet::new();
        for possible in sent_to.filter(|possible| !possible.is_empty()) {
            if !seen.insert(possible.clone()) {
                continue;
            }
            let copies: Vec<&(Place, &DatasetInventory)> =
                possible.iter().filter_map(|to| by_name.get(to)).flatten().filter(|(to, _)| *to != from).collect();
            let related = copies.iter().filter_map(|(to, copy)| link(&from, &known, to, copy, true));
            let before = links.len();
            links.extend(related);
            if links.len() == before {
                let to = possible[0].to_string();
                let why = why_not(inventory, &to, copies.is_empty());
                elsewhere.entry(why).or_default().insert(format!("{from} to {to}"));
            }
        }
    }
    for (why, sent) in elsewhere {
        let named: Vec<&str> = sent.iter().map(String::as_str).collect();
        notes.push(format!(
            "not in the policy: {} ({}): {why}",
            counted(sent.len(), "transfer"),
            some_of(&named, NAMED)
        ));
    }
    links
}

/// Why a destination that a source has recorded does not become one of the policy.
fn why_not(inventory: &Inventory, to: &str, is_missing: bool) -> String {
    let Some((host, _)) = to.split_once(':') else {
        return "their names are too long, so only a UUID is recorded, and no dataset has it".to_owned();
    };
    let was_asked = host
        .parse::<HostName>()
        .is_ok_and(|host| inventory.hosts.get(&host).is_some_and(|known| known.observed.is_some()));
    match (was_asked, is_missing) {
        (false, _) => format!("{host} was not asked; hint: name it as well, if it still exists"),
        (true, true) => format!(
            "{host} has no such dataset any more, or its pool could not be listed; hint: if it is given up, remove what \
             transfers have left with zsync forget"
        ),
        (true, false) => "what is there now has no snapshot in common with its source".to_owned(),
    }
}

/// The snapshots that a dataset has or had.
fn guids_of(of: &DatasetInventory) -> HashSet<Guid> {
    of.snapshots.iter().map(|s| s.guid).chain(of.bookmarks.iter().map(|b| b.guid)).collect()
}

/// The link between two datasets, if the second has a snapshot of the first.
fn link(from: &Place, known: &HashSet<Guid>, to: &Place, copy: &DatasetInventory, is_recorded: bool) -> Option<Link> {
    let last = copy.snapshots.iter().rev().find(|s| known.contains(&s.guid))?;
    let (from, to, sent) = (from.clone(), to.clone(), last.creation.timestamp());
    Some(Link { from, to, last: last.name.clone(), is_recorded, sent })
}

/// Links of copies whose sources have recorded nothing, as after a restore of the source: to the dataset with a snapshot
/// in common that is no copy itself.
fn shared(inventory: &Inventory, has_source: &HashSet<Place>) -> Vec<Link> {
    let mut by_guid: HashMap<Guid, Vec<(Place, &DatasetInventory)>> = HashMap::new();
    for (place, source) in datasets(inventory).filter(|(_, of)| of.flags.is_none()) {
        for snapshot in &source.snapshots {
            by_guid.entry(snapshot.guid).or_default().push((place.clone(), source));
        }
    }
    let copies = datasets(inventory).filter(|(place, of)| of.flags.is_some() && !has_source.contains(place));
    let of_copy = |(to, copy): (Place, &DatasetInventory)| {
        let sources = copy.snapshots.iter().rev().find_map(|s| by_guid.get(&s.guid))?;
        // If there are several, as after a restore beside the source, the one with the newest snapshot is in use.
        let newest = |of: &DatasetInventory| of.newest().map(|s| s.creation);
        let by_age = |a: &&(Place, _), b: &&(Place, _)| (newest(a.1), &b.0).cmp(&(newest(b.1), &a.0));
        let (from, source) = sources.iter().max_by(by_age)?;
        link(from, &guids_of(source), &to, copy, false)
    };
    copies.filter_map(of_copy).collect()
}

fn note_orphans(found: &mut Links) {
    let named: Vec<String> = found.orphans.iter().map(ToString::to_string).collect();
    if named.is_empty() {
        return;
    }
    let named: Vec<&str> = named.iter().map(String::as_str).collect();
    found.notes.push(format!(
        "not in the policy: {} whose source is on none of the hosts that were listed, or was destroyed ({}); hint: name \
         the host of the source as well, or restore the source first (zsync restore --from)",
        counted(named.len(), "received dataset"),
        some_of(&named, NAMED)
    ));
}
