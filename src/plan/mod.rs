//! `zsync plan`: the orders that the director would give, and why; over time, and by another policy.
//!
//! A dry run is handed a catalog that can only be read and a ZFS that can only be listed. Without `--dry-run` the
//! agents are asked what they hold, which is written to the catalog; no other order is given.

pub mod compare;
mod document;
pub mod foresee;
mod orders;
mod side_by_side;
pub mod simulate;
mod table;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use chrono::{DateTime, TimeDelta, Utc};

use crate::actions::{Notice, Order};
use crate::catalog::{Holder, file};
use crate::cli::exit::{Error, Exit};
use crate::cli::report;
use crate::cli::report::Format;
use crate::config::Fingerprint;
use crate::director::bars;
use crate::fleet::estimate::{Answers, Questions};
use crate::fleet::{known, poll};
use crate::model::{Counter, DatasetName, HostName, Inventory};
use crate::plan::foresee::PlannedOrder;
use crate::policy::{Local, Policy};
use crate::sys::{clock, files};
use crate::zfs::{Zfs, ZfsRead};
use crate::{config, director};

/// What `zsync plan` is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `server.json`.
    pub config: PathBuf,
    /// `local.json`.
    pub local: PathBuf,
    /// What it says, where there is one.
    pub opened: Option<Local>,
    /// This host's name in the policy.
    pub here: HostName,
    /// Where the snapshots are known from.
    pub source: Source,
    /// What is asked.
    pub question: Question,
    /// What of it is told.
    pub filter: Filter,
    /// How to print.
    pub format: Format,
    /// The moment to decide for.
    pub at: Option<DateTime<Utc>>,
    /// Whether orders make the exit status 3.
    pub exit_code: bool,
}

/// Where the snapshots are known from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The policy's catalog, and for this host its ZFS.
    Catalog,
    /// An exported catalog, `-` being standard input, and nothing else.
    File(PathBuf),
    /// The agents.
    Agents,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// What would be done now?
    Orders {
        /// And why is everything else not done?
        explain: bool,
        /// A file for the plan, to be carried out.
        out: Option<PathBuf>,
    },
    /// What snapshots are there? `-` is standard output.
    Export(PathBuf),
    /// What would be done, and be left?
    Simulate {
        /// For so long.
        length: TimeDelta,
        /// By another policy as well: its file.
        other: Option<PathBuf>,
    },
    /// What would another policy do?
    Compare {
        /// Its file.
        other: PathBuf,
        /// Whether every snapshot is named.
        explain: bool,
    },
}

/// What is told of.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only orders to this host.
    pub host: Option<HostName>,
    /// Only orders about this dataset and what is below it.
    pub dataset: Option<DatasetName>,
}

impl Filter {
    /// Whether orders about a dataset are wanted.
    #[must_use]
    pub fn wants(&self, host: &HostName, dataset: &DatasetName) -> bool {
        self.wants_host(host) && self.dataset.as_ref().is_none_or(|root| dataset.is_within(root))
    }

    fn wants_host(&self, host: &HostName) -> bool {
        self.host.as_ref().is_none_or(|wanted| wanted == host)
    }

    fn wants_notice(&self, notice: &Notice) -> bool {
        match &notice.dataset {
            Some(dataset) => self.wants(&notice.host, dataset),
            None => self.wants_host(&notice.host),
        }
    }

    /// The wanted part of an order.
    fn narrow(&self, mut order: Order) -> Option<Order> {
        match &mut order {
            Order::Take { host, datasets, .. } => {
                datasets.retain(|dataset| self.wants(host, dataset));
                (!datasets.is_empty()).then_some(order)
            }
            Order::Send { host, dataset, .. } | Order::Destroy { host, dataset, .. } => {
                self.wants(host, dataset).then_some(order)
            }
        }
    }

    fn narrow_all(&self, orders: Vec<Order>) -> Vec<Order> {
        orders.into_iter().filter_map(|order| self.narrow(order)).collect()
    }

