//! Runs hooks: the commands that `local.json` of this host configures before and after snapshots and after a receive.
//!
//! Only `local.json` determines what is run, and with which arguments. From an order, only checked names are passed, in
//! the environment, where no shell interprets them unless the hook itself does.

use std::fmt;
use std::path::Path;

use thiserror::Error;

use crate::model::{DatasetName, OrderId, Place, SnapName};
use crate::policy::{Hook, Hooks, Local};
use crate::sys::process::Running;
use crate::sys::{process, runtime};

/// How many characters of a hook's standard error are shown, counted from the end.
const MAX_STDERR: usize = 500;

/// The occasion on which a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HookKind {
    BeforeSnapshot,
    AfterSnapshot,
    AfterReceive,
}

impl fmt::Display for HookKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BeforeSnapshot => "before_snapshot",
            Self::AfterSnapshot => "after_snapshot",
            Self::AfterReceive => "after_receive",
        })
    }
}

/// A hook that failed.
#[derive(Debug, Error)]
#[error("the hook {kind} of {dataset} ({program}) failed: {reason}")]
pub struct HookError {
    kind: HookKind,
    dataset: DatasetName,
    program: String,
    reason: String,
}

/// One run of a hook, with the values for its environment.
struct HookRun<'a> {
    kind: HookKind,
    order: OrderId,
    dataset: &'a DatasetName,
    snapshot: &'a SnapName,
    /// After a snapshot, whether it was taken.
    taken: Option<bool>,
    /// After a receive, the dataset that was sent.
    source: Option<&'a Place>,
}

impl HookRun<'_> {
    fn command(&self, hook: &Hook) -> Option<async_process::Command> {
        let (program, arguments) = hook.command.split_first()?;
        let mut command = process::command(Path::new(program));
        command.args(arguments);
        command.env("ZSYNC_HOOK", self.kind.to_string()).env("ZSYNC_ORDER", self.order.to_string());
        command.env("ZSYNC_DATASET", self.dataset.as_str()).env("ZSYNC_SNAPSHOT", self.snapshot.as_str());
        if let Some(taken) = self.taken {
            command.env("ZSYNC_RESULT", if taken { "taken" } else { "failed" });
        }
        if let Some(source) = self.source {
            command.env("ZSYNC_SOURCE_HOST", source.host.as_str()).env("ZSYNC_SOURCE_DATASET", source.dataset.as_str());
        }
        Some(command)
    }

    /// Runs a hook to its end. Whether a failure is returned or only logged depends on the `on_failure` of the hook.
    async fn execute(&self, hook: &Hook) -> Result<(), HookError> {
        let Some(mut command) = self.command(hook) else { return Ok(()) };
        let program = hook.command.first().cloned().unwrap_or_default();
        log::debug!("{}: running the hook {} of {}: {program}", self.order, self.kind, self.dataset);
        let ended = match Running::default().spawn(&mut command) {
            // On timeout the process is dropped, which kills it with everything that it started.
            Ok(process) => runtime::timeout(hook.timeout, process.output()).await,
            Err(error) => Ok(Err(error)),
        };
        let reason = match ended {
            Ok(Ok(output)) if output.status.success() => return Ok(()),
            Ok(Ok(output)) => {
                let stderr = String::from_utf8_lossy(&output.stderr);
                let stderr = stderr.trim();
                let start = stderr.char_indices().rev().nth(MAX_STDERR - 1).map_or(0, |(index, _)| index);
                format!("{}: {}", output.status, stderr.get(start..).unwrap_or_default())
            }
            Ok(Err(error)) => format!("cannot run it: {error}"),
            Err(runtime::Elapsed) => {
                format!("killed after {} (timeout)", humantime::format_duration(hook.timeout))
            }
        };
        let reason = reason.trim_end_matches([':', ' ']).to_owned();
        let error = HookError { kind: self.kind, dataset: self.dataset.clone(), program, reason };
        if hook.aborts {
            return Err(error);
        }
        log::warn!("{}: {error}; continuing, because its on_failure is \"continue\"", self.order);
        Ok(())
    }
}

