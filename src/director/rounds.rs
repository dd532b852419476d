//! Makes passes one after another, none of which waits for the transfers of those before it. Between them, what has a
//! slot is taken and sent at its slot.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_lite::future;

use crate::actions::Order;
use crate::catalog::{CatalogError, CatalogWrite};
use crate::director::lanes::Lanes;
use crate::director::pass::{Begun, Pass};
use crate::director::report::Report;
use crate::director::slot_clock::SlotClock;
use crate::sys::clock;
use crate::sys::runtime::{self, Tasks, channel};
use crate::zfs::Zfs;

/// The passes of a director. Dropping this drops all orders that are running.
pub struct Rounds<Z, C: ?Sized> {
    lanes: Lanes,
    tasks: Tasks,
    /// The last pass.
    last: Option<Pass<Z, C>>,
    slots: Option<SlotClock>,
    /// For each pass that may still have running orders: closed when they have ended.
    open: Vec<channel::Receiver<()>>,
    /// Tells when slots have come.
    clock: fn() -> DateTime<Utc>,
}

impl<Z, C: ?Sized> Default for Rounds<Z, C> {
    fn default() -> Self {
        Self::by_clock(clock::now)
    }
}

impl<Z, C: ?Sized> Rounds<Z, C> {
    /// Rounds whose slots come by this clock instead of that of the machine.
    #[must_use]
    pub fn by_clock(clock: fn() -> DateTime<Utc>) -> Self {
        Self { lanes: Lanes::default(), tasks: Tasks::default(), last: None, slots: None, open: Vec::new(), clock }
    }
}

