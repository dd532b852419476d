//! Batches requests, so that many callers share the cost of one answer, such as a process or a round trip to Consul.
//!
//! A [`Batcher`] has one handler, which answers a list of requests at a time. Requests are grouped by key, and each key
//! that has requests has one worker task, so a key that is stuck (a suspended pool) delays only its own requests. The
//! first request of a key is handled at once. Requests that arrive while a batch runs form the next batch, so every
//! answer describes a moment after its request was made, as in the group commit of a database.
//!
//! If more requests have been announced ([`Announcements`]), a batch may wait for them for a moment, which costs less
//! than another batch.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use thiserror::Error;

use crate::sys::runtime;
use crate::sys::runtime::channel;
use crate::sys::runtime::channel::{Receiver, Sender};

/// How many requests one batch holds at most, so that its command line and its output stay within reasonable sizes.
const MAX_BATCH: usize = 100;
/// How long a batch waits once the last announcement has ended: the announced request follows within milliseconds.
const SETTLE: Duration = Duration::from_millis(50);

type Answers<A> = Pin<Box<dyn Future<Output = Vec<A>> + Send>>;
type Handler<K, Q, A> = Box<dyn Fn(K, Vec<Q>) -> Answers<A> + Send + Sync>;
type Patience<K> = Box<dyn Fn(&K) -> Duration + Send + Sync>;

/// The worker of a batch ended without an answer: its handler panicked, or the program is ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the batch ended without an answer")]
pub(crate) struct Unanswered;

/// Answers requests of type `Q` with answers of type `A`, in batches per key. Clones share the batches.
pub(crate) struct Batcher<K: Ord, Q, A>(Arc<Shared<K, Q, A>>);

struct Shared<K: Ord, Q, A> {
    handler: Handler<K, Q, A>,
    /// How long a batch waits for announced requests.
    patience: Patience<K>,
    announcements: Announcements,
    /// The requests of the next batch of each key. A key is present exactly while it has a worker.
    queues: Mutex<BTreeMap<K, Vec<Pending<Q, A>>>>,
}

struct Pending<Q, A> {
    request: Q,
    answer: Sender<A>,
}

impl<K: Ord, Q, A> Clone for Batcher<K, Q, A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Ord, Q, A> fmt::Debug for Batcher<K, Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batcher").field("keys", &self.0.queues.lock().len()).finish_non_exhaustive()
    }
}

