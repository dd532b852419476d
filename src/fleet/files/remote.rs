//! Reads files from the snapshots of another host, through its agent.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use futures_lite::future;

use crate::agent::files::search::{MOST, MOST_PROBLEMS, Searched, too_many};
use crate::fleet::dispatch::not_of;
use crate::fleet::facts;
use crate::fleet::files::guard::Guard;
use crate::model::path_pattern::PathPattern;
use crate::model::{Counter, DatasetName, Guid, HostName, OrderId, PeerRole, Place, ResponseStatus, SnapName, hint};
use crate::policy::AGENT_PORT;
use crate::sys::runtime;
use crate::sys::runtime::channel;
use crate::sys::tree::Copier;
use crate::transport::tcp::Dial;
use crate::transport::tls::Tls;
use crate::wire::codec::{Conn, WireError};
use crate::wire::files::{AskFiles, FilesLine, MOST_SNAPSHOTS, ReadFiles, WantedOfFiles, unpack};
use crate::wire::{Alive, PROTOCOL, Response};
use crate::zfs::Listed;

/// How many frames wait to be written to files.
const FRAMES: usize = 4;
/// How often the other host is told that this one is still writing.
const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// A dataset of another host, and how its agent is reached.
pub struct Remote {
    /// The dataset.
    pub root: Place,
    /// The address of the agent, if it is known.
    pub address: Option<String>,
    /// This host, which asks.
    pub here: HostName,
    /// This host's certificate.
    pub tls: Option<Arc<Tls>>,
}

/// Why the other host gave nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason in words, with a hint.
    pub reason: String,
    /// Whether the other host permits nothing, so that asking again is in vain.
    pub is_forbidden: bool,
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Self {
        Self { reason: error.to_string(), is_forbidden: false }
    }
}

impl Remote {
    /// Lists the snapshots that this host may read there.
    pub async fn list(&self) -> Result<Vec<Listed>, Refusal> {
        let (id, mut conn) = self.ask(WantedOfFiles::List).await?;
        let mut told = Vec::new();
        let response = loop {
            match conn.recv(conn.patience).await? {
                FilesLine::Facts { facts } => told.push(*facts),
                FilesLine::Response(response) => break response,
                FilesLine::Progress { .. } | FilesLine::Found { .. } | FilesLine::Problem { .. } => {}
            }
        };
        self.check(&conn, id, &response)?;
        conn.close().await;
        if let Some(reason) = not_of(&self.root.host, &told) {
            return Err(Refusal { reason, is_forbidden: false });
        }
        let listed = facts::assemble(told.into_iter().filter_map(|facts| facts.listing));
        let listed = listed.into_iter().map(|((_, dataset), found)| (dataset, found));
        let listed: Vec<Listed> = listed.filter(|(dataset, _)| dataset.is_within(&self.root.dataset)).collect();
        if response.datasets != Some(listed.len() as u64) {
            let reason = format!("the list of the snapshots of {} is not complete", self.root);
            return Err(Refusal { reason, is_forbidden: false });
        }
        Ok(listed)
    }

    /// Searches snapshots there, the newest first. `searched` counts them. The numbers in the result are those in the
    /// list.
    pub async fn search(
        &self,
        pattern: &PathPattern,
        snapshots: &[(DatasetName, SnapName)],
        searched: &Counter,
    ) -> Result<Searched, Refusal> {
        let mut all = Searched::default();
        for (part, at) in snapshots.chunks(MOST_SNAPSHOTS).zip((0..).step_by(MOST_SNAPSHOTS)) {
            let what = WantedOfFiles::Search { pattern: pattern.to_string(), snapshots: part.to_vec() };
            let (id, mut conn) = self.ask(what).await?;
            let before = searched.get();
            loop {
                match conn.recv(conn.patience).await? {
                    FilesLine::Found { found } => {
                        let is_possible = |newest: usize, oldest: usize| newest <= oldest && oldest < part.len();
                        if found.iter().any(|of| !is_possible(of.newest, of.oldest)) {
                            return Err(conn.damaged("it names a snapshot that was not searched").into());
                        }
                        all.found.extend(found.into_iter().map(|mut of| {
                            (of.newest, of.oldest) = (of.newest + at, of.oldest + at);
                            of
                        }));
                        if all.found.len() > MOST {
                            return Err(Refusal { reason: too_many(), is_forbidden: false });
                        }
                    }
                    FilesLine::Progress { progress } => {
                        searched.add((before + progress.bytes).saturating_sub(searched.get()));
                    }
                    FilesLine::Problem { problem } if all.problems.len() < MOST_PROBLEMS => {
                        all.problems.push(format!("{}: {problem}", self.root.host));
                    }
                    FilesLine::Problem { .. } | FilesLine::Facts { .. } => {}
                    FilesLine::Response(response) => {
                        self.check(&conn, id, &response)?;
                        let count = response.datasets.unwrap_or_default().min(part.len() as u64);
                        all.searched += usize::try_from(count).unwrap_or_default();
                        searched.add((before + part.len() as u64).saturating_sub(searched.get()));
                        break;
                    }
                }
            }
            conn.close().await;
        }
        Ok(all)
    }

