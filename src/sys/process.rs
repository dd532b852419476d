//! Running commands; the only place that makes processes. Each is in a process group of its own: none outlives whoever waits for it, nor the program's end.

use std::collections::BTreeSet;
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

/// How long the program's end waits for what it has killed: a process that ZFS keeps in the kernel ends when it may.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// The process groups that run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Running(Arc<Mutex<Groups>>);

#[derive(Debug, Default)]
struct Groups {
    running: BTreeSet<i32>,
    /// Nothing more is started.
    closed: bool,
}

/// A process group. Dropped before its process was seen to end, it is killed with all that the process started.
#[derive(Debug)]
struct Group {
    pid: Option<Pid>,
    ended: bool,
    running: Running,
}

/// A running command. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Process {
    // Dropped before the child is: until that is waited for, its number is nobody else's.
    group: Group,
    child: Child,
}

/// A command without input whose output is thrown away; what it complains is kept.
pub(crate) fn command(program: &Path) -> Command {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that spawns processes")]
    let mut command = std::process::Command::new(program);
    // With a group of its own, so that it can be ended with all that it may have started.
    command.process_group(0);
    let mut command = Command::from(command);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

impl Running {
    fn groups(&self) -> MutexGuard<'_, Groups> {
        self.0.lock()
    }

    /// Starts a command, which must have been given a process group of its own.
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

    /// Kills all that runs and waits for its end; from now on nothing is started.
    pub(crate) async fn end(&self) {
        let running = {
            let mut groups = self.groups();
            groups.closed = true;
            groups.running.clone()
        };
        running.into_iter().filter_map(Pid::from_raw).for_each(kill);
        let gone = async {
            while !self.groups().running.is_empty() {
                runtime::sleep(Duration::from_millis(20)).await;
            }
        };
        if runtime::timeout(LAST_WAIT, gone).await.is_err() {
            log::warn!("some commands were killed and have not ended yet");
        }
    }
}

fn kill(group: Pid) {
    if let Err(error) = kill_process_group(group, Signal::KILL) {
        log::debug!("process group {}: {error}", group.as_raw_pid());
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

    /// Waits for its end, with all that it prints where that is asked for.
    pub(crate) async fn output(self) -> io::Result<Output> {
        let Self { group, child } = self;
        let mut output = Box::pin(child.output());
        // Declared last, it is dropped first: see `Process`.
        let mut group = group;
        let ended = output.as_mut().await;
        group.ended = true;
        ended
    }
}
