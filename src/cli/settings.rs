//! Determines settings from arguments and `local.json` together: the name of this host, and where metrics are served.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::cli::args::{CommonArgs, PolicyArgs};
use crate::cli::exit::Error;
use crate::config;
use crate::model::{HostName, hint};
use crate::policy::{Address, CatalogConfig, ConsulConfig, Local, Policy};

/// This host's name: from `--hostname`, otherwise from `local.json`, otherwise the system's host name, which is an
/// error if it is not a valid name.
pub fn host_name(common: &CommonArgs, local: Option<&Local>) -> anyhow::Result<HostName> {
    if let Some(host) = common.hostname.clone().or_else(|| local.and_then(|local| local.hostname.clone())) {
        return Ok(host);
    }
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    name.parse().with_context(|| {
        format!("cannot use the system's host name {name:?}; hint: name this host with --hostname or with \"hostname\" in local.json")
    })
}

/// Loads `local.json`; `None` if the file does not exist. An invalid file is an error even if it does not matter what
/// it permits, because it may contain the name of this host.
pub fn local_if_exists(common: &CommonArgs) -> Result<Option<Local>, Error> {
    match std::fs::metadata(&common.local) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        _ => config::load_local(&common.local).map(Some).map_err(Error::unable),
    }
}

/// The path of the policy; `None` if it was not named on the command line and does not exist, as on a host without a
/// director.
#[must_use]
pub fn policy_if_exists(policy: &PolicyArgs) -> Option<PathBuf> {
    let is_missing = policy.config == Path::new(config::DEFAULT_SERVER_FILE) && !policy.config.exists();
    (!is_missing).then(|| policy.config.clone())
}

/// This host's name. `local.json` is read only if `--hostname` was not given.
pub fn host_name_of(common: &CommonArgs) -> Result<HostName, Error> {
    match &common.hostname {
        Some(typed) => Ok(typed.clone()),
        None => host_name(common, local_if_exists(common)?.as_ref()).map_err(Error::unable),
    }
}

/// The `host:port` at which metrics are served; `None` if none was given. A port alone means 127.0.0.1; an address
/// without a port is an error.
pub fn metrics_address(typed: Option<&str>) -> anyhow::Result<Option<String>> {
    let Some(typed) = typed else { return Ok(None) };
    if let Ok(port) = typed.parse::<u16>() {
        return Ok(Some(format!("127.0.0.1:{port}")));
    }
    let address: Address = typed.parse().context("--metrics")?;
    match address.port() {
        Some(_) => Ok(Some(address.to_string())),
        None => bail!("--metrics: {typed:?} has no port; hint: write a port, as in 9771, or host:port"),
    }
}

/// The configuration of Consul in a policy, if its catalog is there.
#[must_use]
pub fn consul_of(policy: &Policy) -> Option<&ConsulConfig> {
    match &policy.catalog {
        CatalogConfig::Consul(config) => Some(config),
        CatalogConfig::Embedded { .. } => None,
    }
}

/// Warnings of secrets that users other than the owner of their file can read: the token of Consul in the configuration
/// file or in a file of its own, and the key of the certificate for Consul.
#[must_use]
pub fn readable_secrets(file: &Path, consul: Option<&ConsulConfig>) -> Vec<String> {
    let Some(consul) = consul else { return Vec::new() };
    let token = consul.token.as_ref().map(|_| ("Consul's token in", file));
    let token_file = consul.token_file.as_deref().map(|file| ("Consul's token in", file));
    let key = consul.key_file.as_deref().map(|file| ("the private key", file));
    let warning = |(what, file): (&str, &Path)| {
        let mode = std::fs::metadata(file).ok()?.permissions().mode() & 0o7777;
        let file = file.display();
        (mode & 0o077 != 0).then(|| {
            format!(
                "{what} {file} can be read by users other than the owner of the file, whose mode is {mode:04o}; hint: make \
                 the user that runs zsync the owner of the file, and its mode 0600"
            )
        })
    };
    token.into_iter().chain(token_file).chain(key).filter_map(warning).collect()
}

/// Warns of a configuration file that other users can change, because they could use it to act with the rights of the
/// user that runs zsync.
pub fn warn_if_others_can_write(file: &Path) {
    let Ok(metadata) = std::fs::metadata(file) else { return };
    let mode = metadata.permissions().mode() & 0o7777;
    if metadata.is_file() && mode & 0o022 != 0 {
        let (file, word) = (file.display(), hint::word(&file.display()));
        log::warn!("{file} has mode {mode:04o}: users other than its owner can change it; hint: run chmod go-w {word}");
    }
}
