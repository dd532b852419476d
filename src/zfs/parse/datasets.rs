//! Listings of datasets and of their properties.

use std::collections::BTreeMap;

use crate::model::{DatasetInventory, DatasetKind, DatasetName, Guid, Origin, SendFlags};
use crate::zfs::Listed;
use crate::zfs::parse::lines::{ParseError, columns, lines, number, text, unsupported_name};

/// Parses a listing of datasets (`argv::list_datasets`).
pub fn datasets(output: &[u8]) -> Result<Vec<Listed>, ParseError> {
    each_dataset(output, dataset)
}

/// Parses a listing of `argv::list_changes`: each dataset with the time when its snapshots last changed, if ZFS knows
/// it.
pub fn changes(output: &[u8]) -> Result<Vec<(Listed, Option<i64>)>, ParseError> {
    each_dataset(output, |line| {
        let (rest, changed) = line.rsplit_once('\t').ok_or_else(|| format!("one column in {line:?}"))?;
        let number = || changed.parse().map_err(|_| format!("snapshots_changed {changed:?} in {line:?}"));
        Ok((dataset(rest)?, if changed == "-" { None } else { Some(number()?) }))
    })
}

fn each_dataset<T>(output: &[u8], parse: impl Fn(&str) -> Result<T, ParseError>) -> Result<Vec<T>, ParseError> {
    let is_supported = |line: &&str| {
        let name = line.split('\t').next().unwrap_or_default();
        unsupported_name(name).inspect(|error| log::warn!("ignoring a dataset: {error}")).is_none()
    };
    lines(output)?.filter(is_supported).map(parse).collect()
}

fn dataset(line: &str) -> Result<Listed, ParseError> {
    let [name, kind, guid, written, encryption, token, origin, exclude, flags] = columns(line)?;
    let name: DatasetName = name.parse().map_err(|e| format!("{e} in {line:?}"))?;
    let kind = match kind {
        "filesystem" => DatasetKind::Filesystem,
        "volume" => DatasetKind::Volume,
        _ => return Err(format!("type {kind:?} in {line:?}")),
    };
    let inventory = DatasetInventory {
        kind,
        guid: Some(Guid(number(line, "guid", guid)?)),
        written: if written == "-" { None } else { Some(number(line, "written", written)?) },
        encrypted: !matches!(encryption, "off" | "-"),
        origin: parse_origin(line, origin)?,
        excluded: exclude == "on",
        flags: parse_flags(flags, guid),
        resume_token: (token != "-").then(|| token.to_owned()),
        ..DatasetInventory::default()
    };
    Ok((name, inventory))
}

fn parse_origin(line: &str, text: &str) -> Result<Option<Origin>, ParseError> {
    // The origin of a clone that is still being received has an internal name of ZFS, with a `%`.
    if matches!(text, "-" | "") || text.contains('%') {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|e| format!("origin: {e} in {line:?}"))
}

/// Parses `zsync:flags`: the flags, and the guid of the dataset that they belong to. A value that was inherited from a
/// dataset above belongs to the history of that one, and does not count.
fn parse_flags(text: &str, own_guid: &str) -> Option<SendFlags> {
    let (flags, guid) = text.split_once(' ')?;
    (guid == own_guid).then(|| flags.parse().ok()).flatten()
}

/// Parses the output of `zfs get -o name,value` for a numeric property.
pub fn values(output: &[u8]) -> Result<Vec<(DatasetName, u64)>, ParseError> {
    lines(output)?
        .map(|line| {
            let [name, value] = columns(line)?;
            Ok((name.parse().map_err(|e| format!("{e} in {line:?}"))?, number(line, "value", value)?))
        })
        .collect()
}

/// Parses the output of `zfs get -o property,value`. A line without a tab continues the value before it, because the
/// values of user properties may have several lines.
pub fn properties(output: &[u8]) -> Result<BTreeMap<String, String>, ParseError> {
    let mut all: Vec<(String, String)> = Vec::new();
    for line in text(output)?.lines() {
        match (line.split_once('\t'), all.last_mut()) {
            (Some((name, value)), _) => all.push((name.to_owned(), value.to_owned())),
            (None, Some((_, value))) => {
                value.push('\n');
                value.push_str(line);
            }
            (None, None) => return Err(format!("no tab in {line:?}")),
        }
    }
    Ok(all.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_returns_the_time_of_the_last_change() {
        // OpenZFS 2.3.9: zfs list -Hp -o ...,snapshots_changed
        let listed = changes(
            b"pool\tfilesystem\t11592893478120303936\t24576\toff\t-\t-\t-\t-\t-\n\
              pool/data\tfilesystem\t5975252592676264749\t0\toff\t-\t-\t-\tLec 5975252592676264749\t1795676569\n",
        );
        let parsed: Vec<_> =
            listed.unwrap().into_iter().map(|((name, d), at)| (name.to_string(), d.flags, at)).collect();
        let copy = ("pool/data".to_owned(), Some(SendFlags::PLAIN), Some(1_795_676_569));
        assert_eq!(parsed, [("pool".to_owned(), None, None), copy]);
        assert!(changes(b"pool\tfilesystem\t1\t0\toff\t-\t-\t-\t-\tx\n").unwrap_err().contains("snapshots_changed"));
    }

    #[test]
    fn datasets_ignores_names_that_end_with_a_blank() {
        let line = |name: &str| format!("{name}\tfilesystem\t1\t0\toff\t-\t-\t-\t-\n");
        let listed = datasets([line("t"), line("t/x "), line("t/a b")].concat().as_bytes());
        let names: Vec<String> = listed.unwrap().into_iter().map(|(name, _)| name.to_string()).collect();
        assert_eq!(names, ["t", "t/a b"]);
        assert!(datasets(b"t\tfilesystem\t1\t0\toff\n").unwrap_err().contains("5 columns instead of 9"));
    }

    #[test]
    fn datasets_returns_origin_exclusion_and_own_flags() {
        let listed = datasets(
            b"t/c\tfilesystem\t7\t0\toff\t-\tt/d@1\ton\tLec 7\nt/c/x\tfilesystem\t8\t0\taes-256-gcm\t-\t-\ton\tLec 7\n\
              t/d\tfilesystem\t9\t0\toff\t-\tt/%recv@1\t-\tx 9\n",
        );
        let parsed: Vec<_> = listed.unwrap().into_iter().map(|(_, d)| (d.origin, d.excluded, d.flags)).collect();
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
    fn properties_joins_the_lines_of_a_value() {
        let parsed = properties(b"compression\tzstd\nnote:a\tone\ntwo\nreadonly\ton\n").unwrap();
        assert_eq!(parsed["note:a"], "one\ntwo");
        assert_eq!((parsed["compression"].as_str(), parsed["readonly"].as_str()), ("zstd", "on"));
    }
}
