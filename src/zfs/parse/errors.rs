//! Derives the kind of an error from the words of the `zfs` command.

use crate::zfs::ErrorKind;

/// The words by which a kind is recognised. The first rule that matches decides.
const RULES: &[(&[&str], ErrorKind)] = &[
    // In both, the line ends within the sentence: "since most recent snapshot", "does not".
    (&["has been modified", "match incremental source"], ErrorKind::Modified),
    (&["has dependent clones", "snapshot has dependent clone"], ErrorKind::HasClones),
    (
        &["resume token is corrupt", "cannot resume send", "used in the initial send no longer exists"],
        ErrorKind::StaleToken,
    ),
    (&["out of space", "No space left", "quota exceeded", "Disk quota"], ErrorKind::NoSpace),
    (&["I/O is currently suspended", "pool I/O", "I/O error"], ErrorKind::Pool),
    (&["pool is read-only", "pool is readonly"], ErrorKind::ReadOnly),
    (&["invalid property", "upgraded to set this property", "apply to datasets of this type"], ErrorKind::Property),
    (&["pool must be upgraded", "feature not enabled"], ErrorKind::Feature),
    (&["requires -L"], ErrorKind::LargeBlocks),
    (&["ey must be loaded", "key is not loaded", "key not loaded"], ErrorKind::KeyNotLoaded),
    (&["IV set guid mismatch", "raw receive on top of existing unencrypted dataset"], ErrorKind::NotRaw),
    (
        &[
            "incomplete stream",
            "invalid stream",
            "invalid backup stream",
            "checksum mismatch",
            "failed to read from stream",
        ],
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
    (
        &["already exists", "bookmark exists", "must specify -F to overwrite it", "must destroy them to overwrite it"],
        ErrorKind::Exists,
    ),
];

/// What a message on standard error means; [`ErrorKind::Other`] if it is not known.
#[must_use]
pub fn error_kind(stderr: &str) -> ErrorKind {
    RULES.iter().find(|(words, _)| words.iter().any(|w| stderr.contains(w))).map_or(ErrorKind::Other, |(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Messages that OpenZFS printed, each below the kind of error that it is.
    const CAPTURED: &str = include_str!("../../../tests/corpus/zfs-errors");

    #[test]
    fn error_kind_recognises_messages_of_openzfs() {
        let mut seen = BTreeSet::new();
        for (kind, words) in CAPTURED.split("----\n").filter_map(|piece| piece.split_once('\n')) {
            assert_eq!(format!("{:?}", error_kind(words)), kind, "{words}");
            seen.insert(kind);
        }
        for (_, kind) in RULES {
            assert!(seen.contains(format!("{kind:?}").as_str()), "no message shows {kind:?}");
        }
    }
}
