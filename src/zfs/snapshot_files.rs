//! Opens the files of snapshots for reading.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::model::{DatasetName, SnapName};
use crate::zfs::{ErrorKind, ZfsError};

/// Opens the uppermost folder of a snapshot, as [`open_snapshot`] does.
pub type Open = Arc<dyn Fn(&DatasetName, &SnapName) -> Result<OwnedFd, ZfsError> + Send + Sync>;

/// Opens the uppermost folder of a snapshot.
///
/// The snapshot is mounted read-only, but nowhere: only the descriptor refers to the mount, and the kernel removes it
/// with the descriptor, also if the process is killed. Meanwhile the snapshot is busy and cannot be destroyed.
pub fn open_snapshot(dataset: &DatasetName, snapshot: &SnapName) -> Result<OwnedFd, ZfsError> {
    let name = dataset.at(snapshot);
    mount(&name).map_err(|error| failed(&name, error))
}

#[cfg(target_os = "linux")]
fn mount(name: &str) -> rustix::io::Result<OwnedFd> {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount,
        fsopen,
    };
    let context = fsopen("zfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", name)?;
    fsconfig_set_flag(&context, "ro")?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

#[cfg(not(target_os = "linux"))]
fn mount(_: &str) -> rustix::io::Result<OwnedFd> {
    Err(rustix::io::Errno::NOSYS)
}

fn failed(name: &str, error: rustix::io::Errno) -> ZfsError {
    use rustix::io::Errno;
    let (kind, words) = match error {
        Errno::ACCESS => (ErrorKind::KeyNotLoaded, "its key is not loaded".to_owned()),
        Errno::PERM => (ErrorKind::Permission, "only root may mount a snapshot".to_owned()),
        Errno::NOENT => (ErrorKind::NotFound, "it does not exist".to_owned()),
        Errno::NOSYS => (ErrorKind::Other, "that needs Linux 5.2 or newer".to_owned()),
        Errno::NODEV => (ErrorKind::Missing, "the kernel has no ZFS".to_owned()),
        error => (ErrorKind::Other, std::io::Error::from(error).to_string()),
    };
    let command = format!("mount -t zfs -o ro {name}");
    ZfsError { kind, command, status: "failed".to_owned(), stderr: words }
}