    fn narrow_foreseen(&self, orders: Vec<PlannedOrder>) -> Vec<PlannedOrder> {
        let narrow = |PlannedOrder { order, after, estimate }| {
            self.narrow(order).map(|order| PlannedOrder { order, after, estimate })
        };
        orders.into_iter().filter_map(narrow).collect()
    }

    /// A name that neither the policy nor the inventory knows is a slip, not a quiet host.
    fn check(&self, policy: &Policy, inventory: &Inventory) -> anyhow::Result<()> {
        let hosts = policy.hosts_named();
        if let Some(host) = self.host.as_ref().filter(|h| !hosts.contains(*h) && !inventory.hosts.contains_key(*h)) {
            let known: Vec<String> = hosts.iter().map(ToString::to_string).collect();
            return Err(anyhow!("--host: the policy does not name {host}, only {}", known.join(", ")));
        }
        let Some(root) = &self.dataset else { return Ok(()) };
        let targets = policy.datasets.iter().flat_map(|e| &e.policies).flat_map(|p| &p.sync_on).map(|t| &t.dataset);
        let mut named = policy.datasets.iter().map(|e| &e.dataset).chain(targets);
        let known = inventory.hosts.values().any(|h| h.datasets.contains_key(root));
        if known || named.any(|dataset| dataset.is_within(root) || root.is_within(dataset)) {
            return Ok(());
        }
        Err(anyhow!("--dataset: neither the policy nor any host knows {root}"))
    }
}

/// Everything that an answer is made from.
struct Known {
    policy: Policy,
    fingerprint: Fingerprint,
    inventory: Inventory,
    /// Hosts that were asked and did not answer, with the reason.
    unseen: BTreeMap<HostName, String>,
    /// What agents estimated for an earlier plan.
    estimates: Answers,
}

/// Answers from what is known already: nothing is changed anywhere.
pub async fn preview(settings: Settings, zfs: &impl ZfsRead) -> Result<(), Error> {
    let (policy, fingerprint) = load(&settings)?;
    let listed = settings.at.unwrap_or_else(clock::now);
    let (inventory, estimates) = match &settings.source {
        Source::File(path) => (known::from_file(path, listed).map_err(Error::unable)?, Answers::new()),
        Source::Catalog | Source::Agents => known::from_catalog(&settings, &policy, zfs).await?,
    };
    answer(&settings, Known { policy, fingerprint, inventory, unseen: BTreeMap::new(), estimates })
}

/// Asks the agents first, and has the catalog know what they say.
pub async fn survey<Z: Zfs>(settings: Settings, zfs: Arc<Z>) -> Result<(), Error> {
    let (policy, fingerprint) = load(&settings)?;
    let shared = Arc::new(policy.clone());
    // A pass from cron makes way for it.
    let world = director::open_catalog(&shared, Holder::Pass).await.map_err(Error::unable)?;
    let tls = director::load_tls(&shared).map_err(Error::unable)?;
    // What this host holds is its agent's or its director's to publish.
    let own = director::Own { here: &settings.here, local: &settings.local, state: None };
    let dispatcher = Arc::new(director::dispatcher(own, &shared, tls, zfs).await);
    let (shared, standing) = director::with_services(shared, &dispatcher).await.map_err(Error::unable)?;
    let unseen = {
        let asked = Counter::default();
        let wish = poll::PollOptions { standing, resync_since: Some(clock::now()), fence: None };
        let looking = poll::look(&shared, &dispatcher, &world, wish, &asked);
        bars::counted("hosts asked", &asked, looking).await.map_err(Error::unable)?.unseen
    };
    for (host, reason) in &unseen {
        report::complain(&format_args!("{host} cannot be looked at: {reason}"));
    }
    let failed = !unseen.is_empty();
    let inventory = std::mem::take(&mut *world.inventory());
    let known = Known { policy, fingerprint, inventory, unseen, estimates: Answers::new() };
    let answered = match &settings.question {
        Question::Orders { explain, out } if settings.format != Format::Ndjson => {
            settings.filter.check(&known.policy, &known.inventory).map_err(Error::unable)?;
            let at = settings.at.unwrap_or_else(clock::now);
            // What follows is predicted on a world of its own; the agents are asked about this one.
            let inventory = known.inventory.clone();
            let mut document = orders::document(&settings, known, at, *explain, out.as_deref())?;
            let questions = Questions::about(&mut document.orders, &shared, &inventory);
            let asked = Counter::default();
            let asking = questions.ask(&shared, &dispatcher, &asked);
            let answers = bars::counted("orders estimated", &asked, asking).await;
            document.estimate = Some(questions.put(&mut document.orders, &answers));
            world.estimated(answers).await.map_err(Error::unable)?;
            ended(&settings, orders::tell(&settings, &document))
        }
        _ => answer(&settings, known),
    };
    match answered {
        // That there are orders says less than that there may be more.
        Ok(()) | Err(Error { exit: Exit::Orders, .. }) if failed => Err(Error::told()),
        result => result,
    }
}