    /// Copies the files of one snapshot there. `counter` counts the bytes of the stream. The copier comes back with what
    /// it has done, whatever happened.
    pub async fn fetch(
        &self,
        mut copier: Copier,
        patterns: &Arc<Vec<PathPattern>>,
        (of, snapshot, guid): (&DatasetName, &SnapName, Guid),
        counter: &Counter,
    ) -> (Copier, Result<(), Fetched>) {
        let texts = patterns.iter().map(ToString::to_string).collect();
        let what = WantedOfFiles::Fetch { patterns: texts, of: of.clone(), snapshot: snapshot.clone(), guid };
        let beginning = async {
            let (id, mut conn) = self.ask(what).await?;
            loop {
                if let FilesLine::Response(response) = conn.recv(conn.patience).await? {
                    self.check(&conn, id, &response)?;
                    return Ok::<_, Refusal>((id, conn));
                }
            }
        };
        let (id, mut conn) = match beginning.await {
            Ok(begun) => begun,
            Err(refusal) => return (copier, Err(Fetched::Nothing(refusal))),
        };
        let below = of.below(&self.root.dataset).unwrap_or_default().to_owned();
        let (frames, arrived) = channel::bounded(FRAMES);
        let wanted = Arc::clone(patterns);
        let depth = copier.depth();
        let writing = runtime::blocking(move || {
            let mut frames = Frames { arrived, frame: Vec::new(), at: 0 };
            let unpacked = unpack(&mut frames, &mut Guard::new(&mut copier, &wanted, &below));
            if unpacked.is_err() {
                copier.give_up(depth);
            }
            (copier, unpacked)
        });
        let receiving = async {
            let received = receive(&mut conn, frames, counter).await;
            (conn, received)
        };
        let ((copier, written), (mut conn, received)) = future::zip(writing, receiving).await;
        let done = match (written, received) {
            // The end of the stream is the consequence of what went wrong on the way.
            (Err(error), Ok(())) if error.kind() != io::ErrorKind::UnexpectedEof => {
                Err(Fetched::Part(error.to_string()))
            }
            (_, Err(reason)) => Err(Fetched::Part(reason)),
            (written, Ok(())) => written.map_err(|error| Fetched::Part(error.to_string())),
        };
        if done.is_ok() {
            let thanks = Response::success(id, ResponseStatus::Done, "");
            if let Err(error) = conn.send(&thanks).await {
                log::debug!("{error}");
            }
            conn.close().await;
        }
        (copier, done)
    }

    /// Opens a connection, and asks.
    async fn ask(&self, what: WantedOfFiles) -> Result<(OrderId, Conn), Refusal> {
        let Self { root, address, here, tls } = self;
        let address = address.clone().unwrap_or_else(|| format!("{}:{AGENT_PORT}", root.host));
        let dial = Dial { host: &root.host, role: PeerRole::Agent, address: &address, tls: tls.as_deref() };
        let mut conn = dial.connect().await.map(Conn::from).map_err(|error| {
            let hint = format!("check that zsync agent is running on {}", root.host);
            Refusal { reason: hint::join(error, Some(&hint)), is_forbidden: false }
        })?;
        let order_uuid = OrderId(uuid::Uuid::now_v7());
        let (host, dataset) = (here.clone(), root.dataset.clone());
        conn.send(&AskFiles { read_files: ReadFiles { order_uuid, host, dataset, what, protocol: PROTOCOL } }).await?;
        Ok((order_uuid, conn))
    }

    fn check(&self, conn: &Conn, id: OrderId, response: &Response) -> Result<(), Refusal> {
        conn.check_answers(response, id)?;
        if response.is_success {
            return Ok(());
        }
        let Response { status, error, hint, .. } = response;
        let reason = hint::join(format!("{}: {error}", self.root.host), hint.as_deref());
        Err(Refusal { reason, is_forbidden: *status == ResponseStatus::Refused })
    }
}

/// Why not everything was fetched.
pub enum Fetched {
    /// Nothing came.
    Nothing(Refusal),
    /// A part of it came.
    Part(String),
}

/// Receives the stream of files, frame by frame.
async fn receive(conn: &mut Conn, frames: channel::Sender<Vec<u8>>, counter: &Counter) -> Result<(), String> {
    let mut frame = Vec::new();
    while conn.recv_frame(&mut frame).await.map_err(|error| error.to_string())? {
        counter.add(frame.len() as u64);
        let giving = async { Ok::<_, String>(frames.send(std::mem::take(&mut frame)).await.is_ok()) };
        let signalling = async {
            loop {
                runtime::sleep(ALIVE_EVERY).await;
                let alive = Alive { alive: counter.get(), ..Alive::default() };
                conn.send(&alive).await.map_err(|error| error.to_string())?;
            }
        };
        if !future::or(giving, signalling).await? {
            // The one that writes has stopped, and says why.
            return Ok(());
        }
    }
    let end = conn.recv_stream_end().await.map_err(|error| error.to_string())?;
    if end.is_success { Ok(()) } else { Err(format!("{}: {}", conn.peer, end.error)) }
}

/// The frames as one stream of bytes.
struct Frames {
    arrived: channel::Receiver<Vec<u8>>,
    frame: Vec<u8>,
    /// How much of the frame was read.
    at: usize,
}

impl Read for Frames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at >= self.frame.len() {
            match self.arrived.recv_blocking() {
                Ok(frame) => (self.frame, self.at) = (frame, 0),
                Err(_) => return Ok(0),
            }
        }
        let length = buffer.len().min(self.frame.len() - self.at);
        buffer[..length].copy_from_slice(&self.frame[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}
