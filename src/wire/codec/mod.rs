//! Lines and frames on a connection, with a limit for every length and a deadline for every wait.

mod pack;
mod stream;

use std::io;
use std::time::Duration;

use futures_lite::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::model::Identity;
use crate::sys::runtime;
use crate::transport::tcp::Connection;
use crate::wire::codec::pack::Unpacker;
use crate::wire::{LONGEST_LINE, Response};
pub use stream::{LARGEST_FRAME, Pace, Sent, StreamEnd, Wait, Way};

/// What is read at once; longer frames are read straight into their place.
const READ_AHEAD: usize = 16 * 1024;
/// How many bytes of lines one conversation has at the most: the listing of some three million snapshots.
const MOST_IN_LINES: usize = 1 << 30;

/// How long a peer may be silent: it says that it is alive several times in that time.
pub const SILENCE: Duration = Duration::from_secs(60);
/// How long a stream may not move, unless local.json says otherwise: ZFS may have much to look through in silence.
pub const STALL: Duration = Duration::from_secs(600);
/// How often a peer that works in silence says that it is alive.
pub const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// How long, and how many pieces, a peer that is being parted from is let speak on.
const LET_PASS: Duration = Duration::from_secs(2);
const MOST_LET_PASS: usize = 256;

/// Why a conversation broke off.
#[derive(Debug, Error)]
pub enum WireError {
    /// The peer closed the connection.
    #[error("{peer} closed the connection")]
    Closed {
        /// Whom we talked to.
        peer: String,
    },
    /// The peer said nothing for too long.
    #[error("{peer} said nothing for {}", humantime::format_duration(*limit))]
    Silent {
        /// Whom we talked to.
        peer: String,
        /// How long we waited.
        limit: Duration,
    },
    /// The peer talks nonsense.
    #[error("{peer} sent what is not understood: {reason}")]
    Nonsense {
        /// Whom we talked to.
        peer: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The frames of a stream are not what a peer sends: the network changed them on their way.
    #[error("the stream from {peer} is damaged: {reason}")]
    Damaged {
        /// Whom we talked to.
        peer: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A stream does not move although the peer says that it is alive.
    #[error("{peer} {} nothing of the stream for {}", if *gives { "gave" } else { "took" }, humantime::format_duration(*limit))]
    Stalled {
        /// Whom we talked to.
        peer: String,
        /// Whether it was to give; else it was to take.
        gives: bool,
        /// How long we waited.
        limit: Duration,
    },
    /// The peer broke the conversation off, and said why.
    #[error("{peer} broke off: {reason}")]
    BrokenOff {
        /// Whom we talked to.
        peer: String,
        /// Its words.
        reason: String,
        /// Whether it says that trying again later may help.
        temporary: bool,
    },
    /// The connection failed.
    #[error("the connection with {peer} failed")]
    Io {
        /// Whom we talked to.
        peer: String,
        /// How.
        #[source]
        source: io::Error,
    },
}

impl WireError {
    /// Whether trying again may help: not where somebody speaks another language, or refuses (a connection says so by
    /// [`io::ErrorKind::PermissionDenied`]).
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Nonsense { .. } => false,
            Self::BrokenOff { temporary, .. } => *temporary,
            Self::Io { source, .. } => source.kind() != io::ErrorKind::PermissionDenied,
            Self::Closed { .. } | Self::Silent { .. } | Self::Damaged { .. } | Self::Stalled { .. } => true,
        }
    }
}

/// What comes in, with the part of a line that was heard so far: hearing may be broken off at any point and taken up
/// again, nothing is lost.
struct LineReader {
    reader: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    line: Vec<u8>,
    /// How many bytes of lines were heard so far.
    heard: usize,
}

/// How hearing a line ended.
enum Received {
    Line(Vec<u8>),
    End,
    TooLong,
    TooMuch,
}

impl LineReader {
    /// The next line. What comes before the end without a newline is a line too: that is how `nc` may send it.
    async fn line(&mut self) -> io::Result<Received> {
        loop {
            let available = self.reader.fill_buf().await?;
            let newline = available.iter().position(|&b| b == b'\n');
            let taken = newline.unwrap_or(available.len());
            if self.line.len() + taken > LONGEST_LINE {
                return Ok(Received::TooLong);
            }
            self.heard += taken;
            if self.heard > MOST_IN_LINES {
                return Ok(Received::TooMuch);
            }
            self.line.extend_from_slice(&available[..taken]);
            let ended = available.is_empty();
            self.reader.consume(taken + usize::from(newline.is_some()));
            if ended && self.line.is_empty() {
                return Ok(Received::End);
            }
            if ended || newline.is_some() {
                return Ok(Received::Line(std::mem::take(&mut self.line)));
            }
        }
    }
}

