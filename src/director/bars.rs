//! Bars of progress, for somebody who sits at a terminal and waits. Where standard error is none, there are none.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use futures_lite::future;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::director::progress::{PassProgress, RunningOrder};
use crate::model::{Action, Counter, OrderId};
use crate::sys::runtime;

/// How often bars move.
const EVERY: Duration = Duration::from_millis(200);
/// What is over sooner than this needs no bar.
const SHOWN_AFTER: Duration = Duration::from_millis(700);
/// How much of a name is shown.
const NAME: usize = 34;

const MOVES: &str =
    "{prefix:34!} {wide_bar} {binary_bytes:>10}/{binary_total_bytes:10} {binary_bytes_per_sec:>12} {eta:>4}";
const MOVES_SOMEWHERE: &str = "{prefix:34!} {spinner} {binary_bytes:>10} {binary_bytes_per_sec:>12}";
const COUNTS: &str = "{prefix:34!} {wide_bar} {pos}/{len}";

fn is_watched() -> bool {
    std::io::stderr().is_terminal()
}

fn style(template: &str) -> ProgressStyle {
    // The templates are ours, and tried by a test.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

fn bar(template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
    bar.set_style(style(template));
    bar
}

/// The end of a name that is too long tells more than its beginning.
fn shortened(name: &str) -> String {
    let length = name.chars().count();
    if length <= NAME {
        name.to_owned()
    } else {
        format!("...{}", name.chars().skip(length + 3 - NAME).collect::<String>())
    }
}

/// Does work, with a bar beside it that tells how much of it is done.
pub async fn counted<T>(what: &str, counter: &Counter, work: impl Future<Output = T>) -> T {
    if !is_watched() {
        return work.await;
    }
    let drawing = async {
        runtime::sleep(SHOWN_AFTER).await;
        let drawn = Drawn::default();
        let bar = drawn.0.add(bar(COUNTS));
        bar.set_prefix(shortened(what));
        loop {
            bar.set_length(counter.expected().unwrap_or_default());
            bar.set_position(counter.get());
            runtime::sleep(EVERY).await;
        }
    };
    future::or(work, drawing).await
}

/// Does the work of a pass, with a bar for each transfer that is under way and one for all.
pub async fn for_pass<T>(progress: &PassProgress, work: impl Future<Output = T>) -> T {
    if !is_watched() {
        return work.await;
    }
    let drawing = async {
        runtime::sleep(SHOWN_AFTER).await;
        let drawn = Drawn::default();
        let mut bars = Bars { all: drawn.0.add(bar(MOVES)), each: BTreeMap::new(), drawn: &drawn };
        loop {
            bars.draw(&progress.running(), progress.moved());
            runtime::sleep(EVERY).await;
        }
    };
    future::or(work, drawing).await
}

/// What is on the terminal; it goes with this.
struct Drawn(MultiProgress);

impl Default for Drawn {
    fn default() -> Self {
        Self(MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
    }
}

impl Drop for Drawn {
    fn drop(&mut self) {
        drop(self.0.clear());
    }
}

struct Bars<'a> {
    drawn: &'a Drawn,
    all: ProgressBar,
    each: BTreeMap<OrderId, ProgressBar>,
}

impl Bars<'_> {
    /// `moved` is what orders moved that have ended.
    fn draw(&mut self, running: &[RunningOrder], moved: u64) {
        let sends: Vec<&RunningOrder> = running.iter().filter(|r| r.outcome.action == Action::SendSnapshot).collect();
        self.each.retain(|id, bar| {
            let goes_on = sends.iter().any(|running| running.outcome.order_id == *id);
            if !goes_on {
                self.drawn.0.remove(bar);
            }
            goes_on
        });
        // Many only wait for their turn.
        for running in sends.iter().filter(|running| running.counter.get() > 0) {
            let (bytes, total) = (running.counter.get(), running.counter.expected());
            let bar = self.each.entry(running.outcome.order_id).or_insert_with(|| {
                let bar = self.drawn.0.insert_before(&self.all, bar(MOVES_SOMEWHERE));
                bar.set_prefix(shortened(&name(running)));
                bar
            });
            if let Some(total) = total
                && bar.length() != Some(total.max(bytes))
            {
                bar.set_style(style(MOVES));
                bar.set_length(total.max(bytes));
            }
            bar.set_position(bytes);
        }
        let bytes: u64 = sends.iter().map(|r| r.counter.get()).sum();
        let total: u64 = sends.iter().map(|r| r.counter.expected().unwrap_or_default().max(r.counter.get())).sum();
        self.all.set_prefix(format!("in all; under way: {}", running.len()));
        // A bar of nothing would be a full one.
        self.all.set_length((moved + total).max(1));
        self.all.set_position(moved + bytes);
    }
}

fn name(running: &RunningOrder) -> String {
    let outcome = &running.outcome;
    let dataset = outcome.dataset.as_ref().map(ToString::to_string).unwrap_or_default();
    let to = outcome.to.as_ref().map(|to| to.host.to_string()).unwrap_or_default();
    format!("{}:{dataset} to {to}", outcome.host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_right() {
        for template in [MOVES, MOVES_SOMEWHERE, COUNTS] {
            ProgressStyle::with_template(template).unwrap();
        }
    }

    #[test]
    fn of_a_long_name_the_end_is_shown() {
        assert_eq!(shortened("alpha:tank to beta"), "alpha:tank to beta");
        let long = shortened(&format!("alpha:tank/{} to beta", "d".repeat(60)));
        assert_eq!(long.chars().count(), NAME);
        assert!(long.starts_with("...d") && long.ends_with("d to beta"), "{long}");
    }
}