fn load(settings: &Settings) -> Result<(Policy, Fingerprint), Error> {
    config::load_policy_with_fingerprint(&settings.config).map_err(Error::unable)
}

fn answer(settings: &Settings, known: Known) -> Result<(), Error> {
    settings.filter.check(&known.policy, &known.inventory).map_err(Error::unable)?;
    let at = settings.at.unwrap_or_else(clock::now);
    let wants = |host: &HostName, dataset: &DatasetName| settings.filter.wants(host, dataset);
    let something = match &settings.question {
        Question::Orders { out, .. } if settings.format == Format::Ndjson => {
            orders::print_lines(settings, &known, at, out.as_deref())?
        }
        Question::Orders { explain, out } => {
            orders::tell(settings, &orders::document(settings, known, at, *explain, out.as_deref())?)
        }
        Question::Export(path) => {
            export(path, &known.inventory).map_err(Error::unable)?;
            false
        }
        Question::Simulate { length, other: None } => {
            let simulation = simulate::simulate(&known.policy, known.inventory, at, *length, wants);
            report::print(&match settings.format {
                Format::Table => table::simulation(&simulation, report::width()),
                Format::Json => report::json(&simulation),
                Format::Ndjson => report::ndjson(&simulation.days) + &report::ndjson(&simulation.end),
            });
            false
        }
        Question::Simulate { length, other: Some(other) } => {
            let other = config::load_policy(other).map_err(Error::unable)?;
            let there = simulate::simulate(&other, known.inventory.clone(), at, *length, wants);
            let here = simulate::simulate(&known.policy, known.inventory, at, *length, wants);
            let both = side_by_side::Simulations { this: here, other: there };
            report::print(&match settings.format {
                Format::Table => side_by_side::table(&both, report::width()),
                Format::Json => report::json(&both),
                Format::Ndjson => side_by_side::lines(&both),
            });
            both.differ()
        }
        Question::Compare { other, explain } => {
            let other = config::load_policy(other).map_err(Error::unable)?;
            let mut comparison = compare::compare(&known.policy, &other, &known.inventory, at);
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
    ended(settings, something)
}

/// The end, where there was something to tell or not.
fn ended(settings: &Settings, something: bool) -> Result<(), Error> {
    if settings.exit_code && something { Err(Error::exit(Exit::Orders)) } else { Ok(()) }
}

fn export(path: &Path, inventory: &Inventory) -> anyhow::Result<()> {
    if path == Path::new("-") {
        return match file::write(inventory, BufWriter::new(io::stdout().lock())) {
            // A reader that has read enough is no failure.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result.context("cannot write to standard output"),
        };
    }
    write_whole(path, |file| file::write(inventory, BufWriter::new(file)))
}

/// Writes a file as a whole or not at all. What is no file (a pipe, a terminal) is written to as it is.
fn write_whole(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let mut file = File::options().write(true).open(path).with_context(cannot)?;
        return write(&mut file).with_context(cannot);
    }
    files::write(path, files::PUBLIC, files::Mode::Replace, write).with_context(cannot)
}
