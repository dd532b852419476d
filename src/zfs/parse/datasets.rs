//! Parses listings of datasets and of their properties.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::model::{DatasetInventory, DatasetKind, DatasetName, Guid, KeyState, Origin, SendFlags};
use crate::zfs::parse::lines::{ParseError, columns, lines, number};
use crate::zfs::{DatasetColumns, Listed};

/// A dataset of a listing, with the time when its snapshots last changed, if that was asked for and ZFS knows it.
pub type DatasetRow = (Listed, Option<i64>);

/// Parses a listing of datasets (`argv::list_datasets`) with these columns. Fails if a value of a user property makes
/// the listing ambiguous.
pub fn datasets(output: &[u8], with: DatasetColumns) -> Result<Vec<DatasetRow>, ParseError> {
    let mut seen = HashSet::new();
    let mut rows = Vec::new();
    for line in lines(output)? {
        let mut columns: Vec<&str> = line.split('\t').collect();
        let (count, number_of) = (7 + usize::from(with.changed) + if with.user { 3 } else { 0 }, columns.len());
        if number_of != count {
            return Err(format!("{number_of} columns instead of {count} in {line:?}"));
        }
        let name = columns[0];
        let mut user = ("-", "-");
        if with.user {
            let (flags, exclude) = (columns[count - 2], columns[count - 3]);
            if columns[count - 1] != name {
                return Err(format!("two names in {line:?}"));
            }
            user = (exclude, flags);
            columns.truncate(count - 3);
        }
        if !seen.insert(name) {
            return Err(format!("{name:?} is listed twice"));
        }
        rows.push(dataset(line, &columns, user)?);
    }
    Ok(rows)
}

fn dataset(line: &str, columns: &[&str], (exclude, flags): (&str, &str)) -> Result<DatasetRow, ParseError> {
    let [name, kind, guid, written, root, token, origin, changed @ ..] = columns else {
        return Err(format!("{} columns in {line:?}", columns.len()));
    };
    let kind = match *kind {
        "filesystem" => DatasetKind::Filesystem,
        "volume" => DatasetKind::Volume,
        _ => return Err(format!("type {kind:?} in {line:?}")),
    };
    let changed = changed.first().filter(|changed| **changed != "-");
    let seconds = |text: &&str| text.parse().map_err(|_| format!("snapshots_changed {text:?} in {line:?}"));
    let inventory = DatasetInventory {
        kind,
        guid: Some(Guid(number(line, "guid", guid)?)),
        written: if *written == "-" { None } else { Some(number(line, "written", written)?) },
        encrypted: *root != "-",
        key_from: if *root == "-" || root == name { None } else { Some(parse_root(line, root)?) },
        origin: parse_origin(line, origin)?,
        excluded: exclude == "on",
        flags: parse_flags(flags, guid),
        resume_token: (*token != "-").then(|| (*token).to_owned()),
        ..DatasetInventory::default()
    };
    let name = name.parse().map_err(|e| format!("{e} in {line:?}"))?;
    Ok(((name, inventory), changed.map(seconds).transpose()?))
}

/// Parses the output of `argv::list_keys`: the datasets below `root` that use its key.
pub fn key_users(output: &[u8], root: &DatasetName) -> Result<Vec<DatasetName>, ParseError> {
    let mut users = Vec::new();
    for line in lines(output)? {
        let [name, key_of, origin] = columns(line)?;
        // A clone gets a new key together with its origin.
        if key_of == root.as_str() && name != root.as_str() && matches!(origin, "-" | "") {
            users.push(name.parse().map_err(|e| format!("{e} in {line:?}"))?);
        }
    }
    Ok(users)
}

/// Parses the output of `argv::list_key_states`: the keys of the encrypted datasets.
pub fn key_states(output: &[u8]) -> Result<BTreeMap<DatasetName, KeyState>, ParseError> {
    let mut states = BTreeMap::new();
    for line in lines(output)? {
        let [name, root, status] = columns(line)?;
        if root != "-" {
            let dataset = name.parse().map_err(|e| format!("{e} in {line:?}"))?;
            states.insert(dataset, KeyState { root: parse_root(line, root)?, is_loaded: status == "available" });
        }
    }
    Ok(states)
}

