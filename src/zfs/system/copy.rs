//! A copy within one host: one process' pipe handed to the other.

use std::process::Stdio;
use std::time::Duration;

use futures_lite::future;
use rustix::pipe::PipeFlags;

use crate::model::Counter;
use crate::sys::runtime;
use crate::zfs::pipe::{pump, widen};
use crate::zfs::system::System;
use crate::zfs::{ErrorKind, ReceiveSpec, SendSpec, ZfsError, argv};

impl System {
    /// Sends and receives on this host.
    pub(super) async fn copy_here(
        &self,
        send: &SendSpec,
        receive: &ReceiveSpec,
        counter: &Counter,
        stall: Duration,
    ) -> Result<(), ZfsError> {
        let (send_argv, receive_argv) = (argv::send(send), argv::receive(receive));
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|e| self.not_run(&send_argv, &e.into()));
        let ((out_read, out_write), (in_read, in_write)) = (pipe()?, pipe()?);
        widen(&out_read);
        widen(&in_write);
        let receiver = self.spawn(&receive_argv, self.command(&receive_argv).stdin(Stdio::from(in_read)))?;
        let sender = self.spawn(&send_argv, self.command(&send_argv).stdout(Stdio::from(out_write)))?;
        let stuck = ZfsError {
            kind: ErrorKind::Pool,
            command: format!("{} | {}", self.shown(&send_argv), self.shown(&receive_argv)),
            status: format!("no byte for {} (stall_timeout)", humantime::format_duration(stall)),
            stderr: "is a pool suspended? see zpool status".into(),
        };
        let counted = counter.clone();
        // Ends when either child ends; both pipes are closed with it, so that the other child ends too.
        let pumped = runtime::blocking(move || pump(&out_read, &in_write, &counted));
        let ends = future::zip(self.child_end(send_argv, sender), self.child_end(receive_argv, receiver));
        let copied = async { Some(future::zip(pumped, ends).await.1) };
        let stalled = async {
            runtime::stalled(stall, || counter.get()).await;
            None
        };
        // Stalled, both are dropped and so killed.
        let Some((sent, received)) = future::or(copied, stalled).await else { return Err(stuck) };
        match (sent, received) {
            (Ok(()), Ok(())) => Ok(()),
            // The receiver breaks off when the sender fails, and the other way round: the one that did not merely
            // see its stream end tells more.
            (Err(sent), Err(received)) if received.kind == ErrorKind::Stream => Err(sent),
            (_, Err(received)) => Err(received),
            (Err(sent), Ok(())) => Err(sent),
        }
    }
}
