//! `zsync restore --files`: restores single files from a snapshot on this host or on another one.

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
use crate::director::bars;
use crate::director::connect::own_certificate;
use crate::fleet::files::{Brought, Open, Reached, Seeker, WantedFiles, bring, reachable};
use crate::model::path_pattern::PathPattern;
use crate::model::{Counter, HostName, Place, counted};
use crate::policy::Local;
use crate::sys::runtime;
use crate::sys::tree::Copied;
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
    let (open, counter): (Open, _) = (Arc::new(open_snapshot), Counter::default());
    let restoring = bars::transfer("files", &counter, restore_files(settings, zfs, open, &counter));
    let Restored { brought, notes } = runtime::block_on(restoring).map_err(Error::unable)?;
    let Brought { from, problems } = brought;
    for (snapshot, copied) in &from {
        report::print(&line(snapshot, copied));
    }
    let remarks = from.iter().flat_map(|(_, copied)| &copied.notes);
    remarks.chain(&notes).chain(&problems).for_each(report::print_error);
    if problems.is_empty() { Ok(()) } else { Err(Error::reported()) }
}

/// What was restored from a snapshot.
fn line(snapshot: &str, copied: &Copied) -> String {
    let folders = |count| counted(count, "file or folder").replace("file or folders", "files and folders");
    let (what, size) = (folders(copied.files), report::bytes(copied.bytes));
    let present = match copied.present {
        0 => String::new(),
        present => format!("; {} had been restored before", folders(present)),
    };
    format!("restored {what} ({size}) from {snapshot}{present}\n")
}

/// What was restored, and which places let this host read nothing.
pub struct Restored {
    /// What was restored.
    pub brought: Brought,
    /// The places.
    pub notes: Vec<String>,
}

/// Restores files. `counter` counts what arrives from other hosts.
pub async fn restore_files(
    settings: &FilesSettings,
    zfs: &impl ZfsRead,
    open: Open,
    counter: &Counter,
) -> anyhow::Result<Restored> {
    let FilesSettings { config, local, host_name: here, source, from, patterns, at, into } = settings;
    let policy = config.as_deref().map(config::load_policy).transpose()?;
    let tls = own_certificate(local.as_ref(), policy.as_ref())?;
    let seeker = Seeker { here, policy: policy.as_ref(), local: local.as_ref(), tls, zfs };
    let Reached { trees, notes, problems } = reachable(&seeker, source, from.as_ref()).await?;
    let folder = target(into).with_context(|| format!("cannot restore files into {}", into.display()))?;
    let wanted = WantedFiles { patterns: patterns.clone(), at: *at };
    let mut brought = bring(&open, &trees, &wanted, folder, counter).await;
    brought.problems.splice(..0, problems);
    Ok(Restored { brought, notes })
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
