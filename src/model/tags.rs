//! The names that zsync gives to holds, bookmarks and properties in ZFS, and to roles in certificates. All of them
//! begin with `zsync:`.
//!
//! Holds and bookmarks let replication survive the loss of the catalog:
//!
//! - The hold `zsync:to:HOST:DATASET` on a source protects what a running transfer to that place needs.
//! - The hold `zsync:from:HOST` on a destination protects the newest snapshot received from that host. It does not name
//!   the source's dataset, because one `zfs hold` command holds the snapshots of many destinations, and accepts one
//!   tag.
//! - The hold `zsync:doomed:TIME` keeps a snapshot in the trash: an order would have destroyed it at that time.
//! - The hold `zsync:undeleted` keeps a snapshot that was taken back from the trash.
//! - The bookmark `zsync:HOST:DATASET:GUID:COPY` (with `:` for `/`) on a source is the cursor: the newest snapshot that
//!   a copy at the destination is known to have. An increment can start from it even after the snapshot itself was
//!   pruned.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDateTime, Utc};
use uuid::Uuid;

use crate::model::name::MAX_FULL_NAME;
use crate::model::snapshot::SNAPSHOT_NAMESPACE;
use crate::model::{
    Bookmark, DatasetInventory, DatasetName, Guid, HostName, NameError, Place, SnapName, Snapshot, Trashed,
};

/// The prefix of all names in this module.
pub const OURS: &str = "zsync:";

/// The property of a restored dataset whose key the lost dataset did not have for itself: the dataset whose key it used.
/// It is removed when it uses that key again.
pub const KEY_FROM: &str = "zsync:key_from";

/// The property of a copy that records the flags with which it was sent, and the copy's own guid, which shows whether
/// the value was inherited.
pub const FLAGS: &str = "zsync:flags";
/// The property with which an administrator excludes a dataset, and all datasets that inherit the property, from
/// snapshots, transfers and pruning.
pub const EXCLUDE: &str = "zsync:exclude";
/// The property of a clone that zsync made: the guid of the dataset whose newest snapshot it follows.
pub const CLONE: &str = "zsync:clone";

/// The property of a snapshot that records when it arrived on its host, by the clock of that host. No stream can set it:
/// streams with properties are refused.
pub const ARRIVED: &str = "zsync:arrived";

/// The property of a dataset that zsync made only to contain others: the dataset's own name, which shows whether the
/// value was inherited.
pub const PARENT: &str = "zsync:parent";

/// The property of a dataset that a restore has not completed: the dataset's own name, which shows whether the value was
/// inherited.
pub const RESTORING: &str = "zsync:restoring";

/// The property of a copy that records the properties of its source (`SourceRecord`).
pub const PROPERTIES: &str = "zsync:properties";

/// The prefix of a role in a certificate, where it is the URI of a subject alternative name: `zsync:role:agent`. Any CA
/// can issue such a certificate.
pub const ROLE: &str = "zsync:role:";

/// The prefix of the holds on a source.
pub(super) const SENDING: &str = "zsync:to:";
/// The prefix of cursors.
pub(super) const CURSOR: &str = OURS;
/// The prefix of the holds on a destination.
const FROM: &str = "zsync:from:";

/// The end of the name that a copy has while it exchanges names with another one.
const BETWEEN: &str = "_zsync_exchange";

/// The prefix of the holds on snapshots in the trash.
const DOOMED: &str = "zsync:doomed:";
/// The form of the time in such a hold.
const DOOMED_TIME: &str = "%Y-%m-%dT%H:%M:%SZ";
/// The tag of the hold on a snapshot that was taken back from the trash. It keeps the next order from putting the
/// snapshot there again, until an administrator releases it.
pub const UNDELETED: &str = "zsync:undeleted";

/// For how many copies of the same name cursors are kept. Disks that are used in rotation have such copies.
const MAX_COPIES: usize = 8;
/// How many holds of transfers a listing of a dataset has at most, so that it fits into a line of the protocol.
const MAX_TRANSFER_HOLDS: usize = 100;
/// The longest tag that ZFS permits, in bytes.
const MAX_TAG: usize = 255;

