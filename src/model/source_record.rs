//! The record of a copy's source: the properties that were set on the source itself.
//!
//! A copy carries it as data, in its property `zsync:properties`. Nothing of it is in force on the copy. A restore sets
//! the properties on what it restores.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::tags::OURS;
use crate::model::{DatasetName, Place};

/// The longest value of a user property in bytes (zfsprops(7)).
const MAX_VALUE: usize = 8191;
/// How many properties a record may have. A dataset has a few dozen that can be set.
const MAX_PROPERTIES: usize = 1000;
/// The longest name of a property in bytes.
const MAX_NAME: usize = 255;

/// What a copy records of its source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// The dataset that was copied. If the copy was made from another copy, this is the first one's source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Place>,
    /// The dataset above it whose encryption key it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_from: Option<DatasetName>,
    /// The properties that were set on it, or that it had received.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
    /// The properties whose values were too long to be recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

/// Whether a text has the form of a property's name, and is not one of zsync's own, which are about one dataset on one
/// host.
fn is_property(name: &str) -> bool {
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b":+._-@".contains(&b);
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    begins && name.len() <= MAX_NAME && name.bytes().all(is_allowed) && !name.starts_with(OURS)
}

/// A value as JSON that consists of printable ASCII characters, so that no listing of ZFS can be confused by it.
fn ascii_json<T: Serialize + ?Sized>(value: &T) -> String {
    let json = serde_json::to_string(value).unwrap_or_default();
    let mut ascii = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() && c != '\u{7f}' {
            ascii.push(c);
        } else {
            // In JSON, such characters are possible only within strings.
            let mut units = [0; 2];
            c.encode_utf16(&mut units).iter().for_each(|unit| ascii.push_str(&format!("\\u{unit:04x}")));
        }
    }
    ascii
}

impl SourceRecord {
    /// The record of a source with these properties. What is not the name of a property that can be recorded is left
    /// out without a word, and what does not fit into a property is left out by name, the longest values first.
    #[must_use]
    pub fn fitting(self) -> Self {
        let Self { source, key_from, properties, mut left_out } = self;
        left_out.retain(|name| is_property(name));
        left_out.truncate(MAX_PROPERTIES);
        let mut properties: Vec<(String, String)> =
            properties.into_iter().filter(|(name, _)| is_property(name)).take(MAX_PROPERTIES).collect();
        properties.sort_by_key(|(name, value)| (value.len(), name.len()));
        // A colon or a comma follows each text.
        let size_of = |(name, value): &(String, String)| ascii_json(name).len() + ascii_json(value).len() + 2;
        let size_of_name = |name: &String| ascii_json(name).len() + 1;
        let empty = Self { source, key_from, properties: BTreeMap::new(), left_out: vec![String::new()] };
        let mut size = ascii_json(&empty).len()
            + properties.iter().map(size_of).sum::<usize>()
            + left_out.iter().map(size_of_name).sum::<usize>();
        while size > MAX_VALUE
            && let Some(longest) = properties.pop()
        {
            size = size - size_of(&longest) + size_of_name(&longest.0);
            left_out.push(longest.0);
        }
        while size > MAX_VALUE
            && let Some(name) = left_out.pop()
        {
            size -= size_of_name(&name);
        }
        left_out.sort();
        left_out.dedup();
        Self { properties: properties.into_iter().collect(), left_out, ..empty }
    }

    /// The value of the property that carries the record.
    #[must_use]
    pub fn value(&self) -> String {
        ascii_json(self)
    }

    /// The record that the value of a property carries; `None` if it is none.
    #[must_use]
    pub fn parse(value: &str) -> Option<Self> {
        let is_short = value.len() <= MAX_VALUE;
        is_short.then(|| serde_json::from_str::<Self>(value).ok()).flatten().map(Self::fitting)
    }

    /// How many levels above the source the dataset is whose key it used; `None` if it had a key of its own, or none.
    #[must_use]
    pub fn key_levels(&self) -> Option<usize> {
        let (source, root) = (self.source.as_ref()?, self.key_from.as_ref()?);
        let at = source.dataset.ancestors().position(|above| above == *root)?;
        Some(at + 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(properties: &[(&str, &str)]) -> SourceRecord {
        let properties = properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let source = Place { host: "alpha".parse().unwrap(), dataset: "tank/home/docs".parse().unwrap() };
        SourceRecord { source: Some(source), properties, ..SourceRecord::default() }
    }

    #[test]
    fn value_is_ascii_and_parse_reads_it() {
        let made = record(&[("com.example:note", "ä\t\n\"\\ 𝄞\u{7f}"), ("compression", "zstd")]);
        let value = made.value();
        assert!(value.bytes().all(|b| (0x20..0x7f).contains(&b)), "{value}");
        assert!(value.contains(r"\u00e4\t\n"), "{value}");
        assert_eq!(SourceRecord::parse(&value), Some(made));
        for other in ["", "on", "[7]", "{\"properties\":7}", "{", "null"] {
            assert_eq!(SourceRecord::parse(other), None, "{other}");
        }
        assert_eq!(SourceRecord::parse("{}"), Some(SourceRecord::default()));
    }

    #[test]
    fn longest_values_are_left_out_by_name() {
        let (long, longer) = ("x".repeat(4000), "ü".repeat(3000));
        let made = record(&[("a:long", &long), ("a:longer", &longer), ("compression", "zstd")]).fitting();
        assert_eq!(made.left_out, ["a:longer"]);
        assert_eq!(made.properties.len(), 2);
    }

    #[test]
    fn only_names_of_properties_are_recorded() {
        let made =
            record(&[("zsync:exclude", "on"), ("compression=on -o x", "1"), ("", ""), ("-x", "1"), ("atime", "off")]);
        assert_eq!(made.fitting(), record(&[("atime", "off")]));
    }

    #[test]
    fn key_levels_counts_the_datasets_between() {
        let with = |root: &str| SourceRecord { key_from: Some(root.parse().unwrap()), ..record(&[]) };
        assert_eq!(with("tank/home").key_levels(), Some(1));
        assert_eq!(with("tank").key_levels(), Some(2));
        assert_eq!(with("usb").key_levels(), None);
        assert_eq!(record(&[]).key_levels(), None);
    }

    proptest! {
        #[test]
        fn every_record_fits_into_a_property(
            properties in proptest::collection::btree_map("[a-z]{1,9}:[a-z]{0,200}", ".{0,900}", 0..60),
            left_out in proptest::collection::vec("[a-z:]{1,255}", 0..60),
        ) {
            let names: Vec<String> = properties.keys().cloned().collect();
            let made = SourceRecord { properties, left_out, ..record(&[]) }.fitting();
            let value = made.value();
            prop_assert!(value.len() <= MAX_VALUE, "{}", value.len());
            prop_assert_eq!(SourceRecord::parse(&value), Some(made.clone()));
            prop_assert_eq!(made.clone().fitting(), made.clone());
            prop_assert!(made.properties.keys().all(|name| names.contains(name)));
        }
    }
}
