//! Performs the same operations on the fake and on real ZFS, and prints what each of them says and leaves behind. The
//! scenario of the same name compares both, so that the fake refuses, clashes and words its errors as ZFS does.
//!
//! Usage: `fake_and_real fake|real POOL`. With `real`, the pool must exist and be empty.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use zsync::model::{Counter, DatasetName, Guid, SendFlags, SnapName};
use zsync::sys::runtime;
use zsync::zfs::fake::Fake;
use zsync::zfs::system::System;
use zsync::zfs::{Depth, Named, ReceiveSpec, SendFrom, SendSpec, Zfs, ZfsError};

/// What an administrator does by hand.
trait ByHand {
    fn create(&self, dataset: &DatasetName);
    fn write(&self, dataset: &DatasetName);
}

impl ByHand for Fake {
    fn create(&self, dataset: &DatasetName) {
        Fake::create(self, dataset);
    }

    fn write(&self, dataset: &DatasetName) {
        Fake::write(self, dataset, 1 << 20);
    }
}

impl ByHand for System {
    fn create(&self, dataset: &DatasetName) {
        run("zfs", &["create", dataset.as_str()]);
    }

    fn write(&self, dataset: &DatasetName) {
        if run("zfs", &["get", "-Ho", "value", "mounted", dataset.as_str()]).trim() == "no" {
            run("zfs", &["mount", dataset.as_str()]);
        }
        let mut bytes = vec![0; 1 << 20];
        std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
        let folder = run("zfs", &["get", "-Ho", "value", "mountpoint", dataset.as_str()]);
        std::fs::write(Path::new(folder.trim()).join("file"), bytes).unwrap();
        run("zpool", &["sync", dataset.pool()]);
    }
}

/// Runs a program that must succeed, and returns its output.
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn snap(name: &str) -> SnapName {
    name.parse().unwrap()
}

