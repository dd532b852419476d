//! What a preview is asked for.

use std::path::PathBuf;

use chrono::{DateTime, TimeDelta, Utc};

use crate::cli::report::Format;
use crate::model::HostName;
use crate::plan::filter::Filter;
use crate::policy::Local;

/// The settings of `zsync plan`.
#[derive(Clone, Debug)]
pub struct PlanSettings {
    /// `server.json`.
    pub config: PathBuf,
    /// Path of `local.json`.
    pub local_file: PathBuf,
    /// Its content, if the file exists and matters.
    pub local: Option<Local>,
    /// This host's name in the policy.
    pub host: HostName,
    /// Where the inventory comes from.
    pub source: Source,
    /// What is asked for.
    pub question: Question,
    /// The hosts and datasets that are shown.
    pub filter: Filter,
    /// The output format.
    pub format: Format,
    /// The moment to decide for; `None`: now.
    pub at: Option<DateTime<Utc>>,
    /// Whether the exit status is 3 if there are orders.
    pub exit_code: bool,
}

/// Where the inventory comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// From the policy's catalog, and for this host from its ZFS.
    Catalog,
    /// From an exported catalog alone; `-` is standard input.
    File(PathBuf),
    /// From the agents.
    Agents,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// The orders of a pass.
    Orders {
        /// Whether everything that is not done is explained as well.
        explain: bool,
        /// The file to save the plan in.
        out: Option<PathBuf>,
    },
    /// The inventory, written to this file; `-` is standard output.
    Export(PathBuf),
    /// What would be done and kept over time.
    Simulate {
        /// The simulated time.
        length: TimeDelta,
        /// The file of another policy to simulate beside it.
        other: Option<PathBuf>,
    },
    /// What another policy would do differently.
    Compare {
        /// The other policy's file.
        other: PathBuf,
        /// Whether every snapshot is listed.
        explain: bool,
    },
}
