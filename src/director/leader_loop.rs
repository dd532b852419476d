//! Several directors of one fleet take turns: one has the lock and directs, the others stand by.

use std::sync::Arc;
use std::time::Duration;

use futures_lite::future;

use crate::catalog::open;
use crate::catalog::{CatalogError, CatalogWrite, Holder};
use crate::cli::exit;
use crate::consul::{Consul, ConsulError};
use crate::director::{Election, Leadership, Pass, Said, Service, Sought, open_catalog};
use crate::fleet::health;
use crate::fleet::health::ServiceHealth;
use crate::fleet::{Dispatcher, FleetState};
use crate::policy::{CatalogConfig, Policy};
use crate::sys::{clock, runtime, service};
use crate::zfs::Zfs;

/// How often one pass alone looks for a lock that is free in a moment, a second apart.
const FREE_WITHIN: usize = 10;
/// After how long Consul is asked again when it cannot be.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

impl<Z: Zfs> Service<'_, Z> {
    /// Directs whenever this director has the lock, and stands by when another one has it, until the process is asked
    /// to end.
    pub(crate) async fn take_turns(
        &mut self,
        office: &Election,
        policy: Arc<Policy>,
        dispatcher: Arc<Dispatcher<Z>>,
    ) -> Result<(), exit::Error> {
        while self.signals.end().is_none() {
            service::ready("seeks the director's lock");
            // Nothing to wind down: whoever waits has nothing in hand.
            let sought = self.signals.until_done(stand_by(office, &mut self.said), Duration::ZERO, || {}).await;
            let Some(leadership) = sought else { break };
            // What was known before is from before somebody else directed.
            let world = open_catalog(&policy, Holder::Director).await.map_err(exit::Error::unable)?;
            self.direct(Arc::clone(&policy), Arc::clone(&dispatcher), world, Some(&leadership)).await;
            leadership.resign().await;
        }
        Ok(())
    }
}

/// Work of a director, for as long as it has the lock: then it is dropped where it waits.
pub(crate) async fn while_leading<T>(
    leadership: Option<&Leadership>,
    work: impl Future<Output = Result<T, CatalogError>>,
) -> Result<T, CatalogError> {
    let Some(leadership) = leadership else { return work.await };
    let losing = async { Err(CatalogError::LockLost(leadership.lost().await)) };
    future::or(losing, work).await
}

/// A pass for now. One of a director in office has the addresses that services have, and knows what they say of
/// themselves.
pub(crate) async fn pass<Z: Zfs>(
    policy: Arc<Policy>,
    dispatcher: Arc<Dispatcher<Z>>,
    world: FleetState<dyn CatalogWrite>,
    leadership: Option<&Leadership>,
) -> Result<Pass<Z, dyn CatalogWrite>, CatalogError> {
    let Some(leadership) = leadership else { return Ok(Pass::new(policy, dispatcher, world, clock::now())) };
    let (policy, standing) = located(leadership.consul(), policy, &dispatcher).await?;
    Ok(Pass::new(policy, dispatcher, world, clock::now()).led(leadership.clone(), standing))
}

/// The policy with the addresses that services have.
async fn located<Z: Zfs>(
    consul: &Consul,
    policy: Arc<Policy>,
    dispatcher: &Dispatcher<Z>,
) -> Result<(Arc<Policy>, ServiceHealth), CatalogError> {
    let (agents, slaves) = health::services(consul).await?;
    let mut policy = Arc::unwrap_or_clone(policy);
    let own = dispatcher.own.is_ok().then_some(&dispatcher.here);
    let standing = health::stand(&mut policy, &agents, &slaves, own);
    Ok((Arc::new(policy), standing))
}

/// The same for who gives no orders, with any catalog.
pub async fn with_services<Z: Zfs>(
    policy: Arc<Policy>,
    dispatcher: &Dispatcher<Z>,
) -> Result<(Arc<Policy>, ServiceHealth), CatalogError> {
    let CatalogConfig::Consul(config) = &policy.catalog else { return Ok((policy, ServiceHealth::default())) };
    let consul = open::shared(config)?.consul().clone();
    located(&consul, policy, dispatcher).await
}

/// Takes the lock, or says who has it. One whose holder has just died is waited for.
pub(crate) async fn seek(office: &Election) -> Result<Result<Leadership, String>, ConsulError> {
    for _ in 0..FREE_WITHIN {
        match office.seek().await? {
            Sought::Ours(leadership) => return Ok(Ok(leadership)),
            Sought::Taken { holder: Some(holder), .. } => return Ok(Err(holder)),
            Sought::Taken { holder: None, index } => office.changed(None, index).await?,
        }
    }
    Ok(Err("another director has just ended without a word, and its lock is not free yet".to_owned()))
}

/// Waits until this director is the one.
async fn stand_by(office: &Election, said: &mut Said) -> Leadership {
    let mut told = None;
    loop {
        let waited = match office.seek().await {
            Ok(Sought::Ours(leadership)) => {
                log::info!("directs from now on");
                return leadership;
            }
            Ok(Sought::Taken { holder, index }) => {
                said.tell_of_catalog(None);
                said.forget();
                if let Some(holder) = holder.as_ref().filter(|holder| told.as_ref() != Some(*holder)) {
                    let text = format!("stands by: {holder}");
                    log::info!("{text}");
                    service::status(&text);
                    told = Some(holder.clone());
                }
                office.changed(holder.as_ref(), index).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = waited {
            let text = format!("no orders are made: {}", error.gist());
            service::status(&text);
            said.tell_of_catalog(Some(text));
            runtime::sleep(AGAIN_AFTER).await;
        }
    }
}
