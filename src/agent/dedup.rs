//! Exactly once: an order that comes again is answered as the first time, and does nothing a second time.
//!
//! What ended is remembered in the [`Journal`], what still runs in memory. A crash between an order's work and its
//! answer leaves it unknown: carried out afresh, it finds what it did by name and guid, and does the rest.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use uuid::Uuid;

use crate::agent::journal::{Journal, Remembered};
use crate::model::snapshot::SNAPSHOT_NAMESPACE;
use crate::model::{Action, Counter, OrderId};
use crate::sys::runtime::channel;
use crate::sys::runtime::channel::{Receiver, Sender};
use crate::sys::{clock, runtime};
use crate::wire::{DirectorsOrder, Response};

/// The orders of an agent.
#[derive(Debug, Default)]
pub(crate) struct Dedup {
    journal: Option<Journal>,
    running: Arc<Mutex<HashMap<OrderId, Run>>>,
}

/// An order that is being carried out.
#[derive(Debug)]
struct Run {
    content: Uuid,
    counter: Counter,
    others: Vec<Sender<Response>>,
}

/// What is to be done about an order that came in.
pub(crate) enum Begin {
    /// It is new: to be carried out, and ended with [`Running::ended`].
    New(Running),
    /// It was carried out before, with this answer.
    Again(Box<Response>),
    /// It is being carried out: its answer will come here; meanwhile its bytes are counted.
    Join(Receiver<Response>, Counter),
    /// Another order had the same OrderUUID.
    Other,
}

/// An order that is being carried out; forgotten when it is dropped.
pub(crate) struct Running {
    order: OrderId,
    content: Uuid,
    /// Its bytes.
    pub(crate) counter: Counter,
    journal: Option<Journal>,
    running: Arc<Mutex<HashMap<OrderId, Run>>>,
}

/// An order's content as a number: two orders that say the same have the same.
fn condensed(order: &DirectorsOrder) -> Uuid {
    Uuid::new_v5(&SNAPSHOT_NAMESPACE, &serde_json::to_vec(order).unwrap_or_default())
}

fn lock(running: &Mutex<HashMap<OrderId, Run>>) -> MutexGuard<'_, HashMap<OrderId, Run>> {
    running.lock()
}

impl Dedup {
    pub(crate) fn remembering(journal: Journal) -> Self {
        Self { journal: Some(journal), ..Self::default() }
    }

    /// Looks whether an order is new.
    pub(crate) async fn begin(&self, order: &DirectorsOrder) -> Begin {
        let (id, content) = (order.order_uuid, condensed(order));
        let journal = match order.action {
            // They do nothing, and their answer is of the moment.
            Action::KvResync | Action::EstimateSend | Action::EstimateDestroy => None,
            Action::TakeSnapshot | Action::SendSnapshot | Action::DestroySnapshot => self.journal.clone(),
        };
        if let Some(journal) = journal.clone() {
            match runtime::blocking(move || journal.find(id)).await {
                Ok(Some(known)) if known.content == content => return Begin::Again(Box::new(known.response)),
                Ok(Some(_)) => return Begin::Other,
                Ok(None) => {}
                Err(error) => log::warn!("{id}: it cannot be told whether this order came before: {error}"),
            }
        }
        let counter = Counter::default();
        let mut running = lock(&self.running);
        match running.get_mut(&id) {
            Some(run) if run.content == content => {
                let (sender, receiver) = channel::bounded(1);
                run.others.push(sender);
                Begin::Join(receiver, run.counter.clone())
            }
            Some(_) => Begin::Other,
            None => {
                running.insert(id, Run { content, counter: counter.clone(), others: Vec::new() });
                Begin::New(Running { order: id, content, counter, journal, running: Arc::clone(&self.running) })
            }
        }
    }
}

impl Running {
    /// Remembers the answer, and gives it to everybody else who waits for it. What may pass is not remembered: nothing
    /// was done, and the order may be given again.
    pub(crate) async fn ended(self, response: &Response) {
        if let Some(journal) = self.journal.clone().filter(|_| !response.temporary) {
            let (id, remembered) = (self.order, Remembered { content: self.content, response: response.clone() });
            let added = runtime::blocking(move || journal.add(id, &remembered, clock::now())).await;
            if let Err(error) = added {
                log::warn!("{}: its answer is not remembered: {error}", self.order);
            }
        }
        let run = lock(&self.running).remove(&self.order);
        for other in run.into_iter().flat_map(|run| run.others) {
            drop(other.try_send(response.clone()));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        lock(&self.running).remove(&self.order);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ResponseStatus;

    fn order(id: u128, name: &str) -> DirectorsOrder {
        let id = Uuid::from_u128(id);
        let text = format!(r#"{{"OrderUUID":"{id}","Action":"take_snapshot","SnapshotName":"{name}"}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn an_order_is_carried_out_once_whenever_it_comes_again() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Dedup::remembering(Journal::open(folder.path()).unwrap());
        runtime::block_on(async {
            let once = open();
            let Begin::New(running) = once.begin(&order(1, "a")).await else { panic!() };
            let Begin::Join(answer, _) = once.begin(&order(1, "a")).await else { panic!() };
            assert!(matches!(once.begin(&order(1, "b")).await, Begin::Other));
            let done = Response::success(OrderId(Uuid::from_u128(1)), ResponseStatus::Done, "took 1");
            running.ended(&done).await;
            assert_eq!(answer.recv().await.unwrap(), done);
            // Also after a restart.
            let once = open();
            let Begin::Again(again) = once.begin(&order(1, "a")).await else { panic!() };
            assert_eq!(*again, done);
            assert!(matches!(once.begin(&order(1, "b")).await, Begin::Other));
        });
    }

    #[test]
    fn what_failed_for_now_or_was_broken_off_is_carried_out_afresh() {
        let folder = tempfile::tempdir().unwrap();
        let once = Dedup::remembering(Journal::open(folder.path()).unwrap());
        runtime::block_on(async {
            let Begin::New(running) = once.begin(&order(1, "a")).await else { panic!() };
            let busy = Response::failure(Some(OrderId(Uuid::from_u128(1))), ResponseStatus::Busy, "busy");
            running.ended(&Response { temporary: true, ..busy }).await;
            let Begin::New(running) = once.begin(&order(1, "a")).await else { panic!() };
            let Begin::Join(answer, _) = once.begin(&order(1, "a")).await else { panic!() };
            drop(running);
            assert!(answer.recv().await.is_err());
            assert!(matches!(once.begin(&order(1, "a")).await, Begin::New(_)));
        });
    }
}
