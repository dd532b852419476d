//! Answers other hosts that read files from the snapshots of this one.
//!
//! The host that wants the files opens the connection, so that this host knows from the certificate who gets them. What
//! it may read is decided here alone: copies of its own datasets, and what `local.json` lets it read. A director has no
//! part in that.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_lite::future;
use futures_lite::io::AsyncRead;
use futures_lite::stream::Stream;

use crate::agent::files::search::{Searched, search};
use crate::agent::files::{select, unreadable};
use crate::agent::service::Agent;
use crate::host::error::OrderError;
use crate::model::path_pattern::PathPattern;
use crate::model::{
    Counter, DatasetInventory, DatasetName, Guid, HostName, Identity, OrderId, ResponseStatus, SnapName, SourceRecord,
    hint, tags,
};
use crate::policy::Zstd;
use crate::sys::runtime;
use crate::sys::runtime::channel;
use crate::wire::codec::{Conn, Sent, StreamEnd, StreamOptions, WireError};
use crate::wire::files::{FOUND_PER_LINE, FilesLine, MOST_SNAPSHOTS, Packer, ReadFiles, WantedOfFiles};
use crate::wire::{Alive, Facts, Listing, PROTOCOL, Progress, Response};
use crate::zfs::{Depth, Listed, Zfs};

/// How often the host that asks gets the progress of a search.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);
/// How much of the stream is collected before it is sent, in bytes.
const PART: usize = 256 << 10;
/// How many such parts wait to be sent.
const PARTS: usize = 4;

/// Why nothing more is answered.
enum Stop {
    /// The request is refused, or has failed.
    Order(OrderError),
    /// The connection has failed.
    Wire(WireError),
}

impl From<WireError> for Stop {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

impl From<OrderError> for Stop {
    fn from(error: OrderError) -> Self {
        Self::Order(error)
    }
}

/// The identity of a request and who asks.
struct Asking {
    id: OrderId,
    host: HostName,
    root: DatasetName,
}

impl<Z: Zfs> Agent<Z> {
    /// Answers a host that reads files.
    pub(crate) async fn read_files(&self, conn: &mut Conn, asked: ReadFiles) -> Result<(), WireError> {
        let ReadFiles { order_uuid: id, host, dataset: root, what, protocol } = asked;
        conn.set_stall_timeout(self.local.stall_timeout);
        let _in_progress = self.counters.begin();
        let (counter, asking) = (Counter::default(), Asking { id, host, root });
        let answering = async {
            if protocol > PROTOCOL {
                let reason = format!("protocol {protocol} is newer than this agent's, {PROTOCOL}");
                return Err(Stop::Order(OrderError::refused(reason)));
            }
            match what {
                WantedOfFiles::List => self.list_files(conn, &asking).await,
                WantedOfFiles::Search { pattern, snapshots } => {
                    self.search_files(conn, &asking, &pattern, snapshots).await
                }
                WantedOfFiles::Fetch { patterns, of, snapshot, guid } => {
                    self.send_files(conn, &asking, &patterns, (&of, &snapshot, guid), &counter).await
                }
            }
        };
        let answered = answering.await;
        self.counters.ended("read_files", answered.is_ok(), counter.get());
        match answered {
            Ok(()) => Ok(()),
            Err(Stop::Wire(error)) => Err(error),
            Err(Stop::Order(error)) => {
                let Asking { host, root, .. } = &asking;
                log::warn!("{id}: cannot let {host} read the files of {root}: {}", error.message());
                conn.send(&FilesLine::Response(error.response(id))).await
            }
        }
    }

    /// The datasets within the one that is asked for, as far as the host that asks may read them; at least one.
    async fn readable(&self, peer: Option<Identity>, asking: &Asking) -> Result<Vec<Listed>, OrderError> {
        let Asking { host, root, .. } = asking;
        self.local.permission_to_speak_as(peer.as_ref(), host)?;
        self.local.permission_to_list(root)?;
        let listed = self.zfs.list(std::slice::from_ref(root), Depth::Recursive).await?;
        if listed.is_empty() {
            return Err(OrderError::refused(format!("{root} does not exist")));
        }
        let (mut readable, mut denied) = (Vec::new(), None);
        for (dataset, found) in listed {
            let is_copy = self.is_copy_of(&dataset, &found, host).await?;
            match self.local.permission_to_read(peer.as_ref(), &dataset, host, is_copy) {
                Ok(_) => readable.push((dataset, found)),
                Err(error) => denied = denied.or(Some(error)),
            }
        }
        match denied {
            Some(denied) if readable.is_empty() => Err(denied.into()),
            _ => Ok(readable),
        }
    }

