//! The orders of one pass: decided, saved and told.

use std::io::Write;
use std::path::Path;

use chrono::{DateTime, Utc};

use crate::actions::{Order, Plan, decide};
use crate::cli::exit::Error;
use crate::cli::report;
use crate::cli::report::Format;
use crate::director::SavedPlan;
use crate::fleet::estimate::{Answers, Questions, Totals};
use crate::fleet::{fitting, wire_order};
use crate::model::Inventory;
use crate::plan::document::{Document, Explain, notices};
use crate::plan::foresee::{PlannedOrder, foresee};
use crate::plan::{Known, Settings, table, write_whole};
use crate::policy::Policy;

/// Decides, and saves what can be done now if that is wanted.
fn decided(
    settings: &Settings,
    known: &Known,
    at: DateTime<Utc>,
    out: Option<&Path>,
) -> Result<(Plan, Vec<Order>), Error> {
    let plan = decide(&known.policy, &known.inventory, at);
    let now = plan.orders(&known.policy);
    if let Some(path) = out {
        let saved = SavedPlan::new(at, known.fingerprint, settings.filter.narrow_all(now.clone()));
        let text = report::json(&saved);
        write_whole(path, |file| file.write_all(text.as_bytes())).map_err(Error::unable)?;
    }
    Ok((plan, now))
}

/// Everything that a pass would do, and why.
pub(crate) fn document(
    settings: &Settings,
    known: Known,
    at: DateTime<Utc>,
    explain: bool,
    out: Option<&Path>,
) -> Result<Document, Error> {
    let (plan, now) = decided(settings, &known, at, out)?;
    let Known { policy, inventory, unseen, estimates, .. } = known;
    let notices = notices(&plan, &settings.filter);
    let explain = explain.then(|| Explain::new(&plan, &inventory, &settings.filter));
    // A plan over a million snapshots is large, and its orders are all that is still needed.
    drop(plan);
    // What is remembered was estimated of the world as it is, and not as it is foreseen.
    let world = (!estimates.is_empty()).then(|| inventory.clone());
    let mut orders = settings.filter.narrow_foreseen(foresee(&policy, inventory, now, at));
    let estimate = world.and_then(|world| remembered(&mut orders, &policy, &world, &estimates));
    Ok(Document { at, unseen, orders, estimate, notices, explain })
}

/// Puts to the orders what was estimated for an earlier plan; `None` if that was about other snapshots.
fn remembered(orders: &mut [PlannedOrder], policy: &Policy, world: &Inventory, answers: &Answers) -> Option<Totals> {
    let totals = Questions::about(orders, policy, world).put(orders, answers);
    if totals.at.is_none() {
        orders.iter_mut().for_each(|foreseen| foreseen.estimate = None);
        return None;
    }
    Some(totals)
}

/// Tells it; `true` if there are orders.
pub(crate) fn tell(settings: &Settings, document: &Document) -> bool {
    match settings.format {
        Format::Table => report::print(&table::plan(document, report::width())),
        Format::Json | Format::Ndjson => report::print_json(document),
    }
    !document.orders.is_empty()
}

/// Prints what can be done now, as agents take it; `true` if there is anything.
pub(crate) fn print_lines(
    settings: &Settings,
    known: &Known,
    at: DateTime<Utc>,
    out: Option<&Path>,
) -> Result<bool, Error> {
    let (plan, now) = decided(settings, known, at, out)?;
    drop(plan);
    let wanted: Vec<Order> = settings.filter.narrow_all(now).into_iter().flat_map(fitting).collect();
    report::print_ndjson(wanted.iter().map(|order| wire_order(order, &known.policy, &known.inventory)));
    Ok(!wanted.is_empty())
}
