//! Restores several datasets at a time, each after the one that contains it.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::actions::RestoreStep;
use crate::cli::report;
use crate::director::ordered::{self, Ended, Job};
use crate::fleet::Dispatcher;
use crate::fleet::restore as orders;
use crate::model::{Counter, DatasetName, Place, ResponseStatus, counted, hint};
use crate::policy::Policy;
use crate::sys::runtime::channel;
use crate::zfs::Zfs;

/// How many datasets are restored at a time. The hosts of the copies have limits of their own (`max_sends`).
const CONCURRENT_RESTORES: usize = 4;

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
    let places: Vec<Place> = steps.iter().map(|(step, _)| step.to.clone()).collect();
    let job = |(step, size): (RestoreStep, Option<u64>)| {
        let counter = Counter::default();
        let (policy, agents, lines, counted) = (Arc::clone(policy), Arc::clone(agents), lines.clone(), counter.clone());
        Job {
            dataset: step.to.dataset.clone(),
            waits_for: step.to.dataset.ancestors().collect(),
            size,
            counter,
            work: async move {
                let response = orders::restore(&policy, &agents, &step, counted).await?;
                let line = match response.status {
                    ResponseStatus::NothingToDo => format!("{} has been restored already", step.to),
                    _ => restored(&step, response.bytes, &response.error),
                };
                drop(lines.send(line).await);
                Ok(step.key_from.map(|dataset| Place { host: step.to.host, dataset }))
            },
        }
    };
    let label = format!("restoring {}", counted(steps.len(), "dataset"));
    let ended = ordered::run(&label, CONCURRENT_RESTORES, steps.into_iter().map(job).collect()).await;
    let (mut problems, mut roots) = (Vec::new(), BTreeSet::new());
    for (to, ended) in places.into_iter().zip(ended) {
        match ended {
            Ended::Done(Ok(root)) => roots.extend(root),
            Ended::Done(Err(problem)) => problems.push(problem),
            Ended::NotBegun(above) => {
                problems.push(format!("did not restore {to}, because {above} was not restored"));
            }
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
