//! What the process has to do with the one that started it: signals in; ready, status and watchdog out; sockets
//! handed over. Without a service manager all of it is silent.

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

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To end; with the signal's name.
    End(&'static str),
    /// To read the configuration again.
    Reload,
}

/// Hears the signals that the process gets.
pub struct Signals {
    heard: async_signal::Signals,
    reloads: bool,
    wants_reload: bool,
    end: Option<&'static str>,
}

impl Signals {
    fn hear(reloads: bool) -> anyhow::Result<Self> {
        let heard = async_signal::Signals::new([Signal::Term, Signal::Int, Signal::Hup]);
        let heard = heard.context("cannot listen for signals")?;
        Ok(Self { heard, reloads, wants_reload: false, end: None })
    }

    /// For a service: SIGTERM and SIGINT end it, SIGHUP has it read its configuration again.
    pub fn of_service() -> anyhow::Result<Self> {
        Self::hear(true)
    }

    /// For a command: SIGTERM, SIGINT and SIGHUP (a terminal that was closed) end it.
    pub fn of_command() -> anyhow::Result<Self> {
        Self::hear(false)
    }

    /// The next one.
    pub async fn next(&mut self) -> Asked {
        let asked = match self.heard.next().await {
            Some(Ok(Signal::Hup)) if self.reloads => Asked::Reload,
            Some(Ok(Signal::Hup)) => Asked::End("SIGHUP"),
            Some(Ok(Signal::Int)) => Asked::End("SIGINT"),
            Some(Ok(_)) => Asked::End("SIGTERM"),
            // The source of signals does not end by itself.
            Some(Err(_)) | None => future::pending().await,
        };
        match asked {
            Asked::Reload => self.wants_reload = true,
            Asked::End(name) => self.end = Some(name),
        }
        asked
    }

    /// The signal that asked to end, if one did.
    #[must_use]
    pub fn end(&self) -> Option<&'static str> {
        self.end
    }

    /// Whether a reload was asked for since this was asked last.
    pub fn take_reload(&mut self) -> bool {
        std::mem::take(&mut self.wants_reload)
    }

    async fn asked_to_end(&mut self) {
        while self.next().await == Asked::Reload {}
    }

    /// Waits for work. Asked to end, it calls `wind_down` once, and gives the work `grace` from then on, or until it is
    /// asked again; `None`, and the work is dropped, where it takes longer.
    pub async fn until_done<T>(
        &mut self,
        work: impl Future<Output = T>,
        grace: Duration,
        wind_down: impl FnOnce(),
    ) -> Option<T> {
        let mut work = pin!(work);
        let done = future::or(async { Some(work.as_mut().await) }, async {
            self.asked_to_end().await;
            None
        });
        if let Some(done) = done.await {
            return Some(done);
        }
        wind_down();
        self.grace(grace, work).await
    }

    /// Gives work so long, or until the process is asked to end again; `None`, and the work is dropped, where it takes
    /// longer.
    pub async fn grace<T>(&mut self, grace: Duration, work: impl Future<Output = T>) -> Option<T> {
        let in_time = async { runtime::timeout(grace, work).await.ok() };
        let again = async {
            self.asked_to_end().await;
            None
        };
        future::or(in_time, again).await
    }

    /// Waits so long, or until there is something to do: a reload, or the end.
    pub async fn idle(&mut self, most: Duration) {
        if !self.wants_reload && self.end.is_none() {
            let _ = runtime::timeout(most, self.next()).await;
        }
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::debug!("the service manager cannot be told: {error}");
    }
}

/// A line of the protocol ends where the text does.
fn one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

/// Tells that the service works, and what it does.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
}

/// Tells what the service does.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(&one_line(status))]);
}

/// Tells that the configuration is read again; [`ready`] tells the end of it.
pub fn reloading() {
    let now = NotifyState::monotonic_usec_now();
    tell(&[NotifyState::Reloading].into_iter().chain(now).collect::<Vec<_>>());
}

/// Tells that the service ends.
pub fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(&one_line(status))]);
}

/// Tells that the process is alive, as often as the service manager wants it; for ever.
pub async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    loop {
        tell(&[NotifyState::Watchdog]);
        // Twice within the limit, as sd_watchdog_enabled(3) recommends.
        runtime::sleep(limit / 2).await;
    }
}

/// The socket that a service manager listens on for this process (`LISTEN_FDS`). To be asked once, before there are
/// other threads: what tells of it is taken from the environment.
pub fn inherited() -> anyhow::Result<Option<TcpListener>> {
    let mut handed = ListenFd::from_env();
    if handed.len() > 1 {
        bail!("{} sockets were handed over (LISTEN_FDS); one is wanted: write one ListenStream= only", handed.len());
    }
    handed.take_tcp_listener(0).context("what was handed over (LISTEN_FDS) is no socket to listen on by TCP")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_ends_in_time_is_not_dropped() {
        let mut signals = Signals::of_command().unwrap();
        let done = runtime::block_on(signals.until_done(async { 7 }, Duration::from_secs(1), || panic!("not asked")));
        assert_eq!((done, signals.end()), (Some(7), None));
    }
}
