//! Reads `server.json`, which defines what the director does, as a [`Policy`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::str::FromStr;

use glob::Pattern;

use crate::config::check;
use crate::config::check::{Entry, LagNode, PolicyClaims, PrefixNode};
use crate::config::json::{Document, Node, Object};
use crate::config::problem::ConfigError;
use crate::config::retention::retention;
use crate::config::thresholds;
use crate::config::tls::tls;
use crate::config::values::{absolute_path, duration, hours, percentage, skip_schema, timezone};
use crate::model::{DatasetName, HostName, NameError, OnDivergence, Place, Prefix};
use crate::policy::{
    Address, CatalogConfig, DEFAULT_CATCH_UP, DEFAULT_MAX_DESTROYS, DEFAULT_RETRY_FOR, DatasetPolicy, Exclude,
    HostAddress, Policy, Schedule, SnapshotPolicy, SyncPolicy, Thresholds, Zone,
};

/// The folder of the embedded catalog, unless the policy names another one.
pub const DEFAULT_CATALOG: &str = "/var/lib/zsync/catalog";

const AN_OBJECT: &str = "an object { ... }";
const CATCH_UP: &str = "a duration, as in \"6h\" or \"1h 30m\"";
const LAG: &str = "how old the newest snapshot on a destination may be, as in \"2h\" or \"1day 12h\"";
const RETRY_FOR: &str = "a duration, as in \"20s\", or \"0s\" for a single attempt";
/// With a value below the lower bound, a director that runs a pass every minute would miss slots at random.
const CATCH_UP_BOUNDS: [&str; 2] = ["1m", "366days"];
/// A slot comes at most once a minute, so no destination can be newer than that.
const LAG_BOUNDS: [&str; 2] = ["1m", "100years"];
/// Limited, because a pass waits for orders that are being retried.
const RETRY_FOR_BOUNDS: [&str; 2] = ["0s", "1h"];

/// Parses the text of a `server.json`. `file` is its name in messages.
pub fn parse_policy(file: &str, text: &str) -> Result<Policy, ConfigError> {
    let document = Document::new(file, text);
    let policy = document.root().and_then(|root| policy(&root));
    document.finish(policy)
}

fn policy(root: &Node<'_>) -> Option<Policy> {
    let mut object = root.object(AN_OBJECT)?;
    skip_schema(&mut object);
    let datacenter = object.get("datacenter").and_then(|node| label(&node));
    let timezone = object.get("timezone").map_or(Some(Zone::UTC), |node| timezone(&node));
    let catalog = object.get("catalog").map_or_else(|| Some(default_catalog()), |node| catalog(&node));
    let tls = object.get("tls").map_or(Some(None), |node| tls(&node).map(Some));
    let hosts = object.get("hosts").map_or_else(|| Some(BTreeMap::new()), |node| hosts(&node));
    let consul_resync = object.get("consul_resync").and_then(|node| hours(&node));
    let retry_for =
        object.get("retry_for").map_or(Some(DEFAULT_RETRY_FOR), |node| duration(&node, RETRY_FOR, RETRY_FOR_BOUNDS));
    let max_destroys = object.get("max_destroys").map_or(Some(DEFAULT_MAX_DESTROYS), |node| percentage(&node));
    let datasets =
        object.require("datasets", "the list of datasets with their policies, as in \"datasets\": [ { ... } ]");
    let datasets = datasets.and_then(|node| node.list("a list of objects, one per dataset"));
    let datasets: Vec<Option<DatasetPolicy>> = {
        let mut entries = Vec::new();
        let datasets = datasets.unwrap_or_default().iter().map(|node| dataset(node, &mut entries)).collect();
        check::check_all(&entries);
        datasets
    };
    object.finish();
    let mut catalog = catalog;
    if let Some(CatalogConfig::Consul(consul)) = &mut catalog
        && consul.datacenter.is_none()
    {
        consul.datacenter.clone_from(&datacenter);
    }
    Some(Policy {
        datacenter,
        timezone: timezone?,
        catalog: catalog?,
        retry_for: retry_for?,
        max_destroys: max_destroys?,
        tls: tls?,
        hosts: hosts?,
        consul_resync,
        // A problem was reported for each entry that is missing here, so the whole policy is refused.
        datasets: datasets.into_iter().flatten().collect(),
    })
}

