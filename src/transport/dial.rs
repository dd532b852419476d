//! Opens plain byte streams to servers other than zsync, over TCP or a Unix socket.

use std::io;
use std::path::Path;
use std::time::Duration;

use async_std::os::unix::net::UnixStream;
use futures_lite::io::{AsyncRead, AsyncWrite};

use crate::sys::runtime;
use crate::transport::tcp::{TransportError, open};

/// A stream of bytes in both directions.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A byte stream of any kind.
pub(crate) type BoxStream = Box<dyn ByteStream>;

/// Connects to `host:port`. Each attempt to reach one of the host's addresses may take as long as `timeout`.
pub(crate) async fn tcp(address: &str, timeout: Duration) -> Result<BoxStream, TransportError> {
    let stream = open(address, timeout).await?;
    if let Err(error) = stream.set_nodelay(true) {
        log::debug!("cannot set TCP_NODELAY for {address}: {error}");
    }
    Ok(Box::new(stream))
}

/// Connects to a Unix socket.
pub(crate) async fn unix(path: &Path, timeout: Duration) -> Result<BoxStream, TransportError> {
    let failed = |source| TransportError::Connect { address: path.display().to_string(), source };
    match runtime::timeout(timeout, UnixStream::connect(path)).await {
        Ok(Ok(stream)) => Ok(Box::new(stream)),
        Ok(Err(error)) => Err(failed(error)),
        Err(runtime::Elapsed) => Err(failed(io::ErrorKind::TimedOut.into())),
    }
}
