//! Operations as arguments of `zfs`. Nothing else knows one of its flags.
//!
//! Names are checked types, so none can be taken for an option; see zfs(8) and its subcommands' pages for what
//! the flags mean.

use super::{Depth, ReceiveSpec, SendFrom, SendSpec};
use crate::model::{DatasetKind, DatasetName, SnapName};

/// The columns of a listing of datasets, in the order in which `parse::datasets` reads them.
pub const DATASET_COLUMNS: &str = "name,type,guid,written,encryption,receive_resume_token";
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
        Depth::Only => &["-d", "0"],
        Depth::Recursive => &["-r"],
    }));
    argv.extend(roots.iter().map(ToString::to_string));
    argv
}

/// Lists snapshots and bookmarks.
#[must_use]
pub fn list_snapshots(roots: &[DatasetName], depth: Depth) -> Vec<String> {
    let mut argv = words(&["list", "-Hp", "-t", "snapshot,bookmark", "-o", SNAPSHOT_COLUMNS]);
    argv.extend(words(match depth {
        Depth::Only => &["-d", "1"],
        Depth::Recursive => &["-r"],
    }));
    argv.extend(roots.iter().map(ToString::to_string));
    argv
}

/// Lists these snapshots.
#[must_use]
pub fn list_named(full_names: &[String]) -> Vec<String> {
    let mut argv = words(&["list", "-Hp", "-t", "snapshot", "-o", SNAPSHOT_COLUMNS]);
    argv.extend_from_slice(full_names);
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

/// Holds snapshots.
#[must_use]
pub fn hold(tag: &str, dataset: &DatasetName, snapshots: &[SnapName]) -> Vec<String> {
    let mut argv = words(&["hold", tag]);
    argv.extend(names(dataset, snapshots));
    argv
}

/// Releases a hold.
#[must_use]
pub fn release(tag: &str, dataset: &DatasetName, snapshots: &[SnapName]) -> Vec<String> {
    let mut argv = words(&["release", tag]);
    argv.extend(names(dataset, snapshots));
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

/// Sends. Blocks travel as they are stored: compressed, large, embedded; raw where encrypted (which implies all
/// three). A resumed send takes its flags from the token.
#[must_use]
pub fn send(spec: &SendSpec) -> Vec<String> {
    match spec {
        SendSpec::Resume { token } => vec!["send".to_owned(), "-t".to_owned(), token.clone()],
        SendSpec::Snapshot { dataset, to, from, raw } => {
            let mut argv = words(&["send", if *raw { "-w" } else { "-Lec" }]);
            match from {
                SendFrom::Nothing => {}
                SendFrom::Snapshot(base) => argv.extend(["-I".to_owned(), format!("@{base}")]),
                SendFrom::Bookmark(base) => argv.extend(["-i".to_owned(), format!("#{base}")]),
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

/// Receives: resumable, not mounted. What it creates is read-only and mounts neither by itself nor where the
/// source was mounted.
#[must_use]
pub fn receive(spec: &ReceiveSpec) -> Vec<String> {
    let mut argv = words(&["receive", "-s", "-u"]);
    if spec.overwrite {
        argv.push("-F".to_owned());
    }
    if let Some(kind) = spec.create {
        argv.extend(words(&["-o", "readonly=on"]));
        if kind == DatasetKind::Filesystem {
            argv.extend(words(&["-o", "canmount=noauto", "-x", "mountpoint"]));
        }
    }
    argv.push(spec.dataset.to_string());
    argv
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ds(text: &str) -> DatasetName {
        text.parse().unwrap()
    }

    fn snap(text: &str) -> SnapName {
        text.parse().unwrap()
    }

    #[test]
    fn sends_as_stored_and_raw_only_when_encrypted() {
        let spec = |from, raw| SendSpec::Snapshot { dataset: ds("tank/a"), to: snap("y"), from, raw };
        let line = |spec| send(&spec).join(" ");
        assert_eq!(line(spec(SendFrom::Nothing, false)), "send -Lec tank/a@y");
        assert_eq!(line(spec(SendFrom::Nothing, true)), "send -w tank/a@y");
        assert_eq!(line(spec(SendFrom::Snapshot(snap("x")), false)), "send -Lec -I @x tank/a@y");
        assert_eq!(line(spec(SendFrom::Bookmark(snap("x")), false)), "send -Lec -i #x tank/a@y");
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
            raw: false,
        };
        assert_eq!(size_of_send(&spec).join(" "), "send -nP -Lec -I @x tank/a@y");
        let token = "1-abc".to_owned();
        assert_eq!(size_of_send(&SendSpec::Resume { token }).join(" "), "send -nP -t 1-abc");
    }

    #[test]
    fn receives_without_force_and_without_mounting() {
        let line = |create, overwrite| receive(&ReceiveSpec { dataset: ds("tank/a"), create, overwrite }).join(" ");
        assert_eq!(line(None, false), "receive -s -u tank/a");
        assert_eq!(
            line(Some(DatasetKind::Filesystem), false),
            "receive -s -u -o readonly=on -o canmount=noauto -x mountpoint tank/a"
        );
        assert_eq!(line(Some(DatasetKind::Volume), false), "receive -s -u -o readonly=on tank/a");
        assert_eq!(line(None, true), "receive -s -u -F tank/a");
    }

    #[test]
    fn destroys_by_a_comma_list_and_never_recursively() {
        assert_eq!(destroy(&ds("tank/a"), &[snap("x"), snap("y")]), ["destroy", "tank/a@x,y"]);
    }
}
