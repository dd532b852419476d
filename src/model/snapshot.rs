//! Snapshots and bookmarks: their identity, the catalog's marks, and the text form of a catalog record.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::model::name::{DatasetName, NameError, SnapName};

/// The namespace in which a snapshot's UUID is derived from its guid (RFC 9562, version 5).
/// It is part of the wire format and never changes.
pub const SNAPSHOT_NAMESPACE: Uuid = Uuid::from_u128(0x7a73_796e_6300_5a46_8000_736e_6170_7368);

/// ZFS' `guid` property: the identity of a snapshot across pools and renames (zfsprops(7)). `zfs receive` preserves it;
/// a bookmark has the guid of the snapshot that it was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid(pub u64);

impl Guid {
    /// The UUID that stands for the snapshot on the wire.
    #[must_use]
    pub fn uuid(self) -> SnapshotId {
        SnapshotId(Uuid::new_v5(&SNAPSHOT_NAMESPACE, &self.0.to_be_bytes()))
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Guid {
    /// Writes a decimal string: many JSON parsers lose precision above 2^53.
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Guid {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a guid: a whole number or its decimal digits as a string")]
        enum Form {
            Number(u64),
            Text(String),
        }
        match Form::deserialize(d)? {
            Form::Number(n) => Ok(Self(n)),
            Form::Text(t) => {
                t.parse().map(Self).map_err(|e| serde::de::Error::custom(format_args!("{t:?} is not a guid: {e}")))
            }
        }
    }
}

/// A snapshot's UUID: version 5, derived from its guid, so that all hosts compute the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(pub Uuid);

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the catalog records about a snapshot in addition to its ZFS properties: zeplic's flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Marks {
    /// `#sent`: it was sent to some destination.
    #[serde(skip_serializing_if = "is_false")]
    pub sent: bool,
    /// `#sync`: it was received here.
    #[serde(skip_serializing_if = "is_false")]
    pub sync: bool,
    /// `#deleted`: an order destroyed it.
    #[serde(skip_serializing_if = "is_false")]
    pub deleted: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(b: &bool) -> bool {
    !*b
}

/// A snapshot as `zfs list` shows it, with the catalog's marks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The name after `@`.
    pub name: SnapName,
    /// Its identity.
    pub guid: Guid,
    /// The transaction group of its creation. It orders snapshots, but only within one pool.
    pub createtxg: u64,
    /// When it was taken, to the second; `zfs receive` preserves it.
    #[serde(with = "chrono::serde::ts_seconds")]
    pub creation: DateTime<Utc>,
    /// How many holds it has.
    #[serde(default)]
    pub userrefs: u32,
    /// Whether clones depend on it.
    #[serde(default)]
    pub has_clones: bool,
    /// Bytes that only this snapshot references; 0 if unknown.
    #[serde(default)]
    pub used: u64,
    /// The catalog's marks.
    #[serde(default)]
    pub marks: Marks,
}

/// A bookmark: what remains of a snapshot, enough to send an increment from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bookmark {
    /// The name after `#`.
    pub name: SnapName,
    /// The guid of the snapshot that it was made from.
    pub guid: Guid,
    /// The createtxg of that snapshot.
    pub createtxg: u64,
    /// The creation time of that snapshot.
    #[serde(with = "chrono::serde::ts_seconds")]
    pub creation: DateTime<Utc>,
}

/// A catalog record in its text form `uuid:dataset@name` with flags `#sent`, `#sync`, `#deleted`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The snapshot's UUID.
    pub uuid: SnapshotId,
    /// The dataset that it belongs to.
    pub dataset: DatasetName,
    /// The name after `@`.
    pub name: SnapName,
    /// Its flags.
    pub marks: Marks,
}

/// Why a text is not a catalog record.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RecordError {
    /// The shape is wrong.
    #[error("{0:?} is not a record of the form uuid:dataset@name[#sent][#sync][#deleted]")]
    Shape(String),
    /// A name in it is wrong.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}@{}", self.uuid, self.dataset, self.name)?;
        let Marks { sent, sync, deleted } = self.marks;
        for (set, flag) in [(sent, "#sent"), (sync, "#sync"), (deleted, "#deleted")] {
            if set {
                f.write_str(flag)?;
            }
        }
        Ok(())
    }
}

impl FromStr for Record {
    type Err = RecordError;

    fn from_str(text: &str) -> Result<Self, RecordError> {
        let shape = || RecordError::Shape(text.chars().take(120).collect());
        let mut parts = text.split('#');
        let (uuid, rest) = parts.next().and_then(|record| record.split_once(':')).ok_or_else(shape)?;
        let (dataset, name) = rest.split_once('@').ok_or_else(shape)?;
        let mut marks = Marks::default();
        for flag in parts {
            match flag {
                "sent" => marks.sent = true,
                "sync" => marks.sync = true,
                "deleted" => marks.deleted = true,
                _ => return Err(shape()),
            }
        }
        let uuid = SnapshotId(Uuid::parse_str(uuid).map_err(|_| shape())?);
        Ok(Self { uuid, dataset: dataset.parse()?, name: name.parse()?, marks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guid_uuid_is_stable() {
        assert_eq!(Guid(1).uuid().to_string(), "b30c0441-90bc-51ac-8b96-2b528d364118");
    }

    #[test]
    fn record_round_trips_through_text() {
        for text in [
            "b30c0441-90bc-51ac-8b96-2b528d364118:tank/foo@BACKUP_2026-11-23_10:30:00",
            "b30c0441-90bc-51ac-8b96-2b528d364118:tank/foo@by hand#sent#deleted",
        ] {
            assert_eq!(text.parse::<Record>().unwrap().to_string(), text);
        }
        for bad in
            ["", "x:tank@a", "b30c0441-90bc-51ac-8b96-2b528d364118:tank", "b30c0441-90bc-51ac-8b96-2b528d364118:t@a#x"]
        {
            assert!(bad.parse::<Record>().is_err(), "{bad}");
        }
    }

    #[test]
    fn guid_deserializes_from_numbers_and_strings() {
        let max: Guid = serde_json::from_str("\"18446744073709551615\"").unwrap();
        assert_eq!(max, Guid(u64::MAX));
        assert_eq!(serde_json::from_str::<Guid>("7").unwrap(), Guid(7));
        assert_eq!(serde_json::to_string(&max).unwrap(), "\"18446744073709551615\"");
        assert!(serde_json::from_str::<Guid>("\"-1\"").is_err());
    }
}
