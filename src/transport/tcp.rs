//! Makes and accepts TCP connections between roles, in plaintext or over TLS.

use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_std::net::{TcpListener, TcpStream};
use futures_lite::io::{AsyncRead, AsyncWrite};
use thiserror::Error;

use crate::model::{HostName, Identity, PeerRole};
use crate::sys::runtime;
use crate::transport::tls::{HandshakeError, Secured, Tls};

/// How long each step of connecting may take: resolving the name, connecting, and the TLS handshake.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How long an address of a host may take to answer before the next one is tried as well.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(300);
/// The first byte of a TLS handshake, with which no plaintext message begins.
const HANDSHAKE: u8 = 0x16;
/// How many connections can wait to be accepted.
const BACKLOG: i32 = 1024;

/// Why connecting or listening failed.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The name cannot be resolved.
    #[error("cannot find the address of {address:?}")]
    Resolve {
        /// The address, as configured.
        address: String,
        /// The resolver's error.
        #[source]
        source: io::Error,
    },
    /// The address cannot be connected to.
    #[error("cannot connect to {address}")]
    Connect {
        /// The address, as configured.
        address: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The peer has not proven to be the expected host.
    #[error("cannot trust {peer}: {reason}")]
    Tls {
        /// The peer's name and address.
        peer: String,
        /// Why it cannot be trusted.
        reason: String,
    },
    /// The connection failed during the TLS handshake, before the peer has proven anything.
    #[error("cannot connect to {peer}: {reason}")]
    Handshake {
        /// The peer's name and address.
        peer: String,
        /// How it failed.
        reason: String,
    },
    /// Listening on the address is not possible.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address, as configured.
        address: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl TransportError {
    /// Whether another attempt may succeed. It cannot if the peer is not trusted, which only an administrator can fix.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        !matches!(self, Self::Tls { .. })
    }
}

pub(super) async fn resolve(address: &str) -> Result<Vec<SocketAddr>, TransportError> {
    let name = address.to_owned();
    let resolving = runtime::blocking(move || name.to_socket_addrs().map(Iterator::collect));
    let failed = |source| TransportError::Resolve { address: address.to_owned(), source };
    let found: Vec<SocketAddr> = runtime::timeout(CONNECT_WITHIN, resolving)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(failed)?;
    if found.is_empty() { Err(failed(io::ErrorKind::NotFound.into())) } else { Ok(found) }
}

/// Connects to `host:port`, to the first of the host's addresses that answers. Each attempt may take as long as
/// `limit`. If an address does not answer soon, the next one is tried as well (as in RFC 8305, "Happy Eyeballs").
pub(super) async fn open(address: &str, limit: Duration) -> Result<TcpStream, TransportError> {
    let candidates = resolve(address).await?;
    let (sender, attempts) = runtime::channel::bounded(candidates.len());
    for (delay, candidate) in (0..).map(|n| NEXT_ADDRESS_AFTER * n).zip(candidates) {
        let sender = sender.clone();
        drop(runtime::spawn(async move {
            runtime::sleep(delay).await;
            // An earlier attempt has succeeded.
            if sender.is_closed() {
                return;
            }
            let connected = runtime::timeout(limit, TcpStream::connect(candidate)).await;
            drop(sender.send(connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))).await);
        }));
    }
    drop(sender);
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    while let Ok(attempt) = attempts.recv().await {
        match attempt {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(TransportError::Connect { address: address.to_owned(), source: last })
}

/// Sets TCP_NODELAY, so that small messages are sent at once (streams are written in large pieces anyway), and
/// keep-alive.
fn set_options(stream: &TcpStream, peer: &str) {
    if let Err(error) = stream.set_nodelay(true) {
        log::debug!("cannot set TCP_NODELAY for {peer}: {error}");
    }
    // A machine that crashed does not close its connections.
    if let Err(error) = keep_alive(stream) {
        log::debug!("cannot set keep-alive for {peer}: {error}");
    }
}

/// Makes the system detect within a minute that the machine of a silent peer is down, because some waits have to be
/// long.
fn keep_alive(stream: &TcpStream) -> rustix::io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(30))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(stream, 3)
}

/// An established connection with a peer.
pub struct Connection {
    /// Reads what the peer sends.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// Writes to the peer.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// The peer's name and address, for messages.
    pub peer: String,
    /// The identity that the peer has proven; `None` in plaintext.
    pub identity: Option<Identity>,
}

impl Connection {
    fn plain(stream: TcpStream, peer: String) -> Self {
        Self::over(stream.clone(), WriteHalf::of_tcp(stream), peer)
    }

