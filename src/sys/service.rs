//! Implements the interface to the service manager: receives signals, takes over a listening socket, and reports
//! readiness, status and liveness (the watchdog). Without a service manager, reports are ignored.

use std::net::TcpListener;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, bail};
use async_signal::Signal;
use futures_lite::future;
use futures_lite::stream::StreamExt;
use listenfd::ListenFd;
use sd_notify::NotifyState;

use crate::sys::runtime;

/// What a signal asks the process to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalRequest {
    /// To end. Holds the name of the signal.
    End(&'static str),
    /// To reload the configuration.
    Reload,
}

/// Receives the signals of the process, and remembers what they asked for.
pub struct Signals {
    received: async_signal::Signals,
    /// Whether SIGHUP asks for a reload.
    can_reload: bool,
    wants_reload: bool,
    end: Option<&'static str>,
}

impl Signals {
    fn new(can_reload: bool) -> anyhow::Result<Self> {
        let received = async_signal::Signals::new([Signal::Term, Signal::Int, Signal::Hup]);
        let received = received.context("cannot receive signals")?;
        Ok(Self { received, can_reload, wants_reload: false, end: None })
    }

    /// The signals of a service: SIGTERM and SIGINT end it, SIGHUP makes it reload its configuration.
    pub fn of_service() -> anyhow::Result<Self> {
        Self::new(true)
    }

    /// The signals of a command: SIGTERM, SIGINT and SIGHUP (its terminal was closed) end it.
    pub fn of_command() -> anyhow::Result<Self> {
        Self::new(false)
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) -> SignalRequest {
        let request = match self.received.next().await {
            Some(Ok(Signal::Hup)) if self.can_reload => SignalRequest::Reload,
            Some(Ok(Signal::Hup)) => SignalRequest::End("SIGHUP"),
            Some(Ok(Signal::Int)) => SignalRequest::End("SIGINT"),
            Some(Ok(_)) => SignalRequest::End("SIGTERM"),
            // The stream of signals does not end by itself.
            Some(Err(_)) | None => future::pending().await,
        };
        match request {
            SignalRequest::Reload => self.wants_reload = true,
            SignalRequest::End(name) => self.end = Some(name),
        }
        request
    }

    /// The name of the signal that asked the process to end, if any did.
    #[must_use]
    pub fn end(&self) -> Option<&'static str> {
        self.end
    }

    /// Whether a reload was requested since the last call.
    pub fn take_reload(&mut self) -> bool {
        std::mem::take(&mut self.wants_reload)
    }

    async fn end_requested(&mut self) {
        while self.next().await == SignalRequest::Reload {}
    }

    /// Runs work to its end. If a signal asks the process to end before that, calls `wind_down`, and gives the work
    /// `grace` to finish, or less if a second signal arrives. Work that is not finished by then is dropped, and the
    /// result is `None`.
    pub async fn until_done<T>(
        &mut self,
        work: impl Future<Output = T>,
        grace: Duration,
        wind_down: impl FnOnce(),
    ) -> Option<T> {
        let mut work = pin!(work);
        let done = future::or(async { Some(work.as_mut().await) }, async {
            self.end_requested().await;
            None
        });
        if let Some(done) = done.await {
            return Some(done);
        }
        wind_down();
        self.grace(grace, work).await
    }

    /// Runs work for at most `grace`, or until the process is asked to end again. After that, the work is dropped, and
    /// the result is `None`.
    pub async fn grace<T>(&mut self, grace: Duration, work: impl Future<Output = T>) -> Option<T> {
        let in_time = async { runtime::timeout(grace, work).await.ok() };
        let again = async {
            self.end_requested().await;
            None
        };
        future::or(in_time, again).await
    }

    /// Waits for `limit`, or until a signal asks for a reload or for the end.
    pub async fn idle(&mut self, limit: Duration) {
        if !self.wants_reload && self.end.is_none() {
            let _ = runtime::timeout(limit, self.next()).await;
        }
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::debug!("cannot notify the service manager: {error}");
    }
}

/// Joins the lines of a text: in the protocol of sd_notify(3), a line break would end the field.
fn one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

/// Reports that the service is ready, and its status.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
}

/// Reports the status of the service.
pub fn status(status: &str) {
    notify(&[NotifyState::Status(&one_line(status))]);
}

/// Reports that the configuration is being reloaded. [`ready`] reports that this is done.
pub fn reloading() {
    let now = NotifyState::monotonic_usec_now();
    notify(&[NotifyState::Reloading].into_iter().chain(now).collect::<Vec<_>>());
}

/// Reports that the service is stopping.
pub fn stopping(status: &str) {
    notify(&[NotifyState::Stopping, NotifyState::Status(&one_line(status))]);
}

/// Runs the main loop of a service. Meanwhile, the same task reports that the process is alive, as often as the service
/// manager asks for it and as long as `is_alive`. The reports therefore end if the loop never returns from a step.
pub async fn watched<T>(main_loop: impl Future<Output = T>, is_alive: impl Fn() -> bool) -> T {
    let Some(limit) = sd_notify::watchdog_enabled() else { return main_loop.await };
    let reporting = async {
        loop {
            if is_alive() {
                notify(&[NotifyState::Watchdog]);
            }
            // Half the limit, as sd_watchdog_enabled(3) recommends.
            runtime::sleep(limit / 2).await;
        }
    };
    future::or(main_loop, reporting).await
}

/// The listening socket that the service manager passes to this process (`LISTEN_FDS`). `None` if there is no such
/// socket; more than one is an error. Call this once, before any other thread runs, because it removes the variables
/// from the environment.
pub fn inherited() -> anyhow::Result<Option<TcpListener>> {
    let mut passed = ListenFd::from_env();
    if passed.len() > 1 {
        bail!(
            "cannot listen on {} sockets of the service manager (LISTEN_FDS): only one is supported; hint: keep one \
             ListenStream=",
            passed.len()
        );
    }
    passed.take_tcp_listener(0).context("cannot listen on the socket of the service manager (LISTEN_FDS)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn until_done_returns_the_result_of_finished_work() {
        let mut signals = Signals::of_command().unwrap();
        let done = runtime::block_on(signals.until_done(async { 7 }, Duration::from_secs(1), || panic!("not asked")));
        assert_eq!((done, signals.end()), (Some(7), None));
    }
}
