//! Simulates `zfs send`: sends snapshots, or what an interrupted receive still needs.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_lite::io::AsyncRead;
use parking_lot::Mutex;

use crate::model::{DatasetInventory, DatasetName, Guid, SendFlags, SnapName, Snapshot};
use crate::zfs::fake::fault::Fault;
use crate::zfs::fake::pools::{Fake, Pools, SIGKILL, SIGPIPE, failed, killed};
use crate::zfs::fake::stream::Header;
use crate::zfs::fake::token::Token;
use crate::zfs::{SendFrom, SendSpec, SendStream, ZfsError, parse};

impl Pools {
    /// Reads a token and finds its snapshot, or returns the error in the words of libzfs.
    pub(super) fn resume(&self, token: &str) -> Result<(Token, DatasetName), String> {
        if !parse::is_token(token) {
            return Err("cannot resume send: resume token is corrupt (invalid format)".into());
        }
        let token = Token::decode(token).map_err(|why| format!("cannot resume send: {why}"))?;
        let toname = &token.toname;
        let Some((dataset, _)) = self.by_guid(toname, token.toguid, false) else {
            let there = |(dataset, name): (&str, &str)| {
                self.datasets
                    .iter()
                    .any(|(d, of)| d.as_str() == dataset && of.snapshots.iter().any(|s| s.name.as_str() == name))
            };
            let why = if toname.split_once('@').is_some_and(there) {
                "is no longer the same snapshot used in the initial send"
            } else {
                "used in the initial send no longer exists"
            };
            return Err(format!("cannot resume send: '{toname}' {why}"));
        };
        match token.fromguid {
            Some(from) if self.by_guid(toname, from, true).is_none() => {
                Err(format!("cannot resume send: incremental source {:#x} no longer exists", from.0))
            }
            _ => Ok((token, dataset)),
        }
    }

    /// The dataset of a send, and the places of the first and the last of its snapshots that the send contains.
    pub(super) fn range(
        &self,
        call: &str,
        dataset: &DatasetName,
        to: &SnapName,
        from: &SendFrom,
    ) -> Result<(&DatasetInventory, usize, usize), ZfsError> {
        let full = dataset.at(to);
        self.snapshot(call, dataset, to)?;
        let inventory = self.dataset(call, dataset)?;
        let place = |name: &SnapName| inventory.snapshots.iter().position(|s| s.name == *name).unwrap_or_default();
        let last = place(to);
        let base = match from {
            SendFrom::Nothing => return Ok((inventory, last, last)),
            SendFrom::Snapshot(name) | SendFrom::Before(name) => self.snapshot(call, dataset, name)?.name.clone(),
            SendFrom::Origin(of, name) => return self.snapshot(call, of, name).map(|_| (inventory, last, last)),
            SendFrom::Bookmark(name) if inventory.bookmarks.iter().any(|b| b.name == *name) => {
                return Ok((inventory, last, last));
            }
            SendFrom::Bookmark(name) => {
                let why = format!("incremental source ({dataset}#{name}) does not exist");
                return Err(failed(call, format!("warning: cannot send '{full}': {why}")));
            }
        };
        let base = place(&base);
        match from {
            SendFrom::Snapshot(_) if base < last => Ok((inventory, base + 1, last)),
            SendFrom::Snapshot(name) => {
                let source = dataset.at(name);
                let words = format!("WARNING: could not send {full}:\nincremental source ({source}) does not exist");
                Err(failed(call, words))
            }
            _ if base < last => Ok((inventory, last, last)),
            _ => Err(failed(call, format!("warning: cannot send '{full}': not an earlier snapshot from the same fs"))),
        }
    }