    /// Whether a dataset is a copy of a dataset of that host: the hold that every transfer leaves names it. A copy that was
    /// set aside has no such hold any more, but still the record of its source.
    pub(crate) async fn is_copy_of(
        &self,
        dataset: &DatasetName,
        found: &DatasetInventory,
        host: &HostName,
    ) -> Result<bool, OrderError> {
        let holds = self.zfs.holds(dataset, &found.held()).await?;
        if holds.iter().any(|(_, tag)| *tag == tags::received(host)) {
            return Ok(true);
        }
        let is_aside = found.excluded && found.flags.is_some() && !holds.iter().any(|(_, tag)| tags::is_received(tag));
        if !is_aside {
            return Ok(false);
        }
        let recorded = self.zfs.properties(dataset).await?.remove(tags::PROPERTIES);
        let source = recorded.and_then(|value| SourceRecord::parse(&value)).and_then(|record| record.source);
        Ok(source.is_some_and(|source| source.host == *host))
    }

    /// Sends the list of datasets and snapshots.
    async fn list_files(&self, conn: &mut Conn, asking: &Asking) -> Result<(), Stop> {
        let readable = self.readable(conn.identity.clone(), asking).await?;
        log::info!("{}: {} lists the files of {}", asking.id, asking.host, asking.root);
        let count = readable.len() as u64;
        for (dataset, DatasetInventory { kind, snapshots, .. }) in readable {
            let inventory = DatasetInventory { kind, snapshots, ..DatasetInventory::default() };
            for listing in Listing::parts(&self.host, &dataset, inventory) {
                let facts = Box::new(Facts { listing: Some(listing), ..Facts::default() });
                conn.send(&FilesLine::Facts { facts }).await?;
            }
        }
        let response = Response { datasets: Some(count), ..Response::success(asking.id, ResponseStatus::Done, "") };
        Ok(conn.send(&FilesLine::Response(response)).await?)
    }

    /// Searches snapshots, and sends the versions that were found.
    async fn search_files(
        &self,
        conn: &mut Conn,
        asking: &Asking,
        pattern: &str,
        snapshots: Vec<(DatasetName, SnapName)>,
    ) -> Result<(), Stop> {
        let pattern: PathPattern = parse(pattern)?;
        if snapshots.len() > MOST_SNAPSHOTS {
            return Err(Stop::Order(OrderError::refused(format!(
                "more than {MOST_SNAPSHOTS} snapshots in one request"
            ))));
        }
        let readable = self.readable(conn.identity.clone(), asking).await?;
        if let Some((unknown, _)) = snapshots.iter().find(|(of, _)| !readable.iter().any(|(name, _)| name == of)) {
            return Err(Stop::Order(OrderError::refused(format!("{unknown} must not be read, or does not exist"))));
        }
        log::info!("{}: {} searches {} for {pattern}", asking.id, asking.host, asking.root);
        let (open, root, searched) = (Arc::clone(&self.open), asking.root.clone(), Counter::default());
        let progress = searched.clone();
        let searching = runtime::blocking(move || search(&open, &root, &snapshots, &pattern, || progress.add(1)));
        let telling = async {
            loop {
                runtime::sleep(PROGRESS_INTERVAL).await;
                let progress = Progress { bytes: searched.get(), ..Progress::default() };
                conn.send(&FilesLine::Progress { progress }).await?;
            }
        };
        let Searched { mut found, searched, problems } =
            future::or(async { Ok::<_, WireError>(searching.await) }, telling).await?;
        while !found.is_empty() {
            let rest = found.split_off(found.len().min(FOUND_PER_LINE));
            conn.send(&FilesLine::Found { found }).await?;
            found = rest;
        }
        for problem in problems {
            conn.send(&FilesLine::Problem { problem }).await?;
        }
        let response =
            Response { datasets: Some(searched as u64), ..Response::success(asking.id, ResponseStatus::Done, "") };
        Ok(conn.send(&FilesLine::Response(response)).await?)
    }