fn label(node: &Node<'_>) -> Option<String> {
    let text = node.text("a name")?;
    if text.is_empty() || text.len() > 100 || text.chars().any(char::is_control) {
        node.unexpected("a name of 1 to 100 characters");
        return None;
    }
    Some(text.into_owned())
}

fn default_catalog() -> CatalogConfig {
    CatalogConfig::Embedded { path: PathBuf::from(DEFAULT_CATALOG) }
}

fn catalog(node: &Node<'_>) -> Option<CatalogConfig> {
    let mut object = node
        .object("an object, as in { \"embedded\": { \"path\": \"/var/lib/zsync/catalog\" } } or { \"consul\": {} }")?;
    let (embedded, consul) = (object.get("embedded"), object.get("consul"));
    object.finish();
    if let Some(consul) = consul {
        if embedded.is_some() {
            consul.problem("\"embedded\" and \"consul\" exclude each other; hint: remove one of them");
        }
        return crate::config::consul::consul(&consul, false).map(|consul| CatalogConfig::Consul(Box::new(consul)));
    }
    let Some(embedded) = embedded else { return Some(default_catalog()) };
    let mut object = embedded.object(AN_OBJECT)?;
    let path = object.get("path").map_or_else(
        || Some(PathBuf::from(DEFAULT_CATALOG)),
        |node| absolute_path(&node, "the absolute path of a folder, as in \"/var/lib/zsync/catalog\""),
    );
    object.finish();
    Some(CatalogConfig::Embedded { path: path? })
}

fn hosts(node: &Node<'_>) -> Option<BTreeMap<HostName, HostAddress>> {
    let object =
        node.object("an object with a key per host, as in { \"beta\": { \"address\": \"10.0.0.2:7711\" } }")?;
    let mut hosts = BTreeMap::new();
    for member in object.into_members() {
        let name = HostName::from_str(&member.name).map_err(|error| member.problem_with_key(error.to_string()));
        let Some(mut object) = member.node.object("an object with \"address\" and \"receive_address\"") else {
            continue;
        };
        let mut read = |key| object.get(key).and_then(|node| peer_address(&node));
        let (address, receive_address) = (read("address"), read("receive_address"));
        object.finish();
        let host = HostAddress::new(address.as_ref(), receive_address.as_ref());
        if let Ok(name) = name {
            hosts.insert(name, host);
        }
    }
    Some(hosts)
}

fn peer_address(node: &Node<'_>) -> Option<Address> {
    let address: Address = node.parse("an address, as in \"10.0.0.2:7711\"")?;
    if address.port() == Some(0) {
        node.problem(format!(
            "{} has port 0, to which nothing can connect; expected a port from 1 to 65535",
            node.raw()
        ));
        return None;
    }
    Some(address)
}

