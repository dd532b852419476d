//! Registers the service of a host in Consul. The service is healthy as long as it reports that it is, and its
//! registration is removed when it ends.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::future;
use parking_lot::Mutex;

use crate::catalog::{CatalogError, open};
use crate::consul::{Consul, ConsulError, Health, Registration};
use crate::host::publish::publisher::Publisher;
use crate::model::{HostName, PeerRole};
use crate::policy::{Address, Local};
use crate::sys::runtime;
use crate::zfs::ZfsRead;

/// The service of the agents.
pub const AGENTS: &str = "zsync-agent";
/// The service of the slaves.
pub const SLAVES: &str = "zsync-slave";

/// How long a service stays healthy without a report.
const TTL: Duration = Duration::from_secs(30);
/// How often a service reports.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// How long after its last report a service is removed.
const FORGET_AFTER: Duration = Duration::from_secs(72 * 3600);
/// How long the end of the process waits for Consul.
const DEREGISTER_TIMEOUT: Duration = Duration::from_secs(3);

/// Describes the service of a role that listens on `listen`; `advertise` is the address where other hosts reach it.
#[must_use]
pub fn registration(service: &str, host: &HostName, listen: &str, advertise: Option<&str>) -> Registration {
    let (listens, port) = listen.rsplit_once(':').unwrap_or((listen, "0"));
    let bare = |text: &str| text.trim_start_matches('[').trim_end_matches(']').to_owned();
    let ip = bare(listens).parse::<IpAddr>();
    let (address, port) = match advertise.and_then(|text| text.parse::<Address>().ok()) {
        Some(address) => (bare(address.host()), address.port().map_or(port.to_owned(), |port| port.to_string())),
        // This address means nothing on other hosts. Without an address, Consul uses that of its node.
        None if ip.is_ok_and(|ip| ip.is_unspecified() || ip.is_loopback()) || listens == "localhost" => {
            (String::new(), port.to_owned())
        }
        None => (bare(listens), port.to_owned()),
    };
    Registration {
        service: service.to_owned(),
        id: format!("{service}-{host}"),
        host: host.to_string(),
        address,
        port: port.parse().unwrap_or(0),
        ttl: TTL,
        forget_after: FORGET_AFTER,
    }
}

/// The service of a role in Consul, and the publisher of its host.
pub struct ServiceRegistration {
    service: Registration,
    publisher: Arc<Publisher>,
    /// The configuration, which says what is published.
    local: Mutex<Arc<Local>>,
}

impl ServiceRegistration {
    /// Creates a registration with these parts.
    #[must_use]
    pub fn new(service: Registration, publisher: Arc<Publisher>, local: Arc<Local>) -> Self {
        Self { service, publisher, local: Mutex::new(local) }
    }

    /// The registration that local.json configures; `None` if it has no `consul`. The service listens on `listen`, and
    /// what is not published yet is kept in the folder `state`.
    pub(crate) fn of<Z: ZfsRead>(
        role: PeerRole,
        host: &HostName,
        local: &Local,
        zfs: &Arc<Z>,
        (listen, state): (&str, &Path),
    ) -> Result<Option<Self>, CatalogError> {
        let Some(config) = &local.consul else { return Ok(None) };
        let service = if role == PeerRole::Slave { SLAVES } else { AGENTS };
        let publisher = Publisher::new(host.clone(), open::shared(config)?, zfs, state, service);
        let service = registration(service, host, listen, config.advertise.as_deref());
        Ok(Some(Self::new(service, Arc::new(publisher), Arc::new(local.clone()))))
    }

    fn local(&self) -> Arc<Local> {
        Arc::clone(&self.local.lock())
    }

    /// Applies a reloaded configuration, and publishes the whole host.
    pub(crate) fn set_local(&self, local: Arc<Local>) {
        *self.local.lock() = local;
        self.publisher.lapse("the configuration was reloaded");
    }

    /// The publisher of the host, for the role.
    #[must_use]
    pub fn publisher(&self) -> Arc<Publisher> {
        Arc::clone(&self.publisher)
    }
}

