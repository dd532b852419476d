//! Coordinates several directors of one fleet: the director that holds the lock gives orders, and the others stand by.

use std::sync::Arc;
use std::time::Duration;

use futures_lite::future;

use crate::catalog::{CatalogError, CatalogWrite};
use crate::consul::ConsulError;
use crate::director::connect::locate;
use crate::director::failure_log::{FailureLog, Failures};
use crate::director::leader::{Election, ElectionResult, Leadership};
use crate::director::pass::Pass;
use crate::fleet::{Dispatcher, FleetState};
use crate::policy::Policy;
use crate::sys::{clock, runtime, service};
use crate::zfs::Zfs;

/// How many times a single pass tries, a second apart, to get a lock whose holder has just died.
const LOCK_ATTEMPTS: usize = 10;
/// How long to wait before Consul is asked again after an error.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Does a director's work while it holds the lock. If the lock is lost, the work is dropped, and the result is an
/// error.
pub(crate) async fn while_leading<T>(
    leadership: Option<&Leadership>,
    work: impl Future<Output = Result<T, CatalogError>>,
) -> Result<T, CatalogError> {
    let Some(leadership) = leadership else { return work.await };
    let losing = async { Err(CatalogError::LockLost(leadership.lost().await)) };
    future::or(losing, work).await
}

/// Creates a pass for now. If several directors share a catalog, the pass uses the addresses and the health that
/// services have registered.
pub(crate) async fn new_pass<Z: Zfs>(
    policy: Arc<Policy>,
    dispatcher: Arc<Dispatcher<Z>>,
    state: FleetState<dyn CatalogWrite>,
    leadership: Option<&Leadership>,
) -> Result<Pass<Z, dyn CatalogWrite>, CatalogError> {
    let Some(leadership) = leadership else { return Ok(Pass::new(policy, dispatcher, state, clock::now())) };
    let (policy, services) = locate(leadership.consul(), policy, &dispatcher).await?;
    Ok(Pass::new(policy, dispatcher, state, clock::now()).led(leadership.clone(), services))
}

/// The result of a single pass' attempt to get the lock.
pub(crate) enum Lock {
    /// This director holds it.
    Held(Leadership),
    /// Another director holds it; the text names that director.
    Taken(String),
}

/// Gets the lock, or returns who holds it. Waits for a lock whose holder has just died.
pub(crate) async fn acquire(election: &Election) -> Result<Lock, ConsulError> {
    for _ in 0..LOCK_ATTEMPTS {
        match election.try_win().await? {
            ElectionResult::Won(leadership) => return Ok(Lock::Held(leadership)),
            ElectionResult::Lost { holder: Some(holder), .. } => return Ok(Lock::Taken(holder)),
            ElectionResult::Lost { holder: None, index } => election.changed(None, index).await?,
        }
    }
    Ok(Lock::Taken("another director has died, and Consul has not released its lock yet".to_owned()))
}

/// Waits until this director holds the lock.
pub(crate) async fn stand_by(election: &Election, failures: &mut FailureLog) -> Leadership {
    let mut reported = None;
    loop {
        let result = match election.try_win().await {
            Ok(ElectionResult::Won(leadership)) => {
                log::info!("this director is active now");
                return leadership;
            }
            Ok(ElectionResult::Lost { holder, index }) => {
                failures.update_catalog(None, Failures::default());
                failures.clear();
                if let Some(holder) = holder.as_ref().filter(|holder| reported.as_ref() != Some(*holder)) {
                    let text = format!("standing by: {holder}");
                    log::info!("{text}");
                    service::status(&text);
                    reported = Some(holder.clone());
                }
                election.changed(holder.as_ref(), index).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            let text = format!("no orders are given: {}", error.gist());
            service::status(&text);
            failures.update_catalog(Some(text), Failures::default());
            runtime::sleep(RETRY_AFTER).await;
        }
    }
}