    /// A connection in plaintext.
    pub(super) fn over<S>(reader: S, writer: WriteHalf<S>, peer: String) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Self { reader: Box::new(reader), writer: Box::new(writer), peer, identity: None }
    }

    fn secured(secured: Secured, peer: String) -> Self {
        Self { reader: secured.reader, writer: secured.writer, peer, identity: Some(secured.identity) }
    }
}

/// A connection with a read buffer beneath TLS. TLS itself reads only 16 KiB at a time, which would take many system
/// calls for a stream.
struct Buffered {
    stream: WriteHalf<TcpStream>,
    buffer: Vec<u8>,
    filled: std::ops::Range<usize>,
}

impl Buffered {
    /// The initial size. Most connections never carry a stream.
    const LEAST: usize = 4 * 1024;
    /// The size to which the buffer grows for a stream.
    const MOST: usize = 256 * 1024;

    fn new(stream: TcpStream) -> Self {
        Self { stream: WriteHalf::of_tcp(stream), buffer: vec![0; Self::LEAST], filled: 0..0 }
    }
}

impl AsyncRead for Buffered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.filled.is_empty() {
            let read = std::task::ready!(Pin::new(&mut this.stream.stream).poll_read(cx, &mut this.buffer))?;
            if read == this.buffer.len() && read < Self::MOST {
                this.buffer.resize(read * 2, 0);
            }
            this.filled = 0..read;
        }
        let length = into.len().min(this.filled.len());
        into[..length].copy_from_slice(&this.buffer[this.filled.start..this.filled.start + length]);
        this.filled.start += length;
        Poll::Ready(Ok(length))
    }
}

impl AsyncWrite for Buffered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    /// Writes all pieces at once, because rustls writes an alert together with earlier records, in a single attempt.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

/// The writing half of a connection. Closing it shows the peer the end of the connection, which async-std's own `close`
/// does not.
pub(super) struct WriteHalf<S> {
    stream: S,
    shutdown: fn(&S, Shutdown) -> io::Result<()>,
}

impl WriteHalf<TcpStream> {
    fn of_tcp(stream: TcpStream) -> Self {
        Self::new(stream, TcpStream::shutdown)
    }
}

impl<S> WriteHalf<S> {
    /// The writing half of a stream, which this function shuts down.
    pub(super) fn new(stream: S, shutdown: fn(&S, Shutdown) -> io::Result<()>) -> Self {
        Self { stream, shutdown }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteHalf<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match (self.shutdown)(&self.stream, Shutdown::Write) {
            // The peer has closed the connection already.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        })
    }
}

/// A peer to connect to.
#[derive(Clone, Copy)]
pub struct Dial<'a> {
    /// The host's name in the policy.
    pub host: &'a HostName,
    /// The role that it must have.
    pub role: PeerRole,
    /// The peer's `host:port`.
    pub address: &'a str,
    /// The certificates of this host; `None` for plaintext.
    pub tls: Option<&'a Tls>,
}

impl Dial<'_> {
    /// Connects. With TLS, this succeeds only if the peer has proven to be that host, with that role.
    pub async fn connect(self) -> Result<Connection, TransportError> {
        let (host, address) = (self.host, self.address);
        let stream = open(address, CONNECT_WITHIN).await?;
        let name = format!("{host} ({address})");
        set_options(&stream, &name);
        let Some(tls) = self.tls else { return Ok(Connection::plain(stream, name)) };
        let refused = |reason| TransportError::Tls { peer: name.clone(), reason };
        let interrupted = |reason| TransportError::Handshake { peer: name.clone(), reason };
        let handshake = runtime::timeout(CONNECT_WITHIN, tls.connect(host, Buffered::new(stream)));
        let peer = handshake
            .await
            .map_err(|runtime::Elapsed| interrupted("it did not answer the TLS handshake".to_owned()))?
            .map_err(|error| match error {
                HandshakeError::Untrusted(reason) => refused(reason),
                HandshakeError::Interrupted(reason) => interrupted(format!("the TLS handshake failed: {reason}")),
            })?;
        if !peer.identity.may_be(self.role) {
            let roles = peer.identity.roles_in_words();
            return Err(refused(format!("its certificate is for {roles}, not for {}", self.role)));
        }
        Ok(Connection::secured(peer, name))
    }
}

/// An accepted connection, before anything was received on it.
pub struct Incoming {
    stream: TcpStream,
    from: SocketAddr,
}

