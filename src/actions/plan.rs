//! The result of a pass: verdicts about every dataset, and notices.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::actions::notice::Notice;
use crate::actions::prune::PruneVerdict;
use crate::actions::verdict::{SendVerdict, TakeVerdict};

/// Everything that one pass decided. [`Plan::orders`] derives the orders that carry it out.
///
/// All verdicts are `Serialize`, and the reasons in them are types whose `Display` is a clause in plain English. A plan
/// takes 24 bytes per snapshot; [`PruneVerdict::explain`] spells out the reasons for single snapshots on demand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The moment for which the plan was decided.
    pub at: DateTime<Utc>,
    /// One per dataset and policy: is a snapshot due?
    pub takes: Vec<TakeVerdict>,
    /// One per dataset, policy and destination: is a transfer due?
    pub sends: Vec<SendVerdict>,
    /// One per dataset of a host (source or destination) and prefix: which snapshots stay, and which go?
    pub prunes: Vec<PruneVerdict>,
    /// What an administrator should know in addition to the verdicts.
    pub notices: Vec<Notice>,
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.takes.iter().all(|t| t.due.is_none())
            && self.sends.iter().all(|s| s.due.is_none())
            && self.prunes.iter().all(|p| p.destroy.is_empty() || p.held_back.is_some())
    }
}
