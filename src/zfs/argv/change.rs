//! Operations as arguments of `zfs`. Nothing else knows one of its flags.
//!
//! Names are checked types, so none can be taken for an option; see zfs(8) and its subcommands' pages for what
//! the flags mean.

use crate::model::{DatasetName, SendFlags, SnapName};
use crate::zfs::{Depth, Named, ReceiveSpec, SendFrom, SendSpec};

/// The columns of a listing of datasets, in the order in which `parse::datasets` reads them.
///
/// Those of zsync's own come last: anybody who may set them may write anything there.
pub const DATASET_COLUMNS: &str =
    "name,type,guid,written,encryption,receive_resume_token,origin,zsync:exclude,zsync:flags";
/// The columns of a listing of snapshots and bookmarks. More of them, or `-o clones`, leave the fast path:
/// slower by one to three orders of magnitude.
pub const SNAPSHOT_COLUMNS: &str = "name,guid,createtxg,creation,userrefs";

fn words(fixed: &[&str]) -> Vec<String> {
    fixed.iter().map(|&w| w.to_owned()).collect()
}

fn names<'a>(dataset: &'a DatasetName, snapshots: &'a [SnapName]) -> impl Iterator<Item = String> + 'a {
    snapshots.iter().map(|name| dataset.at(name))
}

/// `zfs version`.
#[must_use]
pub fn version() -> Vec<String> {
    words(&["version"])
}

/// Lists filesystems and volumes.
#[must_use]
pub fn list_datasets(roots: &[DatasetName], depth: Depth) -> Vec<String> {
    let mut argv = words(&["list", "-Hp", "-t", "filesystem,volume", "-o", DATASET_COLUMNS]);
    argv.extend(words(match depth {
        Depth::Only | Depth::Bare | Depth::Around => &["-d", "0"],
        Depth::Recursive => &["-r"],
    }));
    argv.extend(roots.iter().map(ToString::to_string));
    argv
}

/// Lists datasets with all below them, each with when its snapshots were changed last, which OpenZFS tells from 2.2 on.
#[must_use]
pub fn list_changes(roots: &[DatasetName]) -> Vec<String> {
    let columns = format!("{DATASET_COLUMNS},snapshots_changed");
    let mut argv = words(&["list", "-Hp", "-t", "filesystem,volume", "-o", &columns, "-r"]);
    argv.extend(roots.iter().map(ToString::to_string));
    argv
}

/// Lists snapshots and bookmarks.
#[must_use]
pub fn list_snapshots(roots: &[DatasetName], depth: Depth) -> Vec<String> {
    let mut argv = words(&["list", "-Hp", "-t", "snapshot,bookmark", "-o", SNAPSHOT_COLUMNS]);
    argv.extend(words(match depth {
        Depth::Only | Depth::Bare | Depth::Around => &["-d", "1"],
        Depth::Recursive => &["-r"],
    }));
    argv.extend(roots.iter().map(ToString::to_string));
    argv
}

/// Lists the clones of these snapshots.
#[must_use]
pub fn list_clones(dataset: &DatasetName, snapshots: &[SnapName]) -> Vec<String> {
    let mut argv = words(&["list", "-Hp", "-t", "snapshot", "-o", "name,clones"]);
    argv.extend(names(dataset, snapshots));
    argv
}

/// Asks how much was written since a snapshot.
#[must_use]
pub fn written_since(datasets: &[DatasetName], name: &SnapName) -> Vec<String> {
    let mut argv = words(&["get", "-Hp", "-o", "name,value"]);
    argv.push(format!("written@{name}"));
    argv.extend(datasets.iter().map(ToString::to_string));
    argv
}

/// Takes snapshots in one transaction group.
#[must_use]
pub fn snapshot(datasets: &[DatasetName], name: &SnapName) -> Vec<String> {
    let mut argv = words(&["snapshot"]);
    argv.extend(datasets.iter().map(|d| d.at(name)));
    argv
}

/// Has a dataset's pool written out: the one command of `zpool`.
#[must_use]
pub fn sync_pool(dataset: &DatasetName) -> Vec<String> {
    vec!["sync".to_owned(), dataset.pool().to_owned()]
}

