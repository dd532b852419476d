//! `zsync restore --files`: restores single files from a snapshot on this host.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use chrono::{DateTime, Utc};

use crate::cli::exit::Error;
use crate::cli::report;
use crate::config;
use crate::fleet::files::{Brought, Open, WantedFiles, bring, reachable};
use crate::model::path_pattern::PathPattern;
use crate::model::{HostName, Place, counted};
use crate::policy::Local;
use crate::sys::runtime;
use crate::zfs::{ZfsRead, open_snapshot};

/// The settings of `zsync restore --files`.
#[derive(Clone, Debug)]
pub struct FilesSettings {
    /// The path of `server.json`, if it exists.
    pub config: Option<PathBuf>,
    /// What this host permits, if it says so.
    pub local: Option<Local>,
    /// This host's name.
    pub host_name: HostName,
    /// The dataset.
    pub source: Place,
    /// The only place that is used.
    pub from: Option<Place>,
    /// The paths of the files.
    pub patterns: Vec<PathPattern>,
    /// The newest snapshot is used that was taken until this moment.
    pub at: Option<DateTime<Utc>>,
    /// The folder into which they are restored.
    pub into: PathBuf,
}

/// Restores files.
pub(super) fn run(settings: &FilesSettings, zfs: &impl ZfsRead) -> Result<(), Error> {
    let open: Open = Arc::new(open_snapshot);
    let Brought { from, problems } = runtime::block_on(restore_files(settings, zfs, open)).map_err(Error::unable)?;
    for (snapshot, copied) in from {
        let (what, size) = (counted(copied.files, "file or folder"), report::bytes(copied.bytes));
        let what = what.replace("file or folders", "files and folders");
        report::print(&format!("restored {what} ({size}) from {snapshot}\n"));
    }
    problems.iter().for_each(report::print_error);
    if problems.is_empty() { Ok(()) } else { Err(Error::reported()) }
}

/// Restores files from a snapshot on this host.
pub async fn restore_files(settings: &FilesSettings, zfs: &impl ZfsRead, open: Open) -> anyhow::Result<Brought> {
    let FilesSettings { config, local, host_name, source, from, patterns, at, into } = settings;
    let policy = config.as_deref().map(config::load_policy).transpose()?;
    let here = (host_name, local.as_ref());
    let trees = reachable(policy.as_ref(), here, source, from.as_ref(), zfs).await?;
    let folder = target(into).with_context(|| format!("cannot restore files into {}", into.display()))?;
    let wanted = WantedFiles { patterns: patterns.clone(), at: *at };
    Ok(runtime::blocking(move || bring(&open, &trees, &wanted, &folder)).await)
}

/// Opens the folder for what is restored. If it does not exist, it is created, and only its owner may look into it.
fn target(folder: &Path) -> io::Result<OwnedFd> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let opened = File::open(folder)?;
    if opened.metadata()?.is_dir() { Ok(opened.into()) } else { Err(io::Error::other("it is no folder")) }
}
