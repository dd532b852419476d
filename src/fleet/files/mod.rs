//! Finds and restores single files from the snapshots of a dataset and of its copies: from those on this host, and from
//! those on other hosts through their agents.

mod bring;
mod find;
mod guard;
mod known_here;
mod places;
mod remote;

pub use bring::{Brought, WantedFiles, bring};
pub use find::{FileVersion, InSnapshot, Period, Versions, find};
pub use places::{Reached, Seeker, Tree, reachable};
pub use remote::Remote;

pub use crate::agent::files::Open;

use crate::model::DatasetKind;
use crate::zfs::Listed;

/// Whether a dataset has files.
fn has_files((_, found): &&Listed) -> bool {
    found.kind == DatasetKind::Filesystem
}
