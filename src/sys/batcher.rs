//! Questions that come while another one of their kind is being answered are answered together, by one process.
//!
//! The first question is answered at once, alone. What comes meanwhile waits for its end, so that every answer is of a
//! moment after its question. Under load many share a process, as in a database's group commit. Where it is known that
//! others are about to ask, the first one waits for them a moment: that costs less than another process.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::sys::runtime::channel;
use crate::sys::runtime::channel::Sender;

/// How many questions are answered at once at the most, so that one answer keeps to a reasonable size.
const MOST: usize = 100;
/// How often it is found out whether anybody is still to be waited for.
const AGAIN: Duration = Duration::from_millis(50);

/// Questions and who waits for their answers, by what must not wait for one another: a pool that is suspended answers
/// nothing.
#[derive(Debug)]
pub struct Batcher<Q, A>(Arc<Mutex<BTreeMap<String, Group<Q, A>>>>);

#[derive(Debug)]
struct Group<Q, A> {
    /// While questions are answered: those that came since.
    waiting: Option<Vec<Waiting<Q, A>>>,
}

#[derive(Debug)]
struct Waiting<Q, A> {
    question: Q,
    asker: Sender<A>,
}

impl<Q, A> Clone for Batcher<Q, A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<Q, A> Default for Batcher<Q, A> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<Q: Send + 'static, A: Send + 'static> Batcher<Q, A> {
    fn groups(&self) -> MutexGuard<'_, BTreeMap<String, Group<Q, A>>> {
        self.0.lock()
    }

    /// Asks. `answer` answers questions, each with one answer, in their order; `None` where it did not. Every question is
    /// answered, that of an asker who was dropped as well. `patience` tells how long others are worth waiting for.
    pub async fn ask<F>(
        &self,
        group: &str,
        question: Q,
        patience: impl Fn() -> Duration + Send + 'static,
        answer: impl Fn(Vec<Q>) -> F + Send + 'static,
    ) -> Option<A>
    where
        F: Future<Output = Vec<A>> + Send,
    {
        let (asker, answered) = channel::bounded(1);
        // Whoever finds nobody at work begins to work.
        let is_first = {
            let mut groups = self.groups();
            let group = groups.entry(group.to_owned()).or_insert(Group { waiting: None });
            let is_first = group.waiting.is_none();
            group.waiting.get_or_insert_default().push(Waiting { question, asker });
            is_first
        };
        if is_first {
            let (this, group) = (self.clone(), group.to_owned());
            drop(crate::sys::runtime::spawn(async move {
                loop {
                    let since = Instant::now();
                    while this.is_asked(&group) && since.elapsed() < patience() {
                        crate::sys::runtime::sleep(AGAIN).await;
                    }
                    let batch = this.next(&group);
                    if batch.is_empty() {
                        break;
                    }
                    let (questions, askers): (Vec<Q>, Vec<Sender<A>>) =
                        batch.into_iter().map(|waiting| (waiting.question, waiting.asker)).unzip();
                    let answers = answer(questions).await;
                    for (asker, answer) in askers.into_iter().zip(answers) {
                        drop(asker.try_send(answer));
                    }
                }
            }));
        }
        answered.recv().await.ok()
    }

    /// Whether there is anything to answer, and still room in one answer.
    fn is_asked(&self, group: &str) -> bool {
        let groups = self.groups();
        let waiting = groups.get(group).and_then(|group| group.waiting.as_ref());
        waiting.is_some_and(|waiting| (1..MOST).contains(&waiting.len()))
    }

    /// The next questions of a group; with none left, nobody works for it any more.
    fn next(&self, group: &str) -> Vec<Waiting<Q, A>> {
        let mut groups = self.groups();
        let Some(group) = groups.get_mut(group) else { return Vec::new() };
        let batch: Vec<_> = group.waiting.as_mut().map_or_else(Vec::new, |waiting| {
            let count = waiting.len().min(MOST);
            waiting.drain(..count).collect()
        });
        if batch.is_empty() {
            group.waiting = None;
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::runtime;

    #[test]
    fn what_is_asked_meanwhile_is_answered_together_and_later() {
        let together: Batcher<u32, (u32, usize)> = Batcher::default();
        let (go, gate) = channel::unbounded::<()>();
        let (began, beginnings) = channel::unbounded();
        let answer = move |questions: Vec<u32>| {
            let (gate, began) = (gate.clone(), began.clone());
            async move {
                began.send(questions.len()).await.unwrap();
                gate.recv().await.unwrap();
                let count = questions.len();
                questions.into_iter().map(|q| (q * 10, count)).collect()
            }
        };
        let ask = |group: &'static str, question| {
            let (together, answer) = (together.clone(), answer.clone());
            runtime::spawn(async move { together.ask(group, question, || Duration::ZERO, answer).await })
        };
        runtime::block_on(async {
            let first = ask("tank", 1);
            assert_eq!(beginnings.recv().await, Ok(1));
            let others: Vec<_> = (2..5).map(|n| ask("tank", n)).collect();
            while together.groups()["tank"].waiting.as_ref().unwrap().len() < 3 {
                runtime::sleep(std::time::Duration::from_millis(1)).await;
            }
            // Another pool waits for nobody.
            let elsewhere = ask("usb", 9);
            assert_eq!(beginnings.recv().await, Ok(1));
            for _ in 0..3 {
                go.send(()).await.unwrap();
            }
            assert_eq!(first.await, Some((10, 1)));
            assert_eq!(elsewhere.await, Some((90, 1)));
            for (n, other) in (2..5).zip(others) {
                assert_eq!(other.await, Some((n * 10, 3)));
            }
            while together.groups().values().any(|group| group.waiting.is_some()) {
                runtime::sleep(std::time::Duration::from_millis(1)).await;
            }
        });
    }

    #[test]
    fn who_is_about_to_ask_is_waited_for() {
        let together: Batcher<u32, usize> = Batcher::default();
        let coming = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let ask = |question| {
            let (together, coming) = (together.clone(), Arc::clone(&coming));
            let answer = |questions: Vec<u32>| async move { vec![questions.len(); questions.len()] };
            let patience =
                move || Duration::from_secs(u64::from(coming.load(std::sync::atomic::Ordering::SeqCst)) * 60);
            runtime::spawn(async move { together.ask("tank", question, patience, answer).await })
        };
        runtime::block_on(async {
            let first = ask(1);
            while together.groups().is_empty() {
                runtime::sleep(std::time::Duration::from_millis(1)).await;
            }
            let second = ask(2);
            while together.groups()["tank"].waiting.as_ref().unwrap().len() < 2 {
                runtime::sleep(std::time::Duration::from_millis(1)).await;
            }
            coming.store(false, std::sync::atomic::Ordering::SeqCst);
            assert_eq!((first.await, second.await), (Some(2), Some(2)));
        });
    }

    #[test]
    fn an_asker_that_goes_away_takes_nobody_along() {
        let together: Batcher<u32, u32> = Batcher::default();
        let (go, gate) = channel::bounded::<()>(1);
        let answer = move |questions: Vec<u32>| {
            let gate = gate.clone();
            async move {
                gate.recv().await.unwrap_or_default();
                questions
            }
        };
        runtime::block_on(async {
            let gone = together.ask("tank", 1, || Duration::ZERO, answer.clone());
            let limit = std::time::Duration::from_millis(20);
            assert_eq!(runtime::timeout(limit, gone).await, Err(runtime::Elapsed));
            let stays = together.ask("tank", 2, || Duration::ZERO, answer);
            drop(go);
            assert_eq!(stays.await, Some(2));
        });
    }
}
