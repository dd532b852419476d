//! Implements the operations that change something: snapshots, holds, bookmarks, datasets, and copies within the
//! machine.

use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt, future};

use crate::model::{Bookmark, Counter, DatasetName, Marks, SnapName, Snapshot, tags};
use crate::sys::runtime;
use crate::zfs::fake::pools::{Fake, failed};
use crate::zfs::{
    ErrorKind, ExpectedStream, Fate, History, Inspect, Named, ReceiveSpec, ReceiveStream, SendSpec, SendStream, Zfs,
    ZfsError, argv,
};

/// The longest name of a dataset or snapshot.
const MAX_NAME: usize = 255;

impl Zfs for Fake {
    async fn snapshot(
        &self,
        datasets: &[DatasetName],
        name: &SnapName,
    ) -> Result<Vec<(DatasetName, History)>, ZfsError> {
        let full: Vec<String> = datasets.iter().map(|d| d.at(name)).collect();
        let call = format!("snapshot {}", full.join(" "));
        let mut pools = self.call(&call)?;
        for dataset in datasets {
            pools.dataset(&call, dataset)?;
            let full = dataset.at(name);
            if full.len() > MAX_NAME {
                return Err(failed(&call, format!("cannot create snapshot '{full}': name is too long")));
            }
        }
        let mut refused = Vec::new();
        for dataset in datasets {
            let exists = pools.dataset(&call, dataset)?.snapshots.iter().any(|s| s.name == *name);
            let is_receiving = pools.partials.get(dataset).is_some_and(|partial| partial.creates);
            let words = match pools.refused.get(dataset) {
                _ if exists => "dataset already exists",
                _ if is_receiving => "dataset is busy",
                Some(words) => words,
                None => continue,
            };
            refused.push(format!("cannot create snapshot '{}': {words}", dataset.at(name)));
        }
        if !refused.is_empty() {
            if datasets.len() > 1 {
                refused.push("no snapshots were created".to_owned());
            }
            return Err(failed(&call, refused.join("\n")));
        }
        pools.txg += 1;
        let mut histories = Vec::new();
        for dataset in datasets {
            let snapshot = Snapshot {
                name: name.clone(),
                guid: pools.next_guid(),
                createtxg: pools.txg,
                creation: pools.now,
                userrefs: 0,
                has_clones: false,
                used: 0,
                marks: Marks::default(),
            };
            let inventory = pools.dataset_mut(&call, dataset)?;
            let guid = snapshot.guid;
            inventory.snapshots.push(snapshot);
            histories.push((dataset.clone(), (inventory.snapshots.clone(), inventory.bookmarks.clone())));
            let written = inventory.written.replace(0).unwrap_or(0);
            pools.written_before.insert(guid, written);
        }
        Ok(histories)
    }

    async fn sync(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        self.call(&format!("sync {}", dataset.pool())).map(drop)
    }

    async fn destroy(
        &self,
        dataset: &DatasetName,
        victims: &[Named],
        guards: &[Named],
        all: bool,
    ) -> Result<Vec<Fate>, ZfsError> {
        let list: Vec<&str> = victims.iter().map(|v| v.name.as_str()).collect();
        let call = format!("destroy {dataset}@{}", list.join(","));
        let mut pools = self.call(&call)?;
        let there = pools.datasets.get(dataset).map(|found| found.snapshots.clone()).unwrap_or_default();
        if !guards.iter().all(|g| there.iter().any(|s| s.name == g.name && s.guid == g.guid)) {
            return Ok(vec![Fate::Spared; victims.len()]);
        }
        let fate = |victim: &Named| match there.iter().find(|s| s.name == victim.name) {
            None => Fate::Gone,
            Some(found) if found.guid != victim.guid => Fate::Another,
            Some(_) if pools.holds.iter().any(|(d, n, _)| d == dataset && *n == victim.name) => Fate::Held,
            Some(_) if pools.has_clones(dataset, &victim.name) => Fate::Cloned,
            Some(_) => Fate::Destroyed,
        };
        let fates: Vec<Fate> = victims.iter().map(fate).collect();
        if all && fates.iter().any(|fate| !matches!(fate, Fate::Destroyed | Fate::Gone)) {
            let spared = |fate| if fate == Fate::Destroyed { Fate::Spared } else { fate };
            return Ok(fates.into_iter().map(spared).collect());
        }
        let is_doomed =
            |s: &Snapshot| victims.iter().zip(&fates).any(|(v, f)| *f == Fate::Destroyed && v.guid == s.guid);
        if let Some(found) = pools.datasets.get_mut(dataset) {
            found.snapshots.retain(|s| !is_doomed(s));
        }
        Ok(fates)
    }

