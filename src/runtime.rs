//! The async runtime, named in one place: spawning, waiting, deadlines.
//!
//! async-std is at the end of its life; moving to its successor means editing this file and `transport::tcp`.

use std::future::Future;
use std::time::{Duration, Instant};

use async_std::task;

/// Channels between tasks.
pub use async_std::channel;
/// A task's handle; awaiting it gives the task's result, dropping it lets the task run on.
pub use async_std::task::JoinHandle;

/// Runs a future to its end on this thread, other tasks on the pool.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    task::block_on(future)
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
/// in the order in which they were started.
pub async fn side_by_side<T, F>(limit: usize, futures: impl IntoIterator<Item = F>) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
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
            // The receiver lives until every started future has reported; a failed send means that this
            // function was dropped, and nobody asks for the result.
            task::spawn(async move { drop(done.send((index, future.await)).await) });
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
}
