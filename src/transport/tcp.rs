//! TCP by async-std.

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
use crate::transport::tls::{Secured, Tls};

/// How long a connection may take to come about.
pub const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// The first byte of a TLS handshake; nothing that is said in plaintext begins with it.
const HANDSHAKE: u8 = 0x16;
/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1024;

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
    /// Somebody answers there, but not whom we look for.
    #[error("cannot trust {peer}: {reason}")]
    Tls {
        /// Name and address.
        peer: String,
        /// Why not.
        reason: String,
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

impl TransportError {
    /// Whether trying again may help: not with somebody whom we cannot trust, which only a person can mend.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        !matches!(self, Self::Tls { .. })
    }
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

/// Small lines must not wait for each other; streams are written in large pieces anyway.
fn no_delay(stream: &TcpStream, peer: &str) {
    if let Err(error) = stream.set_nodelay(true) {
        log::debug!("TCP_NODELAY for {peer}: {error}");
    }
    // A peer whose machine went down says nothing any more, not even goodbye.
    if let Err(error) = keep_alive(stream) {
        log::debug!("keep-alive for {peer}: {error}");
    }
}

/// Has the system find out within a minute that a silent peer is gone: for waits that may rightly be long.
fn keep_alive(stream: &TcpStream) -> rustix::io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(30))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(stream, 3)
}

/// An established connection with a peer.
pub struct Connection {
    /// The bytes that the peer sends.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// The bytes that are sent to the peer.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// The peer's name and address, for messages.
    pub peer: String,
    /// The identity that the peer has proven; `None` in plaintext.
    pub identity: Option<Identity>,
}

impl Connection {
    fn plain(stream: TcpStream, peer: String) -> Self {
        Self { reader: Box::new(stream.clone()), writer: Box::new(WriteHalf(stream)), peer, identity: None }
    }

    fn secured(secured: Secured, peer: String) -> Self {
        Self { reader: secured.reader, writer: secured.writer, peer, identity: Some(secured.identity) }
    }
}

/// A connection for TLS to read and write: it reads 16 KiB at a time, which is many system calls for a stream.
struct Buffered {
    stream: WriteHalf,
    buffer: Vec<u8>,
    filled: std::ops::Range<usize>,
}

impl Buffered {
    /// What is read at once at first, and of a stream: few connections ever carry one.
    const LEAST: usize = 4 * 1024;
    const MOST: usize = 256 * 1024;

    fn new(stream: TcpStream) -> Self {
        Self { stream: WriteHalf(stream), buffer: vec![0; Self::LEAST], filled: 0..0 }
    }
}

impl AsyncRead for Buffered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.filled.is_empty() {
            let read = std::task::ready!(Pin::new(&mut this.stream.0).poll_read(cx, &mut this.buffer))?;
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

    /// TLS writes an alert behind other records, and tries only once.
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

/// The half of a connection that is written to. Closed, it lets the peer see the end: async-std's own closing does not.
struct WriteHalf(TcpStream);

impl AsyncWrite for WriteHalf {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, pieces)
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

/// Whom to connect to.
#[derive(Clone, Copy)]
pub struct Dial<'a> {
    /// The host, as the policy names it.
    pub host: &'a HostName,
    /// What it has to be.
    pub role: PeerRole,
    /// Its `host:port`.
    pub address: &'a str,
    /// What to prove ourselves with; `None`: in plaintext.
    pub tls: Option<&'a Tls>,
}

impl Dial<'_> {
    /// Connects. With TLS the peer has proven by then that it is that host, and may be what it has to be.
    pub async fn connect(self) -> Result<Connection, TransportError> {
        let (host, address) = (self.host, self.address);
        let stream = self.reach().await?;
        let name = format!("{host} ({address})");
        no_delay(&stream, &name);
        let Some(tls) = self.tls else { return Ok(Connection::plain(stream, name)) };
        let refused = |reason| TransportError::Tls { peer: name.clone(), reason };
        let handshake = runtime::timeout(CONNECT_WITHIN, tls.connect(host, Buffered::new(stream)));
        let peer = handshake
            .await
            .map_err(|runtime::Elapsed| refused("it does not answer the TLS handshake".to_owned()))?
            .map_err(refused)?;
        if !peer.identity.may_be(self.role) {
            let roles = peer.identity.roles_in_words();
            return Err(refused(format!("its certificate is for {roles}, not for {}", self.role)));
        }
        Ok(Connection::secured(peer, name))
    }

    async fn reach(&self) -> Result<TcpStream, TransportError> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for candidate in resolve(self.address).await? {
            match runtime::timeout(CONNECT_WITHIN, TcpStream::connect(candidate)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(runtime::Elapsed) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(TransportError::Connect { address: self.address.to_owned(), source: last })
    }
}

