//! Simulates `zfs receive -s`: reads a stream record by record, and saves what arrived.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_lite::io::AsyncWrite;
use parking_lot::Mutex;

use crate::model::{DatasetInventory, DatasetName, Guid, Marks, Origin, Snapshot, tags};
use crate::zfs::fake::fault::Fault;
use crate::zfs::fake::pools::{Fake, PartialReceive, Pools, SIGKILL, failed, killed};
use crate::zfs::fake::stream::{Header, RECORD, data, trailer};
use crate::zfs::{ReceiveSpec, ReceiveStream, ZfsError};

/// A running receive.
struct ReceiveProcess {
    fake: Fake,
    spec: ReceiveSpec,
    call: String,
    fault: Option<Fault>,
    /// How many bytes the process has read.
    read: u64,
    /// What the process has read but not yet processed.
    input: Vec<u8>,
    /// The snapshot that is being received.
    current: Option<Header>,
    /// How many of the next bytes belong to a snapshot that the destination has already, and are ignored.
    ignored: usize,
    /// Whether the last snapshot of the stream has arrived.
    is_complete: bool,
    /// How the process ended.
    ended: Option<Result<(), ZfsError>>,
    /// The task that waits for the end of the process.
    waker: Option<Waker>,
}

/// How many of the bytes offered to it a process has read.
enum Read {
    Some(usize),
    /// The process no longer reads, and does not end.
    Stalled,
    /// The process has ended.
    Ended,
}

impl ReceiveProcess {
    fn read(&mut self, bytes: &[u8]) -> Read {
        if self.ended.is_some() {
            return Read::Ended;
        }
        let limit = self.fault.and_then(Fault::limit).map_or(u64::MAX, |at| at.saturating_sub(self.read));
        let taken = usize::try_from(limit).unwrap_or(usize::MAX).min(bytes.len());
        self.input.extend_from_slice(&bytes[..taken]);
        self.read += taken as u64;
        if let Err(error) = self.work() {
            self.end(Err(error));
        } else {
            match self.fault {
                Some(Fault::Killed(at)) if self.read >= at => self.end(Err(killed(&self.call, SIGKILL))),
                Some(Fault::Stalled(_)) if taken == 0 => return Read::Stalled,
                _ => {}
            }
        }
        if taken == 0 && self.ended.is_some() { Read::Ended } else { Read::Some(taken) }
    }

    /// Processes everything that has arrived completely.
    fn work(&mut self) -> Result<(), ZfsError> {
        loop {
            let ignored = self.ignored.min(self.input.len());
            self.input.drain(..ignored);
            self.ignored -= ignored;
            let Some(header) = &self.current else {
                match Header::read(&self.input).map_err(|why| failed(&self.call, format!("cannot receive: {why}")))? {
                    None => return Ok(()),
                    Some((header, length)) if self.fake.pools().has_received(&self.spec, &header) => {
                        self.input.drain(..length);
                        let data = usize::try_from(header.length).unwrap_or_default();
                        self.ignored = data + trailer(header.snapshot.guid).len();
                        self.is_complete = header.is_last;
                    }
                    Some((header, length)) => {
                        self.fake.pools().begin(&self.spec, &header, &self.call)?;
                        self.input.drain(..length);
                        self.current = Some(header);
                    }
                }
                continue;
            };
            let mut pools = self.fake.pools();
            let Some(partial) = pools.partials.get_mut(&self.spec.dataset) else { return Ok(()) };
            let (guid, at) = (partial.snapshot.guid, partial.arrived);
            let record = usize::try_from(RECORD.min(partial.length - at)).unwrap_or_default();
            if record == 0 {
                let trailer = trailer(guid);
                if self.input.len() < trailer.len() {
                    return Ok(());
                }
                if !self.input.starts_with(trailer.as_bytes()) {
                    return Err(incomplete(&self.spec, header, &pools, &self.call));
                }
                self.input.drain(..trailer.len());
                self.is_complete = header.is_last;
                pools.complete(&self.spec.dataset, header).map_err(|why| {
                    failed(&self.call, format!("cannot receive {}: {why}", kind_of_stream(&self.spec, header)))
                })?;
                drop(pools);
                self.current = None;
                continue;
            }
            let Some(bytes) = self.input.get(..record) else { return Ok(()) };
            if !bytes.iter().zip(at..).all(|(byte, at)| *byte == data(guid, at)) {
                return Err(incomplete(&self.spec, header, &pools, &self.call));
            }
            partial.arrived += record as u64;
            self.input.drain(..record);
        }
    }

