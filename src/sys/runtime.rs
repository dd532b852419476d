//! The async runtime, named in one place: spawning, waiting, deadlines.
//!
//! async-std is at the end of its life; moving to its successor means editing this file and `transport::tcp`.

use std::future::Future;
use std::time::{Duration, Instant};

use async_std::task;
use futures_lite::future;

pub use crate::sys::batcher::Batcher;

/// Channels between tasks.
pub use async_std::channel;
/// A task's handle; awaiting it gives the task's result, dropping it lets the task run on.
pub use async_std::task::JoinHandle;

/// Runs a future to its end on this thread, other tasks on the pool.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    // A whole program's future is large, and async-std hands it on from frame to frame: on the heap it stays in place.
    task::block_on(Box::pin(future))
}

/// Starts a task.
pub fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    task::spawn(future)
}

/// Runs blocking code (SQLite, DNS, files) off the executor.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    task::spawn_blocking(work).await
}

/// Waits.
pub async fn sleep(duration: Duration) {
    task::sleep(duration).await;
}

/// The deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

/// Gives up on a future after `limit`; the future is dropped then.
pub async fn timeout<T>(limit: Duration, future: impl Future<Output = T>) -> Result<T, Elapsed> {
    async_std::future::timeout(limit, future).await.map_err(|_| Elapsed)
}

/// Tasks that can be waited for. Those that still run when this is dropped are dropped where they wait.
pub struct Tasks {
    /// Each running task has a clone.
    running: Option<channel::Sender<()>>,
    ended: channel::Receiver<()>,
    leash: Option<channel::Sender<()>>,
    cut: channel::Receiver<()>,
}

impl Default for Tasks {
    fn default() -> Self {
        // Nothing is ever sent: a channel closes when its last sender is gone, and that is the message.
        let ((running, ended), (leash, cut)) = (channel::bounded(1), channel::bounded(1));
        Self { running: Some(running), ended, leash: Some(leash), cut }
    }
}

impl Tasks {
    /// Starts one. Once the end was waited for, no more are started.
    pub fn start(&self, task: impl Future<Output = ()> + Send + 'static) {
        let Some(running) = self.running.clone() else { return };
        let cut = self.cut.clone();
        drop(task::spawn(async move {
            future::or(task, async { cut.recv().await.unwrap_or_default() }).await;
            drop(running);
        }));
    }

    /// How many run.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ended.sender_count() - usize::from(self.running.is_some())
    }

    /// Waits until the last one has ended.
    pub async fn ended(&mut self) {
        self.running = None;
        self.ended.recv().await.unwrap_or_default();
    }

    /// Has those that still run dropped where they wait, and waits until they are.
    pub async fn interrupt(&mut self) {
        self.leash = None;
        self.ended().await;
    }
}

/// Waits until a number has not changed for `limit`.
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

/// Runs the futures side by side on tasks of their own, at most `limit` at once, and gives their results
/// in the order in which they were started. Dropped, it drops them as well.
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
        if let Some(place) = results.get_mut(index) {
            *place = Some(result);
        }
    }
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_their_futures() {
        let futures = (0..20u64).map(|n| async move {
            sleep(Duration::from_millis(20 - n)).await;
            n
        });
        assert_eq!(block_on(side_by_side(7, futures)), (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn tasks_are_waited_for_or_interrupted() {
        let (sender, told) = channel::unbounded();
        let mut tasks = Tasks::default();
        for n in [1, 2] {
            let sender = sender.clone();
            tasks.start(async move { sender.send(n).await.unwrap() });
        }
        block_on(tasks.ended());
        assert_eq!((told.len(), tasks.count()), (2, 0));
        let mut tasks = Tasks::default();
        tasks.start(async move {
            future::pending::<()>().await;
            drop(sender);
        });
        assert_eq!(tasks.count(), 1);
        block_on(tasks.interrupt());
        assert_eq!(tasks.count(), 0);
        assert!(block_on(async { told.recv().await.and(told.recv().await).and(told.recv().await) }).is_err());
    }

    #[test]
    fn what_runs_side_by_side_is_dropped_with_its_caller() {
        let (sender, told) = channel::bounded::<()>(1);
        let caller = side_by_side(
            2,
            [async move {
                future::pending::<()>().await;
                drop(sender);
            }],
        );
        assert_eq!(block_on(timeout(Duration::from_millis(20), caller)), Err(Elapsed));
        assert!(block_on(told.recv()).is_err());
    }
}
