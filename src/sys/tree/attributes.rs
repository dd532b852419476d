//! Copies what a file has besides its content: owner, mode, times and extended attributes.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid, chownat, fchmod, fchown, futimens, utimensat};

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

fn times(stat: &Stat) -> Timestamps {
    // The type of the nanoseconds differs between systems.
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec as _),
    }
}

/// Gives an open file or folder the attributes of another one.
pub(super) fn copy(from: impl AsFd, stat: &Stat, to: impl AsFd) -> io::Result<()> {
    let (uid, gid) = owner(stat);
    fchown(&to, uid, gid)?;
    // After the owner: a change of owner clears the bits for set-user-ID.
    fchmod(&to, Mode::from_raw_mode(stat.st_mode))?;
    // An access control list is an attribute, and may change the mode in the way that it did before.
    extended::copy(from, &to)?;
    Ok(futimens(&to, &times(stat))?)
}

/// Gives something that cannot be opened, such as a symbolic link, the owner and times of another one.
pub(super) fn copy_at(stat: &Stat, folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let (uid, gid) = owner(stat);
    chownat(folder, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(utimensat(folder, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(target_os = "linux")]
mod extended {
    use super::{AsFd, io};
    use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
    use rustix::io::Errno;

    /// The longest list of names and the longest value that Linux permits, in bytes.
    const LONGEST: usize = 64 << 10;

    /// Copies the extended attributes. Those that the destination's file system does not have are an error.
    pub(super) fn copy(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
        let mut list = vec![0; LONGEST];
        let length = match flistxattr(&from, &mut list[..]) {
            Ok(length) => length,
            Err(Errno::NOTSUP) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let mut value = vec![0; LONGEST];
            let length = fgetxattr(&from, name, &mut value[..])?;
            fsetxattr(&to, name, &value[..length], XattrFlags::empty()).map_err(|error| {
                let name = String::from_utf8_lossy(name);
                io::Error::other(format!("cannot set its extended attribute {name:?}: {}", io::Error::from(error)))
            })?;
        }
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
mod extended {
    use super::{AsFd, io};

    /// Extended attributes are copied only on Linux.
    pub(super) fn copy(_: impl AsFd, _: impl AsFd) -> io::Result<()> {
        Ok(())
    }
}
