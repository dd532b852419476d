//! The code that `zsync agent` and `zsync slave` share: a service that listens, reloads its configuration on SIGHUP and
//! ends on SIGTERM.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use crate::cli::args::{CommonArgs, StateArgs, duration_or_zero};
use crate::cli::exit::Error;
use crate::cli::settings::{host_name, metrics_address, readable_secrets, warn_if_others_can_write};
use crate::config;
use crate::host::publish::presence::{self, ServiceRegistration};
use crate::host::publish::publisher::Publisher;
use crate::model::{HostName, PeerRole};
use crate::policy::{AGENT_PORT, Address, Local, SLAVE_PORT};
use crate::server::acceptor::{self, Listening, Role, Security};
use crate::sys::{clock, runtime, service};
use crate::transport::tls::Tls;
use crate::zfs::ZfsRead;
use crate::zfs::system::System;

/// Options of services that listen.
#[derive(Args, Clone, Debug)]
pub struct ListenArgs {
    /// Address to listen on; the default port is 7711 for an agent, 7722 for a slave [default: "listen" in local.json,
    /// else 127.0.0.1]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub listen: Option<String>,
    /// Listen without TLS even on an address that other machines can reach; peers are not authenticated
    #[arg(long)]
    pub insecure_plaintext: bool,
    /// Serve Prometheus metrics at http://HOST:PORT/metrics (HOST defaults to 127.0.0.1)
    #[arg(long, value_name = "[HOST:]PORT")]
    pub metrics: Option<String>,
    /// How long to wait for running work after SIGTERM before interrupting it (it resumes later)
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration_or_zero)]
    pub grace: Duration,
}

/// The settings of an agent or a slave, from its arguments and `local.json`.
pub(crate) struct DaemonSettings {
    /// This host.
    pub host: HostName,
    /// What the host permits.
    pub local: Local,
    /// Where and how it listens.
    pub listening: Listening,
}

impl DaemonSettings {
    fn load(common: &CommonArgs, listen: &ListenArgs, role: PeerRole) -> anyhow::Result<Self> {
        let local = config::load_local(&common.local)?;
        warn_if_others_can_write(&common.local);
        readable_secrets(&common.local, local.consul.as_ref()).iter().for_each(|warning| log::warn!("{warning}"));
        let host = host_name(common, Some(&local))?;
        let port = if role == PeerRole::Slave { SLAVE_PORT } else { AGENT_PORT };
        let address = match (&listen.listen, &local.listen) {
            (Some(argument), _) => {
                let address: Address = argument.parse().context("--listen")?;
                address.with_default_port(port)
            }
            (None, Some(configured)) => configured.with_default_port(port),
            (None, None) => format!("127.0.0.1:{port}"),
        };
        let security = security(&local, listen, &host, role)?;
        let metrics = metrics_address(listen.metrics.as_deref())?;
        let listening = Listening { address, security, metrics, grace: listen.grace };
        Ok(Self { host, local, listening })
    }
}

/// How peers are authenticated.
fn security(local: &Local, listen: &ListenArgs, host: &HostName, role: PeerRole) -> anyhow::Result<Security> {
    let (file, beyond_this_machine) = (&local.file, listen.insecure_plaintext);
    let Some(files) = &local.tls else { return Ok(Security::Plaintext { beyond_this_machine }) };
    if beyond_this_machine {
        bail!("--insecure-plaintext cannot be used with \"tls\" in {file}; hint: remove one of them");
    }
    if role == PeerRole::Agent && local.directors.is_empty() {
        bail!(
            "{file} sets \"tls\" but names no director whose orders are obeyed; hint: add \"directors\": [\"HOST\"] with the \
             name in the director's certificate"
        );
    }
    let tls = Tls::load(files)?;
    for warning in tls.warnings(clock::now(), host, role) {
        log::warn!("{warning}");
    }
    Ok(Security::Tls(Arc::new(tls)))
}

/// The registration under which this host publishes its snapshots; `None` if it publishes none.
pub(crate) type Publishing<'a> = Option<&'a Arc<ServiceRegistration>>;

/// The publisher for a role.
pub(crate) fn publisher(publishing: Publishing<'_>) -> Option<Arc<Publisher>> {
    publishing.map(|registration| registration.publisher())
}

/// Runs a role as a service. `create` makes the role once; `renew` makes a new one from the running one whenever the
/// configuration is reloaded.
pub(crate) fn run<R: Role>(
    common: &CommonArgs,
    listen: &ListenArgs,
    state: &StateArgs,
    role: PeerRole,
    create: impl FnOnce(DaemonSettings, Arc<System>, Publishing<'_>) -> anyhow::Result<R>,
    renew: impl Fn(&R, DaemonSettings) -> R,
) -> Result<(), Error> {
    let load = || DaemonSettings::load(common, listen, role);
    let inherited = service::inherited().map_err(Error::unable)?;
    let settings = load().map_err(Error::unable)?;
    let listening = settings.listening.clone();
    let zfs = Arc::new(System::new(&common.zfs));
    runtime::block_on(ending(Arc::clone(&zfs), async {
        log::info!("using {}", zfs.check_version().await.map_err(Error::unable)?);
        let bound = inherited.as_ref().and_then(|socket| socket.local_addr().ok());
        let address = bound.map_or_else(|| listening.address.clone(), |bound| bound.to_string());
        let consul = settings.local.consul.clone();
        let registration =
            ServiceRegistration::of(role, &settings.host, &settings.local, &zfs, (&address, &state.state));
        let registration = registration.map_err(Error::unable)?.map(Arc::new);
        let reload = |old: &R| {
            let new = load()?;
            if new.listening.address != listening.address {
                log::warn!("still listening on {}: a new address takes effect after a restart", listening.address);
            }
            if new.local.consul != consul {
                log::warn!("still publishing as before: a changed \"consul\" takes effect after a restart");
            }
            if let Some(registration) = &registration {
                registration.set_local(Arc::new(new.local.clone()));
            }
            let security = new.listening.security.clone();
            Ok((renew(old, new), security))
        };
        let role = create(settings, Arc::clone(&zfs), registration.as_ref()).map_err(Error::unable)?;
        let serving = acceptor::serve(role, inherited, &listening, reload);
        presence::registered_during(serving, registration.as_deref()).await.map_err(Error::unable)
    }))
}

/// Does the work, then ends the `zfs` commands that still run, because interrupted work can leave some behind.
pub(crate) async fn ending<T>(zfs: Arc<System>, work: impl Future<Output = T>) -> T {
    let result = work.await;
    zfs.end().await;
    result
}
