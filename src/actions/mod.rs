//! The engine decides from the policy and the inventory what to do, and gives a reason for every decision.
//!
//! [`Engine`] (or the function [`decide`]) asks three questions about every dataset that the policy covers: is a
//! snapshot due ([`new_snapshot()`]), is a transfer due ([`send()`]), and which snapshots stay ([`delete()`])? The
//! answers are the verdicts of a [`Plan`], which [`Plan::orders`] turns into [`Order`]s. From the same verdicts,
//! [`health()`] judges how well the fleet meets the policy. [`predict()`] changes an inventory as if orders had been
//! carried out.
//!
//! An agent uses the engine for a single transfer: [`steps()`] plans its streams, [`lineage`] chooses their flags, and
//! [`divergence`] decides what to do about a destination that cannot receive them.
//!
//! Nothing here performs I/O or reads a clock.

mod adopt;
mod common;
mod copy;
mod delete;
pub mod divergence;
mod durations;
mod engine;
pub mod health;
mod index;
mod leftovers;
pub mod lineage;
mod names;
mod new_snapshot;
mod notice;
mod order;
mod orders;
mod pass;
mod plan;
mod predict;
mod prune;
mod reason;
mod restore;
mod restored_properties;
pub mod route;
mod send;
mod sequence;
pub mod steps;
mod verdict;
mod whereabouts;

pub use adopt::{Adopted, MARGIN, adopt};
pub use common::KnownDataset;
pub use copy::{CopyPlan, CopyStep, CopyWanted, Tree, copy};
pub use delete::{DeleteTerms, Peer, Relation, delete};
pub use durations::Durations;
pub use engine::{Engine, decide, decide_entry};
pub use health::{Health, health};
pub use index::PolicyIndex;
pub use leftovers::{Leftover, Leftovers, copies_given_up, in_words, leftovers, leftovers_for, senders_to};
pub use names::{UnknownName, check_names};
pub use new_snapshot::{TakeDecision, new_snapshot};
pub use notice::{Notice, NoticeKind, forbidden};
pub use order::Order;
pub use pass::Destroyed;
pub use plan::Plan;
pub use predict::{Intervention, predict, predict_order};
pub(crate) use predict::{held_copy, is_idle};
pub use prune::{Doomed, Explained, HeldBack, Protection, PruneReason, PruneVerdict, SnapVerdict};
pub use reason::{SendReason, TakeReason};
pub use restore::{Lost, Restorable, RestorePlan, RestoreStep, Wanted, restore, restore_lost};
pub use restored_properties::{RestoredProperties, restored_key, restored_properties};
pub use route::{Occupied, Renamed, Route};
pub use send::{SendDecision, send};
pub use sequence::{Group, groups};
pub use steps::{Conflict, Resume, Step, Transfer, steps};
pub use verdict::{DueSend, SendVerdict, Side, Subject, TakeVerdict};
pub use whereabouts::{
    AtPlace, Found, PlaceRole, PlaceState, Presence, Selection, SnapshotState, Unlisted, Whereabouts, whereabouts,
};

#[cfg(test)]
mod tests;