/// Destroys snapshots of one dataset: never with `-R`, which takes clones along.
#[must_use]
pub fn destroy(dataset: &DatasetName, snapshots: &[SnapName]) -> Vec<String> {
    let list: Vec<&str> = snapshots.iter().map(SnapName::as_str).collect();
    vec!["destroy".to_owned(), format!("{dataset}@{}", list.join(","))]
}

/// Destroys snapshots of one dataset by guid: the script is [`DESTROY`], on standard input.
#[must_use]
pub fn destroy_proven(dataset: &DatasetName, victims: &[Named], guards: &[Named], all: bool) -> Vec<String> {
    let mut argv = words(&["program", "-j", dataset.pool(), "-", dataset.as_str(), if all { "all" } else { "each" }]);
    argv.push(guards.len().to_string());
    // A program's numbers are signed; with the signs before them, neither a number nor a name is taken for an option.
    let pair = |n: &Named| [format!("@{}", n.name), format!("={}", n.guid.0.cast_signed())];
    argv.extend(guards.iter().chain(victims).flat_map(pair));
    argv
}

/// What [`destroy_proven`] runs; see zfs-program(8).
pub const DESTROY: &str = include_str!("destroy.lua");

/// Holds snapshots.
#[must_use]
pub fn hold(tag: &str, full_names: &[String]) -> Vec<String> {
    let mut argv = words(&["hold", tag]);
    argv.extend_from_slice(full_names);
    argv
}

/// Releases a hold.
#[must_use]
pub fn release(tag: &str, full_names: &[String]) -> Vec<String> {
    let mut argv = words(&["release", tag]);
    argv.extend_from_slice(full_names);
    argv
}

/// Lists holds.
#[must_use]
pub fn holds(dataset: &DatasetName, snapshots: &[SnapName]) -> Vec<String> {
    let mut argv = words(&["holds", "-H"]);
    argv.extend(names(dataset, snapshots));
    argv
}

/// Makes a bookmark.
#[must_use]
pub fn bookmark(dataset: &DatasetName, snapshot: &SnapName, bookmark: &SnapName) -> Vec<String> {
    vec!["bookmark".to_owned(), dataset.at(snapshot), format!("{dataset}#{bookmark}")]
}

/// What one script writes of many datasets.
#[derive(Clone, Debug)]
pub enum Write {
    /// A bookmark: of whose snapshot, under which name.
    Bookmark(DatasetName, Named, SnapName),
    /// A user's property and its value.
    Property(DatasetName, String, String),
}

impl Write {
    /// The pool that is written to.
    #[must_use]
    pub fn pool(&self) -> &str {
        match self {
            Self::Bookmark(dataset, ..) | Self::Property(dataset, ..) => dataset.pool(),
        }
    }
}

/// Makes bookmarks and sets users' properties of datasets of one pool: the script is [`WRITE`], on standard input.
#[must_use]
pub fn write(pool: &str, wanted: &[Write]) -> Vec<String> {
    let mut argv = words(&["program", "-j", pool, "-"]);
    argv.extend(wanted.iter().flat_map(|write| match write {
        Write::Bookmark(dataset, of, bookmark) => {
            [dataset.at(&of.name), format!("={}", of.guid.0.cast_signed()), format!("{dataset}#{bookmark}")]
        }
        Write::Property(dataset, property, value) => [dataset.to_string(), property.clone(), format!("={value}")],
    }));
    argv
}

/// What [`write()`] runs; see zfs-program(8).
pub const WRITE: &str = include_str!("write.lua");

/// Lists one bookmark.
#[must_use]
pub fn list_bookmark(dataset: &DatasetName, bookmark: &SnapName) -> Vec<String> {
    let mut argv = words(&["list", "-Hp", "-t", "bookmark", "-o", SNAPSHOT_COLUMNS]);
    argv.push(format!("{dataset}#{bookmark}"));
    argv
}

/// Renames a dataset.
#[must_use]
pub fn rename(dataset: &DatasetName, to: &DatasetName) -> Vec<String> {
    vec!["rename".to_owned(), dataset.to_string(), to.to_string()]
}

/// Sets a property.
#[must_use]
pub fn set(dataset: &DatasetName, property: &str, value: &str) -> Vec<String> {
    vec!["set".to_owned(), format!("{property}={value}"), dataset.to_string()]
}

