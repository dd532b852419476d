//! Implements the interface to ZFS with the real `zfs` command.
//!
//! `runner` runs single commands, `list` and `changed` list with them, and `grouped` batches operations on single
//! datasets, so that one process serves many of them. `copy` moves a stream within this host, and `by_name` destroys
//! snapshots where no script may be run. `ssh` runs the commands on another host.

mod by_name;
mod changed;
mod copy;
mod datasets;
mod grouped;
mod list;
mod runner;
mod ssh;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::model::{Counter, DatasetName, HostListing, KeyState, SnapName};
use crate::zfs::argv::ScriptedChange;
use crate::zfs::inspect::{ExpectedStream, Inspect, StreamInspector};
use crate::zfs::pipe::widen;
use crate::zfs::system::grouped::Grouped;
use crate::zfs::system::runner::Runner;
pub use crate::zfs::system::ssh::Ssh;
use crate::zfs::{
    Depth, ErrorKind, Fate, History, Known, Listed, Named, ReceiveSpec, ReceiveStream, Resumable, SendSpec, SendStream,
    Zfs, ZfsError, ZfsRead, argv, parse,
};

/// How many snapshots one script destroys: ZFS limits the time and the memory of a script.
const MAX_PER_SCRIPT: usize = 500;
/// How many names one command gets that lists datasets or holds.
const MAX_NAMED: usize = 1000;

/// The ZFS of this host. All clones of this value share their batches and their processes.
#[derive(Clone, Debug)]
pub struct System {
    runner: Runner,
    grouped: Grouped,
}

impl System {
    /// Creates an interface that runs this program; a name without a slash is searched for in `PATH`.
    #[must_use]
    pub fn new(program: &Path) -> Self {
        let runner = Runner::new(program);
        Self { grouped: Grouped::new(&runner), runner }
    }