    /// The headers of the snapshots that a send contains.
    fn headers(&self, spec: &SendSpec, call: &str) -> Result<Vec<Header>, ZfsError> {
        let (dataset, to, from, flags) = match spec {
            SendSpec::Snapshot { dataset, to, from, flags } => (dataset, to, from, *flags),
            SendSpec::Resume { token } => {
                let (token, dataset) = self.resume(token).map_err(|words| failed(call, words))?;
                let inventory = self.dataset(call, &dataset)?;
                let to = inventory.snapshots.iter().find(|s| s.guid == token.toguid);
                let headers = to.map(|to| Header {
                    resume: Some(token.bytes),
                    is_last: true,
                    ..self.header(&dataset, inventory, token.fromguid, to, token.flags())
                });
                return Ok(headers.into_iter().collect());
            }
        };
        let (inventory, first, to) = self.range(call, dataset, to, from)?;
        let base = match from {
            SendFrom::Nothing => None,
            SendFrom::Snapshot(name) | SendFrom::Before(name) => Some(self.snapshot(call, dataset, name)?.guid),
            SendFrom::Bookmark(name) => inventory.bookmarks.iter().find(|b| b.name == *name).map(|b| b.guid),
            SendFrom::Origin(of, name) => Some(self.snapshot(call, of, name)?.guid),
        };
        let mut headers = Vec::new();
        let mut before = base;
        for snapshot in &inventory.snapshots[first..=to] {
            headers.push(self.header(dataset, inventory, before, snapshot, flags));
            before = Some(snapshot.guid);
        }
        if let Some(last) = headers.last_mut() {
            last.is_last = true;
        }
        Ok(headers)
    }

    fn header(
        &self,
        dataset: &DatasetName,
        inventory: &DatasetInventory,
        from: Option<Guid>,
        to: &Snapshot,
        flags: SendFlags,
    ) -> Header {
        Header {
            kind: inventory.kind,
            toname: dataset.at(&to.name),
            snapshot: to.clone(),
            from,
            flags: flags.to_string(),
            raw: flags == SendFlags::Raw && inventory.encrypted,
            length: self.length(inventory, from, to),
            resume: None,
            is_last: false,
        }
    }
}

/// A running send.
struct SendProcess {
    stream: Vec<u8>,
    sent: usize,
    fault: Option<Fault>,
}

impl SendProcess {
    /// The next bytes; `None` if the process stalls.
    fn next(&mut self, most: usize) -> Option<&[u8]> {
        let limit = self.fault.and_then(Fault::limit).and_then(|at| usize::try_from(at).ok());
        let end = limit.map_or(self.stream.len(), |limit| limit.min(self.stream.len()));
        if self.sent >= end && matches!(self.fault, Some(Fault::Stalled(_))) {
            return None;
        }
        let from = self.sent.min(end);
        self.sent = end.min(from + most);
        Some(&self.stream[from..self.sent])
    }
}

/// The output of a send.
struct Output(Arc<Mutex<SendProcess>>);

impl AsyncRead for Output {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        match self.0.lock().next(into.len()) {
            Some(bytes) => {
                into[..bytes.len()].copy_from_slice(bytes);
                Poll::Ready(Ok(bytes.len()))
            }
            // The process never continues, so nobody has to be woken.
            None => Poll::Pending,
        }
    }
}

impl Fake {
    /// Starts a send.
    pub(super) fn start_send(&self, spec: &SendSpec, call: &str) -> Result<SendStream, ZfsError> {
        let mut pools = self.call(call)?;
        let headers = pools.headers(spec, call)?;
        let fault = pools.fault(call);
        drop(pools);
        let mut stream = Vec::new();
        headers.iter().for_each(|header| header.write(&mut stream));
        if let Some(Fault::Damaged(at)) = fault {
            let byte = usize::try_from(at).ok().and_then(|at| stream.get_mut(at));
            byte.into_iter().for_each(|byte| *byte = !*byte);
        }
        let process = Arc::new(Mutex::new(SendProcess { stream, sent: 0, fault }));
        let data = Box::new(Output(Arc::clone(&process)));
        Ok(SendStream { data, end: Box::pin(end(process, call.to_owned())) })
    }
}

/// How a send ends once nobody reads its output any more.
fn end(process: Arc<Mutex<SendProcess>>, call: String) -> impl Future<Output = Result<(), ZfsError>> + Send {
    poll_fn(move |_| {
        let process = process.lock();
        let left = process.stream.len() - process.sent;
        match process.fault {
            Some(Fault::Killed(_)) => Poll::Ready(Err(killed(&call, SIGKILL))),
            Some(Fault::Stalled(_)) => Poll::Pending,
            _ if left > 0 => Poll::Ready(Err(killed(&call, SIGPIPE))),
            _ => Poll::Ready(Ok(())),
        }
    })
}
