//! Lines and frames on a connection, with a limit for every length and a deadline for every wait.
//!
//! A frame is a length (four bytes, big endian) and that many bytes. Length 0 ends the stream and is followed by
//! one line, [`StreamEnd`]; length 0xFFFFFFFF says only that the sender is alive.

use std::io;
use std::time::{Duration, Instant};

use futures_lite::future;
use futures_lite::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Alive, LONGEST_LINE, Response};
use crate::model::{Counter, Identity};
use crate::runtime;

/// What a frame carries at the most, in bytes: what a widened pipe gives in one read.
pub const LARGEST_FRAME: usize = 1 << 20;
const ALIVE: u32 = u32::MAX;
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

/// What comes in, with the part of a line that was heard so far: hearing may be broken off at any point and taken up
/// again, nothing is lost.
struct Ear {
    reader: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    line: Vec<u8>,
    /// How many bytes of lines were heard so far.
    heard: usize,
}

/// How hearing a line ended.
enum Heard {
    Line(Vec<u8>),
    End,
    TooLong,
    TooMuch,
}

impl Ear {
    /// The next line. What comes before the end without a newline is a line too: that is how `nc` may send it.
    async fn line(&mut self) -> io::Result<Heard> {
        loop {
            let available = self.reader.fill_buf().await?;
            let newline = available.iter().position(|&b| b == b'\n');
            let taken = newline.unwrap_or(available.len());
            if self.line.len() + taken > LONGEST_LINE {
                return Ok(Heard::TooLong);
            }
            self.heard += taken;
            if self.heard > MOST_IN_LINES {
                return Ok(Heard::TooMuch);
            }
            self.line.extend_from_slice(&available[..taken]);
            let ended = available.is_empty();
            self.reader.consume(taken + usize::from(newline.is_some()));
            if ended && self.line.is_empty() {
                return Ok(Heard::End);
            }
            if ended || newline.is_some() {
                return Ok(Heard::Line(std::mem::take(&mut self.line)));
            }
        }
    }
}

/// A connection with a peer.
pub struct Conn {
    ear: Ear,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// Whom we talk to, for messages.
    pub peer: String,
    /// Who that has proven to be; `None` in plaintext.
    pub identity: Option<Identity>,
    /// How long the peer may be silent, and take nothing of what is said to it.
    pub patience: Duration,
    /// How long a stream may not move although the peer is alive.
    pub stall: Duration,
}

/// How sending a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The source came to its end.
    All,
    /// The peer does not want the rest.
    Refused,
    /// The source gave nothing for too long.
    Stalled,
}

/// What happens while a stream is sent.
enum Event {
    /// The source gave so much.
    Read(io::Result<usize>),
    /// The source gives nothing for now.
    Idle,
    /// The connection took so much.
    Written(io::Result<usize>),
    /// The peer spoke.
    Heard(io::Result<Heard>),
    /// The peer neither spoke nor took anything.
    Silence,
}

impl Conn {
    /// A connection over these two halves.
    #[must_use]
    pub fn new(
        reader: Box<dyn AsyncRead + Send + Unpin>,
        writer: Box<dyn AsyncWrite + Send + Unpin>,
        peer: String,
    ) -> Self {
        let ear = Ear { reader: BufReader::with_capacity(READ_AHEAD, reader), line: Vec::new(), heard: 0 };
        Self { ear, writer, peer, identity: None, patience: SILENCE, stall: STALL }
    }

    /// The same, with a peer that has proven who it is.
    #[must_use]
    pub fn of(self, identity: Identity) -> Self {
        Self { identity: Some(identity), ..self }
    }

