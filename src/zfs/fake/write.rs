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

impl Zfs for Fake {
    async fn snapshot(
        &self,
        datasets: &[DatasetName],
        name: &SnapName,
    ) -> Result<Vec<(DatasetName, History)>, ZfsError> {
        let full: Vec<String> = datasets.iter().map(|d| d.at(name)).collect();
        let call = format!("snapshot {}", full.join(" "));
        let mut pools = self.call(&call)?;
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
            return Err(failed(&call, format!("{}\nno snapshots were created", refused.join("\n"))));
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
        let there = pools.dataset(&call, dataset)?.snapshots.clone();
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
        pools.dataset_mut(&call, dataset)?.snapshots.retain(|s| !is_doomed(s));
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
        let inventory = pools.dataset_mut(&call, dataset)?;
        match inventory.bookmarks.iter().find(|b| b.name == *bookmark) {
            Some(same) if same.guid == snapshot.guid => return Ok(()),
            Some(_) => {
                return Err(failed(&call, format!("cannot create bookmark '{dataset}#{bookmark}': bookmark exists")));
            }
            None => {}
        }
        let Some(of) = inventory.snapshots.iter().find(|s| s.name == snapshot.name) else {
            let full = dataset.at(&snapshot.name);
            return Err(failed(&call, format!("cannot create bookmark: snapshot '{full}' does not exist")));
        };
        let made = Bookmark { name: bookmark.clone(), guid: of.guid, createtxg: of.createtxg, creation: of.creation };
        inventory.bookmarks.push(made);
        inventory.sort();
        Ok(())
    }

    async fn destroy_bookmark(&self, dataset: &DatasetName, bookmark: &SnapName) -> Result<(), ZfsError> {
        let call = format!("destroy {dataset}#{bookmark}");
        self.call(&call)?.dataset_mut(&call, dataset)?.bookmarks.retain(|b| b.name != *bookmark);
        Ok(())
    }

    async fn rollback(&self, dataset: &DatasetName, to: &SnapName) -> Result<(), ZfsError> {
        let call = format!("rollback {dataset}@{to}");
        let mut pools = self.call(&call)?;
        let inventory = pools.dataset_mut(&call, dataset)?;
        if inventory.newest().is_none_or(|newest| newest.name != *to) {
            let full = dataset.at(to);
            let words = format!("cannot rollback to '{full}': more recent snapshots or bookmarks exist");
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
        let exists = self.call(&call)?.datasets.contains_key(clone);
        if exists {
            return Err(failed(&call, format!("cannot create '{clone}': dataset already exists")));
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
        if !pools.dataset(&call, clone)?.snapshots.is_empty() {
            return Err(failed(&call, format!("cannot destroy '{clone}': filesystem has children")));
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

    async fn set_arrivals(&self, dataset: &DatasetName, names: &[SnapName], value: &str) -> Result<(), ZfsError> {
        for name in names {
            let mut pools = self.call(&format!("set {}={value} {dataset}@{name}", tags::ARRIVED))?;
            let found = pools.datasets.get(dataset).and_then(|found| found.snapshots.iter().find(|s| s.name == *name));
            if let Some(guid) = found.map(|snapshot| snapshot.guid) {
                pools.arrived.insert((dataset.clone(), guid), value.to_owned());
            }
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
            Some((Err(sent), Err(received))) if received.kind == ErrorKind::Stream => Err(sent),
            Some((_, Err(received))) => Err(received),
            Some((sent, Ok(()))) => sent,
        }
    }
}
