//! Writes certificates into files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use zsync::commands::tls::Minted;
use zsync::model::TlsFiles;

/// Writes a host's certificate and key, and the certificate of its CA, into a folder, which is created.
pub fn write_pem(folder: &Path, ca: &Minted, host: &Minted) -> TlsFiles {
    fs::create_dir_all(folder).unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    TlsFiles {
        ca: file("ca.crt", &ca.certificate),
        certificate: file("host.crt", &host.certificate),
        key: file("host.key", &host.key),
        crl: None,
    }
}
