//! `server.json`: what the director is to do, as a [`Policy`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::str::FromStr;

use chrono::NaiveTime;
use glob::Pattern;

use crate::config::check;
use crate::config::check::{Entry, Prefixed};
use crate::config::json::{Document, Node, Object};
use crate::config::nearest::slips;
use crate::config::problem::ConfigError;
use crate::config::quantity::duration;
use crate::config::thresholds;
use crate::config::tls::tls;
use crate::model::{DatasetName, HostName, NameError, OnDivergence, Place, Prefix};
use crate::policy::{AGENT_PORT, Address, SLAVE_PORT};
use crate::policy::{
    CatalogConfig, DEFAULT_CATCH_UP, DEFAULT_RETRY_FOR, DatasetPolicy, Exclude, HostAddress, Policy, Retention,
    Schedule, SnapshotPolicy, SyncPolicy, Thresholds, Zone,
};

/// Where the embedded catalog is kept unless the policy says otherwise.
pub const DEFAULT_CATALOG: &str = "/var/lib/zsync/catalog";

const AN_OBJECT: &str = "an object { ... }";
const CATCH_UP: &str = "a duration as in \"6h\" or \"1h 30m\"";
const RETRY_FOR: &str = "a duration as in \"20s\", or \"0s\" to try once";
const RETENTION: &str = "a list of rules, as in [\"24 in last day\", \"1/day in last month\"]";
/// A director that looks every minute would skip slots at random below the first.
const CATCH_UP_BOUNDS: [&str; 2] = ["1m", "366days"];
/// A pass waits for orders that are tried again.
const RETRY_FOR_BOUNDS: [&str; 2] = ["0s", "1h"];

/// Reads the text of a `server.json`; `file` is its name in messages.
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
    let datasets =
        object.require("datasets", "the list of datasets with their policies, as in \"datasets\": [ { ... } ]");
    let datasets = datasets.and_then(|node| node.list("a list of objects, one per dataset"));
    let datasets: Vec<Option<DatasetPolicy>> = {
        let mut entries = Vec::new();
        let datasets = datasets.unwrap_or_default().iter().map(|node| dataset(node, &mut entries)).collect();
        check::across(&entries);
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
        tls: tls?,
        hosts: hosts?,
        consul_resync,
        // One that is missing here was reported, so that the policy is refused as a whole.
        datasets: datasets.into_iter().flatten().collect(),
    })
}

/// Editors look at `$schema`; zsync does not.
pub(super) fn skip_schema(object: &mut Object<'_>) {
    if let Some(schema) = object.get_unlisted("$schema") {
        schema.text("the address of a JSON schema");
    }
}

fn label(node: &Node<'_>) -> Option<String> {
    let text = node.text("a name")?;
    if text.is_empty() || text.len() > 100 || text.chars().any(char::is_control) {
        node.wrong("a name of 1 to 100 characters");
        return None;
    }
    Some(text.into_owned())
}

/// The name of a time zone.
pub(super) fn timezone(node: &Node<'_>) -> Option<Zone> {
    let text = node.text("the IANA name of a time zone, as in \"Europe/Paris\"")?;
    if let Ok(zone) = Zone::from_str(&text) {
        return Some(zone);
    }
    let near = near_zones(&text);
    let suggestion = if near.is_empty() {
        "an IANA name is expected, as in \"Europe/Paris\" or \"UTC\"".to_owned()
    } else {
        format!("did you mean {}?", near.join(" or "))
    };
    node.problem(format!("found {}, which is not a time zone; {suggestion}", node.found()));
    None
}

/// Up to three zones whose name, or whose city, is a slip of the keyboard away.
fn near_zones(text: &str) -> Vec<String> {
    let city = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
    let mut near: Vec<(usize, &'static str)> = Zone::names()
        .filter_map(|name| {
            // A wrong continent is a smaller slip than a wrong city.
            let by_city = slips(&city(text), &city(name)).map(|distance| 2 * distance + 1);
            slips(text, name)
                .map(|distance| 2 * distance)
                .into_iter()
                .chain(by_city)
                .min()
                .map(|distance| (distance, name))
        })
        .collect();
    near.sort_unstable();
    let best = near.first().map_or(0, |(distance, _)| *distance);
    near.iter().take_while(|(distance, _)| *distance <= best + 1).take(3).map(|(_, name)| format!("{name:?}")).collect()
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
            consul.problem("there is \"embedded\", too; a catalog is in one place");
        }
        return crate::config::consul::consul(&consul, false).map(|consul| CatalogConfig::Consul(Box::new(consul)));
    }
    let Some(embedded) = embedded else { return Some(default_catalog()) };
    let mut object = embedded.object(AN_OBJECT)?;
    let path = object.get("path").map_or_else(
        || Some(PathBuf::from(DEFAULT_CATALOG)),
        |node| absolute_path(&node, "the path of a folder, from the root, as in \"/var/lib/zsync/catalog\""),
    );
    object.finish();
    Some(CatalogConfig::Embedded { path: path? })
}