/// What a listing states about the user properties of one dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserProperties<'a> {
    /// The values of `zsync:exclude` and `zsync:flags`.
    Clear(&'a str, &'a str),
    /// Several lines are plausible, because a value of some dataset fakes one. The properties have to be queried one by
    /// one.
    Ambiguous,
}

/// Parses a listing of user properties (`argv::list_user_properties`), whatever the values contain.
pub fn user_properties(output: &[u8]) -> BTreeMap<DatasetName, UserProperties<'_>> {
    let mut found: BTreeMap<DatasetName, UserProperties<'_>> = BTreeMap::new();
    for line in output.split(|byte| *byte == b'\n') {
        let Ok(line) = std::str::from_utf8(line) else { continue };
        let [name, exclude, flags, again] = line.split('\t').collect::<Vec<_>>()[..] else { continue };
        if let (true, Ok(dataset)) = (name == again, name.parse()) {
            let values = UserProperties::Clear(exclude, flags);
            found.entry(dataset).and_modify(|before| *before = UserProperties::Ambiguous).or_insert(values);
        }
    }
    found
}

/// What a value of `zsync:exclude` means; `None` if it has no meaning. ZFS writes `on`; people write other words, too.
fn excludes(value: &str) -> Option<bool> {
    let is_one_of = |words: &[&str]| words.iter().any(|word| value.trim().eq_ignore_ascii_case(word));
    let means_no = is_one_of(&["-", "", "off", "no", "false", "0"]);
    (means_no || is_one_of(&["on", "yes", "true", "1"])).then_some(!means_no)
}

/// Sets what the user properties mean for a dataset. Returns whether the value of `zsync:exclude` has a meaning.
#[must_use]
pub fn apply_user_properties(inventory: &mut DatasetInventory, exclude: &str, flags: &str) -> bool {
    let excluded = excludes(exclude);
    inventory.excluded = excluded.unwrap_or_default();
    let guid = inventory.guid.map(|guid| guid.0.to_string()).unwrap_or_default();
    inventory.flags = parse_flags(flags, &guid);
    excluded.is_some()
}

fn parse_root(line: &str, text: &str) -> Result<DatasetName, ParseError> {
    text.parse().map_err(|e| format!("encryptionroot: {e} in {line:?}"))
}

fn parse_origin(line: &str, text: &str) -> Result<Option<Origin>, ParseError> {
    // The origin of a clone that is still being received has an internal name of ZFS, with a `%`.
    if matches!(text, "-" | "") || text.contains('%') {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|e| format!("origin: {e} in {line:?}"))
}

/// Parses `zsync:flags`: the flags, and the guid of the dataset that they belong to. A value that was inherited from a
/// dataset above belongs to the history of that dataset, and is ignored.
fn parse_flags(text: &str, own_guid: &str) -> Option<SendFlags> {
    let (flags, guid) = text.split_once(' ')?;
    (guid == own_guid).then(|| flags.parse().ok()).flatten()
}

/// Parses the output of `zfs get -o name,value` for a numeric property. Datasets that do not have it are left out.
pub fn values(output: &[u8]) -> Result<Vec<(DatasetName, u64)>, ParseError> {
    let mut values = Vec::new();
    for line in lines(output)? {
        let [name, value] = columns(line)?;
        let dataset = name.parse().map_err(|e| format!("{e} in {line:?}"))?;
        if value != "-" {
            values.push((dataset, number(line, "value", value)?));
        }
    }
    Ok(values)
}

/// Parses the output of `argv::properties`. Fails with the names of all properties if a value makes it ambiguous.
pub fn properties(output: &[u8]) -> Result<BTreeMap<String, String>, BTreeSet<String>> {
    let text = String::from_utf8_lossy(output);
    let mut all = BTreeMap::new();
    let mut is_clear = std::str::from_utf8(output).is_ok();
    for line in text.lines() {
        match line.split('\t').collect::<Vec<_>>()[..] {
            [name, value, again] if name == again => {
                is_clear &= all.insert(name.to_owned(), value.to_owned()).is_none();
            }
            [name, ..] => {
                is_clear = false;
                all.entry(name.to_owned()).or_default();
            }
            [] => {}
        }
    }
    if is_clear { Ok(all) } else { Err(all.into_keys().filter(|name| is_property(name)).collect()) }
}

