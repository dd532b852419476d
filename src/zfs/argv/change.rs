//! Builds the arguments of commands that change datasets and snapshots.

use crate::model::tags::{ARRIVED, PARENT};
use crate::model::{DatasetName, SnapName};
use crate::zfs::Named;
use crate::zfs::argv::words::words;

/// How long the comma list of one command may be: Linux limits one argument to 128 KiB.
const MAX_ARGUMENT: usize = 100 * 1024;

/// Takes snapshots in one transaction group.
pub(crate) fn snapshot(datasets: &[DatasetName], name: &SnapName) -> Vec<String> {
    let mut argv = words(&["snapshot"]);
    argv.extend(datasets.iter().map(|d| d.at(name)));
    argv
}

/// Writes the pending data of a dataset's pool to disk. No other command of `zpool` is used.
pub(crate) fn sync_pool(dataset: &DatasetName) -> Vec<String> {
    vec!["sync".to_owned(), dataset.pool().to_owned()]
}

/// Destroys snapshots of one dataset by name. Never with `-R`, which would destroy their clones too.
pub(crate) fn destroy(dataset: &DatasetName, snapshots: &[SnapName]) -> Vec<String> {
    let list: Vec<&str> = snapshots.iter().map(SnapName::as_str).collect();
    vec!["destroy".to_owned(), format!("{dataset}@{}", list.join(","))]
}

/// Splits names into lists that each fit into one argument.
pub(crate) fn comma_lists(mut rest: &[SnapName]) -> impl Iterator<Item = &[SnapName]> {
    std::iter::from_fn(move || {
        let mut length = 0;
        let fitting = rest.iter().take_while(|name| {
            length += name.as_str().len() + 1;
            length < MAX_ARGUMENT
        });
        let (list, later) = rest.split_at(fitting.count().max(1).min(rest.len()));
        rest = later;
        (!list.is_empty()).then_some(list)
    })
}

/// Reports how much a destroy would free; nothing is destroyed.
pub(crate) fn size_of_destroy(dataset: &DatasetName, snapshots: &[SnapName]) -> Vec<String> {
    let mut argv = destroy(dataset, snapshots);
    argv.insert(1, "-nvp".to_owned());
    argv
}

/// Destroys snapshots of one dataset by guid. The script, [`DESTROY_SCRIPT`], is passed on standard input.
pub(crate) fn destroy_by_guid(dataset: &DatasetName, victims: &[Named], guards: &[Named], all: bool) -> Vec<String> {
    let mut argv = words(&["program", "-j", dataset.pool(), "-", dataset.as_str(), if all { "all" } else { "each" }]);
    argv.push(guards.len().to_string());
    // The numbers of a channel program are signed. The prefixes keep names and numbers from being mistaken for options.
    let pair = |n: &Named| [format!("@{}", n.name), format!("={}", n.guid.0.cast_signed())];
    argv.extend(guards.iter().chain(victims).flat_map(pair));
    argv
}

/// The channel program of [`destroy_by_guid`]; see zfs-program(8).
pub(crate) const DESTROY_SCRIPT: &str = include_str!("destroy.lua");

/// A change that [`CHANGE_SCRIPT`] can make.
#[derive(Clone, Debug)]
pub(crate) enum ScriptedChange {
    /// Makes a bookmark: the dataset, the snapshot, and the name of the bookmark.
    Bookmark(DatasetName, Named, SnapName),
    /// Sets a user property: the dataset, the property, and its value.
    Property(DatasetName, String, String),
    /// Records when a snapshot arrived: the dataset, the snapshot, and the value of the property.
    Arrival(DatasetName, SnapName, String),
}

impl ScriptedChange {
    /// The pool that is changed.
    pub(crate) fn pool(&self) -> &str {
        match self {
            Self::Bookmark(dataset, ..) | Self::Property(dataset, ..) | Self::Arrival(dataset, ..) => dataset.pool(),
        }
    }
}

/// Makes changes to datasets of one pool. The script, [`CHANGE_SCRIPT`], is passed on standard input.
pub(crate) fn change(pool: &str, changes: &[ScriptedChange]) -> Vec<String> {
    let mut argv = words(&["program", "-j", pool, "-"]);
    argv.extend(changes.iter().flat_map(|change| match change {
        ScriptedChange::Bookmark(dataset, of, bookmark) => {
            [dataset.at(&of.name), format!("={}", of.guid.0.cast_signed()), format!("{dataset}#{bookmark}")]
        }
        ScriptedChange::Property(dataset, property, value) => {
            [dataset.to_string(), property.clone(), format!("={value}")]
        }
        ScriptedChange::Arrival(dataset, name, value) => [dataset.at(name), ARRIVED.to_owned(), format!("={value}")],
    }));
    argv
}

/// The channel program of [`change`]; see zfs-program(8).
pub(crate) const CHANGE_SCRIPT: &str = include_str!("change.lua");

/// Holds snapshots.
pub(crate) fn hold(tag: &str, full_names: &[String]) -> Vec<String> {
    let mut argv = words(&["hold", tag]);
    argv.extend_from_slice(full_names);
    argv
}

/// Releases holds.
pub(crate) fn release(tag: &str, full_names: &[String]) -> Vec<String> {
    let mut argv = words(&["release", tag]);
    argv.extend_from_slice(full_names);
    argv
}

/// Makes a bookmark.
pub(crate) fn bookmark(dataset: &DatasetName, snapshot: &SnapName, bookmark: &SnapName) -> Vec<String> {
    vec!["bookmark".to_owned(), dataset.at(snapshot), format!("{dataset}#{bookmark}")]
}