    /// The input has ended.
    fn close(&mut self) {
        if self.ended.is_some() || matches!(self.fault, Some(Fault::Stalled(at)) if self.read >= at) {
            return;
        }
        let result = match &self.current {
            Some(header) => Err(incomplete(&self.spec, header, &self.fake.pools(), &self.call)),
            None if self.is_complete && self.ignored == 0 && self.input.is_empty() => Ok(()),
            None => Err(failed(&self.call, "cannot receive: failed to read from stream")),
        };
        self.end(result);
    }

    fn end(&mut self, result: Result<(), ZfsError>) {
        self.stop();
        self.ended = Some(result);
        self.waker.take().into_iter().for_each(Waker::wake);
    }

    /// Keeps what arrived, so that the receive can be resumed, if it is one that can.
    fn stop(&self) {
        if self.current.is_none() {
            return;
        }
        let mut pools = self.fake.pools();
        if self.spec.is_unresumable {
            if pools.partials.remove(&self.spec.dataset).is_some_and(|partial| partial.creates) {
                pools.datasets.remove(&self.spec.dataset);
            }
        } else if let Some(partial) = pools.partials.get_mut(&self.spec.dataset) {
            partial.is_running = false;
        }
    }
}

impl Drop for ReceiveProcess {
    /// Dropping a stream ends its process.
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.stop();
        }
    }
}

/// What libzfs calls the kind of stream that is received.
fn kind_of_stream(spec: &ReceiveSpec, header: &Header) -> &'static str {
    match (header.resume, header.from) {
        (Some(_), _) => "resume stream",
        (None, Some(_)) if spec.origin.is_none() => "incremental stream",
        _ => "new filesystem stream",
    }
}

/// A stream that ended early or is damaged.
fn incomplete(spec: &ReceiveSpec, header: &Header, pools: &Pools, call: &str) -> ZfsError {
    if spec.is_unresumable {
        return failed(call, format!("cannot receive {}: incomplete stream", kind_of_stream(spec, header)));
    }
    let token = pools.partials.get(&spec.dataset).map(PartialReceive::token).unwrap_or_default();
    let words = format!(
        "cannot receive {}: checksum mismatch or incomplete stream.\nPartially received snapshot is saved.\n\
         A resuming stream can be generated on the sending system by running:\n    zfs send -t {token}",
        kind_of_stream(spec, header)
    );
    failed(call, words)
}

