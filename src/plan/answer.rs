//! Runs `zsync plan`: gathers the inventory, decides, and prints the result.

use std::collections::BTreeMap;
use std::io::{self, BufWriter};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use crate::catalog::{CatalogError, Holder, file, open};
use crate::cli::exit::{Error, Exit};
use crate::cli::report::{self, Format};
use crate::config::{self, Fingerprint};
use crate::director::bars;
use crate::director::connect::{OwnHost, dispatcher, load_tls, open_catalog, with_services};
use crate::fleet::Dispatcher;
use crate::fleet::estimate::{Answers, Questions};
use crate::fleet::known::{self, Asked};
use crate::fleet::obstacles::Obstacles;
use crate::fleet::poll::{self, PollOptions};
use crate::model::{Counter, DatasetName, HostName, Inventory};
use crate::plan::orders::{self, Decided, PlanInput, write_whole};
use crate::plan::settings::{InventorySource, PlanMode, PlanSettings};
use crate::plan::{compare, side_by_side, simulate, table};
use crate::policy::Policy;
use crate::sys::clock;
use crate::zfs::{ReadOnly, Zfs, ZfsRead};

/// Previews after asking the hosts, and writes nothing: `zfs` can only be read, the catalog is not opened for writing,
/// and no lock is held.
pub async fn ask(settings: PlanSettings, zfs: impl ZfsRead) -> Result<(), Error> {
    let (policy, fingerprint) = load(&settings)?;
    let shared = Arc::new(policy.clone());
    let tls = load_tls(&shared).map_err(Error::unable)?;
    let own = OwnHost { name: &settings.host, local: &settings.local_file, state: None };
    let zfs = Arc::new(ReadOnly::new(zfs));
    let dispatcher = Arc::new(dispatcher(own, &shared, tls, Arc::clone(&zfs)).await);
    let (shared, services) = with_services(shared, &dispatcher).await.map_err(Error::unable)?;
    let remembered = open::inventory(&shared.catalog).await.map_err(Error::unable)?;
    let Asked { inventory, obstacles } = {
        let asked = Counter::default();
        let asking = known::from_hosts(&shared, &dispatcher, remembered, services.absent, &asked);
        bars::counted("hosts asked", &asked, asking).await
    };
    let unseen = obstacles.unseen.clone();
    let input = PlanInput { policy, fingerprint, inventory, obstacles, estimates: Answers::new() };
    let (surveyed, _) = decide_and_estimate(&settings, input, &shared, &dispatcher).await;
    conclude(&settings, surveyed, &unseen, &*zfs).await
}

/// Previews from the catalog or from a file. Nothing is changed anywhere: `zfs` can only be read.
pub async fn preview<Z: ZfsRead>(settings: PlanSettings, zfs: &Z) -> Result<(), Error> {
    let (policy, fingerprint) = load(&settings)?;
    let listed = settings.at.unwrap_or_else(clock::now);
    let (inventory, estimates) = match &settings.source {
        InventorySource::File(path) => (known::from_file(path, listed).map_err(Error::unable)?, Answers::new()),
        InventorySource::Catalog | InventorySource::Hosts | InventorySource::Agents => {
            known::from_catalog(&policy, &settings.host, settings.local.as_ref(), zfs).await.map_err(Error::unable)?
        }
    };
    let input = PlanInput { policy, fingerprint, inventory, obstacles: Obstacles::default(), estimates };
    let zfs = (!matches!(settings.source, InventorySource::File(_))).then_some(zfs);
    answer(&settings, input, zfs).await
}

/// Previews after polling the agents. Their listings are written to the catalog.
pub async fn survey<Z: Zfs>(settings: PlanSettings, zfs: Arc<Z>) -> Result<(), Error> {
    let (policy, fingerprint) = load(&settings)?;
    // The catalog is closed before anything is printed: a pager may keep this process waiting for hours, and meanwhile
    // each pass from cron would do nothing.
    let (surveyed, unseen) = ask_agents(&settings, policy, fingerprint, Arc::clone(&zfs)).await?;
    conclude(&settings, surveyed, &unseen, &*zfs).await
}

/// What the agents were asked for.
enum Surveyed {
    /// Their listings, and the sizes of the orders that were decided from them.
    Decided(Box<Decided>),
    /// Their listings.
    Polled(Box<PlanInput>),
}

