//! `zsync fences`: shows the fences of directors that this host's agent has seen, and makes it forget them.

use anyhow::anyhow;
use clap::Args;

use crate::cli::args::StateArgs;
use crate::cli::exit::Error;
use crate::cli::report;
use crate::host::publish::fences::{self, SeenFences};
use crate::model::HostName;

/// Arguments of `zsync fences`.
#[derive(Args, Debug)]
#[command(
    after_help = "Run this on the host whose agent refuses orders, as the user that runs the agent. The agent need \
                        not be restarted.\nzsync-fences(8) says when --forget is safe.\n\n\
                        Exit status: 0 success; 2 nothing could be done."
)]
pub struct FencesArgs {
    /// Forget the fences, so that the next order is accepted whichever director gives it
    #[arg(long)]
    pub forget: bool,
    /// With --forget: forget only the fences of the director on this host
    #[arg(long, value_name = "HOST", requires = "forget")]
    pub director: Option<HostName>,
    /// The folder for state that must survive restarts.
    #[command(flatten)]
    pub state: StateArgs,
}

/// Prints the fences, or forgets them.
pub fn run(args: &FencesArgs) -> Result<(), Error> {
    let state = &args.state.state;
    let unable = |reason: String| Error::unable(anyhow!("{reason}"));
    if !args.forget {
        report::print(&shown(&fences::read(state).map_err(unable)?));
        return Ok(());
    }
    let forgotten = fences::forget(state, args.director.as_ref()).map_err(unable)?;
    let mut text: String = forgotten.iter().map(|of| format!("forgot the fences of {}\n", of.name())).collect();
    if forgotten.is_empty() {
        text = "no such fence was saved; a running agent also forgets those that it could not save\n".to_owned();
    }
    report::print(&text);
    Ok(())
}

fn shown(seen: &SeenFences) -> String {
    if seen.directors.is_empty() && seen.refused.is_none() {
        return "the agent of this host has seen no fence\n".to_owned();
    }
    let when = |at: chrono::DateTime<chrono::Utc>| at.format("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut rows = Vec::new();
    for of in &seen.directors {
        for (number, fence) in of.catalogs.iter().enumerate() {
            let is_present = number + 1 == of.catalogs.len();
            rows.push(vec![
                of.director.as_ref().map_or_else(|| "(unknown)".to_owned(), ToString::to_string),
                fence.catalog.to_string(),
                fence.index.to_string(),
                fence.at.map(when).unwrap_or_default(),
                if is_present { String::new() } else { "replaced".to_owned() },
            ]);
        }
    }
    let mut text = String::new();
    if !rows.is_empty() {
        text = report::table(&["DIRECTOR", "CATALOG", "FENCE", "SINCE", ""], &[2], rows);
    }
    if let Some(refused) = &seen.refused {
        text.push_str(&format!("since {} orders have been refused: {}\n", when(refused.at), refused.reason));
    }
    text
}