/// Why an accepted connection is refused.
pub struct Rejected {
    /// The reason, for the log.
    pub reason: String,
    /// The connection on which the peer can be answered, and the answer.
    pub answer: Option<(Connection, String)>,
}

impl Incoming {
    /// The peer's address.
    #[must_use]
    pub fn from(&self) -> SocketAddr {
        self.from
    }

    /// The plain stream, for other protocols.
    pub fn bytes(self) -> impl AsyncRead + AsyncWrite + Send + Unpin {
        self.stream
    }

    /// Waits until the peer sends something, and, with `tls`, until it has proven its identity. Each may take as long
    /// as `timeout`.
    pub async fn welcome(self, tls: Option<&Tls>, timeout: Duration) -> Result<Connection, Rejected> {
        let Self { stream, from } = self;
        let peer = from.to_string();
        set_options(&stream, &peer);
        let mut first = [0];
        let reject = |reason: String| Rejected { reason: format!("{peer}{reason}"), answer: None };
        let silent = || format!(" sent nothing for {}", humantime::format_duration(timeout));
        let speaks_tls = match runtime::timeout(timeout, stream.peek(&mut first)).await {
            Ok(Ok(0)) => return Ok(Connection::plain(stream, peer)),
            Ok(Ok(_)) => first[0] == HANDSHAKE,
            Ok(Err(error)) => return Err(reject(format!(": {error}"))),
            Err(runtime::Elapsed) => {
                let answer =
                    tls.is_none().then(|| (Connection::plain(stream, peer.clone()), format!("{peer}{}", silent())));
                return Err(Rejected { answer, ..reject(silent()) });
            }
        };
        let (reason, answer) = match (tls, speaks_tls) {
            (None, false) => return Ok(Connection::plain(stream, peer)),
            (Some(tls), true) => {
                let untrusted = |reason| reject(format!(": the TLS handshake failed: {reason}"));
                let proven = runtime::timeout(timeout, tls.accept(Buffered::new(stream))).await;
                let proven = proven.map_err(|runtime::Elapsed| reject(silent()))?.map_err(untrusted)?;
                let (name, names_protocol) = (format!("{peer} ({})", proven.identity), proven.names_protocol);
                let connection = Connection::secured(proven, name.clone());
                if names_protocol {
                    return Ok(connection);
                }
                let reason = format!(
                    "{name} speaks TLS without naming the protocol zsync/1: it is another program or an older zsync"
                );
                let answer = "this port accepts only TLS with the protocol zsync/1 (ALPN); hint: update zsync on the host \
                              that connects";
                return Err(Rejected { reason, answer: Some((connection, answer.to_owned())) });
            }
            (Some(_), false) => (
                " sent plaintext, but this port accepts only TLS",
                "this port accepts only TLS; hint: set \"tls\" in the configuration of the host that connects",
            ),
            (None, true) => (
                " sent TLS, but this port accepts only plaintext: \"tls\" is not set on this host",
                "this port accepts only plaintext; hint: set \"tls\" in the configuration of the host that listens, too",
            ),
        };
        let answer = Some((Connection::plain(stream, peer.clone()), answer.to_owned()));
        Err(Rejected { answer, ..reject(reason.to_owned()) })
    }
}

/// A listening socket.
pub struct Listener(TcpListener);

/// Whether an address can be reached only from this machine.
pub(crate) async fn is_loopback(address: &str) -> Result<bool, TransportError> {
    Ok(resolve(address).await?.iter().all(|a| a.ip().is_loopback()))
}

impl From<std::net::TcpListener> for Listener {
    /// Wraps a socket that is already listening.
    fn from(socket: std::net::TcpListener) -> Self {
        Self(socket.into())
    }
}

impl Listener {
    /// Listens on `host:port`.
    pub async fn bind(address: &str) -> Result<Self, TransportError> {
        let candidates = resolve(address).await?;
        let failed = |source| TransportError::Listen { address: address.to_owned(), source };
        let listener = TcpListener::bind(&candidates[..]).await.map_err(failed)?;
        // A larger backlog, so that a peer that connects a thousand times per second does not displace others.
        rustix::net::listen(&listener, BACKLOG).map_err(|error| failed(error.into()))?;
        Ok(Self(listener))
    }

    /// The address of the socket, with the actual port if port 0 was configured.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.local_addr().ok()
    }

    /// Accepts the next connection.
    pub async fn accept(&self) -> io::Result<Incoming> {
        let (stream, from) = self.0.accept().await?;
        Ok(Incoming { stream, from })
    }
}
