//! Gives the orders of `zsync copy` to an agent in this process.

use std::time::Duration;

use crate::actions::CopyStep;
use crate::agent::{Agent, CheckedOrder};
use crate::fleet::dispatch::{answered, blank};
use crate::model::{Action, Counter, DatasetName, ResponseStatus, SnapName, hint};
use crate::wire::{CommonBase, DirectorsOrder, Response};
use crate::zfs::Zfs;

fn order(action: Action, step: &CopyStep, retry_for: Duration) -> DirectorsOrder {
    DirectorsOrder {
        snapshot_uuid: vec![step.guid.uuid().to_string()],
        snapshot_name: step.snapshot.to_string(),
        destination: step.to.host.to_string(),
        dest_dataset: step.to.dataset.to_string(),
        dataset: Some(step.from.dataset.clone()),
        origin_dataset: step.origin.clone(),
        retry_for: Some(retry_for.as_secs()),
        ..blank(action)
    }
}

async fn give<Z: Zfs>(agent: &Agent<Z>, order: DirectorsOrder, counter: Counter) -> Response {
    let carry_out = |facts| async {
        match CheckedOrder::try_from(order.clone()) {
            Ok(order) => agent.carry_out(order, facts, counter).await,
            Err(error) => error.response(order.order_uuid),
        }
    };
    answered(&order, carry_out).await.0
}

/// How many bytes a step would send; `None` if ZFS cannot say. An error is the reason why nothing would be sent.
pub async fn size<Z: Zfs>(agent: &Agent<Z>, step: &CopyStep) -> Result<Option<u64>, String> {
    let common = step.common.map(|guid| CommonBase {
        host: step.to.host.clone(),
        dataset: step.to.dataset.clone(),
        guid,
        awaits: false,
    });
    let estimate = DirectorsOrder {
        keep_common_with: common.into_iter().collect(),
        resume_token: step.resume_token.clone(),
        ..order(Action::EstimateSend, step, Duration::ZERO)
    };
    let response = give(agent, estimate, Counter::default()).await;
    if response.is_success { Ok(response.estimate) } else { Err(failure(step, &response)) }
}

/// How a copy succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Whether it was full or incremental, or nothing had to be sent.
    pub status: ResponseStatus,
    /// How many bytes were sent.
    pub bytes: u64,
    /// What has to be known about it; may be empty.
    pub remark: String,
}

/// Copies one dataset. Temporary failures are retried for `retry_for`, counted from when data last moved.
pub async fn copy<Z: Zfs>(
    agent: &Agent<Z>,
    step: &CopyStep,
    retry_for: Duration,
    counter: Counter,
) -> Result<Copied, String> {
    let response = give(agent, order(Action::SendSnapshot, step, retry_for), counter).await;
    if !response.is_success {
        return Err(failure(step, &response));
    }
    Ok(Copied { status: response.status, bytes: response.bytes, remark: response.error })
}

/// Takes one snapshot of several datasets at once.
pub async fn take<Z: Zfs>(agent: &Agent<Z>, datasets: &[DatasetName], name: &SnapName) -> Result<(), String> {
    let (first, others) = datasets.split_first().ok_or_else(|| "there is nothing to take a snapshot of".to_owned())?;
    let order = DirectorsOrder {
        snapshot_name: name.to_string(),
        dest_dataset: first.to_string(),
        datasets: others.to_vec(),
        ..blank(Action::TakeSnapshot)
    };
    let response = give(agent, order, Counter::default()).await;
    if response.is_success && response.status != ResponseStatus::NothingToDo {
        return Ok(());
    }
    Err(hint::join(format!("cannot take the snapshot {name}: {}", response.error), response.hint.as_deref()))
}

fn failure(step: &CopyStep, response: &Response) -> String {
    let error = format!("cannot copy {} to {}: {}", step.from, step.to, response.error);
    hint::join(error, response.hint.as_deref())
}
