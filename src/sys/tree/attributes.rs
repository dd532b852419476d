//! Reads and sets what a file has besides its content: owner, mode, times and extended attributes.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, chownat, fchmod, fchown, futimens, utimensat};

use super::sink::{Attributes, LONGEST_ATTRIBUTE};

pub(super) use extended::{each, set};

fn owner(attributes: &Attributes) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)))
}

fn times(attributes: &Attributes) -> Timestamps {
    // The type of the nanoseconds differs between systems.
    let time = |(seconds, nanoseconds)| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Timestamps { last_access: time(attributes.accessed), last_modification: time(attributes.modified) }
}

/// Sets the owner and the mode of an open file or folder.
pub(super) fn set_owner(attributes: &Attributes, to: impl AsFd) -> io::Result<()> {
    let (uid, gid) = owner(attributes);
    fchown(&to, uid, gid)?;
    // After the owner: a change of owner clears the bits for set-user-ID.
    Ok(fchmod(&to, Mode::from_raw_mode(attributes.mode & 0o7777))?)
}

/// Sets the times of an open file or folder.
pub(super) fn set_times(attributes: &Attributes, to: impl AsFd) -> io::Result<()> {
    Ok(futimens(&to, &times(attributes))?)
}

/// Sets owner and times of something that cannot be opened, such as a symbolic link.
pub(super) fn set_at(attributes: &Attributes, folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let (uid, gid) = owner(attributes);
    chownat(folder, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(utimensat(folder, name, &times(attributes), AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(target_os = "linux")]
mod extended {
    use super::{AsFd, LONGEST_ATTRIBUTE, io};
    use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
    use rustix::io::Errno;

    /// Reads the extended attributes, with the access control list, until `take` returns false.
    pub fn each(from: impl AsFd, mut take: impl FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        let mut list = vec![0; LONGEST_ATTRIBUTE];
        let length = match flistxattr(&from, &mut list[..]) {
            Ok(0) | Err(Errno::NOTSUP) => return Ok(()),
            Ok(length) => length,
            Err(error) => return Err(error.into()),
        };
        let mut value = vec![0; LONGEST_ATTRIBUTE];
        for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let length = fgetxattr(&from, name, &mut value[..])?;
            if !take(name, &value[..length]) {
                break;
            }
        }
        Ok(())
    }

    /// Sets an extended attribute. One that the file system does not have is an error.
    pub fn set(to: impl AsFd, name: &[u8], value: &[u8]) -> io::Result<()> {
        fsetxattr(&to, name, value, XattrFlags::empty()).map_err(|error| {
            let name = String::from_utf8_lossy(name);
            io::Error::other(format!("cannot set its extended attribute {name:?}: {}", io::Error::from(error)))
        })
    }
}

#[cfg(not(target_os = "linux"))]
mod extended {
    use super::{AsFd, io};

    /// Extended attributes are copied only on Linux.
    pub fn each(_: impl AsFd, _: impl FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        Ok(())
    }

    /// Extended attributes are copied only on Linux.
    pub fn set(_: impl AsFd, _: &[u8], _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}
