//! Runs the commands that this host's `local.json` names around snapshots and after a receive.
//!
//! What is run, and with which arguments, stands there alone. Of an order only names that were checked go into the
//! environment, which no shell looks at unless the command itself is one.

use std::fmt;
use std::path::Path;

use thiserror::Error;

use crate::model::{DatasetName, OrderId, Place, SnapName};
use crate::policy::{Hook, Hooks, Local};
use crate::sys::process::Running;
use crate::sys::{process, runtime};

/// How much of what a hook complained is told, in characters: its end.
const MOST_WORDS: usize = 500;

/// When a hook is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    BeforeSnapshot,
    AfterSnapshot,
    AfterReceive,
}

impl fmt::Display for When {
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
#[error("the hook {when} of {dataset} ({program}) {how}")]
pub struct HookError {
    when: When,
    dataset: DatasetName,
    program: String,
    how: String,
}

/// What a hook is told.
struct Told<'a> {
    when: When,
    order: OrderId,
    dataset: &'a DatasetName,
    snapshot: &'a SnapName,
    /// Of a snapshot: whether it was taken.
    taken: Option<bool>,
    /// Of a receive: where it came from.
    source: Option<&'a Place>,
}

impl Told<'_> {
    fn command(&self, hook: &Hook) -> Option<async_process::Command> {
        let (program, arguments) = hook.command.split_first()?;
        let mut command = process::command(Path::new(program));
        command.args(arguments);
        command.env("ZSYNC_HOOK", self.when.to_string()).env("ZSYNC_ORDER", self.order.to_string());
        command.env("ZSYNC_DATASET", self.dataset.as_str()).env("ZSYNC_SNAPSHOT", self.snapshot.as_str());
        if let Some(taken) = self.taken {
            command.env("ZSYNC_RESULT", if taken { "taken" } else { "failed" });
        }
        if let Some(source) = self.source {
            command.env("ZSYNC_SOURCE_HOST", source.host.as_str()).env("ZSYNC_SOURCE_DATASET", source.dataset.as_str());
        }
        Some(command)
    }

    /// Runs a hook to its end. A failure that is to count is given, another one only logged.
    async fn run(&self, hook: &Hook) -> Result<(), HookError> {
        let Some(mut command) = self.command(hook) else { return Ok(()) };
        let program = hook.command.first().cloned().unwrap_or_default();
        log::debug!("{}: runs the hook {} of {}: {program}", self.order, self.when, self.dataset);
        let ended = match Running::default().spawn(&mut command) {
            // Past its time it is dropped, and so killed with all that it started.
            Ok(process) => runtime::timeout(hook.timeout, process.output()).await,
            Err(error) => Ok(Err(error)),
        };
        let how = match ended {
            Ok(Ok(output)) if output.status.success() => return Ok(()),
            Ok(Ok(output)) => {
                let words = String::from_utf8_lossy(&output.stderr);
                let words = words.trim();
                let from = words.char_indices().rev().nth(MOST_WORDS - 1).map_or(0, |(at, _)| at);
                format!("ended with {}: {}", output.status, words.get(from..).unwrap_or_default())
            }
            Ok(Err(error)) => format!("cannot be run: {error}"),
            Err(runtime::Elapsed) => {
                format!("was ended after {} (timeout)", humantime::format_duration(hook.timeout))
            }
        };
        let how = how.trim_end_matches([':', ' ']).to_owned();
        let failed = HookError { when: self.when, dataset: self.dataset.clone(), program, how };
        if hook.aborts {
            return Err(failed);
        }
        log::warn!("{}: {failed}; goes on, as on_failure says", self.order);
        Ok(())
    }
}

/// The hooks around one snapshot, of every entry that has a part in it.
///
/// Whoever was told that a snapshot comes is told that it is over, whatever happens: dropped in between, this starts
/// what is still to be run, and lets it run.
pub struct Around<'a> {
    order: OrderId,
    snapshot: &'a SnapName,
    entries: Vec<(&'a DatasetName, &'a Hooks)>,
    /// How many of them were told that it begins.
    begun: usize,
}

