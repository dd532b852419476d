//! Decides, saves and prints the orders of one pass.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use chrono::{DateTime, Utc};

use crate::actions::{Order, Plan, decide};
use crate::cli::exit::Error;
use crate::cli::report;
use crate::cli::report::Format;
use crate::config::Fingerprint;
use crate::director::SavedPlan;
use crate::fleet::estimate::{Answers, Questions};
use crate::fleet::planned::{PlannedOrder, Totals};
use crate::fleet::{fitting, wire_order};
use crate::model::{HostName, Inventory};
use crate::plan::document::{Document, Explain, notices};
use crate::plan::foresee::foresee;
use crate::plan::settings::PlanSettings;
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
    /// Hosts that were polled and could not be listed, with the reason.
    pub unseen: BTreeMap<HostName, String>,
    /// Estimates of the latest plan.
    pub estimates: Answers,
}

/// Decides, and saves the orders that can be given now if `out` names a file.
fn decided(
    settings: &PlanSettings,
    input: &PlanInput,
    at: DateTime<Utc>,
    out: Option<&Path>,
) -> Result<(Plan, Vec<Order>), Error> {
    let plan = decide(&input.policy, &input.inventory, at);
    let now = plan.orders(&input.policy);
    if let Some(path) = out {
        let saved = SavedPlan::new(at, input.fingerprint, settings.filter.narrow_all(now.clone()));
        let text = report::json(&saved);
        write_whole(path, |file| file.write_all(text.as_bytes())).map_err(Error::unable)?;
    }
    Ok((plan, now))
}

/// Everything that a pass would do, with the reasons.
pub(crate) fn document(
    settings: &PlanSettings,
    input: PlanInput,
    at: DateTime<Utc>,
    explain: bool,
    out: Option<&Path>,
) -> Result<Document, Error> {
    let (plan, now) = decided(settings, &input, at, out)?;
    let PlanInput { policy, inventory, unseen, estimates, .. } = input;
    let notices = notices(&plan, &settings.filter);
    let explain = explain.then(|| Explain::new(&plan, &inventory, &settings.filter));
    // A plan over a million snapshots is large, and only its orders are still needed.
    drop(plan);
    // The estimates were made for the present inventory, not for the predicted one.
    let present = (!estimates.is_empty()).then(|| inventory.clone());
    let mut orders = settings.filter.narrow_planned(foresee(&policy, inventory, now, at));
    let estimate = present.and_then(|present| add_estimates(&mut orders, &policy, &present, &estimates));
    Ok(Document { at, unseen, orders, estimate, notices, explain })
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
    let (plan, now) = decided(settings, input, at, out)?;
    drop(plan);
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
    files::write(path, files::PUBLIC, files::Mode::Replace, write).with_context(cannot)
}