/// Hosts that could not be listed, with the reason.
type Unseen = BTreeMap<HostName, String>;

/// Asks the agents, and stores their answers in the catalog. The catalog is open only while this runs, and nothing is
/// printed by it.
async fn ask_agents<Z: Zfs>(
    settings: &PlanSettings,
    policy: Policy,
    fingerprint: Fingerprint,
    zfs: Arc<Z>,
) -> Result<(Surveyed, Unseen), Error> {
    let shared = Arc::new(policy.clone());
    // While this holds the catalog, a pass from cron does nothing.
    let state = open_catalog(&shared, Holder::Pass).await.map_err(|error| match error {
        // Stopping a director in order to preview what it does would be a poor way out.
        CatalogError::Locked { pid, .. } => {
            let pid = pid.map_or_else(String::new, |pid| format!(" (process {pid})"));
            Error::unable(anyhow::anyhow!(
                "cannot write the answers of the agents while another zsync{pid} is using the catalog; hint: add --dry-run, \
                 which writes nothing"
            ))
        }
        error => Error::unable(error),
    })?;
    let tls = load_tls(&shared).map_err(Error::unable)?;
    // A preview publishes nothing: this host's agent or director does that.
    let own = OwnHost { name: &settings.host, local: &settings.local_file, state: None };
    let dispatcher = Arc::new(dispatcher(own, &shared, tls, zfs).await);
    let (shared, services) = with_services(shared, &dispatcher).await.map_err(Error::unable)?;
    let unseen = {
        let polled = Counter::default();
        let options = PollOptions { services, resync_since: Some(clock::now()), fence: None };
        let polling = poll::poll_all(&shared, &dispatcher, &state, options, &polled);
        bars::counted("hosts polled", &polled, polling).await.map_err(Error::unable)?.unseen
    };
    let inventory = std::mem::take(&mut *state.inventory());
    let obstacles = Obstacles { unseen: unseen.clone(), ..Obstacles::default() };
    let input = PlanInput { policy, fingerprint, inventory, obstacles, estimates: Answers::new() };
    let (surveyed, answers) = decide_and_estimate(settings, input, &shared, &dispatcher).await;
    if let Some(answers) = answers {
        state.store_estimates(answers).await.map_err(Error::unable)?;
    }
    Ok((surveyed, unseen))
}

/// Decides, and asks the agents for estimates of the orders, if the orders are to be printed with them.
async fn decide_and_estimate<Z: Zfs>(
    settings: &PlanSettings,
    input: PlanInput,
    policy: &Arc<Policy>,
    dispatcher: &Arc<Dispatcher<Z>>,
) -> (Surveyed, Option<Answers>) {
    let explain = match &settings.mode {
        // If the filter matches nothing, that is reported where the plan would be printed.
        PlanMode::Orders { explain, .. }
            if settings.format != Format::Ndjson && settings.filter.check(&input.policy, &input.inventory).is_ok() =>
        {
            *explain
        }
        _ => return (Surveyed::Polled(Box::new(input)), None),
    };
    let at = settings.at.unwrap_or_else(clock::now);
    // Later orders are predicted in a copy. The agents are asked about the present inventory.
    let inventory = input.inventory.clone();
    let mut decided = orders::decided(settings, input, at, explain);
    let document = &mut decided.document;
    let questions = Questions::about(&mut document.orders, policy, &inventory);
    let estimated = Counter::default();
    let asking = questions.ask(policy, dispatcher, &estimated);
    let answers = bars::counted("orders estimated", &estimated, asking).await;
    document.estimate = Some(questions.put(&mut document.orders, &answers));
    (Surveyed::Decided(Box::new(decided)), Some(answers))
}

/// Reports the hosts that could not be listed, and prints the preview.
async fn conclude(
    settings: &PlanSettings,
    surveyed: Surveyed,
    unseen: &Unseen,
    zfs: &impl ZfsRead,
) -> Result<(), Error> {
    for (host, reason) in unseen {
        report::print_error(&format_args!("cannot list the snapshots of {host}: {reason}"));
    }
    let result = match surveyed {
        Surveyed::Decided(decided) => print_orders(settings, *decided, Some(zfs)).await,
        Surveyed::Polled(input) => answer(settings, *input, Some(zfs)).await,
    };
    match result {
        // A host that was not listed may have orders that are not known, so status 1 takes precedence over status 3.
        Ok(()) | Err(Error { exit: Exit::Orders, .. }) if !unseen.is_empty() => Err(Error::reported()),
        result => result,
    }
}