/// Serves, and keeps the service registered until the end.
pub(crate) async fn registered_during(
    serving: impl Future<Output = anyhow::Result<()>>,
    registration: Option<&ServiceRegistration>,
) -> anyhow::Result<()> {
    let Some(registration) = registration else { return serving.await };
    let keeping = async {
        keep_registered(registration).await;
        Ok(())
    };
    let result = future::or(serving, keeping).await;
    deregister(registration.publisher.catalog().consul(), &registration.service).await;
    result
}

/// Keeps a service registered and the records of its host published. Never returns.
pub async fn keep_registered(registration: &ServiceRegistration) {
    let ServiceRegistration { service, publisher, .. } = registration;
    let consul = publisher.catalog().consul();
    let mut registered = false;
    let mut problems = Problems::default();
    loop {
        let local = registration.local();
        if let Err(error) = publisher.look(&local).await {
            problems.set("ZFS", Some(error.to_string()));
        }
        if publisher.behind().is_some()
            && let Err(error) = publisher.publish_host(&local).await
        {
            problems.set("ZFS", Some(error.to_string()));
        }
        if publisher.behind().is_none() {
            problems.set("ZFS", None);
        }
        let result = report_health(consul, service, publisher, &mut registered).await;
        problems.set("Consul", result.err().map(|error| error.gist()));
        publisher.wait_until_behind(REPORT_EVERY).await;
    }
}

async fn report_health(
    consul: &Consul,
    service: &Registration,
    publisher: &Publisher,
    registered: &mut bool,
) -> Result<(), ConsulError> {
    let (health, output) = match publisher.behind() {
        None => (Health::Passing, "all records of this host are published".to_owned()),
        Some(reason) => (Health::Warning, format!("the records of this host are not up to date: {reason}")),
    };
    for _ in 0..2 {
        if !*registered {
            consul.register(service).await?;
            *registered = true;
        }
        // Consul's agent may have been restarted without its state, and then does not know the service.
        *registered = consul.report(&service.id, health, &output).await?;
        if *registered {
            break;
        }
    }
    Ok(())
}

/// The current problem with each of the systems that publishing needs. Each problem is logged once when it begins, and
/// once when it is over.
#[derive(Default)]
struct Problems(BTreeMap<&'static str, String>);

impl Problems {
    fn set(&mut self, system: &'static str, problem: Option<String>) {
        match problem {
            Some(text) if self.0.get(system) != Some(&text) => {
                log::warn!("cannot publish the records of this host: {text}; they will be published later");
                self.0.insert(system, text);
            }
            None if self.0.remove(system).is_some() => log::info!("{system} works again"),
            _ => {}
        }
    }
}

/// Removes the service from Consul.
async fn deregister(consul: &Consul, service: &Registration) {
    let reason = match runtime::timeout(DEREGISTER_TIMEOUT, consul.deregister(&service.id)).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(runtime::Elapsed) => "Consul does not answer".to_owned(),
    };
    log::warn!("cannot deregister the service: {reason}; Consul will remove it after 72 hours");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registration_has_an_address_that_others_can_reach() {
        let address = |listen: &str, advertise: Option<&str>| {
            let service = registration(AGENTS, &"alpha".parse().unwrap(), listen, advertise);
            assert_eq!(service.id, "zsync-agent-alpha");
            format!("{}:{}", service.address, service.port)
        };
        for (listen, advertise, expected) in [
            ("0.0.0.0:7711", None, ":7711"),
            ("127.0.0.1:7711", None, ":7711"),
            ("[::]:7711", None, ":7711"),
            ("10.0.0.2:7711", None, "10.0.0.2:7711"),
            ("[fe80::2]:7711", None, "fe80::2:7711"),
            ("0.0.0.0:7711", Some("backup.example:7"), "backup.example:7"),
            ("0.0.0.0:7711", Some("10.0.0.9"), "10.0.0.9:7711"),
        ] {
            assert_eq!(address(listen, advertise), expected, "{listen}");
        }
    }
}
