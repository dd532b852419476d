//! The names of what zsync leaves in ZFS, so that replication survives a lost catalog: holds and cursors.
//!
//! - `zsync:to:HOST:DATASET` holds on a source what a running transfer to there needs;
//! - `zsync:from:HOST` holds on a destination the newest snapshot received from there: without the source's dataset, for
//!   many destinations are held at a time, and `zfs hold` takes one tag;
//! - the bookmark `zsync:HOST:DATASET:GUID` (with `:` for `/`) on a source is the cursor: the newest snapshot that
//!   is known to be there, from which an increment can start even after the snapshot itself was pruned.

use uuid::Uuid;

use crate::model::name::MAX_FULL_NAME;
use crate::model::snapshot::SNAPSHOT_NAMESPACE;
use crate::model::{DatasetInventory, DatasetName, Guid, HostName, NameError, SnapName};
use crate::policy::Target;

/// What all of zsync's tags and bookmarks begin with.
const OURS: &str = "zsync:";

/// The longest tag that ZFS takes, in bytes.
const LONGEST_TAG: usize = 255;

fn tag(direction: &str, peer: &str) -> String {
    let tag = format!("{OURS}{direction}:{peer}");
    if tag.len() <= LONGEST_TAG { tag } else { format!("{OURS}{direction}:{}", short(peer)) }
}

/// A peer whose name is too long, as a UUID.
fn short(peer: &str) -> Uuid {
    Uuid::new_v5(&SNAPSHOT_NAMESPACE, peer.as_bytes())
}

fn name(peer: &Target) -> String {
    format!("{}:{}", peer.host, peer.dataset)
}

/// The tag on a source while it sends to `to`.
#[must_use]
pub fn sending(to: &Target) -> String {
    tag("to", &name(to))
}

/// The tag on a destination of what was received from `from`.
#[must_use]
pub fn received(from: &HostName) -> String {
    tag("from", from.as_str())
}

/// Whether a tag is that of something received, from wherever.
#[must_use]
pub fn is_received(tag: &str) -> bool {
    tag.starts_with("zsync:from:")
}

/// Whether a tag is that of something being sent, to wherever.
#[must_use]
pub fn is_sending(tag: &str) -> bool {
    tag.starts_with("zsync:to:")
}

/// Whether a bookmark's name is that of a cursor, for whatever destination.
#[must_use]
pub fn is_cursor(name: &SnapName) -> bool {
    let guid = name.as_str().strip_prefix(OURS).and_then(|rest| rest.rsplit_once(':'));
    guid.is_some_and(|(_, guid)| is_guid(guid))
}

fn is_guid(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn cursor_family(dataset: &DatasetName, to: &Target) -> String {
    let family = format!("{OURS}{}:{}:", to.host, to.dataset.as_str().replace('/', ":"));
    let length = dataset.as_str().len() + 1 + family.len() + 16;
    if length <= MAX_FULL_NAME { family } else { short_family(to) }
}

fn short_family(to: &Target) -> String {
    format!("{OURS}{}:", short(&name(to)))
}

/// The name of the cursor of `dataset` for `to` at `guid`.
pub fn cursor(dataset: &DatasetName, to: &Target, guid: Guid) -> Result<SnapName, NameError> {
    format!("{}{:016x}", cursor_family(dataset, to), guid.0).parse()
}

/// Whether a dataset was sent to `to`, whatever it was called then: bookmarks are renamed with it, and keep their names.
#[must_use]
pub fn was_sent(inventory: &DatasetInventory, to: &Target) -> bool {
    let families = [format!("{OURS}{}:{}:", to.host, to.dataset.as_str().replace('/', ":")), short_family(to)];
    let of_either = |name: &str| families.iter().any(|family| name.strip_prefix(family).is_some_and(is_guid));
    inventory.bookmarks.iter().any(|b| of_either(b.name.as_str()))
}

/// The cursors of `dataset` for `to` other than that at `guid`: those of earlier transfers.
#[must_use]
pub fn old_cursors(dataset: &DatasetName, inventory: &DatasetInventory, to: &Target, guid: Guid) -> Vec<SnapName> {
    let family = cursor_family(dataset, to);
    let of_family = |name: &SnapName| name.as_str().strip_prefix(&family).is_some_and(is_guid);
    let old = inventory.bookmarks.iter().filter(|b| b.guid != guid && of_family(&b.name));
    old.map(|b| b.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Bookmark;

    fn target(host: &str, dataset: &str) -> Target {
        Target { host: host.parse().unwrap(), dataset: dataset.parse().unwrap() }
    }

    #[test]
    fn names_tell_by_eye_what_they_are_for() {
        let to = target("beta", "tank/copy/a");
        assert_eq!(sending(&to), "zsync:to:beta:tank/copy/a");
        assert_eq!(received(&to.host), "zsync:from:beta");
        let dataset = "tank/a".parse().unwrap();
        assert_eq!(cursor(&dataset, &to, Guid(255)).unwrap().as_str(), "zsync:beta:tank:copy:a:00000000000000ff");
    }

    #[test]
    fn names_never_grow_past_what_zfs_takes() {
        let to = target(&"h".repeat(250), &format!("tank/{}", "d".repeat(240)));
        assert!(sending(&to).len() <= LONGEST_TAG && received(&to.host).len() <= LONGEST_TAG);
        let dataset: DatasetName = format!("tank/{}", "s".repeat(190)).parse().unwrap();
        let cursor = cursor(&dataset, &to, Guid(u64::MAX)).unwrap();
        assert!(dataset.as_str().len() + 1 + cursor.as_str().len() <= MAX_FULL_NAME);
    }

    #[test]
    fn only_cursors_of_the_same_destination_are_old() {
        let (dataset, to) = ("tank/a".parse().unwrap(), target("beta", "tank/copy"));
        let mark = |name: &str, guid| Bookmark {
            name: name.parse().unwrap(),
            guid: Guid(guid),
            createtxg: guid,
            creation: chrono::DateTime::UNIX_EPOCH,
        };
        let inventory = DatasetInventory {
            bookmarks: vec![
                mark("zsync:beta:tank:copy:0000000000000001", 1),
                mark("zsync:beta:tank:copy:0000000000000002", 2),
                mark("zsync:beta:tank:copy:sub:0000000000000001", 1),
                mark("zsync:gamma:tank:copy:0000000000000001", 1),
                mark("by-hand", 1),
            ],
            ..DatasetInventory::default()
        };
        let old = old_cursors(&dataset, &inventory, &to, Guid(2));
        assert_eq!(old, ["zsync:beta:tank:copy:0000000000000001".parse().unwrap()]);
        let was_sent = |to: &Target| crate::model::tags::was_sent(&inventory, to);
        assert!(was_sent(&to) && was_sent(&target("beta", "tank/copy/sub")));
        assert!(!was_sent(&target("beta", "tank")) && !was_sent(&target("delta", "tank/copy")));
        let long = target("beta", &format!("tank/{}", "d".repeat(200)));
        let bookmarks = vec![mark(cursor(&dataset, &long, Guid(7)).unwrap().as_str(), 7)];
        assert!(crate::model::tags::was_sent(&DatasetInventory { bookmarks, ..DatasetInventory::default() }, &long));
    }
}