impl Pools {
    /// Begins to receive a snapshot, if it fits the destination.
    fn begin(&mut self, spec: &ReceiveSpec, header: &Header, call: &str) -> Result<(), ZfsError> {
        let refused = |why: &str| Err(failed(call, format!("cannot receive {}: {why}", kind_of_stream(spec, header))));
        let dataset = &spec.dataset;
        if self.rivals.remove(dataset) {
            self.create_placeholder(dataset);
        }
        if !spec.is_unresumable && self.without_extensible.contains(dataset.pool()) {
            return refused("pool must be upgraded to receive this stream.");
        }
        let partial = self.partials.get(dataset);
        let is_new = header.from.is_none() || spec.origin.is_some();
        let occupied = format!("destination {dataset} contains partially-complete state from \"zfs receive -s\".");
        let Some(existing) = self.datasets.get(dataset) else {
            if !is_new || header.resume.is_some() {
                return refused(&format!("destination '{dataset}' does not exist"));
            }
            return self.begin_new(spec, header, call);
        };
        if let Some(from) = header.resume {
            // ZFS has no message of its own for a stream that does not continue the partial state.
            let unfit = "kernel modules must be upgraded to receive this stream.";
            let Some(partial) = partial else { return refused(unfit) };
            if header.from.is_none() && !partial.creates && !spec.overwrite {
                return refused(&format!(
                    "Resuming recv on existing destination '{dataset}'\nmust specify -F to overwrite it"
                ));
            }
            let fits = partial.snapshot.guid == header.snapshot.guid && partial.from == header.from;
            if !fits || partial.raw != header.raw || partial.arrived != from || partial.length != header.length {
                return refused(unfit);
            }
            if partial.is_running {
                return refused(&occupied);
            }
            self.partials.entry(dataset.clone()).and_modify(|partial| partial.is_running = true);
            return Ok(());
        }
        if is_new {
            if !spec.overwrite {
                return refused(&format!("destination '{dataset}' exists\nmust specify -F to overwrite it"));
            }
            if let Some(snapshot) = existing.snapshots.first() {
                let eg = dataset.at(&snapshot.name);
                return refused(&format!("destination has snapshots (eg. {eg})\nmust destroy them to overwrite it"));
            }
        }
        if partial.is_some() {
            return refused(&occupied);
        }
        if let Some(base) = header.from {
            if existing.snapshots.iter().any(|s| s.name == header.snapshot.name) {
                let full = dataset.at(&header.snapshot.name);
                return Err(failed(call, format!("cannot restore to {full}: destination already exists")));
            }
            fits(dataset, existing, header, base).or_else(|why| refused(&why))?;
        }
        self.save(spec, header, false);
        Ok(())
    }

    /// Whether the destination of an increment has its snapshot already. Such an increment is read, and changes nothing.
    fn has_received(&self, spec: &ReceiveSpec, header: &Header) -> bool {
        let is_increment = header.from.is_some() && header.resume.is_none() && spec.origin.is_none();
        let snapshot = |s: &Snapshot| s.name == header.snapshot.name && s.guid == header.snapshot.guid;
        let existing = self.datasets.get(&spec.dataset).filter(|_| !self.partials.contains_key(&spec.dataset));
        is_increment && existing.is_some_and(|existing| existing.snapshots.iter().any(snapshot))
    }

    /// Creates the dataset into which a full stream, or the stream of a clone, is received.
    fn begin_new(&mut self, spec: &ReceiveSpec, header: &Header, call: &str) -> Result<(), ZfsError> {
        let dataset = &spec.dataset;
        let parent = dataset.parent();
        if let Some(parent) = parent.as_ref().filter(|parent| !self.datasets.contains_key(parent)) {
            let kind = kind_of_stream(spec, header);
            let words = format!(
                "cannot open '{parent}': dataset does not exist\n\
                 cannot receive {kind}: unable to restore to destination"
            );
            return Err(failed(call, words));
        }
        let origin = spec.origin.as_ref().map(|(of, name)| Origin { dataset: of.clone(), name: name.clone() });
        if let Some(Origin { dataset: of, name }) = &origin {
            let found = self.dataset(call, of)?.snapshots.iter().find(|s| s.name == *name).map(|s| s.guid);
            if found.is_none() || header.from.is_some_and(|from| found != Some(from)) {
                let words = format!(
                    "cannot receive new filesystem stream: most recent snapshot of {dataset} does not\nmatch incremental source"
                );
                return Err(failed(call, words));
            }
            self.clones.insert((of.clone(), name.clone()));
        }
        // The dataset whose key a new dataset inherits.
        let root = parent.and_then(|name| {
            let above = self.datasets.get(&name).filter(|above| above.encrypted)?;
            Some(above.key_from.clone().unwrap_or(name))
        });
        let is_off = spec.properties.get("encryption").is_some_and(|value| value == "off");
        let key_from = root.filter(|_| !header.raw && !is_off);
        let inventory = DatasetInventory {
            guid: Some(self.next_guid()),
            kind: header.kind,
            written: Some(0),
            encrypted: header.raw || key_from.is_some(),
            key_from,
            origin,
            excluded: spec.properties.get(tags::EXCLUDE).is_some_and(|value| value == "on"),
            ..DatasetInventory::default()
        };
        self.datasets.insert(dataset.clone(), inventory);
        self.save(spec, header, true);
        Ok(())
    }

