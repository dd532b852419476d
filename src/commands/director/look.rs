//! Asks every host what it holds: how a pass begins, and how `zsync plan` gets to know the world.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::dispatch::{Dispatcher, blank};
use super::pass::{SIDE_BY_SIDE, hosts};
use super::world::World;
use crate::catalog::{CatalogError, CatalogWrite};
use crate::clock;
use crate::model::{Action, Counter, HostName};
use crate::policy::Policy;
use crate::runtime;
use crate::zfs::Zfs;

/// Asks every host of the policy what it holds and writes it to the catalog, which the world then is.
///
/// What comes back are the hosts that could not be listed, each with the reason.
pub async fn look<Z: Zfs, C: CatalogWrite + 'static>(
    policy: &Arc<Policy>,
    dispatcher: &Arc<Dispatcher<Z>>,
    world: &World<C>,
) -> Result<BTreeMap<HostName, String>, CatalogError> {
    let hosts = hosts(policy);
    let looks = hosts.iter().cloned().map(|host| {
        let (policy, dispatcher, world) = (Arc::clone(policy), Arc::clone(dispatcher), world.clone());
        async move {
            let (response, facts) = dispatcher.ask(&policy, &host, &blank(Action::KvResync), Counter::default()).await;
            if !response.is_success {
                return Ok(Some((host, response.error)));
            }
            world.listed(&host, clock::now(), facts).await?;
            Ok(None)
        }
    });
    let mut unseen = BTreeMap::new();
    for result in runtime::side_by_side(SIDE_BY_SIDE, looks).await {
        let result: Result<Option<_>, CatalogError> = result;
        unseen.extend(result?);
    }
    world.reload(hosts.into_iter().filter(|host| !unseen.contains_key(host)).collect()).await?;
    Ok(unseen)
}
