//! Plain byte streams to servers that are no role of ours: TCP, Unix sockets.

use std::io;
use std::path::Path;
use std::time::Duration;

use async_std::net::TcpStream;
use async_std::os::unix::net::UnixStream;
use futures_lite::io::{AsyncRead, AsyncWrite};

use crate::sys::runtime;
use crate::transport::tcp::{TransportError, resolve};

/// Bytes in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A stream of any kind.
pub type BoxStream = Box<dyn Stream>;

/// Connects to `host:port`, trying each address of the name.
pub async fn tcp(address: &str, within: Duration) -> Result<BoxStream, TransportError> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for candidate in resolve(address).await? {
        match runtime::timeout(within, TcpStream::connect(candidate)).await {
            Ok(Ok(stream)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    log::debug!("TCP_NODELAY for {address}: {error}");
                }
                return Ok(Box::new(stream));
            }
            Ok(Err(error)) => last = error,
            Err(runtime::Elapsed) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(TransportError::Connect { address: address.to_owned(), source: last })
}

/// Connects to a Unix socket.
pub async fn unix(path: &Path, within: Duration) -> Result<BoxStream, TransportError> {
    let failed = |source| TransportError::Connect { address: path.display().to_string(), source };
    match runtime::timeout(within, UnixStream::connect(path)).await {
        Ok(Ok(stream)) => Ok(Box::new(stream)),
        Ok(Err(error)) => Err(failed(error)),
        Err(runtime::Elapsed) => Err(failed(io::ErrorKind::TimedOut.into())),
    }
}