/// A path that means the same wherever the process was started.
pub(super) fn absolute_path(node: &Node<'_>, allowed: &str) -> Option<PathBuf> {
    let text = node.text(allowed)?;
    if !text.starts_with('/') || text.contains('\0') {
        node.wrong(allowed);
        return None;
    }
    Some(PathBuf::from(text.as_ref()))
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
        let mut read = |key| object.get(key).and_then(|node| dialled(&node));
        let (address, receive_address) = (read("address"), read("receive_address"));
        object.finish();
        let host = HostAddress {
            // Who says where the agent is, says where the host is: the slave is there too.
            receive_address: receive_address
                .map(|slave| slave.with_default_port(SLAVE_PORT))
                .or_else(|| address.as_ref().map(|agent| format!("{}:{SLAVE_PORT}", agent.host()))),
            address: address.map(|agent| agent.with_default_port(AGENT_PORT)),
        };
        if let Ok(name) = name {
            hosts.insert(name, host);
        }
    }
    Some(hosts)
}

fn dialled(node: &Node<'_>) -> Option<Address> {
    let address: Address = node.parse("an address, as in \"10.0.0.2:7711\"")?;
    if address.port() == Some(0) {
        node.problem(format!("found {}; port 0 cannot be dialled, allowed are 1 to 65535", node.found()));
        return None;
    }
    Some(address)
}

/// Two times of a day.
pub(super) fn hours(node: &Node<'_>) -> Option<(NaiveTime, NaiveTime)> {
    let allowed = "a list of two times [from, to], as in [\"19:00\", \"19:10\"]";
    let items = node.list(allowed)?;
    let [from, to] = items.as_slice() else {
        node.problem(format!("found a list of {}; allowed is {allowed}", items.len()));
        return None;
    };
    let (from, to) = (time_of_day(from), time_of_day(to));
    let window = (from?, to?);
    if window.0 == window.1 {
        node.problem("the window begins and ends at the same time; it has to have a length");
        return None;
    }
    Some(window)
}

fn time_of_day(node: &Node<'_>) -> Option<NaiveTime> {
    let allowed = "a time \"HH:MM\" from \"00:00\" to \"23:59\"";
    let text = node.text(allowed)?;
    let time = NaiveTime::parse_from_str(&text, "%H:%M").ok().filter(|_| text.len() == 5);
    if time.is_none() {
        node.wrong(allowed);
    }
    time
}

