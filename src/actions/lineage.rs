//! Chooses the send flags of a stream. All streams of one copy need the same flags.

use serde::Serialize;
use thiserror::Error;

use crate::model::{DatasetInventory, SendFlags};

/// The source can no longer be sent with the flags with which its copy was made.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize)]
#[error(
    "the copy was made {}, but the source can now be sent only {}: ZFS does not accept both in one history",
    how(*made), how(*needs)
)]
pub struct FlagMismatch {
    /// The flags of the copy: recorded, or inferred from whether it is encrypted.
    pub made: SendFlags,
    /// The flags that the source needs.
    pub needs: SendFlags,
}

fn how(flags: SendFlags) -> &'static str {
    match flags {
        SendFlags::Raw => "with raw streams (zfs send -w), as for encrypted datasets",
        SendFlags::Plain { .. } => "with non-raw streams, as for unencrypted datasets",
    }
}

/// The flags for the next stream to a destination.
///
/// The flags recorded on the copy are used again. If none are recorded, the flags are chosen to fit the copy: a copy of
/// an encrypted dataset must be encrypted itself.
pub fn flags(source: &DatasetInventory, destination: Option<&DatasetInventory>) -> Result<SendFlags, FlagMismatch> {
    let needs = SendFlags::for_encrypted(source.encrypted);
    let Some(copy) = destination.filter(|copy| !copy.snapshots.is_empty()) else { return Ok(needs) };
    match copy.flags {
        Some(made) if (made == SendFlags::Raw) == source.encrypted => Ok(made),
        Some(made) => Err(FlagMismatch { made, needs }),
        None if source.encrypted && !copy.encrypted => Err(FlagMismatch { made: SendFlags::PLAIN, needs }),
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
    fn flags_follow_the_copy() {
        for (source, copy, expected) in [
            // A first copy.
            (false, None, Some("Lc")),
            (true, None, Some("w")),
            // The copy has a record.
            (false, Some((false, Some("Lc"))), Some("Lc")),
            (false, Some((false, Some("Lec"))), Some("Lc")),
            (false, Some((false, Some("c"))), Some("c")),
            (false, Some((true, Some("Lc"))), Some("Lc")),
            (true, Some((true, Some("w"))), Some("w")),
            // The source was encrypted or decrypted since.
            (true, Some((false, Some("Lc"))), None),
            (true, Some((true, Some("Lc"))), None),
            (false, Some((true, Some("w"))), None),
            // The copy has no record.
            (false, Some((false, None)), Some("Lc")),
            (false, Some((true, None)), Some("Lc")),
            (true, Some((true, None)), Some("w")),
            (true, Some((false, None)), None),
        ] {
            let destination = copy.map(|(encrypted, recorded)| dataset(encrypted, recorded));
            let found = flags(&dataset(source, None), destination.as_ref());
            let found = found.ok().map(|flags| flags.to_string());
            assert_eq!(found.as_deref(), expected, "encrypted source {source}, copy {copy:?}");
        }
    }

    #[test]
    fn flags_for_destination_without_snapshots_are_those_of_a_first_copy() {
        let bare = DatasetInventory { snapshots: vec![], ..dataset(false, None) };
        assert_eq!(flags(&dataset(true, None), Some(&bare)), Ok(SendFlags::Raw));
    }
}