/// The hooks before and after one snapshot, of every entry of local.json that covers one of its datasets.
///
/// For every `before_snapshot` that was run, `after_snapshot` is run as well, whatever happens. If this is dropped in
/// between, the remaining hooks are started, and continue without anything waiting for them.
pub struct SnapshotHooks<'a> {
    order: OrderId,
    snapshot: &'a SnapName,
    entries: Vec<(&'a DatasetName, &'a Hooks)>,
    /// For how many entries `before_snapshot` was run.
    begun: usize,
    /// The entries whose `before_snapshot` failed.
    failed: Vec<&'a DatasetName>,
}

impl<'a> SnapshotHooks<'a> {
    /// The hooks of the entries that cover these datasets.
    #[must_use]
    pub fn of(local: &'a Local, datasets: &[DatasetName], order: OrderId, snapshot: &'a SnapName) -> Self {
        let mut entries: Vec<(&DatasetName, &Hooks)> = Vec::new();
        for entry in datasets.iter().filter_map(|dataset| local.entry_for(dataset)) {
            let has_any = entry.hooks.before_snapshot.is_some() || entry.hooks.after_snapshot.is_some();
            if has_any && !entries.iter().any(|(name, _)| *name == &entry.name) {
                entries.push((&entry.name, &entry.hooks));
            }
        }
        Self { order, snapshot, entries, begun: 0, failed: Vec::new() }
    }

    /// Whether there are no hooks to run.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn hook_run(&self, kind: HookKind, dataset: &'a DatasetName, taken: Option<bool>) -> HookRun<'a> {
        HookRun { kind, order: self.order, dataset, snapshot: self.snapshot, taken, source: None }
    }

    /// Runs the hooks `before_snapshot`. Returns those that failed: of what their entries cover, no snapshot may be
    /// taken.
    pub async fn before(&mut self) -> Vec<HookError> {
        let mut errors = Vec::new();
        while let Some((dataset, hooks)) = self.entries.get(self.begun).copied() {
            // Counted first, because a hook that failed may have done part of its work.
            self.begun += 1;
            let Some(hook) = &hooks.before_snapshot else { continue };
            if let Err(error) = self.hook_run(HookKind::BeforeSnapshot, dataset, None).execute(hook).await {
                self.failed.push(dataset);
                errors.push(error);
            }
        }
        errors
    }

    /// Whether the hook before the snapshot of a dataset failed. `local` is what the hooks were taken from.
    #[must_use]
    pub fn forbid(&self, local: &Local, dataset: &DatasetName) -> bool {
        local.entry_for(dataset).is_some_and(|entry| self.failed.contains(&&entry.name))
    }

    /// Runs the hooks `after_snapshot` of every entry whose `before_snapshot` was run, in reverse order. All are run;
    /// those that failed are returned.
    pub async fn after(mut self, taken: bool) -> Vec<HookError> {
        let mut errors = Vec::new();
        while self.begun > 0 {
            let (dataset, hooks) = self.entries[self.begun - 1];
            if let Some(hook) = &hooks.after_snapshot {
                let taken = taken && !self.failed.contains(&dataset);
                errors.extend(self.hook_run(HookKind::AfterSnapshot, dataset, Some(taken)).execute(hook).await.err());
            }
            self.begun -= 1;
        }
        errors
    }
}

impl Drop for SnapshotHooks<'_> {
    fn drop(&mut self) {
        for (dataset, hooks) in self.entries.iter().take(self.begun).rev() {
            let Some(hook) = &hooks.after_snapshot else { continue };
            let run = self.hook_run(HookKind::AfterSnapshot, dataset, Some(false));
            let Some(mut command) = run.command(hook) else { continue };
            log::warn!("{}: the order was aborted; starting the hook {} of {dataset}", self.order, run.kind);
            // Nothing can wait for the hook any more, so it must not be killed when the command is dropped.
            if let Err(error) = command.kill_on_drop(false).stderr(std::process::Stdio::null()).spawn() {
                log::error!("{}: cannot run the hook {} of {dataset}: {error}", self.order, run.kind);
            }
        }
    }
}

