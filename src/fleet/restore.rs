//! Gives the orders that restore datasets, and asks how large they are.

use crate::actions::RestoreStep;
use crate::fleet::dispatch::{Dispatcher, blank};
use crate::model::{Action, Counter, SourceRecord, hint};
use crate::policy::Policy;
use crate::wire::{DirectorsOrder, Response, RestoreFrom};
use crate::zfs::Zfs;

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
    Ok(Offer { size: response.estimate, recorded: response.recorded.map(SourceRecord::fitting) })
}

/// Has the target's host restore one dataset. Returns the host's answer, or what went wrong.
pub async fn restore<Z: Zfs>(
    policy: &Policy,
    dispatcher: &Dispatcher<Z>,
    step: &RestoreStep,
    counter: Counter,
) -> Result<Response, String> {
    let order = order(Action::RestoreDataset, policy, step);
    let (response, _) = dispatcher.ask(policy, &step.to.host, &order, counter).await;
    if response.is_success { Ok(response) } else { Err(failure(step, &response)) }
}

fn failure(step: &RestoreStep, response: &Response) -> String {
    let RestoreStep { to, from, snapshot, .. } = step;
    let error = format!("cannot restore {to} from {}: {}", format_args!("{from}@{}", snapshot.name), response.error);
    hint::join(error, response.hint.as_deref())
}