/// A connection with a peer.
pub struct Conn {
    input: LineReader,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// For frames that come compressed, from the first one on.
    unpacker: Option<Box<Unpacker>>,
    /// Whom we talk to, for messages.
    pub peer: String,
    /// Who that has proven to be; `None` in plaintext.
    pub identity: Option<Identity>,
    /// How long the peer may be silent, and take nothing of what is said to it.
    pub patience: Duration,
    /// How long a stream may not move although the peer is alive.
    pub stall: Duration,
}

impl From<Connection> for Conn {
    fn from(Connection { reader, writer, peer, identity }: Connection) -> Self {
        Self { identity, ..Self::new(reader, writer, peer) }
    }
}

impl Conn {
    /// A conversation over the two halves of a connection, with a peer that has not proven its identity.
    #[must_use]
    pub fn new(
        reader: Box<dyn AsyncRead + Send + Unpin>,
        writer: Box<dyn AsyncWrite + Send + Unpin>,
        peer: String,
    ) -> Self {
        let input = LineReader { reader: BufReader::with_capacity(READ_AHEAD, reader), line: Vec::new(), heard: 0 };
        Self { input, writer, unpacker: None, peer, identity: None, patience: SILENCE, stall: STALL }
    }

    /// Sets how long a stream may not move. A peer may not be silent for longer than that either.
    pub fn set_stall_timeout(&mut self, stall: Duration) {
        (self.stall, self.patience) = (stall, self.patience.min(stall));
    }

