//! Leader election: the lock in Consul that only one director holds at a time, and the fence that belongs to it.
//!
//! The lock belongs to a Consul session, which is renewed continuously. A director considers itself the leader only
//! until the session's TTL has passed since it sent its last successful renewal, by its own clock. Consul never ends
//! the session before that, and waits for a lock delay before it gives the lock to another director. Two directors
//! therefore never give orders at the same time, as long as their clocks run equally fast. If a clock does not, the
//! older fence shows agents which of two directors to refuse.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_lite::future;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::catalog::CatalogError;
use crate::consul::{Committed, Consul, ConsulError, Op, Pair};
use crate::model::HostName;
use crate::sys::{clock, runtime};
use crate::wire::Fence;

/// How long a session lives without being renewed; Consul may wait up to twice as long. Consul's minimum is 10 s, but
/// on a busy machine it has been seen to need that long for one answer.
const TTL: Duration = Duration::from_secs(15);
/// How often a session is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// How long a lock stays locked after its session has ended.
const LOCK_DELAY: Duration = Duration::from_secs(5);
/// How long one query waits for a change of the lock.
const WATCH_TIMEOUT: Duration = Duration::from_secs(50);
/// How long giving up the lock may take.
const RESIGN_TIMEOUT: Duration = Duration::from_secs(3);

/// The holder of the lock, as the value of its key in Consul.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockHolder {
    /// The director's host.
    pub host: HostName,
    /// The director's process.
    pub pid: u32,
    /// Since when it holds the lock.
    pub since: DateTime<Utc>,
}

impl std::fmt::Display for LockHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, pid, since } = self;
        write!(f, "{host} is the active director (process {pid}, since {})", since.format("%Y-%m-%dT%H:%M:%SZ"))
    }
}

/// Competes for the lock of one fleet.
#[derive(Clone, Debug)]
pub struct Election {
    consul: Consul,
    root: String,
    host: HostName,
}

/// The result of an attempt to get the lock.
pub enum ElectionResult {
    /// This director holds the lock.
    Won(Leadership),
    /// Another director holds it, or held it until a moment ago.
    Lost {
        /// The holder in words; `None` if nobody holds it any more, and it will soon be free.
        holder: Option<String>,
        /// Consul's index of this state of the lock, for [`Election::changed`].
        index: u64,
    },
}

impl Election {
    /// The election of the fleet whose keys are below `root`, in which `host` takes part.
    #[must_use]
    pub fn new(consul: Consul, root: &str, host: HostName) -> Self {
        Self { consul, root: root.to_owned(), host }
    }

    fn key(&self) -> String {
        format!("{}/lock/director", self.root)
    }

    /// Gets the lock if it is free.
    pub async fn try_win(&self) -> Result<ElectionResult, ConsulError> {
        let (pair, index) = self.consul.get(&self.key()).await?;
        if let Some(holder) = pair.as_ref().and_then(holder_of) {
            return Ok(ElectionResult::Lost { holder: Some(holder), index });
        }
        let requested = Instant::now();
        let name = format!("zsync director on {}", self.host);
        let session = self.consul.create_session(&name, TTL, LOCK_DELAY).await?;
        match self.acquire(&session, requested).await {
            Ok(Some(leadership)) => Ok(ElectionResult::Won(leadership)),
            not_acquired => {
                // A session without a lock is of no use.
                drop(self.consul.destroy_session(&session).await);
                not_acquired?;
                let (pair, index) = self.consul.get(&self.key()).await?;
                Ok(ElectionResult::Lost { holder: pair.as_ref().and_then(holder_of), index })
            }
        }
    }

    /// Gets the lock for a session that was requested at the moment `requested`; `None` if another session holds the
    /// lock.
    async fn acquire(&self, session: &str, requested: Instant) -> Result<Option<Leadership>, ConsulError> {
        let holder = LockHolder { host: self.host.clone(), pid: std::process::id(), since: clock::now() };
        let value = serde_json::to_vec(&holder).unwrap_or_default();
        if !self.consul.acquire(&self.key(), value, session).await? {
            return Ok(None);
        }
        let pair = self.consul.get(&self.key()).await?.0;
        let Some(pair) = pair.filter(|pair| pair.session.as_deref() == Some(session)) else { return Ok(None) };
        let director = Some(self.host.clone());
        let fence = Fence { catalog: self.catalog_id().await?, index: pair.modify_index, director };
        let state = LeaseState { until: requested + TTL, lost: None };
        let leadership = Leadership {
            election: self.clone(),
            session: session.to_owned(),
            fence,
            state: Arc::new(Mutex::new(state)),
            ended: runtime::channel::bounded(1),
        };
        let maintained = leadership.clone();
        drop(runtime::spawn(async move { maintained.maintain(pair).await }));
        Ok(Some(leadership))
    }

    /// The UUID of the catalog. A catalog that is created after Consul has lost its data gets a different one.
    async fn catalog_id(&self) -> Result<Uuid, ConsulError> {
        let key = format!("{}/catalog", self.root);
        loop {
            let found = self.consul.get(&key).await?.0;
            let known = found.as_ref().and_then(|pair| Uuid::parse_str(std::str::from_utf8(&pair.value).ok()?).ok());
            if let Some(known) = known {
                return Ok(known);
            }
            let created = Uuid::now_v7();
            let index = found.map_or(0, |pair| pair.modify_index);
            let op = Op::Cas { key: key.clone(), value: created.to_string().into_bytes(), index };
            if let Committed::At(_) = self.consul.commit(&[op]).await? {
                return Ok(created);
            }
        }
    }

