//! Encodes a dataset as the value of a pair: columns in JSON, compressed with zlib.
//!
//! Numbers that grow are stored as differences, so that they compress to one or two bytes. A guid is random, and takes
//! its eight bytes. `consul kv get KEY | zlib-flate -uncompress` prints a value.

use chrono::{DateTime, Utc};
use miniz_oxide::deflate::compress_to_vec_zlib;
use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::catalog::dataset::CatalogDataset;
use crate::model::{
    Bookmark, DatasetInventory, DatasetKind, Guid, Marks, Origin, SendFlags, SnapName, Snapshot, Trashed,
};

/// The version of the format. A value of another version is not read, and its host overwrites it.
const VERSION: u32 = 1;
/// The largest decompressed value, in bytes.
const LARGEST_JSON: usize = 512 << 20;
/// The compression level of zlib: a third slower than the fastest level, with output that is a fifth smaller.
const LEVEL: u8 = 6;

/// The decoded value of a dataset's pair.
pub(super) enum Value {
    /// The dataset itself.
    Whole(Box<CatalogDataset>),
    /// A reference to other pairs that together store the dataset.
    Parts(Parts),
}

/// The pairs of a dataset that is too large for one pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Parts {
    /// Distinguishes these parts from those of an earlier or later write.
    pub set: Uuid,
    /// The number of parts.
    pub count: usize,
    /// The total size of the parts.
    pub bytes: usize,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct StoredDataset {
    version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<Parts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<StoredListing>,
    /// Guid, flags, and when the snapshot was first marked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    marks: Vec<(u64, u8, i64)>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_written: Vec<(SnapName, i64)>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct StoredListing {
    kind: DatasetKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    guid: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    encrypted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<Origin>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    excluded: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    append_only: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flags: Option<SendFlags>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resume_token: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    transfer_holds: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destroy_after: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trashed: Option<Vec<Trashed>>,
    snapshots: Columns,
    #[serde(skip_serializing_if = "Columns::is_empty")]
    bookmarks: Columns,
}

/// Snapshots or bookmarks, column by column.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Columns {
    guid: Vec<u64>,
    name: Vec<SnapName>,
    /// As differences.
    createtxg: Vec<i64>,
    /// As differences, in seconds.
    creation: Vec<i64>,
    /// Omitted if all are 0.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    userrefs: Vec<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    used: Vec<u64>,
    /// The indices of the rows that have clones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    has_clones: Vec<usize>,
}

/// The columns that snapshots and bookmarks share: guid, name, createtxg, creation.
type SharedColumns = (Guid, SnapName, u64, DateTime<Utc>);

impl Columns {
    fn is_empty(&self) -> bool {
        self.guid.is_empty()
    }

    fn push(&mut self, guid: Guid, name: &SnapName) {
        self.guid.push(guid.0);
        self.name.push(name.clone());
    }

    /// Decodes the shared columns of each row.
    fn rows(&self) -> Result<Vec<SharedColumns>, String> {
        let rows = self.guid.len();
        if [self.name.len(), self.createtxg.len(), self.creation.len()] != [rows; 3] {
            return Err("its columns differ in length".to_owned());
        }
        let (mut txg, mut seconds) = (0_i64, 0_i64);
        let row = |((guid, name), (txg_step, step)): ((&u64, &SnapName), (&i64, &i64))| {
            txg = txg.wrapping_add(*txg_step);
            seconds = seconds.wrapping_add(*step);
            let creation =
                DateTime::from_timestamp(seconds, 0).ok_or_else(|| format!("{seconds} is not a valid time"))?;
            Ok((Guid(*guid), name.clone(), txg.cast_unsigned(), creation))
        };
        self.guid.iter().zip(&self.name).zip(self.createtxg.iter().zip(&self.creation)).map(row).collect()
    }
}

/// Encodes values as the difference of each from the one before.
fn differences(values: impl Iterator<Item = i64>) -> Vec<i64> {
    let mut last = 0_i64;
    values.map(|value| value.wrapping_sub(std::mem::replace(&mut last, value))).collect()
}

/// Returns `values`, or an empty list if all are 0.
fn unless_zero<T: PartialEq + From<u8>>(values: Vec<T>) -> Vec<T> {
    if values.iter().all(|value| *value == T::from(0)) { Vec::new() } else { values }
}