/// Runs the hook `after_receive` of the entry that covers this dataset, if it has one.
pub async fn after_receive(
    local: &Local,
    order: OrderId,
    dataset: &DatasetName,
    snapshot: &SnapName,
    source: &Place,
) -> Result<(), HookError> {
    let Some(hook) = local.entry_for(dataset).and_then(|entry| entry.hooks.after_receive.as_ref()) else {
        return Ok(());
    };
    let run = HookRun { kind: HookKind::AfterReceive, order, dataset, snapshot, taken: None, source: Some(source) };
    run.execute(hook).await
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Instant;

    use uuid::Uuid;

    use super::*;
    use crate::config::parse_local;

    /// A configuration whose hooks are shell scripts, which may write to a log.
    struct Scripts {
        folder: tempfile::TempDir,
        local: Local,
    }

    impl Scripts {
        fn new(before: &str, after: &str, more: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let log = folder.path().join("log");
            let hook = |script: &str| {
                let script = script.replace("LOG", log.to_str().unwrap());
                serde_json::json!(["/bin/sh", "-c", script]).to_string()
            };
            let text = format!(
                r#"{{ "local_datasets": [ {{ "name": "tank/db", "hooks": {{
                    "before_snapshot": {{ "command": {}{more} }},
                    "after_snapshot": {{ "command": {} }} }} }} ] }}"#,
                hook(before),
                hook(after)
            );
            let local = parse_local("local.json", &text).unwrap_or_else(|error| panic!("{error}"));
            Self { folder, local }
        }

        fn log(&self) -> String {
            fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
        }

        fn run<T>(&self, work: impl AsyncFnOnce(SnapshotHooks<'_>) -> T) -> T {
            let (datasets, name) = (["tank/db".parse().unwrap(), "tank/db/x".parse().unwrap()], "S_1".parse().unwrap());
            let hooks = SnapshotHooks::of(&self.local, &datasets, OrderId(Uuid::nil()), &name);
            runtime::block_on(work(hooks))
        }
    }

    const LOG: &str = "echo $ZSYNC_HOOK $ZSYNC_DATASET $ZSYNC_SNAPSHOT $ZSYNC_RESULT >> LOG";

    #[test]
    fn hooks_run_once_per_entry_with_their_environment() {
        let scripts = Scripts::new(LOG, LOG, "");
        scripts.run(async |mut hooks| {
            assert!(hooks.before().await.is_empty() && hooks.after(true).await.is_empty());
        });
        assert_eq!(scripts.log(), "before_snapshot tank/db S_1\nafter_snapshot tank/db S_1 taken\n");
    }

    #[test]
    fn failed_hook_aborts_but_after_snapshot_still_runs() {
        let scripts = Scripts::new("echo it is locked >&2; exit 3", LOG, "");
        let error = scripts.run(async |mut hooks| {
            let errors = hooks.before().await;
            assert!(hooks.after(true).await.is_empty());
            errors[0].to_string()
        });
        assert_eq!(error, "the hook before_snapshot of tank/db (/bin/sh) failed: exit status: 3: it is locked");
        assert_eq!(scripts.log(), "after_snapshot tank/db S_1 failed\n");
        let scripts = Scripts::new("exit 3", LOG, r#", "on_failure": "continue""#);
        scripts.run(async |mut hooks| {
            assert!(hooks.before().await.is_empty() && hooks.after(true).await.is_empty());
        });
        assert_eq!(scripts.log(), "after_snapshot tank/db S_1 taken\n");
    }

    #[test]
    fn hook_is_killed_with_its_children_on_timeout() {
        let scripts = Scripts::new("sleep 100 & echo $! > LOG; wait", "true", r#", "timeout": "1s""#);
        let began = Instant::now();
        let error = scripts.run(async |mut hooks| hooks.before().await[0].to_string());
        assert!(error.ends_with("failed: killed after 1s (timeout)"), "{error}");
        assert!(began.elapsed().as_secs() < 50);
        let child = format!("/proc/{}/stat", scripts.log().trim());
        // A killed process may still be a zombie.
        let is_gone =
            || fs::read_to_string(&child).is_ok_and(|stat| stat.contains(") Z ")) || !Path::new(&child).exists();
        let until = Instant::now();
        while !is_gone() && until.elapsed().as_secs() < 20 {
            std::thread::yield_now();
        }
        assert!(is_gone(), "a child of the hook is still running");
    }

    #[test]
    fn dropped_hooks_start_after_snapshot() {
        let scripts = Scripts::new("true", LOG, "");
        scripts.run(async |mut hooks| assert!(hooks.before().await.is_empty()));
        let until = Instant::now();
        while scripts.log().is_empty() && until.elapsed().as_secs() < 20 {
            std::thread::yield_now();
        }
        assert_eq!(scripts.log(), "after_snapshot tank/db S_1 failed\n");
    }
}
