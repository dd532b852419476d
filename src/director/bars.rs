//! Progress bars for a user at a terminal. Nothing is drawn if standard error is not a terminal.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use futures_lite::future;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::director::progress::{PassProgress, RunningOrder};
use crate::model::{Action, Counter, OrderId};
use crate::sys::runtime;

/// How often bars are redrawn.
const REDRAW_INTERVAL: Duration = Duration::from_millis(200);
/// How long work must last before it gets a bar.
const DRAW_AFTER: Duration = Duration::from_millis(700);
/// Width of a bar's label, in characters.
const LABEL_WIDTH: usize = 34;

/// A transfer whose size is known.
const SIZED: &str =
    "{prefix:34!} {wide_bar} {binary_bytes:>10}/{binary_total_bytes:10} {binary_bytes_per_sec:>12} {eta:>4}";
/// A transfer whose size is unknown.
const UNSIZED: &str = "{prefix:34!} {spinner} {binary_bytes:>10} {binary_bytes_per_sec:>12}";
/// A number of items that are handled one by one.
const COUNT: &str = "{prefix:34!} {wide_bar} {pos}/{len}";

fn is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

fn style(template: &str) -> ProgressStyle {
    // A test checks that every template is valid.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

fn bar(template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
    bar.set_style(style(template));
    bar
}

/// Shortens a long label to its end, which is more specific than its beginning.
fn shorten(name: &str) -> String {
    let length = name.chars().count();
    if length <= LABEL_WIDTH {
        name.to_owned()
    } else {
        format!("...{}", name.chars().skip(length + 3 - LABEL_WIDTH).collect::<String>())
    }
}

/// Does work while a bar shows how much of it `counter` has counted.
pub async fn counted<T>(what: &str, counter: &Counter, work: impl Future<Output = T>) -> T {
    if !is_terminal() {
        return work.await;
    }
    let drawing = async {
        runtime::sleep(DRAW_AFTER).await;
        let area = DrawnArea::default();
        let bar = area.0.add(bar(COUNT));
        bar.set_prefix(shorten(what));
        loop {
            bar.set_length(counter.expected().unwrap_or_default());
            bar.set_position(counter.get());
            runtime::sleep(REDRAW_INTERVAL).await;
        }
    };
    future::or(work, drawing).await
}

/// Does the work of one transfer while a bar shows its progress.
pub async fn transfer<T>(what: &str, counter: &Counter, work: impl Future<Output = T>) -> T {
    if !is_terminal() {
        return work.await;
    }
    let drawing = async {
        runtime::sleep(DRAW_AFTER).await;
        let area = DrawnArea::default();
        let bar = area.0.add(bar(SIZED));
        bar.set_prefix(shorten(what));
        loop {
            let bytes = counter.get();
            // A bar of length 0 would be drawn as full.
            bar.set_length(counter.expected().unwrap_or_default().max(bytes).max(1));
            bar.set_position(bytes);
            runtime::sleep(REDRAW_INTERVAL).await;
        }
    };
    future::or(work, drawing).await
}

/// Does the work of a pass while bars show each running transfer and the total.
pub async fn for_pass<T>(progress: &PassProgress, work: impl Future<Output = T>) -> T {
    if !is_terminal() {
        return work.await;
    }
    let drawing = async {
        runtime::sleep(DRAW_AFTER).await;
        let area = DrawnArea::default();
        let mut bars = Bars { total: area.0.add(bar(SIZED)), each: BTreeMap::new(), area: &area };
        loop {
            bars.draw(&progress.running(), progress.moved());
            runtime::sleep(REDRAW_INTERVAL).await;
        }
    };
    future::or(work, drawing).await
}

/// The part of the terminal in which bars are drawn. It is erased when this is dropped.
struct DrawnArea(MultiProgress);

impl Default for DrawnArea {
    fn default() -> Self {
        Self(MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
    }
}

impl Drop for DrawnArea {
    fn drop(&mut self) {
        drop(self.0.clear());
    }
}

struct Bars<'a> {
    area: &'a DrawnArea,
    /// The bar of all transfers together.
    total: ProgressBar,
    each: BTreeMap<OrderId, ProgressBar>,
}

impl Bars<'_> {
    /// Redraws the bars. `moved` is the number of bytes that finished orders have moved.
    fn draw(&mut self, running: &[RunningOrder], moved: u64) {
        let sends: Vec<&RunningOrder> = running.iter().filter(|r| r.outcome.action == Action::SendSnapshot).collect();
        self.each.retain(|id, bar| {
            let is_running = sends.iter().any(|running| running.outcome.order_id == *id);
            if !is_running {
                self.area.0.remove(bar);
            }
            is_running
        });
        // A transfer that has moved nothing is still waiting for its turn.
        for running in sends.iter().filter(|running| running.counter.get() > 0) {
            let (bytes, total) = (running.counter.get(), running.counter.expected());
            let bar = self.each.entry(running.outcome.order_id).or_insert_with(|| {
                let bar = self.area.0.insert_before(&self.total, bar(UNSIZED));
                bar.set_prefix(shorten(&label(running)));
                bar
            });
            if let Some(total) = total
                && bar.length() != Some(total.max(bytes))
            {
                bar.set_style(style(SIZED));
                bar.set_length(total.max(bytes));
            }
            bar.set_position(bytes);
        }
        let bytes: u64 = sends.iter().map(|r| r.counter.get()).sum();
        let total: u64 = sends.iter().map(|r| r.counter.expected().unwrap_or_default().max(r.counter.get())).sum();
        self.total.set_prefix(format!("total; orders running: {}", running.len()));
        // A bar of length 0 would be drawn as full.
        self.total.set_length((moved + total).max(1));
        self.total.set_position(moved + bytes);
    }
}

fn label(running: &RunningOrder) -> String {
    let outcome = &running.outcome;
    let dataset = outcome.dataset.as_ref().map(ToString::to_string).unwrap_or_default();
    let to = outcome.to.as_ref().map(|to| to.host.to_string()).unwrap_or_default();
    format!("{}:{dataset} to {to}", outcome.host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_valid() {
        for template in [SIZED, UNSIZED, COUNT] {
            ProgressStyle::with_template(template).unwrap();
        }
    }

    #[test]
    fn shorten_keeps_the_end_of_a_long_label() {
        assert_eq!(shorten("alpha:tank to beta"), "alpha:tank to beta");
        let long = shorten(&format!("alpha:tank/{} to beta", "d".repeat(60)));
        assert_eq!(long.chars().count(), LABEL_WIDTH);
        assert!(long.starts_with("...d") && long.ends_with("d to beta"), "{long}");
    }
}
