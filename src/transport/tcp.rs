//! TCP by async-std.

use std::io;
use std::net::{Shutdown, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_std::net::{TcpListener, TcpStream};
use futures_lite::io::AsyncWrite;
use thiserror::Error;

use crate::runtime;
use crate::wire::codec::Conn;

/// How long a connection may take to come about.
pub const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Why no connection came about, or no listening.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The name has no address.
    #[error("cannot find the address of {address:?}")]
    Resolve {
        /// As configured.
        address: String,
        /// The resolver's words.
        #[source]
        source: io::Error,
    },
    /// Nobody answers there.
    #[error("cannot connect to {address}")]
    Connect {
        /// As configured.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// As configured.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

pub(super) async fn resolve(address: &str) -> Result<Vec<SocketAddr>, TransportError> {
    let wanted = address.to_owned();
    let resolving = runtime::blocking(move || wanted.to_socket_addrs().map(Iterator::collect));
    let failed = |source| TransportError::Resolve { address: address.to_owned(), source };
    let found: Vec<SocketAddr> = runtime::timeout(CONNECT_WITHIN, resolving)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(failed)?;
    if found.is_empty() { Err(failed(io::ErrorKind::NotFound.into())) } else { Ok(found) }
}

fn conn(stream: TcpStream, peer: String) -> Conn {
    // Small lines must not wait for each other; streams are written in large pieces anyway.
    if let Err(error) = stream.set_nodelay(true) {
        log::debug!("TCP_NODELAY for {peer}: {error}");
    }
    Conn::new(Box::new(stream.clone()), Box::new(Mouth(stream)), peer)
}

/// The half of a connection that is written to. Closed, it lets the peer see the end: async-std's own closing does not.
struct Mouth(TcpStream);

impl AsyncWrite for Mouth {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match self.0.shutdown(Shutdown::Write) {
            // The peer was faster.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        })
    }
}

/// Connects to `host:port`; `name` is how messages call the peer.
pub async fn connect(name: &str, address: &str) -> Result<Conn, TransportError> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for candidate in resolve(address).await? {
        match runtime::timeout(CONNECT_WITHIN, TcpStream::connect(candidate)).await {
            Ok(Ok(stream)) => return Ok(conn(stream, format!("{name} ({address})"))),
            Ok(Err(error)) => last = error,
            Err(runtime::Elapsed) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(TransportError::Connect { address: address.to_owned(), source: last })
}

/// A socket that connections come in on.
pub struct Listener(TcpListener);

/// Whether an address is reachable from this machine only.
pub async fn is_loopback(address: &str) -> Result<bool, TransportError> {
    Ok(resolve(address).await?.iter().all(|a| a.ip().is_loopback()))
}

impl Listener {
    /// Listens on `host:port`.
    pub async fn bind(address: &str) -> Result<Self, TransportError> {
        let candidates = resolve(address).await?;
        TcpListener::bind(&candidates[..])
            .await
            .map(Self)
            .map_err(|source| TransportError::Listen { address: address.to_owned(), source })
    }

    /// The address listened on, with the port that was chosen for port 0.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.local_addr().ok()
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<Conn> {
        let (stream, from) = self.0.accept().await?;
        Ok(conn(stream, from.to_string()))
    }
}
