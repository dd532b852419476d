//! A [`Conn`] is the conversation with a peer. It sends and receives messages, each as one line of JSON.

use std::io;
use std::time::Duration;

use futures_lite::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::model::{Identity, OrderId};
use crate::sys::log_limit::PeerLog;
use crate::sys::runtime;
use crate::transport::tcp::Connection;
use crate::wire::codec::error::WireError;
use crate::wire::codec::line::{LineReader, MOST_IN_LINES, Received};
use crate::wire::codec::pack::Unpacker;
use crate::wire::{LONGEST_LINE, Response, text};

/// How long a peer may be silent. A working peer reports that it is alive several times in that time.
pub(crate) const SILENCE: Duration = Duration::from_secs(60);
/// How long a stream may make no progress, unless local.json sets another limit. ZFS may have to read much before it
/// continues.
const STALL: Duration = Duration::from_secs(600);
/// How often a peer that works silently reports that it is alive.
pub(crate) const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// How long, and in how many reads, the rest of what a peer sends is discarded before the connection is closed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
const MOST_DRAIN_READS: usize = 256;

/// The conversation with a peer over a connection.
pub struct Conn {
    pub(super) input: LineReader,
    pub(super) writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// Decompresses frames. Created for the first compressed frame.
    pub(super) unpacker: Option<Box<Unpacker>>,
    /// The peer's name and address, for messages.
    pub peer: String,
    /// The log for lines that the peer causes.
    pub log: PeerLog,
    /// The identity that the peer has proven; `None` in plaintext.
    pub identity: Option<Identity>,
    /// How long the peer may send nothing, and accept nothing that is sent to it.
    pub patience: Duration,
    /// How long a stream may make no progress although the peer is alive.
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
        Self {
            input: LineReader::new(reader),
            writer,
            unpacker: None,
            peer,
            log: PeerLog::default(),
            identity: None,
            patience: SILENCE,
            stall: STALL,
        }
    }

    /// Sets how long a stream may make no progress. The peer may not be silent for longer than that either.
    pub fn set_stall_timeout(&mut self, stall: Duration) {
        (self.stall, self.patience) = (stall, self.patience.min(stall));
    }

    pub(super) fn io(&self, source: io::Error) -> WireError {
        match source.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted => self.closed(),
            io::ErrorKind::TimedOut => self.silent(self.patience),
            _ => WireError::Io { peer: self.peer.clone(), source },
        }
    }

    pub(super) fn closed(&self) -> WireError {
        WireError::Closed { peer: self.peer.clone() }
    }

    pub(super) fn silent(&self, limit: Duration) -> WireError {
        WireError::Silent { peer: self.peer.clone(), limit }
    }

    fn invalid(&self, reason: impl Into<String>) -> WireError {
        WireError::InvalidMessage { peer: self.peer.clone(), reason: reason.into() }
    }

    pub(crate) fn damaged(&self, reason: impl Into<String>) -> WireError {
        WireError::Damaged { peer: self.peer.clone(), reason: reason.into() }
    }

    /// Checks that a response is one to this order. A failure may name none: the peer could not parse the order.
    pub(crate) fn check_answers(&self, response: &Response, order: OrderId) -> Result<(), WireError> {
        match response.order_uuid {
            Some(answered) if answered != order => Err(self.damaged(format!("it answers {answered}, not {order}"))),
            None if response.is_success => Err(self.damaged("it does not name the order that it answers")),
            _ => Ok(()),
        }
    }

    /// Sends one message as a line of JSON.
    pub async fn send<T: Serialize + Sync>(&mut self, message: &T) -> Result<(), WireError> {
        let mut line = serde_json::to_vec(message).map_err(|e| self.invalid(e.to_string()))?;
        line.push(b'\n');
        self.write_all(&line).await
    }

    /// Writes all bytes. The limit on silence applies to each single write, because a slow link is not a dead one.
    pub(super) async fn write_all(&mut self, bytes: &[u8]) -> Result<(), WireError> {
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

    /// Receives one line within `limit`; `None` at the end of the connection.
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

    pub(super) fn too_much(&self) -> WireError {
        self.invalid(format!("more than {} MiB of lines", MOST_IN_LINES >> 20))
    }

    pub(super) fn too_long(&self) -> WireError {
        self.invalid(format!("a line of more than {LONGEST_LINE} bytes"))
    }

    /// Receives one message within `limit`. The end of the connection is an error.
    pub async fn recv<T: DeserializeOwned>(&mut self, limit: Duration) -> Result<T, WireError> {
        let line = self.recv_line(limit).await?.ok_or_else(|| self.closed())?;
        self.parse_or_reason(&line)
    }

    /// Parses a line as a message. If it is a failed [`Response`] instead, the peer has aborted the conversation.
    pub fn parse_or_reason<T: DeserializeOwned>(&self, line: &[u8]) -> Result<T, WireError> {
        self.parse(line).map_err(|error| self.abort_reason(line, error))
    }

    pub(super) fn abort_reason(&self, line: &[u8], invalid: WireError) -> WireError {
        match self.parse::<Response>(line) {
            Ok(Response { is_success: false, error: reason, temporary, .. }) => {
                WireError::Aborted { peer: self.peer.clone(), reason, temporary }
            }
            _ => invalid,
        }
    }

    /// Parses a line as a message.
    pub fn parse<T: DeserializeOwned>(&self, line: &[u8]) -> Result<T, WireError> {
        serde_json::from_slice(line).map_err(|error| {
            let shown: String = String::from_utf8_lossy(&line[..line.len().min(100)]).into_owned();
            self.invalid(format!("{} in {shown:?}", text::safe(&error.to_string())))
        })
    }

    /// Reads the bytes that are available, at least one.
    pub(super) async fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, WireError> {
        match runtime::timeout(self.patience, self.input.reader.read(buffer)).await {
            Ok(Ok(0)) => Err(self.closed()),
            Ok(Ok(read)) => Ok(read),
            Ok(Err(error)) => Err(self.io(error)),
            Err(runtime::Elapsed) => Err(self.silent(self.patience)),
        }
    }

    /// Closes this side of the connection, so that the peer sees its end.
    pub async fn close(mut self) {
        self.end().await;
    }

    /// Like [`Self::close`], for a connection that is still read from.
    pub(crate) async fn end(&mut self) {
        if let Ok(Err(error)) = runtime::timeout(ALIVE_EVERY, self.writer.close()).await {
            log::debug!("cannot close the connection with {}: {error}", self.peer);
        }
    }

    /// Sends a last message, and closes the connection. What the peer still sends is read and discarded for a moment,
    /// because a system that closes a connection with unread data resets it, and the peer may lose the last message.
    pub async fn close_with<T: Serialize + Sync>(mut self, last: &T) {
        if let Err(error) = self.send(last).await {
            log::debug!("{error}");
            return;
        }
        self.end().await;
        let draining = async {
            let mut discarded = vec![0; 64 * 1024];
            for _ in 0..MOST_DRAIN_READS {
                if !self.input.reader.read(&mut discarded).await.is_ok_and(|read| read > 0) {
                    return;
                }
            }
        };
        // Whether the peer stopped sending or the time was up does not matter.
        let _: Result<(), runtime::Elapsed> = runtime::timeout(DRAIN_TIMEOUT, draining).await;
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
    fn line_ends_with_newline_or_connection() {
        assert_eq!(lines(b"a\nbc\n"), [Ok(Some(b"a".to_vec())), Ok(Some(b"bc".to_vec())), Ok(None)]);
        assert_eq!(lines(b"a"), [Ok(Some(b"a".to_vec())), Ok(None)]);
        assert_eq!(lines(b""), [Ok(None)]);
    }

    #[test]
    fn endless_line_is_refused() {
        let endless = vec![b'x'; LONGEST_LINE + 5];
        let refused = format!("cannot parse what test sent: a line of more than {LONGEST_LINE} bytes");
        assert_eq!(lines(&endless), [Err(refused)]);
    }
}
