//! The settings of a preview.

use std::path::PathBuf;

use chrono::{DateTime, TimeDelta, Utc};

use crate::cli::report::Format;
use crate::model::HostName;
use crate::plan::filter::Filter;
use crate::policy::Local;

/// The settings of `zsync plan`, from its arguments.
#[derive(Clone, Debug)]
pub struct PlanSettings {
    /// The path of `server.json`.
    pub config: PathBuf,
    /// The path of `local.json`.
    pub local_file: PathBuf,
    /// Its content, if the file exists and the preview depends on it.
    pub local: Option<Local>,
    /// This host's name in the policy.
    pub host: HostName,
    /// Where the inventory comes from.
    pub source: InventorySource,
    /// What is previewed.
    pub mode: PlanMode,
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
pub enum InventorySource {
    /// From the policy's catalog, and for this host from its ZFS. Nobody is asked.
    Catalog,
    /// From an exported catalog alone; `-` is standard input.
    File(PathBuf),
    /// From the hosts, without writing anything.
    Hosts,
    /// From the agents. Their answers are written to the catalog.
    Agents,
}

/// What is previewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlanMode {
    /// The orders of a pass.
    Orders {
        /// Whether every decision is explained, even if nothing is due.
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