/// A connection that came in, and that nothing is known of yet.
pub struct Incoming {
    stream: TcpStream,
    from: SocketAddr,
}

/// Why a connection that came in is not talked on.
pub struct Rejected {
    /// What it did, for the log.
    pub reason: String,
    /// Where a last word can be said, and what.
    pub answer: Option<(Connection, String)>,
}

impl Incoming {
    /// Where it comes from.
    #[must_use]
    pub fn from(&self) -> SocketAddr {
        self.from
    }

    /// What it says, byte by byte: for who does not speak zsync's language.
    pub fn bytes(self) -> impl AsyncRead + AsyncWrite + Send + Unpin {
        self.stream
    }

    /// Makes a conversation of it, as soon as the peer begins to speak: with `tls` only if it proves who it is. For each
    /// of both it may take so long.
    pub async fn welcome(self, tls: Option<&Tls>, within: Duration) -> Result<Connection, Rejected> {
        let Self { stream, from } = self;
        let peer = from.to_string();
        no_delay(&stream, &peer);
        let mut first = [0];
        let unwelcome = |reason: String| Rejected { reason: format!("{peer}{reason}"), answer: None };
        let silent = || format!(" said nothing for {}", humantime::format_duration(within));
        let speaks_tls = match runtime::timeout(within, stream.peek(&mut first)).await {
            Ok(Ok(0)) => return Ok(Connection::plain(stream, peer)),
            Ok(Ok(_)) => first[0] == HANDSHAKE,
            Ok(Err(error)) => return Err(unwelcome(format!(": {error}"))),
            Err(runtime::Elapsed) => {
                let answer =
                    tls.is_none().then(|| (Connection::plain(stream, peer.clone()), format!("{peer}{}", silent())));
                return Err(Rejected { answer, ..unwelcome(silent()) });
            }
        };
        let (reason, answer) = match (tls, speaks_tls) {
            (None, false) => return Ok(Connection::plain(stream, peer)),
            (Some(tls), true) => {
                let stranger = |reason| unwelcome(format!(": no TLS connection comes about: {reason}"));
                let proven = runtime::timeout(within, tls.accept(Buffered::new(stream))).await;
                let proven = proven.map_err(|runtime::Elapsed| unwelcome(silent()))?.map_err(stranger)?;
                let name = format!("{peer} ({})", proven.identity);
                return Ok(Connection::secured(proven, name));
            }
            (Some(_), false) => (
                " speaks plaintext, and this port TLS only",
                "this port speaks TLS only; set \"tls\" where you come from",
            ),
            (None, true) => (
                " speaks TLS, and this port plaintext: \"tls\" is not set here",
                "this port speaks plaintext; set \"tls\" on this host, or not where you come from",
            ),
        };
        let answer = Some((Connection::plain(stream, peer.clone()), answer.to_owned()));
        Err(Rejected { answer, ..unwelcome(reason.to_owned()) })
    }
}

/// A socket that connections come in on.
pub struct Listener(TcpListener);

/// Whether an address is reachable from this machine only.
pub async fn is_loopback(address: &str) -> Result<bool, TransportError> {
    Ok(resolve(address).await?.iter().all(|a| a.ip().is_loopback()))
}

impl From<std::net::TcpListener> for Listener {
    /// A socket that listens already.
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
        // A peer that connects a thousand times a second must not keep others from being accepted.
        rustix::net::listen(&listener, BACKLOG).map_err(|error| failed(error.into()))?;
        Ok(Self(listener))
    }

    /// The address listened on, with the port that was chosen for port 0.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.local_addr().ok()
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<Incoming> {
        let (stream, from) = self.0.accept().await?;
        Ok(Incoming { stream, from })
    }
}
