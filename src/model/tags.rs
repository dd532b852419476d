//! All names that zsync gives to things in ZFS and in certificates: every one begins with `zsync:`.
//!
//! Holds and bookmarks let replication survive the loss of the catalog:
//!
//! - The hold `zsync:to:HOST:DATASET` on a source protects what a running transfer to that place needs.
//! - The hold `zsync:from:HOST` on a destination protects the newest snapshot received from that host. It does not name
//!   the source's dataset, because the snapshots of many destinations are held at once, and `zfs hold` accepts one tag.
//! - The bookmark `zsync:HOST:DATASET:GUID` (with `:` for `/`) on a source is the cursor: the newest snapshot that the
//!   destination is known to have. An increment can start from it even after the snapshot itself was pruned.

use uuid::Uuid;

use crate::model::name::MAX_FULL_NAME;
use crate::model::snapshot::SNAPSHOT_NAMESPACE;
use crate::model::{DatasetInventory, DatasetName, Guid, HostName, NameError, Place, SnapName};

/// The prefix of all names in this module.
pub const OURS: &str = "zsync:";

/// The property of a copy that records the flags it was sent with, and its guid, so that an inherited value is noticed.
pub const FLAGS: &str = "zsync:flags";
/// The property with which an administrator excludes a dataset, and all that inherit it, from being snapshotted, sent
/// and pruned.
pub const EXCLUDE: &str = "zsync:exclude";
/// The property of a clone that zsync made: the guid of the dataset whose newest snapshot it follows.
pub const CLONE: &str = "zsync:clone";

/// The prefix of a role in a certificate, where it is the URI of a subject alternative name: `zsync:role:agent`. Any CA
/// can issue such a certificate.
pub const ROLE: &str = "zsync:role:";

/// The prefix of the holds on a source.
const TO: &str = "zsync:to:";
/// The prefix of the holds on a destination.
const FROM: &str = "zsync:from:";

/// The longest tag that ZFS permits, in bytes.
const MAX_TAG: usize = 255;

/// A hold's tag. A peer whose name would make it too long is named by a UUID instead.
fn tag(prefix: &str, peer: &str) -> String {
    let tag = format!("{prefix}{peer}");
    if tag.len() <= MAX_TAG { tag } else { format!("{prefix}{}", uuid_of(peer)) }
}

/// The UUID that stands for a peer whose name is too long.
fn uuid_of(peer: &str) -> Uuid {
    Uuid::new_v5(&SNAPSHOT_NAMESPACE, peer.as_bytes())
}

/// The tag of the hold on a source that sends to `to`.
#[must_use]
pub fn sending(to: &Place) -> String {
    tag(TO, &to.to_string())
}

/// The tag of the hold on a destination that receives from `from`.
#[must_use]
pub fn received(from: &HostName) -> String {
    tag(FROM, from.as_str())
}

/// Whether a tag is that of a hold on a destination, whatever the source.
#[must_use]
pub fn is_received(tag: &str) -> bool {
    tag.starts_with(FROM)
}

/// Whether a tag is that of a hold on a source, whatever the destination.
#[must_use]
pub fn is_sending(tag: &str) -> bool {
    tag.starts_with(TO)
}

/// Whether a bookmark's name is that of a cursor, whatever the destination.
#[must_use]
pub fn is_cursor(name: &SnapName) -> bool {
    let guid = name.as_str().strip_prefix(OURS).and_then(|rest| rest.rsplit_once(':'));
    guid.is_some_and(|(_, guid)| is_guid(guid))
}

fn is_guid(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The prefix of all cursors of `dataset` for `to`: the name without the guid.
fn cursor_prefix(dataset: &DatasetName, to: &Place) -> String {
    let prefix = readable_prefix(to);
    let length = dataset.as_str().len() + 1 + prefix.len() + 16;
    if length <= MAX_FULL_NAME { prefix } else { short_prefix(to) }
}

fn readable_prefix(to: &Place) -> String {
    format!("{OURS}{}:{}:", to.host, to.dataset.as_str().replace('/', ":"))
}

fn short_prefix(to: &Place) -> String {
    format!("{OURS}{}:", uuid_of(&to.to_string()))
}

/// The name of the cursor of `dataset` for `to` at the snapshot `guid`.
pub fn cursor(dataset: &DatasetName, to: &Place, guid: Guid) -> Result<SnapName, NameError> {
    format!("{}{:016x}", cursor_prefix(dataset, to), guid.0).parse()
}

/// Whether a dataset was ever sent to `to`, even under a former name: its bookmarks keep their names when the dataset
/// is renamed.
#[must_use]
pub fn was_sent(inventory: &DatasetInventory, to: &Place) -> bool {
    let prefixes = [readable_prefix(to), short_prefix(to)];
    let of_either = |name: &str| prefixes.iter().any(|prefix| name.strip_prefix(prefix).is_some_and(is_guid));
    inventory.bookmarks.iter().any(|b| of_either(b.name.as_str()))
}

/// The cursors of `dataset` for `to` that earlier transfers left: all but the one at `guid`.
#[must_use]
pub fn old_cursors(dataset: &DatasetName, inventory: &DatasetInventory, to: &Place, guid: Guid) -> Vec<SnapName> {
    let prefix = cursor_prefix(dataset, to);
    let has_prefix = |name: &SnapName| name.as_str().strip_prefix(&prefix).is_some_and(is_guid);
    let old = inventory.bookmarks.iter().filter(|b| b.guid != guid && has_prefix(&b.name));
    old.map(|b| b.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Bookmark;

    fn place(host: &str, dataset: &str) -> Place {
        Place { host: host.parse().unwrap(), dataset: dataset.parse().unwrap() }
    }

    #[test]
    fn names_are_readable() {
        let to = place("beta", "tank/copy/a");
        assert_eq!(sending(&to), "zsync:to:beta:tank/copy/a");
        assert_eq!(received(&to.host), "zsync:from:beta");
        let dataset = "tank/a".parse().unwrap();
        assert_eq!(cursor(&dataset, &to, Guid(255)).unwrap().as_str(), "zsync:beta:tank:copy:a:00000000000000ff");
    }

    #[test]
    fn names_stay_within_the_limits_of_zfs() {
        let to = place(&"h".repeat(250), &format!("tank/{}", "d".repeat(240)));
        assert!(sending(&to).len() <= MAX_TAG && received(&to.host).len() <= MAX_TAG);
        let dataset: DatasetName = format!("tank/{}", "s".repeat(190)).parse().unwrap();
        let cursor = cursor(&dataset, &to, Guid(u64::MAX)).unwrap();
        assert!(dataset.as_str().len() + 1 + cursor.as_str().len() <= MAX_FULL_NAME);
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
        let old = old_cursors(&dataset, &inventory, &to, Guid(2));
        assert_eq!(old, ["zsync:beta:tank:copy:0000000000000001".parse().unwrap()]);
        let was_sent = |to: &Place| crate::model::tags::was_sent(&inventory, to);
        assert!(was_sent(&to) && was_sent(&place("beta", "tank/copy/sub")));
        assert!(!was_sent(&place("beta", "tank")) && !was_sent(&place("delta", "tank/copy")));
        let long = place("beta", &format!("tank/{}", "d".repeat(200)));
        let bookmarks = vec![bookmark(cursor(&dataset, &long, Guid(7)).unwrap().as_str(), 7)];
        assert!(crate::model::tags::was_sent(&DatasetInventory { bookmarks, ..DatasetInventory::default() }, &long));
    }
}