/// The tag of a hold. A peer whose name would make the tag too long is named by a UUID instead.
fn tag(prefix: &str, peer: &str) -> String {
    let tag = format!("{prefix}{peer}");
    if tag.len() <= MAX_TAG { tag } else { format!("{prefix}{}", uuid_of(peer)) }
}

/// The UUID that stands for a peer whose name is too long.
pub(super) fn uuid_of(peer: &str) -> Uuid {
    Uuid::new_v5(&SNAPSHOT_NAMESPACE, peer.as_bytes())
}

/// The tag of the hold on a source that sends to `to`.
#[must_use]
pub fn sending(to: &Place) -> String {
    tag(SENDING, &to.to_string())
}

/// The tag of the hold on a destination that receives from `from`.
#[must_use]
pub fn received(from: &HostName) -> String {
    tag(FROM, from.as_str())
}

/// The tag of the hold on a snapshot that has been in the trash since this time.
#[must_use]
pub fn doomed(since: DateTime<Utc>) -> String {
    format!("{DOOMED}{}", since.format(DOOMED_TIME))
}

/// Since when a snapshot with this hold has been in the trash; `None` if the tag is another one.
#[must_use]
pub fn doomed_since(tag: &str) -> Option<DateTime<Utc>> {
    let time = NaiveDateTime::parse_from_str(tag.strip_prefix(DOOMED)?, DOOMED_TIME).ok()?;
    Some(time.and_utc())
}

/// The snapshots of a dataset that are in the trash, according to the tags of its holds. If one has several such tags,
/// the latest time counts.
#[must_use]
pub fn trashed(found: &DatasetInventory, holds: &[(SnapName, String)]) -> Vec<Trashed> {
    let mut since: BTreeMap<&SnapName, DateTime<Utc>> = BTreeMap::new();
    for (name, tag) in holds {
        if let Some(at) = doomed_since(tag) {
            let latest = since.entry(name).or_insert(at);
            *latest = at.max(*latest);
        }
    }
    let of = |s: &Snapshot| since.get(&s.name).map(|since| Trashed { guid: s.guid, since: *since, used: s.used });
    if since.is_empty() { Vec::new() } else { found.snapshots.iter().filter_map(of).collect() }
}

/// Says that a snapshot is held, and by which tags if they are known.
#[must_use]
pub fn held_by(tags: &[String]) -> String {
    match tags {
        [] => "it is held".to_owned(),
        tags => format!("it is held ({})", tags.join(", ")),
    }
}

/// Whether a tag is that of a hold on a destination, whatever the source.
#[must_use]
pub fn is_received(tag: &str) -> bool {
    // A host that is named by a UUID also has the form of a host's name. Older versions appended the dataset.
    let host = tag.strip_prefix(FROM).and_then(|from| from.split(':').next());
    host.is_some_and(|host| host.parse::<HostName>().is_ok())
}

/// Whether a tag is that of a hold on a source, whatever the destination.
#[must_use]
pub fn is_sending(tag: &str) -> bool {
    tag.starts_with(SENDING)
}

/// Notes what the holds of a dataset say: the `transfer_holds` that transfers have left, and what is in the trash.
///
/// Two orders at about the same time can each have moved a snapshot to the trash, so that it has two such holds. They
/// count as one: otherwise, the second would look like the hold of somebody else, and nothing would ever destroy it.
pub fn set_holds(inventory: &mut DatasetInventory, holds: Vec<(SnapName, String)>) {
    inventory.set_trashed(trashed(inventory, &holds));
    let mut counts: BTreeMap<&SnapName, (u32, u32)> = BTreeMap::new();
    for (name, tag) in &holds {
        let (all, doomed) = counts.entry(name).or_default();
        *all += 1;
        *doomed += u32::from(doomed_since(tag).is_some());
    }
    for snapshot in &mut inventory.snapshots {
        if let Some((all, doomed)) = counts.get(&snapshot.name)
            && *doomed > 1
        {
            snapshot.userrefs = all - (doomed - 1);
        }
    }
    let mut tags: Vec<String> = holds.into_iter().map(|(_, tag)| tag).collect();
    tags.retain(|tag| is_sending(tag) || is_received(tag));
    tags.sort();
    tags.truncate(MAX_TRANSFER_HOLDS);
    inventory.transfer_holds = tags;
}

