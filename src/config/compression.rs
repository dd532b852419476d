//! The key `compression` of `local.json`: how streams to other hosts are compressed.

use crate::config::json::Node;
use crate::model::HostName;
use crate::policy::{Compression, Zstd};

const EXPECTED: &str = "\"zstd\", or an object with a compression per host, as in { \"beta\": \"zstd:9\" }";

/// Reads the value. Returns `None` if a problem was reported.
pub(super) fn compression(node: &Node<'_>) -> Option<Compression> {
    if !node.is_object() {
        return node.parse(EXPECTED).map(Compression::All);
    }
    let members = node.object(EXPECTED)?.into_members();
    if members.is_empty() {
        node.problem("the object is empty; hint: name a host, or remove \"compression\"");
    }
    let pairs = members.iter().map(|member| {
        let host = member.name.parse::<HostName>().map_err(|error| member.problem_with_key(error.to_string())).ok();
        let zstd = member.node.parse::<Zstd>("a compression, as in \"zstd:9\"");
        Some((host?, zstd?))
    });
    // All pairs are collected first, so that every host is checked, even after an invalid one.
    let pairs: Vec<_> = pairs.collect();
    Some(Compression::Hosts(pairs.into_iter().collect::<Option<_>>()?))
}
