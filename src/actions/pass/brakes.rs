//! Holds back destroys that are too many for one pass, or that are decided with a clock that is ahead.
//!
//! A clock that leaps ahead makes all snapshots look old, and so does a machine that was off for months.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::actions::notice::NoticeKind;
use crate::actions::order::Order;
use crate::actions::pass::Pass;
use crate::actions::prune::HeldBack;
use crate::actions::verdict::Subject;
use crate::model::{DatasetInventory, Guid, HostName, Inventory, Place, Snapshot};
use crate::policy::retention::CLOCK_TOLERANCE;

/// Younger snapshots do not count. Where snapshots are sent once a day or once a week, a destination that keeps fewer of
/// them destroys many at once, and so does a machine that was off for a few days.
const COUNTED_AGE: TimeDelta = TimeDelta::days(8);

/// So many snapshots of a dataset may always be destroyed in one pass.
const ALWAYS_PERMITTED: usize = 10;

/// Whether a pass may destroy so many of the snapshots of a dataset. `limit` is in percent.
fn are_too_many(destroys: usize, snapshots: usize, limit: u8) -> bool {
    limit < 100 && destroys > ALWAYS_PERMITTED && destroys * 100 > snapshots * usize::from(limit)
}

/// How far the director's clock is ahead of this host's, and whether that is what the host itself said. A host whose
/// clock is unknown may destroy nothing while the director's clock is ahead of most others.
fn ahead_of(inventory: &Inventory, host: &HostName) -> Option<(Duration, bool)> {
    let tolerance = CLOCK_TOLERANCE.to_std().unwrap_or_default();
    if let Some(behind) = inventory.hosts.get(host).and_then(|known| known.clock_behind) {
        return Some((behind, true)).filter(|_| behind > tolerance);
    }
    let known: Vec<Duration> = inventory.hosts.values().filter_map(|known| known.clock_behind).collect();
    let behind: Vec<Duration> = known.iter().copied().filter(|behind| *behind > tolerance).collect();
    behind.iter().min().filter(|_| behind.len() * 2 > known.len()).map(|least| (*least, false))
}

/// How many snapshots of each dataset a pass of the director has destroyed, and how many of them count for the limit.
/// An order that failed counts as well.
#[derive(Clone, Debug, Default)]
pub struct Destroyed(BTreeMap<Place, (usize, usize)>);

impl Destroyed {
    /// Adds the snapshots of an order, which `inventory` still has.
    pub fn add(&mut self, order: &Order, inventory: &Inventory, now: DateTime<Utc>) {
        let Order::Destroy { host, dataset, snapshots, .. } = order else { return };
        let Some(found) = inventory.dataset(host, dataset) else { return };
        let going: HashSet<Guid> = snapshots.iter().map(|(guid, _)| *guid).collect();
        // What is in the trash counted when it went there.
        let going = found.snapshots.iter().filter(|s| going.contains(&s.guid) && found.trashed(s.guid).is_none());
        let going: Vec<&Snapshot> = going.collect();
        let old = going.iter().filter(|s| counts(s, now)).count();
        let place = Place { host: host.clone(), dataset: dataset.clone() };
        let (all, counted) = self.0.entry(place).or_default();
        (*all, *counted) = (*all + going.len(), *counted + old);
    }
}

/// Whether the destroy of a snapshot counts for the limit.
fn counts(snapshot: &Snapshot, now: DateTime<Utc>) -> bool {
    now - snapshot.creation > COUNTED_AGE
}

