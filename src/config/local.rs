//! Reads `local.json`, which defines what a host permits zsync to do with its datasets, as a [`Local`].

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::bandwidth::bandwidth;
use crate::config::compression::compression;
use crate::config::hooks::hooks;
use crate::config::json::{Document, Node, Object};
use crate::config::problem::ConfigError;
use crate::config::properties;
use crate::config::retention::retention;
use crate::config::tls::tls;
use crate::config::values::{count, duration, skip_schema, timezone};
use crate::model::{DatasetName, HostName};
use crate::policy::local::{DEFAULT_MAX_RECEIVES, DEFAULT_MAX_SENDS, DEFAULT_STALL_TIMEOUT};
use crate::policy::{CloneConfig, Compression, Local, LocalDataset, Zone};

const MOST_TRANSFERS: usize = 1000;
/// The lower bound is twice the interval at which a working peer reports that it is alive.
const STALL_TIMEOUT_BOUNDS: [&str; 2] = ["10s", "1day"];

const DESTROY_AFTER_BOUNDS: [&str; 2] = ["1s", "100years"];

/// Parses the text of a `local.json`. `file` is its name in messages.
pub fn parse_local(file: &str, text: &str) -> Result<Local, ConfigError> {
    let document = Document::new(file, text);
    let local = document.root().and_then(|root| local(&root));
    document.finish(local)
}

fn local(root: &Node<'_>) -> Option<Local> {
    let mut object = root.object("an object { ... }")?;
    skip_schema(&mut object);
    let listen = object.get("listen").and_then(|node| node.parse("an address to listen on, as in \"0.0.0.0:7711\""));
    let hostname = object.get("hostname").and_then(|node| node.parse::<HostName>("a host name"));
    let mut limit = |key, default| object.get(key).map_or(Some(default), |node| count(&node, 1..=MOST_TRANSFERS));
    let (max_sends, max_receives) =
        (limit("max_sends", DEFAULT_MAX_SENDS), limit("max_receives", DEFAULT_MAX_RECEIVES));
    let stall_timeout = object
        .get("stall_timeout")
        .map_or(Some(DEFAULT_STALL_TIMEOUT), |node| duration(&node, "a duration, as in \"10m\"", STALL_TIMEOUT_BOUNDS));
    let consul = object.get("consul").map(|node| crate::config::consul::consul(&node, true));
    let timezone_node = object.get("timezone");
    let timezone = timezone_node.as_ref().map_or(Some(Zone::UTC), timezone);
    let bandwidth = bandwidth(&mut object, timezone);
    let compression = object.get("compression").map_or(Some(Compression::Off), |node| compression(&node));
    let tls_node = object.get("tls");
    let tls = tls_node.as_ref().map_or(Some(None), |node| tls(node).map(Some));
    let directors = object.get("directors").and_then(|node| directors(&node, tls_node.is_some())).unwrap_or_default();
    let what = "the list of the datasets of this host that zsync may use, as in \"local_datasets\": [ { ... } ]";
    let items = object.require("local_datasets", what);
    let items = items.and_then(|node| node.list("a list of objects, one per dataset")).unwrap_or_default();
    object.finish();

    let mut lines: BTreeMap<DatasetName, usize> = BTreeMap::new();
    let mut datasets = BTreeMap::new();
    for node in &items {
        let Some((entry, name)) = entry(node, hostname.as_ref()) else { continue };
        if let Some(line) = lines.get(&entry.name) {
            name.problem(format!(
                "{:?} already has an entry, on line {line}; hint: combine the two entries",
                entry.name
            ));
            continue;
        }
        lines.insert(entry.name.clone(), name.line());
        datasets.insert(entry.name.clone(), entry);
    }
    let uses_timezone =
        |local: &Local| !local.bandwidth.limits.is_empty() || local.datasets.values().any(|entry| entry.keep.is_some());
    let local = Local {
        file: root.document().file().to_owned(),
        listen,
        hostname,
        tls: tls?,
        directors,
        max_sends: max_sends?,
        max_receives: max_receives?,
        stall_timeout: stall_timeout?,
        consul: consul.flatten(),
        bandwidth: bandwidth?,
        compression: compression?,
        timezone: timezone?,
        datasets,
    };
    if let Some(node) = timezone_node.filter(|_| !uses_timezone(&local)) {
        node.problem(
            "it has no effect without \"bandwidth\" or \"keep\"; hint: remove it (schedules use the \"timezone\" of server.json)",
        );
    }
    Some(local)
}

