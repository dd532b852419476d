//! The output of `zfs` as values, strictly: a column too many or too few is an error that shows the line.

use std::collections::BTreeMap;

use chrono::DateTime;

use crate::model::{
    Bookmark, DatasetInventory, DatasetKind, DatasetName, Guid, Marks, NameError, Origin, SendFlags, SnapName, Snapshot,
};
use crate::zfs::{ErrorKind, Fate, Listed, Resumable};

/// The oldest OpenZFS that zsync works with: the first with `zfs version`, resumable raw sends and bookmarks of
/// encrypted datasets.
pub const OLDEST_VERSION: (u32, u32) = (2, 0);
/// The first version that has `snapshots_changed` (zfsprops(7)).
pub const TELLS_CHANGES: (u32, u32) = (2, 2);

/// A line that is not what was asked for.
pub type Bad = String;

fn columns<const N: usize>(line: &str) -> Result<[&str; N], Bad> {
    let found: Vec<&str> = line.split('\t').collect();
    <[&str; N]>::try_from(found).map_err(|found| format!("{} columns instead of {N} in {line:?}", found.len()))
}

fn number(line: &str, column: &str, text: &str) -> Result<u64, Bad> {
    text.parse().map_err(|_| format!("{column} {text:?} is not a number in {line:?}"))
}

fn lines(output: &[u8]) -> Result<impl Iterator<Item = &str>, Bad> {
    let text = std::str::from_utf8(output).map_err(|e| format!("it is not UTF-8: {e}"))?;
    Ok(text.lines().filter(|line| !line.is_empty()))
}

/// A name that ZFS took and zsync does not: with a blank at its end, which people cannot see and files drop. One such
/// dataset is no reason to see none of the others.
fn is_strange(name: &str) -> Option<NameError> {
    if name.ends_with(' ') { name.parse::<DatasetName>().err() } else { None }
}

/// Reads a listing of datasets (`argv::DATASET_COLUMNS`).
pub fn datasets(output: &[u8]) -> Result<Vec<Listed>, Bad> {
    each_dataset(output, dataset)
}

/// Reads one of `argv::list_changes`; with each dataset comes when its snapshots were changed last, where ZFS knows.
pub fn changes(output: &[u8]) -> Result<Vec<(Listed, Option<i64>)>, Bad> {
    each_dataset(output, |line| {
        let (rest, changed) = line.rsplit_once('\t').ok_or_else(|| format!("one column in {line:?}"))?;
        let number = || changed.parse().map_err(|_| format!("snapshots_changed {changed:?} in {line:?}"));
        Ok((dataset(rest)?, if changed == "-" { None } else { Some(number()?) }))
    })
}

fn each_dataset<T>(output: &[u8], read: impl Fn(&str) -> Result<T, Bad>) -> Result<Vec<T>, Bad> {
    let strange = |line: &&str| {
        let name = line.split('\t').next().unwrap_or_default();
        is_strange(name).inspect(|error| log::warn!("{error}: the dataset is left out")).is_none()
    };
    lines(output)?.filter(strange).map(read).collect()
}

fn dataset(line: &str) -> Result<Listed, Bad> {
    let [name, kind, guid, written, encryption, token, origin, exclude, flags] = columns(line)?;
    let name: DatasetName = name.parse().map_err(|e| format!("{e} in {line:?}"))?;
    let own_guid = guid;
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
        origin: crate::zfs::parse::origin(line, origin)?,
        excluded: exclude == "on",
        flags: crate::zfs::parse::flags(flags, own_guid),
        resume_token: (token != "-").then(|| token.to_owned()),
        ..DatasetInventory::default()
    };
    Ok((name, inventory))
}

fn origin(line: &str, text: &str) -> Result<Option<Origin>, Bad> {
    // A clone under way has an origin whose name begins with a sign of ZFS' own.
    if matches!(text, "-" | "") || text.contains('%') {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|e| format!("origin: {e} in {line:?}"))
}

/// The value of `zsync:flags`: the flags and the guid of the dataset that they were noted on. ZFS has datasets inherit
/// it from those above, whose history is another one.
fn flags(text: &str, own_guid: &str) -> Option<SendFlags> {
    let (flags, guid) = text.split_once(' ')?;
    (guid == own_guid).then(|| flags.parse().ok()).flatten()
}

/// A snapshot or a bookmark of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// A snapshot.
    Snapshot(Snapshot),
    /// A bookmark.
    Bookmark(Bookmark),
}

