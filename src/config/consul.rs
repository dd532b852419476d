//! `consul` of `server.json` and `local.json`.

use std::path::PathBuf;

use crate::config::json::Node;
use crate::policy::Address;
use crate::policy::{ConsulConfig, Secret};

const ADDRESS: &str = "\"host:port\", \"http(s)://host:port\" or \"unix:///path\"";

/// Reads the object; `local`: that of a host which others have to reach.
pub(super) fn consul(node: &Node<'_>, local: bool) -> Option<ConsulConfig> {
    let mut object = node.object("an object, as in {} or { \"address\": \"127.0.0.1:8500\" }")?;
    let address = object.get("address").and_then(|node| {
        let text = node.text(ADDRESS)?;
        if text.is_empty() || text.chars().any(|c| c.is_control() || c == ' ') {
            node.wrong(ADDRESS);
            return None;
        }
        Some(text.into_owned())
    });
    let token = object.get("token").and_then(|node| {
        let text = node.text("a token of Consul's access control lists")?;
        // What is wrong with it is said without it.
        if text.is_empty() || !text.chars().all(|c| c.is_ascii_graphic()) {
            node.problem("the token is empty, or has characters that no token has");
            return None;
        }
        Some(Secret::new(text))
    });
    let mut path = |key| object.get(key).and_then(|node: Node<'_>| absolute(&node));
    let (token_file, ca_file) = (path("token_file"), path("ca_file"));
    let (cert_file, key_file) = (path("cert_file"), path("key_file"));
    if token.is_some() && token_file.is_some() {
        node.problem("there are \"token\" and \"token_file\"; leave one out");
    }
    if cert_file.is_some() != key_file.is_some() {
        node.problem("\"cert_file\" and \"key_file\" go together; one of them is missing");
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

fn absolute(node: &Node<'_>) -> Option<PathBuf> {
    let allowed = "the path of a file, from the root, as in \"/etc/zsync/consul.token\"";
    let text = node.text(allowed)?;
    if !text.starts_with('/') || text.contains('\0') {
        node.wrong(allowed);
        return None;
    }
    Some(PathBuf::from(text.as_ref()))
}

fn is_plain(text: &str) -> bool {
    !matches!(text, "" | "." | "..") && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn label(node: &Node<'_>) -> Option<String> {
    let allowed = "a name of 1 to 100 letters, digits, - _ .";
    let text = node.text(allowed)?;
    if text.len() > 100 || !is_plain(&text) {
        node.wrong(allowed);
        return None;
    }
    Some(text.into_owned())
}

fn prefix(node: &Node<'_>) -> Option<String> {
    let allowed = "what keys begin with, as in \"zsync\" or \"backup/zsync\"";
    let text = node.text(allowed)?;
    if text.len() > 100 || !text.split('/').all(is_plain) {
        node.wrong(allowed);
        return None;
    }
    Some(text.into_owned())
}