/// Saves the plan if the settings ask for it, and prints it. `zfs` is that of this host, `None` if only a file counts.
async fn print_orders(settings: &PlanSettings, mut decided: Decided, zfs: Option<&impl ZfsRead>) -> Result<(), Error> {
    if let (Some(explain), Some(zfs)) = (&mut decided.document.explain, zfs) {
        explain.name_holds(&settings.host, zfs).await;
    }
    if let PlanMode::Orders { out: Some(path), .. } = &settings.mode {
        orders::save(path, &decided.saved)?;
    }
    exit(settings, orders::print(settings, &decided.document))
}

fn load(settings: &PlanSettings) -> Result<(Policy, Fingerprint), Error> {
    config::load_policy_with_fingerprint(&settings.config).map_err(Error::unable)
}

/// Decides and prints. `zfs` is that of this host, `None` if only a file counts.
async fn answer(settings: &PlanSettings, input: PlanInput, zfs: Option<&impl ZfsRead>) -> Result<(), Error> {
    settings.filter.check(&input.policy, &input.inventory).map_err(Error::unable)?;
    let at = settings.at.unwrap_or_else(clock::now);
    let wants = |host: &HostName, dataset: &DatasetName| settings.filter.wants(host, dataset);
    let has_orders = match &settings.mode {
        PlanMode::Orders { out, .. } if settings.format == Format::Ndjson => {
            orders::print_lines(settings, &input, at, out.as_deref())?
        }
        PlanMode::Orders { explain, .. } => {
            return print_orders(settings, orders::decided(settings, input, at, *explain), zfs).await;
        }
        PlanMode::Export(path) => {
            export(path, &input.inventory).map_err(Error::unable)?;
            false
        }
        PlanMode::Simulate { length, other: None } => {
            let simulation = simulate::simulate(&input.policy, input.inventory, at, *length, wants);
            report::print(&match settings.format {
                Format::Table => table::simulation(&simulation, report::width()),
                Format::Json => report::json(&simulation),
                Format::Ndjson => report::ndjson(&simulation.days) + &report::ndjson(&simulation.end),
            });
            false
        }
        PlanMode::Simulate { length, other: Some(other) } => {
            let other = config::load_other_policy(other, "--compare").map_err(Error::unable)?;
            let there = simulate::simulate(&other, input.inventory.clone(), at, *length, wants);
            let here = simulate::simulate(&input.policy, input.inventory, at, *length, wants);
            let both = side_by_side::Simulations { this: here, other: there };
            report::print(&match settings.format {
                Format::Table => side_by_side::table(&both, report::width()),
                Format::Json => report::json(&both),
                Format::Ndjson => side_by_side::lines(&both),
            });
            both.differ()
        }
        PlanMode::Compare { other, explain } => {
            let other = config::load_other_policy(other, "--compare").map_err(Error::unable)?;
            let mut comparison = compare::compare(&input.policy, &other, &input.inventory, at);
            comparison.differences.retain(|difference| {
                let (host, dataset) = difference.place();
                wants(host, dataset)
            });
            report::print(&match settings.format {
                Format::Table => table::comparison(&comparison, *explain, report::width()),
                Format::Json => report::json(&comparison),
                Format::Ndjson => report::ndjson(&comparison.differences),
            });
            !comparison.differences.is_empty()
        }
    };
    exit(settings, has_orders)
}

fn exit(settings: &PlanSettings, has_orders: bool) -> Result<(), Error> {
    if settings.exit_code && has_orders { Err(Error::exit(Exit::Orders)) } else { Ok(()) }
}

fn export(path: &Path, inventory: &Inventory) -> anyhow::Result<()> {
    if path == Path::new("-") {
        return match file::write(inventory, BufWriter::new(io::stdout().lock())) {
            // A reader may stop early.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result.context("cannot write to standard output"),
        };
    }
    write_whole(path, |file| file::write(inventory, BufWriter::new(file)))
}