impl From<&DatasetInventory> for StoredListing {
    fn from(of: &DatasetInventory) -> Self {
        let mut snapshots = Columns {
            createtxg: differences(of.snapshots.iter().map(|s| s.createtxg.cast_signed())),
            creation: differences(of.snapshots.iter().map(|s| s.creation.timestamp())),
            userrefs: unless_zero(of.snapshots.iter().map(|s| s.userrefs).collect()),
            used: unless_zero(of.snapshots.iter().map(|s| s.used).collect()),
            has_clones: of.snapshots.iter().enumerate().filter(|(_, s)| s.has_clones).map(|(at, _)| at).collect(),
            ..Columns::default()
        };
        of.snapshots.iter().for_each(|s| snapshots.push(s.guid, &s.name));
        let mut bookmarks = Columns {
            createtxg: differences(of.bookmarks.iter().map(|b| b.createtxg.cast_signed())),
            creation: differences(of.bookmarks.iter().map(|b| b.creation.timestamp())),
            ..Columns::default()
        };
        of.bookmarks.iter().for_each(|b| bookmarks.push(b.guid, &b.name));
        Self {
            kind: of.kind,
            guid: of.guid.map(|guid| guid.0),
            written: of.written,
            encrypted: of.encrypted,
            origin: of.origin.clone(),
            excluded: of.excluded,
            append_only: of.append_only,
            flags: of.flags,
            resume_token: of.resume_token.clone(),
            transfer_holds: of.transfer_holds.clone(),
            destroy_after: of.destroy_after,
            trashed: of.trashed.clone(),
            snapshots,
            bookmarks,
        }
    }
}

impl TryFrom<StoredListing> for DatasetInventory {
    type Error = String;

    fn try_from(held: StoredListing) -> Result<Self, String> {
        let Columns { userrefs, used, has_clones, .. } = &held.snapshots;
        let rows = held.snapshots.guid.len();
        if [userrefs.len(), used.len()].iter().any(|length| ![0, rows].contains(length)) {
            return Err("its columns differ in length".to_owned());
        }
        let snapshot = |(at, (guid, name, createtxg, creation)): (usize, _)| Snapshot {
            name,
            guid,
            createtxg,
            creation,
            userrefs: userrefs.get(at).copied().unwrap_or(0),
            has_clones: has_clones.binary_search(&at).is_ok(),
            used: used.get(at).copied().unwrap_or(0),
            marks: Marks::default(),
        };
        let bookmark = |(guid, name, createtxg, creation)| Bookmark { name, guid, createtxg, creation };
        let mut inventory = Self {
            kind: held.kind,
            guid: held.guid.map(Guid),
            written: held.written,
            encrypted: held.encrypted,
            key_from: None,
            origin: held.origin,
            excluded: held.excluded,
            append_only: held.append_only,
            flags: held.flags,
            resume_token: held.resume_token,
            transfer_holds: held.transfer_holds,
            destroy_after: held.destroy_after,
            trashed: held.trashed,
            // A host remembers its own earlier listings.
            unchanged: None,
            snapshots: held.snapshots.rows()?.into_iter().enumerate().map(snapshot).collect(),
            bookmarks: held.bookmarks.rows()?.into_iter().map(bookmark).collect(),
            not_written: Vec::new(),
        };
        inventory.sort();
        Ok(inventory)
    }
}

fn micros(value: i64) -> Result<DateTime<Utc>, String> {
    DateTime::from_timestamp_micros(value).ok_or_else(|| format!("{value} is not a valid time"))
}

/// Encodes any value.
pub(super) fn pack(value: &impl Serialize) -> Vec<u8> {
    // Cannot fail: all values are strings, numbers, lists and structures.
    let json = serde_json::to_vec(value).unwrap_or_default();
    compress_to_vec_zlib(&json, LEVEL)
}

/// Decodes what [`pack`] encoded.
pub(super) fn unpack<T: DeserializeOwned>(value: &[u8]) -> Result<T, String> {
    let json = decompress_to_vec_zlib_with_limit(value, LARGEST_JSON)
        .map_err(|error| format!("it is not compressed with zlib: {error}"))?;
    serde_json::from_slice(&json).map_err(|error| error.to_string())
}

/// Encodes the value of a dataset's pair.
pub(super) fn encode(dataset: &CatalogDataset) -> Vec<u8> {
    let flags = |marks: Marks| u8::from(marks.sent) | u8::from(marks.sync) << 1;
    pack(&StoredDataset {
        version: VERSION,
        parts: None,
        held: dataset.listed.as_ref().map(StoredListing::from),
        marks: dataset.marks.iter().map(|(guid, (marks, at))| (guid.0, flags(*marks), at.timestamp_micros())).collect(),
        not_written: dataset.not_written.iter().map(|(name, at)| (name.clone(), at.timestamp_micros())).collect(),
    })
}

/// Encodes the value of a dataset's pair that refers to other pairs.
pub(super) fn encode_parts(parts: Parts) -> Vec<u8> {
    pack(&StoredDataset { version: VERSION, parts: Some(parts), ..StoredDataset::default() })
}