/// Whether a bookmark's name is that of a cursor, whatever the destination.
#[must_use]
pub fn is_cursor(name: &SnapName) -> bool {
    let guid = name.as_str().strip_prefix(CURSOR).and_then(|rest| rest.rsplit_once(':'));
    guid.is_some_and(|(_, guid)| parse_guid(guid).is_some())
}

pub(super) fn parse_guid(text: &str) -> Option<Guid> {
    let is_guid = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    u64::from_str_radix(text, 16).ok().filter(|_| is_guid).map(Guid)
}

/// Parses what follows the prefix in the name of a cursor: the guid of the snapshot and, unless an older version made
/// the cursor, the guid of the copy.
fn parse_guids(text: &str) -> Option<(Guid, Option<Guid>)> {
    match text.split_once(':') {
        None => Some((parse_guid(text)?, None)),
        Some((guid, copy)) => Some((parse_guid(guid)?, Some(parse_guid(copy)?))),
    }
}

/// The prefix of all cursors of `dataset` for `to`: the name without the guids.
fn cursor_prefix(dataset: &DatasetName, to: &Place) -> String {
    let prefix = readable_prefix(to);
    let length = dataset.as_str().len() + 1 + prefix.len() + 16 + 1 + 16;
    if length <= MAX_FULL_NAME { prefix } else { short_prefix(to) }
}

fn readable_prefix(to: &Place) -> String {
    format!("{CURSOR}{}:{}:", to.host, to.dataset.as_str().replace('/', ":"))
}

fn short_prefix(to: &Place) -> String {
    format!("{CURSOR}{}:", uuid_of(&to.to_string()))
}

/// The name of the cursor of `dataset` for `to` at the snapshot `guid`. `copy` is the guid of the receiving dataset:
/// disks that are used in rotation may have pools of the same name, and each copy needs a cursor of its own. Fails if
/// the name of the dataset leaves no room for it.
pub fn cursor(dataset: &DatasetName, to: &Place, guid: Guid, copy: Option<Guid>) -> Result<SnapName, NameError> {
    let name = format!("{}{:016x}", cursor_prefix(dataset, to), guid.0);
    let fits = |name: &String| dataset.as_str().len() + 1 + name.len() <= MAX_FULL_NAME;
    let of_copy = copy.map(|copy| format!("{name}:{:016x}", copy.0)).filter(fits);
    // Without a copy, or without room for it.
    match of_copy.or_else(|| Some(name.clone()).filter(fits)) {
        Some(name) => name.parse(),
        None => Err(NameError {
            kind: "bookmark name",
            text: name,
            reason: format!("with the name of its dataset, it is longer than {MAX_FULL_NAME} bytes"),
        }),
    }
}

/// The cursors for `to`, of all copies and under all names of the source, newest first. Each has its name, the guid of
/// its snapshot, the guid of its copy, and its createtxg.
fn cursors<'a>(inventory: &'a DatasetInventory, to: &Place) -> Vec<(&'a SnapName, Guid, Option<Guid>, u64)> {
    let prefixes = [readable_prefix(to), short_prefix(to)];
    let parse = |name: &SnapName| prefixes.iter().find_map(|prefix| parse_guids(name.as_str().strip_prefix(prefix)?));
    let of_bookmark = |b: &'a Bookmark| parse(&b.name).map(|(_, copy)| (&b.name, b.guid, copy, b.createtxg));
    let mut found: Vec<_> = inventory.bookmarks.iter().filter_map(of_bookmark).collect();
    found.sort_by_key(|(.., createtxg)| std::cmp::Reverse(*createtxg));
    found
}

/// Whether a dataset was ever sent to `to`, even under a former name: its bookmarks keep their names when the dataset
/// is renamed.
#[must_use]
pub fn was_sent(inventory: &DatasetInventory, to: &Place) -> bool {
    let before = to.dataset.as_str().strip_suffix(BETWEEN).and_then(|name| name.parse().ok());
    let before = before.map(|dataset| Place { host: to.host.clone(), dataset });
    !cursors(inventory, to).is_empty() || before.is_some_and(|before| !cursors(inventory, &before).is_empty())
}

