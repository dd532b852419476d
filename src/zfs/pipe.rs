//! Enlarges pipes that carry streams, and moves streams between them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::model::Counter;

/// The size that is requested for pipes that carry streams. With the kernel's default of 64 KiB, half of the time is
/// spent on waking processes up.
const PIPE_SIZE: usize = 1 << 20;

/// Enlarges a pipe. If an unprivileged user has used up what the kernel grants, it stays as it is.
pub(super) fn widen(pipe: impl AsFd) {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::pipe::fcntl_setpipe_size(pipe, PIPE_SIZE) {
        log::debug!("cannot enlarge a pipe: {error}");
    }
    #[cfg(not(target_os = "linux"))]
    drop(pipe);
}

/// Moves a stream from one pipe to another until its end, and counts its bytes.
pub(super) fn pump(from: &OwnedFd, to: &OwnedFd, counter: &Counter) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    loop {
        // Moves pages between the pipes instead of copying bytes.
        match rustix::pipe::splice(from, None, to, None, PIPE_SIZE, rustix::pipe::SpliceFlags::MOVE) {
            Ok(0) => return Ok(()),
            Ok(moved) => counter.add(moved as u64),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let mut buffer = vec![0; PIPE_SIZE];
        loop {
            let read = rustix::io::read(from, &mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            let mut rest = &buffer[..read];
            while !rest.is_empty() {
                let written = rustix::io::write(to, rest)?;
                rest = &rest[written..];
            }
            counter.add(read as u64);
        }
    }
}
