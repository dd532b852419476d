//! Names of datasets, snapshots and hosts, checked when they are parsed.
//!
//! The rules are those of OpenZFS' `zfs_namecheck.c` (see zfs(8), "NAMING"). A checked name can neither be mistaken for
//! an option nor refer to anything outside its dataset.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike, NaiveDate, Timelike, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// The longest full name (`dataset@snapshot`) that ZFS permits, in bytes.
pub const MAX_FULL_NAME: usize = 255;
/// The longest prefix of snapshot names, in bytes: it leaves room for the time and the dataset.
const MAX_PREFIX: usize = 100;
/// The longest host name, in bytes (RFC 1035).
pub const MAX_HOST_NAME: usize = 253;

/// Why a text is not a valid name of some kind.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{text:?} is not a {kind}: {reason}")]
pub struct NameError {
    /// The kind: "dataset name", "snapshot name", ...
    pub kind: &'static str,
    /// The text as found, shortened if it is very long.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

fn bad<T>(kind: &'static str, text: &str, reason: impl Into<String>) -> Result<T, NameError> {
    let mut excerpt: String = text.chars().take(80).collect();
    if excerpt.len() < text.len() {
        excerpt.push('…');
    }
    Err(NameError { kind, text: excerpt, reason: reason.into() })
}

fn is_component_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b' ')
}

fn check_component(kind: &'static str, whole: &str, component: &str) -> Result<(), NameError> {
    if component.is_empty() {
        return bad(kind, whole, "a component is empty");
    }
    if component == "." || component == ".." {
        return bad(kind, whole, "\".\" and \"..\" are not components");
    }
    match component.chars().find(|c| !c.is_ascii() || !is_component_byte(*c as u8)) {
        Some(c) => bad(kind, whole, format!("{c:?} is not allowed (allowed: letters, digits and - _ . :)")),
        None => Ok(()),
    }
}

macro_rules! text_type {
    ($name:ident) => {
        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &self.0)
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<&str> for $name {
            type Error = NameError;
            fn try_from(text: &str) -> Result<Self, NameError> {
                text.parse()
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// The name of a filesystem or volume: `pool/a/b`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatasetName(Box<str>);
text_type!(DatasetName);

impl FromStr for DatasetName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        const KIND: &str = "dataset name";
        if text.is_empty() {
            return bad(KIND, text, "it is empty");
        }
        if text.len() > MAX_FULL_NAME {
            return bad(KIND, text, format!("it is longer than {MAX_FULL_NAME} bytes"));
        }
        if !text.as_bytes()[0].is_ascii_alphabetic() {
            return bad(KIND, text, "a pool's name begins with a letter, without a leading \"/\"");
        }
        for component in text.split('/') {
            check_component(KIND, text, component)?;
        }
        Ok(Self(text.into()))
    }
}

impl DatasetName {
    /// The pool of the dataset.
    #[must_use]
    pub fn pool(&self) -> &str {
        self.0.split('/').next().unwrap_or(&self.0)
    }

    /// The dataset that contains this one, `None` for a pool's root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        self.0.rsplit_once('/').map(|(parent, _)| Self(parent.into()))
    }

    /// A name under which this dataset can be restored beside it, or below it if it is a pool.
    #[must_use]
    pub fn restored_name(&self) -> String {
        if self.parent().is_some() { format!("{self}_restored") } else { format!("{self}/restored") }
    }

    /// The datasets that contain this one, the nearest first.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> {
        std::iter::successors(self.parent(), Self::parent)
    }

    /// Whether `self` is `root` or a descendant of it, by whole components.
    #[must_use]
    pub fn is_within(&self, root: &Self) -> bool {
        self.below(root).is_some()
    }

    /// The part of the name below `root`: empty for `root` itself, `None` for a dataset outside of it.
    #[must_use]
    pub fn below(&self, root: &Self) -> Option<&str> {
        let rest = self.0.strip_prefix(&*root.0)?;
        if rest.is_empty() { Some("") } else { rest.strip_prefix('/') }
    }

    /// The dataset at the path `relative` below this one; `relative` may be empty or have several components.
    pub fn join(&self, relative: &str) -> Result<Self, NameError> {
        if relative.is_empty() { Ok(self.clone()) } else { format!("{self}/{relative}").parse() }
    }

    /// Whether ZFS permits a snapshot of this name here: it limits the length of the full name.
    #[must_use]
    pub fn has_room_for(&self, snapshot: &SnapName) -> bool {
        self.0.len() + 1 + snapshot.0.len() <= MAX_FULL_NAME
    }

    /// The full name of a snapshot of this dataset.
    #[must_use]
    pub fn at(&self, snapshot: &SnapName) -> String {
        format!("{self}@{snapshot}")
    }
}