/// Parses the output of `argv::properties_of` for these datasets; `None` if a value makes it ambiguous.
pub fn properties_of(
    output: &[u8],
    datasets: &[DatasetName],
) -> Option<BTreeMap<DatasetName, BTreeMap<String, String>>> {
    let text = std::str::from_utf8(output).ok()?;
    let mut all: BTreeMap<DatasetName, BTreeMap<String, String>> =
        datasets.iter().map(|dataset| (dataset.clone(), BTreeMap::new())).collect();
    for line in text.lines() {
        let [name, property, value, property_again, name_again] = line.split('\t').collect::<Vec<_>>()[..] else {
            return None;
        };
        let of_dataset = all.get_mut(&name.parse().ok()?)?;
        let is_new = of_dataset.insert(property.to_owned(), value.to_owned()).is_none();
        if name != name_again || property != property_again || !is_new {
            return None;
        }
    }
    Some(all)
}

/// Whether a text can be the name of a property. A line that is part of a value may begin with any other text.
fn is_property(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.:+@ ".contains(c);
    text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()) && text.chars().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: DatasetColumns = DatasetColumns { changed: false, user: true };
    const ALL: DatasetColumns = DatasetColumns { changed: true, user: true };

    #[test]
    fn properties_of_several_datasets_are_told_apart() {
        let datasets: [DatasetName; 2] = ["a", "a/b"].map(|name| name.parse().unwrap());
        let lines = "a\tcompression\tzstd\tcompression\ta\na\tx:note\ttwo words\tx:note\ta\n";
        let found = properties_of(lines.as_bytes(), &datasets).unwrap();
        assert_eq!((found[&datasets[0]].len(), found[&datasets[1]].len()), (2, 0));
        assert_eq!(found[&datasets[0]]["x:note"], "two words");
        for ambiguous in [
            "a\tx:note\ttwo\nlines\tx:note\ta\n",
            "a\tx:note\ttab\tx:note\tx:note\ta\n",
            "a\tx:note\t1\tx:note\ta\na\tx:note\t1\tx:note\ta\n",
            "a\tx:note\t1\tx:note\tb\n",
            "c\tx:note\t1\tx:note\tc\n",
        ] {
            assert_eq!(properties_of(ambiguous.as_bytes(), &datasets), None, "{ambiguous}");
        }
    }

    #[test]
    fn datasets_returns_the_time_of_the_last_change() {
        // OpenZFS 2.3.9: zfs list -Hp -o ...,snapshots_changed,zsync:exclude,zsync:flags,name
        let listed = datasets(
            b"pool\tfilesystem\t11592893478120303936\t24576\t-\t-\t-\t-\t-\t-\tpool\n\
              pool/data\tfilesystem\t5975252592676264749\t0\t-\t-\t-\t1795676569\t-\tLec 5975252592676264749\tpool/data\n",
            ALL,
        );
        let parsed: Vec<_> =
            listed.unwrap().into_iter().map(|((name, d), at)| (name.to_string(), d.flags, at)).collect();
        let copy = ("pool/data".to_owned(), Some(SendFlags::PLAIN), Some(1_795_676_569));
        assert_eq!(parsed, [("pool".to_owned(), None, None), copy]);
        let error = datasets(b"pool\tfilesystem\t1\t0\t-\t-\t-\tx\t-\t-\tpool\n", ALL).unwrap_err();
        assert!(error.contains("snapshots_changed"), "{error}");
    }

    #[test]
    fn every_word_for_yes_excludes_and_others_have_no_meaning() {
        for (value, expected) in [
            ("on", Some(true)),
            ("Yes", Some(true)),
            ("TRUE", Some(true)),
            ("1", Some(true)),
            ("off", Some(false)),
            ("no", Some(false)),
            ("-", Some(false)),
            ("", Some(false)),
            ("maybe", None),
            ("on,off", None),
        ] {
            assert_eq!(excludes(value), expected, "{value:?}");
        }
    }

    #[test]
    fn datasets_may_have_blanks_in_their_names() {
        let line = |name: &str| format!("{name}\tfilesystem\t1\t0\t-\t-\t-\t-\t-\t{name}\n");
        let listed = datasets([line("t"), line("t/x "), line("t/a b")].concat().as_bytes(), USER);
        let names: Vec<String> = listed.unwrap().into_iter().map(|((name, _), _)| name.to_string()).collect();
        assert_eq!(names, ["t", "t/x ", "t/a b"]);
        let error = datasets(b"t\tfilesystem\t1\t0\toff\n", USER).unwrap_err();
        assert!(error.contains("5 columns instead of 10"), "{error}");
    }

    #[test]
    fn datasets_returns_origin_exclusion_and_own_flags() {
        let listed = datasets(
            b"t/c\tfilesystem\t7\t0\t-\t-\tt/d@1\ton\tLec 7\tt/c\n\
              t/c/x\tfilesystem\t8\t0\tt/c\t-\t-\ton\tLec 7\tt/c/x\n\
              t/d\tfilesystem\t9\t0\t-\t-\tt/%recv@1\t-\tx 9\tt/d\n",
            USER,
        );
        let parsed: Vec<_> = listed.unwrap().into_iter().map(|((_, d), _)| (d.origin, d.excluded, d.flags)).collect();
        let origin = Some("t/d@1".parse().unwrap());
        assert_eq!(
            parsed,
            [
                (origin, true, Some(SendFlags::PLAIN)),
                // Its flags are inherited from the dataset above.
                (None, true, None),
                (None, false, None),
            ]
        );
    }

    #[test]
    fn datasets_detects_every_line_that_a_value_fakes() {
        let head = |name: &str| format!("{name}\tfilesystem\t1\t0\t-\t-\t-\t");
        let faked = format!("{}-\t-\tt/new\n", head("t/new"));
        let own = head("t/a");
        for value in [
            "on\tx".to_owned(),
            "on\nx".to_owned(),
            // A line of a dataset that does not exist, with a beginning and an end of its own.
            format!("on\t-\tt/a\n{faked}x"),
            format!("on\t-\tt/a\n{faked}{own}on"),
            format!("on\t-\tt/a\n{}", head("t/new")),
        ] {
            let output = format!("{own}{value}\t-\tt/a\n");
            assert!(datasets(output.as_bytes(), USER).is_err(), "{output}");
        }
        assert!(datasets(format!("{own}\u{fffd}\t-\tt/a\n").as_bytes(), USER).is_ok());
        assert!(datasets(&[own.as_bytes(), b"\xff\t-\tt/a\n"].concat(), USER).is_err());
    }

    #[test]
    fn user_properties_of_one_dataset_do_not_affect_others() {
        let output =
            b"t\t-\t-\tt\nt/a\ton\t-\tt/a\nt/b\ton\t-\tt/b\nt/a\tx\t-\tt/a\nt/b\t-\t-\tt/b\nt/c\t\xff\t-\tt/c\n";
        let found = user_properties(output);
        let of = |name: &str| found.get(&name.parse().unwrap()).copied();
        assert_eq!(of("t"), Some(UserProperties::Clear("-", "-")));
        assert_eq!((of("t/a"), of("t/b")), (Some(UserProperties::Ambiguous), Some(UserProperties::Ambiguous)));
        assert_eq!(of("t/c"), None);
    }

    #[test]
    fn properties_with_strange_values_are_ambiguous() {
        let parsed = properties(b"compression\tzstd\tcompression\nreadonly\ton\treadonly\n").unwrap();
        assert_eq!((parsed["compression"].as_str(), parsed["readonly"].as_str()), ("zstd", "on"));
        // The second property's value contains a newline, and a line that looks like another property.
        let names =
            properties(b"compression\tzstd\tcompression\na:b\tx\ta:b\nmountpoint\t/\tmountpoint\na:b\ty\ta:b\n");
        assert_eq!(names.unwrap_err().into_iter().collect::<Vec<_>>(), ["a:b", "compression", "mountpoint"]);
        let names = properties(b"note:a\tone\nTwo words\tnote:a\n").unwrap_err();
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["note:a"]);
    }
}
