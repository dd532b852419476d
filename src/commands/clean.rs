//! `zsync clean`: forgets marks by age, as the director does by itself once a day.

use std::path::PathBuf;

use chrono::TimeDelta;

use crate::catalog::{Holder, open};
use crate::cli::exit::Error;
use crate::cli::report;
use crate::config;
use crate::sys::{clock, runtime};

/// What `zsync clean` is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `server.json`.
    pub config: PathBuf,
    /// How old a mark has to be.
    pub older_than: TimeDelta,
}

/// Forgets.
pub async fn run(settings: Settings) -> Result<(), Error> {
    let policy = config::load_policy(&settings.config).map_err(Error::unable)?;
    let before = clock::now() - settings.older_than;
    let forgotten = runtime::blocking(move || open::writer(&policy.catalog, Holder::Pass)?.forget_marks(before)).await;
    let marks = forgotten.map_err(Error::unable)?;
    report::print(&format!("forgot {marks} marks older than {}\n", before.format("%Y-%m-%dT%H:%M:%SZ")));
    Ok(())
}