/// Reads one entry of `datasets`. Adds to `entries` the parts that have to be checked against other entries.
fn dataset<'d>(node: &Node<'d>, entries: &mut Vec<Entry<'d>>) -> Option<DatasetPolicy> {
    let mut object = node.object("an object with \"hostname\", \"dataset\" and policies")?;
    let hostname = object
        .require("hostname", "the name of the host that has the dataset")
        .and_then(|node| node.parse("a host name"));
    let dataset =
        object.require("dataset", "the dataset, as in \"tank/foo\"").and_then(|node| node.parse("a dataset name"));
    let recursive = object.boolean("recursive", false);
    let mut policy_nodes: Vec<(String, Node<'d>)> = Vec::new();
    for key in ["backup", "sync"] {
        policy_nodes.extend(object.get(key).map(|node| (key.to_owned(), node)));
    }
    if let Some(named) = object.get("policies") {
        named_policies(&named, &mut policy_nodes);
    }
    let options = entry_options(&mut object, recursive);
    let has_policies = ["backup", "sync", "policies"].iter().any(|key| object.has(key));
    object.finish();
    if policy_nodes.is_empty() && !has_policies {
        node.problem("the entry has no policy; hint: add \"backup\", \"sync\" or \"policies\": { NAME: { ... } }");
    }

    let mut entry = Entry { node: node.clone(), hostname, dataset, policies: Vec::new() };
    let policies: Vec<_> = policy_nodes.iter().map(|(name, node)| snapshot_policy(name, node, &mut entry)).collect();
    check::check_entry(&entry);
    let (hostname, dataset) = (entry.hostname.clone(), entry.dataset.clone());
    entries.push(entry);
    Some(DatasetPolicy {
        hostname: hostname?,
        dataset: dataset?,
        recursive,
        exclude: options.exclude,
        policies: policies.into_iter().flatten().collect(),
        rollback_if_needed: options.rollback_if_needed,
        rollback_may_destroy: options.rollback_may_destroy,
        on_divergence: options.on_divergence,
        skip_if_renamed: options.skip_if_renamed,
        skip_if_not_written: options.skip_if_not_written,
        skip_if_cloned: options.skip_if_cloned,
    })
}

/// The keys of an entry that apply to all of its policies.
struct EntryOptions {
    exclude: Exclude,
    rollback_if_needed: bool,
    rollback_may_destroy: bool,
    on_divergence: OnDivergence,
    skip_if_renamed: bool,
    skip_if_not_written: bool,
    skip_if_cloned: bool,
}

fn entry_options(object: &mut Object<'_>, recursive: bool) -> EntryOptions {
    let excluded = object.get("exclude");
    let exclude = excluded.as_ref().map(exclude).unwrap_or_default();
    if let Some(node) = excluded.filter(|_| !recursive) {
        node.problem(
            "\"exclude\" has no effect without \"recursive\", because it names datasets below this one; hint: remove it, or set \"recursive\": true",
        );
    }
    let rollback_if_needed = either(object, "rollback_if_needed", "rollback_needed", false);
    let may_destroy = object.get("rollback_may_destroy");
    let rollback_may_destroy = may_destroy.as_ref().and_then(Node::boolean).unwrap_or(false);
    if let Some(node) = may_destroy.filter(|_| rollback_may_destroy && !rollback_if_needed) {
        node.problem(
            "it has no effect without \"rollback_if_needed\"; hint: remove it (a rollback discards data on the destination)",
        );
    }
    let on_divergence = object.get("on_divergence").and_then(|node| on_divergence(&node)).unwrap_or_default();
    let skip_if_renamed = either(object, "skip_if_renamed", "skip_renamed", true);
    let skip_if_not_written = either(object, "skip_if_not_written", "skip_not_written", true);
    let skip_if_cloned = either(object, "skip_if_cloned", "skip_cloned", true);
    EntryOptions {
        exclude,
        rollback_if_needed,
        rollback_may_destroy,
        on_divergence,
        skip_if_renamed,
        skip_if_not_written,
        skip_if_cloned,
    }
}

/// Reads patterns of the names of datasets below the entry's dataset.
fn exclude(node: &Node<'_>) -> Exclude {
    let expected = "a list of patterns of names below the dataset, as in [\"tmp\", \"*/cache\"]";
    let items = node.list(expected).unwrap_or_default();
    let read = |item: &Node<'_>| {
        let text = item.text("the pattern of a name below the dataset, as in \"tmp\"")?;
        if text.is_empty() || text.starts_with('/') || text.ends_with('/') || text.contains('@') {
            item.problem(format!(
                "{} is not a name below the dataset; expected one as in \"tmp\" or \"a/b\"",
                item.raw()
            ));
            return None;
        }
        Pattern::new(&text).map_err(|error| item.problem(format!("{text:?} is not a valid pattern: {error}"))).ok()
    };
    Exclude::new(items.iter().filter_map(read).collect())
}