    fn io(&self, source: io::Error) -> WireError {
        match source.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted => self.closed(),
            io::ErrorKind::TimedOut => self.silent(self.patience),
            _ => WireError::Io { peer: self.peer.clone(), source },
        }
    }

    fn closed(&self) -> WireError {
        WireError::Closed { peer: self.peer.clone() }
    }

    fn silent(&self, limit: Duration) -> WireError {
        WireError::Silent { peer: self.peer.clone(), limit }
    }

    fn nonsense(&self, reason: impl Into<String>) -> WireError {
        WireError::Nonsense { peer: self.peer.clone(), reason: reason.into() }
    }

    /// Says one line.
    pub async fn send<T: Serialize + Sync>(&mut self, message: &T) -> Result<(), WireError> {
        let mut line = serde_json::to_vec(message).map_err(|e| self.nonsense(e.to_string()))?;
        line.push(b'\n');
        self.write_all(&line).await
    }

    /// Writes, with the peer's patience for each piece: a slow link is not a dead one.
    async fn write_all(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match runtime::timeout(self.patience, self.writer.write(rest)).await {
                Ok(Ok(0)) => return Err(self.closed()),
                Ok(Ok(taken)) => rest = &rest[taken..],
                Ok(Err(error)) => return Err(self.io(error)),
                Err(runtime::Elapsed) => return Err(self.silent(self.patience)),
            }
        }
        match runtime::timeout(self.patience, self.writer.flush()).await {
            Ok(flushed) => flushed.map_err(|e| self.io(e)),
            Err(runtime::Elapsed) => Err(self.silent(self.patience)),
        }
    }

    /// Hears one line, `None` at the end of the connection.
    pub async fn recv_line(&mut self, limit: Duration) -> Result<Option<Vec<u8>>, WireError> {
        match runtime::timeout(limit, self.input.line()).await {
            Err(runtime::Elapsed) => Err(self.silent(limit)),
            Ok(Err(error)) => Err(self.io(error)),
            Ok(Ok(Received::Line(line))) => Ok(Some(line)),
            Ok(Ok(Received::End)) => Ok(None),
            Ok(Ok(Received::TooLong)) => Err(self.too_long()),
            Ok(Ok(Received::TooMuch)) => Err(self.too_much()),
        }
    }

    fn too_much(&self) -> WireError {
        self.nonsense(format!("more than {} MiB of lines", MOST_IN_LINES >> 20))
    }

    fn too_long(&self) -> WireError {
        self.nonsense(format!("a line of more than {LONGEST_LINE} bytes"))
    }

    /// Hears one message; the end of the connection is an error.
    pub async fn recv<T: DeserializeOwned>(&mut self, limit: Duration) -> Result<T, WireError> {
        let line = self.recv_line(limit).await?.ok_or_else(|| self.closed())?;
        self.parse_or_reason(&line)
    }

    /// A line as a message; one that is not may be the peer's reason to break off.
    pub fn parse_or_reason<T: DeserializeOwned>(&self, line: &[u8]) -> Result<T, WireError> {
        self.parse(line).map_err(|error| self.last_words(line, error))
    }

    fn last_words(&self, line: &[u8], not_understood: WireError) -> WireError {
        match self.parse::<Response>(line) {
            Ok(response) if !response.is_success => {
                let (reason, temporary) = (response.message(), response.temporary);
                WireError::BrokenOff { peer: self.peer.clone(), reason, temporary }
            }
            _ => not_understood,
        }
    }

    /// A line as a message.
    pub fn parse<T: DeserializeOwned>(&self, line: &[u8]) -> Result<T, WireError> {
        serde_json::from_slice(line).map_err(|error| {
            let shown: String = String::from_utf8_lossy(&line[..line.len().min(100)]).into_owned();
            self.nonsense(format!("{error} in {shown:?}"))
        })
    }

    /// Reads what there is, with patience for each piece: a slow link is not a dead one.
    async fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, WireError> {
        match runtime::timeout(self.patience, self.input.reader.read(buffer)).await {
            Ok(Ok(0)) => Err(self.closed()),
            Ok(Ok(read)) => Ok(read),
            Ok(Err(error)) => Err(self.io(error)),
            Err(runtime::Elapsed) => Err(self.silent(self.patience)),
        }
    }

    /// Closes our side, so that the peer sees the end.
    pub async fn close(mut self) {
        self.end().await;
    }

    /// The same for a connection that is kept a while; nothing more can be sent.
    pub(crate) async fn end(&mut self) {
        if let Ok(Err(error)) = runtime::timeout(ALIVE_EVERY, self.writer.close()).await {
            log::debug!("closing the connection with {}: {error}", self.peer);
        }
    }

    /// Closes the connection on a peer that talks nonsense, after a last line. What it still says is let pass for a
    /// moment: a system that closes a connection with unread words in it takes back its own last ones.
    pub async fn close_with<T: Serialize + Sync>(mut self, last: &T) {
        if let Err(error) = self.send(last).await {
            log::debug!("{error}");
            return;
        }
        self.end().await;
        let passing = async {
            let mut words = vec![0; 64 * 1024];
            for _ in 0..MOST_LET_PASS {
                if !self.input.reader.read(&mut words).await.is_ok_and(|read| read > 0) {
                    return;
                }
            }
        };
        // Whether it went silent by itself does not matter any more.
        let _: Result<(), runtime::Elapsed> = runtime::timeout(LET_PASS, passing).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::io::Cursor;

    use super::*;

    fn receiving(bytes: &[u8]) -> Conn {
        let reader = Box::new(Cursor::new(bytes.to_vec()));
        Conn::new(reader, Box::new(Cursor::new(Vec::new())), "test".into())
    }

    fn lines(bytes: &[u8]) -> Vec<Result<Option<Vec<u8>>, String>> {
        let mut conn = receiving(bytes);
        runtime::block_on(async {
            let mut all = Vec::new();
            loop {
                let line = conn.recv_line(SILENCE).await.map_err(|e| e.to_string());
                let last = !matches!(line, Ok(Some(_)));
                all.push(line);
                if last {
                    return all;
                }
            }
        })
    }

    #[test]
    fn lines_end_with_a_newline_or_with_the_connection() {
        assert_eq!(lines(b"a\nbc\n"), [Ok(Some(b"a".to_vec())), Ok(Some(b"bc".to_vec())), Ok(None)]);
        assert_eq!(lines(b"a"), [Ok(Some(b"a".to_vec())), Ok(None)]);
        assert_eq!(lines(b""), [Ok(None)]);
    }

    #[test]
    fn a_line_that_never_ends_is_refused() {
        let endless = vec![b'x'; LONGEST_LINE + 5];
        let refused = format!("test sent what is not understood: a line of more than {LONGEST_LINE} bytes");
        assert_eq!(lines(&endless), [Err(refused)]);
    }
}