fn dataset<'d>(node: &Node<'d>, entries: &mut Vec<Entry<'d>>) -> Option<DatasetPolicy> {
    let mut object = node.object("an object with \"hostname\", \"dataset\" and policies")?;
    let hostname = object
        .require("hostname", "the name of the host that has the dataset")
        .and_then(|node| node.parse("a host name"));
    let dataset =
        object.require("dataset", "the dataset, as in \"tank/foo\"").and_then(|node| node.parse("a dataset name"));
    let recursive = object.boolean("recursive", false);
    let mut nodes: Vec<(String, Node<'d>)> = Vec::new();
    for key in ["backup", "sync"] {
        nodes.extend(object.get(key).map(|node| (key.to_owned(), node)));
    }
    if let Some(named) = object.get("policies") {
        named_policies(&named, &mut nodes);
    }
    let excluded = object.get("exclude");
    let exclude = excluded.as_ref().map(exclude).unwrap_or_default();
    if let Some(node) = excluded.filter(|_| !recursive) {
        node.problem("only what is below a dataset can be excluded; set \"recursive\": true, or leave \"exclude\" out");
    }
    let rollback_if_needed = either(&mut object, "rollback_if_needed", "rollback_needed", false);
    let may_destroy = object.get("rollback_may_destroy");
    let rollback_may_destroy = may_destroy.as_ref().and_then(Node::boolean).unwrap_or(false);
    if let Some(node) = may_destroy.filter(|_| rollback_may_destroy && !rollback_if_needed) {
        node.problem("it means nothing without \"rollback_if_needed\": true");
    }
    let on_divergence = object.get("on_divergence").and_then(|node| on_divergence(&node)).unwrap_or_default();
    let skip_if_renamed = either(&mut object, "skip_if_renamed", "skip_renamed", true);
    let skip_if_not_written = either(&mut object, "skip_if_not_written", "skip_not_written", true);
    let skip_if_cloned = either(&mut object, "skip_if_cloned", "skip_cloned", true);
    let has_policies = ["backup", "sync", "policies"].iter().any(|key| object.has(key));
    object.finish();
    if nodes.is_empty() && !has_policies {
        node.problem("the entry has no policy; it needs \"backup\", \"sync\" or \"policies\": { NAME: { ... } }");
    }

    let mut entry = Entry { node: node.clone(), hostname, dataset, policies: Vec::new() };
    let policies: Vec<_> = nodes.iter().map(|(name, node)| snapshot_policy(name, node, &mut entry)).collect();
    check::within(&entry);
    let (hostname, dataset) = (entry.hostname.clone(), entry.dataset.clone());
    entries.push(entry);
    Some(DatasetPolicy {
        hostname: hostname?,
        dataset: dataset?,
        recursive,
        exclude,
        policies: policies.into_iter().flatten().collect(),
        rollback_if_needed,
        rollback_may_destroy,
        on_divergence,
        skip_if_renamed,
        skip_if_not_written,
        skip_if_cloned,
    })
}

/// Patterns of names below the entry's dataset.
fn exclude(node: &Node<'_>) -> Exclude {
    let allowed = "a list of patterns of names below the dataset, as in [\"tmp\", \"*/cache\"]";
    let items = node.list(allowed).unwrap_or_default();
    let read = |item: &Node<'_>| {
        let text = item.text("the pattern of a name below the dataset, as in \"tmp\"")?;
        let strange = text.is_empty() || text.starts_with('/') || text.ends_with('/') || text.contains('@');
        if strange {
            item.problem(format!(
                "{} is not the name of something below the dataset, as in \"tmp\" or \"a/b\"",
                item.raw()
            ));
            return None;
        }
        Pattern::new(&text).map_err(|error| item.problem(format!("{text:?} is not a pattern: {error}"))).ok()
    };
    Exclude::new(items.iter().filter_map(read).collect())
}

fn on_divergence(node: &Node<'_>) -> Option<OnDivergence> {
    let allowed = "\"stop\" or \"set_aside\"";
    match node.text(allowed)?.as_ref() {
        "stop" => Some(OnDivergence::Stop),
        "set_aside" => Some(OnDivergence::SetAside),
        _ => {
            node.wrong(allowed);
            None
        }
    }
}

fn named_policies<'d>(node: &Node<'d>, nodes: &mut Vec<(String, Node<'d>)>) {
    let Some(object) = node.object("an object with a policy per name, as in { \"hourly\": { ... } }") else { return };
    let members = object.into_members();
    if members.is_empty() {
        node.problem("no policy is in here; it needs one, as in { \"hourly\": { \"prefix\": \"HOURLY\", ... } }");
    }
    for member in members {
        if member.name.is_empty() || member.name.len() > 100 || member.name.chars().any(char::is_control) {
            member.problem_with_key("a policy's name has 1 to 100 characters");
        }
        if let Some((_, other)) = nodes.iter().find(|(name, _)| *name == member.name) {
            member.problem_with_key(format!("the entry has a policy of this name on line {} already", other.line()));
        }
        nodes.push((member.name.into_owned(), member.node));
    }
}

/// A boolean that has an older spelling.
fn either(object: &mut Object<'_>, key: &'static str, older: &str, default: bool) -> bool {
    let (node, old) = (object.get(key), object.get_unlisted(older));
    if let (Some(node), Some(old)) = (&node, &old) {
        old.problem(format!(
            "this is the older spelling of {key:?}, which is on line {} too; leave one out",
            node.line()
        ));
    }
    node.or(old).and_then(|node| node.boolean()).unwrap_or(default)
}

