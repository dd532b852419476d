//! Decides which of the recorded properties of a lost dataset a restore sets.

use std::collections::BTreeMap;

use crate::model::{DatasetName, Place, SourceRecord, some_of};
use crate::policy::properties::{is_about_place, is_dangerous, is_restorable};

/// How many properties a note names at most. Fewer are dangerous, so that all of these are shown.
const MAX_NAMED: usize = 40;

/// The properties that a restore sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoredProperties {
    /// By name.
    pub set: BTreeMap<String, String>,
    /// What the user has to know about them before they are set.
    pub notes: Vec<String>,
}

/// Decides which properties to set on a dataset that is restored. `recorded` is what its copy says about the lost
/// dataset; `is_in_place` says that the dataset is restored where it was lost, under its own name.
///
/// The copy's host may be in the hands of somebody else. So the notes contain the value of each property that can make
/// the host mount, run or share something.
#[must_use]
pub fn restored_properties(recorded: Option<&SourceRecord>, is_in_place: bool) -> RestoredProperties {
    let Some(recorded) = recorded else {
        let note = "its properties were not recorded: set them again";
        return RestoredProperties { notes: vec![note.to_owned()], ..RestoredProperties::default() };
    };
    let is_set = |name: &str| is_restorable(name) && (is_in_place || !is_about_place(name));
    let (set, not_set): (BTreeMap<_, _>, BTreeMap<_, _>) =
        recorded.properties.clone().into_iter().partition(|(name, _)| is_set(name));
    let mut notes = Vec::new();
    let mut note = |what: &str, named: Vec<String>| {
        let named: Vec<&str> = named.iter().map(String::as_str).collect();
        if !named.is_empty() {
            notes.push(format!("{what}: {}", some_of(&named, MAX_NAMED)));
        }
    };
    note("sets", set.iter().filter(|(name, _)| is_dangerous(name)).map(shown).collect());
    let (elsewhere, unknown): (Vec<_>, Vec<_>) = not_set.iter().partition(|(name, _)| is_restorable(name));
    note("not set, because it is restored in another place", elsewhere.into_iter().map(shown).collect());
    note("not set, because zsync does not know it", unknown.into_iter().map(shown).collect());
    note("not recorded, because the value was too long", recorded.left_out.clone());
    RestoredProperties { set, notes }
}

/// The dataset whose key a restored dataset is to use again; `None` if the lost one had a key of its own, or if the
/// restore has no dataset in the place of the one whose key it used. `elsewhere` is the uppermost dataset that is
/// restored, unless that is done in place.
#[must_use]
pub fn restored_key(recorded: &SourceRecord, dataset: &Place, elsewhere: Option<&Place>) -> Option<DatasetName> {
    let levels = recorded.key_levels()?;
    let above = dataset.dataset.ancestors().nth(levels.checked_sub(1)?)?;
    elsewhere.is_none_or(|root| above.is_within(&root.dataset)).then_some(above)
}

/// A property with its value. A value that a terminal could misread is escaped.
fn shown((name, value): (&String, &String)) -> String {
    let is_plain = |c: char| c.is_ascii_graphic() && c != '"' && c != '\\';
    match !value.is_empty() && value.chars().all(is_plain) {
        true => format!("{name}={value}"),
        false => format!("{name}=\"{}\"", value.escape_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(properties: &[(&str, &str)]) -> SourceRecord {
        let properties = properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        SourceRecord { properties, ..SourceRecord::default() }
    }

    fn names(of: &RestoredProperties) -> Vec<&str> {
        of.set.keys().map(String::as_str).collect()
    }

    #[test]
    fn values_that_mount_or_share_are_shown() {
        let recorded = record(&[
            ("com.example:note", "a\u{1b}[2J"),
            ("compression", "zstd"),
            ("mountpoint", "/srv/my files"),
            ("setuid", "off"),
        ]);
        let restored = restored_properties(Some(&recorded), true);
        assert_eq!(names(&restored), ["com.example:note", "compression", "mountpoint", "setuid"]);
        assert_eq!(restored.notes, ["sets: mountpoint=\"/srv/my files\", setuid=off"]);
    }

    #[test]
    fn nothing_is_mounted_or_shared_in_the_place_of_another_dataset() {
        let recorded = record(&[("compression", "zstd"), ("mountpoint", "/srv\u{1b}"), ("sharenfs", "on")]);
        let restored = restored_properties(Some(&recorded), false);
        assert_eq!(names(&restored), ["compression"]);
        let why = "not set, because it is restored in another place";
        assert_eq!(restored.notes, [format!("{why}: mountpoint=\"/srv\\u{{1b}}\", sharenfs=on")]);
    }

    #[test]
    fn what_a_restore_never_sets_is_named() {
        let recorded = SourceRecord {
            left_out: vec!["com.example:long".to_owned()],
            ..record(&[("keylocation", "file:///etc/shadow"), ("newprop", "on"), ("volsize", "1G")])
        };
        let restored = restored_properties(Some(&recorded), true);
        assert_eq!(names(&restored), Vec::<&str>::new());
        let [unknown, long] = &restored.notes[..] else { panic!("{restored:?}") };
        assert!(unknown.ends_with(": keylocation=file:///etc/shadow, newprop=on, volsize=1G"), "{unknown}");
        assert!(long.ends_with(": com.example:long"), "{long}");
    }

    #[test]
    fn key_is_that_of_the_dataset_as_many_levels_above() {
        let place = |dataset: &str| Place { host: "alpha".parse().unwrap(), dataset: dataset.parse().unwrap() };
        let key_from = Some("tank/a".parse().unwrap());
        let recorded = SourceRecord { source: Some(place("tank/a/b/c")), key_from, ..record(&[]) };
        for (dataset, elsewhere, expected) in [
            ("tank/a/b/c", None, Some("tank/a")),
            ("usb/x/b/c", Some("usb/x"), Some("usb/x")),
            ("usb/x/c", Some("usb/x/c"), None),
            ("usb/c", Some("usb/c"), None),
        ] {
            let key = restored_key(&recorded, &place(dataset), elsewhere.map(place).as_ref());
            assert_eq!(key.as_ref().map(DatasetName::as_str), expected, "{dataset}");
        }
        assert_eq!(restored_key(&record(&[]), &place("tank/a/b"), None), None);
    }

    #[test]
    fn copy_without_a_record_is_reported() {
        let restored = restored_properties(None, true);
        assert_eq!((names(&restored), restored.notes.len()), (Vec::new(), 1));
    }
}