    /// Sends the files of one snapshot as a stream.
    async fn send_files(
        &self,
        conn: &mut Conn,
        asking: &Asking,
        patterns: &[String],
        (dataset, snapshot, guid): (&DatasetName, &SnapName, Guid),
        counter: &Counter,
    ) -> Result<(), Stop> {
        let patterns: Vec<PathPattern> = patterns.iter().map(|text| parse(text)).collect::<Result<_, _>>()?;
        let readable = self.readable(conn.identity.clone(), asking).await?;
        let found = readable.iter().find(|(name, _)| name == dataset).map(|(_, found)| found);
        if found.and_then(|found| found.by_guid(guid)).is_none_or(|found| found.name != *snapshot) {
            let reason = format!("there is no {} any more, or it must not be read", dataset.at(snapshot));
            return Err(Stop::Order(OrderError::refused(reason)));
        }
        let (open, of) = (Arc::clone(&self.open), (dataset.clone(), snapshot.clone()));
        let opened = runtime::blocking(move || open(&of.0, &of.1).map_err(|error| unreadable(&of.0, &error))).await;
        let folder = opened.map_err(|text| {
            let (error, hint) = hint::split(&text);
            let error = OrderError::refused(error);
            Stop::Order(match hint {
                Some(hint) => error.with_hint(hint),
                None => error,
            })
        })?;
        log::info!("{}: {} reads files from {}", asking.id, asking.host, dataset.at(snapshot));
        conn.send(&FilesLine::Response(Response::success(asking.id, ResponseStatus::Done, ""))).await?;
        let below = dataset.below(&asking.root).unwrap_or_default().to_owned();
        let (parts, arriving) = channel::bounded(PARTS);
        let reading = runtime::blocking(move || pack(&folder, &below, &patterns, parts));
        let (pace, zstd) = (self.throttle.towards(&asking.host), self.local.compression.to(&asking.host));
        let options = StreamOptions { pace: Some(&pace), zstd: zstd.map(Zstd::level) };
        let sending = async {
            let mut source = Parts { arriving: Box::pin(arriving), part: Vec::new(), at: 0 };
            conn.send_stream(&mut source, options, counter).await
        };
        let (read, sent) = future::zip(reading, sending).await;
        let error = match (sent?, read) {
            (Sent::All, Ok(())) => String::new(),
            (Sent::Stalled, _) => "the files of the snapshot could not be read any further".to_owned(),
            (Sent::Refused, _) => "the receiver refused the rest".to_owned(),
            (Sent::All, Err(error)) => error.to_string(),
        };
        conn.end_stream(&StreamEnd { is_success: error.is_empty(), error }).await?;
        // A connection that is closed with unread data is reset, and the other side might lose what it has not read yet.
        while let Some(line) = conn.recv_line(conn.patience).await? {
            if conn.parse::<Alive>(&line).is_err() {
                break;
            }
        }
        Ok(())
    }
}

fn parse(pattern: &str) -> Result<PathPattern, Stop> {
    pattern.parse().map_err(|error| Stop::Order(OrderError::refused(format!("{error}"))))
}

/// Reads files, and gives the stream of them away in parts.
fn pack(folder: &OwnedFd, below: &str, patterns: &[PathPattern], parts: channel::Sender<Vec<u8>>) -> io::Result<()> {
    let mut packer = Packer::new(PartWriter { parts, part: Vec::new() });
    select::read(folder, below, patterns, &mut packer)?;
    packer.finish().map(drop)
}

/// Collects what is written into parts.
struct PartWriter {
    parts: channel::Sender<Vec<u8>>,
    part: Vec<u8>,
}

impl Write for PartWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.part.extend_from_slice(bytes);
        if self.part.len() >= PART {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let part = std::mem::take(&mut self.part);
        // Fails once nobody sends the parts any more.
        self.parts.send_blocking(part).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// The parts as one stream of bytes.
struct Parts {
    arriving: Pin<Box<channel::Receiver<Vec<u8>>>>,
    part: Vec<u8>,
    /// How much of the part was read.
    at: usize,
}

impl AsyncRead for Parts {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        while this.at >= this.part.len() {
            match this.arriving.as_mut().poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(Ok(0)),
                Poll::Ready(Some(part)) => (this.part, this.at) = (part, 0),
            }
        }
        let length = buffer.len().min(this.part.len() - this.at);
        buffer[..length].copy_from_slice(&this.part[this.at..this.at + length]);
        this.at += length;
        Poll::Ready(Ok(length))
    }
}