/// Reads a listing of snapshots and bookmarks (`argv::SNAPSHOT_COLUMNS`).
///
/// A snapshot whose name begins with `%` is one of ZFS' own, of a receive under way: left out.
pub fn snapshots(output: &[u8]) -> Result<Vec<(DatasetName, Row)>, Bad> {
    let mut rows = Vec::new();
    // Snapshots of one dataset follow each other: its name is parsed once.
    let mut last: Option<DatasetName> = None;
    for line in lines(output)? {
        let [full, guid, createtxg, creation, userrefs] = columns(line)?;
        let Some(split) = full.find(['@', '#']) else { return Err(format!("no @ or # in {line:?}")) };
        let (dataset, name) = (&full[..split], &full[split + 1..]);
        if name.starts_with('%') || dataset.contains('%') || is_strange(dataset).is_some() {
            continue;
        }
        let dataset = match &last {
            Some(known) if known.as_str() == dataset => known.clone(),
            _ => dataset.parse().map_err(|e| format!("{e} in {line:?}"))?,
        };
        last = Some(dataset.clone());
        let name: SnapName = name.parse().map_err(|e| format!("{e} in {line:?}"))?;
        let guid = Guid(number(line, "guid", guid)?);
        let createtxg = number(line, "createtxg", createtxg)?;
        let creation = i64::try_from(number(line, "creation", creation)?)
            .ok()
            .and_then(|seconds| DateTime::from_timestamp(seconds, 0))
            .ok_or_else(|| format!("creation {creation:?} is out of range in {line:?}"))?;
        rows.push((
            dataset,
            if full.as_bytes()[split] == b'#' {
                Row::Bookmark(Bookmark { name, guid, createtxg, creation })
            } else {
                Row::Snapshot(Snapshot {
                    name,
                    guid,
                    createtxg,
                    creation,
                    userrefs: u32::try_from(number(line, "userrefs", userrefs)?).unwrap_or(u32::MAX),
                    has_clones: false,
                    used: 0,
                    marks: Marks::default(),
                })
            },
        ));
    }
    Ok(rows)
}

/// Puts snapshots and bookmarks to their datasets. A row whose dataset is not listed (created or destroyed
/// between the two commands) is left out: the next listing has it.
#[must_use]
pub fn join(datasets: Vec<Listed>, rows: Vec<(DatasetName, Row)>) -> Vec<Listed> {
    let mut all: BTreeMap<DatasetName, DatasetInventory> = datasets.into_iter().collect();
    for (dataset, row) in rows {
        if let Some(inventory) = all.get_mut(&dataset) {
            match row {
                Row::Snapshot(snapshot) => inventory.snapshots.push(snapshot),
                Row::Bookmark(bookmark) => inventory.bookmarks.push(bookmark),
            }
        }
    }
    for inventory in all.values_mut() {
        inventory.sort();
    }
    all.into_iter().collect()
}

/// Reads a listing of `name,clones`: the snapshots that have any.
pub fn cloned(output: &[u8]) -> Result<Vec<SnapName>, Bad> {
    let mut cloned = Vec::new();
    for line in lines(output)? {
        let [full, clones] = columns(line)?;
        if !matches!(clones, "" | "-") {
            let (_, name) = full.split_once('@').ok_or_else(|| format!("no @ in {line:?}"))?;
            cloned.push(name.parse().map_err(|e| format!("{e} in {line:?}"))?);
        }
    }
    Ok(cloned)
}

/// Reads `zfs get -o name,value` of a numeric property.
pub fn values(output: &[u8]) -> Result<Vec<(DatasetName, u64)>, Bad> {
    lines(output)?
        .map(|line| {
            let [name, value] = columns(line)?;
            Ok((name.parse().map_err(|e| format!("{e} in {line:?}"))?, number(line, "value", value)?))
        })
        .collect()
}

