//! The other end of a send: a slave reached over TCP, or another pool of this host.

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::Failure;
use crate::commands::busy::Claim;
use crate::commands::receiving::{Incoming, Receiving, StepError};
use crate::commands::serve::BETWEEN_STEPS;
use crate::model::Counter;
use crate::model::{DatasetInventory, DatasetName, DatasetStatus, Guid, ResponseStatus};
use crate::policy::Target;
use crate::runtime;
use crate::transport::tcp::{Dial, TransportError};
use crate::wire::codec::{Conn, Sent, StreamEnd, WireError};
use crate::wire::{Alive, ListUuids, OrderToSlave, Response, Step};
use crate::zfs::{ReceiveSpec, SendSpec, Zfs};

/// A receiver of streams.
pub(super) enum Receiver<Z> {
    /// A slave.
    Remote(Box<Remote>),
    /// This host.
    Local(Box<Local<Z>>),
}

/// A conversation with a slave.
pub(super) struct Remote {
    conn: Conn,
    dataset: DatasetName,
}

/// This host as a receiver.
pub(super) struct Local<Z> {
    receiving: Receiving<Z>,
    dataset: DatasetName,
    from: Target,
    rollback: bool,
    claim: Claim,
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Self {
        let reason = format!("{:#}", anyhow::Error::from(error));
        Self { status: ResponseStatus::Unreachable, reason, temporary: true }
    }
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        let temporary = !matches!(error, WireError::Nonsense { .. } | WireError::BrokenOff { .. });
        let reason = format!("{:#}", anyhow::Error::from(error));
        Self { status: ResponseStatus::Unreachable, reason, temporary }
    }
}

impl From<StepError> for Failure {
    fn from(StepError { status, reason, temporary, no_space: _ }: StepError) -> Self {
        Self { status, reason, temporary }
    }
}

/// A dataset as the receiver has it; `None` where it does not exist.
pub(super) type Found = Option<DatasetInventory>;

impl<Z: Zfs> Receiver<Z> {
    /// Reaches a slave, and gives what it has.
    pub(super) async fn remote(
        to: &Target,
        dial: Dial<'_>,
        order: &OrderToSlave,
        patience: Duration,
    ) -> Result<(Self, Found), Failure> {
        let mut conn = dial.connect().await.map_err(|error| {
            let silent = !matches!(error, TransportError::Tls { .. });
            let mut failure = Failure::from(error);
            if silent {
                failure.reason = format!("{} (is zsync slave running on {}?)", failure.reason, to.host);
            }
            failure
        })?;
        conn.patience = patience;
        let mut remote = Remote { conn, dataset: to.dataset.clone() };
        remote.conn.say(order).await?;
        let found = remote.hear_listing().await?;
        Ok((Self::Remote(Box::new(remote)), found))
    }

    /// Receives on this host, and gives what it has.
    pub(super) async fn local(
        receiving: &Receiving<Z>,
        from: Target,
        dataset: &DatasetName,
        rollback: bool,
    ) -> Result<(Self, Found), Failure> {
        let claim = receiving.open(&from.host, None, dataset).map_err(|not_open| {
            let status = if not_open.status.is_some() { ResponseStatus::Refused } else { ResponseStatus::Busy };
            Failure { status, reason: not_open.reason, temporary: not_open.status.is_none() }
        })?;
        let found = receiving.look(dataset).await?;
        let local = Local { receiving: receiving.clone(), dataset: dataset.clone(), from, rollback, claim };
        Ok((Self::Local(Box::new(local)), found))
    }

    /// Has one stream received and verified. The inner error is the step's: the conversation goes on, with the
    /// dataset as it is now.
    pub(super) async fn receive(
        &mut self,
        zfs: &Arc<Z>,
        send: &SendSpec,
        incoming: &Incoming,
        status: ResponseStatus,
        counter: &Counter,
    ) -> Result<(Result<(), StepError>, Found), Failure> {
        match self {
            Self::Remote(remote) => remote.receive(zfs, send, incoming, status, counter).await,
            Self::Local(local) => {
                let spec: ReceiveSpec = local.receiving.prepare(&local.dataset, incoming).await?;
                let ended = zfs.copy(send, &spec, counter).await.map_err(StepError::from);
                match local.receiving.verify(&local.dataset, incoming, ended).await {
                    Ok(found) => Ok((Ok(()), found)),
                    Err(error) => Ok((Err(error), local.receiving.look(&local.dataset).await?)),
                }
            }
        }
    }

    /// Rolls back to the newest common snapshot.
    pub(super) async fn rollback(&mut self, guid: Guid) -> Result<(Result<(), StepError>, Found), Failure> {
        match self {
            Self::Remote(remote) => remote.step(&Step::Rollback { guid }).await,
            Self::Local(local) if local.rollback => {
                let result = local.receiving.rollback(&local.dataset, guid).await;
                Ok((result, local.receiving.look(&local.dataset).await?))
            }
            Self::Local(_) => Err(Failure::refused("the order does not allow a rollback")),
        }
    }

