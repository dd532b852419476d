//! Runs the `zfs` command: sets its environment, limits its time, and interprets its exit status and its words.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_process::Command;
use futures_lite::{AsyncReadExt, AsyncWriteExt, future};
use parking_lot::Mutex;

use crate::model::DatasetName;
use crate::sys::batcher::Announcements;
use crate::sys::process;
use crate::sys::process::{Process, Running};
use crate::sys::runtime;
use crate::zfs::system::ssh::Ssh;
use crate::zfs::{End, ErrorKind, ZfsError, parse};

/// How long a command may take, unless it carries a stream.
const DEADLINE: Duration = Duration::from_secs(600);
/// A stream that is no older than this will probably end soon. An older stream is large, and no batch waits for it.
const STREAM_ENDS_SOON: Duration = Duration::from_secs(20);
/// How much of a listing is read at once, in bytes.
const READ_SIZE: usize = 64 * 1024;
/// The status of `ssh` if it has not reached the host, or has lost it.
const UNREACHED: i32 = 255;
/// The status of a shell that does not find a program.
const NO_PROGRAM: i32 = 127;
/// How much of a long command line is shown in messages, in bytes.
const MAX_SHOWN: usize = 1000;

/// Runs `zfs` commands. Clones share what is known about this ZFS, and their processes are ended together.
#[derive(Clone, Debug)]
pub(super) struct Runner {
    program: PathBuf,
    /// The host whose program is run; `None`: this one's.
    ssh: Option<Arc<Ssh>>,
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
            ssh: None,
            running: Running::default(),
            streams: Announcements::default(),
            no_scripts: Arc::default(),
            has_snapshots_changed: Arc::default(),
            warned: Arc::default(),
        }
    }

    /// Runs a program on another host. What is known about this host's ZFS is not known about that one's; processes
    /// end together.
    pub(super) fn over(&self, ssh: Ssh, program: &Path) -> Self {
        Self { ssh: Some(Arc::new(ssh)), running: self.running.clone(), ..Self::new(program) }
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
        let mut command = match &self.ssh {
            Some(ssh) => ssh.command(&self.program, argv),
            None => {
                let mut command = process::command(&self.program);
                command.args(argv.iter().map(OsStr::new));
                command
            }
        };
        // Errors are recognised by their English words.
        command.env("LC_ALL", "C");
        command
    }

    /// The command line for messages, shortened if it is very long.
    pub(super) fn render(&self, argv: &[String]) -> String {
        let mut line = self.program.display().to_string();
        if let Some(ssh) = &self.ssh {
            line = format!("ssh {} {line}", ssh.destination);
        }
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
        self.check_listing(argv, &output)?;
        if output.stdout.last().is_some_and(|last| *last != b'\n') {
            return Err(self.cut(argv));
        }
        Ok(output.stdout)
    }

    /// Runs a listing like [`Runner::run_listing`], and reads its lines as they come, so that its text is never in
    /// memory as a whole. It may take any time, as long as it does not stop for the time limit of a command.
    pub(super) async fn read_listing(
        &self,
        argv: &[String],
        read: impl FnMut(&str) -> Result<(), String>,
    ) -> Result<(), ZfsError> {
        self.read_lines(argv, read, Self::check_listing).await
    }

    /// Does the same as [`Runner::read_listing`], but all of the named datasets have to exist.
    pub(super) async fn read_whole_listing(
        &self,
        argv: &[String],
        read: impl FnMut(&str) -> Result<(), String>,
    ) -> Result<(), ZfsError> {
        self.read_lines(argv, read, Self::check_status).await
    }

    /// Runs a command to its end and reads its lines. `check` judges how it ended.
    async fn read_lines(
        &self,
        argv: &[String],
        mut read: impl FnMut(&str) -> Result<(), String>,
        check: fn(&Self, &[String], &Output) -> Result<(), ZfsError>,
    ) -> Result<(), ZfsError> {
        let mut child = self.spawn(argv, self.command(argv).stdout(Stdio::piped()))?;
        let Some(mut stdout) = child.stdout() else { return Err(self.unreadable(argv, "it has no output".into())) };
        let heard = Mutex::new(Instant::now());
        let reading = async {
            let (mut buffer, mut rest) = (vec![0; READ_SIZE], Vec::new());
            loop {
                let count = stdout.read(&mut buffer).await.map_err(|error| self.not_started(argv, &error))?;
                if count == 0 {
                    return Ok(!rest.is_empty());
                }
                *heard.lock() = Instant::now();
                rest.extend_from_slice(&buffer[..count]);
                let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else { continue };
                for line in parse::lines(&rest[..end]).map_err(|reason| self.unreadable(argv, reason))? {
                    read(line).map_err(|reason| self.unreadable(argv, reason))?;
                }
                rest.drain(..=end);
            }
        };
        let ending = async { child.output().await.map_err(|error| self.not_started(argv, &error)) };
        let silence = async {
            loop {
                let silent = heard.lock().elapsed();
                if silent >= DEADLINE {
                    return Err(self.late(argv));
                }
                runtime::sleep(DEADLINE.saturating_sub(silent)).await;
            }
        };
        let (is_cut, output) = future::or(future::try_zip(reading, ending), silence).await?;
        check(self, argv, &output)?;
        if is_cut { Err(self.cut(argv)) } else { Ok(()) }
    }

    /// The error for a listing that ends in the middle of a line.
    fn cut(&self, argv: &[String]) -> ZfsError {
        self.unreadable(argv, "it ends in the middle of a line".into())
    }

    /// Fails unless the listing succeeded, or lacks only datasets that do not exist.
    fn check_listing(&self, argv: &[String], output: &Output) -> Result<(), ZfsError> {
        // A listing that was killed may have printed only such lines so far, so the status counts as well.
        let only_missing = output.status.code() == Some(1)
            && !output.stderr.is_empty()
            && String::from_utf8_lossy(&output.stderr)
                .lines()
                .all(|line| line.ends_with("does not exist") || line.contains("no such pool"));
        if only_missing { Ok(()) } else { self.check_status(argv, output) }
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
            Err(runtime::Elapsed) => Err(self.late(argv)),
        }
    }

    fn late(&self, argv: &[String]) -> ZfsError {
        ZfsError {
            kind: ErrorKind::Pool,
            command: self.render(argv),
            status: format!("did not end within {}", humantime::format_duration(DEADLINE)),
            stderr: "is the pool suspended? see zpool status".into(),
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
        let kind = match (output.status.code(), &self.ssh) {
            (None, _) => ErrorKind::Killed,
            (Some(UNREACHED), Some(_)) => ErrorKind::Unreachable,
            (Some(NO_PROGRAM), Some(_)) => ErrorKind::Missing,
            _ => parse::error_kind(&stderr),
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of a listing that this shell script prints, and the error, if any.
    fn read(script: &str) -> (Vec<String>, Option<ZfsError>) {
        let (runner, mut lines) = (Runner::new(Path::new("/bin/sh")), Vec::new());
        let argv = ["-c", script].map(str::to_owned);
        let keep =
            |line: &str| (line != "bad").then(|| lines.push(line.to_owned())).ok_or_else(|| "a bad line".to_owned());
        let result = runtime::block_on(runner.read_listing(&argv, keep));
        (lines, result.err())
    }

    #[test]
    fn listing_is_read_line_by_line() {
        let (lines, error) = read("printf a; sleep 0.1; printf 'b\\nc\\n'; printf 'd\\n'");
        assert_eq!((lines, error.map(|e| e.to_string())), (vec!["ab".into(), "c".into(), "d".into()], None));
        let (lines, error) = read("i=0; while [ $i -lt 30000 ]; do echo line$i; i=$((i + 1)); done");
        assert!(error.is_none());
        assert!(lines.iter().enumerate().all(|(i, line)| *line == format!("line{i}")));
        assert_eq!(lines.len(), 30000);
    }

    #[test]
    fn listing_without_datasets_that_are_missing_is_a_listing() {
        let (lines, error) = read("echo a; echo \"cannot open 'tank/b': dataset does not exist\" >&2; exit 1");
        assert_eq!((lines, error.map(|e| e.to_string())), (vec!["a".into()], None));
        let (_, error) = read("echo a; echo 'cannot open: permission denied' >&2; exit 1");
        assert_eq!(error.unwrap().kind, ErrorKind::Permission);
        let (_, error) = read("echo a; echo \"cannot open 'tank/b': dataset does not exist\" >&2; kill -9 $$");
        assert_eq!(error.unwrap().kind, ErrorKind::Killed);
    }

    #[test]
    fn listing_that_is_cut_or_has_a_bad_line_is_none() {
        assert!(read("printf 'a\\nb'").1.unwrap().to_string().contains("in the middle of a line"));
        assert!(read("printf 'a\\nbad\\n'; sleep 60").1.unwrap().to_string().contains("a bad line"));
        assert_eq!(read("printf '\\377\\n'").1.unwrap().kind, ErrorKind::Output);
    }
}
