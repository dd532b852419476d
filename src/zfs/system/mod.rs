//! The real ZFS: runs the `zfs` command.

mod by_name;
mod changed;
mod copy;
mod grouped;
mod streams;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_process::Command;
use futures_lite::AsyncWriteExt;

use crate::model::{Counter, DatasetName, SnapName};
use crate::sys::process;
use crate::sys::process::{Process, Running};
use crate::sys::runtime;
use crate::sys::runtime::Batcher;
use crate::zfs::argv::Write;
use crate::zfs::pipe::widen;
use crate::zfs::system::grouped::Tagging;
use crate::zfs::system::streams::Streams;
use crate::zfs::{
    Depth, ErrorKind, Fate, History, Known, Listed, Named, ReceiveSpec, ReceiveStream, Resumable, SendSpec, SendStream,
    Zfs, ZfsError, ZfsRead, argv, parse,
};

/// Linux takes 128 KiB for one argument; longer comma lists are split.
const LONGEST_ARGUMENT: usize = 100 * 1024;
/// How many snapshots one script destroys: ZFS bounds the time and the memory of one.
const PER_SCRIPT: usize = 500;

/// Runs `zfs`.
#[derive(Clone, Debug)]
pub struct System {
    program: PathBuf,
    deadline: Duration,
    running: Running,
    lists: Batcher<Vec<DatasetName>, Result<Vec<Listed>, ZfsError>>,
    histories: Batcher<DatasetName, Result<Option<History>, ZfsError>>,
    writes: Batcher<Write, bool>,
    tags: Batcher<Vec<String>, Result<(), ZfsError>>,
    streams: Streams,
    /// Whether this user may run no scripts, once that was found out; shared by clones.
    no_scripts: Arc<AtomicBool>,
    /// Whether this ZFS tells when a dataset's snapshots were changed; shared by clones.
    tells_changes: Arc<AtomicBool>,
}

impl System {
    /// Uses this program; `zfs` alone is looked up in `PATH`.
    #[must_use]
    pub fn new(program: &Path) -> Self {
        Self {
            program: program.to_owned(),
            deadline: Duration::from_secs(600),
            running: Running::default(),
            lists: Batcher::default(),
            histories: Batcher::default(),
            writes: Batcher::default(),
            tags: Batcher::default(),
            streams: Streams::default(),
            no_scripts: Arc::default(),
            tells_changes: Arc::default(),
        }
    }

    fn command(&self, argv: &[String]) -> Command {
        let mut command = process::command(&self.program);
        // Messages are recognised by their English words.
        command.args(argv.iter().map(OsStr::new)).env("LC_ALL", "C");
        command
    }

    fn shown(&self, argv: &[String]) -> String {
        let mut line = self.program.display().to_string();
        for word in argv {
            line.push(' ');
            // A command with thousands of names is told by its beginning.
            if line.len() > 1000 {
                line.push('…');
                break;
            }
            line.push_str(word);
        }
        line
    }

    fn spawn(&self, argv: &[String], command: &mut Command) -> Result<Process, ZfsError> {
        log::debug!("runs {}", self.shown(argv));
        self.running.spawn(command).map_err(|error| self.not_run(argv, &error))
    }

    /// Ends everything that still runs, and whatever else would be run: the program is about to end.
    pub async fn end(&self) {
        self.running.end().await;
    }

