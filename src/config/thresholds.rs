//! The key `check` of a policy in `server.json`: the thresholds of `zsync check`.

use std::time::Duration;

use crate::config::json::{Node, Object};
use crate::config::values::{count, duration};
use crate::policy::Thresholds;

const AGE: &str = "an age, as in \"2h\" or \"1day 12h\"";

/// Reads the object. Invalid values are reported and left out.
pub(super) fn read(node: &Node<'_>) -> Thresholds {
    let Some(mut object) = node.object("an object, as in { \"warn_age\": \"2h\", \"crit_age\": \"1day\" }") else {
        return Thresholds::default();
    };
    let (warn_age, crit_age) = ages(&mut object, "warn_age", "crit_age");
    let (sync_warn_age, sync_crit_age) = ages(&mut object, "sync_warn_age", "sync_crit_age");
    let max_snapshots = object.get("max_snapshots").and_then(|node| count(&node, 1..=1_000_000));
    let max_held = object.get("max_held").and_then(|node| age(&node));
    object.finish();
    Thresholds { warn_age, crit_age, sync_warn_age, sync_crit_age, max_snapshots, max_held }
}

/// Reads two ages. The critical age must not be less than the age for a warning.
fn ages(object: &mut Object<'_>, warn: &'static str, crit: &'static str) -> (Option<Duration>, Option<Duration>) {
    let (first, second) = (object.get(warn), object.get(crit));
    let warning = first.as_ref().and_then(age);
    let critical = second.as_ref().and_then(age);
    if let (Some(warning), Some(critical), Some(node)) = (warning, critical, &second)
        && warning > critical
    {
        node.problem(format!("it is less than {warn:?}; hint: set it to the same age or to a larger one"));
    }
    (warning, critical)
}

fn age(node: &Node<'_>) -> Option<Duration> {
    duration(node, AGE, ["1s", "100years"])
}