    /// Saves where a receive begins.
    fn save(&mut self, spec: &ReceiveSpec, header: &Header, creates: bool) {
        let partial = PartialReceive {
            toname: header.toname.clone(),
            snapshot: header.snapshot.clone(),
            kind: header.kind,
            from: header.from,
            length: header.length,
            arrived: 0,
            flags: header.flags(),
            raw: header.raw,
            creates,
            is_running: true,
        };
        self.partials.insert(spec.dataset.clone(), partial);
        self.properties.entry(spec.dataset.clone()).or_default().extend(spec.properties.clone());
    }

    /// Makes a snapshot of what has arrived, if nothing was written to the dataset meanwhile.
    fn complete(&mut self, dataset: &DatasetName, header: &Header) -> Result<(), String> {
        let Some(existing) = self.datasets.get(dataset) else { return Ok(()) };
        if let Some(base) = header.from.filter(|_| self.partials.get(dataset).is_some_and(|partial| !partial.creates)) {
            fits(dataset, existing, header, base)?;
        }
        let Some(PartialReceive { mut snapshot, kind, length, .. }) = self.partials.remove(dataset) else {
            return Ok(());
        };
        self.txg += 1;
        (snapshot.createtxg, snapshot.userrefs, snapshot.marks) = (self.txg, 0, Marks::default());
        self.written_before.insert(snapshot.guid, length);
        let inventory = self.datasets.entry(dataset.clone()).or_default();
        inventory.kind = kind;
        inventory.written = Some(0);
        inventory.snapshots.push(snapshot);
        Ok(())
    }
}

/// Whether an increment fits a dataset.
fn fits(dataset: &DatasetName, existing: &DatasetInventory, header: &Header, base: Guid) -> Result<(), String> {
    if header.raw && !existing.encrypted {
        return Err("cannot perform raw receive on top of existing unencrypted dataset".into());
    }
    if header.raw && existing.key_from.is_some() {
        return Err("IV set guid mismatch. See the 'zfs receive' man page section\n discussing the limitations of raw encrypted send streams.".into());
    }
    if existing.snapshots.iter().any(|s| s.name == header.snapshot.name) {
        return Err("destination already exists".into());
    }
    if existing.by_guid(base).is_none() {
        return Err(format!("most recent snapshot of {dataset} does not\nmatch incremental source"));
    }
    if existing.newest().is_none_or(|newest| newest.guid != base) || existing.written.unwrap_or(0) > 0 {
        return Err(format!("destination {dataset} has been modified\nsince most recent snapshot"));
    }
    Ok(())
}

/// The input of a receive.
struct Input(Arc<Mutex<ReceiveProcess>>);

impl AsyncWrite for Input {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.0.lock().read(bytes) {
            Read::Some(read) => Poll::Ready(Ok(read)),
            // The process never continues, so nobody has to be woken.
            Read::Stalled => Poll::Pending,
            Read::Ended => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().close();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.0.lock().close();
    }
}

impl Fake {
    /// Starts a receive. If the receive is refused, its end reports why, as that of a real process does.
    pub(super) fn start_receive(&self, spec: &ReceiveSpec, call: &str) -> ReceiveStream {
        let (fault, ended) = match self.call(call) {
            Ok(mut pools) => (pools.fault(call), None),
            Err(error) => (None, Some(Err(error))),
        };
        let process = ReceiveProcess {
            fake: self.clone(),
            spec: spec.clone(),
            call: call.to_owned(),
            fault,
            read: 0,
            input: Vec::new(),
            current: None,
            ignored: 0,
            is_complete: false,
            ended,
            waker: None,
        };
        let process = Arc::new(Mutex::new(process));
        ReceiveStream { data: Box::new(Input(Arc::clone(&process))), end: Box::pin(end(process)) }
    }
}

/// How a receive ends once its input is closed.
fn end(process: Arc<Mutex<ReceiveProcess>>) -> impl Future<Output = Result<(), ZfsError>> + Send {
    poll_fn(move |context| {
        let mut process = process.lock();
        match process.ended.clone() {
            Some(result) => Poll::Ready(result),
            None => {
                process.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    })
}