impl<K, Q, A> Batcher<K, Q, A>
where
    K: Ord + Clone + Send + Sync + 'static,
    Q: Send + 'static,
    A: Send + 'static,
{
    /// Creates a batcher that never waits for announced requests. `handler` gets the requests of one key and returns
    /// one answer for each, in their order.
    pub(crate) fn new<F>(handler: impl Fn(K, Vec<Q>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Vec<A>> + Send + 'static,
    {
        Self::patient(&Announcements::default(), |_| Duration::ZERO, handler)
    }

    /// Creates a batcher whose batches wait up to `patience` for more requests, as long as any are announced.
    pub(crate) fn patient<F>(
        announcements: &Announcements,
        patience: impl Fn(&K) -> Duration + Send + Sync + 'static,
        handler: impl Fn(K, Vec<Q>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Vec<A>> + Send + 'static,
    {
        Self(Arc::new(Shared {
            handler: Box::new(move |key, requests| Box::pin(handler(key, requests))),
            patience: Box::new(patience),
            announcements: announcements.clone(),
            queues: Mutex::default(),
        }))
    }

    /// Adds a request to the next batch of its key, and returns the answer. The request is handled even if the caller
    /// is dropped before the answer arrives.
    pub(crate) async fn ask(&self, key: K, request: Q) -> Result<A, Unanswered> {
        let (sender, answer) = channel::bounded(1);
        let pending = Pending { request, answer: sender };
        let (needs_worker, is_full) = {
            let mut queues = self.0.queues.lock();
            match queues.get_mut(&key) {
                Some(queue) => {
                    queue.push(pending);
                    (false, queue.len() >= MAX_BATCH)
                }
                None => {
                    queues.insert(key.clone(), vec![pending]);
                    (true, false)
                }
            }
        };
        if needs_worker {
            drop(runtime::spawn(Worker { shared: Arc::clone(&self.0), key, is_done: false }.run()));
        } else if is_full {
            self.0.announcements.notify();
        }
        answer.recv().await.map_err(|_| Unanswered)
    }
}

/// Handles the batches of one key until no request is left. If it is dropped before, because the handler panicked or
/// the program is ending, the waiting requests of its key are dropped with it, and their callers get [`Unanswered`].
struct Worker<K: Ord, Q, A> {
    shared: Arc<Shared<K, Q, A>>,
    key: K,
    /// Whether the key was removed from the queues: from then on, it belongs to another worker.
    is_done: bool,
}

impl<K: Ord + Clone, Q, A> Worker<K, Q, A> {
    async fn run(mut self) {
        loop {
            self.wait_for_announced().await;
            let batch = self.next_batch();
            if batch.is_empty() {
                return;
            }
            let (requests, callers): (Vec<Q>, Vec<Sender<A>>) =
                batch.into_iter().map(|pending| (pending.request, pending.answer)).unzip();
            let answers = (self.shared.handler)(self.key.clone(), requests).await;
            for (caller, answer) in callers.into_iter().zip(answers) {
                // A caller that was dropped needs no answer.
                drop(caller.try_send(answer));
            }
        }
    }

    /// Waits for announced requests, as long as there is something to answer and room for more.
    async fn wait_for_announced(&self) {
        let patience = (self.shared.patience)(&self.key);
        if patience.is_zero() {
            return;
        }
        let deadline = Instant::now() + patience;
        let left = |until: Instant| until.min(deadline).saturating_duration_since(Instant::now());
        let mut waited = false;
        loop {
            // Taken before the queue is checked, so that no change is missed.
            let (expected, changed) = self.shared.announcements.expected();
            if !self.has_room() {
                break;
            }
            let Some(left) = expected.map(left).filter(|left| !left.is_zero()) else { break };
            waited = true;
            let _ = runtime::timeout(left, changed.recv()).await;
        }
        if waited && self.has_room() {
            runtime::sleep(left(Instant::now() + SETTLE)).await;
        }
    }

    /// Whether there is anything to answer, and still room in the batch.
    fn has_room(&self) -> bool {
        self.shared.queues.lock().get(&self.key).is_some_and(|queue| (1..MAX_BATCH).contains(&queue.len()))
    }

    /// Takes the next batch. An empty one means that this worker is no longer responsible for its key.
    fn next_batch(&mut self) -> Vec<Pending<Q, A>> {
        let mut queues = self.shared.queues.lock();
        let batch: Vec<_> = queues.get_mut(&self.key).map_or_else(Vec::new, |queue| {
            let count = queue.len().min(MAX_BATCH);
            queue.drain(..count).collect()
        });
        if batch.is_empty() {
            queues.remove(&self.key);
            self.is_done = true;
        }
        batch
    }
}

impl<K: Ord, Q, A> Drop for Worker<K, Q, A> {
    fn drop(&mut self) {
        if !self.is_done {
            let abandoned = self.shared.queues.lock().remove(&self.key);
            // Dropped here, after the lock: a request may own anything.
            drop(abandoned);
        }
    }
}

/// Announcements of requests that are about to be made. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Announcements(Arc<Mutex<Announced>>);

#[derive(Debug)]
struct Announced {
    count: u64,
    /// The announcements, each with the moment after which its request is no longer expected.
    until: BTreeMap<u64, Instant>,
    /// Replaced when anything changes: the receivers of a dropped sender wake up.
    changes: (Sender<()>, Receiver<()>),
}

impl Default for Announced {
    fn default() -> Self {
        Self { count: 0, until: BTreeMap::new(), changes: channel::bounded(1) }
    }
}

/// An announced request, until this is dropped. The request itself should follow at once.
#[derive(Debug)]
pub(crate) struct Announcement {
    announcements: Announcements,
    number: u64,
}

impl Announcements {
    /// Announces a request. After `within`, no batch waits for it any more.
    pub(crate) fn announce(&self, within: Duration) -> Announcement {
        let mut announced = self.0.lock();
        announced.count += 1;
        let number = announced.count;
        announced.until.insert(number, Instant::now() + within);
        Announcement { announcements: self.clone(), number }
    }

    /// Until when a request is expected, `None` if none is announced, and a receiver that wakes up when that changes.
    fn expected(&self) -> (Option<Instant>, Receiver<()>) {
        let announced = self.0.lock();
        (announced.until.values().max().copied(), announced.changes.1.clone())
    }

    /// Wakes up the batches that wait.
    fn notify(&self) {
        self.0.lock().changes = channel::bounded(1);
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        self.announcements.0.lock().until.remove(&self.number);
        self.announcements.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each answer is the request times ten, with the size of its batch.
    fn answers(requests: Vec<u32>) -> Vec<(u32, usize)> {
        let count = requests.len();
        requests.into_iter().map(|request| (request * 10, count)).collect()
    }

    fn queued<K: Ord, Q, A>(batcher: &Batcher<K, Q, A>, key: &K) -> usize {
        batcher.0.queues.lock().get(key).map_or(0, Vec::len)
    }

    async fn wait_until(condition: impl Fn() -> bool) {
        while !condition() {
            runtime::sleep(Duration::from_millis(1)).await;
        }
    }

    #[test]
    fn requests_during_a_batch_form_the_next_batch_of_their_key() {
        let (go, gate) = channel::unbounded::<()>();
        let (began, beginnings) = channel::unbounded();
        let batcher = Batcher::new(move |_: &str, requests: Vec<u32>| {
            let (gate, began) = (gate.clone(), began.clone());
            async move {
                began.send(requests.len()).await.unwrap();
                gate.recv().await.unwrap();
                answers(requests)
            }
        });
        let ask = |key: &'static str, request| {
            let batcher = batcher.clone();
            runtime::spawn(async move { batcher.ask(key, request).await })
        };
        runtime::block_on(async {
            let first = ask("tank", 1);
            assert_eq!(beginnings.recv().await, Ok(1));
            let others: Vec<_> = (2..5).map(|n| ask("tank", n)).collect();
            wait_until(|| queued(&batcher, &"tank") == 3).await;
            let other_key = ask("usb", 9);
            assert_eq!(beginnings.recv().await, Ok(1), "another key waits for nobody");
            for _ in 0..3 {
                go.send(()).await.unwrap();
            }
            assert_eq!(first.await, Ok((10, 1)));
            assert_eq!(other_key.await, Ok((90, 1)));
            for (n, other) in (2..5).zip(others) {
                assert_eq!(other.await, Ok((n * 10, 3)));
            }
            wait_until(|| batcher.0.queues.lock().is_empty()).await;
        });
    }

    #[test]
    fn batch_waits_for_announced_requests_until_they_end() {
        let announcements = Announcements::default();
        let batcher = Batcher::patient(
            &announcements,
            |_| Duration::from_secs(60),
            |_: &str, requests: Vec<u32>| async move { answers(requests) },
        );
        let ask = |request| {
            let batcher = batcher.clone();
            runtime::spawn(async move { batcher.ask("tank", request).await })
        };
        runtime::block_on(async {
            assert_eq!(ask(0).await, Ok((0, 1)), "nothing is announced");
            let (soon, never) =
                (announcements.announce(Duration::from_secs(60)), announcements.announce(Duration::ZERO));
            let first = ask(1);
            wait_until(|| queued(&batcher, &"tank") == 1).await;
            let second = ask(2);
            wait_until(|| queued(&batcher, &"tank") == 2).await;
            let began = Instant::now();
            drop(soon);
            assert_eq!((first.await, second.await), (Ok((10, 2)), Ok((20, 2))));
            assert!(began.elapsed() < Duration::from_secs(30));
            drop(never);
        });
    }

    #[test]
    fn full_batch_waits_for_nobody() {
        let announcements = Announcements::default();
        let batcher = Batcher::patient(
            &announcements,
            |_| Duration::from_secs(60),
            |_: &str, requests: Vec<u32>| async move { answers(requests) },
        );
        let _announcement = announcements.announce(Duration::from_secs(60));
        let began = Instant::now();
        runtime::block_on(async {
            let asking = (0..100).map(|n| {
                let batcher = batcher.clone();
                async move { batcher.ask("tank", n).await }
            });
            let asking: Vec<_> = asking.collect();
            let answers = runtime::side_by_side(MAX_BATCH, asking).await;
            assert!(answers.iter().all(|answer| answer.is_ok_and(|(_, count)| count == MAX_BATCH)), "{answers:?}");
        });
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn panic_of_the_handler_fails_its_requests_and_no_later_ones() {
        let (go, gate) = channel::bounded::<()>(1);
        let batcher = Batcher::new(move |_: &str, requests: Vec<u32>| {
            let gate = gate.clone();
            async move {
                gate.recv().await.unwrap();
                assert!(!requests.contains(&0), "request 0 makes this handler panic");
                answers(requests)
            }
        });
        let ask = |request| {
            let batcher = batcher.clone();
            runtime::spawn(async move { batcher.ask("tank", request).await })
        };
        runtime::block_on(async {
            let panics = ask(0);
            wait_until(|| batcher.0.queues.lock().contains_key("tank") && queued(&batcher, &"tank") == 0).await;
            let waits = ask(1);
            wait_until(|| queued(&batcher, &"tank") == 1).await;
            go.send(()).await.unwrap();
            let limit = Duration::from_secs(60);
            assert_eq!(runtime::timeout(limit, panics).await, Ok(Err(Unanswered)));
            assert_eq!(runtime::timeout(limit, waits).await, Ok(Err(Unanswered)));
            let later = ask(2);
            go.send(()).await.unwrap();
            assert_eq!(runtime::timeout(limit, later).await, Ok(Ok((20, 1))));
        });
    }

    #[test]
    fn missing_answer_fails_its_request_alone() {
        let batcher = Batcher::new(|_: &str, _: Vec<u32>| async { Vec::<u32>::new() });
        runtime::block_on(async {
            assert_eq!(batcher.ask("tank", 1).await, Err(Unanswered));
            assert_eq!(batcher.ask("tank", 2).await, Err(Unanswered));
        });
    }

    #[test]
    fn dropped_caller_delays_nobody_and_its_request_is_handled() {
        let (go, gate) = channel::bounded::<()>(1);
        let (handled, all) = channel::unbounded();
        let batcher = Batcher::new(move |_: &str, requests: Vec<u32>| {
            let (gate, handled) = (gate.clone(), handled.clone());
            async move {
                gate.recv().await.unwrap_or_default();
                for request in &requests {
                    handled.send(*request).await.unwrap();
                }
                requests
            }
        });
        runtime::block_on(async {
            let gone = batcher.ask("tank", 1);
            assert_eq!(runtime::timeout(Duration::from_millis(20), gone).await, Err(runtime::Elapsed));
            let stays = batcher.ask("tank", 2);
            drop(go);
            assert_eq!(stays.await, Ok(2));
            assert_eq!((all.recv().await, all.recv().await), (Ok(1), Ok(2)));
        });
    }
}
