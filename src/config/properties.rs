//! The key `properties` of a receiving entry of `local.json`: the properties that received datasets get.

use std::collections::BTreeMap;

use glob::Pattern;

use crate::config::json::{Node, Object};
use crate::config::nearest::nearest;
use crate::model::tags::OURS;
use crate::policy::Properties;
use crate::policy::properties::{IN_THE_STREAM, SETTABLE, is_known};

/// Reads the object. Invalid values are reported and left out.
pub(super) fn properties(node: &Node<'_>, slave: bool) -> Option<Properties> {
    let example = "an object, as in { \"include\": [\"compression\"], \"override\": { \"atime\": \"off\" } }";
    let mut object: Object<'_> = node.object(example)?;
    if !slave {
        node.problem("this dataset does not receive, because \"slave\" is not true; hint: remove \"properties\", or set \"slave\": true if other hosts may send to it");
    }
    let include = object.get("include").map_or_else(Vec::new, |node| patterns(&node, true));
    let exclude = object.get("exclude").map_or_else(Vec::new, |node| patterns(&node, false));
    let overrides = object.get("override").map_or_else(BTreeMap::new, |node| overrides(&node));
    if !object.has("include") && object.has("exclude") {
        node.problem("\"exclude\" has no effect without \"include\", because only included properties are received; hint: remove it, or add \"include\"");
    }
    object.finish();
    Some(Properties::new(include, exclude, overrides))
}

/// Reads names of properties, or patterns of names. `included` ones must be properties that can be set.
fn patterns(node: &Node<'_>, included: bool) -> Vec<Pattern> {
    let items = node.list("a list of property names, as in [\"compression\", \"com.example:*\"]").unwrap_or_default();
    let read = |item: &Node<'_>| {
        let text = item.text("the name of a property, or a pattern with *")?;
        if !text.contains(['*', '?', '[']) && (included || !is_known(&text)) {
            check_name(item, &text)?;
        }
        Pattern::new(&text).map_err(|error| item.problem(format!("{text:?} is not a valid pattern: {error}"))).ok()
    };
    items.iter().filter_map(read).collect()
}

fn overrides(node: &Node<'_>) -> BTreeMap<String, String> {
    let example = "an object with the value of each property, as in { \"compression\": \"zstd\", \"atime\": \"off\" }";
    let Some(object) = node.object(example) else { return BTreeMap::new() };
    let mut all = BTreeMap::new();
    for member in object.into_members() {
        let value = member.node.text("the value of the property as a string, as in zfs-set(8)");
        if check_name(&member.node, &member.name).is_none() {
            continue;
        }
        if let Some(value) = value {
            all.insert(member.name.into_owned(), value.into_owned());
        }
    }
    all
}

/// Checks that a property can be set on a received dataset, and reports it otherwise.
fn check_name(node: &Node<'_>, name: &str) -> Option<()> {
    let problem = if name.starts_with(OURS) {
        format!("{name:?} is a property of zsync itself, and cannot be configured; hint: remove it")
    } else if IN_THE_STREAM.contains(&name) {
        format!("{name:?} is determined by the stream, and cannot be set on a received dataset; hint: remove it")
    } else if is_known(name) {
        return Some(());
    } else {
        let suggestion = nearest(name, SETTABLE.iter().copied()).map(|near| format!("; did you mean {near:?}?"));
        format!("{name:?} is not a property that can be set{}", suggestion.unwrap_or_default())
    };
    node.problem(problem);
    None
}
