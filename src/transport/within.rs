//! Connects an agent with a slave in the same process, for a host that is reached through ssh.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_std::os::unix::net::UnixStream;
use futures_lite::io::AsyncWrite;

use crate::transport::tcp::Connection;

/// The two ends of a connection. `near` and `far` are the names, for messages, of those who have an end: each end has
/// the name of the other one.
pub(crate) fn pair(near: &str, far: &str) -> io::Result<(Connection, Connection)> {
    let (here, there) = UnixStream::pair()?;
    let end = |stream: UnixStream, peer: &str| Connection {
        reader: Box::new(stream.clone()),
        writer: Box::new(WriteHalf(stream)),
        peer: peer.to_owned(),
        identity: None,
    };
    Ok((end(here, far), end(there, near)))
}

/// The writing half. Closing it shows the other side the end.
struct WriteHalf(UnixStream);

impl AsyncWrite for WriteHalf {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match self.0.shutdown(Shutdown::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        })
    }
}