    fn not_run(&self, argv: &[String], error: &io::Error) -> ZfsError {
        let kind = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => ErrorKind::Missing,
            // Too many processes, or too little memory, at this moment.
            io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => ErrorKind::Busy,
            _ => ErrorKind::Other,
        };
        ZfsError { kind, command: self.shown(argv), status: "did not run".into(), stderr: error.to_string() }
    }

    fn ended(&self, argv: &[String], output: &Output) -> Result<(), ZfsError> {
        if output.status.success() {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let kind = if output.status.signal().is_some() { ErrorKind::Killed } else { parse::error_kind(&stderr) };
        Err(ZfsError { kind, command: self.shown(argv), status: status_text(output.status), stderr })
    }

    fn unreadable(&self, argv: &[String], bad: String) -> ZfsError {
        ZfsError { kind: ErrorKind::Output, command: self.shown(argv), status: String::new(), stderr: bad }
    }

    /// Runs a command that ends by itself soon, whatever its status.
    async fn output(&self, argv: &[String]) -> Result<Output, ZfsError> {
        let child = self.spawn(argv, self.command(argv).stdout(Stdio::piped()))?;
        match runtime::timeout(self.deadline, child.output()).await {
            Ok(output) => output.map_err(|error| self.not_run(argv, &error)),
            Err(runtime::Elapsed) => Err(self.endless(argv)),
        }
    }

    /// Runs a script that is given on standard input, and gives its output. A user who may not run any is refused by
    /// ZFS once, and here from then on.
    async fn run_script(&self, argv: &[String], script: &str) -> Result<Vec<u8>, ZfsError> {
        if self.no_scripts.load(Ordering::Relaxed) {
            return Err(ZfsError {
                kind: ErrorKind::Permission,
                command: self.shown(argv),
                status: "did not run".into(),
                stderr: "this user may not run scripts".into(),
            });
        }
        let ran = self.run_with_input(argv, script).await;
        if ran.as_ref().is_err_and(|error| error.kind == ErrorKind::Permission) {
            self.no_scripts.store(true, Ordering::Relaxed);
        }
        ran
    }

    async fn run_with_input(&self, argv: &[String], script: &str) -> Result<Vec<u8>, ZfsError> {
        let mut child = self.spawn(argv, self.command(argv).stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let Some(mut input) = child.stdin() else { return Err(self.unreadable(argv, "it has no input".into())) };
        let run = async {
            // If it does not want all of it, its own words tell why.
            if let Err(error) = input.write_all(script.as_bytes()).await {
                log::debug!("{}: {error}", self.shown(argv));
            }
            drop(input);
            child.output().await
        };
        match runtime::timeout(self.deadline, run).await {
            Ok(output) => {
                let output = output.map_err(|error| self.not_run(argv, &error))?;
                self.ended(argv, &output)?;
                Ok(output.stdout)
            }
            Err(runtime::Elapsed) => Err(self.endless(argv)),
        }
    }

    fn endless(&self, argv: &[String]) -> ZfsError {
        ZfsError {
            kind: ErrorKind::Pool,
            command: self.shown(argv),
            status: format!("no end after {}", humantime::format_duration(self.deadline)),
            stderr: "is the pool suspended? see zpool status".into(),
        }
    }

    /// Runs a command that must succeed, and gives its output.
    async fn run(&self, argv: &[String]) -> Result<Vec<u8>, ZfsError> {
        let output = self.output(argv).await?;
        self.ended(argv, &output)?;
        Ok(output.stdout)
    }

    /// Runs a command whose failure of this kind means that there was nothing to do.
    async fn run_unless(&self, argv: &[String], harmless: ErrorKind) -> Result<(), ZfsError> {
        match self.run(argv).await {
            Err(error) if error.kind != harmless => Err(error),
            _ => Ok(()),
        }
    }

    /// Runs a listing. Names that do not exist make `zfs list` fail after it has listed the others.
    async fn listing(&self, argv: &[String]) -> Result<Vec<u8>, ZfsError> {
        let output = self.output(argv).await?;
        let only_missing = !output.stderr.is_empty()
            && String::from_utf8_lossy(&output.stderr)
                .lines()
                .all(|line| line.ends_with("does not exist") || line.contains("no such pool"));
        if !only_missing {
            self.ended(argv, &output)?;
        }
        Ok(output.stdout)
    }

    fn child_end(&self, argv: Vec<String>, child: Process) -> crate::zfs::End {
        let (this, underway) = (self.clone(), self.streams.begin());
        Box::pin(async move {
            let _underway = underway;
            let output = child.output().await.map_err(|error| this.not_run(&argv, &error))?;
            this.ended(&argv, &output)
        })
    }
}

/// Snapshots in lists that each fit into one argument.
fn batches(mut rest: &[SnapName]) -> impl Iterator<Item = &[SnapName]> {
    std::iter::from_fn(move || {
        let mut length = 0;
        let fitting = rest.iter().take_while(|name| {
            length += name.as_str().len() + 1;
            length < LONGEST_ARGUMENT
        });
        let (batch, later) = rest.split_at(fitting.count().max(1).min(rest.len()));
        rest = later;
        (!batch.is_empty()).then_some(batch)
    })
}

fn status_text(status: ExitStatus) -> String {
    // "exit status: 1" or "signal: 9 (SIGKILL)".
    status.to_string().replacen(": ", " ", 1)
}

impl ZfsRead for System {
    async fn list(&self, roots: &[DatasetName], depth: Depth) -> Result<Vec<Listed>, ZfsError> {
        if roots.is_empty() {
            // Without a name `zfs list` would show every pool of the machine.
            return Ok(Vec::new());
        }
        match depth {
            Depth::Only | Depth::Bare | Depth::Around => self.list_grouped(roots, depth).await,
            Depth::Recursive => self.list_by_pool(roots).await,
        }
    }

    async fn list_changed(&self, roots: &[DatasetName], known: &Known) -> Result<Vec<Listed>, ZfsError> {
        if roots.is_empty() {
            return Ok(Vec::new());
        }
        self.list_changed_by_pool(roots, known).await
    }

    async fn snapshots(&self, dataset: &DatasetName) -> Result<Option<History>, ZfsError> {
        self.snapshots_grouped(dataset).await
    }

    async fn cloned(&self, dataset: &DatasetName, names: &[SnapName]) -> Result<Vec<SnapName>, ZfsError> {
        let mut cloned = Vec::new();
        for batch in names.chunks(1000) {
            let argv = argv::list_clones(dataset, batch);
            let output = self.listing(&argv).await?;
            cloned.extend(parse::cloned(&output).map_err(|bad| self.unreadable(&argv, bad))?);
        }
        Ok(cloned)
    }

    async fn written_since(
        &self,
        datasets: &[DatasetName],
        name: &SnapName,
    ) -> Result<Vec<(DatasetName, u64)>, ZfsError> {
        let argv = argv::written_since(datasets, name);
        parse::values(&self.run(&argv).await?).map_err(|bad| self.unreadable(&argv, bad))
    }

    async fn resumable(&self, token: &str) -> Result<Resumable, ZfsError> {
        let argv = argv::resumable(token);
        if !parse::is_token(token) {
            let stderr = "it is no resume token at all".to_owned();
            return Err(ZfsError {
                kind: ErrorKind::StaleToken,
                command: self.shown(&argv),
                status: String::new(),
                stderr,
            });
        }
        parse::resumable(&self.run(&argv).await?).map_err(|bad| self.unreadable(&argv, bad))
    }

    async fn properties(&self, dataset: &DatasetName) -> Result<BTreeMap<String, String>, ZfsError> {
        let argv = argv::properties(dataset);
        parse::properties(&self.run(&argv).await?).map_err(|bad| self.unreadable(&argv, bad))
    }

    async fn size_of_send(&self, spec: &SendSpec) -> Result<Option<u64>, ZfsError> {
        let argv = argv::size_of_send(spec);
        parse::size(&self.run(&argv).await?, "size").map_err(|bad| self.unreadable(&argv, bad))
    }

    async fn size_of_destroy(&self, dataset: &DatasetName, names: &[SnapName]) -> Result<Option<u64>, ZfsError> {
        // What two batches free together is at least the sum.
        let mut total = Some(0u64);
        for batch in batches(names) {
            let argv = argv::size_of_destroy(dataset, batch);
            let size = parse::size(&self.run(&argv).await?, "reclaim").map_err(|bad| self.unreadable(&argv, bad))?;
            total = total.zip(size).map(|(total, size)| total.saturating_add(size));
        }
        Ok(total)
    }

    async fn check_version(&self) -> Result<String, ZfsError> {
        let argv = argv::version();
        let output = self.run(&argv).await?;
        let (text, number) = parse::version(&output).map_err(|bad| self.unreadable(&argv, bad))?;
        if number < parse::OLDEST_VERSION {
            let (major, minor) = parse::OLDEST_VERSION;
            return Err(ZfsError {
                kind: ErrorKind::TooOld,
                command: self.shown(&argv),
                status: String::new(),
                stderr: format!("it is {text}, zsync needs OpenZFS {major}.{minor} or newer"),
            });
        }
        self.tells_changes.store(number >= parse::TELLS_CHANGES, Ordering::Relaxed);
        Ok(text)
    }
}

impl Zfs for System {
    async fn snapshot(
        &self,
        datasets: &[DatasetName],
        name: &SnapName,
    ) -> Result<Vec<(DatasetName, History)>, ZfsError> {
        self.run(&argv::snapshot(datasets, name)).await?;
        let mut histories = Vec::with_capacity(datasets.len());
        for batch in datasets.chunks(1000) {
            histories.extend(self.histories(batch).await?);
        }
        Ok(histories)
    }

    async fn sync(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        // The `zpool` that belongs to this `zfs`.
        let zpool = Self { program: self.program.with_file_name("zpool"), ..self.clone() };
        match zpool.run(&argv::sync_pool(dataset)).await {
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
        // What has to go as a whole goes at once, whatever it takes.
        let batch = if all { victims.len().max(1) } else { PER_SCRIPT };
        for batch in victims.chunks(batch) {
            let argv = argv::destroy_proven(dataset, batch, guards, all);
            match self.run_script(&argv, argv::DESTROY).await {
                Ok(said) => {
                    fates.extend(parse::fates(&said, batch.len()).map_err(|bad| self.unreadable(&argv, bad))?);
                }
                Err(error) if error.kind == ErrorKind::Permission => {
                    log::debug!("{error}");
                    fates.extend(self.destroy_by_name(dataset, batch, guards, all).await?);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(fates)
    }

    async fn hold(&self, tag: &str, dataset: &DatasetName, names: &[SnapName]) -> Result<(), ZfsError> {
        self.tag_grouped(Tagging::Hold, tag, dataset, names).await
    }

    async fn release(&self, tag: &str, dataset: &DatasetName, names: &[SnapName]) -> Result<(), ZfsError> {
        self.tag_grouped(Tagging::Release, tag, dataset, names).await
    }

    async fn holds(&self, dataset: &DatasetName, names: &[SnapName]) -> Result<Vec<(SnapName, String)>, ZfsError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let argv = argv::holds(dataset, names);
        parse::holds(&self.run(&argv).await?).map_err(|bad| self.unreadable(&argv, bad))
    }

    async fn bookmark(&self, dataset: &DatasetName, snapshot: &Named, bookmark: &SnapName) -> Result<(), ZfsError> {
        let wanted = Write::Bookmark(dataset.clone(), snapshot.clone(), bookmark.clone());
        if self.write_grouped(wanted).await {
            return Ok(());
        }
        let argv = argv::bookmark(dataset, &snapshot.name, bookmark);
        let Err(exists) = self.run(&argv).await else { return Ok(()) };
        if exists.kind != ErrorKind::Exists {
            return Err(exists);
        }
        let argv = argv::list_bookmark(dataset, bookmark);
        let rows = parse::snapshots(&self.run(&argv).await?).map_err(|bad| self.unreadable(&argv, bad))?;
        let is_same = |(_, row): &(_, parse::Row)| matches!(row, parse::Row::Bookmark(b) if b.guid == snapshot.guid);
        if rows.iter().any(is_same) { Ok(()) } else { Err(exists) }
    }

    async fn destroy_bookmark(&self, dataset: &DatasetName, bookmark: &SnapName) -> Result<(), ZfsError> {
        self.run_unless(&argv::destroy_bookmark(dataset, bookmark), ErrorKind::NotFound).await
    }

    async fn rollback(&self, dataset: &DatasetName, to: &SnapName) -> Result<(), ZfsError> {
        self.run(&argv::rollback(dataset, to)).await.map(drop)
    }

    async fn abort_receive(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        self.run_unless(&argv::abort_receive(dataset), ErrorKind::NotFound).await
    }

    async fn create_ancestors(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        let ancestors: Vec<DatasetName> = dataset.ancestors().collect();
        let there = self.list(&ancestors, Depth::Bare).await?;
        let is_there = |name: &DatasetName| there.iter().any(|(found, _)| found == name);
        let missing: Vec<DatasetName> = ancestors.into_iter().filter(|name| !is_there(name)).collect();
        if let Some(pool) = missing.last().filter(|name| name.parent().is_none()) {
            return Err(ZfsError {
                kind: ErrorKind::NotFound,
                command: self.shown(&argv::list_datasets(std::slice::from_ref(pool), Depth::Only)),
                status: "exit status 1".into(),
                stderr: format!("there is no pool {pool}; import it (zpool import), or name another one in the policy"),
            });
        }
        for name in missing.iter().rev() {
            self.run_unless(&argv::create_ancestor(name), ErrorKind::Exists).await?;
        }
        Ok(())
    }

    async fn rename(&self, dataset: &DatasetName, to: &DatasetName) -> Result<(), ZfsError> {
        self.run(&argv::rename(dataset, to)).await.map(drop)
    }

    async fn make_clone(
        &self,
        dataset: &DatasetName,
        of: &SnapName,
        clone: &DatasetName,
        properties: &[(&str, &str)],
    ) -> Result<(), ZfsError> {
        match self.run(&argv::make_clone(dataset, of, clone, properties)).await {
            Ok(_) => Ok(()),
            // libzfs says so after the clone is there.
            Err(error) if error.stderr.contains("successfully created, but not mounted") => {
                log::info!("{clone} was made, but is not mounted: {}", error.stderr.trim().replace('\n', "; "));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn destroy_clone(&self, clone: &DatasetName) -> Result<(), ZfsError> {
        self.run(&argv::destroy_clone(clone)).await.map(drop)
    }

    async fn set(&self, dataset: &DatasetName, property: &str, value: &str) -> Result<(), ZfsError> {
        // Scripts set users' properties only; ZFS' own are left to the command.
        if self.write_grouped(Write::Property(dataset.clone(), property.into(), value.into())).await {
            return Ok(());
        }
        self.run(&argv::set(dataset, property, value)).await.map(drop)
    }

    async fn send(&self, spec: &SendSpec) -> Result<SendStream, ZfsError> {
        let argv = argv::send(spec);
        let mut child = self.spawn(&argv, self.command(&argv).stdout(Stdio::piped()))?;
        let Some(data) = child.stdout() else { return Err(self.unreadable(&argv, "it has no output".into())) };
        widen(&data);
        Ok(SendStream { data: Box::new(data), end: self.child_end(argv, child) })
    }

    async fn receive(&self, spec: &ReceiveSpec) -> Result<ReceiveStream, ZfsError> {
        let argv = argv::receive(spec);
        let mut child = self.spawn(&argv, self.command(&argv).stdin(Stdio::piped()))?;
        let Some(data) = child.stdin() else { return Err(self.unreadable(&argv, "it has no input".into())) };
        widen(&data);
        Ok(ReceiveStream { data: Box::new(data), end: self.child_end(argv, child) })
    }

    async fn copy(
        &self,
        send: &SendSpec,
        receive: &ReceiveSpec,
        counter: &Counter,
        stall: Duration,
    ) -> Result<(), ZfsError> {
        self.copy_here(send, receive, counter, stall).await
    }
}