    /// Throws away what an interrupted receive left.
    pub(super) async fn abort(&mut self) -> Result<(Result<(), StepError>, Found), Failure> {
        match self {
            Self::Remote(remote) => remote.step(&Step::Abort).await,
            Self::Local(local) => {
                local.receiving.zfs.abort_receive(&local.dataset).await?;
                Ok((Ok(()), local.receiving.look(&local.dataset).await?))
            }
        }
    }

    /// Ends the conversation with nothing more to come. How the receiver takes it is its own affair.
    pub(super) async fn leave(self, status: ResponseStatus) {
        if let Self::Remote(mut remote) = self {
            if let Err(error) = remote.conn.say(&Step::Finish { status, guid: None }).await {
                log::debug!("{error}");
            }
            remote.conn.close().await;
        }
    }

    /// Ends the conversation: the receiver holds the newest common snapshot.
    pub(super) async fn finish(self, status: ResponseStatus, guid: Option<Guid>) -> Result<(), Failure> {
        match self {
            Self::Remote(mut remote) => {
                remote.conn.say(&Step::Finish { status, guid }).await?;
                let response: Response = remote.hear().await?;
                remote.conn.close().await;
                if response.is_success {
                    return Ok(());
                }
                Err(Failure { status: response.status, reason: response.error, temporary: response.temporary })
            }
            Self::Local(local) => {
                if let Some(guid) = guid {
                    local.receiving.settle(&local.dataset, &local.from, guid).await?;
                }
                drop(local.claim);
                Ok(())
            }
        }
    }
}

impl Remote {
    async fn hear_listing(&mut self) -> Result<Found, Failure> {
        let mut found: Found = None;
        loop {
            let line: ListUuids = self.hear().await?;
            if !line.error.is_empty() {
                let (status, temporary) = match line.status {
                    Some(DatasetStatus::Disable | DatasetStatus::Docker | DatasetStatus::NotConf) => {
                        (ResponseStatus::Refused, false)
                    }
                    Some(DatasetStatus::True) => (ResponseStatus::Busy, true),
                    _ => (ResponseStatus::Zerror, false),
                };
                let reason = format!("{} does not receive into {}: {}", self.conn.peer, self.dataset, line.error);
                return Err(Failure { status, reason, temporary });
            }
            match (&mut found, line.inventory) {
                (Some(found), Some(part)) => {
                    found.snapshots.extend(part.snapshots);
                    found.bookmarks.extend(part.bookmarks);
                }
                (found, Some(first)) => *found = Some(first),
                (_, None) => {}
            }
            if !line.more {
                return Ok(found);
            }
        }
    }

    /// Hears what the slave has to say, past its words that it is alive.
    async fn hear<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        loop {
            let line = self.conn.hear_line(self.conn.patience).await?;
            let line = line.ok_or_else(|| WireError::Closed { peer: self.conn.peer.clone() })?;
            if self.conn.understand::<Alive>(&line).is_err() {
                return Ok(self.conn.understand_or_break(&line)?);
            }
        }
    }

    async fn step_ended(&mut self) -> Result<(Result<(), StepError>, Found), Failure> {
        let response: Response = self.hear().await?;
        let result = if response.is_success {
            Ok(())
        } else {
            let reason = format!("{}: {}", self.conn.peer, response.error);
            Err(StepError { status: response.status, reason, temporary: response.temporary, no_space: false })
        };
        Ok((result, self.hear_listing().await?))
    }

    async fn step(&mut self, step: &Step) -> Result<(Result<(), StepError>, Found), Failure> {
        self.conn.say(step).await?;
        self.step_ended().await
    }

    async fn receive<Z: Zfs>(
        &mut self,
        zfs: &Arc<Z>,
        send: &SendSpec,
        incoming: &Incoming,
        status: ResponseStatus,
        counter: &Counter,
    ) -> Result<(Result<(), StepError>, Found), Failure> {
        let mut stream = zfs.send(send).await?;
        let Incoming { guid, name, create, overwrite } = incoming.clone();
        self.conn.say(&Step::Receive { status, guid, snapshot_name: name, create, overwrite }).await?;
        let sent = self.conn.send_stream(&mut *stream.data, counter).await?;
        // A process that is blocked on a full pipe ends when the pipe does.
        drop(stream.data);
        let ended = match runtime::timeout(BETWEEN_STEPS, stream.end).await {
            Ok(ended) => ended,
            Err(runtime::Elapsed) => {
                return Err(Failure {
                    status: ResponseStatus::Zerror,
                    reason: "zfs send does not end".into(),
                    temporary: true,
                });
            }
        };
        let (end, broke) = match (sent, ended) {
            (Sent::All, Ok(())) => (StreamEnd { is_success: true, error: String::new() }, None),
            (Sent::All, Err(error)) => (StreamEnd { is_success: false, error: error.to_string() }, Some(error)),
            (Sent::Refused, _) => (StreamEnd { is_success: false, error: "refused".into() }, None),
        };
        self.conn.end_stream(&end).await?;
        match (self.step_ended().await?, broke) {
            // What went wrong here is known here best.
            ((Err(_), found), Some(error)) => Ok((Err(error.into()), found)),
            (ended, _) => Ok(ended),
        }
    }
}
