//! Does jobs side by side, each after those that it waits for, while a bar shows the progress.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_lite::future;

use crate::director::bars;
use crate::model::{Counter, DatasetName};
use crate::sys::runtime;
use crate::sys::runtime::channel;

/// How often the progress is added up.
const ADD_UP_EVERY: Duration = Duration::from_millis(200);

/// Something to do with one dataset.
pub struct Job<F> {
    /// The dataset, by which other jobs name this one.
    pub dataset: DatasetName,
    /// The jobs that have to succeed before. Those that do not exist are not waited for.
    pub waits_for: Vec<DatasetName>,
    /// How many bytes it moves, if that is known.
    pub size: Option<u64>,
    /// Counts the bytes that it moves.
    pub counter: Counter,
    /// Does it.
    pub work: F,
}

/// How a job ended.
pub enum Ended<T> {
    /// It was begun, and has this result.
    Done(T),
    /// It was not begun, because this one failed that it waits for.
    NotBegun(DatasetName),
}

/// By which those that wait for a job learn how it has ended.
#[derive(Clone)]
struct Gate {
    /// Is closed at the end.
    ended: channel::Receiver<()>,
    is_success: Arc<AtomicBool>,
}

/// Does these jobs, at most `limit` at a time. No job may come before one that it waits for. Returns how they ended, in
/// the same sequence.
pub async fn run<T, F>(label: &str, limit: usize, jobs: Vec<Job<F>>) -> Vec<Ended<Result<T, String>>>
where
    T: Send + 'static,
    F: Future<Output = Result<T, String>> + Send + 'static,
{
    let total = Counter::default();
    let mut gates: BTreeMap<DatasetName, Gate> = BTreeMap::new();
    let (mut counters, mut working) = (Vec::new(), Vec::new());
    for Job { dataset, waits_for, size, counter, work } in jobs {
        let (open, ended) = channel::bounded::<()>(1);
        let is_success = Arc::new(AtomicBool::new(false));
        let before: Vec<(DatasetName, Gate)> =
            waits_for.into_iter().filter_map(|name| gates.get(&name).cloned().map(|gate| (name, gate))).collect();
        gates.insert(dataset, Gate { ended, is_success: Arc::clone(&is_success) });
        total.expect(size.unwrap_or_default());
        counters.push(counter);
        working.push(async move {
            // It closes when this has ended, however that happens.
            let _open = open;
            for (name, gate) in before {
                // It fails, because nothing is sent.
                gate.ended.recv().await.ok();
                if !gate.is_success.load(Ordering::SeqCst) {
                    return Ended::NotBegun(name);
                }
            }
            let result = work.await;
            is_success.store(result.is_ok(), Ordering::SeqCst);
            Ended::Done(result)
        });
    }
    let adding = async {
        loop {
            let moved: u64 = counters.iter().map(Counter::get).sum();
            total.add(moved.saturating_sub(total.get()));
            runtime::sleep(ADD_UP_EVERY).await;
        }
    };
    future::or(bars::transfer(label, &total, runtime::side_by_side(limit, working)), adding).await
}
