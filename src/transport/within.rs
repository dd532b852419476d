//! Connects an agent with a slave in the same process, for a host that is reached through ssh.

use std::io;

use async_std::os::unix::net::UnixStream;

use crate::transport::tcp::{Connection, WriteHalf};

/// The two ends of a connection. `near` and `far` are the names, for messages, of those who have an end: each end has
/// the name of the other one.
pub(crate) fn pair(near: &str, far: &str) -> io::Result<(Connection, Connection)> {
    let (here, there) = UnixStream::pair()?;
    let end = |stream: UnixStream, peer: &str| {
        Connection::over(stream.clone(), WriteHalf::new(stream, UnixStream::shutdown), peer.to_owned())
    };
    Ok((end(here, far), end(there, near)))
}