    /// Waits until the lock is no longer in the state that [`ElectionResult::Lost`] described.
    pub async fn changed(&self, holder: Option<&String>, index: u64) -> Result<(), ConsulError> {
        if holder.is_none() {
            // Consul does not report the end of the lock delay that follows the end of a session.
            runtime::sleep(Duration::from_secs(1)).await;
            return Ok(());
        }
        self.consul.watch(&self.key(), index, WATCH_TIMEOUT).await.map(drop)
    }
}

/// The holder of a lock, in words; `None` if nobody holds it.
fn holder_of(pair: &Pair) -> Option<String> {
    pair.session.as_ref()?;
    let holder = serde_json::from_slice::<LockHolder>(&pair.value).map(|holder| holder.to_string());
    Some(holder.unwrap_or_else(|_| format!("an unknown process holds the lock {}", pair.key)))
}

/// The lock, held by this director. Clones share one state.
#[derive(Clone)]
pub struct Leadership {
    election: Election,
    session: String,
    fence: Fence,
    state: Arc<Mutex<LeaseState>>,
    /// A channel that is closed when the lock is lost or given up.
    ended: (runtime::channel::Sender<()>, runtime::channel::Receiver<()>),
}

struct LeaseState {
    /// Until when no other director can get the lock.
    until: Instant,
    /// Why the lock was lost, once it was.
    lost: Option<String>,
}

impl Leadership {
    fn state(&self) -> MutexGuard<'_, LeaseState> {
        self.state.lock()
    }

    /// The Consul in which the lock is.
    pub fn consul(&self) -> &Consul {
        &self.election.consul
    }

    /// The fence for an order that is given now; an error if the lock was lost, so that no order may be given.
    pub fn fence(&self) -> Result<Fence, CatalogError> {
        let state = self.state();
        match &state.lost {
            Some(reason) => Err(CatalogError::LockLost(reason.clone())),
            None if Instant::now() >= state.until => Err(CatalogError::LockLost(not_renewed())),
            None => Ok(self.fence.clone()),
        }
    }

    /// Waits until the lock is lost, and returns the reason.
    pub async fn lost(&self) -> String {
        // The channel is only ever closed.
        let _ = self.ended.1.recv().await;
        self.state().lost.clone().unwrap_or_default()
    }

    fn lose(&self, reason: String) {
        self.state().lost.get_or_insert(reason);
        self.ended.0.close();
    }

    /// Renews the session until the lock is lost or given up.
    async fn maintain(&self, pair: Pair) {
        let reason = future::or(self.renew(), self.watch(pair.modify_index)).await;
        self.lose(reason);
    }

    /// Renews the session at intervals. Returns why the lock was lost.
    async fn renew(&self) -> String {
        loop {
            let until = self.state().until;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return not_renewed();
            }
            runtime::sleep(RENEW_EVERY.min(left)).await;
            if self.state().lost.is_some() {
                return String::new();
            }
            let requested = Instant::now();
            match self.election.consul.renew_session(&self.session, RENEW_EVERY).await {
                Ok(true) => self.state().until = requested + TTL,
                Ok(false) => return "Consul ended its session".to_owned(),
                Err(error) => {
                    log::debug!("cannot renew the session of the director's lock: {error}");
                    runtime::sleep(Duration::from_millis(300)).await;
                }
            }
        }
    }

    /// Waits until somebody breaks the lock by hand or deletes its key. Returns why the lock was lost.
    async fn watch(&self, mut index: u64) -> String {
        loop {
            match self.election.consul.watch(&self.election.key(), index, WATCH_TIMEOUT).await {
                Ok((Some(pair), next)) if pair.session.as_deref() == Some(&self.session) => {
                    // The index decreases when Consul is restored from a snapshot.
                    index = if next < index { 0 } else { next };
                }
                Ok((Some(pair), _)) => {
                    return holder_of(&pair).unwrap_or_else(|| "it was released by hand".to_owned());
                }
                Ok((None, _)) => return "its key was deleted".to_owned(),
                Err(error) => {
                    log::debug!("cannot watch the director's lock: {error}");
                    runtime::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// Gives up the lock, so that the next director need not wait for the session to expire. If the lock was lost
    /// before, this usually fails, which is logged only for debugging.
    pub async fn resign(self) {
        let level = if self.state().lost.is_some() { log::Level::Debug } else { log::Level::Warn };
        self.lose("it was given up".to_owned());
        let consul = &self.election.consul;
        let resigning = async {
            // Releasing the lock first avoids the lock delay, which follows the end of a session.
            consul.release(&self.election.key(), Vec::new(), &self.session).await?;
            consul.destroy_session(&self.session).await
        };
        match runtime::timeout(RESIGN_TIMEOUT, resigning).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                log::log!(level, "cannot release the director's lock, which stays locked for {TTL:?} or more: {error}");
            }
            Err(runtime::Elapsed) => {
                log::log!(
                    level,
                    "cannot release the director's lock within {RESIGN_TIMEOUT:?}; it stays locked for {TTL:?} or more"
                );
            }
        }
    }
}

fn not_renewed() -> String {
    format!("its session could not be renewed for {TTL:?}")
}
