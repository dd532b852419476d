//! Runs commands. This is the only place that spawns processes, except for hooks that outlive their order.
//!
//! Each command gets a process group of its own, which is killed with everything that it started if the `Process` is
//! dropped before the command has ended. `zfs` commands are also killed when the program ends (`Running::end`). Hooks
//! can outlive the program: the hook `after_snapshot` of an aborted order is started without anything waiting for it,
//! so that a database that was locked for a snapshot is unlocked in any case.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_process::{Child, ChildStdin, ChildStdout, Command};
use parking_lot::{Mutex, MutexGuard};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::sys::runtime;

/// How long the program waits at its end for commands that it has killed. A process that is stuck in the kernel, in an
/// operation of ZFS, ends only after that operation.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// The process groups that are running. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Running(Arc<Mutex<Groups>>);

#[derive(Debug, Default)]
struct Groups {
    running: BTreeSet<i32>,
    /// Whether the program is ending, so that nothing more is started.
    closed: bool,
}

/// A process group. If it is dropped before its first process was seen to end, it is killed with everything that the
/// process started.
#[derive(Debug)]
struct Group {
    pid: Option<Pid>,
    ended: bool,
    running: Running,
}

/// A running command. Dropping it kills its process group.
#[derive(Debug)]
pub(crate) struct Process {
    // Dropped before the child: until the child is waited for, no other process can get its number.
    group: Group,
    child: Child,
}

/// Prepares a command without input. Its standard output is discarded, its standard error kept.
pub(crate) fn command(program: &Path) -> Command {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that spawns processes")]
    let mut command = std::process::Command::new(program);
    // A hook or ZFS needs no access to Consul, whose token may be in the environment.
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_consul(name)) {
        command.env_remove(name);
    }
    // A group of its own, so that it can be killed together with its descendants.
    command.process_group(0);
    let mut command = Command::from(command);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Whether an environment variable belongs to Consul, as the token does.
fn is_of_consul(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"CONSUL_")
}

impl Running {
    fn groups(&self) -> MutexGuard<'_, Groups> {
        self.0.lock()
    }

    /// Starts a command made by [`command`].
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<Process> {
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let process = Process { group: Group { pid, ended: false, running: self.clone() }, child };
        let mut groups = self.groups();
        groups.running.extend(pid.map(Pid::as_raw_pid));
        let closed = groups.closed;
        drop(groups);
        if closed { Err(io::Error::other("the program is ending")) } else { Ok(process) }
    }

    /// Kills all running commands and waits until they have ended. From now on, no command is started.
    pub(crate) async fn end(&self) {
        let running = {
            let mut groups = self.groups();
            groups.closed = true;
            groups.running.clone()
        };
        running.into_iter().filter_map(Pid::from_raw).for_each(kill);
        let all_ended = async {
            while !self.groups().running.is_empty() {
                runtime::sleep(Duration::from_millis(20)).await;
            }
        };
        if runtime::timeout(KILL_TIMEOUT, all_ended).await.is_err() {
            log::warn!("some commands were killed, but have not ended yet");
        }
    }
}

fn kill(group: Pid) {
    if let Err(error) = kill_process_group(group, Signal::KILL) {
        log::debug!("cannot kill process group {}: {error}", group.as_raw_pid());
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(pid) = self.pid else { return };
        if !self.ended {
            kill(pid);
        }
        self.running.groups().running.remove(&pid.as_raw_pid());
    }
}

impl Process {
    pub(crate) fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    pub(crate) fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits until the command has ended, and returns its status with the output that it was asked to keep.
    pub(crate) async fn output(self) -> io::Result<Output> {
        let Self { group, child } = self;
        let mut output = Box::pin(child.output());
        // Declared last, so that it is dropped first: see `Process`.
        let mut group = group;
        let result = output.as_mut().await;
        group.ended = true;
        result
    }
}