/// The name of a copy while it exchanges names with another one. If that is interrupted, [`was_sent`] still knows the
/// copy.
pub fn name_between(copy: &DatasetName) -> Result<DatasetName, NameError> {
    format!("{copy}{BETWEEN}").parse()
}

/// The guid of the newest snapshot of a dataset that is known to be at `to`, according to the cursors alone.
#[must_use]
pub fn newest_sent(inventory: &DatasetInventory, to: &Place) -> Option<Guid> {
    cursors(inventory, to).first().map(|(_, guid, ..)| *guid)
}

/// The guid of the snapshot of a dataset that the last transfer to `to` has sent there, according to the cursors: those of
/// the `copy` that is there, which may have been renamed since, or else those for `to`.
#[must_use]
pub fn last_sent(inventory: &DatasetInventory, to: &Place, copy: Option<Guid>) -> Option<Guid> {
    let of_copy = |bookmark: &&Bookmark| {
        let name = bookmark.name.as_str().strip_prefix(CURSOR);
        let guid = name.and_then(|name| parse_guid(name.rsplit_once(':')?.1));
        copy.is_some() && guid == copy
    };
    let newest = inventory.bookmarks.iter().filter(of_copy).max_by_key(|bookmark| bookmark.createtxg);
    newest.map(|bookmark| bookmark.guid).or_else(|| newest_sent(inventory, to))
}

