//! Reads `local.json`: what a host permits zsync to do with its datasets.

use std::collections::BTreeMap;

use crate::config::bandwidth::bandwidth;
use crate::config::compression::compression;
use crate::config::hooks::hooks;
use crate::config::json::{Document, Node, Object};
use crate::config::problem::ConfigError;
use crate::config::properties;
use crate::config::quantity::{count, duration};
use crate::config::server::skip_schema;
use crate::config::tls::tls;
use crate::model::{DatasetName, HostName};
use crate::policy::local::{DEFAULT_MAX_RECEIVES, DEFAULT_MAX_SENDS, DEFAULT_STALL_TIMEOUT};
use crate::policy::{CloneConfig, Compression, Local, LocalDataset};

const MOST_TRANSFERS: usize = 1000;
/// Peers say that they are alive every five seconds.
const STALL_TIMEOUT_BOUNDS: [&str; 2] = ["10s", "1day"];

/// Reads the text of a `local.json`; `file` is its name in messages.
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
    let mut most = |key, default| object.get(key).map_or(Some(default), |node| count(&node, 1..=MOST_TRANSFERS));
    let (max_sends, max_receives) = (most("max_sends", DEFAULT_MAX_SENDS), most("max_receives", DEFAULT_MAX_RECEIVES));
    let stall_timeout = object
        .get("stall_timeout")
        .map_or(Some(DEFAULT_STALL_TIMEOUT), |node| duration(&node, "a duration as in \"10m\"", STALL_TIMEOUT_BOUNDS));
    let consul = object.get("consul").map(|node| crate::config::consul::consul(&node, true));
    let bandwidth = bandwidth(&mut object);
    let compression = object.get("compression").map_or(Some(Compression::Off), |node| compression(&node));
    let tls_node = object.get("tls");
    let tls = tls_node.as_ref().map_or(Some(None), |node| tls(node).map(Some));
    let directors = object.get("directors").and_then(|node| directors(&node, tls_node.is_some())).unwrap_or_default();
    let what = "the list of this host's datasets that zsync may touch, as in \"local_datasets\": [ { ... } ]";
    let items = object.require("local_datasets", what);
    let items = items.and_then(|node| node.list("a list of objects, one per dataset")).unwrap_or_default();
    object.finish();

    let mut lines: BTreeMap<DatasetName, usize> = BTreeMap::new();
    let mut datasets = BTreeMap::new();
    for node in &items {
        let Some((entry, name)) = entry(node, hostname.as_ref()) else { continue };
        if let Some(line) = lines.get(&entry.name) {
            name.problem(format!("{:?} has an entry on line {line} already; a dataset has one", entry.name));
            continue;
        }
        lines.insert(entry.name.clone(), name.line());
        datasets.insert(entry.name.clone(), entry);
    }
    Some(Local {
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
        datasets,
    })
}

fn directors(node: &Node<'_>, tls: bool) -> Option<Vec<HostName>> {
    let items = node.list("a list of host names, as in [\"alpha\"]")?;
    if !tls {
        node.problem("without \"tls\" nobody proves who he is; add \"tls\": {}, or leave \"directors\" out");
    }
    if items.is_empty() {
        node.problem("the list is empty; name the hosts whose directors may give orders, or leave \"directors\" out");
    }
    Some(items.iter().filter_map(|item| item.parse("a host name")).collect())
}

/// One entry, and where its name is written.
fn entry<'d>(node: &Node<'d>, hostname: Option<&HostName>) -> Option<(LocalDataset, Node<'d>)> {
    let mut object = node.object("an object with \"name\"")?;
    let enable = object.boolean("enable", true);
    let slave = object.boolean("slave", false);
    let name = object.require("name", "the dataset that the entry covers, as in \"tank/foo\"");
    let name = name.and_then(|node| Some((node.parse::<DatasetName>("a dataset name")?, node)));
    let sources = object.get("sources").and_then(|node| sources(&node, slave));
    // Who can give orders shall not thereby be able to erase a backup: its own host says so, or nobody.
    let append_only = object.boolean("append_only", slave);
    let properties = object.get("properties").and_then(|node| properties::properties(&node, slave)).unwrap_or_default();
    let hooks = object.get("hooks").map(|node| hooks(&node, slave)).unwrap_or_default();
    let clone = object.get("clone").and_then(|node| clone(&node, name.as_ref().map(|(name, _)| name)));
    refuse_local_mode(&mut object, name.as_ref().map(|(name, _)| name), hostname);
    object.finish();
    let (name, place) = name?;
    Some((LocalDataset { name, enable, slave, sources, append_only, properties, hooks, clone }, place))
}

fn sources(node: &Node<'_>, slave: bool) -> Option<Vec<HostName>> {
    let items = node.list("a list of host names, as in [\"alpha\"]")?;
    if !slave {
        node.problem("only a receiving dataset has sources; set \"slave\": true, or leave \"sources\" out");
    }
    if items.is_empty() {
        node.problem(
            "the list is empty; name the hosts that may send, or leave \"sources\" out to let every host send",
        );
    }
    Some(items.iter().filter_map(|item| item.parse("a host name")).collect())
}

fn clone(node: &Node<'_>, of: Option<&DatasetName>) -> Option<CloneConfig> {
    let mut object =
        node.object("an object, as in { \"enable\": true, \"name\": \"tank/foo_clone\", \"delete\": true }")?;
    let enable = object.boolean("enable", false);
    let place = object.get("name");
    let name = place.as_ref().and_then(|node| node.parse::<DatasetName>("a dataset name"));
    let delete = object.boolean("delete", false);
    if enable && place.is_none() {
        object.missing("name", "the clone's dataset, as in \"tank/foo_clone\"");
    }
    object.finish();
    if let (true, Some(place), Some(name), Some(of)) = (enable, place, &name, of) {
        // A pool has nothing beside it.
        let inside = name.is_within(of) && (name == of || of.parent().is_some());
        if name.pool() != of.pool() {
            place.problem(format!("a clone is in the pool of its origin, {}; name a dataset there", of.pool()));
        } else if inside || of.is_within(name) {
            place.problem(format!("{name} and {of} are one within the other; name a dataset beside it"));
        }
    }
    Some(CloneConfig { enable, name, delete })
}

/// The ancestor took and pruned snapshots by local.json as well; here only the director's policy says so.
fn refuse_local_mode(object: &mut Object<'_>, name: Option<&DatasetName>, hostname: Option<&HostName>) {
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
        // Somebody put a director's policy here: it only has to move.
        Some(backup) if backup.is_object() && backup.raw().len() < 1000 => {
            backup.raw().split_whitespace().collect::<Vec<_>>().join(" ")
        }
        _ => {
            let prefix = prefix.as_ref().filter(|node| node.is_text()).map_or("\"BACKUP\"", Node::raw);
            let count = retention.as_ref().map(|node| node.raw().trim_matches('"'));
            let count = count.and_then(|digits| digits.parse::<u32>().ok()).unwrap_or(24);
            format!(
                "{{ \"prefix\": {prefix}, \"creation\": \"0 * * * *\", \"retention\": [\"{count} in last 10 years\"] }}"
            )
        }
    };
    let host = hostname.map_or("THIS-HOST", HostName::as_str);
    let dataset = name.map_or("DATASET", DatasetName::as_str);
    first.problem(format!(
        "{} would take and prune snapshots here, which only the director does; say it in its server.json, with your own schedule: \
         \"datasets\": [ {{ \"hostname\": \"{host}\", \"dataset\": \"{dataset}\", \"backup\": {policy} }} ]",
        keys.join(", "),
    ));
}
