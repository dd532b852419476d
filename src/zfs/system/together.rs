//! Questions that come while another one of their kind is being answered are answered together, by one process.
//!
//! Nobody waits for others to ask: the first question is answered at once, alone. What comes meanwhile waits for its
//! end, so that every answer is of a moment after its question. Under load many share a process, as in a database's
//! group commit.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::runtime;
use crate::runtime::channel::{self, Sender};

/// How many questions are answered at once at the most, so that one answer keeps to a reasonable size.
const MOST: usize = 100;

/// Questions and who waits for their answers, by what must not wait for one another: a pool that is suspended answers
/// nothing.
#[derive(Debug)]
pub(super) struct Together<Q, A>(Arc<Mutex<Groups<Q, A>>>);

/// While a group's questions are answered it has an entry, of those that came since.
type Groups<Q, A> = BTreeMap<String, Vec<Waiting<Q, A>>>;

#[derive(Debug)]
struct Waiting<Q, A> {
    question: Q,
    asker: Sender<A>,
}

impl<Q, A> Clone for Together<Q, A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<Q, A> Default for Together<Q, A> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<Q: Send + 'static, A: Send + 'static> Together<Q, A> {
    fn groups(&self) -> MutexGuard<'_, Groups<Q, A>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks. `answer` answers questions, each with one answer, in their order; `None` where it did not. It goes on where
    /// the asker is dropped: others may wait for it.
    pub(super) async fn ask<F>(
        &self,
        group: &str,
        question: Q,
        answer: impl Fn(Vec<Q>) -> F + Send + 'static,
    ) -> Option<A>
    where
        F: Future<Output = Vec<A>> + Send,
    {
        let (asker, answered) = channel::bounded(1);
        let waiting = Waiting { question, asker };
        let is_first = {
            let mut groups = self.groups();
            match groups.get_mut(group) {
                Some(others) => {
                    others.push(waiting);
                    None
                }
                None => {
                    groups.insert(group.to_owned(), Vec::new());
                    Some(waiting)
                }
            }
        };
        if let Some(first) = is_first {
            let (this, group) = (self.clone(), group.to_owned());
            drop(runtime::spawn(async move {
                let mut batch = vec![first];
                while !batch.is_empty() {
                    // Whoever does not wait any more need not be answered.
                    batch.retain(|waiting| !waiting.asker.is_closed());
                    let (questions, askers): (Vec<Q>, Vec<Sender<A>>) =
                        batch.into_iter().map(|waiting| (waiting.question, waiting.asker)).unzip();
                    let answers = if questions.is_empty() { Vec::new() } else { answer(questions).await };
                    for (asker, answer) in askers.into_iter().zip(answers) {
                        drop(asker.try_send(answer));
                    }
                    batch = this.next(&group);
                }
            }));
        }
        answered.recv().await.ok()
    }

    /// The next questions of a group; with none left, its entry goes.
    fn next(&self, group: &str) -> Vec<Waiting<Q, A>> {
        let mut groups = self.groups();
        let batch = groups.get_mut(group).map(|waiting| {
            let count = waiting.len().min(MOST);
            waiting.drain(..count).collect::<Vec<_>>()
        });
        match batch {
            Some(batch) if !batch.is_empty() => batch,
            _ => {
                groups.remove(group);
                Vec::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_meanwhile_is_answered_together_and_later() {
        let together: Together<u32, (u32, usize)> = Together::default();
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
            runtime::spawn(async move { together.ask(group, question, answer).await })
        };
        runtime::block_on(async {
            let first = ask("tank", 1);
            assert_eq!(beginnings.recv().await, Ok(1));
            let others: Vec<_> = (2..5).map(|n| ask("tank", n)).collect();
            while together.groups()["tank"].len() < 3 {
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
            while !together.groups().is_empty() {
                runtime::sleep(std::time::Duration::from_millis(1)).await;
            }
        });
    }

    #[test]
    fn an_asker_that_goes_away_takes_nobody_along() {
        let together: Together<u32, u32> = Together::default();
        let (go, gate) = channel::bounded::<()>(1);
        let answer = move |questions: Vec<u32>| {
            let gate = gate.clone();
            async move {
                gate.recv().await.unwrap_or_default();
                questions
            }
        };
        runtime::block_on(async {
            let gone = together.ask("tank", 1, answer.clone());
            let limit = std::time::Duration::from_millis(20);
            assert_eq!(runtime::timeout(limit, gone).await, Err(runtime::Elapsed));
            let stays = together.ask("tank", 2, answer);
            drop(go);
            assert_eq!(stays.await, Some(2));
        });
    }
}
