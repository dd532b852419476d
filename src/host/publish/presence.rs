//! A host's service in Consul: registered, well as long as it says so, gone when it ends.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::future;
use parking_lot::{Mutex, MutexGuard};

use crate::catalog::{CatalogError, open};
use crate::consul::{Consul, ConsulError, Health, Registration};
use crate::host::publish::publisher::Publisher;
use crate::model::{HostName, PeerRole};
use crate::policy::{Address, Local};
use crate::sys::runtime;
use crate::zfs::ZfsRead;

/// The agents' service.
pub const AGENTS: &str = "zsync-agent";
/// The slaves' service.
pub const SLAVES: &str = "zsync-slave";

/// How long a service is well without a word.
const TTL: Duration = Duration::from_secs(30);
/// How often it says so.
const EVERY: Duration = Duration::from_secs(10);
/// After how long a silent one is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(72 * 3600);
/// How long the end of the process waits for Consul.
const PART_WITHIN: Duration = Duration::from_secs(3);

/// The service of a role that listens on `listen`; `advertise` is where others reach it.
#[must_use]
pub fn registration(service: &str, host: &HostName, listen: &str, advertise: Option<&str>) -> Registration {
    let (listens, port) = listen.rsplit_once(':').unwrap_or((listen, "0"));
    let bare = |text: &str| text.trim_start_matches('[').trim_end_matches(']').to_owned();
    let ip = bare(listens).parse::<IpAddr>();
    let (address, port) = match advertise.and_then(|text| text.parse::<Address>().ok()) {
        Some(address) => (bare(address.host()), address.port().map_or(port.to_owned(), |port| port.to_string())),
        // An address that means nothing elsewhere: that of Consul's node is better.
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

/// A role's place in Consul: its service, and the publisher of its host.
pub struct ServiceRegistration {
    service: Registration,
    publisher: Arc<Publisher>,
    /// What is published.
    local: Mutex<Arc<Local>>,
}

impl ServiceRegistration {
    /// A place with these.
    #[must_use]
    pub fn new(service: Registration, publisher: Arc<Publisher>, local: Arc<Local>) -> Self {
        Self { service, publisher, local: Mutex::new(local) }
    }

    /// As local.json says; `None` if it has no `consul`. What is not published yet is kept in `state`.
    pub fn of(
        role: PeerRole,
        host: &HostName,
        local: &Local,
        listen: &str,
        state: &Path,
    ) -> Result<Option<Self>, CatalogError> {
        let Some(config) = &local.consul else { return Ok(None) };
        let service = if role == PeerRole::Slave { SLAVES } else { AGENTS };
        let publisher = Publisher::new(host.clone(), open::shared(config)?, state, service);
        let service = registration(service, host, listen, config.advertise.as_deref());
        Ok(Some(Self::new(service, Arc::new(publisher), Arc::new(local.clone()))))
    }

    fn local(&self) -> MutexGuard<'_, Arc<Local>> {
        self.local.lock()
    }

    /// Another configuration is in force: what is published follows it.
    pub fn renew(&self, local: Arc<Local>) {
        *self.local() = local;
        self.publisher.lapse("its configuration was read again");
    }

    /// The publisher, for the role.
    #[must_use]
    pub fn publisher(&self) -> Arc<Publisher> {
        Arc::clone(&self.publisher)
    }
}

/// Serves, and is in Consul as long.
pub async fn during<Z: ZfsRead>(
    serving: impl Future<Output = anyhow::Result<()>>,
    post: Option<&ServiceRegistration>,
    zfs: &Z,
) -> anyhow::Result<()> {
    let Some(post) = post else { return serving.await };
    let keeping = async {
        keep(post, zfs).await;
        Ok(())
    };
    let ended = future::or(serving, keeping).await;
    leave(post.publisher.catalog().consul(), &post.service).await;
    ended
}

/// Keeps a service registered and its host's records published, for ever.
pub async fn keep<Z: ZfsRead>(post: &ServiceRegistration, zfs: &Z) {
    let ServiceRegistration { service, publisher, .. } = post;
    let consul = publisher.catalog().consul();
    let mut registered = false;
    let mut said: BTreeMap<&str, String> = BTreeMap::new();
    loop {
        let local = Arc::clone(&post.local());
        if publisher.behind().is_some()
            && let Err(error) = publisher.whole(zfs, &local).await
        {
            say(&mut said, "zfs", Some(&error.to_string()));
        }
        if publisher.behind().is_none() {
            say(&mut said, "zfs", None);
        }
        let result = report(consul, service, publisher, &mut registered).await;
        say(&mut said, "consul", result.err().map(|error| error.gist()).as_deref());
        publisher.woken(EVERY).await;
    }
}

async fn report(
    consul: &Consul,
    service: &Registration,
    publisher: &Publisher,
    registered: &mut bool,
) -> Result<(), ConsulError> {
    let (health, output) = match publisher.behind() {
        None => (Health::Passing, "what this host holds is published".to_owned()),
        Some(reason) => (Health::Warning, format!("what this host holds is not published: {reason}")),
    };
    for _ in 0..2 {
        if !*registered {
            consul.register(service).await?;
            *registered = true;
        }
        // Consul's agent may have been started anew, and know nothing of it.
        *registered = consul.report(&service.id, health, &output).await?;
        if *registered {
            break;
        }
    }
    Ok(())
}

/// Says what is wrong once, and once that it is over.
fn say<'s>(said: &mut BTreeMap<&'s str, String>, about: &'s str, now: Option<&str>) {
    match now {
        Some(text) if said.get(about).is_none_or(|before| before != text) => {
            log::warn!("{text}; it goes on, and is told to Consul later");
            said.insert(about, text.to_owned());
        }
        None if said.remove(about).is_some() => log::info!("{about}: all is well again"),
        _ => {}
    }
}

/// Ends the registration.
pub async fn leave(consul: &Consul, service: &Registration) {
    match runtime::timeout(PART_WITHIN, consul.deregister(&service.id)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::warn!("the service stays registered until its check fails: {error}"),
        Err(runtime::Elapsed) => {
            log::warn!("the service stays registered until its check fails: Consul does not answer");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_told_an_address_that_they_can_reach() {
        let told = |listen: &str, advertise: Option<&str>| {
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
            assert_eq!(told(listen, advertise), expected, "{listen}");
        }
    }
}
