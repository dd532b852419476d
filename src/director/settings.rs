//! The settings of a director.

use std::path::PathBuf;
use std::time::Duration;

use crate::cli::report::Format;
use crate::model::HostName;

/// The settings of `zsync director`, from its arguments and `local.json`.
#[derive(Clone, Debug)]
pub struct DirectorSettings {
    /// The path of `server.json`.
    pub config: PathBuf,
    /// The path of `local.json`, for orders to this host.
    pub local: PathBuf,
    /// The folder for state that must survive restarts.
    pub state: PathBuf,
    /// This host's name in the policy.
    pub host: HostName,
    /// Whether to make one pass instead of passes at intervals.
    pub once: bool,
    /// Whether the first pass lists every host and reports where the catalog differed.
    pub resync: bool,
    /// Time from the start of one pass to the start of the next.
    pub interval: Duration,
    /// With `once`: how long the pass may take.
    pub timeout: Option<Duration>,
    /// How long running orders may continue once the process is asked to end.
    pub grace: Duration,
    /// With `once`: whether a pass without failures is reported as well.
    pub verbose: bool,
    /// With `once`: the output format.
    pub format: Format,
    /// Where metrics are served, as `host:port`.
    pub metrics: Option<String>,
    /// With `once`: the file that metrics are written to.
    pub metrics_file: Option<PathBuf>,
    /// With `once`: a saved plan to carry out instead of what is due.
    pub plan: Option<PathBuf>,
}