impl<Z: Zfs, C: CatalogWrite + ?Sized + 'static> Rounds<Z, C> {
    /// What is at work.
    #[must_use]
    pub fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// Makes a pass. It ends when everything that it began has ended, or, once every host was polled, after `limit`:
    /// then its running transfers continue beside the next pass.
    pub async fn pass(
        &mut self,
        pass: Pass<Z, C>,
        saved: Option<Vec<Order>>,
        limit: Option<Duration>,
    ) -> Result<Begun<Z, C>, CatalogError> {
        let pass = pass.beside(self.lanes.clone()).within(limit);
        self.lanes.rests().set_interval(limit.unwrap_or_default());
        // A saved plan contains all that is to be done.
        self.slots = saved.is_none().then(|| SlotClock::new(pass.policy(), (self.clock)()));
        self.last = Some(pass.clone());
        let begun = pass.begin(&self.tasks, saved).await?;
        let handing_over = async {
            match limit {
                Some(limit) => drop(future::zip(runtime::sleep(limit), begun.polled()).await),
                None => future::pending().await,
            }
        };
        future::or(future::or(begun.ended(), handing_over), self.at_slots()).await;
        self.open.retain(|open| !open.is_closed());
        self.open.push(begun.hand_over());
        Ok(begun)
    }

    /// Makes a pass for which nobody waits, and further ones at intervals as long as anything runs or is left that was due
    /// at its beginning, or that follows from it. These, each from `next`, carry out what becomes due meanwhile. After
    /// that, nothing more begins; what is still running then has the time of one interval to end, and is left to the next
    /// director.
    pub async fn single(
        &mut self,
        interval: Duration,
        mut saved: Option<Vec<Order>>,
        mut next: impl AsyncFnMut(&Lanes) -> Result<Pass<Z, C>, CatalogError>,
    ) -> Result<Report, CatalogError> {
        let limit = saved.is_none().then_some(interval);
        self.lanes.initial().begin((self.clock)());
        let mut corrected = Vec::new();
        loop {
            let began = Instant::now();
            let (was_running, given) = (self.lanes.initial().is_running(), self.lanes.initial().count());
            let is_first = self.last.is_none();
            let begun = match next(&self.lanes).await {
                Ok(pass) => self.pass(pass, saved.take(), limit).await,
                Err(error) => Err(error),
            };
            let begun = match begun {
                Ok(begun) => begun,
                Err(error) if is_first || matches!(error, CatalogError::LockLost(_)) => return Err(error),
                // Consul may answer again, and transfers that have run for days need not end because of that.
                Err(error) => {
                    log::warn!("the next pass is made later: {:#}", anyhow::Error::from(error));
                    let pause = runtime::sleep(interval.max(Duration::from_secs(1)));
                    if self.lanes.progress().is_stopped() {
                        pause.await;
                    } else {
                        future::or(pause, self.at_slots()).await;
                    }
                    continue;
                }
            };
            corrected.extend(begun.take_corrected());
            let is_complete = !was_running || begun.has_ended();
            let is_stuck = || !was_running && self.lanes.initial().count() == given;
            let is_done = is_complete && !self.lanes.initial().is_running() && (is_stuck() || !begun.awaits_more());
            let progress = self.lanes.progress().clone();
            if limit.is_some() && !is_done && !progress.is_stopped() {
                let pause = interval.saturating_sub(began.elapsed());
                let lanes = self.lanes.clone();
                future::or(future::or(lanes.initial().quiet(), runtime::sleep(pause)), self.at_slots()).await;
                if !progress.is_stopped() {
                    match self.lanes.take_error() {
                        Some(error @ CatalogError::LockLost(_)) => return Err(error),
                        Some(error) => log::warn!("{:#}", anyhow::Error::from(error)),
                        None => {}
                    }
                    continue;
                }
            }
            if progress.is_stopped() || limit.is_none() {
                self.quiet().await;
                return begun.report().await.map(|report| Report { corrected, ..report });
            }
            return self.last_orders(begun, interval).await.map(|report| Report { corrected, ..report });
        }
    }

    /// Begins nothing more, waits for running orders as long as this limit, and reports.
    async fn last_orders(&mut self, begun: Begun<Z, C>, limit: Duration) -> Result<Report, CatalogError> {
        self.lanes.progress().stop();
        let has_ended = runtime::timeout(limit, self.quiet()).await.is_ok();
        let mut report = begun.report().await?;
        if !has_ended {
            drop(begun);
            self.tasks = Tasks::default();
            self.open.clear();
            if let Some(last) = self.last.take() {
                report.outcomes.extend(last.left().await);
            }
        }
        Ok(report)
    }

    /// Takes and sends what has a slot, at its slot, until this future is dropped.
    pub async fn at_slots<T>(&mut self) -> T {
        loop {
            let Some(next) = self.slots.as_ref().and_then(SlotClock::next) else { return future::pending().await };
            let now = (self.clock)();
            if let Ok(wait) = (next - now).to_std() {
                runtime::sleep(wait).await;
            }
            let now = (self.clock)();
            // A clock that was put back is waited for.
            if now < next {
                continue;
            }
            let due = self.slots.as_mut().map(|slots| slots.due(now)).unwrap_or_default();
            if let Some(pass) = self.last.as_ref().filter(|_| !due.is_empty()) {
                self.open.retain(|open| !open.is_closed());
                self.open.push(pass.begin_slot(&self.tasks, &due, now));
            }
        }
    }

    /// Begins nothing at slots until the next pass, for which there is no valid configuration now.
    pub fn rest(&mut self) {
        self.slots = None;
    }

    /// Whether no order is running.
    pub fn is_quiet(&mut self) -> bool {
        self.open.retain(|open| !open.is_closed());
        self.open.is_empty()
    }

    /// Waits until no order is running that runs now.
    pub fn quiet(&self) -> impl Future<Output = ()> + Send + 'static {
        let open = self.open.clone();
        async move {
            for open in open {
                // The channel is only ever closed.
                let _ = open.recv().await;
            }
        }
    }

    /// Ends everything. The result has the outcomes since the last report; orders that were running have failed for this
    /// reason. `None` if no pass was made.
    pub async fn interrupt(&mut self, took: Duration, reason: String) -> Option<Result<Report, CatalogError>> {
        self.tasks = Tasks::default();
        self.open.clear();
        Some(self.last.take()?.interrupted(took, Some(reason)).await)
    }

    /// The outcomes since the last report, after everything has ended; `None` if there are none.
    pub async fn last_report(&mut self, took: Duration) -> Option<Result<Report, CatalogError>> {
        let pass = self.last.take().filter(|pass| pass.progress().has_finished())?;
        Some(pass.interrupted(took, None).await)
    }
}