    /// Sets how long a stream may not move. A peer may not be silent for longer than that either.
    pub fn bear(&mut self, stall: Duration) {
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
    pub async fn say<T: Serialize + Sync>(&mut self, message: &T) -> Result<(), WireError> {
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
    pub async fn hear_line(&mut self, limit: Duration) -> Result<Option<Vec<u8>>, WireError> {
        match runtime::timeout(limit, self.ear.line()).await {
            Err(runtime::Elapsed) => Err(self.silent(limit)),
            Ok(Err(error)) => Err(self.io(error)),
            Ok(Ok(Heard::Line(line))) => Ok(Some(line)),
            Ok(Ok(Heard::End)) => Ok(None),
            Ok(Ok(Heard::TooLong)) => Err(self.too_long()),
            Ok(Ok(Heard::TooMuch)) => Err(self.too_much()),
        }
    }

    fn too_much(&self) -> WireError {
        self.nonsense(format!("more than {} MiB of lines", MOST_IN_LINES >> 20))
    }

    fn too_long(&self) -> WireError {
        self.nonsense(format!("a line of more than {LONGEST_LINE} bytes"))
    }

    /// Hears one message; the end of the connection is an error.
    pub async fn hear<T: DeserializeOwned>(&mut self, limit: Duration) -> Result<T, WireError> {
        let line = self.hear_line(limit).await?.ok_or_else(|| self.closed())?;
        self.understand_or_break(&line)
    }

    /// A line as a message; one that is not may be the peer's reason to break off.
    pub fn understand_or_break<T: DeserializeOwned>(&self, line: &[u8]) -> Result<T, WireError> {
        self.understand(line).map_err(|error| self.last_words(line, error))
    }

    fn last_words(&self, line: &[u8], not_understood: WireError) -> WireError {
        match self.understand::<Response>(line) {
            Ok(Response { is_success: false, error: reason, temporary, .. }) => {
                WireError::BrokenOff { peer: self.peer.clone(), reason, temporary }
            }
            _ => not_understood,
        }
    }

    /// A line as a message.
    pub fn understand<T: DeserializeOwned>(&self, line: &[u8]) -> Result<T, WireError> {
        serde_json::from_slice(line).map_err(|error| {
            let shown: String = String::from_utf8_lossy(&line[..line.len().min(100)]).into_owned();
            self.nonsense(format!("{error} in {shown:?}"))
        })
    }

    /// Sends what `source` gives, frame by frame, until its end or until the peer does not want more.
    /// The caller then says how it ended with [`Conn::end_stream`].
    ///
    /// A frame that was begun is finished whatever the peer says: what follows must stand where a frame may begin.
    pub async fn send_stream(
        &mut self,
        source: &mut (dyn AsyncRead + Send + Unpin),
        counter: &Counter,
    ) -> Result<Sent, WireError> {
        let mut frame = vec![0; 4 + LARGEST_FRAME];
        let mut moved = Instant::now();
        loop {
            let ear = &mut self.ear;
            let hearing = async { Event::Heard(ear.line().await) };
            let reading = async {
                let read = runtime::timeout(ALIVE_EVERY, source.read(&mut frame[4..])).await;
                read.map_or(Event::Idle, Event::Read)
            };
            let length = match future::or(hearing, reading).await {
                Event::Read(read) => read.map_err(|e| self.io(e))?,
                Event::Heard(heard) => {
                    if self.is_refusal(heard)? {
                        return Ok(Sent::Refused);
                    }
                    continue;
                }
                Event::Idle | Event::Written(_) | Event::Silence => {
                    if moved.elapsed() >= self.stall {
                        return Ok(Sent::Stalled);
                    }
                    self.write_all(&ALIVE.to_be_bytes()).await?;
                    continue;
                }
            };
            if length == 0 {
                return Ok(Sent::All);
            }
            frame[..4].copy_from_slice(&u32::try_from(length).unwrap_or(0).to_be_bytes());
            let refused = self.write_heard(&frame[..4 + length]).await?;
            counter.add(length as u64);
            moved = Instant::now();
            if refused {
                return Ok(Sent::Refused);
            }
        }
    }

    /// Writes a frame while hearing what the peer says, which may be that it works although it takes nothing.
    async fn write_heard(&mut self, bytes: &[u8]) -> Result<bool, WireError> {
        let mut refused = false;
        let mut rest = bytes;
        let mut moved = Instant::now();
        while !rest.is_empty() {
            if moved.elapsed() >= self.stall {
                return Err(WireError::Stalled { peer: self.peer.clone(), gives: false, limit: self.stall });
            }
            let (ear, writer, patience) = (&mut self.ear, &mut self.writer, self.patience);
            let writing = async { Event::Written(writer.write(rest).await) };
            let hearing = async { runtime::timeout(patience, ear.line()).await.map_or(Event::Silence, Event::Heard) };
            match future::or(writing, hearing).await {
                Event::Written(Ok(0)) => return Err(self.closed()),
                Event::Written(Ok(taken)) => {
                    rest = &rest[taken..];
                    moved = Instant::now();
                }
                Event::Written(Err(error)) => return Err(self.io(error)),
                Event::Heard(heard) => refused |= self.is_refusal(heard)?,
                Event::Silence | Event::Idle | Event::Read(_) => return Err(self.silent(patience)),
            }
        }
        Ok(refused)
    }

    /// Whether the peer wants no more of the stream: it may also only have said that it is alive.
    fn is_refusal(&self, heard: io::Result<Heard>) -> Result<bool, WireError> {
        match heard.map_err(|e| self.io(e))? {
            Heard::Line(line) => match self.understand::<Alive>(&line) {
                Ok(alive) => Ok(alive.refused),
                Err(error) => Err(self.last_words(&line, error)),
            },
            Heard::End => Err(self.closed()),
            Heard::TooLong => Err(self.too_long()),
            Heard::TooMuch => Err(self.too_much()),
        }
    }

    /// Ends a stream.
    pub async fn end_stream(&mut self, end: &StreamEnd) -> Result<(), WireError> {
        self.write_all(&0u32.to_be_bytes()).await?;
        self.say(end).await
    }

    /// Hears how the stream ended, after its last frame.
    pub async fn hear_stream_end(&mut self) -> Result<StreamEnd, WireError> {
        let line = self.hear_line(self.patience).await?.ok_or_else(|| self.closed())?;
        self.understand(&line).map_err(|_| self.damaged("the line at its end is none"))
    }

    fn damaged(&self, reason: impl Into<String>) -> WireError {
        WireError::Damaged { peer: self.peer.clone(), reason: reason.into() }
    }

    /// Hears the next frame into `buffer`: `false` at the end of the stream. After an error the buffer has what arrived
    /// of the frame: data that need not travel again.
    pub async fn hear_frame(&mut self, buffer: &mut Vec<u8>) -> Result<bool, WireError> {
        let length = match self.hear_length().await {
            Ok(length) => length,
            Err(error) => {
                buffer.clear();
                return Err(error);
            }
        };
        // Not cleared: old bytes are overwritten.
        buffer.resize(length, 0);
        let mut filled = 0;
        while filled < length {
            match self.read_some(&mut buffer[filled..]).await {
                Ok(read) => filled += read,
                Err(error) => {
                    buffer.truncate(filled);
                    return Err(error);
                }
            }
        }
        Ok(length > 0)
    }

    /// Hears how long the next frame is that is more than a sign of life; 0 at the end of the stream.
    async fn hear_length(&mut self) -> Result<usize, WireError> {
        let began = Instant::now();
        loop {
            let mut length = [0; 4];
            let mut filled = 0;
            while filled < length.len() {
                filled += self.read_some(&mut length[filled..]).await?;
            }
            match u32::from_be_bytes(length) {
                // The peer notices first that its source gives nothing, and says so.
                ALIVE if began.elapsed() < self.stall + self.patience => {}
                ALIVE => return Err(WireError::Stalled { peer: self.peer.clone(), gives: true, limit: self.stall }),
                length if length as usize > LARGEST_FRAME => {
                    return Err(self.damaged(format!("a frame of {length} bytes; {LARGEST_FRAME} are allowed")));
                }
                length => return Ok(length as usize),
            }
        }
    }

    /// Reads what there is, with patience for each piece: a slow link is not a dead one.
    async fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, WireError> {
        match runtime::timeout(self.patience, self.ear.reader.read(buffer)).await {
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

    async fn end(&mut self) {
        if let Ok(Err(error)) = runtime::timeout(ALIVE_EVERY, self.writer.close()).await {
            log::debug!("closing the connection with {}: {error}", self.peer);
        }
    }

    /// Closes the connection on a peer that talks nonsense, after a last line. What it still says is let pass for a
    /// moment: a system that closes a connection with unread words in it takes back its own last ones.
    pub async fn part<T: Serialize + Sync>(mut self, last: &T) {
        if let Err(error) = self.say(last).await {
            log::debug!("{error}");
            return;
        }
        self.end().await;
        let passing = async {
            let mut words = vec![0; 64 * 1024];
            for _ in 0..MOST_LET_PASS {
                if !self.ear.reader.read(&mut words).await.is_ok_and(|read| read > 0) {
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
    fn of_a_truncated_frame_what_arrived_is_kept() {
        let mut bytes = 10u32.to_be_bytes().to_vec();
        bytes.extend(b"abc");
        let mut frame = b"an older one".to_vec();
        let error = runtime::block_on(hearing(&bytes).hear_frame(&mut frame)).unwrap_err();
        assert!(matches!(error, WireError::Closed { .. }), "{error}");
        assert_eq!(frame, b"abc");
        runtime::block_on(hearing(b"xy").hear_frame(&mut frame)).unwrap_err();
        assert!(frame.is_empty());
    }
}
