//! `zsync status`: the state of the fleet, from the catalog, the director's status file and the agents that answer.

mod query;
mod render;
mod unsent;

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

pub use query::{FailedOrder, Status, StatusSettings, query};
pub use render::{as_lines, as_text};

use crate::cli::args::{CommonArgs, PolicyArgs, duration};
use crate::cli::exit::Error;
use crate::cli::report::{self, Format};
use crate::cli::settings::{host_name_of, local_if_exists};
use crate::model::{DatasetName, HostName};
use crate::sys::runtime;
use crate::zfs::Zfs;
use crate::zfs::system::System;

/// Arguments of `zsync status`.
#[derive(Args, Debug)]
#[command(
    after_help = "Nothing is changed. Exit status: 0 success; 2 nothing could be done. For monitoring, use zsync check."
)]
pub struct StatusArgs {
    /// The policy's file.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Show only datasets of this host, and datasets that are sent to it
    #[arg(long, value_name = "NAME")]
    pub host: Option<HostName>,
    /// Show only this dataset and its descendants
    #[arg(long, value_name = "DATASET")]
    pub dataset: Option<DatasetName>,
    /// Ask no agents; show the state that the last pass found
    #[arg(long)]
    pub offline: bool,
    /// Refresh every 5 seconds, or at this interval
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "5s", value_parser = duration)]
    pub watch: Option<Duration>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Options that nearly every subcommand has.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Prints the status, once or at intervals.
pub fn run(args: StatusArgs) -> Result<(), Error> {
    let zfs = Arc::new(System::new(&args.common.zfs));
    let (watch, format) = (args.watch, args.format);
    let settings = StatusSettings {
        host_name: host_name_of(&args.common)?,
        local: local_if_exists(&args.common)?,
        config: args.policy.config,
        local_file: args.common.local,
        host: args.host,
        dataset: args.dataset,
        offline: args.offline,
    };
    runtime::block_on(show(&settings, watch, format, zfs))
}

async fn show<Z: Zfs>(
    settings: &StatusSettings,
    watch: Option<Duration>,
    format: Format,
    zfs: Arc<Z>,
) -> Result<(), Error> {
    let mut reported: Option<String> = None;
    let mut is_first = true;
    loop {
        match query(settings, Arc::clone(&zfs)).await {
            Ok(status) => {
                reported = None;
                if !print(&status, format, watch.is_some()) {
                    // The reader has closed the pipe.
                    return Ok(());
                }
            }
            Err(error) if is_first => return Err(Error::unable(error)),
            // The next query may succeed. The same error is reported once.
            Err(error) => {
                let error = format!("{error:#}");
                if reported.as_ref() != Some(&error) {
                    report::print_error(&error);
                }
                reported = Some(error);
            }
        }
        is_first = false;
        let Some(interval) = watch else { return Ok(()) };
        runtime::sleep(interval).await;
    }
}

/// Prints the status. Returns false if the reader has closed the pipe.
fn print(status: &Status, format: Format, is_repeated: bool) -> bool {
    let text = match format {
        Format::Table => render::as_text(status, report::width()),
        Format::Json => report::json(status),
        Format::Ndjson => render::as_lines(status),
    };
    if is_repeated && format == Format::Table && std::io::stdout().is_terminal() {
        // Moves the cursor to the top left, and erases the screen.
        report::try_print(&format!("\x1b[H\x1b[2J{text}"))
    } else {
        report::try_print(&text)
    }
}
