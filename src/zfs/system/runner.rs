//! Runs the `zfs` command: sets its environment, limits its time, and interprets its exit status and its words.

use std::collections::BTreeSet;
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
use parking_lot::Mutex;

use crate::model::DatasetName;
use crate::sys::batcher::Announcements;
use crate::sys::process;
use crate::sys::process::{Process, Running};
use crate::sys::runtime;
use crate::zfs::{End, ErrorKind, ZfsError, parse};

/// How long a command may take, unless it carries a stream.
const DEADLINE: Duration = Duration::from_secs(600);
/// A stream that is no older than this will probably end soon. An older stream is large, and no batch waits for it.
const STREAM_ENDS_SOON: Duration = Duration::from_secs(20);
/// How much of a long command line is shown in messages, in bytes.
const MAX_SHOWN: usize = 1000;

/// Runs `zfs` commands. Clones share what is known about this ZFS, and their processes are ended together.
#[derive(Clone, Debug)]
pub(super) struct Runner {
    program: PathBuf,
    running: Running,
    /// Each running stream announces the commands that follow its end.
    pub(super) streams: Announcements,
    /// Whether ZFS has refused to run a script for this user.
    no_scripts: Arc<AtomicBool>,
    /// Whether this ZFS has `snapshots_changed`.
    has_snapshots_changed: Arc<AtomicBool>,
    /// The datasets about whose meaningless user properties a warning has been logged, each with the properties.
    pub(super) warned: Arc<Mutex<BTreeSet<(DatasetName, String)>>>,
}

impl Runner {
    pub(super) fn new(program: &Path) -> Self {
        Self {
            program: program.to_owned(),
            running: Running::default(),
            streams: Announcements::default(),
            no_scripts: Arc::default(),
            has_snapshots_changed: Arc::default(),
            warned: Arc::default(),
        }
    }

    /// Runs another program of the same installation.
    pub(super) fn sibling(&self, name: &str) -> Self {
        Self { program: self.program.with_file_name(name), ..self.clone() }
    }

    /// Kills all running commands. From now on, no command is started.
    pub(super) async fn end(&self) {
        self.running.end().await;
    }

    pub(super) fn set_snapshots_changed(&self, exists: bool) {
        self.has_snapshots_changed.store(exists, Ordering::Relaxed);
    }

    pub(super) fn has_snapshots_changed(&self) -> bool {
        self.has_snapshots_changed.load(Ordering::Relaxed)
    }

    pub(super) fn command(&self, argv: &[String]) -> Command {
        let mut command = process::command(&self.program);
        // Errors are recognised by their English words.
        command.args(argv.iter().map(OsStr::new)).env("LC_ALL", "C");
        command
    }

    /// The command line for messages, shortened if it is very long.
    pub(super) fn render(&self, argv: &[String]) -> String {
        let mut line = self.program.display().to_string();
        for word in argv {
            line.push(' ');
            if line.len() > MAX_SHOWN {
                line.push('…');
                break;
            }
            line.push_str(word);
        }
        line
    }

    pub(super) fn spawn(&self, argv: &[String], command: &mut Command) -> Result<Process, ZfsError> {
        log::debug!("running {}", self.render(argv));
        self.running.spawn(command).map_err(|error| self.not_started(argv, &error))
    }

    /// Runs a command that must succeed, and returns its output.
    pub(super) async fn run(&self, argv: &[String]) -> Result<Vec<u8>, ZfsError> {
        let output = self.output(argv).await?;
        self.check_status(argv, &output)?;
        Ok(output.stdout)
    }