    async fn hold(&self, tag: &str, dataset: &DatasetName, names: &[SnapName]) -> Result<(), ZfsError> {
        for name in names {
            let call = format!("hold {tag} {dataset}@{name}");
            let mut pools = self.call(&call)?;
            if !pools.dataset(&call, dataset)?.snapshots.iter().any(|s| s.name == *name) {
                return Err(failed(
                    &call,
                    format!("cannot hold snapshot '{}': dataset does not exist", dataset.at(name)),
                ));
            }
            pools.holds.insert((dataset.clone(), name.clone(), tag.to_owned()));
        }
        Ok(())
    }

    async fn release(&self, tag: &str, dataset: &DatasetName, names: &[SnapName]) -> Result<(), ZfsError> {
        for name in names {
            self.call(&format!("release {tag} {dataset}@{name}"))?.holds.remove(&(
                dataset.clone(),
                name.clone(),
                tag.to_owned(),
            ));
        }
        Ok(())
    }

    async fn bookmark(&self, dataset: &DatasetName, snapshot: &Named, bookmark: &SnapName) -> Result<(), ZfsError> {
        let call = format!("bookmark {dataset}@{} {dataset}#{bookmark}", snapshot.name);
        let mut pools = self.call(&call)?;
        let full = dataset.at(&snapshot.name);
        let of = pools.snapshot(&call, dataset, &snapshot.name)?.clone();
        let inventory = pools.dataset_mut(&call, dataset)?;
        match inventory.bookmarks.iter().find(|b| b.name == *bookmark) {
            Some(same) if same.guid == snapshot.guid => return Ok(()),
            Some(_) => {
                return Err(failed(&call, format!("cannot create bookmark '{dataset}#{bookmark}': bookmark exists")));
            }
            None if of.guid != snapshot.guid => {
                let another = failed(&call, format!("{full} is another snapshot now"));
                return Err(ZfsError { kind: ErrorKind::NotFound, ..another });
            }
            None => {}
        }
        let made = Bookmark { name: bookmark.clone(), guid: of.guid, createtxg: of.createtxg, creation: of.creation };
        inventory.bookmarks.push(made);
        inventory.sort();
        Ok(())
    }

    async fn destroy_bookmark(&self, dataset: &DatasetName, bookmark: &SnapName) -> Result<(), ZfsError> {
        let call = format!("destroy {dataset}#{bookmark}");
        if let Some(found) = self.call(&call)?.datasets.get_mut(dataset) {
            found.bookmarks.retain(|b| b.name != *bookmark);
        }
        Ok(())
    }

    async fn rollback(&self, dataset: &DatasetName, to: &SnapName) -> Result<(), ZfsError> {
        let call = format!("rollback {dataset}@{to}");
        let mut pools = self.call(&call)?;
        let after = pools.snapshot(&call, dataset, to)?.createtxg;
        let inventory = pools.dataset_mut(&call, dataset)?;
        let snapshots = inventory.snapshots.iter().filter(|s| s.createtxg > after).map(|s| dataset.at(&s.name));
        let bookmarks = inventory.bookmarks.iter().filter(|b| b.createtxg > after);
        let newer: Vec<String> = snapshots.chain(bookmarks.map(|b| format!("{dataset}#{}", b.name))).collect();
        if !newer.is_empty() {
            let words = format!(
                "cannot rollback to '{}': more recent snapshots or bookmarks exist\n\
                 use '-r' to force deletion of the following snapshots and bookmarks:\n{}",
                dataset.at(to),
                newer.join("\n")
            );
            return Err(failed(&call, words));
        }
        inventory.written = Some(0);
        Ok(())
    }

