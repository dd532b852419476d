//! Parses the version of ZFS.

use crate::zfs::parse::lines::{ParseError, lines};

/// The oldest OpenZFS that zsync works with: the first version with `zfs version`, resumable raw sends and bookmarks of
/// encrypted datasets.
pub const OLDEST_VERSION: (u32, u32) = (2, 0);
/// The first version that has `snapshots_changed` (zfsprops(7)).
pub const FIRST_WITH_SNAPSHOTS_CHANGED: (u32, u32) = (2, 2);

/// Parses the output of `zfs version`: `zfs-2.3.9-1~bpo12+1`, then a line for the kernel module. Returns the first line
/// and its number.
pub fn version(output: &[u8]) -> Result<(String, (u32, u32)), ParseError> {
    let line = lines(output)?.next().ok_or("it is empty")?;
    let numbers = line.strip_prefix("zfs-").unwrap_or(line);
    let mut parts = numbers.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((line.to_owned(), (major, minor))),
        _ => Err(format!("{line:?} is not a version")),
    }
}
