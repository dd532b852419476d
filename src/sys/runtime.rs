//! Wraps the async runtime: starting tasks, waiting, deadlines.
//!
//! async-std is no longer developed. It is named only here and in `transport` (`tcp`, `dial`, `within`), so that
//! moving to its successor means editing these four files.

use std::future::Future;
use std::time::{Duration, Instant};

use async_std::task;
use futures_lite::future;

pub use async_std::channel;
// Awaiting a handle returns the result of its task. Dropping it lets the task run on.
pub use async_std::task::JoinHandle;

/// Runs a future to its end on this thread. Other tasks run on the thread pool.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    // The future of a whole program is large, and async-std moves it from frame to frame. On the heap it stays in
    // place.
    task::block_on(Box::pin(future))
}

/// Starts a task on the thread pool. It runs on if its handle is dropped.
pub fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    task::spawn(future)
}

/// Runs blocking code (SQLite, DNS, files) on a thread of its own, so that it delays no other task.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    task::spawn_blocking(work).await
}

/// Waits for `duration`.
pub async fn sleep(duration: Duration) {
    task::sleep(duration).await;
}

/// A deadline passed before the future was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

/// Runs a future for at most `limit`, then drops it.
pub async fn timeout<T>(limit: Duration, future: impl Future<Output = T>) -> Result<T, Elapsed> {
    async_std::future::timeout(limit, future).await.map_err(|_| Elapsed)
}

/// A group of tasks that can be counted, waited for and interrupted. Dropping it drops the tasks that are still
/// running.
pub struct Tasks {
    /// Every running task holds a clone.
    running: Option<channel::Sender<()>>,
    ended: channel::Receiver<()>,
    keep: Option<channel::Sender<()>>,
    interrupted: channel::Receiver<()>,
}

impl Default for Tasks {
    fn default() -> Self {
        // Nothing is ever sent on these channels. The signal is that a channel closes when its last sender is dropped.
        let ((running, ended), (keep, interrupted)) = (channel::bounded(1), channel::bounded(1));
        Self { running: Some(running), ended, keep: Some(keep), interrupted }
    }
}

impl Tasks {
    /// Starts a task. Does nothing once [`Self::ended`] or [`Self::interrupt`] has been called.
    pub fn start(&self, task: impl Future<Output = ()> + Send + 'static) {
        let Some(running) = self.running.clone() else { return };
        let interrupted = self.interrupted.clone();
        drop(task::spawn(async move {
            future::or(task, async { interrupted.recv().await.unwrap_or_default() }).await;
            drop(running);
        }));
    }

    /// How many tasks are running.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ended.sender_count() - usize::from(self.running.is_some())
    }

    /// Waits until the last task has ended.
    pub async fn ended(&mut self) {
        self.running = None;
        self.ended.recv().await.unwrap_or_default();
    }

    /// Drops the tasks that are still running, and waits until they are dropped.
    pub async fn interrupt(&mut self) {
        self.keep = None;
        self.ended().await;
    }
}

/// Waits until a number has not changed for `limit`; used to detect stalled streams.
pub async fn stalled(limit: Duration, number: impl Fn() -> u64) {
    let (mut last, mut since) = (number(), Instant::now());
    while since.elapsed() < limit {
        sleep((limit / 10).max(Duration::from_millis(10))).await;
        let now = number();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
}

/// Runs futures concurrently on tasks of their own, at most `limit` at a time, and returns their results in the order
/// of the futures. Dropping it drops them as well.
pub async fn side_by_side<T, F>(limit: usize, futures: impl IntoIterator<Item = F>) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let tasks = Tasks::default();
    let mut waiting = futures.into_iter().enumerate();
    let (done, finished) = async_std::channel::unbounded();
    let mut running = 0;
    let mut results: Vec<Option<T>> = Vec::new();
    loop {
        while running < limit.max(1) {
            let Some((index, future)) = waiting.next() else { break };
            results.push(None);
            running += 1;
            let done = done.clone();
            // The receiver lives until every started future has reported.
            tasks.start(async move { drop(done.send((index, future.await)).await) });
        }
        if running == 0 {
            break;
        }
        let Ok((index, result)) = finished.recv().await else { break };
        running -= 1;
        if let Some(slot) = results.get_mut(index) {
            *slot = Some(result);
        }
    }
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn side_by_side_keeps_the_order_of_its_futures() {
        let futures = (0..20u64).map(|n| async move {
            sleep(Duration::from_millis(20 - n)).await;
            n
        });
        assert_eq!(block_on(side_by_side(7, futures)), (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn tasks_can_be_waited_for_and_interrupted() {
        let (sender, received) = channel::unbounded();
        let mut tasks = Tasks::default();
        for n in [1, 2] {
            let sender = sender.clone();
            tasks.start(async move { sender.send(n).await.unwrap() });
        }
        block_on(tasks.ended());
        assert_eq!((received.len(), tasks.count()), (2, 0));
        let mut tasks = Tasks::default();
        tasks.start(async move {
            future::pending::<()>().await;
            drop(sender);
        });
        assert_eq!(tasks.count(), 1);
        block_on(tasks.interrupt());
        assert_eq!(tasks.count(), 0);
        assert!(
            block_on(async { received.recv().await.and(received.recv().await).and(received.recv().await) }).is_err()
        );
    }

    #[test]
    fn side_by_side_drops_its_futures_with_its_caller() {
        let (sender, received) = channel::bounded::<()>(1);
        let caller = side_by_side(
            2,
            [async move {
                future::pending::<()>().await;
                drop(sender);
            }],
        );
        assert_eq!(block_on(timeout(Duration::from_millis(20), caller)), Err(Elapsed));
        assert!(block_on(received.recv()).is_err());
    }
}
