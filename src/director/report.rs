//! The report of a pass: what it did, and what failed.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::actions::Notice;
use crate::catalog::Outcome;
use crate::cli::causes::{FailedOrder, by_cause, others};
use crate::director::failure_log::CATALOG;
use crate::fleet::live_status::RestingOrder;
use crate::model::{Action, DatasetName, HostName, Place, hint};

/// The report of a pass.
#[derive(Debug)]
pub struct Report {
    /// The moment for which it decided.
    pub at: DateTime<Utc>,
    /// How long it took.
    pub took: Duration,
    /// Hosts that could not be listed, with the reason.
    pub unseen: BTreeMap<HostName, String>,
    /// Where the catalog differed from what hosts hold, after a resync.
    pub corrected: Vec<(HostName, String)>,
    /// How each order ended.
    pub outcomes: Vec<Outcome>,
    /// The orders that have failed and are not given again yet.
    pub resting: Vec<RestingOrder>,
    /// What an administrator should know about the policy.
    pub notices: Vec<Notice>,
    /// Why the catalog could not be written, if there was no room for it.
    pub unsaved: Option<String>,
    /// Why the pass was interrupted, if it was.
    pub interrupted: Option<String>,
}

impl Report {
    /// Whether everything went well.
    #[must_use]
    pub fn is_success(&self) -> bool {
        failures(self).next().is_none() && self.resting.is_empty()
    }
}

/// Something that went wrong in a pass.
pub enum Failure<'a> {
    /// A host could not be listed.
    Unseen(&'a HostName, &'a str),
    /// The policy asks for something impossible.
    Policy(&'a Notice),
    /// An order failed.
    Order(&'a Outcome),
    /// There was no room for the catalog.
    Unsaved(&'a str),
    /// The pass was interrupted.
    Interrupted(&'a str),
}

impl Failure<'_> {
    /// The subject of the failure, which is the same in every pass.
    #[must_use]
    pub fn subject(&self) -> String {
        match self {
            Self::Unseen(host, _) => host.to_string(),
            Self::Policy(notice) => {
                let dataset = notice.dataset.as_ref().map(ToString::to_string).unwrap_or_default();
                format!("entry {} of the policy, {}:{dataset}", notice.entry, notice.host)
            }
            Self::Order(outcome) => subject(outcome),
            Self::Unsaved(_) => CATALOG.to_owned(),
            Self::Interrupted(_) => "the pass".to_owned(),
        }
    }

    /// What an administrator can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Policy(notice) => notice.kind.hint(),
            Self::Order(outcome) => outcome.hint.as_deref(),
            Self::Unseen(..) | Self::Unsaved(_) | Self::Interrupted(_) => None,
        }
    }
}

impl fmt::Display for Failure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unseen(host, reason) => write!(f, "cannot list the snapshots of {host}: {reason}"),
            Self::Policy(notice) => write!(f, "{notice}"),
            Self::Order(outcome) => write!(f, "{} failed: {}", subject(outcome), message(outcome)),
            Self::Unsaved(reason) => write!(f, "the pass worked from memory: {reason}"),
            Self::Interrupted(reason) => write!(f, "the pass was interrupted: {reason}"),
        }
    }
}

/// Everything that went wrong in a pass.
pub fn failures(report: &Report) -> impl Iterator<Item = Failure<'_>> {
    let unseen = report.unseen.iter().map(|(host, reason)| Failure::Unseen(host, reason));
    let policy = report.notices.iter().filter(|n| n.kind.is_failure()).map(Failure::Policy);
    let orders = report.outcomes.iter().filter(|o| !o.success).map(Failure::Order);
    let interrupted = report.interrupted.iter().map(|reason| Failure::Interrupted(reason));
    let unsaved = report.unsaved.iter().map(|reason| Failure::Unsaved(reason));
    unseen.chain(policy).chain(orders).chain(unsaved).chain(interrupted)
}

/// Everything that went wrong in a pass, each with the text that reports it. Orders that failed for the same reason
/// are reported once.
pub(crate) fn reported(report: &Report) -> Vec<(Failure<'_>, String)> {
    let failed: Vec<&Outcome> = report.outcomes.iter().filter(|o| !o.success).collect();
    let orders: Vec<FailedOrder<'_>> = failed.iter().copied().map(failed_order).collect();
    let mut groups = by_cause(&orders).into_iter();
    let mut all = Vec::new();
    for failure in failures(report) {
        let (failure, others) = match failure {
            // The groups take the place of the orders, of which there are at least as many.
            Failure::Order(_) => match groups.next() {
                Some(group) => (Failure::Order(failed[group[0]]), others(&orders, &group)),
                None => continue,
            },
            failure => (failure, String::new()),
        };
        let text = hint::join(format_args!("{failure}{others}"), failure.hint());
        all.push((failure, text));
    }
    all
}

fn failed_order(outcome: &Outcome) -> FailedOrder<'_> {
    let Outcome { action, host, dataset, to, hint, .. } = outcome;
    FailedOrder {
        action: Some(*action),
        host,
        dataset: dataset.as_ref(),
        to: to.as_ref(),
        error: message(outcome),
        hint: hint.as_deref(),
    }
}

/// An order's action, dataset and destination.
pub(crate) fn subject(outcome: &Outcome) -> String {
    subject_of(outcome.action, &outcome.host, outcome.dataset.as_ref(), outcome.to.as_ref())
}

/// The same of an order that is not given again yet.
pub(crate) fn resting_subject(order: &RestingOrder) -> String {
    subject_of(order.action, &order.host, Some(&order.dataset), order.to.as_ref())
}

fn subject_of(action: Action, host: &HostName, dataset: Option<&DatasetName>, to: Option<&Place>) -> String {
    let dataset = dataset.map(ToString::to_string).unwrap_or_default();
    let mut text = format!("{} of {host}:{dataset}", verb(action));
    if let Some(to) = to {
        text = format!("{text} to {}:{}", to.host, to.dataset);
    }
    text
}

fn message(outcome: &Outcome) -> &str {
    outcome.error.as_deref().unwrap_or("no reason was given")
}

/// An action as a word in a table.
pub(crate) fn verb(action: Action) -> &'static str {
    match action {
        Action::TakeSnapshot => "take",
        Action::SendSnapshot => "send",
        Action::DestroySnapshot => "destroy",
        Action::KvResync => "resync",
        Action::ForgetDestination => "forget",
        Action::UndeleteSnapshot => "undelete",
        Action::RestoreDataset => "restore",
        Action::JoinKeys => "join keys",
        Action::EstimateSend | Action::EstimateDestroy => "estimate",
    }
}
