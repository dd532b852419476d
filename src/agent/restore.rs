//! Carries out restore_dataset: brings a copy back to this host. And answers other hosts that ask for a copy.
//!
//! The host that restores opens the connection, because only its agent need be running, and because the host of the
//! copy then knows from the certificate who gets the data. On that connection, the two sides then play the roles that
//! they have in every transfer: the host of the copy sends as an agent does, and the host that restores receives as a
//! slave does, but only this dataset, and only if it does not exist.

use std::collections::BTreeMap;

use crate::agent::context::{OrderContext, Success};
use crate::agent::request::{RestoreRequest, SendRequest};
use crate::agent::service::Agent;
use crate::agent::transfer::state::RetryState;
use crate::host::error::OrderError;
use crate::host::locks::Claim;
use crate::model::{Counter, DatasetKind, DatasetName, HostName, OrderId, PeerRole, Place, ResponseStatus, hint};
use crate::policy::AGENT_PORT;
use crate::server::acceptor;
use crate::slave::Slave;
use crate::slave::receive::{Purpose, Receiver, occupied};
use crate::sys::runtime;
use crate::transport::tcp::Dial;
use crate::wire::codec::{Conn, WireError};
use crate::wire::{AskBack, OrderToSlave, PROTOCOL, Response, SendBack};
use crate::zfs::{Depth, Zfs};

impl<Z: Zfs> Agent<Z> {
    /// Makes one attempt to bring a copy back. What an earlier attempt has left is continued.
    pub(crate) async fn restore(
        &self,
        id: OrderId,
        request: &RestoreRequest,
        retry: &mut RetryState,
        context: &OrderContext,
    ) -> Result<Success, OrderError> {
        let RestoreRequest { from, to, snapshot, set_aside, .. } = request;
        self.local.permission_to_restore(to)?;
        if self.is_restored(request).await? {
            return Ok(Success::new(ResponseStatus::NothingToDo, ""));
        }
        // Nothing is sent from a dataset while it is renamed.
        let _renaming = match set_aside {
            Some(_) => Some(self.locks.claim(to).ok_or_else(|| OrderError::busy(format!("{to} is being sent")))?),
            None => None,
        };
        let receiver = self.receiver_for(request);
        receiver.check_set_aside(to, &from.host).await?;
        let done = if from.host == self.host {
            let here = Place { host: self.host.clone(), dataset: to.clone() };
            let back = SendRequest::back(from.dataset.clone(), *snapshot, here, set_aside.clone());
            self.send(id, &back, retry, context).await
        } else {
            self.fetch(id, request, receiver, context).await
        };
        self.cache.invalidate(to);
        let aside = self.has_been_set_aside(request).await;
        let done = match (done, &aside) {
            (Ok(done), _) => done,
            // If the same order was given twice, the other one may have restored it meanwhile.
            (Err(_), None) if self.is_restored(request).await.unwrap_or_default() => {
                return Ok(Success::new(ResponseStatus::NothingToDo, ""));
            }
            (Err(error), None) => return Err(error),
            (Err(error), Some(aside)) => {
                let hint = format!("what was there is now {aside}; to continue, give the command without --set-aside");
                return Err(error.with_hint(hint));
            }
        };
        let listed = self.zfs.list(std::slice::from_ref(to), Depth::Only).await?;
        let found = listed.into_iter().find(|(name, _)| name == to).map(|(_, found)| found).unwrap_or_default();
        if found.newest().is_none_or(|newest| newest.guid.uuid() != *snapshot) {
            let reason =
                format!("cannot restore {to} to {}: an earlier restore has brought newer snapshots", request.name);
            return Err(OrderError::refused(reason).with_hint("restore it under another name (--as)"));
        }
        let not_set =
            self.receiver_for(request).complete_restore(to, &request.properties, request.key_from.as_ref()).await?;
        let mut remarks = vec![done.remark];
        remarks.extend(not_set);
        remarks.extend(aside.map(|aside| format!("what was there is now {aside}")));
        if found.kind == DatasetKind::Filesystem {
            remarks.extend(self.mount_restored(to, found.encrypted, &request.properties).await);
        }
        remarks.retain(|remark| !remark.is_empty());
        Ok(Success::new(done.status, remarks.join("; ")))
    }

    /// Whether an earlier order has restored the dataset, and nobody has changed it since.
    async fn is_restored(&self, request: &RestoreRequest) -> Result<bool, OrderError> {
        let RestoreRequest { to, snapshot, set_aside, .. } = request;
        let Some(found) = self.receiver.list(to).await? else { return Ok(false) };
        let is_in_the_way = set_aside.as_ref().is_some_and(|aside| found.guid == Some(aside.guid));
        let is_complete = found.newest().is_some_and(|newest| newest.guid.uuid() == *snapshot);
        Ok(!is_in_the_way && is_complete && !self.receiver.is_unfinished(to).await?)
    }

    /// Mounts what was restored if its properties say so. Returns what somebody has to do to use it.
    async fn mount_restored(
        &self,
        dataset: &DatasetName,
        is_encrypted: bool,
        properties: &BTreeMap<String, String>,
    ) -> Option<String> {
        let word = hint::word(dataset);
        match properties.get("canmount").map(String::as_str) {
            Some("off") => return None,
            // It may be mounted in the place of something that is in use, such as the root filesystem.
            Some("noauto") => return Some(format!("it is not mounted, as canmount is noauto (zfs mount {word})")),
            _ => {}
        }
        let error = self.zfs.mount(dataset).await.err()?;
        Some(match is_encrypted {
            true => format!("to use it, load its key (zfs load-key {word}) and mount it (zfs mount {word})"),
            false => format!("it is not mounted: {error}"),
        })
    }

