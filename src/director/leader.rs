//! One director at a time: the lock in Consul, and the fence that comes with it.
//!
//! The lock belongs to a session that is renewed all the time. A director counts itself in office only until the TTL
//! after its last renewal was sent, by its own clock: Consul never ends the session before that, and gives the lock to
//! somebody else only after a delay on top. So there is no moment at which two of them give orders, as long as their
//! clocks run equally fast; and if one's does not, its fence is older.

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

/// How long a session lives without being renewed; Consul may wait up to twice that. The least that it allows are 10 s,
/// which a Consul on a machine with much else to do has been seen to need for an answer.
const TTL: Duration = Duration::from_secs(15);
/// How often it is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// How long a lock stays locked after its session died.
const LOCK_DELAY: Duration = Duration::from_secs(5);
/// How long one look at the lock waits for a change.
const WATCH: Duration = Duration::from_secs(50);
/// How long Consul's answer to the last words is waited for.
const RESIGN_WITHIN: Duration = Duration::from_secs(3);

/// Who has the lock, as its pair says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The director's host.
    pub host: HostName,
    /// Its process there.
    pub pid: u32,
    /// Since when.
    pub since: DateTime<Utc>,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, pid, since } = self;
        write!(f, "{host} directs (process {pid}, since {})", since.format("%Y-%m-%dT%H:%M:%SZ"))
    }
}

/// The lock of one fleet.
#[derive(Clone, Debug)]
pub struct Election {
    consul: Consul,
    root: String,
    host: HostName,
}

/// What became of seeking the lock.
pub enum ElectionResult {
    /// It is ours.
    Won(Leadership),
    /// Somebody else has it, or had it until a moment ago.
    Lost {
        /// Who; `None`: nobody, and it is free in a moment.
        holder: Option<String>,
        /// What to wait from.
        index: u64,
    },
}

impl Election {
    /// The office of directors below `root`, which `host` would hold.
    #[must_use]
    pub fn new(consul: Consul, root: &str, host: HostName) -> Self {
        Self { consul, root: root.to_owned(), host }
    }

    fn key(&self) -> String {
        format!("{}/lock/director", self.root)
    }

    /// Takes the lock if it is free.
    pub async fn try_win(&self) -> Result<ElectionResult, ConsulError> {
        let (pair, index) = self.consul.get(&self.key()).await?;
        if let Some(holder) = pair.as_ref().and_then(held) {
            return Ok(ElectionResult::Lost { holder: Some(holder), index });
        }
        let asked = Instant::now();
        let name = format!("zsync director on {}", self.host);
        let session = self.consul.create_session(&name, TTL, LOCK_DELAY).await?;
        match self.take(&session, asked).await {
            Ok(Some(leadership)) => Ok(ElectionResult::Won(leadership)),
            other => {
                // One that holds nothing is of no use.
                drop(self.consul.destroy_session(&session).await);
                other?;
                let (pair, index) = self.consul.get(&self.key()).await?;
                Ok(ElectionResult::Lost { holder: pair.as_ref().and_then(held), index })
            }
        }
    }

    async fn take(&self, session: &str, asked: Instant) -> Result<Option<Leadership>, ConsulError> {
        let holder = Holder { host: self.host.clone(), pid: std::process::id(), since: clock::now() };
        let value = serde_json::to_vec(&holder).unwrap_or_default();
        if !self.consul.acquire(&self.key(), value, session).await? {
            return Ok(None);
        }
        let pair = self.consul.get(&self.key()).await?.0;
        let Some(pair) = pair.filter(|pair| pair.session.as_deref() == Some(session)) else { return Ok(None) };
        let fence = Fence { catalog: self.catalog_id().await?, index: pair.modify_index };
        let state = LeaseState { until: asked + TTL, lost: None };
        let leadership = Leadership {
            election: self.clone(),
            session: session.to_owned(),
            fence,
            state: Arc::new(Mutex::new(state)),
            wake: runtime::channel::bounded(1),
        };
        let keeping = leadership.clone();
        drop(runtime::spawn(async move { keeping.keep(pair).await }));
        Ok(Some(leadership))
    }

    /// What tells this catalog from one that is made when Consul has lost everything.
    async fn catalog_id(&self) -> Result<Uuid, ConsulError> {
        let key = format!("{}/catalog", self.root);
        loop {
            let found = self.consul.get(&key).await?.0;
            let known = found.as_ref().and_then(|pair| Uuid::parse_str(std::str::from_utf8(&pair.value).ok()?).ok());
            if let Some(known) = known {
                return Ok(known);
            }
            let made = Uuid::now_v7();
            let index = found.map_or(0, |pair| pair.modify_index);
            let op = Op::Cas { key: key.clone(), value: made.to_string().into_bytes(), index };
            if let Committed::At(_) = self.consul.commit(&[op]).await? {
                return Ok(made);
            }
        }
    }

