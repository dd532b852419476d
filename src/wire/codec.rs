//! Lines and frames on a connection, with a limit for every length and a deadline for every wait.
//!
//! A frame is a length (four bytes, big endian) and that many bytes. Length 0 ends the stream and is followed by
//! one line, [`StreamEnd`]; length 0xFFFFFFFF says only that the sender is alive.

use std::io;
use std::time::Duration;

use futures_lite::future;
use futures_lite::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::LONGEST_LINE;
use crate::model::Counter;
use crate::runtime;

/// What a frame carries at the most, in bytes: what a widened pipe gives in one read.
pub const LARGEST_FRAME: usize = 1 << 20;
const ALIVE: u32 = u32::MAX;

/// How long a peer may be silent: it says that it is alive several times in that time.
pub const SILENCE: Duration = Duration::from_secs(60);
/// How often a peer that works in silence says that it is alive.
pub const ALIVE_EVERY: Duration = Duration::from_secs(5);

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

/// How a sender's process ended; the line after the last frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct StreamEnd {
    /// Whether the stream is whole.
    pub is_success: bool,
    /// Why not.
    #[serde(default)]
    pub error: String,
}

/// A connection with a peer.
pub struct Conn {
    reader: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// Whom we talk to, for messages.
    pub peer: String,
}

/// How reading a line ended.
enum Heard {
    Line,
    End,
    TooLong,
}

/// How sending a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The source came to its end.
    All,
    /// The peer spoke before: it does not want the rest.
    Refused,
}

impl Conn {
    /// A connection over these two halves.
    #[must_use]
    pub fn new(
        reader: Box<dyn AsyncRead + Send + Unpin>,
        writer: Box<dyn AsyncWrite + Send + Unpin>,
        peer: String,
    ) -> Self {
        Self { reader: BufReader::with_capacity(256 * 1024, reader), writer, peer }
    }