    async fn abort_receive(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        let call = argv::abort_receive(dataset).join(" ");
        let mut pools = self.call(&call)?;
        if pools.partials.get(dataset).is_some_and(|partial| partial.is_running) {
            return Err(failed(&call, format!("cannot destroy '{dataset}': dataset is busy")));
        }
        if pools.partials.remove(dataset).is_some_and(|partial| partial.creates) {
            pools.remove(dataset);
        }
        Ok(())
    }

    async fn create_ancestors(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        let pool = dataset.pool();
        if !self.pools().datasets.keys().any(|name| name.pool() == pool) {
            let words =
                format!("there is no pool {pool}; import it (zpool import), or name another pool in the policy");
            return Err(ZfsError { kind: ErrorKind::NotFound, ..failed(&format!("list {pool}"), words) });
        }
        let mut ancestor = dataset.parent();
        while let Some(name) = ancestor {
            if self.dataset(&name).is_none() {
                drop(self.call(&format!("create {name}"))?);
                self.pools().create_placeholder(&name);
            }
            ancestor = name.parent();
        }
        Ok(())
    }

    async fn rename(&self, dataset: &DatasetName, to: &DatasetName) -> Result<(), ZfsError> {
        let call = argv::rename(dataset, to).join(" ");
        let mut pools = self.call(&call)?;
        pools.dataset(&call, dataset)?;
        pools.parent_of_new(&call, to)?;
        if to.is_within(dataset) && to != dataset {
            let why = "New dataset name cannot be a descendant of current dataset name";
            return Err(failed(&call, format!("cannot rename to '{to}': {why}")));
        }
        if pools.datasets.contains_key(to) {
            return Err(failed(&call, format!("cannot rename '{dataset}': dataset already exists")));
        }
        pools.rename(dataset, to);
        Ok(())
    }

    async fn make_clone(
        &self,
        dataset: &DatasetName,
        of: &SnapName,
        clone: &DatasetName,
        properties: &[(&str, &str)],
    ) -> Result<(), ZfsError> {
        let call = format!("clone {} {clone}", dataset.at(of));
        {
            let pools = self.call(&call)?;
            pools.snapshot(&call, dataset, of)?;
            pools.parent_of_new(&call, clone)?;
            if pools.datasets.contains_key(clone) {
                return Err(failed(&call, format!("cannot create '{clone}': dataset already exists")));
            }
        }
        self.clone_as(dataset, of, clone);
        for (property, value) in properties {
            self.set(clone, property, value).await?;
        }
        Ok(())
    }

    async fn destroy_clone(&self, clone: &DatasetName) -> Result<(), ZfsError> {
        let call = argv::destroy_clone(clone).join(" ");
        let mut pools = self.call(&call)?;
        let snapshots = pools.dataset(&call, clone)?.snapshots.iter().map(|s| clone.at(&s.name));
        let below = pools.datasets.keys().filter(|name| name.below(clone).is_some_and(|below| !below.is_empty()));
        let children: Vec<String> = below.map(ToString::to_string).chain(snapshots).collect();
        if !children.is_empty() {
            let words = format!(
                "cannot destroy '{clone}': filesystem has children\nuse '-r' to destroy the following datasets:\n{}",
                children.join("\n")
            );
            return Err(failed(&call, words));
        }
        pools.remove(clone);
        Ok(())
    }

    async fn set(&self, dataset: &DatasetName, property: &str, value: &str) -> Result<(), ZfsError> {
        let call = format!("set {property}={value} {dataset}");
        let mut pools = self.call(&call)?;
        let inventory = pools.dataset_mut(&call, dataset)?;
        match property {
            tags::FLAGS => inventory.flags = value.split(' ').next().and_then(|flags| flags.parse().ok()),
            tags::EXCLUDE => inventory.excluded = value == "on",
            _ => {}
        }
        pools.properties.entry(dataset.clone()).or_default().insert(property.to_owned(), value.to_owned());
        Ok(())
    }

