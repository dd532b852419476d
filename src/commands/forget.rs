//! `zsync forget`: lists what transfers have left in ZFS for destinations that the policy no longer has, and removes it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;

use crate::actions::{Leftover, PolicyIndex, copies_given_up, in_words, leftovers, leftovers_for, senders_to};
use crate::cli::args::{CommonArgs, PolicyArgs, StateArgs};
use crate::cli::exit::Error;
use crate::cli::report;
use crate::cli::settings::{host_name_of, local_if_exists};
use crate::config;
use crate::director::connect::{OwnHost, dispatcher, load_tls, with_services};
use crate::fleet::forget::remove;
use crate::fleet::known::{self, Overview};
use crate::fleet::{Dispatcher, ask_all};
use crate::model::{HostName, Inventory, Place, SentTo, hint};
use crate::policy::{Local, Policy};
use crate::sys::runtime;
use crate::zfs::Zfs;
use crate::zfs::system::System;

/// Arguments of `zsync forget`.
#[derive(Args, Debug)]
#[command(
    after_help = "Without --yes, nothing is changed. What belongs to a destination of the policy is never removed, \
                        and no snapshot is destroyed.\n\n\
                        Exit status: 0 success; 1 a host could not be listed, or something could not be removed; \
                        2 nothing could be done."
)]
pub struct ForgetArgs {
    /// The destination that is given up, with all datasets below it; without it, all such destinations are listed
    #[arg(value_name = "HOST:DATASET", required_if_eq("yes", "true"))]
    pub destination: Option<SentTo>,
    /// Release the holds and destroy the bookmarks
    #[arg(long)]
    pub yes: bool,
    /// The policy's file.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// The folder for state that must survive restarts.
    #[command(flatten)]
    pub state: StateArgs,
    /// Options that nearly every subcommand has.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// The settings of `zsync forget`.
#[derive(Clone, Debug)]
pub struct ForgetSettings {
    /// The path of `server.json`.
    pub config: PathBuf,
    /// The path of `local.json`, for this host's own agent.
    pub local_file: PathBuf,
    /// Its content, if the file exists.
    pub local: Option<Local>,
    /// The folder for state that must survive restarts.
    pub state: PathBuf,
    /// This host's name in the policy.
    pub host_name: HostName,
    /// The destination that is given up.
    pub destination: Option<SentTo>,
    /// Whether anything is removed.
    pub yes: bool,
}

/// What was found or done.
#[derive(Debug, Default)]
pub struct ForgetReport {
    /// The lines for standard output.
    pub lines: Vec<String>,
    /// What went wrong.
    pub problems: Vec<String>,
}

/// Lists what is left, or removes it.
pub fn run(args: ForgetArgs) -> Result<(), Error> {
    let zfs = Arc::new(System::new(&args.common.zfs));
    let settings = ForgetSettings {
        host_name: host_name_of(&args.common)?,
        local: local_if_exists(&args.common)?,
        config: args.policy.config,
        local_file: args.common.local,
        state: args.state.state,
        destination: args.destination,
        yes: args.yes,
    };
    let ForgetReport { lines, problems } = runtime::block_on(forget(&settings, zfs)).map_err(Error::unable)?;
    report::print(&lines.iter().map(|line| format!("{line}\n")).collect::<String>());
    problems.iter().for_each(report::print_error);
    if problems.is_empty() { Ok(()) } else { Err(Error::reported()) }
}

/// What is left for a destination that the policy no longer has.
struct Found {
    sources: Vec<Leftover>,
    copies: Vec<Place>,
}

/// Lists what is left for the destination, or for all, and removes it if the settings say so.
pub async fn forget<Z: Zfs>(settings: &ForgetSettings, zfs: Arc<Z>) -> anyhow::Result<ForgetReport> {
    // A user waits for the result.
    let policy = Arc::new(Policy { retry_for: Duration::ZERO, ..config::load_policy(&settings.config)? });
    let Overview { inventory, unseen, .. } =
        known::overview(&policy, &settings.host_name, settings.local.as_ref(), &*zfs).await?;
    let own = OwnHost { name: &settings.host_name, local: &settings.local_file, state: Some(&settings.state) };
    let agents = Arc::new(dispatcher(own, &policy, load_tls(&policy)?, zfs).await);
    let (policy, _) = with_services(policy, &agents).await?;
    let own_problem = unseen.get(&settings.host_name).cloned();
    let (inventory, mut problems) = listed_now(&policy, &agents, inventory, own_problem).await;
    let index = PolicyIndex::new(&policy);
    let mut sources = leftovers(&policy, &index, &inventory);
    let copies = copies_given_up(&policy, &index, &inventory, settings.destination.as_ref());
    if let Some(to) = &settings.destination {
        sources = leftovers_for(&policy, &index, &inventory, to);
        let senders = senders_to(&policy, &index, &inventory, to);
        if let (true, Some(sender)) = (sources.is_empty() && copies.is_empty(), senders.first()) {
            return Err(anyhow!(
                "cannot forget {to}: the policy sends {sender} there; hint: remove it from server.json first"
            ));
        }
    }
    let found = Found { sources, copies };
    let mut report = ForgetReport::default();
    if settings.yes {
        found.remove(&policy, &agents, &mut report).await;
    } else {
        report.lines = found.lines(settings.destination.as_ref());
    }
    problems.append(&mut report.problems);
    Ok(ForgetReport { problems, ..report })
}

/// Replaces what the catalog knows by what hosts have now. Hosts that cannot be listed count as not listed. Returns what
/// could not be listed as well.
async fn listed_now<Z: Zfs>(
    policy: &Arc<Policy>,
    agents: &Arc<Dispatcher<Z>>,
    mut inventory: Inventory,
    own_problem: Option<String>,
) -> (Inventory, Vec<String>) {
    let mut failed: BTreeMap<HostName, String> =
        own_problem.map(|reason| (agents.here.clone(), reason)).into_iter().collect();
    for (host, answer) in ask_all(policy, agents).await {
        match answer {
            Ok(now) => known::replace(&mut inventory, &host, now),
            Err(reason) => drop(failed.insert(host, reason)),
        }
    }
    for host in failed.keys() {
        inventory.hosts.entry(host.clone()).or_default().observed = None;
    }
    let of_hosts = failed.iter().map(|(host, reason)| format!("cannot list the snapshots of {host}: {reason}"));
    let mut problems: Vec<String> = of_hosts.collect();
    for (host, known) in inventory.hosts.iter().filter(|(_, known)| known.observed.is_some()) {
        let of_pools = known.unlisted.iter();
        problems.extend(of_pools.map(|(pool, reason)| format!("cannot list the pool {pool} of {host}: {reason}")));
    }
    (inventory, problems)
}

impl Found {
    /// The list for people.
    fn lines(&self, wanted: Option<&SentTo>) -> Vec<String> {
        let mut rows: Vec<Vec<String>> = Vec::new();
        for left in &self.sources {
            let what = in_words(left.holds, left.bookmarks);
            rows.push(vec![left.to.to_string(), format!("{}:{}", left.host, left.dataset), what]);
        }
        for copy in &self.copies {
            rows.push(vec![copy.to_string(), copy.to_string(), "holds of the copy itself (zsync:from)".to_owned()]);
        }
        if rows.is_empty() {
            let of = wanted.map_or_else(|| "destinations that the policy no longer has".to_owned(), SentTo::to_string);
            return vec![format!("nothing is left for {of}")];
        }
        let table = report::table(&["DESTINATION", "LEFT ON", "WHAT"], &[], rows);
        let mut lines: Vec<String> = table.lines().map(str::to_owned).collect();
        let of = wanted.map_or_else(|| "HOST:DATASET".to_owned(), hint::word);
        lines.push(format!("to remove it: zsync forget {of} --yes"));
        lines
    }

    /// Gives the orders that remove it.
    async fn remove<Z: Zfs>(self, policy: &Policy, agents: &Dispatcher<Z>, report: &mut ForgetReport) {
        if self.sources.is_empty() && self.copies.is_empty() {
            report.lines.push("nothing was left".to_owned());
        }
        for result in remove(policy, agents, self.sources, self.copies).await {
            match result {
                Ok(line) => report.lines.push(line),
                Err(problem) => report.problems.push(problem),
            }
        }
    }
}