/// The cursors for `to` that are no longer needed once there is one at `guid` for `copy`: those of earlier transfers to
/// the same copy, and those of all copies but the `MAX_COPIES` to which the dataset was sent last.
#[must_use]
pub fn old_cursors(inventory: &DatasetInventory, to: &Place, guid: Guid, copy: Option<Guid>) -> Vec<SnapName> {
    let mut others: Vec<Guid> = Vec::new();
    let mut old = Vec::new();
    for (name, of, copy_of, _) in cursors(inventory, to) {
        let is_old = match copy_of.filter(|other| Some(*other) != copy && copy.is_some()) {
            // Of this copy, or made by a version that did not distinguish copies.
            None => of != guid || copy_of != copy,
            Some(other) if others.contains(&other) => true,
            Some(other) => {
                others.push(other);
                others.len() >= MAX_COPIES
            }
        };
        if is_old {
            old.push(name.clone());
        }
    }
    old
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(host: &str, dataset: &str) -> Place {
        Place { host: host.parse().unwrap(), dataset: dataset.parse().unwrap() }
    }

    #[test]
    fn names_are_readable() {
        let to = place("beta", "tank/copy/a");
        assert_eq!(sending(&to), "zsync:to:beta:tank/copy/a");
        assert_eq!(received(&to.host), "zsync:from:beta");
        assert!(["zsync:from:beta", "zsync:from:beta:usb/home"].into_iter().all(is_received));
        assert!(is_received(&tag(FROM, &"b".repeat(250))));
        assert!(!is_received("zsync:from:") && !is_received("zsync:from:be ta") && !is_received("zsync:fromage"));
        let dataset = "tank/a".parse().unwrap();
        assert_eq!(cursor(&dataset, &to, Guid(255), None).unwrap().as_str(), "zsync:beta:tank:copy:a:00000000000000ff");
        let of_copy = cursor(&dataset, &to, Guid(255), Some(Guid(16))).unwrap();
        assert_eq!(of_copy.as_str(), "zsync:beta:tank:copy:a:00000000000000ff:0000000000000010");
        assert!(is_cursor(&of_copy));
    }

    #[test]
    fn doomed_since_reads_what_doomed_wrote() {
        let since = DateTime::from_timestamp(1_795_913_100, 0).unwrap();
        assert_eq!(doomed(since), "zsync:doomed:2026-11-29T00:45:00Z");
        assert_eq!(doomed_since(&doomed(since)), Some(since));
        for other in ["zsync:doomed:", "zsync:doomed:soon", "zsync:from:beta", UNDELETED, "2026-11-29T00:45:00Z"] {
            assert_eq!(doomed_since(other), None, "{other}");
        }
        assert!(!is_sending(&doomed(since)) && !is_received(&doomed(since)));
    }

    #[test]
    fn names_stay_within_the_limits_of_zfs() {
        let to = place(&"h".repeat(250), &format!("tank/{}", "d".repeat(240)));
        assert!(sending(&to).len() <= MAX_TAG && received(&to.host).len() <= MAX_TAG);
        let dataset: DatasetName = format!("tank/{}", "s".repeat(190)).parse().unwrap();
        let cursor = cursor(&dataset, &to, Guid(u64::MAX), Some(Guid(1))).unwrap();
        assert!(dataset.as_str().len() + 1 + cursor.as_str().len() <= MAX_FULL_NAME);
        let longer: DatasetName = format!("tank/{}", "s".repeat(192)).parse().unwrap();
        assert!(super::cursor(&longer, &to, Guid(u64::MAX), Some(Guid(1))).is_err(), "there is no room for it");
    }

    #[test]
    fn old_cursors_are_those_of_the_same_destination() {
        let (dataset, to) = ("tank/a".parse().unwrap(), place("beta", "tank/copy"));
        let bookmark = |name: &str, guid| Bookmark {
            name: name.parse().unwrap(),
            guid: Guid(guid),
            createtxg: guid,
            creation: chrono::DateTime::UNIX_EPOCH,
        };
        let inventory = DatasetInventory {
            bookmarks: vec![
                bookmark("zsync:beta:tank:copy:0000000000000001", 1),
                bookmark("zsync:beta:tank:copy:0000000000000002", 2),
                bookmark("zsync:beta:tank:copy:sub:0000000000000001", 1),
                bookmark("zsync:gamma:tank:copy:0000000000000001", 1),
                bookmark("by-hand", 1),
            ],
            ..DatasetInventory::default()
        };
        let old = old_cursors(&inventory, &to, Guid(2), None);
        assert_eq!(old, ["zsync:beta:tank:copy:0000000000000001".parse().unwrap()]);
        let was_sent = |to: &Place| crate::model::tags::was_sent(&inventory, to);
        assert!(was_sent(&to) && was_sent(&place("beta", "tank/copy/sub")));
        assert!(!was_sent(&place("beta", "tank")) && !was_sent(&place("delta", "tank/copy")));
        let long = place("beta", &format!("tank/{}", "d".repeat(200)));
        let bookmarks = vec![bookmark(cursor(&dataset, &long, Guid(7), None).unwrap().as_str(), 7)];
        assert!(crate::model::tags::was_sent(&DatasetInventory { bookmarks, ..DatasetInventory::default() }, &long));
    }

    #[test]
    fn cursors_of_other_copies_stay() {
        let (dataset, to): (DatasetName, _) = ("tank/a".parse().unwrap(), place("beta", "usb/copy"));
        let bookmark = |guid: u64, copy: Option<u64>| Bookmark {
            name: cursor(&dataset, &to, Guid(guid), copy.map(Guid)).unwrap(),
            guid: Guid(guid),
            createtxg: guid,
            creation: chrono::DateTime::UNIX_EPOCH,
        };
        let of = |bookmarks: Vec<Bookmark>| DatasetInventory { bookmarks, ..DatasetInventory::default() };
        // Copy 7 was sent to last, copy 8 before that. The oldest cursor was made by a version that did not distinguish
        // copies.
        let inventory = of(vec![bookmark(1, None), bookmark(2, Some(8)), bookmark(3, Some(7)), bookmark(4, Some(7))]);
        let old = old_cursors(&inventory, &to, Guid(4), Some(Guid(7)));
        assert_eq!(old, [bookmark(3, Some(7)).name, bookmark(1, None).name]);
        assert_eq!(newest_sent(&inventory, &to), Some(Guid(4)));
        // If each disk is new, only a limited number of cursors is kept.
        let many = of((1..20).map(|n| bookmark(n, Some(100 + n))).collect());
        let old = old_cursors(&many, &to, Guid(19), Some(Guid(119)));
        assert_eq!(old.len(), 19 - MAX_COPIES);
        assert!(old.contains(&bookmark(1, Some(101)).name) && !old.contains(&bookmark(18, Some(118)).name));
    }
}