    async fn inherit(&self, dataset: &DatasetName, property: &str) -> Result<(), ZfsError> {
        let call = argv::inherit(dataset, property).join(" ");
        let mut pools = self.call(&call)?;
        if property == "canmount" {
            return Err(failed(&call, "'canmount' property cannot be inherited"));
        }
        let inventory = pools.dataset_mut(&call, dataset)?;
        match property {
            tags::FLAGS => inventory.flags = None,
            tags::EXCLUDE => inventory.excluded = false,
            _ => {}
        }
        pools.properties.entry(dataset.clone()).or_default().remove(property);
        Ok(())
    }

    async fn inherit_key(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        let call = argv::inherit_key(dataset).join(" ");
        let mut pools = self.call(&call)?;
        pools.dataset(&call, dataset)?;
        let wrong = |words: &str| failed(&call, format!("Key change error: {words}"));
        let own = pools.key(dataset).ok_or_else(|| wrong("Dataset not encrypted."))?;
        let above = dataset.parent().and_then(|parent| pools.key(&parent));
        if own.root != *dataset {
            return Err(wrong("Dataset already inherits its key."));
        }
        if !own.is_loaded {
            return Err(wrong("Key must be loaded."));
        }
        let above = above.ok_or_else(|| wrong("Parent must be encrypted."))?;
        if !above.is_loaded {
            return Err(wrong("Parent key must be loaded."));
        }
        let users = pools
            .datasets
            .iter_mut()
            .filter(|(name, found)| *name == dataset || found.key_from.as_ref() == Some(dataset));
        users.for_each(|(_, found)| found.key_from = Some(above.root.clone()));
        Ok(())
    }

    /// The fake mounts nothing.
    async fn mount(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        let call = argv::mount(dataset).join(" ");
        self.call(&call)?.dataset(&call, dataset).map(drop)
    }

    async fn set_arrivals(&self, dataset: &DatasetName, names: &[SnapName], value: &str) -> Result<(), ZfsError> {
        for name in names {
            let call = format!("set {}={value} {dataset}@{name}", tags::ARRIVED);
            let mut pools = self.call(&call)?;
            let guid = pools.snapshot(&call, dataset, name)?.guid;
            pools.arrived.insert((dataset.clone(), guid), value.to_owned());
        }
        Ok(())
    }

    async fn send(&self, spec: &SendSpec) -> Result<SendStream, ZfsError> {
        self.start_send(spec, &argv::send(spec).join(" "))
    }

    async fn receive(&self, spec: &ReceiveSpec) -> Result<ReceiveStream, ZfsError> {
        Ok(self.start_receive(spec, &argv::receive(spec).join(" ")))
    }

    /// The fake's streams cannot be packages, so there is nothing to find in them.
    fn inspector(&self, _: ExpectedStream) -> Box<dyn Inspect> {
        struct Nothing;
        impl Inspect for Nothing {
            fn feed(&mut self, _: &[u8]) -> Result<(), String> {
                Ok(())
            }
        }
        Box::new(Nothing)
    }

    async fn copy(
        &self,
        send: &SendSpec,
        receive: &ReceiveSpec,
        counter: &Counter,
        stall: Duration,
    ) -> Result<(), ZfsError> {
        let (from, to) = (self.send(send).await?, self.receive(receive).await?);
        let (mut output, mut input) = (from.data, to.data);
        let pumped = async move {
            let mut buffer = [0; 512];
            while let Ok(read @ 1..) = output.read(&mut buffer).await {
                // If the receive has ended early, its end reports why.
                if input.write_all(&buffer[..read]).await.is_err() {
                    break;
                }
                counter.add(read as u64);
            }
        };
        let copied = async {
            pumped.await;
            Some(future::zip(from.end, to.end).await)
        };
        let stalled = async {
            runtime::stalled(stall, || counter.get()).await;
            None
        };
        match future::or(copied, stalled).await {
            None => Err(ZfsError {
                kind: ErrorKind::Pool,
                command: format!("zfs {} | zfs {}", argv::send(send).join(" "), argv::receive(receive).join(" ")),
                status: format!("no byte for {} (stall_timeout)", humantime::format_duration(stall)),
                stderr: "is a pool suspended? see zpool status".into(),
            }),
            Some((Err(sent), Err(received))) => Err(ZfsError::of_copy(sent, received)),
            Some((Ok(()), Err(received))) => Err(received),
            Some((sent, Ok(()))) => sent,
        }
    }
}