/// Destroys a bookmark.
pub(crate) fn destroy_bookmark(dataset: &DatasetName, bookmark: &SnapName) -> Vec<String> {
    vec!["destroy".to_owned(), format!("{dataset}#{bookmark}")]
}

/// Renames a dataset.
pub(crate) fn rename(dataset: &DatasetName, to: &DatasetName) -> Vec<String> {
    vec!["rename".to_owned(), dataset.to_string(), to.to_string()]
}

/// Sets a property.
pub(crate) fn set(dataset: &DatasetName, property: &str, value: &str) -> Vec<String> {
    vec!["set".to_owned(), format!("{property}={value}"), dataset.to_string()]
}

/// Makes a dataset inherit a property again.
pub(crate) fn inherit(dataset: &DatasetName, property: &str) -> Vec<String> {
    vec!["inherit".to_owned(), property.to_owned(), dataset.to_string()]
}

/// Makes a dataset use the key of the dataset above it.
pub(crate) fn inherit_key(dataset: &DatasetName) -> Vec<String> {
    vec!["change-key".to_owned(), "-i".to_owned(), dataset.to_string()]
}

/// Mounts a filesystem.
pub(crate) fn mount(dataset: &DatasetName) -> Vec<String> {
    vec!["mount".to_owned(), dataset.to_string()]
}

/// Records when snapshots of a dataset arrived.
pub(crate) fn set_arrivals(dataset: &DatasetName, names: &[SnapName], value: &str) -> Vec<String> {
    let mut argv = vec!["set".to_owned(), format!("{ARRIVED}={value}")];
    argv.extend(names.iter().map(|name| dataset.at(name)));
    argv
}

/// Makes a clone with these properties.
pub(crate) fn make_clone(
    dataset: &DatasetName,
    of: &SnapName,
    clone: &DatasetName,
    properties: &[(&str, &str)],
) -> Vec<String> {
    let mut argv = words(&["clone"]);
    argv.extend(properties.iter().flat_map(|(name, value)| ["-o".to_owned(), format!("{name}={value}")]));
    argv.extend([dataset.at(of), clone.to_string()]);
    argv
}

/// Destroys a clone. Without `-r`, so that it fails if the clone has snapshots or datasets below it.
pub(crate) fn destroy_clone(clone: &DatasetName) -> Vec<String> {
    vec!["destroy".to_owned(), clone.to_string()]
}

/// Rolls back. Without `-r`, so that no snapshot can be lost.
pub(crate) fn rollback(dataset: &DatasetName, to: &SnapName) -> Vec<String> {
    vec!["rollback".to_owned(), dataset.at(to)]
}

/// Discards the partial state of an interrupted receive.
pub(crate) fn abort_receive(dataset: &DatasetName) -> Vec<String> {
    vec!["receive".to_owned(), "-A".to_owned(), dataset.to_string()]
}

/// Creates a dataset that only contains others. If `marked` is set, a property marks it as one that gives way to a
/// copy.
/// With `plain`, it is not encrypted, although the dataset above it is.
pub(crate) fn create_ancestor(dataset: &DatasetName, marked: bool, plain: bool) -> Vec<String> {
    let mut argv = words(&["create", "-o", "canmount=off", "-o", "mountpoint=none"]);
    if plain {
        argv.extend(words(&["-o", "encryption=off"]));
    }
    if marked {
        argv.extend(["-o".to_owned(), format!("{PARENT}={dataset}")]);
    }
    argv.push(dataset.to_string());
    argv
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Guid;

    fn ds(text: &str) -> DatasetName {
        text.parse().unwrap()
    }

    fn snap(text: &str) -> SnapName {
        text.parse().unwrap()
    }

    #[test]
    fn destroy_takes_a_comma_list_and_is_never_recursive() {
        let names = [snap("x"), snap("y")];
        assert_eq!(destroy(&ds("tank/a"), &names), ["destroy", "tank/a@x,y"]);
        assert_eq!(size_of_destroy(&ds("tank/a"), &names).join(" "), "destroy -nvp tank/a@x,y");
    }

    #[test]
    fn comma_lists_hold_every_name_and_fit_into_an_argument() {
        let names: Vec<SnapName> = (0..3000).map(|n| snap(&format!("{n:0>100}"))).collect();
        let lists: Vec<&[SnapName]> = comma_lists(&names).collect();
        assert_eq!(lists.len(), 3);
        assert_eq!(lists.concat(), names);
        assert!(lists.iter().all(|list| list.len() * 101 <= MAX_ARGUMENT));
        assert_eq!(comma_lists(&[]).count(), 0);
    }

    #[test]
    fn destroy_by_guid_names_every_snapshot_with_its_guid() {
        let named = |name: &str, guid| Named { name: snap(name), guid: Guid(guid) };
        let argv = destroy_by_guid(&ds("tank/a"), &[named("x", 7), named("y", u64::MAX)], &[named("b", 5)], false);
        assert_eq!(argv.join(" "), "program -j tank - tank/a each 1 @b =5 @x =7 @y =-1");
    }

    #[test]
    fn clone_is_made_with_its_properties_and_destroyed_alone() {
        let argv =
            make_clone(&ds("tank/a"), &snap("x"), &ds("tank/c"), &[("zsync:clone", "7"), ("zsync:exclude", "on")]);
        assert_eq!(argv.join(" "), "clone -o zsync:clone=7 -o zsync:exclude=on tank/a@x tank/c");
        assert_eq!(destroy_clone(&ds("tank/c")), ["destroy", "tank/c"]);
    }
}
