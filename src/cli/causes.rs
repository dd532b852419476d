//! Groups failures of several datasets that have one cause, so that the cause is printed once.

use std::collections::HashMap;

use crate::model::{Action, DatasetName, HostName, Place};

/// How many datasets a group names besides the first.
const MAX_NAMED: usize = 5;

/// An order that failed.
#[derive(Clone, Copy, Debug)]
pub struct FailedOrder<'a> {
    /// What it was to do; `None` if unknown.
    pub action: Option<Action>,
    /// The host that received it.
    pub host: &'a HostName,
    /// The dataset there.
    pub dataset: Option<&'a DatasetName>,
    /// The destination of a transfer.
    pub to: Option<&'a Place>,
    /// The error.
    pub error: &'a str,
    /// What an administrator can do about it.
    pub hint: Option<&'a str>,
}

impl FailedOrder<'_> {
    /// The text without the names of the order's own datasets: what failures with the same cause have in common.
    fn cause(&self, text: &str) -> String {
        let mut own: Vec<&str> =
            self.dataset.into_iter().chain(self.to.map(|to| &to.dataset)).map(DatasetName::as_str).collect();
        // One of the two names may be part of the other.
        own.sort_by_key(|name| std::cmp::Reverse(name.len()));
        own.into_iter().fold(text.to_owned(), |text, name| text.replace(name, "\0"))
    }

    /// The dataset that the cause is about.
    fn place(&self) -> Option<&DatasetName> {
        self.to.map(|to| &to.dataset).or(self.dataset)
    }

    /// How far up its dataset is. A hint for the uppermost dataset also helps those below it.
    fn depth(&self) -> (usize, Option<&DatasetName>) {
        let dataset = self.place();
        (dataset.map_or(0, |dataset| dataset.as_str().matches('/').count()), dataset)
    }

    /// Whether its dataset is that of another failure, or lies below it.
    fn is_below(&self, other: &Self) -> bool {
        match (self.place(), other.place()) {
            (Some(own), Some(upper)) => own.is_within(upper),
            (own, upper) => own == upper,
        }
    }
}

/// The indices of failures with the same cause in the datasets of one tree, in the order of their causes. In each group,
/// the failure of the uppermost dataset comes first.
#[must_use]
pub fn by_cause(failures: &[FailedOrder<'_>]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut known = HashMap::new();
    for (index, failure) in failures.iter().enumerate() {
        let to = failure.to.map(|to| &to.host);
        let cause = (failure.cause(failure.error), failure.hint.map(|hint| failure.cause(hint)));
        let group = *known.entry((failure.action, failure.host, to, cause)).or_insert(groups.len());
        if group == groups.len() {
            groups.push(Vec::new());
        }
        groups[group].push(index);
    }
    groups.into_iter().flat_map(|group| by_tree(failures, group)).collect()
}

/// Divides failures with the same cause by the trees that they are in.
fn by_tree(failures: &[FailedOrder<'_>], mut group: Vec<usize>) -> Vec<Vec<usize>> {
    group.sort_by_key(|index| failures[*index].depth());
    let mut trees: Vec<Vec<usize>> = Vec::new();
    for index in group {
        match trees.iter_mut().find(|tree| failures[index].is_below(&failures[tree[0]])) {
            Some(tree) => tree.push(index),
            None => trees.push(vec![index]),
        }
    }
    trees
}

/// A remark that names the datasets of the other failures in a group; empty if there are none.
#[must_use]
pub fn others(failures: &[FailedOrder<'_>], group: &[usize]) -> String {
    let others = group.get(1..).unwrap_or_default();
    let named = others.iter().take(MAX_NAMED).filter_map(|index| failures[*index].dataset).map(DatasetName::as_str);
    let named: Vec<&str> = named.collect();
    match others.len().saturating_sub(named.len()) {
        _ if named.is_empty() => String::new(),
        0 => format!(" (the same for {})", named.join(", ")),
        more => format!(" (the same for {} and {more} more)", named.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_with_one_cause_are_grouped_by_the_uppermost_dataset() {
        let alpha: HostName = "alpha".parse().unwrap();
        let name = |text: &str| text.parse::<DatasetName>().unwrap();
        let sources = [name("tank/a/b"), name("tank"), name("tank/c"), name("tank/d"), name("other")];
        let places = ["pool/a/b", "pool", "pool/c", "pool/d", "usb"]
            .map(|at| Place { host: "beta".parse().unwrap(), dataset: name(at) });
        let errors = places.iter().map(|to| format!("beta: {} is not listed", to.dataset)).collect::<Vec<_>>();
        let failed = |at: usize, error| FailedOrder {
            action: Some(Action::SendSnapshot),
            host: &alpha,
            dataset: Some(&sources[at]),
            to: Some(&places[at]),
            error,
            hint: None,
        };
        let all = [failed(0, &errors[0]), failed(2, "no space"), failed(1, &errors[1]), failed(3, &errors[3])];
        let failures = [all[0], all[1], all[2], all[3], failed(4, &errors[4])];
        assert_eq!(by_cause(&failures), [vec![2, 3, 0], vec![4], vec![1]], "usb is another tree");
        assert_eq!(others(&failures, &[2, 3, 0]), " (the same for tank/d, tank/a/b)");
        assert_eq!(others(&failures, &[1]), "");
        assert_eq!(
            others(&failures, &[0; 9]),
            " (the same for tank/a/b, tank/a/b, tank/a/b, tank/a/b, tank/a/b and 3 more)"
        );
    }
}
