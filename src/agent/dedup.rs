//! Makes sure that each order is carried out only once: an order that arrives again gets the answer that it got before.
//!
//! Answers are remembered in the [`Journal`], running orders in memory. If the agent crashes after it has carried out
//! an order and before it has saved the answer, the order is carried out again. It then recognises by name and guid
//! what is done already, and does only the rest.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use uuid::Uuid;

use crate::agent::journal::{Answer, Journal};
use crate::agent::request::OrderKey;
use crate::model::{Counter, OrderId};
use crate::sys::runtime::channel;
use crate::sys::runtime::channel::{Receiver, Sender};
use crate::sys::{clock, runtime};
use crate::wire::Response;

/// The orders that an agent has answered or is carrying out.
#[derive(Debug, Default)]
pub(crate) struct Dedup {
    journal: Option<Journal>,
    running: RunningOrders,
}

type RunningOrders = Arc<Mutex<HashMap<OrderId, RunningEntry>>>;

#[derive(Debug)]
struct RunningEntry {
    fingerprint: Uuid,
    counter: Counter,
    /// Connections on which the same order arrived again.
    waiting: Vec<Sender<Response>>,
}

/// What to do with an order that arrived.
pub(crate) enum Admission {
    /// Carry it out, and end it with [`RunningOrder::ended`].
    New(RunningOrder),
    /// It was carried out before, with this answer.
    Answered(Box<Response>),
    /// It is being carried out: the channel will deliver its answer, and the counter has its bytes so far.
    Running(Receiver<Response>, Counter),
    /// A different order has the same OrderUUID.
    Conflict,
}

/// An order that is being carried out. If this is dropped without an answer, the order is forgotten.
pub(crate) struct RunningOrder {
    key: OrderKey,
    /// Counts the bytes of a transfer.
    pub(crate) counter: Counter,
    journal: Option<Journal>,
    running: RunningOrders,
}

impl Dedup {
    pub(crate) fn remembering(journal: Journal) -> Self {
        Self { journal: Some(journal), ..Self::default() }
    }

    /// Finds out whether an order is new.
    pub(crate) async fn begin(&self, key: OrderKey) -> Admission {
        if !key.has_effects {
            // The answer to an order without effects, such as a listing, is soon outdated, and its facts went to the
            // connection on which it arrived. So it is carried out each time.
            let key = OrderKey { id: OrderId(Uuid::now_v7()), ..key };
            let (counter, running) = (Counter::default(), Arc::clone(&self.running));
            return Admission::New(RunningOrder { key, counter, journal: None, running });
        }
        let OrderKey { id, fingerprint, .. } = key;
        let journal = self.journal.clone();
        if let Some(journal) = journal.clone() {
            match runtime::blocking(move || journal.find(id)).await {
                Ok(Some(known)) if known.fingerprint == fingerprint => {
                    return Admission::Answered(Box::new(known.response));
                }
                Ok(Some(_)) => return Admission::Conflict,
                Ok(None) => {}
                Err(error) => log::warn!("{id}: cannot find out whether this order arrived before: {error}"),
            }
        }
        let counter = Counter::default();
        let mut running = self.running.lock();
        match running.get_mut(&id) {
            Some(entry) if entry.fingerprint == fingerprint => {
                let (sender, receiver) = channel::bounded(1);
                entry.waiting.push(sender);
                Admission::Running(receiver, entry.counter.clone())
            }
            Some(_) => Admission::Conflict,
            None => {
                running.insert(id, RunningEntry { fingerprint, counter: counter.clone(), waiting: Vec::new() });
                Admission::New(RunningOrder { key, counter, journal, running: Arc::clone(&self.running) })
            }
        }
    }
}

impl RunningOrder {
    /// Remembers the answer, and passes it to every connection that waits for it. A temporary failure is not
    /// remembered: nothing was done, and the order may be given again.
    pub(crate) async fn ended(self, response: &Response) {
        let OrderKey { id, fingerprint, .. } = self.key;
        if let Some(journal) = self.journal.clone().filter(|_| !response.temporary) {
            let answer = Answer { fingerprint, response: response.clone() };
            if let Err(error) = runtime::blocking(move || journal.add(id, &answer, clock::now())).await {
                log::warn!("{id}: cannot save the answer to this order: {error}");
            }
        }
        let entry = self.running.lock().remove(&id);
        for waiting in entry.into_iter().flat_map(|entry| entry.waiting) {
            drop(waiting.try_send(response.clone()));
        }
    }
}

impl Drop for RunningOrder {
    fn drop(&mut self) {
        self.running.lock().remove(&self.key.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ResponseStatus;
    use crate::wire::DirectorsOrder;

    fn order(id: u128, name: &str) -> OrderKey {
        let id = Uuid::from_u128(id);
        let text = format!(r#"{{"OrderUUID":"{id}","Action":"take_snapshot","SnapshotName":"{name}"}}"#);
        OrderKey::from(&serde_json::from_str::<DirectorsOrder>(&text).unwrap())
    }

    #[test]
    fn repeated_order_gets_first_answer() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Dedup::remembering(Journal::open(folder.path()).unwrap());
        runtime::block_on(async {
            let dedup = open();
            let Admission::New(running) = dedup.begin(order(1, "a")).await else { panic!() };
            let Admission::Running(answer, _) = dedup.begin(order(1, "a")).await else { panic!() };
            assert!(matches!(dedup.begin(order(1, "b")).await, Admission::Conflict));
            let done = Response::success(OrderId(Uuid::from_u128(1)), ResponseStatus::Done, "took 1");
            running.ended(&done).await;
            assert_eq!(answer.recv().await.unwrap(), done);
            // The answer survives a restart.
            let dedup = open();
            let Admission::Answered(again) = dedup.begin(order(1, "a")).await else { panic!() };
            assert_eq!(*again, done);
            assert!(matches!(dedup.begin(order(1, "b")).await, Admission::Conflict));
        });
    }

    #[test]
    fn temporary_failure_and_interrupted_order_are_carried_out_again() {
        let folder = tempfile::tempdir().unwrap();
        let dedup = Dedup::remembering(Journal::open(folder.path()).unwrap());
        runtime::block_on(async {
            let Admission::New(running) = dedup.begin(order(1, "a")).await else { panic!() };
            let busy = Response::failure(Some(OrderId(Uuid::from_u128(1))), ResponseStatus::Busy, "busy");
            running.ended(&Response { temporary: true, ..busy }).await;
            let Admission::New(running) = dedup.begin(order(1, "a")).await else { panic!() };
            let Admission::Running(answer, _) = dedup.begin(order(1, "a")).await else { panic!() };
            drop(running);
            assert!(answer.recv().await.is_err());
            assert!(matches!(dedup.begin(order(1, "a")).await, Admission::New(_)));
        });
    }
}
