//! The settings of `zsync restore`, the connections to the hosts, and the question before anything is changed.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{anyhow, bail};

use crate::actions::Lost;
use crate::config;
use crate::director::connect::{OwnHost, dispatcher, load_tls, with_services};
use crate::fleet::Dispatcher;
use crate::model::HostName;
use crate::policy::Policy;
use crate::zfs::Zfs;

/// The settings of `zsync restore`.
#[derive(Clone, Debug)]
pub struct RestoreSettings {
    /// The path of `server.json`.
    pub config: PathBuf,
    /// The path of `local.json`, for this host's own agent.
    pub local_file: PathBuf,
    /// The folder for state that must survive restarts.
    pub state: PathBuf,
    /// This host's name in the policy.
    pub host_name: HostName,
    /// What is restored.
    pub lost: Lost,
    /// Whether the properties of the lost dataset are set again.
    pub with_properties: bool,
}

/// Asks the user whether to begin. `verb` says what is done with so many datasets.
pub(super) fn confirm(verb: &str, count: usize) -> anyhow::Result<()> {
    if !io::stdin().is_terminal() {
        bail!("nothing was changed: there is nobody to confirm it; hint: pass --yes, or --dry-run to only look");
    }
    let what = if count == 1 { "this dataset".to_owned() } else { format!("these {count} datasets") };
    write!(io::stderr(), "{verb} {what}? [y/N] ")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(anyhow!("nothing was changed")),
    }
}

/// The connections to the agents of a policy's hosts.
pub(super) async fn connect<Z: Zfs>(
    settings: &RestoreSettings,
    zfs: Arc<Z>,
) -> anyhow::Result<(Arc<Policy>, Arc<Dispatcher<Z>>, BTreeMap<HostName, String>)> {
    let policy = Arc::new(config::load_policy(&settings.config)?);
    let own = OwnHost { name: &settings.host_name, local: &settings.local_file, state: Some(&settings.state) };
    let agents = Arc::new(dispatcher(own, &policy, load_tls(&policy)?, zfs).await);
    let (policy, services) = with_services(policy, &agents).await?;
    Ok((policy, agents, services.absent))
}
