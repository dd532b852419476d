//! Opens everything through which a director, a preview or `zsync status` reaches hosts: the catalog, TLS, an agent
//! within this process for orders to this host, and the addresses that services have registered in Consul.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use crate::agent::Agent;
use crate::catalog::{CatalogError, CatalogWrite, Holder, open};
use crate::config;
use crate::consul::Consul;
use crate::fleet::health::{self, ServiceHealth};
use crate::fleet::live_status::{LiveStatus, StatusPlace};
use crate::fleet::trash::Way;
use crate::fleet::{Dispatcher, FleetState};
use crate::host::publish::publisher::Publisher;
use crate::model::HostName;
use crate::policy::{CatalogConfig, Local, Policy};
use crate::sys::{clock, runtime};
use crate::transport::tls::{Tls, TlsError};
use crate::zfs::Zfs;

/// Opens the policy's catalog for writing.
pub async fn open_catalog(policy: &Policy, holder: Holder) -> Result<FleetState<dyn CatalogWrite>, CatalogError> {
    let config = policy.catalog.clone();
    let catalog = runtime::blocking(move || open::writer_for_pass(&config, holder)).await?;
    let state = match &policy.catalog {
        CatalogConfig::Embedded { .. } => FleetState::embedded(catalog),
        CatalogConfig::Consul(_) => FleetState::shared(catalog),
    };
    // A pass that cron starts knows which hosts did not answer in the previous pass only from the status of that pass.
    if let Some(live) = LiveStatus::read(&StatusPlace::of(&policy.catalog), clock::now()).await {
        live.unseen.keys().for_each(|host| state.expect_silent(host));
        state.certificates().restore(policy, live.certificates);
    }
    Ok(state)
}

/// The certificate and key with which a director authenticates itself to agents.
pub fn load_tls(policy: &Policy) -> Result<Option<Arc<Tls>>, TlsError> {
    policy.tls.as_ref().map(|files| Tls::load(files).map(Arc::new)).transpose()
}

/// The certificate and key with which this process speaks for this host to other hosts: those of the host's own agent,
/// otherwise those of its director.
pub fn own_certificate(local: Option<&Local>, policy: Option<&Policy>) -> Result<Option<Arc<Tls>>, TlsError> {
    let files = local.and_then(|local| local.tls.as_ref()).or_else(|| policy.and_then(|policy| policy.tls.as_ref()));
    files.map(|files| Tls::load(files).map(Arc::new)).transpose()
}

/// This host, for an agent within the process that carries out its orders.
#[derive(Clone, Copy)]
pub struct OwnHost<'a> {
    /// Its name.
    pub name: &'a HostName,
    /// Its `local.json`.
    pub local: &'a Path,
    /// The folder for state that must survive restarts; if `None`, this process publishes nothing in a shared catalog.
    pub state: Option<&'a Path>,
}

/// Sets up a dispatcher, with an agent for this host within the process if the policy has any work for it.
pub async fn dispatcher<Z: Zfs>(
    host: OwnHost<'_>,
    policy: &Policy,
    tls: Option<Arc<Tls>>,
    zfs: Arc<Z>,
) -> Dispatcher<Z> {
    let has_own_work = has_own_work(policy, host.name);
    dispatcher_for(host, has_own_work, policy, tls, zfs).await
}

/// Sets up a dispatcher, with an agent for this host within the process if there is any work for it.
pub async fn dispatcher_for<Z: Zfs>(
    host: OwnHost<'_>,
    has_own_work: bool,
    policy: &Policy,
    tls: Option<Arc<Tls>>,
    zfs: Arc<Z>,
) -> Dispatcher<Z> {
    let here = host.name;
    let own = if has_own_work {
        own_agent(host, policy, zfs).await.map(Arc::new).map_err(|error| format!("{error:#}"))
    } else {
        Err(format!("this process carries out no orders on {here}"))
    };
    Dispatcher { here: here.clone(), own, tls }
}

/// The way to one host for a command: the agent of another host, as the policy says, or for this host an agent in this
/// process, which needs no policy.
pub async fn way_to<Z: Zfs>(
    host: &HostName,
    here: &HostName,
    local: Option<Local>,
    config: &Path,
    zfs: Arc<Z>,
) -> anyhow::Result<Way<Z>> {
    if host == here {
        let local = local.with_context(|| {
            format!("cannot look into the trash of this host ({here}): zsync touches no dataset without a local.json")
        })?;
        zfs.check_version().await?;
        return Ok(Way::Own(Arc::new(Agent::new(here.clone(), zfs, Arc::new(local)))));
    }
    // A user waits for the result.
    let policy = Arc::new(Policy { retry_for: Duration::ZERO, ..config::load_policy(config)? });
    let own = Err(format!("this process carries out no orders on {here}"));
    let agents = Dispatcher { here: here.clone(), own, tls: load_tls(&policy)? };
    let (policy, _) = with_services(policy, &agents).await?;
    Ok(Way::Fleet(policy, Box::new(agents)))
}

/// Whether orders to this host are carried out in the director's process: the policy names the host and has no address
/// for it.
pub(crate) fn has_own_work(policy: &Policy, here: &HostName) -> bool {
    policy.hosts.get(here).is_none_or(|host| host.address.is_none()) && policy.hosts_named().contains(here)
}

async fn own_agent<Z: Zfs>(host: OwnHost<'_>, policy: &Policy, zfs: Arc<Z>) -> anyhow::Result<Agent<Z>> {
    let OwnHost { name, local, state } = host;
    let local = config::load_local(local).with_context(|| {
        format!("cannot carry out orders on this host ({name}): zsync touches no dataset without a local.json")
    })?;
    zfs.check_version().await?;
    let publisher = match (&policy.catalog, state) {
        (CatalogConfig::Consul(config), Some(state)) => {
            let catalog = open::shared(config)?;
            Some(Arc::new(Publisher::new(name.clone(), catalog, &zfs, state, "director")))
        }
        _ => None,
    };
    // This agent authenticates itself to slaves. Director and agent of one host may share a certificate.
    let tls = own_certificate(Some(&local), Some(policy))?;
    Ok(Agent::new(name.clone(), zfs, Arc::new(local)).with_tls(tls).publishing(publisher))
}

/// Adds to the policy the addresses that services have registered in Consul. Without Consul, the policy stays
/// unchanged.
pub async fn with_services<Z: Zfs>(
    policy: Arc<Policy>,
    dispatcher: &Dispatcher<Z>,
) -> Result<(Arc<Policy>, ServiceHealth), CatalogError> {
    let CatalogConfig::Consul(config) = &policy.catalog else { return Ok((policy, ServiceHealth::default())) };
    let consul = open::shared(config)?.consul().clone();
    locate(&consul, policy, dispatcher).await
}

/// Adds to the policy the addresses that services have registered in this Consul.
pub(crate) async fn locate<Z: Zfs>(
    consul: &Consul,
    policy: Arc<Policy>,
    dispatcher: &Dispatcher<Z>,
) -> Result<(Arc<Policy>, ServiceHealth), CatalogError> {
    let (agents, slaves) = health::services(consul).await?;
    let mut policy = Arc::unwrap_or_clone(policy);
    let own = dispatcher.own.is_ok().then_some(&dispatcher.here);
    let services = health::assess(&mut policy, &agents, &slaves, own);
    Ok((Arc::new(policy), services))
}
