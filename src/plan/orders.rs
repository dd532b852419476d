//! Decides, saves and prints the orders of one pass.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use chrono::{DateTime, Utc};

use crate::actions::{Notice, Order, Plan, decide, forbidden};
use crate::cli::exit::Error;
use crate::cli::report;
use crate::cli::report::Format;
use crate::config::Fingerprint;
use crate::director::SavedPlan;
use crate::fleet::estimate::{Answers, Questions};
use crate::fleet::obstacles::Obstacles;
use crate::fleet::planned::{PlannedOrder, Totals};
use crate::fleet::{fitting, wire_order};
use crate::model::{HostName, Inventory};
use crate::plan::document::{Document, Explain, notices};
use crate::plan::foresee::{Foreseen, foresee};
use crate::plan::settings::{InventorySource, PlanMode, PlanSettings};
use crate::plan::table;
use crate::policy::Policy;
use crate::sys::files;

/// The input of a preview.
pub(crate) struct PlanInput {
    /// The policy.
    pub policy: Policy,
    /// Identifies the policy in a saved plan.
    pub fingerprint: Fingerprint,
    /// What every host holds.
    pub inventory: Inventory,
    /// What stands in the way of orders, among it the hosts that could not be listed.
    pub obstacles: Obstacles,
    /// Estimates of the latest plan.
    pub estimates: Answers,
}

/// A preview of one pass, with the orders that can be given now.
pub(crate) struct Decided {
    /// What is printed.
    pub document: Document,
    /// What `--out` saves.
    pub saved: SavedPlan,
}

fn saved(settings: &PlanSettings, fingerprint: Fingerprint, at: DateTime<Utc>, now: &[Order]) -> SavedPlan {
    SavedPlan::new(at, fingerprint, settings.filter.narrow_all(now.to_vec()))
}

/// The orders that can be given now. Who saves a plan and carries it out has approved it, with what a pass holds back.
fn orders_now(plan: &Plan, policy: &Policy, is_saved: bool) -> Vec<Order> {
    if is_saved { plan.approved_orders(policy) } else { plan.orders(policy) }
}

/// Writes the orders that can be given now to a file.
pub(crate) fn save(path: &Path, plan: &SavedPlan) -> Result<(), Error> {
    let text = report::json(plan);
    write_whole(path, |file| file.write_all(text.as_bytes())).map_err(Error::unable)
}

/// Decides everything that a pass would do, with the reasons.
pub(crate) fn decided(settings: &PlanSettings, input: PlanInput, at: DateTime<Utc>, explain: bool) -> Decided {
    let PlanInput { policy, fingerprint, inventory, obstacles, estimates } = input;
    let mut plan = decide(&policy, &inventory, at);
    if let Some(local) = &settings.local {
        Notice::add(&mut plan.notices, forbidden(&policy, &settings.host, local));
    }
    let is_saved = matches!(&settings.mode, PlanMode::Orders { out: Some(_), .. });
    let now = orders_now(&plan, &policy, is_saved);
    let saved = saved(settings, fingerprint, at, &now);
    let listed = match settings.source {
        InventorySource::Catalog => last_listed(&policy, &inventory),
        InventorySource::File(_) | InventorySource::Hosts | InventorySource::Agents => BTreeMap::new(),
    };
    let explain = explain.then(|| Explain::new(&plan, &inventory, &settings.filter));
    // A plan over a million snapshots is large, and only its orders and notices are still needed.
    let mut notices_now = std::mem::take(&mut plan.notices);
    drop(plan);
    // The estimates were made for the present inventory, not for the predicted one.
    let present = (!estimates.is_empty()).then(|| inventory.clone());
    let Foreseen { orders, held_back } = foresee(&policy, inventory, now, at, &obstacles);
    let is_known = |held: &Notice, known: &Notice| {
        (&held.host, &held.dataset) == (&known.host, &known.dataset)
            && std::mem::discriminant(&held.kind) == std::mem::discriminant(&known.kind)
    };
    let held_back = held_back.into_iter().filter(|held| !notices_now.iter().any(|known| is_known(held, known)));
    let held_back: Vec<Notice> = held_back.collect();
    notices_now.extend(held_back);
    let notices = notices(&notices_now, &settings.filter);
    let mut orders = settings.filter.narrow_planned(orders);
    let estimate = present.and_then(|present| add_estimates(&mut orders, &policy, &present, &estimates));
    let here = (!matches!(settings.source, InventorySource::File(_))).then(|| settings.host.clone());
    // A host whose address the policy states can have any name.
    let is_unknown = |host: &&HostName| policy.hosts.get(*host).is_none_or(|known| known.address.is_none());
    let unknown = obstacles.unseen.keys().filter(is_unknown).cloned().collect();
    let here = here.map(|here| (here, unknown));
    let unseen = obstacles.unseen;
    Decided { document: Document { at, unseen, listed, orders, estimate, notices, here, explain }, saved }
}

/// When each host of the policy was last listed.
fn last_listed(policy: &Policy, inventory: &Inventory) -> BTreeMap<HostName, Option<DateTime<Utc>>> {
    let listed = |host: &HostName| inventory.hosts.get(host).and_then(|known| known.observed);
    policy.hosts_named().into_iter().map(|host| (host.clone(), listed(&host))).collect()
}

/// Adds the estimates of an earlier plan to the orders; `None` if none of them is about the same snapshots.
fn add_estimates(
    orders: &mut [PlannedOrder],
    policy: &Policy,
    present: &Inventory,
    answers: &Answers,
) -> Option<Totals> {
    let totals = Questions::about(orders, policy, present).put(orders, answers);
    if totals.at.is_none() {
        orders.iter_mut().for_each(|planned| planned.estimate = None);
        return None;
    }
    Some(totals)
}

/// Prints the preview; `true` if there are orders.
pub(crate) fn print(settings: &PlanSettings, document: &Document) -> bool {
    match settings.format {
        Format::Table => report::print(&table::plan(document, report::width())),
        Format::Json | Format::Ndjson => report::print_json(document),
    }
    !document.orders.is_empty()
}

/// Prints the orders that can be given now, as agents accept them; `true` if there are any.
pub(crate) fn print_lines(
    settings: &PlanSettings,
    input: &PlanInput,
    at: DateTime<Utc>,
    out: Option<&Path>,
) -> Result<bool, Error> {
    let now = orders_now(&decide(&input.policy, &input.inventory, at), &input.policy, out.is_some());
    if let Some(path) = out {
        save(path, &saved(settings, input.fingerprint, at, &now))?;
    }
    let wanted: Vec<Order> = settings.filter.narrow_all(now).into_iter().flat_map(fitting).collect();
    report::print_ndjson(wanted.iter().map(|order| wire_order(order, &input.policy, &input.inventory)));
    Ok(!wanted.is_empty())
}

/// Writes a file completely or not at all. If the path is not a regular file (a pipe, a terminal), it is written in
/// place.
pub(crate) fn write_whole(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let mut file = File::options().write(true).open(path).with_context(cannot)?;
        return write(&mut file).with_context(cannot);
    }
    files::write(path, files::PRIVATE, files::Mode::Replace, write).with_context(cannot)
}
