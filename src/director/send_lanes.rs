//! Decides which transfer of a dataset comes next. A dataset is sent to one destination at a time, and each transfer that
//! is to follow waits here. Once the dataset is free, the one with the least slack goes, whichever pass, entry or policy
//! it comes from.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Place, Turn};
use crate::sys::runtime::channel;

/// The number of a pass.
pub(super) type PassNumber = u64;

/// The turn of a transfer, then the order of arrival. The lowest value goes first.
pub(super) type Ticket = (Turn, u64);

/// The transfers of the fleet, by source dataset, and the destroys that stand in their way.
#[derive(Default)]
pub(super) struct SendLanes {
    lanes: BTreeMap<Place, SendLane>,
    /// The sources of which a transfer runs or waits, by destination.
    into: BTreeMap<Place, BTreeSet<Place>>,
    destroys: BTreeSet<Place>,
    /// How many transfers have come so far.
    came: u64,
}

/// The transfers of one dataset.
#[derive(Default)]
struct SendLane {
    running: Option<Sending>,
    waiting: BTreeMap<Ticket, Waiting>,
}

/// A transfer that is running.
struct Sending {
    to: Place,
    by: PassNumber,
    /// Closed when the transfer has ended.
    ended: (channel::Sender<()>, channel::Receiver<()>),
}

/// A transfer that waits until its dataset is not being sent, or for a slot.
struct Waiting {
    to: Place,
    by: PassNumber,
    /// Whether it waits for a slot. Others need not wait for it then: it may be its destination that has no slot.
    is_queued: bool,
    /// Gets a message when something has changed.
    changed: channel::Sender<()>,
}

impl SendLanes {
    /// Adds a transfer that waits. `None` if another pass has it running or waiting already.
    pub fn join(
        &mut self,
        from: &Place,
        to: &Place,
        turn: Turn,
        by: PassNumber,
    ) -> Option<(Ticket, channel::Receiver<()>)> {
        let lane = self.lanes.entry(from.clone()).or_default();
        if lane.destinations().any(|(other, pass)| other == to && pass != by) {
            return None;
        }
        let (sender, changed) = channel::bounded(1);
        let ticket = (turn, self.came);
        self.came += 1;
        lane.waiting.insert(ticket, Waiting { to: to.clone(), by, is_queued: false, changed: sender });
        self.into.entry(to.clone()).or_default().insert(from.clone());
        Some((ticket, changed))
    }

    /// Removes a transfer that waits.
    pub fn leave(&mut self, from: &Place, ticket: Ticket) {
        let Some(lane) = self.lanes.get_mut(from) else { return };
        let left = lane.waiting.remove(&ticket);
        lane.notify();
        if let Some(left) = left {
            self.forget(from, &left.to);
        }
    }

    /// Notes whether a transfer waits for a slot.
    pub fn set_queued(&mut self, from: &Place, ticket: Ticket, is_queued: bool) {
        let Some(lane) = self.lanes.get_mut(from) else { return };
        let Some(waiting) = lane.waiting.get_mut(&ticket) else { return };
        waiting.is_queued = is_queued;
        lane.notify();
    }

    /// Whether a transfer may begin as soon as there is a slot for it: nothing sends the dataset or destroys anything on
    /// either side, and those with less slack cannot begin or have no slot yet.
    pub fn may_go(&self, from: &Place, ticket: Ticket) -> bool {
        let Some(lane) = self.lanes.get(from).filter(|_| self.is_free(from, ticket)) else { return false };
        lane.waiting.range(..ticket).all(|(_, before)| before.is_queued || self.destroys.contains(&before.to))
    }

    /// Whether nothing sends the dataset or destroys anything on either side.
    fn is_free(&self, from: &Place, ticket: Ticket) -> bool {
        let Some(lane) = self.lanes.get(from).filter(|lane| lane.running.is_none()) else { return false };
        let is_destroyed = |place| self.destroys.contains(place);
        lane.waiting.get(&ticket).is_some_and(|waiting| !is_destroyed(from) && !is_destroyed(&waiting.to))
    }

    /// Begins a transfer that has a slot. Returns whether it may begin.
    pub fn begin(&mut self, from: &Place, ticket: Ticket) -> bool {
        if !self.is_free(from, ticket) {
            return false;
        }
        let Some(lane) = self.lanes.get_mut(from) else { return false };
        let Some(Waiting { to, by, .. }) = lane.waiting.remove(&ticket) else { return false };
        lane.running = Some(Sending { to, by, ended: channel::bounded(1) });
        true
    }

    /// Ends the transfer of a dataset.
    pub fn end(&mut self, from: &Place) {
        let Some(lane) = self.lanes.get_mut(from) else { return };
        let ended = lane.running.take();
        lane.notify();
        if let Some(Sending { to, ended, .. }) = ended {
            ended.0.close();
            self.forget(from, &to);
        }
    }

    /// Forgets a transfer that has left, unless there is another one of the same dataset to the same destination.
    fn forget(&mut self, from: &Place, to: &Place) {
        let lane = self.lanes.get(from);
        if !lane.is_some_and(|lane| lane.destinations().any(|(other, _)| other == to)) {
            let sources = self.into.get_mut(to);
            if sources.is_some_and(|sources| sources.remove(from) && sources.is_empty()) {
                self.into.remove(to);
            }
        }
        if lane.is_some_and(|lane| lane.destinations().next().is_none()) {
            self.lanes.remove(from);
        }
    }

    /// Whether another pass sends a dataset, or is about to.
    pub fn is_sent_by_another(&self, from: &Place, pass: PassNumber) -> bool {
        self.lanes.get(from).is_some_and(|lane| lane.destinations().any(|(_, by)| by != pass))
    }

    /// Closed when the transfer has ended that is sending a dataset or is received into it; `None` if there is none.
    pub fn ending(&self, place: &Place) -> Option<channel::Receiver<()>> {
        self.running(place).map(|sending| sending.ended.1.clone())
    }

    /// The transfer that is sending a dataset or is received into it.
    fn running(&self, place: &Place) -> Option<&Sending> {
        let of = |from: &Place| self.lanes.get(from)?.running.as_ref();
        of(place).or_else(|| self.sources(place).filter_map(of).find(|sending| sending.to == *place))
    }

    /// The sources of which a transfer to this destination runs or waits.
    fn sources(&self, to: &Place) -> impl Iterator<Item = &Place> {
        self.into.get(to).into_iter().flatten()
    }

    /// Claims a dataset for a destroy. Returns whether nothing else destroys in it, sends it, or receives into it: what
    /// is being sent is not pruned.
    pub fn begin_destroy(&mut self, place: &Place) -> bool {
        self.running(place).is_none() && self.destroys.insert(place.clone())
    }

    /// Ends the destroy in a dataset.
    pub fn end_destroy(&mut self, place: &Place) {
        self.destroys.remove(place);
        let lanes = std::iter::once(place).chain(self.sources(place)).filter_map(|from| self.lanes.get(from));
        lanes.for_each(SendLane::notify);
    }
}

impl SendLane {
    /// The destination of each transfer, and the pass that has begun it.
    fn destinations(&self) -> impl Iterator<Item = (&Place, PassNumber)> {
        let running = self.running.iter().map(|sending| (&sending.to, sending.by));
        running.chain(self.waiting.values().map(|waiting| (&waiting.to, waiting.by)))
    }

    /// Lets the transfers that wait look again whether they may begin.
    fn notify(&self) {
        for waiting in self.waiting.values() {
            // If the channel is full, there is a message already.
            let _ = waiting.changed.try_send(());
        }
    }
}