/// What differs from run to run is replaced: resume tokens and guids. The usage that some messages end with is left
/// out.
fn normal(words: &str) -> String {
    let words = words.split("usage:").next().unwrap_or_default().trim().replace('\n', "; ");
    let word = |word: &str| match word {
        token if token.starts_with("1-") && token.len() > 40 => "TOKEN".to_owned(),
        guid if guid.starts_with("0x") => "GUID".to_owned(),
        other => other.to_owned(),
    };
    words.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

struct Comparison<Z> {
    zfs: Z,
    pool: DatasetName,
    listing: String,
}

impl<Z: Zfs + ByHand> Comparison<Z> {
    fn dataset(&self, name: &str) -> DatasetName {
        self.pool.join(name).unwrap()
    }

    /// Prints the result of an operation, and the pool if the operation changed it.
    async fn told<T: Debug>(&mut self, what: &str, result: Result<T, ZfsError>) {
        match result {
            Ok(value) => println!("{what}: {value:?}"),
            Err(error) => println!("{what}: {:?}: {}", error.kind, normal(&error.stderr)),
        }
        let listing = self.listing().await;
        if listing != self.listing {
            print!("{listing}");
            self.listing = listing;
        }
    }

    async fn listing(&self) -> String {
        let mut listed = self.zfs.list(std::slice::from_ref(&self.pool), Depth::Recursive).await.unwrap();
        listed.sort_by(|a, b| a.0.cmp(&b.0));
        let mut listing = String::new();
        for (name, found) in listed {
            listing += &format!("  {name}");
            if let Some(origin) = &found.origin {
                listing += &format!(" of {}@{}", origin.dataset, origin.name);
            }
            if found.resume_token.is_some() {
                listing += " resumable";
            }
            for snapshot in &found.snapshots {
                let cloned = if snapshot.has_clones { "+" } else { "" };
                listing += &format!(" @{}({}{cloned})", snapshot.name, snapshot.userrefs);
            }
            found.bookmarks.iter().for_each(|bookmark| listing += &format!(" #{}", bookmark.name));
            listing.push('\n');
        }
        listing
    }

    /// A snapshot with its guid; with guid 1 if it does not exist.
    async fn named(&self, dataset: &str, name: &str) -> Named {
        let history = self.zfs.snapshots(&self.dataset(dataset)).await.unwrap();
        let snapshots = history.map(|(snapshots, _)| snapshots).unwrap_or_default();
        let found = snapshots.iter().find(|s| s.name.as_str() == name);
        Named { name: snap(name), guid: found.map_or(Guid(1), |s| s.guid) }
    }

    fn sending(&self, dataset: &str, to: &str, from: SendFrom) -> SendSpec {
        SendSpec::Snapshot { dataset: self.dataset(dataset), to: snap(to), from, flags: SendFlags::PLAIN }
    }

    fn receiving(&self, dataset: &str) -> ReceiveSpec {
        ReceiveSpec {
            dataset: self.dataset(dataset),
            properties: BTreeMap::new(),
            origin: None,
            overwrite: false,
            is_unresumable: false,
        }
    }

    async fn sent(&self, spec: &SendSpec) -> Result<Vec<u8>, ZfsError> {
        let mut stream = self.zfs.send(spec).await?;
        let mut bytes = Vec::new();
        stream.data.read_to_end(&mut bytes).await.unwrap();
        stream.end.await.map(|()| bytes)
    }

    async fn received(&self, spec: &ReceiveSpec, bytes: &[u8]) -> Result<(), ZfsError> {
        let mut stream = self.zfs.receive(spec).await?;
        // A receive that refuses its stream does not read it all.
        let _refused = stream.data.write_all(bytes).await;
        let _closed = stream.data.close().await;
        drop(stream.data);
        stream.end.await
    }

    async fn copied(&self, send: &SendSpec, receive: &ReceiveSpec) -> Result<(), ZfsError> {
        self.zfs.copy(send, receive, &Counter::default(), Duration::from_secs(60)).await
    }

    async fn snapshots(&mut self) {
        let (data, none) = (self.dataset("data"), self.dataset("none"));
        let taken = |result: Result<Vec<_>, ZfsError>| result.map(|histories| histories.len());
        let result = self.zfs.list(std::slice::from_ref(&none), Depth::Only).await;
        self.told("list, no dataset", result).await;
        let result = self.zfs.snapshots(&none).await;
        self.told("list snapshots, no dataset", result).await;
        let result = taken(self.zfs.snapshot(std::slice::from_ref(&data), &snap("1")).await);
        self.told("snapshot", result).await;
        let result = taken(self.zfs.snapshot(std::slice::from_ref(&data), &snap("1")).await);
        self.told("snapshot, exists", result).await;
        let result = taken(self.zfs.snapshot(&[self.pool.clone(), data.clone()], &snap("1")).await);
        self.told("snapshot of two, one exists", result).await;
        let result = taken(self.zfs.snapshot(std::slice::from_ref(&none), &snap("1")).await);
        self.told("snapshot, no dataset", result).await;
        let result = taken(self.zfs.snapshot(&[data.clone(), none.clone()], &snap("2")).await);
        self.told("snapshot of two, one is no dataset", result).await;
        let result = taken(self.zfs.snapshot(std::slice::from_ref(&data), &snap(&"n".repeat(250))).await);
        self.told("snapshot, name too long", result).await;
        self.zfs.write(&data);
        let result = taken(self.zfs.snapshot(std::slice::from_ref(&data), &snap("2")).await);
        self.told("snapshot after a write", result).await;
    }

    async fn properties(&mut self) {
        let (data, none) = (self.dataset("data"), self.dataset("none"));
        let result = self.zfs.properties(&none).await;
        self.told("properties, no dataset", result).await;
        let result = self.zfs.arrivals(&none).await;
        self.told("arrivals, no dataset", result).await;
        let result = self.zfs.written_since(std::slice::from_ref(&none), &snap("1")).await;
        self.told("written since, no dataset", result).await;
        let result = self.zfs.written_since(std::slice::from_ref(&data), &snap("none")).await;
        self.told("written since, no snapshot", result).await;
        let result = self.zfs.size_of_destroy(&none, &[snap("1")]).await.map(|size| size.is_some());
        self.told("size of destroy, no dataset", result).await;
        let result = self.zfs.size_of_destroy(&data, &[snap("none")]).await.map(|size| size.is_some());
        self.told("size of destroy, no snapshot", result).await;
        let result = self.zfs.key_users(&none).await;
        self.told("users of a key, no dataset", result).await;
        let result = self.zfs.keys(&none).await;
        self.told("keys, no dataset", result).await;
        let result = self.zfs.keys(&data).await;
        self.told("keys, not encrypted", result).await;
        let result = self.zfs.inherit_key(&none).await;
        self.told("inherit a key, no dataset", result).await;
        let result = self.zfs.inherit_key(&data).await;
        self.told("inherit a key, not encrypted", result).await;
        let result = self.zfs.set(&data, "zsync:test", "a b").await;
        self.told("set", result).await;
        let result = self.zfs.set(&none, "zsync:test", "a b").await;
        self.told("set, no dataset", result).await;
        let result = self.zfs.properties(&data).await.map(|all| all.get("zsync:test").cloned());
        self.told("properties", result).await;
        let result = self.zfs.inherit(&data, "canmount").await;
        self.told("inherit what cannot be inherited", result).await;
        let result = self.zfs.inherit(&none, "zsync:test").await;
        self.told("inherit, no dataset", result).await;
        let result = self.zfs.inherit(&data, "zsync:test").await;
        self.told("inherit", result).await;
        let result = self.zfs.set_arrivals(&data, &[snap("1")], "now").await;
        self.told("set arrivals", result).await;
        let result = self.zfs.set_arrivals(&data, &[snap("none")], "now").await;
        self.told("set arrivals, no snapshot", result).await;
        let result = self.zfs.arrivals(&data).await;
        self.told("arrivals", result).await;
    }

    async fn holds(&mut self) {
        let (data, none) = (self.dataset("data"), self.dataset("none"));
        let result = self.zfs.hold("tag", &data, &[snap("1")]).await;
        self.told("hold", result).await;
        let result = self.zfs.hold("tag", &data, &[snap("1")]).await;
        self.told("hold twice", result).await;
        let result = self.zfs.hold("tag", &data, &[snap("none")]).await;
        self.told("hold, no snapshot", result).await;
        let result = self.zfs.hold("tag", &none, &[snap("1")]).await;
        self.told("hold, no dataset", result).await;
        let result = self.zfs.holds(&data, &[snap("1")]).await;
        self.told("holds", result).await;
        let result = self.zfs.holds(&data, &[snap("none")]).await;
        self.told("holds, no snapshot", result).await;
        let result = self.zfs.release("other", &data, &[snap("1")]).await;
        self.told("release, no such tag", result).await;
        let result = self.zfs.release("tag", &data, &[snap("none")]).await;
        self.told("release, no snapshot", result).await;
        let result = self.zfs.release("tag", &none, &[snap("1")]).await;
        self.told("release, no dataset", result).await;
        let result = self.zfs.release("tag", &data, &[snap("1")]).await;
        self.told("release", result).await;
        let result = self.zfs.release("tag", &data, &[snap("1")]).await;
        self.told("release twice", result).await;
    }

    async fn bookmarks(&mut self) {
        let (data, none) = (self.dataset("data"), self.dataset("none"));
        let (first, second) = (self.named("data", "1").await, self.named("data", "2").await);
        let result = self.zfs.bookmark(&data, &first, &snap("b")).await;
        self.told("bookmark", result).await;
        let result = self.zfs.bookmark(&data, &first, &snap("b")).await;
        self.told("bookmark twice", result).await;
        let result = self.zfs.bookmark(&data, &second, &snap("b")).await;
        self.told("bookmark, exists for another snapshot", result).await;
        let result = self.zfs.bookmark(&data, &Named { guid: Guid(1), ..first.clone() }, &snap("c")).await;
        self.told("bookmark, another guid", result).await;
        let result = self.zfs.bookmark(&data, &Named { name: snap("none"), ..first.clone() }, &snap("c")).await;
        self.told("bookmark, no snapshot", result).await;
        let result = self.zfs.bookmark(&none, &first, &snap("c")).await;
        self.told("bookmark, no dataset", result).await;
        let result = self.zfs.destroy_bookmark(&data, &snap("b")).await;
        self.told("destroy bookmark", result).await;
        let result = self.zfs.destroy_bookmark(&data, &snap("b")).await;
        self.told("destroy bookmark twice", result).await;
        let result = self.zfs.destroy_bookmark(&none, &snap("b")).await;
        self.told("destroy bookmark, no dataset", result).await;
    }

    async fn clones(&mut self) {
        let (data, clone) = (self.dataset("data"), self.dataset("clone"));
        let result = self.zfs.make_clone(&data, &snap("2"), &clone, &[("zsync:exclude", "on")]).await;
        self.told("clone", result).await;
        let result = self.zfs.make_clone(&data, &snap("2"), &clone, &[]).await;
        self.told("clone, exists", result).await;
        let result = self.zfs.make_clone(&data, &snap("none"), &self.dataset("clone2"), &[]).await;
        self.told("clone, no snapshot", result).await;
        let result = self.zfs.make_clone(&data, &snap("2"), &self.dataset("none/clone"), &[]).await;
        self.told("clone, no parent", result).await;
        let result = self.zfs.cloned(&data, &[snap("1"), snap("2")]).await;
        self.told("cloned", result).await;
        let result = self.zfs.cloned(&data, &[snap("none")]).await;
        self.told("cloned, no snapshot", result).await;
        self.zfs.create(&self.dataset("clone/below"));
        let result = self.zfs.destroy_clone(&clone).await;
        self.told("destroy clone, a dataset below", result).await;
        let result = self.zfs.destroy_clone(&self.dataset("clone/below")).await;
        self.told("destroy dataset", result).await;
        let result = self.zfs.snapshot(std::slice::from_ref(&clone), &snap("3")).await.map(|taken| taken.len());
        self.told("snapshot of a clone", result).await;
        let result = self.zfs.destroy_clone(&clone).await;
        self.told("destroy clone, a snapshot", result).await;
        let result = self.zfs.destroy_clone(&self.dataset("none")).await;
        self.told("destroy clone, no dataset", result).await;
    }

    async fn destroys(&mut self) {
        let (data, none) = (self.dataset("data"), self.dataset("none"));
        for name in ["3", "4"] {
            self.zfs.write(&data);
            self.zfs.snapshot(std::slice::from_ref(&data), &snap(name)).await.unwrap();
        }
        self.zfs.hold("tag", &data, &[snap("1")]).await.unwrap();
        let mut named = Vec::new();
        for name in ["1", "2", "3", "4", "none"] {
            named.push(self.named("data", name).await);
        }
        let other = Named { guid: Guid(1), ..named[2].clone() };
        let some = [named[0].clone(), named[1].clone(), named[4].clone(), other.clone()];
        let result = self.zfs.destroy(&data, &some, &[], false).await;
        self.told("destroy held, cloned, gone, another", result).await;
        let result = self.zfs.destroy(&data, &named[2..3], &named[4..], false).await;
        self.told("destroy, guard gone", result).await;
        let result = self.zfs.destroy(&data, &named[2..3], std::slice::from_ref(&other), false).await;
        self.told("destroy, guard is another", result).await;
        let result = self.zfs.destroy(&data, &[named[0].clone(), named[2].clone()], &named[3..4], true).await;
        self.told("destroy all or none, one is held", result).await;
        let result = self.zfs.destroy(&data, &named[2..3], &named[3..4], true).await;
        self.told("destroy", result).await;
        let result = self.zfs.destroy(&none, &named[2..3], &[], false).await;
        self.told("destroy, no dataset", result).await;
        let result = self.zfs.destroy(&none, &named[2..3], &named[3..4], false).await;
        self.told("destroy, no dataset, guarded", result).await;
        self.zfs.release("tag", &data, &[snap("1")]).await.unwrap();
    }

    async fn rollbacks(&mut self) {
        let (data, none) = (self.dataset("data"), self.dataset("none"));
        self.zfs.write(&data);
        let result = self.zfs.rollback(&data, &snap("4")).await;
        self.told("roll back", result).await;
        let result = self.zfs.rollback(&data, &snap("2")).await;
        self.told("roll back, newer snapshots", result).await;
        let result = self.zfs.rollback(&data, &snap("none")).await;
        self.told("roll back, no snapshot", result).await;
        let result = self.zfs.rollback(&none, &snap("2")).await;
        self.told("roll back, no dataset", result).await;
        let newest = self.named("data", "4").await;
        self.zfs.bookmark(&data, &newest, &snap("b")).await.unwrap();
        self.zfs.destroy(&data, &[newest], &[], false).await.unwrap();
        let result = self.zfs.rollback(&data, &snap("2")).await;
        self.told("roll back, newer bookmark", result).await;
        self.zfs.destroy_bookmark(&data, &snap("b")).await.unwrap();
        let result = self.zfs.rollback(&data, &snap("1")).await;
        self.told("roll back, newer snapshot has a clone", result).await;
    }

    async fn names(&mut self) {
        let clone = self.dataset("clone");
        let result = self.zfs.rename(&clone, &self.dataset("data")).await;
        self.told("rename, exists", result).await;
        let result = self.zfs.rename(&clone, &self.dataset("none/clone")).await;
        self.told("rename, no parent", result).await;
        let result = self.zfs.rename(&self.dataset("none"), &self.dataset("other")).await;
        self.told("rename, no dataset", result).await;
        let result = self.zfs.rename(&clone, &self.dataset("clone/below")).await;
        self.told("rename, below itself", result).await;
        let result = self.zfs.rename(&clone, &"nopool/clone".parse().unwrap()).await;
        self.told("rename, other pool", result).await;
        let result = self.zfs.rename(&clone, &self.dataset("renamed")).await;
        self.told("rename", result).await;
        let result = self.zfs.create_ancestors(&self.dataset("a/b/c")).await;
        self.told("create ancestors", result).await;
        let result = self.zfs.create_ancestors(&self.dataset("a/b/c")).await;
        self.told("create ancestors twice", result).await;
        let result = self.zfs.create_ancestors(&"nopool/a/b".parse().unwrap()).await;
        self.told("create ancestors, no pool", result).await;
    }

    async fn sends(&mut self) {
        for (what, spec) in [
            ("send, no dataset", self.sending("none", "1", SendFrom::Nothing)),
            ("send, no snapshot", self.sending("data", "none", SendFrom::Nothing)),
            ("send, no base", self.sending("data", "2", SendFrom::Before(snap("none")))),
            ("send with intermediates, no base", self.sending("data", "2", SendFrom::Snapshot(snap("none")))),
            ("send, no bookmark", self.sending("data", "2", SendFrom::Bookmark(snap("none")))),
            ("send, base is newer", self.sending("data", "1", SendFrom::Before(snap("2")))),
            ("send with intermediates, base is newer", self.sending("data", "1", SendFrom::Snapshot(snap("2")))),
            ("send, no origin", self.sending("data", "1", SendFrom::Origin(self.dataset("none"), snap("2")))),
        ] {
            let result = self.sent(&spec).await.map(drop);
            self.told(what, result).await;
            let result = self.zfs.size_of_send(&spec).await.map(|size| size.is_some());
            self.told(&format!("size of {what}"), result).await;
        }
    }

    async fn copies(&mut self) {
        let data = self.dataset("data");
        self.zfs.write(&data);
        self.zfs.snapshot(std::slice::from_ref(&data), &snap("5")).await.unwrap();
        let (full, copy) = (self.sending("data", "1", SendFrom::Nothing), self.receiving("copy"));
        let second = self.sending("data", "2", SendFrom::Before(snap("1")));
        let third = self.sending("data", "5", SendFrom::Before(snap("2")));
        let result = self.copied(&second, &copy).await;
        self.told("receive increment, no destination", result).await;
        let result = self.copied(&full, &self.receiving("none/copy")).await;
        self.told("receive, no parent", result).await;
        let result = self.copied(&full, &copy).await;
        self.told("receive", result).await;
        let result = self.copied(&full, &copy).await;
        self.told("receive, exists", result).await;
        let result = self.copied(&full, &ReceiveSpec { overwrite: true, ..copy.clone() }).await;
        self.told("receive, exists with snapshots", result).await;
        let result = self.copied(&third, &copy).await;
        self.told("receive increment, no base", result).await;
        let result = self.copied(&second, &copy).await;
        self.told("receive increment", result).await;
        let result = self.copied(&second, &copy).await;
        self.told("receive increment twice", result).await;
        self.zfs.write(&copy.dataset);
        let result = self.copied(&third, &copy).await;
        self.told("receive increment, modified", result).await;
        self.zfs.snapshot(std::slice::from_ref(&copy.dataset), &snap("own")).await.unwrap();
        let result = self.copied(&third, &copy).await;
        self.told("receive increment, newer snapshot", result).await;
        let other = self.receiving("copy2");
        self.copied(&full, &other).await.unwrap();
        self.zfs.snapshot(std::slice::from_ref(&other.dataset), &snap("2")).await.unwrap();
        let result = self.copied(&second, &other).await;
        self.told("receive increment, another snapshot of the name", result).await;
        let own = self.named("copy", "own").await;
        self.zfs.destroy(&copy.dataset, &[own], &[], true).await.unwrap();
        self.zfs.rollback(&copy.dataset, &snap("2")).await.unwrap();
        let result = self.copied(&third, &copy).await;
        self.told("receive increment after roll back", result).await;
        self.zfs.create(&self.dataset("empty"));
        let result = self.copied(&full, &self.receiving("empty")).await;
        self.told("receive, exists without snapshots", result).await;
        let result = self.copied(&full, &ReceiveSpec { overwrite: true, ..self.receiving("empty") }).await;
        self.told("receive over a dataset without snapshots", result).await;
        let cloned = self.sending("data", "2", SendFrom::Origin(data, snap("1")));
        let of = |name: &str| Some((self.dataset("copy"), snap(name)));
        let (wrong, right) = (of("2"), of("1"));
        let result = self.copied(&cloned, &ReceiveSpec { origin: wrong, ..self.receiving("from") }).await;
        self.told("receive clone, wrong origin", result).await;
        let result = self.copied(&cloned, &ReceiveSpec { origin: right, ..self.receiving("from") }).await;
        self.told("receive clone", result).await;
    }

    async fn interrupted(&mut self) {
        let (data, copy) = (self.dataset("data"), self.receiving("part"));
        let spec = self.sending("data", "2", SendFrom::Nothing);
        let mut stream = self.sent(&spec).await.unwrap();
        let result = self.received(&copy, b"").await;
        self.told("receive nothing", result).await;
        let result = self.received(&copy, &b"no stream\n".repeat(1000)).await;
        self.told("receive what is no stream", result).await;
        let half = stream.len() / 2;
        let unresumable = ReceiveSpec { is_unresumable: true, ..copy.clone() };
        let result = self.received(&unresumable, &stream[..half]).await;
        self.told("receive half, not resumable", result).await;
        let result = self.received(&copy, &stream[..half]).await;
        self.told("receive half", result).await;
        let result = self.received(&copy, &stream).await;
        self.told("receive, partial state", result).await;
        let result =
            self.zfs.snapshot(std::slice::from_ref(&copy.dataset), &snap("own")).await.map(|taken| taken.len());
        self.told("snapshot, partial state", result).await;
        let listed = self.zfs.list(std::slice::from_ref(&copy.dataset), Depth::Only).await.unwrap();
        let token = listed[0].1.resume_token.clone().unwrap();
        let result = self.zfs.resumable(&token).await.map(|it| (it.dataset, it.raw));
        self.told("read token", result).await;
        let (rest, last) = token.split_at(token.len() - 1);
        let damaged = format!("{rest}{}", if last == "0" { "1" } else { "0" });
        let result = self.zfs.resumable(&damaged).await.map(|it| it.raw);
        self.told("read damaged token", result).await;
        let result = self.sent(&SendSpec::Resume { token: damaged }).await.map(drop);
        self.told("resume damaged token", result).await;
        let rest = self.sent(&SendSpec::Resume { token: token.clone() }).await;
        let result = self.received(&copy, &rest.unwrap()).await;
        self.told("receive rest", result).await;
        let result = self.zfs.abort_receive(&copy.dataset).await;
        self.told("abort, nothing to abort", result).await;
        let result = self.zfs.abort_receive(&self.dataset("none")).await;
        self.told("abort, no dataset", result).await;
        let again = self.receiving("part2");
        stream[half] = !stream[half];
        let result = self.received(&again, &stream).await;
        self.told("receive damaged", result).await;
        let gone = self.named("data", "2").await;
        self.zfs.destroy_clone(&self.dataset("from")).await.ok();
        let result = self.zfs.abort_receive(&again.dataset).await;
        self.told("abort", result).await;
        // An increment leaves a partial state in a dataset that has snapshots.
        self.zfs.write(&data);
        self.zfs.snapshot(std::slice::from_ref(&data), &snap("6")).await.unwrap();
        let spec = self.sending("data", "6", SendFrom::Before(snap("5")));
        let stream = self.sent(&spec).await.unwrap();
        let copy = self.receiving("copy");
        let result = self.received(&copy, &stream[..stream.len() / 2]).await;
        self.told("receive half an increment", result).await;
        let result = self.received(&copy, &stream).await;
        self.told("receive increment, partial state", result).await;
        let result =
            self.zfs.snapshot(std::slice::from_ref(&copy.dataset), &snap("own")).await.map(|taken| taken.len());
        self.told("snapshot, partial increment", result).await;
        let listed = self.zfs.list(std::slice::from_ref(&copy.dataset), Depth::Only).await.unwrap();
        let token = listed[0].1.resume_token.clone().unwrap();
        let sixth = self.named("data", "6").await;
        self.zfs.destroy(&data, &[sixth, gone], &[], false).await.unwrap();
        let result = self.zfs.resumable(&token).await.map(|it| it.raw);
        self.told("read token, snapshot gone", result).await;
        let result = self.zfs.size_of_send(&SendSpec::Resume { token: token.clone() }).await.map(|it| it.is_some());
        self.told("size of resumed send, snapshot gone", result).await;
        self.zfs.snapshot(std::slice::from_ref(&data), &snap("6")).await.unwrap();
        let result = self.sent(&SendSpec::Resume { token }).await.map(drop);
        self.told("resume, another snapshot of the name", result).await;
        let result = self.zfs.abort_receive(&copy.dataset).await;
        self.told("abort increment", result).await;
    }

    async fn all(mut self) {
        self.zfs.create(&self.dataset("data"));
        self.snapshots().await;
        self.properties().await;
        self.holds().await;
        self.bookmarks().await;
        self.clones().await;
        self.destroys().await;
        self.rollbacks().await;
        self.names().await;
        self.sends().await;
        self.copies().await;
        self.interrupted().await;
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, which, pool] = args.as_slice() else { panic!("usage: fake_and_real fake|real POOL") };
    let pool: DatasetName = pool.parse().unwrap();
    let listing = String::new();
    match which.as_str() {
        "fake" => {
            let fake = Fake::new(1);
            fake.create(&pool);
            runtime::block_on(Comparison { zfs: fake, pool, listing }.all());
        }
        "real" => runtime::block_on(Comparison { zfs: System::new(Path::new("zfs")), pool, listing }.all()),
        other => panic!("unknown: {other}"),
    }
}
