//! With which flags a dataset is sent: the same for all of a copy's history.

use serde::Serialize;
use thiserror::Error;

use crate::model::{DatasetInventory, SendFlags};

/// The source can only be sent with other flags than its copy was made with.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize)]
#[error(
    "the copy was made {}, and the source can now be sent {} only: ZFS does not take both in one history",
    how(*made), how(*needs)
)]
pub struct Flip {
    /// What the copy was made with, or must have been.
    pub made: SendFlags,
    /// What the source needs.
    pub needs: SendFlags,
}

fn how(flags: SendFlags) -> &'static str {
    match flags {
        SendFlags::Raw => "raw (zfs send -w), as an encrypted dataset is",
        SendFlags::Plain { .. } => "not raw, as a dataset that is not encrypted is",
    }
}

/// The flags for the next stream to a destination.
///
/// What was noted on the copy counts. Where nothing was, what is consistent is taken: a copy of an encrypted dataset
/// must be encrypted itself. `encrypts` says that a new dataset in that place would be encrypted there, which does not go
/// together with embedded blocks.
pub fn flags(
    source: &DatasetInventory,
    destination: Option<&DatasetInventory>,
    encrypts: bool,
) -> Result<SendFlags, Flip> {
    let needs = if source.encrypted {
        SendFlags::Raw
    } else {
        SendFlags::Plain { large: true, embedded: !encrypts, compressed: true }
    };
    let Some(copy) = destination.filter(|copy| !copy.snapshots.is_empty()) else { return Ok(needs) };
    match copy.flags {
        Some(made) if (made == SendFlags::Raw) == source.encrypted => Ok(made),
        Some(made) => Err(Flip { made, needs }),
        None if source.encrypted && !copy.encrypted => Err(Flip { made: SendFlags::PLAIN, needs }),
        None => Ok(needs),
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::model::{Guid, Snapshot};

    fn dataset(encrypted: bool, flags: Option<&str>) -> DatasetInventory {
        let snapshot = Snapshot {
            name: "a".parse().unwrap(),
            guid: Guid(1),
            createtxg: 1,
            creation: DateTime::UNIX_EPOCH,
            userrefs: 0,
            has_clones: false,
            used: 0,
            marks: Default::default(),
        };
        let flags = flags.map(|flags| flags.parse().unwrap());
        DatasetInventory { encrypted, flags, snapshots: vec![snapshot], ..DatasetInventory::default() }
    }

    #[test]
    fn a_table_of_lineages() {
        for (source, copy, encrypts, expected) in [
            // A first copy.
            (false, None, false, Some("Lec")),
            (false, None, true, Some("Lc")),
            (true, None, false, Some("w")),
            (true, None, true, Some("w")),
            // What was noted counts.
            (false, Some((false, Some("Lec"))), false, Some("Lec")),
            (false, Some((false, Some("ec"))), false, Some("ec")),
            (false, Some((true, Some("Lc"))), true, Some("Lc")),
            (true, Some((true, Some("w"))), true, Some("w")),
            // A flip.
            (true, Some((false, Some("Lec"))), false, None),
            (true, Some((true, Some("Lc"))), true, None),
            (false, Some((true, Some("w"))), true, None),
            // Nothing was noted: what is consistent is taken.
            (false, Some((false, None)), false, Some("Lec")),
            (false, Some((true, None)), true, Some("Lc")),
            (true, Some((true, None)), true, Some("w")),
            (true, Some((false, None)), false, None),
        ] {
            let destination = copy.map(|(encrypted, noted)| dataset(encrypted, noted));
            let found = flags(&dataset(source, None), destination.as_ref(), encrypts);
            let found = found.ok().map(|flags| flags.to_string());
            assert_eq!(found.as_deref(), expected, "encrypted source {source}, copy {copy:?}, encrypts {encrypts}");
        }
    }

    #[test]
    fn a_destination_without_snapshots_is_a_first_copy() {
        let bare = DatasetInventory { snapshots: vec![], ..dataset(false, None) };
        assert_eq!(flags(&dataset(true, None), Some(&bare), false), Ok(SendFlags::Raw));
    }
}
