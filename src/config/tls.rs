//! The block `tls`, which `server.json` and `local.json` have alike.

use std::path::PathBuf;

use crate::config::json::Node;
use crate::config::server::absolute_path;
use crate::model::TlsFiles;

/// Reads it; what is left out is where `zsync tls issue` has it put.
pub(super) fn tls(node: &Node<'_>) -> Option<TlsFiles> {
    let mut object = node.object(
        "an object, as in { \"ca\": \"/etc/zsync/tls/ca.crt\", \"certificate\": \"/etc/zsync/tls/host.crt\", \"key\": \"/etc/zsync/tls/host.key\" }",
    )?;
    let allowed = "the path of a file, from the root, as in \"/etc/zsync/tls/host.crt\"";
    let mut path = |key, default: PathBuf| match object.get(key) {
        Some(node) => absolute_path(&node, allowed),
        None => Some(default),
    };
    let default = TlsFiles::default();
    let (ca, certificate, key) =
        (path("ca", default.ca), path("certificate", default.certificate), path("key", default.key));
    object.finish();
    Some(TlsFiles { ca: ca?, certificate: certificate?, key: key? })
}