    fn receiver_for(&self, request: &RestoreRequest) -> Receiver<Z> {
        let RestoreRequest { snapshot, set_aside, .. } = request;
        self.receiver.for_purpose(Purpose::Restore { snapshot: *snapshot, set_aside: set_aside.clone() })
    }

    /// The new name of what was in the way, if it has been renamed.
    async fn has_been_set_aside(&self, request: &RestoreRequest) -> Option<DatasetName> {
        let aside = request.set_aside.as_ref()?;
        let found = self.receiver.list(&aside.dataset).await.ok()??;
        (found.guid == Some(aside.guid)).then(|| aside.dataset.clone())
    }

    /// Asks the agent of the copy's host to send the copy back, and receives it.
    async fn fetch(
        &self,
        id: OrderId,
        request: &RestoreRequest,
        receiver: Receiver<Z>,
        context: &OrderContext,
    ) -> Result<Success, OrderError> {
        let RestoreRequest { from, to, snapshot, name, address, set_aside: _, properties: _, key_from: _ } = request;
        let Some(claim) = receiver.locks.claim(to) else { return Err(OrderError::busy(occupied(to))) };
        // So that nothing is sent in vain.
        let (found, surroundings) = receiver.list_around(to).await?;
        receiver.check_restorable(to, found.as_ref(), &surroundings).await?;
        let default_address = || format!("{}:{AGENT_PORT}", from.host);
        let address = address.clone().unwrap_or_else(default_address);
        let dial = Dial { host: &from.host, role: PeerRole::Agent, address: &address, tls: self.tls.as_deref() };
        let mut conn = dial.connect().await.map(Conn::from).map_err(|error| {
            OrderError::from(error).with_hint(format!("check that zsync agent is running on {}", from.host))
        })?;
        conn.set_stall_timeout(self.local.stall_timeout);
        let send_back = SendBack {
            order_uuid: id,
            host: self.host.clone(),
            dataset: from.dataset.clone(),
            snapshot_uuid: *snapshot,
            dest_dataset: to.clone(),
            protocol: PROTOCOL,
        };
        conn.send(&AskBack { send_back }).await?;
        let order = OrderToSlave {
            source: from.host.clone(),
            order_uuid: id,
            snapshot_uuid: snapshot.to_string(),
            snapshot_name: name.clone(),
            dest_dataset: to.clone(),
            protocol: PROTOCOL,
            source_dataset: Some(from.dataset.clone()),
            rollback_if_needed: false,
            rollback_may_destroy: false,
            on_divergence: Default::default(),
            clone_of: None,
            renamed_from: None,
            oldest_unsent: None,
            start_by: None,
        };
        let response = take_back(receiver, &mut conn, &order, claim, context.counter.clone()).await?;
        conn.close().await;
        match response.is_success {
            true => Ok(Success::new(response.status, response.error)),
            false => Err(OrderError::reported(Some(from.host.as_str()), response)),
        }
    }

    /// Answers a host that asks for a copy.
    pub(crate) async fn send_back(&self, conn: &mut Conn, asked: SendBack) -> Result<(), WireError> {
        let SendBack { order_uuid: id, host, dataset, snapshot_uuid, dest_dataset, protocol } = asked;
        let to = Place { host, dataset: dest_dataset };
        log::info!("{id}: {} asks to restore {to} from {dataset}", conn.peer);
        conn.set_stall_timeout(self.local.stall_timeout);
        let _in_progress = self.counters.begin();
        let counter = Counter::default();
        let result = async {
            if protocol > PROTOCOL {
                let reason = format!("protocol {protocol} is newer than this agent's, {PROTOCOL}");
                return Err(OrderError::refused(reason));
            }
            self.local.permission_to_ask_back(conn.identity.as_ref(), &to.host)?;
            // What the transfer finds out about the other host is of no use here.
            let (facts, _) = runtime::channel::bounded(1);
            let context = OrderContext::new(self.host.clone(), facts, counter.clone());
            let request = SendRequest::back(dataset.clone(), snapshot_uuid, to.clone(), None);
            self.send_on(id, &request, &context, conn).await
        };
        let result = result.await;
        self.counters.ended("send_back", result.is_ok(), counter.get());
        let response = match result {
            Ok(done) => Response::success(id, done.status, done.remark),
            Err(error) => {
                log::warn!("{id}: cannot send {dataset} back to {to}: {}", error.message());
                error.response(id)
            }
        };
        conn.send(&response).await
    }

    /// Whether a dataset is a copy of a dataset of that host.
    pub(crate) async fn has_come_from(&self, dataset: &DatasetName, host: &HostName) -> Result<bool, OrderError> {
        self.local.permission_to_list(dataset)?;
        let listed = self.zfs.list(std::slice::from_ref(dataset), Depth::Only).await?;
        match listed.into_iter().find(|(name, _)| name == dataset) {
            Some((_, found)) => self.is_copy_of(dataset, &found, host).await,
            None => Ok(false),
        }
    }
}

/// Receives what the other side sends back. Returns its answer to the request.
async fn take_back<Z: Zfs>(
    receiver: Receiver<Z>,
    conn: &mut Conn,
    order: &OrderToSlave,
    claim: Claim,
    counter: Counter,
) -> Result<Response, OrderError> {
    match Slave::take_back(receiver, conn, order, claim, counter).await {
        Ok(()) => {}
        // The other side has refused, or has failed before its first step.
        Err(WireError::Aborted { reason, temporary, peer }) => {
            let mut error = OrderError::new(ResponseStatus::Refused, format!("{peer}: {reason}"));
            error.temporary = temporary;
            return Err(error);
        }
        Err(error) => return Err(error.into()),
    }
    let response: Response = conn.recv(acceptor::BETWEEN_STEPS).await?;
    conn.check_answers(&response, order.order_uuid)?;
    Ok(response)
}
