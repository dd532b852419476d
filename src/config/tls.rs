//! The key `tls` of `server.json` and `local.json`.

use std::path::PathBuf;

use crate::config::json::Node;
use crate::config::values::absolute_path;
use crate::model::TlsFiles;

/// Reads the value. The default of each file is the path that `zsync tls issue` uses.
pub(super) fn tls(node: &Node<'_>) -> Option<TlsFiles> {
    let mut object = node.object(
        "an object, as in { \"ca\": \"/etc/zsync/tls/ca.crt\", \"certificate\": \"/etc/zsync/tls/host.crt\", \"key\": \"/etc/zsync/tls/host.key\" }",
    )?;
    let mut path = |key, default: PathBuf| match object.get(key) {
        Some(node) => absolute_path(&node, "the absolute path of a file, as in \"/etc/zsync/tls/host.crt\""),
        None => Some(default),
    };
    let default = TlsFiles::default();
    let (ca, certificate, key) =
        (path("ca", default.ca), path("certificate", default.certificate), path("key", default.key));
    let crl = match object.get("crl") {
        Some(node) => absolute_path(&node, "the absolute path of a file, as in \"/etc/zsync/tls/ca.crl\"").map(Some),
        None => Some(None),
    };
    object.finish();
    Some(TlsFiles { ca: ca?, certificate: certificate?, key: key?, crl: crl? })
}