/// The name of a snapshot or bookmark within its dataset: the part after `@` or `#`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapName(Box<str>);
text_type!(SnapName);

impl FromStr for SnapName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        const KIND: &str = "snapshot name";
        if text.len() > MAX_FULL_NAME - 2 {
            return bad(KIND, text, format!("it is longer than {} bytes", MAX_FULL_NAME - 2));
        }
        check_component(KIND, text, text)?;
        Ok(Self(text.into()))
    }
}

/// The prefix of the names of a policy's snapshots: `BACKUP` in `BACKUP_2026-11-23_10:30:00`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(Box<str>);
text_type!(Prefix);

impl FromStr for Prefix {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        const KIND: &str = "snapshot prefix";
        if text.len() > MAX_PREFIX {
            return bad(KIND, text, format!("it is longer than {MAX_PREFIX} bytes"));
        }
        check_component(KIND, text, text)?;
        if text.starts_with('-') || text.contains(' ') {
            return bad(KIND, text, "it begins with \"-\" or has a blank");
        }
        Ok(Self(text.into()))
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

impl Prefix {
    /// The name of a snapshot with this prefix and a time: `PREFIX_2026-11-23_10:30:00`, in UTC.
    #[must_use]
    pub fn stamp(&self, at: DateTime<Utc>) -> SnapName {
        // The result needs no check: the prefix was checked, and the rest is short and consists of permitted
        // characters.
        let (year, month, day) = (at.year().clamp(0, 9999), at.month(), at.day());
        let (hour, minute, second) = (at.hour(), at.minute(), at.second());
        SnapName(format!("{self}_{year:04}-{month:02}-{day:02}_{hour:02}:{minute:02}:{second:02}").into())
    }

    /// The time in the name of a snapshot with this prefix; `None` for any other name.
    ///
    /// Everything after the prefix must be a time, so that the prefixes `A` and `A_B` are never confused. zeplic's
    /// form, `PREFIX_2017-July-01_10:30:00`, is accepted too.
    #[must_use]
    pub fn time_in(&self, name: &SnapName) -> Option<DateTime<Utc>> {
        parse_stamp(name.0.strip_prefix(&*self.0)?.strip_prefix('_')?)
    }