fn on_divergence(node: &Node<'_>) -> Option<OnDivergence> {
    let expected = "\"stop\" or \"set_aside\"";
    match node.text(expected)?.as_ref() {
        "stop" => Some(OnDivergence::Stop),
        "set_aside" => Some(OnDivergence::SetAside),
        _ => {
            node.unexpected(expected);
            None
        }
    }
}

fn named_policies<'d>(node: &Node<'d>, nodes: &mut Vec<(String, Node<'d>)>) {
    let Some(object) = node.object("an object with a policy per name, as in { \"hourly\": { ... } }") else { return };
    let members = object.into_members();
    if members.is_empty() {
        node.problem("the object is empty; hint: add a policy, as in { \"hourly\": { \"prefix\": \"HOURLY\", ... } }");
    }
    for member in members {
        if member.name.is_empty() || member.name.len() > 100 || member.name.chars().any(char::is_control) {
            member.problem_with_key("the name of a policy must have 1 to 100 characters");
        }
        if let Some((_, other)) = nodes.iter().find(|(name, _)| *name == member.name) {
            member.problem_with_key(format!(
                "the entry already has a policy with this name, on line {}; hint: choose another name",
                other.line()
            ));
        }
        nodes.push((member.name.into_owned(), member.node));
    }
}

/// Takes a boolean whose key has an older spelling.
fn either(object: &mut Object<'_>, key: &'static str, older: &str, default: bool) -> bool {
    let (node, old) = (object.get(key), object.get_unlisted(older));
    if let (Some(node), Some(old)) = (&node, &old) {
        old.problem(format!(
            "this is the older spelling of {key:?}, which is on line {}; hint: remove one of them",
            node.line()
        ));
    }
    node.or(old).and_then(|node| node.boolean()).unwrap_or(default)
}

fn snapshot_policy<'d>(name: &str, node: &Node<'d>, entry: &mut Entry<'d>) -> Option<SnapshotPolicy> {
    let mut object = node.object("an object, as in { \"prefix\": \"BACKUP\", \"creation\": \"0 * * * *\" }")?;
    let prefix = object.require("prefix", "the prefix of the names of its snapshots, as in \"BACKUP\"");
    let prefix = prefix.and_then(|node| Some((node.parse::<Prefix>("a prefix of snapshot names")?, node)));
    let creation =
        object.get("creation").and_then(|node| node.parse::<Schedule>("a cron schedule, as in \"0 * * * *\""));
    let catch_up =
        object.get("catch_up").map_or(Some(DEFAULT_CATCH_UP), |node| duration(&node, CATCH_UP, CATCH_UP_BOUNDS));
    let sync_on = object.get("sync_on").and_then(|node| receivers(&node));
    let sync_dataset = object.get("sync_dataset");
    let sync_dataset = sync_dataset.and_then(|node| Some((node.parse::<DatasetName>("a dataset name")?, node)));
    let sync_policy = object.get("sync_policy").map_or(Some(SyncPolicy::Asap), |node| sync_policy(&node));
    let retention = object.get("retention").map(|node| retention(&node));
    let sync_retention = object.get("sync_retention").map(|node| self::retention(&node));
    let prune_unsent = object.boolean("prune_unsent", false);
    let lag_node = object.get("lag");
    let lag = lag_node.as_ref().map_or(Some(None), |node| duration(node, LAG, LAG_BOUNDS).map(Some));
    let check = object.get("check").map_or_else(Thresholds::default, |node| thresholds::read(&node));
    check_dependent_keys(&object);
    object.finish();

    let common = sync_dataset.as_ref().map(|(dataset, _)| dataset);
    let targets: Vec<Place> =
        sync_on.iter().flatten().filter_map(|(receiver, node)| receiver.target(common, node)).collect();
    let target_node = sync_dataset.map_or_else(|| node.clone(), |(_, node)| node);
    let claimed = prefix.clone().map(|(prefix, node)| PrefixNode { prefix, node });
    let by_sync = match &sync_policy {
        Some(SyncPolicy::Cron(schedule)) => Some(("sync_policy", schedule.clone())),
        Some(SyncPolicy::Asap) | None => None,
    };
    let schedules = creation.iter().map(|schedule| ("creation", schedule.clone())).chain(by_sync).collect();
    let lag_claim = lag_node.zip(lag.flatten()).map(|(node, lag)| LagNode { lag, schedules, node });
    let name_of = name.to_owned();
    let targets_of = targets.clone();
    entry.policies.push(PolicyClaims {
        name: name_of,
        prefix: claimed,
        targets: targets_of,
        target_node,
        lag: lag_claim,
    });

    let (prefix, _) = prefix?;
    let retention = retention.flatten();
    let sync_retention = match sync_retention {
        Some(own) => own,
        None if targets.is_empty() => None,
        None => retention.clone(),
    };
    Some(SnapshotPolicy {
        name: name.to_owned(),
        prefix,
        creation,
        catch_up: catch_up?,
        sync_on: targets,
        sync_policy: sync_policy?,
        retention,
        sync_retention,
        prune_unsent,
        lag: lag?,
        check,
    })
}

