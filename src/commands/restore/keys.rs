//! `zsync restore --join-keys`: has restored datasets use the same encryption keys as the lost ones.

use std::sync::Arc;

use crate::cli::exit::Error;
use crate::cli::report;
use crate::commands::restore::settings::{RestoreSettings, confirm, connect};
use crate::fleet::restore as orders;
use crate::model::{KeyJoin, Place};
use crate::sys::runtime;
use crate::zfs::Zfs;

/// Shows which keys would be joined, and joins them.
pub(super) fn run<Z: Zfs>(
    settings: &RestoreSettings,
    tree: &Place,
    zfs: Arc<Z>,
    is_dry_run: bool,
    is_confirmed: bool,
) -> Result<(), Error> {
    let ask = |count| if is_confirmed { Ok(()) } else { confirm("Join the keys of", count) };
    let joined =
        runtime::block_on(join(settings, tree, zfs, is_dry_run, ask, |line| report::print(&format!("{line}\n"))));
    let problems = joined.map_err(Error::unable)?;
    problems.iter().for_each(report::print_error);
    if problems.is_empty() { Ok(()) } else { Err(Error::reported()) }
}

/// Joins the keys within a tree, unless `ask`, which gets the number of datasets, refuses that. `tell` gets a line for
/// each dataset. Returns what is impossible or went wrong.
pub async fn join<Z: Zfs>(
    settings: &RestoreSettings,
    tree: &Place,
    zfs: Arc<Z>,
    is_dry_run: bool,
    ask: impl Fn(usize) -> anyhow::Result<()>,
    tell: impl Fn(String),
) -> anyhow::Result<Vec<String>> {
    let (policy, agents, _) = connect(settings, zfs).await?;
    let asked = orders::join_keys(&policy, &agents, tree, None).await.map_err(anyhow::Error::msg)?;
    let (possible, impossible): (Vec<KeyJoin>, Vec<KeyJoin>) =
        asked.into_iter().partition(|join| join.problem.is_none());
    let mut problems: Vec<String> = impossible.into_iter().map(|join| failure(tree, join)).collect();
    for KeyJoin { dataset, root, .. } in &possible {
        tell(format!("{}:{dataset} gets the key of {root}", tree.host));
    }
    if possible.is_empty() && problems.is_empty() {
        tell(format!("nothing to do: no restored dataset within {tree} has a key in place of the one it used before"));
    }
    if is_dry_run || possible.is_empty() {
        return Ok(problems);
    }
    ask(possible.len())?;
    let these = possible.into_iter().map(|join| join.dataset).collect();
    match orders::join_keys(&policy, &agents, tree, Some(these)).await {
        Err(problem) => problems.push(problem),
        Ok(joins) => {
            for join in joins {
                match join.problem {
                    None => tell(format!("{}:{} uses the key of {}", tree.host, join.dataset, join.root)),
                    Some(_) => problems.push(failure(tree, join)),
                }
            }
        }
    }
    Ok(problems)
}

fn failure(tree: &Place, KeyJoin { dataset, root, problem }: KeyJoin) -> String {
    format!("cannot give {}:{dataset} the key of {root}: {}", tree.host, problem.unwrap_or_default())
}
