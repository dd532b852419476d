//! Gives the orders that restore datasets, and asks how large they are.

use std::time::{Duration, Instant};

use crate::actions::RestoreStep;
use crate::fleet::dispatch::{Dispatcher, blank};
use crate::model::{Action, Counter, DatasetName, KeyJoin, Place, ResponseStatus, SourceRecord, hint};
use crate::policy::Policy;
use crate::sys::runtime;
use crate::wire::{DirectorsOrder, Response, RestoreFrom};
use crate::zfs::Zfs;

/// For how long to wait for another restore of the same dataset, and how long between two attempts.
const BUSY_FOR: Duration = Duration::from_secs(3600);
const BUSY_PAUSE: Duration = Duration::from_secs(2);

fn order(action: Action, policy: &Policy, step: &RestoreStep) -> DirectorsOrder {
    let RestoreStep { to, from, snapshot, .. } = step;
    let address = policy.hosts.get(&from.host).and_then(|host| host.address.clone());
    DirectorsOrder {
        snapshot_uuid: vec![snapshot.guid.uuid().to_string()],
        snapshot_name: snapshot.name.to_string(),
        destination: to.host.to_string(),
        dest_dataset: to.dataset.to_string(),
        restore: Some(RestoreFrom {
            host: from.host.clone(),
            dataset: from.dataset.clone(),
            address,
            set_aside: step.set_aside.clone(),
            properties: step.properties.clone(),
            key_from: step.key_from.clone(),
        }),
        retry_for: Some(policy.retry_for.as_secs()),
        ..blank(action)
    }
}

/// What the host of a copy says about sending it back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// How many bytes it would send; `None` if ZFS cannot say.
    pub size: Option<u64>,
    /// What the copy has recorded of its source.
    pub recorded: Option<SourceRecord>,
}

/// Asks the host of the copy what it would send. An error is the reason why it would send nothing.
pub async fn ask<Z: Zfs>(policy: &Policy, dispatcher: &Dispatcher<Z>, step: &RestoreStep) -> Result<Offer, String> {
    let estimate =
        DirectorsOrder { dataset: Some(step.from.dataset.clone()), ..order(Action::EstimateSend, policy, step) };
    let (response, _) = dispatcher.ask(policy, &step.from.host, &estimate, Counter::default()).await;
    if !response.is_success {
        return Err(failure(step, &response));
    }
    Ok(Offer { size: response.estimate, recorded: response.recorded.map(|recorded| recorded.fitting()) })
}

/// Has the target's host restore one dataset. Returns the host's answer, or what went wrong. If another restore of the
/// dataset is still running, as after the command for it was killed, this waits until that one has ended.
pub async fn restore<Z: Zfs>(
    policy: &Policy,
    dispatcher: &Dispatcher<Z>,
    step: &RestoreStep,
    counter: Counter,
) -> Result<Response, String> {
    let since = Instant::now();
    loop {
        let order = order(Action::RestoreDataset, policy, step);
        let (response, _) = dispatcher.ask(policy, &step.to.host, &order, counter.clone()).await;
        if response.is_success {
            return Ok(response);
        }
        if response.status != ResponseStatus::Busy || since.elapsed() > BUSY_FOR {
            return Err(failure(step, &response));
        }
        log::info!("waiting for {}: {}", step.to, response.error);
        runtime::sleep(BUSY_PAUSE).await;
    }
}

/// Asks a host which restored datasets within one can use the keys again that the lost ones used, and has it join the
/// keys of `these`, if any are named.
pub async fn join_keys<Z: Zfs>(
    policy: &Policy,
    dispatcher: &Dispatcher<Z>,
    tree: &Place,
    these: Option<Vec<DatasetName>>,
) -> Result<Vec<KeyJoin>, String> {
    let read_only = these.is_none();
    let (dest_dataset, datasets) = (tree.dataset.to_string(), these.unwrap_or_default());
    let order = DirectorsOrder { dest_dataset, datasets, read_only, ..blank(Action::JoinKeys) };
    let (response, _) = dispatcher.ask(policy, &tree.host, &order, Counter::default()).await;
    if response.is_success {
        return Ok(response.joins);
    }
    let error = format!("cannot join the keys of {tree}: {}", response.error);
    Err(hint::join(error, response.hint.as_deref()))
}

fn failure(step: &RestoreStep, response: &Response) -> String {
    let RestoreStep { to, from, snapshot, .. } = step;
    let error = format!("cannot restore {to} from {}: {}", format_args!("{from}@{}", snapshot.name), response.error);
    hint::join(error, response.hint.as_deref())
}
