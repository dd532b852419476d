//! The key `consul` of `local.json`, and `catalog.consul` of `server.json`.

use crate::config::json::Node;
use crate::config::values::absolute_path;
use crate::policy::{Address, ConsulConfig, Secret};

const FILE: &str = "the absolute path of a file, as in \"/etc/zsync/consul.token\"";
const ADDRESS: &str = "\"host:port\", \"http(s)://host:port\" or \"unix:///path\"";

/// Reads the object. `local` is true for `local.json`, in which `advertise` can set the host's address for others.
pub(super) fn consul(node: &Node<'_>, local: bool) -> Option<ConsulConfig> {
    let mut object = node.object("an object, as in {} or { \"address\": \"127.0.0.1:8500\" }")?;
    let address = object.get("address").and_then(|node| {
        let text = node.text(ADDRESS)?;
        if text.is_empty() || text.chars().any(|c| c.is_control() || c == ' ') {
            node.unexpected(ADDRESS);
            return None;
        }
        Some(text.into_owned())
    });
    let token = object.get("token").and_then(|node| {
        let text = node.text("a token of Consul's access control list")?;
        // The message must not contain the token.
        if text.is_empty() || !text.chars().all(|c| c.is_ascii_graphic()) {
            node.problem("the token is empty, or contains characters that are not allowed in a token; hint: copy it from Consul without blanks");
            return None;
        }
        Some(Secret::new(text))
    });
    let mut path = |key| object.get(key).and_then(|node: Node<'_>| absolute_path(&node, FILE));
    let (token_file, ca_file) = (path("token_file"), path("ca_file"));
    let (cert_file, key_file) = (path("cert_file"), path("key_file"));
    if token.is_some() && token_file.is_some() {
        node.problem("\"token\" and \"token_file\" exclude each other; hint: remove one of them");
    }
    if cert_file.is_some() != key_file.is_some() {
        node.problem(
            "\"cert_file\" and \"key_file\" belong together, and one of them is missing; hint: set both or none",
        );
    }
    let mut name = |key| object.get(key).and_then(|node: Node<'_>| label(&node));
    let (tls_server_name, datacenter) = (name("tls_server_name"), name("datacenter"));
    let prefix = object.get("prefix").and_then(|node| prefix(&node));
    let advertise = if local { object.get("advertise") } else { None };
    let advertise = advertise.and_then(|node| node.parse::<Address>("an address, as in \"10.0.0.2\""));
    object.finish();
    Some(ConsulConfig {
        address,
        token,
        token_file,
        ca_file,
        cert_file,
        key_file,
        tls_server_name,
        datacenter,
        prefix,
        advertise: advertise.map(|address| address.to_string()),
    })
}

fn is_plain(text: &str) -> bool {
    !matches!(text, "" | "." | "..") && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn label(node: &Node<'_>) -> Option<String> {
    let expected = "a name of 1 to 100 letters, digits and - _ .";
    let text = node.text(expected)?;
    if text.len() > 100 || !is_plain(&text) {
        node.unexpected(expected);
        return None;
    }
    Some(text.into_owned())
}

fn prefix(node: &Node<'_>) -> Option<String> {
    let expected = "the prefix of keys, as in \"zsync\" or \"backup/zsync\"";
    let text = node.text(expected)?;
    if text.len() > 100 || !text.split('/').all(is_plain) {
        node.unexpected(expected);
        return None;
    }
    Some(text.into_owned())
}