    /// Waits until the lock is no longer as it was at `index`.
    pub async fn changed(&self, holder: Option<&String>, index: u64) -> Result<(), ConsulError> {
        if holder.is_none() {
            // The delay after a session's end is no change that can be waited for.
            runtime::sleep(Duration::from_secs(1)).await;
            return Ok(());
        }
        self.consul.watch(&self.key(), index, WATCH).await.map(drop)
    }
}

/// Who has a lock, in words.
fn held(pair: &Pair) -> Option<String> {
    pair.session.as_ref()?;
    let holder = serde_json::from_slice::<Holder>(&pair.value).map(|holder| holder.to_string());
    Some(holder.unwrap_or_else(|_| format!("somebody who does not say who has {} locked", pair.key)))
}

/// The office, held. Clones are the same one.
#[derive(Clone)]
pub struct Leadership {
    election: Election,
    session: String,
    fence: Fence,
    state: Arc<Mutex<LeaseState>>,
    /// Closed when it is lost or given up.
    wake: (runtime::channel::Sender<()>, runtime::channel::Receiver<()>),
}

struct LeaseState {
    /// Until when nobody else can have it.
    until: Instant,
    lost: Option<String>,
}

impl Leadership {
    fn state(&self) -> MutexGuard<'_, LeaseState> {
        self.state.lock()
    }

    /// The Consul that it is in.
    pub fn consul(&self) -> &Consul {
        &self.election.consul
    }

    /// The fence for an order that is given now; an error if there is to be no order.
    pub fn fence(&self) -> Result<Fence, CatalogError> {
        let state = self.state();
        match &state.lost {
            Some(reason) => Err(CatalogError::LockLost(reason.clone())),
            None if Instant::now() >= state.until => Err(CatalogError::LockLost(silence())),
            None => Ok(self.fence),
        }
    }

    /// Waits until it is lost, and says how.
    pub async fn lost(&self) -> String {
        // Nothing is ever sent: it is closed.
        let _ = self.wake.1.recv().await;
        self.state().lost.clone().unwrap_or_default()
    }

    fn lose(&self, reason: String) {
        self.state().lost.get_or_insert(reason);
        self.wake.0.close();
    }

    async fn keep(&self, pair: Pair) {
        let reason = future::or(self.renew(), self.watch(pair.modify_index)).await;
        self.lose(reason);
    }

    async fn renew(&self) -> String {
        loop {
            let until = self.state().until;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return silence();
            }
            runtime::sleep(RENEW_EVERY.min(left)).await;
            if self.state().lost.is_some() {
                return String::new();
            }
            let asked = Instant::now();
            match self.election.consul.renew_session(&self.session, RENEW_EVERY).await {
                Ok(true) => self.state().until = asked + TTL,
                Ok(false) => return "Consul has ended its session".to_owned(),
                Err(error) => {
                    log::debug!("renewing the session of the director's lock: {error}");
                    runtime::sleep(Duration::from_millis(300)).await;
                }
            }
        }
    }

    /// Somebody may break the lock by hand, or delete its pair: that is heard at once.
    async fn watch(&self, mut index: u64) -> String {
        loop {
            match self.election.consul.watch(&self.election.key(), index, WATCH).await {
                Ok((Some(pair), next)) if pair.session.as_deref() == Some(&self.session) => {
                    // An index that goes back is one of a Consul that was restored.
                    index = if next < index { 0 } else { next };
                }
                Ok((Some(pair), _)) => {
                    return held(&pair).unwrap_or_else(|| "somebody has broken it".to_owned());
                }
                Ok((None, _)) => return "its pair is not there any more".to_owned(),
                Err(error) => {
                    log::debug!("watching the director's lock: {error}");
                    runtime::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// Gives it up, so that the next one need not wait. One that was lost is no longer there to be given up, mostly.
    pub async fn resign(self) {
        let level = if self.state().lost.is_some() { log::Level::Debug } else { log::Level::Warn };
        self.lose("it was given up".to_owned());
        let consul = &self.election.consul;
        let resigning = async {
            // Released first: after the end of a session there is a delay.
            consul.release(&self.election.key(), Vec::new(), &self.session).await?;
            consul.destroy_session(&self.session).await
        };
        match runtime::timeout(RESIGN_WITHIN, resigning).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::log!(level, "the director's lock stays locked for {TTL:?} or more: {error}"),
            Err(runtime::Elapsed) => log::log!(level, "the director's lock stays locked for {TTL:?} or more"),
        }
    }
}

fn silence() -> String {
    format!("its session could not be renewed for {TTL:?}")
}
