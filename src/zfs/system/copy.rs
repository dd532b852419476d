//! Copies a dataset within one host: the output of `zfs send` is moved to the input of `zfs receive`.

use std::process::Stdio;
use std::time::Duration;

use futures_lite::future;
use rustix::pipe::PipeFlags;

use crate::model::Counter;
use crate::sys::runtime;
use crate::zfs::pipe::{pump, widen};
use crate::zfs::system::runner::Runner;
use crate::zfs::{ErrorKind, ReceiveSpec, SendSpec, ZfsError, argv};

impl Runner {
    /// Sends and receives on this host. If no byte moves for `stall`, both commands are killed.
    pub(super) async fn copy(
        &self,
        send: &SendSpec,
        receive: &ReceiveSpec,
        counter: &Counter,
        stall: Duration,
    ) -> Result<(), ZfsError> {
        let (send_argv, receive_argv) = (argv::send(send), argv::receive(receive));
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|e| self.not_started(&send_argv, &e.into()));
        let ((out_read, out_write), (in_read, in_write)) = (pipe()?, pipe()?);
        widen(&out_read);
        widen(&in_write);
        let receiver = self.spawn(&receive_argv, self.command(&receive_argv).stdin(Stdio::from(in_read)))?;
        let sender = self.spawn(&send_argv, self.command(&send_argv).stdout(Stdio::from(out_write)))?;
        let stalled_error = ZfsError {
            kind: ErrorKind::Pool,
            command: format!("{} | {}", self.render(&send_argv), self.render(&receive_argv)),
            status: format!("no byte for {} (stall_timeout)", humantime::format_duration(stall)),
            stderr: "is a pool suspended? see zpool status".into(),
        };
        let counted = counter.clone();
        // Ends when either command ends. Both pipes are closed then, so that the other command ends too.
        let pumped = runtime::blocking(move || pump(&out_read, &in_write, &counted));
        let ends = future::zip(self.stream_end(send_argv, sender), self.stream_end(receive_argv, receiver));
        let copied = async { Some(future::zip(pumped, ends).await.1) };
        let stalled = async {
            runtime::stalled(stall, || counter.get()).await;
            None
        };
        // After a stall, both commands are dropped and so killed.
        let Some((sent, received)) = future::or(copied, stalled).await else { return Err(stalled_error) };
        match (sent, received) {
            (Ok(()), Ok(())) => Ok(()),
            (Err(sent), Err(received)) => Err(ZfsError::of_copy(sent, received)),
            (Ok(()), Err(received)) => Err(received),
            (Err(sent), Ok(())) => Err(sent),
        }
    }
}
