//! `compression` of `local.json`: how streams to other hosts are compressed.

use crate::config::json::Node;
use crate::model::HostName;
use crate::policy::{Compression, Zstd};

const ALLOWED: &str = "\"zstd\", or hosts with theirs, as in { \"beta\": \"zstd:9\" }";

/// Reads it; `None` where something is wrong, which is reported.
pub(super) fn compression(node: &Node<'_>) -> Option<Compression> {
    if !node.is_object() {
        return node.parse(ALLOWED).map(Compression::All);
    }
    let members = node.object(ALLOWED)?.into_members();
    if members.is_empty() {
        node.problem("no host is named; name one, or leave \"compression\" out");
    }
    let pairs = members.iter().map(|member| {
        let host = member.name.parse::<HostName>().map_err(|error| member.problem_with_key(error.to_string())).ok();
        let zstd = member.node.parse::<Zstd>("a compression, as in \"zstd:9\"");
        Some((host?, zstd?))
    });
    // Each is looked at, also behind one that is wrong.
    let pairs: Vec<_> = pairs.collect();
    Some(Compression::Hosts(pairs.into_iter().collect::<Option<_>>()?))
}