    /// Runs a command that must succeed, and parses its output.
    pub(super) async fn query<T>(
        &self,
        argv: &[String],
        parse: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Result<T, ZfsError> {
        parse(&self.run(argv).await?).map_err(|reason| self.unreadable(argv, reason))
    }

    /// Runs a command for which a failure of this kind means that there was nothing to do.
    pub(super) async fn run_unless(&self, argv: &[String], harmless: ErrorKind) -> Result<(), ZfsError> {
        match self.run(argv).await {
            Err(error) if error.kind != harmless => Err(error),
            _ => Ok(()),
        }
    }

    /// Runs a listing. If some of the named datasets do not exist, `zfs list` fails after it has listed the others, and
    /// their listing is the result.
    pub(super) async fn run_listing(&self, argv: &[String]) -> Result<Vec<u8>, ZfsError> {
        let output = self.output(argv).await?;
        // A listing that was killed may have printed only such lines so far, so the status counts as well.
        let only_missing = output.status.code() == Some(1)
            && !output.stderr.is_empty()
            && String::from_utf8_lossy(&output.stderr)
                .lines()
                .all(|line| line.ends_with("does not exist") || line.contains("no such pool"));
        if !only_missing {
            self.check_status(argv, &output)?;
        }
        if output.stdout.last().is_some_and(|last| *last != b'\n') {
            return Err(self.unreadable(argv, "it ends in the middle of a line".into()));
        }
        Ok(output.stdout)
    }

    /// Runs a channel program that is passed on standard input, and returns its output. After ZFS has refused this user
    /// once, later scripts fail without being run.
    pub(super) async fn run_script(&self, argv: &[String], script: &str) -> Result<Vec<u8>, ZfsError> {
        if self.no_scripts.load(Ordering::Relaxed) {
            return Err(ZfsError {
                kind: ErrorKind::Permission,
                command: self.render(argv),
                status: "did not run".into(),
                stderr: "this user may not run scripts".into(),
            });
        }
        let result = self.run_with_input(argv, script).await;
        if result.as_ref().is_err_and(|error| error.kind == ErrorKind::Permission) {
            self.no_scripts.store(true, Ordering::Relaxed);
        }
        result
    }

    async fn run_with_input(&self, argv: &[String], input: &str) -> Result<Vec<u8>, ZfsError> {
        let mut child = self.spawn(argv, self.command(argv).stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let Some(mut stdin) = child.stdin() else { return Err(self.unreadable(argv, "it has no input".into())) };
        let run = async {
            // If the command does not read all of it, its own error explains why.
            if let Err(error) = stdin.write_all(input.as_bytes()).await {
                log::debug!("cannot write to {}: {error}", self.render(argv));
            }
            drop(stdin);
            child.output().await
        };
        let output = self.within_deadline(argv, run).await?;
        self.check_status(argv, &output)?;
        Ok(output.stdout)
    }

    /// Runs a command to its end, whatever its status is.
    async fn output(&self, argv: &[String]) -> Result<Output, ZfsError> {
        let child = self.spawn(argv, self.command(argv).stdout(Stdio::piped()))?;
        self.within_deadline(argv, child.output()).await
    }

    async fn within_deadline(
        &self,
        argv: &[String],
        output: impl Future<Output = io::Result<Output>>,
    ) -> Result<Output, ZfsError> {
        match runtime::timeout(DEADLINE, output).await {
            Ok(output) => output.map_err(|error| self.not_started(argv, &error)),
            Err(runtime::Elapsed) => Err(ZfsError {
                kind: ErrorKind::Pool,
                command: self.render(argv),
                status: format!("did not end within {}", humantime::format_duration(DEADLINE)),
                stderr: "is the pool suspended? see zpool status".into(),
            }),
        }
    }

    /// The end of a command that carries a stream.
    pub(super) fn stream_end(&self, argv: Vec<String>, child: Process) -> End {
        let (this, announcement) = (self.clone(), self.streams.announce(STREAM_ENDS_SOON));
        Box::pin(async move {
            let _announcement = announcement;
            let output = child.output().await.map_err(|error| this.not_started(&argv, &error))?;
            this.check_status(&argv, &output)
        })
    }

    fn check_status(&self, argv: &[String], output: &Output) -> Result<(), ZfsError> {
        if output.status.success() {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let kind = if output.status.signal().is_some() { ErrorKind::Killed } else { parse::error_kind(&stderr) };
        Err(ZfsError { kind, command: self.render(argv), status: status_text(output.status), stderr })
    }

    pub(super) fn not_started(&self, argv: &[String], error: &io::Error) -> ZfsError {
        let kind = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => ErrorKind::Missing,
            // Too many processes or too little memory, which may pass.
            io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => ErrorKind::Busy,
            _ => ErrorKind::Other,
        };
        ZfsError { kind, command: self.render(argv), status: "did not run".into(), stderr: error.to_string() }
    }

    /// The error for output that cannot be parsed.
    pub(super) fn unreadable(&self, argv: &[String], reason: String) -> ZfsError {
        ZfsError { kind: ErrorKind::Output, command: self.render(argv), status: String::new(), stderr: reason }
    }

    /// The error for a request whose batch ended without an answer.
    pub(super) fn unanswered(&self, argv: &[String]) -> ZfsError {
        ZfsError {
            kind: ErrorKind::Killed,
            command: self.render(argv),
            status: "did not run".into(),
            stderr: "the program is ending, or the batch of this command failed".into(),
        }
    }
}

fn status_text(status: ExitStatus) -> String {
    // "exit status: 1" or "signal: 9 (SIGKILL)".
    status.to_string().replacen(": ", " ", 1)
}