/// Reports keys that have no effect without another key, which was most likely forgotten.
fn check_dependent_keys(object: &Object<'_>) {
    let has = |key| object.has(key);
    let node = object.node();
    if !has("creation") && !has("sync_on") && !has("sync_dataset") && !has("retention") {
        node.problem("the policy does nothing; hint: add \"creation\", \"sync_on\" or \"retention\"");
    }
    if has("sync_on") {
        return;
    }
    if has("sync_dataset") {
        object.missing("sync_on", "the host, or the list of hosts, that receives into \"sync_dataset\"");
    }
    for key in ["sync_policy", "sync_retention", "lag"] {
        if has(key) && !has("sync_dataset") {
            node.problem(format!(
                "{key:?} has no effect without \"sync_on\"; hint: add \"sync_on\", or remove {key:?}"
            ));
        }
    }
}

fn sync_policy(node: &Node<'_>) -> Option<SyncPolicy> {
    let text = node.text("\"asap\" or a cron schedule, as in \"0 1 * * *\"")?;
    text.parse().map_err(|error| node.problem(format!("{error}; hint: write a cron schedule, or \"asap\""))).ok()
}

/// A receiving host, with its own dataset, or with that of `sync_dataset`.
struct Receiver {
    host: HostName,
    dataset: Option<DatasetName>,
}

impl FromStr for Receiver {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Ok(match text.split_once(':') {
            Some((host, dataset)) => Self { host: host.parse()?, dataset: Some(dataset.parse()?) },
            None => Self { host: text.parse()?, dataset: None },
        })
    }
}

impl Receiver {
    fn target(&self, common: Option<&DatasetName>, node: &Node<'_>) -> Option<Place> {
        let dataset = self.dataset.as_ref().or(common);
        if dataset.is_none() {
            let host = &self.host;
            node.problem(format!(
                "the receiving dataset on {host} is missing; hint: add \"sync_dataset\", or write \"{host}:DATASET\""
            ));
        }
        Some(Place { host: self.host.clone(), dataset: dataset?.clone() })
    }
}

/// Reads one receiver or several, each with its value.
fn receivers<'d>(node: &Node<'d>) -> Option<Vec<(Receiver, Node<'d>)>> {
    let expected = "a host name, HOST:DATASET, or a list of those";
    if !node.is_list() {
        return node.parse(expected).map(|receiver| vec![(receiver, node.clone())]);
    }
    let items = node.list(expected)?;
    if items.is_empty() {
        node.problem("the list is empty; hint: name a host, or remove \"sync_on\" and \"sync_dataset\"");
        return None;
    }
    let mut seen = BTreeSet::new();
    let mut receivers = Vec::new();
    for item in items {
        let Some(receiver) = item.parse::<Receiver>("a host name or HOST:DATASET") else { continue };
        if !seen.insert((receiver.host.clone(), receiver.dataset.clone())) {
            item.problem(format!("duplicate value {}; hint: remove one of them", item.raw()));
        }
        receivers.push((receiver, item));
    }
    Some(receivers)
}