/// Decodes the value of a dataset's pair.
pub(super) fn decode(value: &[u8]) -> Result<Value, String> {
    let StoredDataset { version, parts, held, marks, not_written } = unpack(value)?;
    if version != VERSION {
        return Err(format!("it has version {version}, but only version {VERSION} is supported"));
    }
    if let Some(parts) = parts {
        return Ok(Value::Parts(parts));
    }
    let mark = |(guid, flags, at): (u64, u8, i64)| {
        let marks = Marks { sent: flags & 1 != 0, sync: flags & 2 != 0, deleted: false };
        Ok::<_, String>((Guid(guid), (marks, micros(at)?)))
    };
    Ok(Value::Whole(Box::new(CatalogDataset {
        listed: held.map(DatasetInventory::try_from).transpose()?,
        marks: marks.into_iter().map(mark).collect::<Result<_, _>>()?,
        not_written: not_written
            .into_iter()
            .map(|(name, at)| Ok::<_, String>((name, micros(at)?)))
            .collect::<Result<_, _>>()?,
    })))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn snapshots() -> impl Strategy<Value = Vec<Snapshot>> {
        let one = (any::<u64>(), any::<u64>(), 0..4_000_000_000_i64, any::<u32>(), any::<bool>(), any::<u64>());
        let one = one.prop_map(|(guid, createtxg, creation, userrefs, has_clones, used)| Snapshot {
            name: format!("S_{guid}").parse().unwrap(),
            guid: Guid(guid),
            createtxg,
            creation: DateTime::from_timestamp(creation, 0).unwrap(),
            userrefs,
            has_clones,
            used,
            marks: Marks::default(),
        });
        prop::collection::vec(one, 0..20)
    }

    proptest! {
        #[test]
        fn decode_returns_every_field_that_was_encoded(
            snapshots in snapshots(),
            kept in any::<bool>(),
            written in any::<Option<u64>>(),
            token in any::<Option<String>>(),
        ) {
            let bookmark = |s: &Snapshot| Bookmark { name: s.name.clone(), guid: s.guid, createtxg: s.createtxg, creation: s.creation };
            let mut inventory = DatasetInventory {
                kind: DatasetKind::Volume,
                guid: written.map(Guid),
                written,
                encrypted: kept,
                key_from: None,
                origin: kept.then(|| "tank/a@b".parse().unwrap()),
                excluded: kept,
                append_only: Some(kept),
                flags: kept.then_some(SendFlags::PLAIN),
                unchanged: None,
                transfer_holds: token.iter().cloned().collect(),
                destroy_after: written,
                trashed: kept.then(|| snapshots.iter().map(|s| Trashed { guid: s.guid, since: s.creation, used: s.used }).collect()),
                resume_token: token,
                bookmarks: snapshots.iter().take(3).map(bookmark).collect(),
                snapshots: snapshots.clone(),
                not_written: Vec::new(),
            };
            inventory.sort();
            let at = DateTime::from_timestamp_micros(1_800_000_000_123_456).unwrap();
            let marks = Marks { sent: true, sync: kept, deleted: false };
            let dataset = CatalogDataset {
                listed: kept.then_some(inventory),
                marks: snapshots.iter().take(2).map(|s| (s.guid, (marks, at))).collect(),
                not_written: snapshots.iter().take(2).map(|s| (s.name.clone(), at)).collect(),
            };
            let Ok(Value::Whole(read)) = decode(&encode(&dataset)) else { panic!() };
            let read = *read;
            prop_assert_eq!(read, dataset);
        }

        #[test]
        fn decode_of_foreign_value_fails(mut bytes in any::<Vec<u8>>(), json in any::<String>()) {
            prop_assert!(decode(&bytes).is_err());
            prop_assert!(decode(&compress_to_vec_zlib(json.as_bytes(), 1)).is_err());
            let whole = encode(&CatalogDataset::default());
            bytes.truncate(3);
            bytes.extend(&whole[bytes.len().min(whole.len())..]);
            // Whether this is valid or not, it must not panic.
            drop(decode(&bytes));
        }
    }

    #[test]
    fn snapshot_takes_about_twenty_bytes() {
        let snapshot = |n: u64| Snapshot {
            name: format!("BACKUP_2026-11-{:02}_{:02}:00:00", 1 + n / 24, n % 24).parse().unwrap(),
            guid: Guid((n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            createtxg: 1_000_000 + n * 720 + n % 7,
            creation: DateTime::from_timestamp(1_795_000_000 + i64::try_from(n * 3600).unwrap(), 0).unwrap(),
            userrefs: 0,
            has_clones: false,
            used: 0,
            marks: Marks::default(),
        };
        let inventory = DatasetInventory { snapshots: (0..100).map(snapshot).collect(), ..DatasetInventory::default() };
        let value = encode(&CatalogDataset { listed: Some(inventory), ..CatalogDataset::default() });
        assert!(value.len() < 2200, "{} bytes for 100 snapshots", value.len());
    }
}