fn snapshot_policy<'d>(name: &str, node: &Node<'d>, entry: &mut Entry<'d>) -> Option<SnapshotPolicy> {
    let mut object = node.object("an object with \"prefix\" and what to do")?;
    let prefix = object.require("prefix", "what the snapshots' names begin with, as in \"BACKUP\"");
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
    let sync_retention = object.get("sync_retention").map(|node| crate::config::server::retention(&node));
    let prune_unsent = object.boolean("prune_unsent", false);
    let check = object.get("check").map_or_else(Thresholds::default, |node| thresholds::read(&node));
    check_sense(&object);
    object.finish();

    let common = sync_dataset.as_ref().map(|(dataset, _)| dataset);
    let targets: Vec<Place> =
        sync_on.iter().flatten().filter_map(|(receiver, place)| receiver.target(common, place)).collect();
    let place = sync_dataset.map_or_else(|| node.clone(), |(_, node)| node);
    let claim = prefix.clone().map(|(prefix, node)| Prefixed { prefix, node });
    entry.policies.push(check::Claims { name: name.to_owned(), prefix: claim, targets: targets.clone(), place });

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
        check,
    })
}

/// Reports keys that mean nothing without another one: most likely that one was forgotten.
fn check_sense(object: &Object<'_>) {
    let has = |key| object.has(key);
    let node = object.node();
    if !has("creation") && !has("sync_on") && !has("sync_dataset") && !has("retention") {
        node.problem("the policy does nothing; it needs \"creation\", \"sync_on\" or \"retention\"");
    }
    if has("sync_on") {
        return;
    }
    if has("sync_dataset") {
        object.missing("sync_on", "the host, or the list of hosts, that has the \"sync_dataset\"");
    }
    for key in ["sync_policy", "sync_retention"] {
        if has(key) && !has("sync_dataset") {
            node.problem(format!("{key:?} means nothing without \"sync_on\""));
        }
    }
}

fn sync_policy(node: &Node<'_>) -> Option<SyncPolicy> {
    let text = node.text("\"asap\" or a cron schedule, as in \"0 1 * * *\"")?;
    text.parse().map_err(|error| node.problem(format!("{error}; or write \"asap\""))).ok()
}

/// A receiving host, with a dataset of its own or with that of `sync_dataset`.
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
    fn target(&self, common: Option<&DatasetName>, place: &Node<'_>) -> Option<Place> {
        let dataset = self.dataset.as_ref().or(common);
        if dataset.is_none() {
            let host = &self.host;
            place.problem(format!(
                "it is not said which dataset of {host} receives; add \"sync_dataset\", or write \"{host}:DATASET\""
            ));
        }
        Some(Place { host: self.host.clone(), dataset: dataset?.clone() })
    }
}

/// One receiver or several, each with its place.
fn receivers<'d>(node: &Node<'d>) -> Option<Vec<(Receiver, Node<'d>)>> {
    let allowed = "a host name, HOST:DATASET, or a list of those";
    if !node.is_list() {
        return node.parse(allowed).map(|receiver| vec![(receiver, node.clone())]);
    }
    let items = node.list(allowed)?;
    if items.is_empty() {
        node.problem("the list is empty; name a host, or leave \"sync_on\" and \"sync_dataset\" out");
        return None;
    }
    let mut seen = BTreeSet::new();
    let mut receivers = Vec::new();
    for item in items {
        let Some(receiver) = item.parse::<Receiver>("a host name or HOST:DATASET") else { continue };
        if !seen.insert((receiver.host.clone(), receiver.dataset.clone())) {
            item.problem(format!("{} stands in the list twice", item.raw()));
        }
        receivers.push((receiver, item));
    }
    Some(receivers)
}

fn retention(node: &Node<'_>) -> Option<Retention> {
    let items = node.list(RETENTION)?;
    if items.is_empty() {
        node.problem(
            "the list is empty; name a rule, as in \"24 in last day\", or leave the key out to keep everything",
        );
        return None;
    }
    let texts: Vec<_> = items.iter().map(|item| item.text("a rule, as in \"24 in last day\"")).collect();
    // The wrong ones are reported already; the right ones are looked at nevertheless.
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