    /// Connects to the ZFS of another host. Its processes end together with those of this one. A program without a slash is searched for where such programs usually are,
    /// because the shell of an ordinary user may not search there.
    pub async fn over(&self, ssh: Ssh, program: &Path) -> Result<Self, ZfsError> {
        let others = ssh::OTHER_PLACES.iter().map(Path::new).filter(|_| program == Path::new("zfs"));
        let mut missing = None;
        for program in std::iter::once(program).chain(others) {
            let runner = self.runner.over(ssh.clone(), program);
            let system = Self { grouped: Grouped::new(&runner), runner };
            match system.check_version().await {
                Ok(version) => {
                    log::info!("{} has {version}", ssh.destination);
                    return Ok(system);
                }
                Err(error) if error.kind == ErrorKind::Missing => drop(missing.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
        Err(missing.unwrap_or_else(|| self.runner.unanswered(&argv::version())))
    }

    /// Kills all running commands. From now on, no command is started.
    pub async fn end(&self) {
        self.runner.end().await;
    }
}

impl System {
    /// Destroys by name what the script could not destroy because it is mounted below `.zfs/snapshot`. ZFS unmounts it
    /// first, unless it is really in use.
    async fn destroy_mounted(
        &self,
        dataset: &DatasetName,
        victims: &[Named],
        guards: &[Named],
        all: bool,
        fates: &mut [Fate],
    ) -> Result<(), ZfsError> {
        let is_left = |fate: &Fate| *fate == Fate::Busy || all && *fate == Fate::Spared;
        let others_allow = fates.iter().all(|fate| is_left(fate) || *fate == Fate::Gone);
        if !fates.contains(&Fate::Busy) || all && !others_allow {
            return Ok(());
        }
        let left: Vec<usize> = (0..fates.len()).filter(|i| is_left(&fates[*i])).collect();
        let victims: Vec<Named> = left.iter().map(|i| victims[*i].clone()).collect();
        let by = (&self.runner, &self.grouped);
        let again = by_name::destroy(by, dataset, &victims, guards, all).await?;
        for (i, fate) in left.into_iter().zip(again) {
            fates[i] = fate;
        }
        Ok(())
    }
}

impl ZfsRead for System {
    async fn list(&self, roots: &[DatasetName], depth: Depth) -> Result<Vec<Listed>, ZfsError> {
        if roots.is_empty() {
            // Without a name, `zfs list` would list every pool of the machine.
            return Ok(Vec::new());
        }
        match depth {
            Depth::Only | Depth::Bare | Depth::Around => self.grouped.list(roots, depth).await,
            Depth::Recursive => self.runner.list(roots, depth).await,
        }
    }

    async fn list_pools(&self, roots: &[DatasetName], known: &Known) -> Result<HostListing, ZfsError> {
        self.runner.list_pools(roots, known).await
    }

    async fn snapshots(&self, dataset: &DatasetName) -> Result<Option<History>, ZfsError> {
        self.grouped.history(dataset).await
    }

    async fn cloned(&self, dataset: &DatasetName, names: &[SnapName]) -> Result<Vec<SnapName>, ZfsError> {
        self.runner.cloned(dataset, names).await
    }

    async fn holds(&self, dataset: &DatasetName, names: &[SnapName]) -> Result<Vec<(SnapName, String)>, ZfsError> {
        let mut all = Vec::new();
        for part in names.chunks(MAX_NAMED) {
            let holds = self.runner.holds(part.iter().map(|name| (dataset, name))).await?;
            all.extend(holds.into_iter().map(|(_, name, tag)| (name, tag)));
        }
        Ok(all)
    }

    async fn written_since(
        &self,
        datasets: &[DatasetName],
        name: &SnapName,
    ) -> Result<Vec<(DatasetName, u64)>, ZfsError> {
        let argv = argv::written_since(datasets, name);
        self.runner.query(&argv, parse::values).await
    }

    async fn resumable(&self, token: &str) -> Result<Resumable, ZfsError> {
        let argv = argv::resumable(token);
        if !parse::is_token(token) {
            let stderr = "this is not a resume token".to_owned();
            return Err(ZfsError {
                kind: ErrorKind::StaleToken,
                command: self.runner.render(&argv),
                status: String::new(),
                stderr,
            });
        }
        self.runner.query(&argv, parse::resumable).await
    }

    async fn properties(&self, dataset: &DatasetName) -> Result<BTreeMap<String, String>, ZfsError> {
        self.grouped.properties(dataset).await
    }

    async fn arrivals(&self, dataset: &DatasetName) -> Result<BTreeMap<SnapName, String>, ZfsError> {
        Ok(parse::arrivals(&self.runner.run(&argv::arrivals(dataset)).await?))
    }

    async fn key_users(&self, root: &DatasetName) -> Result<Vec<DatasetName>, ZfsError> {
        self.runner.query(&argv::list_keys(root), |output| parse::key_users(output, root)).await
    }

    async fn keys(&self, root: &DatasetName) -> Result<BTreeMap<DatasetName, KeyState>, ZfsError> {
        let within = argv::list_key_states(std::slice::from_ref(root), Depth::Recursive);
        let mut states = self.runner.query(&within, parse::key_states).await?;
        let above: Vec<DatasetName> = root.ancestors().collect();
        if !above.is_empty() {
            states.extend(self.runner.query(&argv::list_key_states(&above, Depth::Only), parse::key_states).await?);
        }
        Ok(states)
    }

    async fn size_of_send(&self, spec: &SendSpec) -> Result<Option<u64>, ZfsError> {
        let argv = argv::size_of_send(spec);
        self.runner.query(&argv, |output| parse::size(output, "size")).await
    }

    async fn size_of_destroy(&self, dataset: &DatasetName, names: &[SnapName]) -> Result<Option<u64>, ZfsError> {
        // Together, two lists may free more than the sum, but not less.
        let mut total = Some(0u64);
        for batch in argv::comma_lists(names) {
            let argv = argv::size_of_destroy(dataset, batch);
            let size = self.runner.query(&argv, |output| parse::size(output, "reclaim")).await?;
            total = total.zip(size).map(|(total, size)| total.saturating_add(size));
        }
        Ok(total)
    }

    async fn check_version(&self) -> Result<String, ZfsError> {
        let argv = argv::version();
        let (text, number) = self.runner.query(&argv, parse::version).await?;
        if number < parse::OLDEST_VERSION {
            let (major, minor) = parse::OLDEST_VERSION;
            return Err(ZfsError {
                kind: ErrorKind::TooOld,
                command: self.runner.render(&argv),
                status: String::new(),
                stderr: format!("it is {text}, but zsync needs OpenZFS {major}.{minor} or newer"),
            });
        }
        self.runner.set_snapshots_changed(number >= parse::FIRST_WITH_SNAPSHOTS_CHANGED);
        Ok(text)
    }
}

impl Zfs for System {
    async fn snapshot(
        &self,
        datasets: &[DatasetName],
        name: &SnapName,
    ) -> Result<Vec<(DatasetName, History)>, ZfsError> {
        self.runner.run(&argv::snapshot(datasets, name)).await?;
        let mut histories = Vec::with_capacity(datasets.len());
        for batch in datasets.chunks(MAX_NAMED) {
            histories.extend(self.runner.histories(batch).await?);
        }
        Ok(histories)
    }

    async fn sync(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        match self.runner.sibling("zpool").run(&argv::sync_pool(dataset)).await {
            Err(error) if matches!(error.kind, ErrorKind::Permission | ErrorKind::Missing) => {
                log::debug!("{error}");
                Ok(())
            }
            result => result.map(drop),
        }
    }

    async fn destroy(
        &self,
        dataset: &DatasetName,
        victims: &[Named],
        guards: &[Named],
        all: bool,
    ) -> Result<Vec<Fate>, ZfsError> {
        let mut fates = Vec::with_capacity(victims.len());
        // "All or none" holds only within one script, however large it is.
        let size = if all { victims.len().max(1) } else { MAX_PER_SCRIPT };
        for batch in victims.chunks(size) {
            let argv = argv::destroy_by_guid(dataset, batch, guards, all);
            match self.runner.run_script(&argv, argv::DESTROY_SCRIPT).await {
                Ok(output) => {
                    let mut of_batch =
                        parse::fates(&output, batch.len()).map_err(|reason| self.runner.unreadable(&argv, reason))?;
                    self.destroy_mounted(dataset, batch, guards, all, &mut of_batch).await?;
                    fates.extend(of_batch);
                }
                Err(error) if error.kind == ErrorKind::Permission => {
                    log::debug!("{error}");
                    let by = (&self.runner, &self.grouped);
                    fates.extend(by_name::destroy(by, dataset, batch, guards, all).await?);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(fates)
    }

    async fn hold(&self, tag: &str, dataset: &DatasetName, names: &[SnapName]) -> Result<(), ZfsError> {
        self.grouped.hold(tag, dataset, names).await
    }

    async fn release(&self, tag: &str, dataset: &DatasetName, names: &[SnapName]) -> Result<(), ZfsError> {
        self.grouped.release(tag, dataset, names).await
    }

    async fn bookmark(&self, dataset: &DatasetName, snapshot: &Named, bookmark: &SnapName) -> Result<(), ZfsError> {
        let change = ScriptedChange::Bookmark(dataset.clone(), snapshot.clone(), bookmark.clone());
        if self.grouped.change(change).await {
            return Ok(());
        }
        let argv = argv::bookmark(dataset, &snapshot.name, bookmark);
        let made = self.runner.run(&argv).await;
        if made.as_ref().is_err_and(|error| error.kind != ErrorKind::Exists) {
            return made.map(drop);
        }
        // The command goes by the name alone, so it may have marked another snapshot of this name.
        let list = argv::list_bookmark(dataset, bookmark);
        let found = self.runner.query(&list, parse::Histories::parse).await?.by_dataset();
        let is_same = found.values().any(|(_, bookmarks)| bookmarks.iter().any(|b| b.guid == snapshot.guid));
        match made {
            _ if is_same => Ok(()),
            Err(exists) => Err(exists),
            Ok(_) => {
                self.destroy_bookmark(dataset, bookmark).await?;
                Err(ZfsError {
                    kind: ErrorKind::NotFound,
                    command: self.runner.render(&argv),
                    status: String::new(),
                    stderr: format!("{} is another snapshot now", dataset.at(&snapshot.name)),
                })
            }
        }
    }

    async fn destroy_bookmark(&self, dataset: &DatasetName, bookmark: &SnapName) -> Result<(), ZfsError> {
        self.runner.run_unless(&argv::destroy_bookmark(dataset, bookmark), ErrorKind::NotFound).await
    }

    async fn rollback(&self, dataset: &DatasetName, to: &SnapName) -> Result<(), ZfsError> {
        self.runner.run(&argv::rollback(dataset, to)).await.map(drop)
    }

    async fn abort_receive(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        self.runner.run_unless(&argv::abort_receive(dataset), ErrorKind::NotFound).await
    }

    async fn create_ancestors(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        let ancestors: Vec<DatasetName> = dataset.ancestors().collect();
        let existing = self.list(&ancestors, Depth::Bare).await?;
        let exists = |name: &DatasetName| existing.iter().any(|(found, _)| found == name);
        let missing: Vec<DatasetName> = ancestors.into_iter().filter(|name| !exists(name)).collect();
        if let Some(pool) = missing.last().filter(|name| name.parent().is_none()) {
            return Err(ZfsError {
                kind: ErrorKind::NotFound,
                command: self.runner.render(&argv::list_pool(pool)),
                status: "exit status 1".into(),
                stderr: format!(
                    "there is no pool {pool}; import it (zpool import), or name another pool in the policy"
                ),
            });
        }
        // The key of a raw copy belongs to its source: it is usually not loaded, and nothing else may depend on it.
        let nearest = existing.iter().max_by_key(|(name, _)| name.as_str().len());
        let plain = nearest.is_some_and(|(_, nearest)| nearest.is_raw_copy());
        for name in missing.iter().rev() {
            match self.runner.run_unless(&argv::create_ancestor(name, true, plain), ErrorKind::Exists).await {
                // An ordinary user may be permitted to create datasets, and not to set user properties.
                Err(error) if error.kind == ErrorKind::Permission => {
                    self.runner.run_unless(&argv::create_ancestor(name, false, plain), ErrorKind::Exists).await?;
                }
                created => created?,
            }
        }
        Ok(())
    }

    async fn rename(&self, dataset: &DatasetName, to: &DatasetName) -> Result<(), ZfsError> {
        self.runner.run(&argv::rename(dataset, to)).await.map(drop)
    }

    async fn make_clone(
        &self,
        dataset: &DatasetName,
        of: &SnapName,
        clone: &DatasetName,
        properties: &[(&str, &str)],
    ) -> Result<(), ZfsError> {
        match self.runner.run(&argv::make_clone(dataset, of, clone, properties)).await {
            Ok(_) => Ok(()),
            // libzfs prints this after it has made the clone.
            Err(error) if error.stderr.contains("successfully created, but not mounted") => {
                log::info!(
                    "made the clone {clone}, but it is not mounted: {}",
                    error.stderr.trim().replace('\n', "; ")
                );
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn destroy_clone(&self, clone: &DatasetName) -> Result<(), ZfsError> {
        self.runner.run(&argv::destroy_clone(clone)).await.map(drop)
    }

    async fn set(&self, dataset: &DatasetName, property: &str, value: &str) -> Result<(), ZfsError> {
        // A script can set user properties only. For native properties, it fails, and the command sets them.
        if self.grouped.change(ScriptedChange::Property(dataset.clone(), property.into(), value.into())).await {
            return Ok(());
        }
        self.runner.run(&argv::set(dataset, property, value)).await.map(drop)
    }

    async fn inherit(&self, dataset: &DatasetName, property: &str) -> Result<(), ZfsError> {
        self.runner.run(&argv::inherit(dataset, property)).await.map(drop)
    }

    async fn inherit_key(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        self.runner.run(&argv::inherit_key(dataset)).await.map(drop)
    }

    async fn mount(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        match self.runner.run(&argv::mount(dataset)).await {
            Err(error) if error.stderr.contains("already mounted") => Ok(()),
            mounted => mounted.map(drop),
        }
    }

    async fn set_arrivals(&self, dataset: &DatasetName, names: &[SnapName], value: &str) -> Result<(), ZfsError> {
        let change = |name: &SnapName| ScriptedChange::Arrival(dataset.clone(), name.clone(), value.to_owned());
        if let [name] = names
            && self.grouped.change(change(name)).await
        {
            return Ok(());
        }
        // A script sets all of them in one transaction group; the command needs one for each.
        for chunk in names.chunks(MAX_PER_SCRIPT) {
            let changes: Vec<ScriptedChange> = chunk.iter().map(change).collect();
            let argv = argv::change(dataset.pool(), &changes);
            let done = match self.runner.run_script(&argv, argv::CHANGE_SCRIPT).await {
                Ok(output) => parse::changed(&output, chunk.len()).unwrap_or_default(),
                Err(_) => Vec::new(),
            };
            let is_left = |i: &usize| !done.get(*i).copied().unwrap_or_default();
            let left: Vec<SnapName> = (0..chunk.len()).filter(is_left).map(|i| chunk[i].clone()).collect();
            if !left.is_empty() {
                self.runner.run(&argv::set_arrivals(dataset, &left, value)).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, spec: &SendSpec) -> Result<SendStream, ZfsError> {
        let argv = argv::send(spec);
        let mut child = self.runner.spawn(&argv, self.runner.command(&argv).stdout(Stdio::piped()))?;
        let Some(data) = child.stdout() else { return Err(self.runner.unreadable(&argv, "it has no output".into())) };
        widen(&data);
        Ok(SendStream { data: Box::new(data), end: self.runner.stream_end(argv, child) })
    }

    async fn receive(&self, spec: &ReceiveSpec) -> Result<ReceiveStream, ZfsError> {
        let argv = argv::receive(spec);
        let mut child = self.runner.spawn(&argv, self.runner.command(&argv).stdin(Stdio::piped()))?;
        let Some(data) = child.stdin() else { return Err(self.runner.unreadable(&argv, "it has no input".into())) };
        widen(&data);
        Ok(ReceiveStream { data: Box::new(data), end: self.runner.stream_end(argv, child) })
    }

    fn inspector(&self, expected: ExpectedStream) -> Box<dyn Inspect> {
        Box::new(StreamInspector::new(expected))
    }

    async fn copy(
        &self,
        send: &SendSpec,
        receive: &ReceiveSpec,
        counter: &Counter,
        stall: Duration,
    ) -> Result<(), ZfsError> {
        self.runner.copy(send, receive, counter, stall).await
    }
}