impl Pass<'_> {
    /// Holds back destroys of the entry that has just been decided. Several entries may destroy snapshots of one
    /// dataset: the destroys of the entries before, in this plan and in this pass of the director, count for the limit.
    pub(super) fn hold_back(&mut self, entry: usize) {
        let from = self.plan.prunes.iter().rposition(|prune| prune.subject.entry != entry).map_or(0, |last| last + 1);
        // How many snapshots of each dataset go, and how many of them count.
        let mut destroys: BTreeMap<Place, (usize, usize)> = BTreeMap::new();
        for prune in self.plan.prunes.iter().skip(from).filter(|prune| !prune.destroy.is_empty()) {
            let place = place(&prune.subject);
            let Some(dataset) = self.inventory.dataset(&place.host, &place.dataset) else { continue };
            let going = prune.snapshots.iter().filter(|verdict| !verdict.keep());
            let going = going.filter_map(|verdict| dataset.snapshots.get(verdict.index as usize));
            // What is in the trash counted when it went there.
            let going = going.filter(|snapshot| dataset.trashed(snapshot.guid).is_none());
            let counted = going.filter(|snapshot| counts(snapshot, self.now)).count();
            let (all, old) = destroys.entry(place).or_default();
            (*all, *old) = (*all + prune.destroy.iter().filter(|going| !going.in_trash).count(), *old + counted);
        }
        let mut held_back = BTreeMap::new();
        for (place, (destroys, counted)) in destroys {
            let (gone, counted_before) = self.destroyed.0.get(&place).copied().unwrap_or_default();
            let planned = self.planned.entry(place.clone()).or_default();
            let (own, counted) = (counted, counted + counted_before + *planned);
            let outside_trash =
                |d: &DatasetInventory| d.snapshots.len().saturating_sub(d.trashed.as_ref().map_or(0, Vec::len));
            let snapshots = gone + self.inventory.dataset(&place.host, &place.dataset).map_or(0, outside_trash);
            let limit = self.policy.max_destroys;
            let why = if let Some((ahead, own)) = ahead_of(self.inventory, &place.host) {
                self.note(entry, &place.host, None, NoticeKind::ClockAhead { minutes: ahead.as_secs() / 60, own });
                HeldBack::ClockAhead
            } else if are_too_many(counted, snapshots, limit) {
                let kind = NoticeKind::TooManyDestroys { destroys, snapshots, limit };
                self.note(entry, &place.host, Some(&place.dataset), kind);
                HeldBack::TooMany
            } else {
                *planned += own;
                continue;
            };
            held_back.insert(place, why);
        }
        if held_back.is_empty() {
            return;
        }
        for prune in self.plan.prunes.iter_mut().skip(from).filter(|prune| !prune.destroy.is_empty()) {
            prune.held_back = held_back.get(&place(&prune.subject)).copied();
        }
    }
}

fn place(subject: &Subject) -> Place {
    Place { host: subject.host.clone(), dataset: subject.dataset.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HostInventory;

    #[test]
    fn limit_applies_to_more_than_ten_snapshots() {
        for (destroys, snapshots, limit, expected) in [
            (10, 10, 50, false),
            (11, 11, 50, true),
            (50, 100, 50, false),
            (51, 100, 50, true),
            (11, 1000, 0, true),
            (11, 1000, 1, true),
            (99, 100, 99, false),
            (1000, 1000, 100, false),
        ] {
            assert_eq!(are_too_many(destroys, snapshots, limit), expected, "{destroys} of {snapshots}, {limit}%");
        }
    }

    #[test]
    fn one_slow_clock_protects_its_own_host_and_most_protect_all() {
        let inventory = |clocks: &[(&str, Option<u64>)]| {
            let host = |(name, behind): &(&str, Option<u64>)| {
                let clock_behind = behind.map(Duration::from_secs);
                (name.parse().unwrap(), HostInventory { clock_behind, ..HostInventory::default() })
            };
            Inventory { hosts: clocks.iter().map(host).collect() }
        };
        let ahead = |clocks: &[(&str, Option<u64>)], host: &str| {
            ahead_of(&inventory(clocks), &host.parse().unwrap()).map(|(behind, own)| (behind.as_secs(), own))
        };
        let one = [("a", None), ("b", Some(7200)), ("c", Some(0))];
        assert_eq!(ahead(&one, "b"), Some((7200, true)));
        assert_eq!((ahead(&one, "a"), ahead(&one, "c")), (None, None));
        let most = [("a", None), ("b", Some(7200)), ("c", Some(3600)), ("d", Some(2))];
        assert_eq!(ahead(&most, "a"), Some((3600, false)));
        assert_eq!(ahead(&most, "d"), None);
        assert_eq!(ahead(&[("a", None)], "a"), None);
        assert_eq!(ahead(&[("a", None), ("b", Some(299))], "b"), None);
    }
}
