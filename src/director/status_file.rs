//! Writes the director's live status while a pass runs.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::director::progress::{PassProgress, RunningOrder};
use crate::fleet::live_status::{LiveStatus, RunningTransfer, StatusPlace};
use crate::sys::{clock, runtime};

/// How often the status is written.
const INTERVAL: Duration = Duration::from_secs(2);

/// The orders that are running.
pub(crate) fn running(progress: &PassProgress) -> Vec<RunningTransfer> {
    let transfer = |running: RunningOrder| RunningTransfer {
        action: running.outcome.action,
        host: running.outcome.host,
        dataset: running.outcome.dataset,
        snapshot: running.outcome.snapshot,
        to: running.outcome.to,
        seconds: running.since.elapsed().as_secs_f64(),
        bytes: running.counter.get(),
        total: running.counter.expected(),
        waits_for: running.counter.waits_for(),
    };
    progress.running().into_iter().map(transfer).collect()
}

fn status(progress: &PassProgress, began: DateTime<Utc>) -> LiveStatus {
    LiveStatus {
        at: clock::now(),
        began,
        ended: None,
        unseen: progress.hosts_unseen(),
        running: running(progress),
        resting: progress.resting(),
        clocks_behind: progress.clocks_behind(),
        certificates: progress.certificates(),
    }
}

/// Writes the status of a pass at intervals, until this future is dropped.
pub(crate) async fn publish<T>(place: &StatusPlace, progress: &PassProgress, began: DateTime<Utc>) -> T {
    loop {
        put(place, status(progress, began)).await;
        runtime::sleep(INTERVAL).await;
    }
}

/// Writes the status between passes: while transfers of earlier passes run, what they do; otherwise that the last pass
/// has ended.
pub(crate) async fn publish_pause<T>(place: &StatusPlace, progress: &PassProgress, began: DateTime<Utc>) -> T {
    loop {
        while !progress.running().is_empty() {
            put(place, status(progress, began)).await;
            runtime::sleep(INTERVAL).await;
        }
        publish_end(place, progress, began).await;
        progress.begun().await;
    }
}

/// Writes that the director has ended, after which nothing is tried again at a certain time.
pub(crate) async fn publish_stop(place: &StatusPlace, progress: &PassProgress, began: DateTime<Utc>) {
    progress.note_resting(Vec::new());
    publish_end(place, progress, began).await;
}

/// Writes that a pass has ended.
async fn publish_end(place: &StatusPlace, progress: &PassProgress, began: DateTime<Utc>) {
    let live = status(progress, began);
    put(place, LiveStatus { ended: Some(live.at), running: Vec::new(), ..live }).await;
}

async fn put(place: &StatusPlace, live: LiveStatus) {
    let written = match serde_json::to_vec(&live) {
        Ok(value) => place.write(value).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = written {
        log::debug!("cannot write the live status: {error}");
    }
}
