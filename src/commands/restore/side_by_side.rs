//! Restores several datasets at a time, each after the one that contains it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_lite::future;

use crate::actions::RestoreStep;
use crate::cli::report;
use crate::director::bars;
use crate::fleet::Dispatcher;
use crate::fleet::restore as orders;
use crate::model::{Counter, DatasetName, Place, ResponseStatus, counted, hint};
use crate::policy::Policy;
use crate::sys::runtime;
use crate::sys::runtime::channel;
use crate::zfs::Zfs;

/// How many datasets are restored at a time. The hosts of the copies have limits of their own (`max_sends`).
const CONCURRENT_RESTORES: usize = 4;
/// How often the progress is added up.
const ADD_UP_EVERY: Duration = Duration::from_millis(200);

/// By which those that wait for a dataset learn how its restore has ended.
#[derive(Clone)]
struct Gate {
    /// Is closed at the end.
    ended: channel::Receiver<()>,
    is_restored: Arc<AtomicBool>,
}

/// Restores datasets. Each has its size in bytes, if that is known. `lines` gets a line for each of them. Returns what
/// went wrong.
pub(super) async fn restore<Z: Zfs>(
    policy: &Arc<Policy>,
    agents: &Arc<Dispatcher<Z>>,
    mut steps: Vec<(RestoreStep, Option<u64>)>,
    lines: channel::Sender<String>,
) -> Vec<String> {
    let all: BTreeSet<DatasetName> = steps.iter().map(|(step, _)| step.to.dataset.clone()).collect();
    // Those that wait for few others come first, and none before those that it waits for.
    steps.sort_by_key(|(step, _)| step.to.dataset.ancestors().filter(|above| all.contains(above)).count());
    let total = Counter::default();
    let (mut gates, mut restoring, mut counters) = (BTreeMap::<DatasetName, Gate>::new(), Vec::new(), Vec::new());
    for (step, size) in steps {
        let (open, ended) = channel::bounded::<()>(1);
        let is_restored = Arc::new(AtomicBool::new(false));
        let above = step.to.dataset.ancestors().find_map(|above| gates.get(&above).cloned().map(|gate| (above, gate)));
        gates.insert(step.to.dataset.clone(), Gate { ended, is_restored: Arc::clone(&is_restored) });
        let counter = Counter::default();
        total.expect(size.unwrap_or_default());
        counters.push(counter.clone());
        let (policy, agents, lines) = (Arc::clone(policy), Arc::clone(agents), lines.clone());
        restoring.push(async move {
            // It closes when this has ended, however that happens.
            let _open = open;
            if let Some((above, gate)) = above {
                // It fails, because nothing is sent.
                gate.ended.recv().await.ok();
                if !gate.is_restored.load(Ordering::SeqCst) {
                    return Err(format!("did not restore {}, because {above} was not restored", step.to));
                }
            }
            let response = orders::restore(&policy, &agents, &step, counter).await?;
            is_restored.store(true, Ordering::SeqCst);
            let line = match response.status {
                ResponseStatus::NothingToDo => format!("{} has been restored already", step.to),
                _ => restored(&step, response.bytes, &response.error),
            };
            drop(lines.send(line).await);
            Ok(step.key_from.map(|dataset| Place { host: step.to.host, dataset }))
        });
    }
    let label = format!("restoring {}", counted(restoring.len(), "dataset"));
    let adding = async {
        loop {
            let moved: u64 = counters.iter().map(Counter::get).sum();
            total.add(moved.saturating_sub(total.get()));
            runtime::sleep(ADD_UP_EVERY).await;
        }
    };
    let working = bars::transfer(&label, &total, runtime::side_by_side(CONCURRENT_RESTORES, restoring));
    let (mut problems, mut roots) = (Vec::new(), BTreeSet::new());
    for result in future::or(working, adding).await {
        match result {
            Ok(root) => roots.extend(root),
            Err(problem) => problems.push(problem),
        }
    }
    for Place { host, dataset } in roots {
        let (key, tree) = (hint::word(&dataset), hint::word(&Place { host, dataset: dataset.clone() }));
        let line = format!(
            "the restored datasets below {dataset} that used its key have keys of their own now; hint: load the keys \
             (zfs load-key -r {key}), then join them (zsync restore --join-keys {tree})"
        );
        drop(lines.send(line).await);
    }
    problems
}

/// What is said about a dataset that was restored. The remark may be empty.
fn restored(RestoreStep { to, from, snapshot, .. }: &RestoreStep, bytes: u64, remark: &str) -> String {
    let remark = if remark.is_empty() { String::new() } else { format!(" ({remark})") };
    format!("restored {to} from {from}@{}, {}{remark}", snapshot.name, report::bytes(bytes))
}