/// Reads `zfs get -o property,value`. A line without a tab goes on with the value before it: those of an
/// administrator's own properties may have several.
pub fn properties(output: &[u8]) -> Result<BTreeMap<String, String>, Bad> {
    let text = std::str::from_utf8(output).map_err(|e| format!("it is not UTF-8: {e}"))?;
    let mut all: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
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

/// Reads what a script says: one word for each of so many things, or none at all where it did not begin.
fn words_of_script(output: &[u8], count: usize) -> Result<Vec<String>, Bad> {
    #[derive(serde::Deserialize)]
    struct Said {
        #[serde(rename = "return")]
        words: BTreeMap<String, String>,
    }
    let mut said: Said = serde_json::from_slice(output).map_err(|e| e.to_string())?;
    if said.words.is_empty() {
        return Ok(Vec::new());
    }
    let mut word = |number: usize| said.words.remove(&number.to_string()).ok_or(number);
    (1..=count).map(&mut word).collect::<Result<_, _>>().map_err(|number| format!("it says nothing of number {number}"))
}

/// Reads what the script that writes says: whether each was written.
pub fn written(output: &[u8], count: usize) -> Result<Vec<bool>, Bad> {
    let words = words_of_script(output, count)?;
    if words.len() != count {
        return Err("it says nothing".into());
    }
    Ok(words.iter().map(|word| word == "done").collect())
}

/// Reads what the script that destroys says.
pub fn fates(output: &[u8], count: usize) -> Result<Vec<Fate>, Bad> {
    let words = words_of_script(output, count)?;
    if words.is_empty() {
        return Ok(vec![Fate::Spared; count]);
    }
    let fate = |word: String| {
        Ok(match word.as_str() {
            "destroyed" => Fate::Destroyed,
            "gone" => Fate::Gone,
            "another" => Fate::Another,
            "held" => Fate::Held,
            "cloned" => Fate::Cloned,
            "doomed" => Fate::Spared,
            other => match other.strip_prefix("failed ") {
                Some(number) => Fate::Failed(number.to_owned()),
                None => return Err(format!("{other:?} is not known")),
            },
        })
    };
    words.into_iter().map(fate).collect()
}

/// Reads the output of `zfs holds -H`: name, tag, time (a tag may hold anything but a tab).
pub fn holds(output: &[u8]) -> Result<Vec<(SnapName, String)>, Bad> {
    lines(output)?
        .map(|line| {
            let mut found = line.split('\t');
            let (Some(full), Some(tag), Some(_), None) = (found.next(), found.next(), found.next(), found.next())
            else {
                return Err(format!("not 3 columns in {line:?}"));
            };
            let (_, name) = full.split_once('@').ok_or_else(|| format!("no @ in {line:?}"))?;
            Ok((name.parse().map_err(|e| format!("{e} in {line:?}"))?, tag.to_owned()))
        })
        .collect()
}

/// Reads what `zfs send -nPt` tells of a token: its content, then `full` or `incremental` with the names as they are now.
pub fn resumable(output: &[u8]) -> Result<Resumable, Bad> {
    let (mut guid, mut dataset, mut raw) = (None, None, false);
    for line in lines(output)? {
        if let Some(hex) = line.trim_start().strip_prefix("toguid = 0x") {
            guid = Some(Guid(u64::from_str_radix(hex, 16).map_err(|e| format!("{e} in {line:?}"))?));
        }
        raw |= line.trim() == "rawok = 1";
        let found: Vec<&str> = line.split('\t').collect();
        if let ["full", to, _] | ["incremental", _, to, _] = found.as_slice() {
            let (name, _) = to.split_once('@').ok_or_else(|| format!("no @ in {line:?}"))?;
            dataset = Some(name.parse().map_err(|e| format!("{e} in {line:?}"))?);
        }
    }
    let whole = dataset.zip(guid).map(|(dataset, guid)| Resumable { dataset, guid, raw });
    whole.ok_or_else(|| "it does not tell which snapshot the token is of".to_owned())
}

/// No pool is as large: such a number is a mistake of ZFS, as some versions make it with bookmarks.
const ABSURD: u64 = 1 << 60;

/// Reads the number behind `size` (`zfs send -nP`) or `reclaim` (`zfs destroy -nvp`), if there is one that can be
/// believed.
pub fn size(output: &[u8], word: &str) -> Result<Option<u64>, Bad> {
    let mut size = None;
    for line in lines(output)? {
        if let Some(bytes) = line.strip_prefix(word).and_then(|rest| rest.strip_prefix('\t')) {
            size = Some(number(line, word, bytes)?);
        }
    }
    Ok(size.filter(|size| *size < ABSURD))
}

/// Whether a text can be a `receive_resume_token`: another host may have sent it, and it becomes an argument of `zfs`.
#[must_use]
pub fn is_token(text: &str) -> bool {
    text.len() < 64 * 1024
        && text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

/// Reads `zfs version`: `zfs-2.3.9-1~bpo12+1`, then the kernel module's line.
pub fn version(output: &[u8]) -> Result<(String, (u32, u32)), Bad> {
    let line = lines(output)?.next().ok_or("it is empty")?;
    let numbers = line.strip_prefix("zfs-").unwrap_or(line);
    let mut parts = numbers.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((line.to_owned(), (major, minor))),
        _ => Err(format!("{line:?} is not a version")),
    }
}

/// What the words on standard error mean. Unknown words stay unknown.
#[must_use]
pub fn error_kind(stderr: &str) -> ErrorKind {
    let rules: &[(&[&str], ErrorKind)] = &[
        // "destination tank/copy has been modified", and on the next line "since most recent snapshot".
        (&["has been modified"], ErrorKind::Modified),
        (&["does not match incremental source"], ErrorKind::Modified),
        (&["has dependent clones", "snapshot has dependent clone"], ErrorKind::HasClones),
        (
            &["resume token is corrupt", "cannot resume send", "used in the initial send no longer exists"],
            ErrorKind::StaleToken,
        ),
        (&["out of space", "No space left", "quota exceeded", "Disk quota"], ErrorKind::NoSpace),
        (&["I/O is currently suspended", "pool I/O", "I/O error"], ErrorKind::Pool),
        (
            &["incomplete stream", "invalid stream", "checksum mismatch", "failed to read from stream", "bad magic"],
            ErrorKind::Stream,
        ),
        (
            &["is busy", "being held", "partially-complete state", "is currently being received", "being received"],
            ErrorKind::Busy,
        ),
        (&["permission denied", "Permission denied", "insufficient privileges"], ErrorKind::Permission),
        (
            &[
                "does not exist",
                "no such pool",
                "could not find any snapshots",
                "no such tag",
                "does not have any resumable receive state",
            ],
            ErrorKind::NotFound,
        ),
        (&["already exists", "bookmark exists", "must specify -F to overwrite it"], ErrorKind::Exists),
    ];
    rules.iter().find(|(words, _)| words.iter().any(|w| stderr.contains(w))).map_or(ErrorKind::Other, |(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As OpenZFS 2.3.9 prints it.
    #[test]
    fn sizes_are_read_from_what_zfs_prints() {
        let sent = "incremental\ts1\ttank/a@s2\t2109424\nincremental\ts2\ttank/a@s3\t7792\nsize\t2117216\n";
        assert_eq!(size(sent.as_bytes(), "size"), Ok(Some(2_117_216)));
        let destroyed = "destroy\ttank/a@s1\ndestroy\ttank/a@s2\nreclaim\t5275648\n";
        assert_eq!(size(destroyed.as_bytes(), "reclaim"), Ok(Some(5_275_648)));
        assert_eq!(size(b"incremental\ttank/a#b1\ttank/a@s2\n", "size"), Ok(None), "from a bookmark, before 2.0");
        // Near 2^64: the difference of two numbers went below zero.
        assert_eq!(size(b"size\t18446744073709486080\n", "size"), Ok(None));
        assert!(size(b"size\tmuch\n", "size").is_err());
    }

    #[test]
    fn what_openzfs_says_is_understood() {
        // As OpenZFS 2.3.9 prints it.
        for (stderr, kind) in [
            (
                "cannot receive incremental stream: destination b/d has been modified\nsince most recent snapshot",
                ErrorKind::Modified,
            ),
            ("cannot receive new filesystem stream: out of space", ErrorKind::NoSpace),
            ("cannot receive new filesystem stream: destination b/q/d space quota exceeded.", ErrorKind::NoSpace),
            (
                "cannot receive incremental stream: destination b/d contains partially-complete state from \"zfs receive -s\".",
                ErrorKind::Busy,
            ),
            (
                "cannot receive new filesystem stream: checksum mismatch or incomplete stream.\n\
                 Partially received snapshot is saved.",
                ErrorKind::Stream,
            ),
            ("cannot resume send: 'a/d@3' used in the initial send no longer exists", ErrorKind::StaleToken),
            ("cannot resume send: resume token is corrupt (invalid format)", ErrorKind::StaleToken),
            ("cannot open 'nopool/x': dataset does not exist", ErrorKind::NotFound),
            ("cannot create 'nopool/x': no such pool 'nopool'", ErrorKind::NotFound),
            ("could not find any snapshots to destroy; check snapshot names.", ErrorKind::NotFound),
            ("cannot create bookmark 'b/d#1': bookmark exists", ErrorKind::Exists),
            (
                "cannot receive new filesystem stream: destination 'b/d' exists\nmust specify -F to overwrite it",
                ErrorKind::Exists,
            ),
            ("'b/d' does not have any resumable receive state to abort", ErrorKind::NotFound),
            ("something new", ErrorKind::Other),
        ] {
            assert_eq!(error_kind(stderr), kind, "{stderr}");
        }
    }

    #[test]
    fn a_token_tells_what_it_goes_on_with() {
        let full = "resume token contents:\nnvlist version: 0\n\tobject = 0x2\n\toffset = 0x9c0000\n\t\
                    toguid = 0x8b5cf572e767ea29\n\ttoname = a/d@1\n\tembedok = 1\nfull\ta/e@9\t21144744\nsize\t21144744\n";
        // The name in the token is that of then, the other one that of now.
        let expected = Resumable { dataset: "a/e".parse().unwrap(), guid: Guid(0x8b5c_f572_e767_ea29), raw: false };
        assert_eq!(resumable(full.as_bytes()).unwrap(), expected);
        let more = full.replace("full\t", "incremental\ta/e@8\t");
        assert_eq!(resumable(more.as_bytes()).unwrap(), expected);
        let raw = full.replace("\tembedok = 1", "\tcompressok = 1\n\trawok = 1");
        assert!(resumable(raw.as_bytes()).unwrap().raw);
        assert!(resumable(b"size\t21144744\n").unwrap_err().contains("does not tell"));
    }

    #[test]
    fn a_listing_of_changes_tells_when_snapshots_were_changed_last() {
        // OpenZFS 2.3.9: zfs list -Hp -o ...,snapshots_changed
        let listed = changes(
            b"pool\tfilesystem\t11592893478120303936\t24576\toff\t-\t-\t-\t-\t-\n\
              pool/data\tfilesystem\t5975252592676264749\t0\toff\t-\t-\t-\tLec 5975252592676264749\t1795676569\n",
        );
        let told: Vec<_> = listed.unwrap().into_iter().map(|((name, d), at)| (name.to_string(), d.flags, at)).collect();
        let copy = ("pool/data".to_owned(), Some(SendFlags::PLAIN), Some(1_795_676_569));
        assert_eq!(told, [("pool".to_owned(), None, None), copy]);
        assert!(changes(b"pool\tfilesystem\t1\t0\toff\t-\t-\t-\t-\tx\n").unwrap_err().contains("snapshots_changed"));
    }

    #[test]
    fn a_listing_leaves_out_names_with_a_blank_at_the_end_alone() {
        let line = |name: &str| format!("{name}\tfilesystem\t1\t0\toff\t-\t-\t-\t-\n");
        let listed = datasets([line("t"), line("t/x "), line("t/a b")].concat().as_bytes());
        let names: Vec<String> = listed.unwrap().into_iter().map(|(name, _)| name.to_string()).collect();
        assert_eq!(names, ["t", "t/a b"]);
        assert!(snapshots(b"t/x @s\t1\t1\t1\t0\n").unwrap().is_empty());
        assert!(datasets(b"t\tfilesystem\t1\t0\toff\n").unwrap_err().contains("5 columns instead of 9"));
    }

    #[test]
    fn a_listing_tells_of_clones_of_what_is_excluded_and_of_a_copys_own_flags() {
        let listed = datasets(
            b"t/c\tfilesystem\t7\t0\toff\t-\tt/d@1\ton\tLec 7\nt/c/x\tfilesystem\t8\t0\taes-256-gcm\t-\t-\ton\tLec 7\n\
              t/d\tfilesystem\t9\t0\toff\t-\tt/%recv@1\t-\tx 9\n",
        );
        let told: Vec<_> = listed.unwrap().into_iter().map(|(_, d)| (d.origin, d.excluded, d.flags)).collect();
        let origin = Some("t/d@1".parse().unwrap());
        assert_eq!(
            told,
            [
                (origin, true, Some(SendFlags::PLAIN)),
                // What it inherits is about the one above it.
                (None, true, None),
                (None, false, None),
            ]
        );
    }

    #[test]
    fn values_of_properties_may_have_several_lines() {
        let told = properties(b"compression\tzstd\nnote:a\tone\ntwo\nreadonly\ton\n").unwrap();
        assert_eq!(told["note:a"], "one\ntwo");
        assert_eq!((told["compression"].as_str(), told["readonly"].as_str()), ("zstd", "on"));
    }

    #[test]
    fn the_script_that_destroys_says_what_became_of_each() {
        let said = br#"{"return":{"1":"destroyed","2":"held","3":"another","4":"gone","5":"failed 16","6":"doomed"}}"#;
        let expected =
            [Fate::Destroyed, Fate::Held, Fate::Another, Fate::Gone, Fate::Failed("16".to_owned()), Fate::Spared];
        assert_eq!(fates(said, 6).unwrap(), expected);
        assert_eq!(fates(br#"{"return":{}}"#, 2).unwrap(), [Fate::Spared, Fate::Spared]);
        assert!(fates(said, 7).unwrap_err().contains("nothing of number 7"));
    }
}