    /// The prefix of a name that ends with a time; `None` for any other name.
    #[must_use]
    pub fn of(name: &SnapName) -> Option<Self> {
        let (rest, _) = name.0.rsplit_once('_')?;
        let (prefix, _) = rest.rsplit_once('_')?;
        let prefix: Self = prefix.parse().ok()?;
        prefix.time_in(name).is_some().then_some(prefix)
    }
}

/// Parses `2026-11-23_10:30:00` or `2017-July-01_10:30:00`. For speed, it does not use a general date parser: one
/// pass may call it a million times.
fn parse_stamp(text: &str) -> Option<DateTime<Utc>> {
    fn digits(text: &[u8]) -> Option<u32> {
        text.iter().try_fold(0, |n, b| b.is_ascii_digit().then(|| n * 10 + u32::from(b - b'0')))
    }
    let bytes = text.as_bytes();
    // What comes before the month (year, "-") and after it ("-", day, "_", time) has a fixed length.
    let (year, month) = (bytes.get(..4)?, bytes.get(5..bytes.len().checked_sub(12)?)?);
    let [b'-', d1, d2, b'_', h1, h2, b':', m1, m2, b':', s1, s2] = *bytes.last_chunk::<12>()? else { return None };
    if bytes[4] != b'-' {
        return None;
    }
    let month = match month.len() {
        2 => digits(month)?,
        _ => u32::try_from(MONTHS.iter().position(|m| m.as_bytes() == month)?).ok()? + 1,
    };
    let year = i32::try_from(digits(year)?).ok()?;
    let date = NaiveDate::from_ymd_opt(year, month, digits(&[d1, d2])?)?;
    date.and_hms_opt(digits(&[h1, h2])?, digits(&[m1, m2])?, digits(&[s1, s2])?).map(|t| t.and_utc())
}

/// The name of a host in policy and catalog.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(Box<str>);
text_type!(HostName);

impl FromStr for HostName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        const KIND: &str = "host name";
        if text.is_empty() {
            return bad(KIND, text, "it is empty");
        }
        if text.len() > MAX_HOST_NAME {
            return bad(KIND, text, format!("it is longer than {MAX_HOST_NAME} bytes"));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        match text.chars().find(|c| !allowed(*c)) {
            Some(c) => bad(KIND, text, format!("{c:?} is not allowed (allowed: letters, digits and - _ .)")),
            None if text.starts_with(['-', '.']) => bad(KIND, text, "it begins with \"-\" or \".\""),
            None => Ok(Self(text.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dataset_name_follows_zfs_namecheck() {
        for good in ["tank", "tank/foo", "tank/a.b-c_d:e", "t/with blank", "t/ends with a blank ", "Tank9/x"] {
            assert!(DatasetName::try_from(good).is_ok(), "{good}");
        }
        let long = format!("tank/{}", "x".repeat(260));
        for bad in [
            "",
            "/tank",
            "tank/",
            "tank//a",
            "tank/..",
            "tank/./a",
            "tank@a",
            "tank/a#b",
            "tank/%recv",
            "-rf",
            "9tank",
            "tank/ü",
            "tank/a\nb",
            &long,
        ] {
            assert!(DatasetName::try_from(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn below_compares_whole_components() {
        let root: DatasetName = "tank/foo".parse().unwrap();
        let below = |s: &str| DatasetName::try_from(s).unwrap().below(&root).map(str::to_owned);
        assert_eq!(below("tank/foo").as_deref(), Some(""));
        assert_eq!(below("tank/foo/a/b").as_deref(), Some("a/b"));
        assert_eq!(below("tank/foobar"), None);
        assert_eq!(below("tank"), None);
    }

    #[test]
    fn time_in_needs_a_complete_time_after_the_prefix() {
        let prefix: Prefix = "BACKUP".parse().unwrap();
        let time = |name: &str| prefix.time_in(&name.parse().unwrap()).map(|t| t.to_rfc3339());
        assert_eq!(time("BACKUP_2026-11-23_10:30:00").as_deref(), Some("2026-11-23T10:30:00+00:00"));
        assert_eq!(time("BACKUP_2017-July-01_10:30:00").as_deref(), Some("2017-07-01T10:30:00+00:00"));
        assert_eq!(time("BACKUP_2017-September-30_23:59:59").as_deref(), Some("2017-09-30T23:59:59+00:00"));
        assert_eq!(time("BACKUP_2017-May-01_00:00:00").as_deref(), Some("2017-05-01T00:00:00+00:00"));
        for foreign in [
            "BACKUP",
            "BACKUP_",
            "BACKUP_x",
            "BACKUP2026-11-23_10:30:00",
            "xBACKUP_2026-11-23_10:30:00",
            "BACKUP_2026-11-23_10:30",
            "BACKUP_2026-11-23_10:30:00x",
            "BACKUP_2026-11-23_10:30:00_B",
            "BACKUP_B_2026-11-23_10:30:00",
            "BACKUP__2026-11-23_10:30:00",
            "backup_2026-11-23_10:30:00",
            "BACKUP_2026-11-31_10:30:00",
            "BACKUP_2026-13-01_10:30:00",
            "BACKUP_2026-11-23_24:00:00",
            "BACKUP_2026-11-23_10:60:00",
            "BACKUP_2026-11-23_10:30:60",
            "BACKUP_2026-1-23_10:30:00",
            "BACKUP_26-11-23_10:30:00",
            "BACKUP_2026-11-23-10:30:00",
            "BACKUP_2017-july-01_10:30:00",
            "BACKUP_2017-Jul-01_10:30:00",
            "BACKUP_2026--1-23_10:30:00",
            "BACKUP_2026-11-23_ 1:30:00",
            "BACKUP_2026_11-23_10:30:00",
        ] {
            assert_eq!(time(foreign), None, "{foreign}");
        }
        let longer: Prefix = "BACKUP_B".parse().unwrap();
        assert!(longer.time_in(&"BACKUP_B_2026-11-23_10:30:00".parse().unwrap()).is_some());
    }

    #[test]
    fn prefix_of_finds_the_prefix_of_stamped_names() {
        let of = |name: &str| Prefix::of(&name.parse().unwrap()).map(|p| p.to_string());
        assert_eq!(of("A_B_2026-11-23_10:30:00").as_deref(), Some("A_B"));
        for by_hand in ["by hand", "a_b", "_2026-11-23_10:30:00", "A_2026-11-23"] {
            assert_eq!(of(by_hand), None, "{by_hand}");
        }
    }

    #[test]
    fn time_in_reads_back_what_stamp_wrote() {
        let prefix: Prefix = "A_2026-11-23_10:30:00".parse().unwrap();
        for seconds in [0, 951_782_400, 1_795_429_800, 253_402_300_799] {
            let at = DateTime::from_timestamp(seconds, 999).unwrap();
            let name = prefix.stamp(at);
            assert_eq!(name.as_str().parse::<SnapName>().as_ref(), Ok(&name));
            assert_eq!(prefix.time_in(&name), DateTime::from_timestamp(seconds, 0));
        }
        assert_eq!(prefix.stamp(DateTime::<Utc>::MAX_UTC).as_str().len(), 41);
    }

    #[test]
    fn name_error_shows_text_and_reason() {
        let error = DatasetName::try_from("tank/a@b").unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"tank/a@b\" is not a dataset name: '@' is not allowed (allowed: letters, digits and - _ . :)"
        );
    }
}
