//! Reads a list of retention rules, which both files have.

use crate::config::json::Node;
use crate::policy::Retention;

const RETENTION: &str = "a list of rules, as in [\"24 in last day\", \"1/day in last month\"]";

pub(super) fn retention(node: &Node<'_>) -> Option<Retention> {
    let items = node.list(RETENTION)?;
    if items.is_empty() {
        node.problem(
            "the list is empty; hint: add a rule, as in \"24 in last day\", or remove the key to keep every snapshot",
        );
        return None;
    }
    let texts: Vec<_> = items.iter().map(|item| item.text("a rule, as in \"24 in last day\"")).collect();
    // Values of the wrong type are reported already; the others are parsed nevertheless.
    let rules: Vec<(&Node<'_>, &str)> =
        items.iter().zip(&texts).filter_map(|(item, text)| Some((item, text.as_deref()?))).collect();
    if rules.is_empty() {
        return None;
    }
    match Retention::parse(&rules.iter().map(|(_, text)| *text).collect::<Vec<_>>()) {
        Ok(retention) => Some(retention),
        Err(errors) => {
            for (index, error) in errors {
                let item = rules.get(index).map_or(node, |(item, _)| *item);
                item.problem_in_text(error.at.start, error.to_string());
            }
            None
        }
    }
}