fn directors(node: &Node<'_>, tls: bool) -> Option<Vec<HostName>> {
    let items = node.list("a list of host names, as in [\"alpha\"]")?;
    if !tls {
        node.problem(
            "\"directors\" needs \"tls\", because without TLS no host can prove its identity; hint: add \"tls\": {} (see zsync-tls(8))",
        );
    }
    if items.is_empty() {
        node.problem("the list is empty; hint: name the hosts whose directors may give orders to this host");
    }
    Some(items.iter().filter_map(|item| item.parse("a host name")).collect())
}

/// Reads one entry. Also returns the value of its name, for messages.
fn entry<'d>(node: &Node<'d>, hostname: Option<&HostName>) -> Option<(LocalDataset, Node<'d>)> {
    let mut object = node.object("an object with \"name\"")?;
    let enable = object.boolean("enable", true);
    let slave = object.boolean("slave", false);
    let name = object.require("name", "the dataset that the entry covers, as in \"tank/foo\"");
    let name = name.and_then(|node| Some((node.parse::<DatasetName>("a dataset name")?, node)));
    let sources = object.get("sources").and_then(|node| sources(&node, slave));
    // A director must not be able to destroy backups unless the host that stores them permits it.
    let append_only = object.boolean("append_only", slave);
    let destinations = object.get("destinations").and_then(|node| destinations(&node));
    let readers = object.get("readers").and_then(|node| readers(&node)).unwrap_or_default();
    let restore = object.boolean("restore", false);
    let rollback_node = object.get("rollback");
    let rollback = rollback_node.as_ref().and_then(Node::boolean).unwrap_or_default();
    if let (true, Some(node)) = (rollback, &rollback_node) {
        check_rollback(node, slave, append_only);
    }
    // A snapshot that is taken of a copy makes it diverge from its source.
    let take = object.boolean("take", !slave);
    let keep = object.get("keep").map(|node| retention(&node));
    let destroy_after = object.get("destroy_after").map(|node| destroy_after(&node, append_only));
    let properties = object.get("properties").and_then(|node| properties::properties(&node, slave)).unwrap_or_default();
    let hooks = object.get("hooks").map(|node| hooks(&node, slave)).unwrap_or_default();
    let clone = object.get("clone").and_then(|node| clone(&node, name.as_ref().map(|(name, _)| name)));
    refuse_zeplic_keys(&mut object, name.as_ref().map(|(name, _)| name), hostname);
    object.finish();
    let (name, name_node) = name?;
    // An invalid value must not be treated as a missing one.
    let keep = keep.map_or(Some(None), |keep| keep.map(Some))?;
    let destroy_after = destroy_after.map_or(Some(None), |after| after.map(Some))?;
    let entry = LocalDataset {
        name,
        enable,
        slave,
        sources,
        destinations,
        readers,
        take,
        append_only,
        restore,
        rollback,
        keep,
        destroy_after,
        properties,
        hooks,
        clone,
    };
    Some((entry, name_node))
}

fn sources(node: &Node<'_>, slave: bool) -> Option<Vec<HostName>> {
    let items = node.list("a list of host names, as in [\"alpha\"]")?;
    if !slave {
        node.problem("this dataset does not receive, because \"slave\" is not true; hint: remove \"sources\", or set \"slave\": true if other hosts may send to it");
    }
    if items.is_empty() {
        node.problem("the list is empty; hint: name the hosts that may send (without \"sources\", every host may)");
    }
    Some(items.iter().filter_map(|item| item.parse("a host name")).collect())
}

fn destinations(node: &Node<'_>) -> Option<Vec<HostName>> {
    let items = node.list("a list of host names, as in [\"beta\"]")?;
    if items.is_empty() {
        node.problem("the list is empty; hint: name the hosts to which the dataset may be sent (without \"destinations\", it may be sent to every host)");
    }
    Some(items.iter().filter_map(|item| item.parse("a host name")).collect())
}

fn destroy_after(node: &Node<'_>, append_only: bool) -> Option<Duration> {
    if append_only {
        node.problem("in an append-only dataset, orders destroy nothing; hint: remove \"destroy_after\", or set \"append_only\": false as well, which lets orders move snapshots to the trash");
    }
    duration(node, "a duration, as in \"7days\"", DESTROY_AFTER_BOUNDS)
}