    fn io(&self, source: io::Error) -> WireError {
        match source.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted => WireError::Closed { peer: self.peer.clone() },
            _ => WireError::Io { peer: self.peer.clone(), source },
        }
    }

    fn silent(&self, limit: Duration) -> WireError {
        WireError::Silent { peer: self.peer.clone(), limit }
    }

    fn nonsense(&self, reason: impl Into<String>) -> WireError {
        WireError::Nonsense { peer: self.peer.clone(), reason: reason.into() }
    }

    /// Says one line.
    pub async fn say<T: Serialize + Sync>(&mut self, message: &T) -> Result<(), WireError> {
        let mut line = serde_json::to_vec(message).map_err(|e| self.nonsense(e.to_string()))?;
        line.push(b'\n');
        match runtime::timeout(SILENCE, write_all(&mut self.writer, &line)).await {
            Ok(result) => result.map_err(|e| self.io(e)),
            Err(runtime::Elapsed) => Err(self.silent(SILENCE)),
        }
    }

    /// Hears one line, `None` at the end of the connection. What comes before the end without a newline is a line
    /// too: that is how `nc` may send it.
    pub async fn hear_line(&mut self, limit: Duration) -> Result<Option<Vec<u8>>, WireError> {
        let mut line = Vec::new();
        let reading = async {
            loop {
                let available = self.reader.fill_buf().await?;
                let newline = available.iter().position(|&b| b == b'\n');
                let taken = newline.unwrap_or(available.len());
                if line.len() + taken > LONGEST_LINE {
                    return Ok(Heard::TooLong);
                }
                line.extend_from_slice(&available[..taken]);
                let ended = available.is_empty();
                self.reader.consume(taken + usize::from(newline.is_some()));
                if ended && line.is_empty() {
                    return Ok(Heard::End);
                }
                if ended || newline.is_some() {
                    return Ok(Heard::Line);
                }
            }
        };
        match runtime::timeout(limit, reading).await {
            Err(runtime::Elapsed) => Err(self.silent(limit)),
            Ok(Err(error)) => Err(self.io(error)),
            Ok(Ok(Heard::Line)) => Ok(Some(line)),
            Ok(Ok(Heard::End)) => Ok(None),
            Ok(Ok(Heard::TooLong)) => Err(self.nonsense(format!("a line of more than {LONGEST_LINE} bytes"))),
        }
    }

    /// Hears one message; the end of the connection is an error.
    pub async fn hear<T: DeserializeOwned>(&mut self, limit: Duration) -> Result<T, WireError> {
        let line = self.hear_line(limit).await?.ok_or_else(|| WireError::Closed { peer: self.peer.clone() })?;
        self.understand(&line)
    }

    /// A line as a message.
    pub fn understand<T: DeserializeOwned>(&self, line: &[u8]) -> Result<T, WireError> {
        serde_json::from_slice(line).map_err(|error| {
            let shown: String = String::from_utf8_lossy(&line[..line.len().min(100)]).into_owned();
            self.nonsense(format!("{error} in {shown:?}"))
        })
    }

    /// Sends what `source` gives, frame by frame, until its end or until the peer speaks.
    /// The caller then says how it ended with [`Conn::end_stream`].
    pub async fn send_stream(
        &mut self,
        source: &mut (dyn AsyncRead + Send + Unpin),
        counter: &Counter,
        stall: Duration,
    ) -> Result<Sent, WireError> {
        let Self { reader, writer, .. } = self;
        let sending = async {
            let mut frame = vec![0; 4 + LARGEST_FRAME];
            loop {
                let read = match runtime::timeout(ALIVE_EVERY, source.read(&mut frame[4..])).await {
                    Ok(read) => read?,
                    Err(runtime::Elapsed) => {
                        write_all(writer, &ALIVE.to_be_bytes()).await?;
                        continue;
                    }
                };
                if read == 0 {
                    return Ok(Sent::All);
                }
                frame[..4].copy_from_slice(&u32::try_from(read).unwrap_or(0).to_be_bytes());
                runtime::timeout(stall, write_all(writer, &frame[..4 + read]))
                    .await
                    .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                counter.add(read as u64);
            }
        };
        let interrupted = async {
            // Nothing is consumed: the peer's words stay for `hear`.
            reader.fill_buf().await.map(|_| Sent::Refused)
        };
        match future::or(interrupted, sending).await {
            Ok(sent) => Ok(sent),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(self.silent(stall)),
            Err(error) => Err(self.io(error)),
        }
    }

    /// Ends a stream.
    pub async fn end_stream(&mut self, end: &StreamEnd) -> Result<(), WireError> {
        let zero = runtime::timeout(SILENCE, write_all(&mut self.writer, &0u32.to_be_bytes())).await;
        zero.map_err(|_| self.silent(SILENCE))?.map_err(|e| self.io(e))?;
        self.say(end).await
    }

    /// Hears the next frame into `buffer` (cleared first): `false` at the end of the stream.
    pub async fn hear_frame(&mut self, buffer: &mut Vec<u8>) -> Result<bool, WireError> {
        loop {
            let mut length = [0; 4];
            self.read_exact(&mut length).await?;
            match u32::from_be_bytes(length) {
                0 => return Ok(false),
                ALIVE => {}
                length if length as usize > LARGEST_FRAME => {
                    return Err(self.nonsense(format!("a frame of {length} bytes; {LARGEST_FRAME} are allowed")));
                }
                length => {
                    // The buffer only ever grows; old bytes are overwritten.
                    buffer.resize(length as usize, 0);
                    let mut whole = std::mem::take(buffer);
                    let result = self.read_exact(&mut whole).await;
                    *buffer = whole;
                    return result.map(|()| true);
                }
            }
        }
    }

    async fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), WireError> {
        match runtime::timeout(SILENCE, self.reader.read_exact(buffer)).await {
            Ok(result) => result.map_err(|e| self.io(e)),
            Err(runtime::Elapsed) => Err(self.silent(SILENCE)),
        }
    }

    /// Closes our side, so that the peer sees the end.
    pub async fn close(mut self) {
        if let Ok(Err(error)) = runtime::timeout(ALIVE_EVERY, self.writer.close()).await {
            log::debug!("closing the connection with {}: {error}", self.peer);
        }
    }
}

async fn write_all(writer: &mut (impl AsyncWrite + Unpin + ?Sized), bytes: &[u8]) -> io::Result<()> {
    writer.write_all(bytes).await?;
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use futures_lite::io::Cursor;

    use super::*;

    fn hearing(bytes: &[u8]) -> Conn {
        let reader = Box::new(Cursor::new(bytes.to_vec()));
        Conn::new(reader, Box::new(Cursor::new(Vec::new())), "test".into())
    }

    fn lines(bytes: &[u8]) -> Vec<Result<Option<Vec<u8>>, String>> {
        let mut conn = hearing(bytes);
        runtime::block_on(async {
            let mut all = Vec::new();
            loop {
                let line = conn.hear_line(SILENCE).await.map_err(|e| e.to_string());
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

    #[test]
    fn an_oversized_frame_is_refused_before_it_is_read() {
        let mut conn = hearing(&0x7fff_ffffu32.to_be_bytes());
        let error = runtime::block_on(conn.hear_frame(&mut Vec::new())).unwrap_err();
        assert!(error.to_string().contains("a frame of 2147483647 bytes"), "{error}");
    }

    #[test]
    fn a_truncated_frame_is_an_error() {
        let mut bytes = 10u32.to_be_bytes().to_vec();
        bytes.extend(b"abc");
        let error = runtime::block_on(hearing(&bytes).hear_frame(&mut Vec::new())).unwrap_err();
        assert!(matches!(error, WireError::Closed { .. }), "{error}");
    }
}