impl<'a> Around<'a> {
    /// Those of the entries that cover these datasets.
    #[must_use]
    pub fn of(local: &'a Local, datasets: &[DatasetName], order: OrderId, snapshot: &'a SnapName) -> Self {
        let mut entries: Vec<(&DatasetName, &Hooks)> = Vec::new();
        for entry in datasets.iter().filter_map(|dataset| local.entry_for(dataset)) {
            let has_any = entry.hooks.before_snapshot.is_some() || entry.hooks.after_snapshot.is_some();
            if has_any && !entries.iter().any(|(name, _)| *name == &entry.name) {
                entries.push((&entry.name, &entry.hooks));
            }
        }
        Self { order, snapshot, entries, begun: 0 }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn told(&self, when: When, dataset: &'a DatasetName, taken: Option<bool>) -> Told<'a> {
        Told { when, order: self.order, dataset, snapshot: self.snapshot, taken, source: None }
    }

    /// Tells that it begins; after a failure nobody else.
    pub async fn before(&mut self) -> Result<(), HookError> {
        while let Some((dataset, hooks)) = self.entries.get(self.begun).copied() {
            // Counted first: what failed may have been done in part.
            self.begun += 1;
            if let Some(hook) = &hooks.before_snapshot {
                self.told(When::BeforeSnapshot, dataset, None).run(hook).await?;
            }
        }
        Ok(())
    }

    /// Tells everybody who was told before that it is over, the last one first. All are told; the first failure is given.
    pub async fn after(mut self, taken: bool) -> Result<(), HookError> {
        let mut result = Ok(());
        while self.begun > 0 {
            let (dataset, hooks) = self.entries[self.begun - 1];
            if let Some(hook) = &hooks.after_snapshot {
                let ended = self.told(When::AfterSnapshot, dataset, Some(taken)).run(hook).await;
                if let (Err(error), Err(_)) = (&ended, &result) {
                    log::warn!("{}: {error}", self.order);
                }
                result = result.and(ended);
            }
            self.begun -= 1;
        }
        result
    }
}

impl Drop for Around<'_> {
    fn drop(&mut self) {
        for (dataset, hooks) in self.entries.iter().take(self.begun).rev() {
            let Some(hook) = &hooks.after_snapshot else { continue };
            let told = self.told(When::AfterSnapshot, dataset, Some(false));
            let Some(mut command) = told.command(hook) else { continue };
            log::warn!("{}: broken off; starts the hook {} of {dataset}", self.order, told.when);
            // Nobody can wait for it any more.
            if let Err(error) = command.kill_on_drop(false).stderr(std::process::Stdio::null()).spawn() {
                log::error!("{}: the hook {} of {dataset} cannot be run: {error}", self.order, told.when);
            }
        }
    }
}

/// Tells that something was received.
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
    let told = Told { when: When::AfterReceive, order, dataset, snapshot, taken: None, source: Some(source) };
    told.run(hook).await
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Instant;

    use uuid::Uuid;

    use super::*;
    use crate::config::parse_local;

    /// What a hook of this shell script says to a file, and how the snapshot's hooks end.
    struct Case {
        folder: tempfile::TempDir,
        local: Local,
    }

    impl Case {
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

        fn around<T>(&self, work: impl AsyncFnOnce(Around<'_>) -> T) -> T {
            let (datasets, name) = (["tank/db".parse().unwrap(), "tank/db/x".parse().unwrap()], "S_1".parse().unwrap());
            let around = Around::of(&self.local, &datasets, OrderId(Uuid::nil()), &name);
            runtime::block_on(work(around))
        }
    }

    const TELL: &str = "echo $ZSYNC_HOOK $ZSYNC_DATASET $ZSYNC_SNAPSHOT $ZSYNC_RESULT >> LOG";

    #[test]
    fn hooks_are_told_what_happens_and_once_for_their_entry() {
        let case = Case::new(TELL, TELL, "");
        case.around(async |mut around| {
            around.before().await.unwrap();
            around.after(true).await.unwrap();
        });
        assert_eq!(case.log(), "before_snapshot tank/db S_1\nafter_snapshot tank/db S_1 taken\n");
    }

    #[test]
    fn a_failed_hook_aborts_and_what_was_begun_is_ended() {
        let case = Case::new("echo it is locked >&2; exit 3", TELL, "");
        let error = case.around(async |mut around| {
            let error = around.before().await.unwrap_err();
            around.after(false).await.unwrap();
            error.to_string()
        });
        assert_eq!(error, "the hook before_snapshot of tank/db (/bin/sh) ended with exit status: 3: it is locked");
        assert_eq!(case.log(), "after_snapshot tank/db S_1 failed\n");
        let case = Case::new("exit 3", TELL, r#", "on_failure": "continue""#);
        case.around(async |mut around| {
            around.before().await.unwrap();
            around.after(true).await.unwrap();
        });
        assert_eq!(case.log(), "after_snapshot tank/db S_1 taken\n");
    }

    #[test]
    fn a_hook_past_its_time_is_ended_with_all_that_it_started() {
        let case = Case::new("sleep 100 & echo $! > LOG; wait", "true", r#", "timeout": "1s""#);
        let began = Instant::now();
        let error = case.around(async |mut around| around.before().await.unwrap_err().to_string());
        assert!(error.ends_with("was ended after 1s (timeout)"), "{error}");
        assert!(began.elapsed().as_secs() < 50);
        let child = format!("/proc/{}/stat", case.log().trim());
        // Killed, it may still wait to be collected.
        let is_gone =
            || fs::read_to_string(&child).is_ok_and(|stat| stat.contains(") Z ")) || !Path::new(&child).exists();
        let until = Instant::now();
        while !is_gone() && until.elapsed().as_secs() < 20 {
            std::thread::yield_now();
        }
        assert!(is_gone(), "what the hook started runs on");
    }

    #[test]
    fn what_was_begun_is_ended_also_when_the_order_is_broken_off() {
        let case = Case::new("true", TELL, "");
        case.around(async |mut around| around.before().await.unwrap());
        let until = Instant::now();
        while case.log().is_empty() && until.elapsed().as_secs() < 20 {
            std::thread::yield_now();
        }
        assert_eq!(case.log(), "after_snapshot tank/db S_1 failed\n");
    }
}