fn readers(node: &Node<'_>) -> Option<Vec<HostName>> {
    let items = node.list("a list of host names, as in [\"gamma\"]")?;
    if items.is_empty() {
        node.problem("the list is empty; hint: name the hosts that may restore copies of other hosts, or remove \"readers\": the host that a copy came from may always restore it");
    }
    Some(items.iter().filter_map(|item| item.parse("a host name")).collect())
}

fn check_rollback(node: &Node<'_>, slave: bool, append_only: bool) {
    if !slave {
        node.problem("only a transfer rolls a dataset back, and this one does not receive, because \"slave\" is not true; hint: remove \"rollback\"");
    } else if append_only {
        node.problem("an append-only dataset is never rolled back; hint: remove \"rollback\", or set \"append_only\": false as well, which also lets orders destroy snapshots");
    }
}

fn clone(node: &Node<'_>, of: Option<&DatasetName>) -> Option<CloneConfig> {
    let mut object =
        node.object("an object, as in { \"enable\": true, \"name\": \"tank/foo_clone\", \"delete\": true }")?;
    let enable = object.boolean("enable", false);
    let name_node = object.get("name");
    let name = name_node.as_ref().and_then(|node| node.parse::<DatasetName>("a dataset name"));
    let delete = object.boolean("delete", false);
    if enable && name_node.is_none() {
        object.missing("name", "the dataset of the clone, as in \"tank/foo_clone\"");
    }
    object.finish();
    if let (true, Some(node), Some(name), Some(of)) = (enable, name_node, &name, of) {
        // If the origin is the root of a pool, the clone cannot be outside of it.
        let inside = name.is_within(of) && (name == of || of.parent().is_some());
        if name.pool() != of.pool() {
            node.problem(format!("a clone must be in the pool of its origin; hint: name a dataset in {}", of.pool()));
        } else if inside || of.is_within(name) {
            node.problem(format!(
                "the clone {name} and its origin {of} must not contain each other; hint: name a dataset outside of {of}"
            ));
        }
    }
    Some(CloneConfig { enable, name, delete })
}

/// Refuses the keys by which zeplic took and pruned snapshots locally. In zsync only the director's policy does that.
fn refuse_zeplic_keys(object: &mut Object<'_>, name: Option<&DatasetName>, hostname: Option<&HostName>) {
    let prefix = object.get_unlisted("snap_prefix");
    let retention = object.get_unlisted("snap_retention");
    let backup = object.get_unlisted("backup");
    let found: Vec<(&str, &Node<'_>)> = [("snap_prefix", &prefix), ("snap_retention", &retention), ("backup", &backup)]
        .into_iter()
        .filter_map(|(key, node)| Some((key, node.as_ref()?)))
        .collect();
    let Some((_, first)) = found.iter().min_by_key(|(_, node)| node.offset()) else { return };
    let keys: Vec<_> = found.iter().map(|(key, _)| format!("{key:?}")).collect();

    let policy = match &backup {
        // This is a director's policy in the wrong file, so it only has to be moved.
        Some(backup) if backup.is_object() && backup.raw().len() < 1000 => {
            backup.raw().split_whitespace().collect::<Vec<_>>().join(" ")
        }
        _ => {
            let prefix = prefix.as_ref().filter(|node| node.is_text()).map_or("\"BACKUP\"", Node::raw);
            let count = retention.as_ref().map(|node| node.raw().trim_matches('"'));
            let count = count.and_then(|digits| digits.parse::<u32>().ok()).filter(|count| *count > 0);
            // Without a number, the policy keeps every snapshot: following a hint must never destroy any.
            let retention = count.map(|count| format!(", \"retention\": [\"{count} in last 10 years\"]"));
            format!("{{ \"prefix\": {prefix}, \"creation\": \"0 * * * *\"{} }}", retention.unwrap_or_default())
        }
    };
    let host = hostname.map_or("THIS-HOST", HostName::as_str);
    let dataset = name.map_or("DATASET", DatasetName::as_str);
    first.problem(format!(
        "local.json cannot have {}, because only the director takes and prunes snapshots; hint: remove {}, and add a policy with your own \
         schedule to the server.json of the director: \"datasets\": [ {{ \"hostname\": \"{host}\", \"dataset\": \"{dataset}\", \"backup\": {policy} }} ]",
        keys.join(" or "),
        if keys.len() == 1 { "it" } else { "them" },
    ));
}
