//! Lets the entries of a pass that share datasets work one after another.

use crate::actions::Group;
use crate::sys::runtime::channel;

/// The turn of one group of entries.
pub(super) struct GroupTurn {
    /// Closed, by being dropped, once the group has taken its snapshots.
    taking: Option<channel::Sender<()>>,
    /// Closed, by being dropped, once the group has ended.
    _working: Option<channel::Sender<()>>,
    /// What has to be closed before the group sends.
    waits_for: Vec<channel::Receiver<()>>,
}

/// Both signals of a group.
struct Signals {
    taking: (channel::Sender<()>, channel::Receiver<()>),
    working: (channel::Sender<()>, channel::Receiver<()>),
}

impl GroupTurn {
    /// The turns of all groups.
    pub fn all(groups: &[Group]) -> Vec<Self> {
        // Most groups share nothing with others.
        let mut is_shared = vec![false; groups.len()];
        groups
            .iter()
            .flat_map(|group| group.after.iter().chain(&group.decided_by))
            .for_each(|of| is_shared[*of] = true);
        let signals = is_shared
            .iter()
            .map(|is_shared| is_shared.then(|| Signals { taking: channel::bounded(1), working: channel::bounded(1) }));
        let signals: Vec<Option<Signals>> = signals.collect();
        let signal = |of: &usize| signals.get(*of).and_then(Option::as_ref);
        let turns = groups.iter().zip(&signals).map(|(group, own)| {
            let ends = group.after.iter().filter_map(signal).map(|signal| signal.working.1.clone());
            let takes = group.decided_by.iter().filter_map(signal).map(|signal| signal.taking.1.clone());
            let waits_for = ends.chain(takes).collect();
            let (taking, working) = own.as_ref().map(|own| (own.taking.0.clone(), own.working.0.clone())).unzip();
            Self { taking, _working: working, waits_for }
        });
        turns.collect()
    }

    /// Notes that the group has taken its snapshots.
    pub fn has_taken(&mut self) {
        self.taking = None;
    }

    /// Waits until the groups before this one have ended, and the snapshots of its datasets were taken.
    pub async fn comes(&self) {
        for other in &self.waits_for {
            // The channel is only ever closed.
            let _ = other.recv().await;
        }
    }
}
