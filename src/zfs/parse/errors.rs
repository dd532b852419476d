//! Derives the kind of an error from the words of the `zfs` command.

use crate::zfs::ErrorKind;

/// What a message on standard error means; [`ErrorKind::Other`] if it is not known.
#[must_use]
pub fn error_kind(stderr: &str) -> ErrorKind {
    let rules: &[(&[&str], ErrorKind)] = &[
        // The next line continues: "since most recent snapshot".
        (&["has been modified"], ErrorKind::Modified),
        (&["does not match incremental source"], ErrorKind::Modified),
        (&["has dependent clones", "snapshot has dependent clone"], ErrorKind::HasClones),
        (
            &["resume token is corrupt", "cannot resume send", "used in the initial send no longer exists"],
            ErrorKind::StaleToken,
        ),
        (&["out of space", "No space left", "quota exceeded", "Disk quota"], ErrorKind::NoSpace),
        (&["I/O is currently suspended", "pool I/O", "I/O error"], ErrorKind::Pool),
        (&["pool is read-only", "pool is readonly"], ErrorKind::ReadOnly),
        (&["pool must be upgraded"], ErrorKind::Feature),
        (&["requires -L"], ErrorKind::LargeBlocks),
        (&["key must be loaded", "Key must be loaded"], ErrorKind::KeyNotLoaded),
        (&["IV set guid mismatch"], ErrorKind::NotRaw),
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

    #[test]
    fn error_kind_recognises_messages_of_openzfs() {
        // Messages of OpenZFS 2.3.9.
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
            ("'b/d' does not have any resumable receive state to abort", ErrorKind::NotFound),
            ("cannot receive new filesystem stream: pool must be upgraded to receive this stream.", ErrorKind::Feature),
            (
                "cannot receive incremental stream: incremental send stream requires -L (--large-block), to match \
                 previous receive.",
                ErrorKind::LargeBlocks,
            ),
            (
                "cannot receive incremental stream: IV set guid mismatch. See the 'zfs receive' man page section\n \
                 discussing the limitations of raw encrypted send streams.",
                ErrorKind::NotRaw,
            ),
            ("something new", ErrorKind::Other),
        ] {
            assert_eq!(error_kind(stderr), kind, "{stderr}");
        }
    }
}
