//! What a director in its loop tells of itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::{DIRECTOR, Labels, Passed, Tally, registry, result, text};
use crate::commands::director::Board;

/// Keeps what there is to tell between two passes; clones share it.
#[derive(Clone)]
pub struct Watch(Arc<Mutex<State>>);

struct State {
    tally: Tally,
    passes: Family<Labels, Counter>,
    board: Option<Board>,
    last: Option<Passed>,
}

impl Default for Watch {
    fn default() -> Self {
        let (tally, passes) = (Tally::new(DIRECTOR), Family::default());
        Self(Arc::new(Mutex::new(State { tally, passes, board: None, last: None })))
    }
}

impl Watch {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pass begins; its board tells what is under way.
    pub fn begins(&self, board: Board) {
        self.state().board = Some(board);
    }

    /// It has ended; `None` where it could not even decide.
    pub fn ended(&self, passed: Option<Passed>) {
        let mut state = self.state();
        state.board = None;
        let success = passed.as_ref().is_some_and(|passed| passed.is_success);
        state.passes.get_or_create(&vec![("result", result(success).to_owned())]).inc();
        let Some(passed) = passed else { return };
        for (action, success) in &passed.orders {
            state.tally.ended(action, *success, 0);
        }
        state.tally.moved(passed.bytes);
        state.last = Some(passed);
    }

    /// As text.
    #[must_use]
    pub fn text(&self) -> String {
        let state = self.state();
        state.tally.set_running(state.board.as_ref().map_or(0, |board| board.running().len()));
        let mut registry = registry();
        registry.register("zsync_director_passes", "Passes that this director made", state.passes.clone());
        state.tally.register(&mut registry);
        if let Some(last) = &state.last {
            last.register(&mut registry);
        }
        text(&registry)
    }
}