/// Asks for the properties that were set on a dataset itself.
#[must_use]
pub fn properties(dataset: &DatasetName) -> Vec<String> {
    let mut argv = words(&["get", "-Hp", "-s", "local,received", "-o", "property,value", "all"]);
    argv.push(dataset.to_string());
    argv
}

/// Makes a clone with these properties.
#[must_use]
pub fn make_clone(
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

/// Destroys a clone: without `-r`, so that what is below it or was taken of it keeps it there.
#[must_use]
pub fn destroy_clone(clone: &DatasetName) -> Vec<String> {
    vec!["destroy".to_owned(), clone.to_string()]
}

/// Destroys a bookmark.
#[must_use]
pub fn destroy_bookmark(dataset: &DatasetName, bookmark: &SnapName) -> Vec<String> {
    vec!["destroy".to_owned(), format!("{dataset}#{bookmark}")]
}

/// Rolls back; without `-r`, so that no snapshot can be lost.
#[must_use]
pub fn rollback(dataset: &DatasetName, to: &SnapName) -> Vec<String> {
    vec!["rollback".to_owned(), dataset.at(to)]
}

/// Throws away a partial receive.
#[must_use]
pub fn abort_receive(dataset: &DatasetName) -> Vec<String> {
    vec!["receive".to_owned(), "-A".to_owned(), dataset.to_string()]
}

/// Creates a dataset that only holds others together.
#[must_use]
pub fn create_ancestor(dataset: &DatasetName) -> Vec<String> {
    let mut argv = words(&["create", "-o", "canmount=off", "-o", "mountpoint=none"]);
    argv.push(dataset.to_string());
    argv
}

fn send_flags(flags: SendFlags) -> Option<String> {
    match flags {
        SendFlags::Raw => Some("-w".to_owned()),
        SendFlags::Plain { large: false, embedded: false, compressed: false } => None,
        SendFlags::Plain { .. } => Some(format!("-{flags}")),
    }
}

/// Sends. A resumed send takes its flags from the token.
#[must_use]
pub fn send(spec: &SendSpec) -> Vec<String> {
    match spec {
        SendSpec::Resume { token } => vec!["send".to_owned(), "-t".to_owned(), token.clone()],
        SendSpec::Snapshot { dataset, to, from, flags } => {
            let mut argv = words(&["send"]);
            argv.extend(send_flags(*flags));
            match from {
                SendFrom::Nothing => {}
                SendFrom::Snapshot(base) => argv.extend(["-I".to_owned(), format!("@{base}")]),
                SendFrom::Before(base) => argv.extend(["-i".to_owned(), format!("@{base}")]),
                SendFrom::Bookmark(base) => argv.extend(["-i".to_owned(), format!("#{base}")]),
                SendFrom::Origin(of, base) => argv.extend(["-i".to_owned(), of.at(base)]),
            }
            argv.push(dataset.at(to));
            argv
        }
    }
}

/// Asks how large a send would be, without sending it.
#[must_use]
pub fn size_of_send(spec: &SendSpec) -> Vec<String> {
    let mut argv = send(spec);
    argv.insert(1, "-nP".to_owned());
    argv
}

/// Asks what a destroy would free, without destroying anything.
#[must_use]
pub fn size_of_destroy(dataset: &DatasetName, snapshots: &[SnapName]) -> Vec<String> {
    let mut argv = destroy(dataset, snapshots);
    argv.insert(1, "-nvp".to_owned());
    argv
}

/// Asks what a resumed send would send, without sending it.
#[must_use]
pub fn resumable(token: &str) -> Vec<String> {
    vec!["send".to_owned(), "-nPt".to_owned(), token.to_owned()]
}

/// Receives: resumable, not mounted.
#[must_use]
pub fn receive(spec: &ReceiveSpec) -> Vec<String> {
    let mut argv = words(&["receive", "-s", "-u"]);
    if spec.overwrite {
        argv.push("-F".to_owned());
    }
    if let Some((dataset, name)) = &spec.origin {
        argv.extend(["-o".to_owned(), format!("origin={}", dataset.at(name))]);
    }
    for (property, value) in &spec.properties {
        argv.extend(["-o".to_owned(), format!("{property}={value}")]);
    }
    argv.push(spec.dataset.to_string());
    argv
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::Guid;

    fn ds(text: &str) -> DatasetName {
        text.parse().unwrap()
    }

    fn snap(text: &str) -> SnapName {
        text.parse().unwrap()
    }

    #[test]
    fn sends_with_the_flags_that_are_given() {
        let spec = |from, flags| SendSpec::Snapshot { dataset: ds("tank/a"), to: snap("y"), from, flags };
        let line = |spec| send(&spec).join(" ");
        assert_eq!(line(spec(SendFrom::Nothing, SendFlags::PLAIN)), "send -Lec tank/a@y");
        assert_eq!(line(spec(SendFrom::Nothing, SendFlags::Raw)), "send -w tank/a@y");
        assert_eq!(line(spec(SendFrom::Nothing, "-".parse().unwrap())), "send tank/a@y");
        assert_eq!(line(spec(SendFrom::Snapshot(snap("x")), SendFlags::PLAIN)), "send -Lec -I @x tank/a@y");
        assert_eq!(line(spec(SendFrom::Before(snap("x")), SendFlags::PLAIN)), "send -Lec -i @x tank/a@y");
        assert_eq!(line(spec(SendFrom::Bookmark(snap("x")), SendFlags::PLAIN)), "send -Lec -i #x tank/a@y");
        let origin = SendFrom::Origin(ds("tank/o"), snap("x"));
        assert_eq!(line(spec(origin, SendFlags::Raw)), "send -w -i tank/o@x tank/a@y");
        assert_eq!(line(SendSpec::Resume { token: "1-abc".into() }), "send -t 1-abc");
    }

    #[test]
    fn what_only_asks_changes_nothing() {
        let names = [snap("x"), snap("y")];
        assert_eq!(size_of_destroy(&ds("tank/a"), &names).join(" "), "destroy -nvp tank/a@x,y");
        let spec = SendSpec::Snapshot {
            dataset: ds("tank/a"),
            to: snap("y"),
            from: SendFrom::Snapshot(snap("x")),
            flags: SendFlags::PLAIN,
        };
        assert_eq!(size_of_send(&spec).join(" "), "send -nP -Lec -I @x tank/a@y");
        let token = "1-abc".to_owned();
        assert_eq!(size_of_send(&SendSpec::Resume { token }).join(" "), "send -nP -t 1-abc");
    }

    #[test]
    fn receives_without_force_and_without_mounting() {
        let spec = ReceiveSpec { dataset: ds("tank/a"), properties: BTreeMap::new(), origin: None, overwrite: false };
        let line = |spec: &ReceiveSpec| receive(spec).join(" ");
        assert_eq!(line(&spec), "receive -s -u tank/a");
        assert_eq!(line(&ReceiveSpec { overwrite: true, ..spec.clone() }), "receive -s -u -F tank/a");
        let properties = [("canmount", "noauto"), ("readonly", "on")];
        let properties = properties.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let clone = ReceiveSpec { properties, origin: Some((ds("tank/o"), snap("x"))), ..spec };
        assert_eq!(line(&clone), "receive -s -u -o origin=tank/o@x -o canmount=noauto -o readonly=on tank/a");
    }

    #[test]
    fn a_proven_destroy_names_every_snapshot_with_its_guid() {
        let named = |name: &str, guid| Named { name: snap(name), guid: Guid(guid) };
        let argv = destroy_proven(&ds("tank/a"), &[named("x", 7), named("y", u64::MAX)], &[named("b", 5)], false);
        assert_eq!(argv.join(" "), "program -j tank - tank/a each 1 @b =5 @x =7 @y =-1");
    }

    #[test]
    fn a_clone_is_made_with_its_mark_and_destroyed_alone() {
        let argv =
            make_clone(&ds("tank/a"), &snap("x"), &ds("tank/c"), &[("zsync:clone", "7"), ("zsync:exclude", "on")]);
        assert_eq!(argv.join(" "), "clone -o zsync:clone=7 -o zsync:exclude=on tank/a@x tank/c");
        assert_eq!(destroy_clone(&ds("tank/c")), ["destroy", "tank/c"]);
    }

    #[test]
    fn destroys_by_a_comma_list_and_never_recursively() {
        assert_eq!(destroy(&ds("tank/a"), &[snap("x"), snap("y")]), ["destroy", "tank/a@x,y"]);
    }
}
