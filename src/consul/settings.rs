//! From what is configured, and the variables that Consul's own tools know, to what is dialled.

use std::path::{Path, PathBuf};

use surf::Url;

use crate::consul::error::ConsulError;
use crate::policy::{ConsulConfig, Secret};

/// Where Consul listens, by its own default.
const DEFAULT_ADDRESS: &str = "127.0.0.1:8500";

/// What all keys begin with, unless it is configured.
const DEFAULT_PREFIX: &str = "zsync";

/// Where a stream goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// `host:port`.
    Tcp(String),
    /// A socket in the filesystem.
    Unix(PathBuf),
}

/// All that is needed to reach a Consul.
#[derive(Clone, Debug)]
pub struct Settings {
    /// As people know it, for messages.
    pub(super) shown: String,
    /// Where the stream goes.
    pub(super) target: Target,
    /// What paths are appended to; ends with a slash.
    pub(super) base: Url,
    pub(super) token: Option<Secret>,
    pub(super) ca_file: Option<PathBuf>,
    /// Certificate and key.
    pub(super) identity: Option<(PathBuf, PathBuf)>,
    /// The name that the server's certificate is to have; `None` without TLS.
    pub(super) tls_name: Option<String>,
    pub(super) datacenter: Option<String>,
    /// What all keys begin with.
    pub prefix: String,
}

fn setup<T>(message: impl Into<String>) -> Result<T, ConsulError> {
    Err(ConsulError::Setup(message.into()))
}

impl Settings {
    /// What `config` and the process' environment say.
    pub fn new(config: &ConsulConfig) -> Result<Self, ConsulError> {
        Self::with_environment(config, |name| std::env::var(name).ok())
    }

    /// The same with an environment of the caller's.
    pub fn with_environment(
        config: &ConsulConfig,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConsulError> {
        let variable = |name: &str| environment(name).filter(|value| !value.is_empty());
        let path =
            |name, configured: &Option<PathBuf>| variable(name).map(PathBuf::from).or_else(|| configured.clone());
        let address = variable("CONSUL_HTTP_ADDR").or_else(|| config.address.clone());
        let address = address.unwrap_or_else(|| DEFAULT_ADDRESS.to_owned());
        let ssl = variable("CONSUL_HTTP_SSL")
            .is_some_and(|v| matches!(v.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"));
        if variable("CONSUL_HTTP_SSL_VERIFY")
            .is_some_and(|v| matches!(v.as_str(), "0" | "f" | "F" | "false" | "FALSE" | "False"))
        {
            return setup(
                "CONSUL_HTTP_SSL_VERIFY=false asks not to check Consul's certificate, which zsync always does; unset it, \
                 and name the CA with CONSUL_CACERT",
            );
        }
        let (target, base, tls) = endpoint(&address, ssl)?;
        let server_name = variable("CONSUL_TLS_SERVER_NAME").or_else(|| config.tls_server_name.clone());
        let tls_name = tls.then(|| server_name.or_else(|| base.host_str().map(str::to_owned))).flatten();
        let token = token(config, &variable)?;
        let identity =
            match (path("CONSUL_CLIENT_CERT", &config.cert_file), path("CONSUL_CLIENT_KEY", &config.key_file)) {
                (Some(cert), Some(key)) => Some((cert, key)),
                (None, None) => None,
                (Some(_), None) => {
                    return setup("there is a client certificate without a key: set key_file, or CONSUL_CLIENT_KEY");
                }
                (None, Some(_)) => {
                    return setup("there is a client key without a certificate: set cert_file, or CONSUL_CLIENT_CERT");
                }
            };
        Ok(Self {
            shown: shown(&address),
            target,
            base,
            token,
            ca_file: path("CONSUL_CACERT", &config.ca_file),
            identity,
            tls_name,
            datacenter: config.datacenter.clone(),
            prefix: config.prefix.clone().unwrap_or_else(|| DEFAULT_PREFIX.to_owned()),
        })
    }
}

/// An address without user and password.
fn shown(address: &str) -> String {
    match (address.find("://"), address.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}{}", &address[..scheme + 3], &address[at + 1..]),
        _ => address.to_owned(),
    }
}

fn endpoint(address: &str, ssl: bool) -> Result<(Target, Url, bool), ConsulError> {
    let wrong = |reason: &str| {
        let text = shown(address);
        setup(format!(
            "{text:?} is not an address: {reason}; write host:port, http(s)://host:port or unix:///path (consul.address, \
             or CONSUL_HTTP_ADDR)"
        ))
    };
    let parsed = |text: &str| Url::parse(text).map_err(|error| error.to_string());
    if let Some(path) = address.strip_prefix("unix://") {
        if !path.starts_with('/') {
            return wrong("the path of a socket begins with /");
        }
        let Ok(base) = parsed("http://localhost/") else { return wrong("no URL") };
        return Ok((Target::Unix(Path::new(path).to_owned()), base, false));
    }
    let text = if address.contains("://") {
        address.to_owned()
    } else {
        format!("{}://{address}", if ssl { "https" } else { "http" })
    };
    let mut base = match parsed(&text) {
        Ok(url) => url,
        Err(reason) => return wrong(&reason),
    };
    let tls = match base.scheme() {
        "https" => true,
        "http" => ssl,
        other => return wrong(&format!("{other} is no scheme of Consul")),
    };
    if !base.username().is_empty() || base.password().is_some() {
        return wrong("user and password are not for here");
    }
    if base.query().is_some() || base.fragment().is_some() {
        return wrong("it has a ? or #");
    }
    let Some(host) = base.host_str().map(str::to_owned) else { return wrong("it has no host") };
    // 8500 and 8501 are Consul's ports; a URL without one means the scheme's.
    let port = match base.port_or_known_default() {
        _ if !address.contains("://") && base.port().is_none() => 8500,
        Some(port) => port,
        None => return wrong("it has no port"),
    };
    if !base.path().ends_with('/') {
        let path = format!("{}/", base.path());
        base.set_path(&path);
    }
    Ok((Target::Tcp(format!("{host}:{port}")), base, tls))
}

fn token(config: &ConsulConfig, variable: &impl Fn(&str) -> Option<String>) -> Result<Option<Secret>, ConsulError> {
    let file = |path: &Path| match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) => setup(format!("the token's file {} cannot be read: {error}", path.display())),
    };
    let text =
        match (variable("CONSUL_HTTP_TOKEN"), variable("CONSUL_HTTP_TOKEN_FILE"), &config.token, &config.token_file) {
            (Some(token), ..) => token,
            (None, Some(path), ..) => file(Path::new(&path))?,
            (None, None, Some(token), _) => token.reveal().to_owned(),
            (None, None, None, Some(path)) => file(path)?,
            (None, None, None, None) => return Ok(None),
        };
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    if !text.chars().all(|c| c.is_ascii_graphic()) {
        return setup("the token has blanks, control or other characters that no token has");
    }
    Ok(Some(Secret::new(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(address: &str, environment: &[(&str, &str)]) -> Result<Settings, String> {
        let config = ConsulConfig { address: Some(address.to_owned()), ..ConsulConfig::default() };
        let environment: Vec<(String, String)> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let find = move |name: &str| environment.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
        Settings::with_environment(&config, find).map_err(|error| error.to_string())
    }

    #[test]
    fn addresses_are_read_as_consuls_tools_read_them() {
        for (address, environment, target, base, tls) in [
            ("127.0.0.1:8500", &[][..], "127.0.0.1:8500", "http://127.0.0.1:8500/", None),
            ("consul", &[], "consul:8500", "http://consul/", None),
            ("[::1]:9", &[], "[::1]:9", "http://[::1]:9/", None),
            (
                "https://consul.example:8501/base",
                &[],
                "consul.example:8501",
                "https://consul.example:8501/base/",
                Some("consul.example"),
            ),
            ("https://consul.example", &[], "consul.example:443", "https://consul.example/", Some("consul.example")),
            ("a:1", &[("CONSUL_HTTP_ADDR", "b:2")], "b:2", "http://b:2/", None),
            (
                "a:1",
                &[("CONSUL_HTTP_SSL", "true"), ("CONSUL_TLS_SERVER_NAME", "server.dc1.consul")],
                "a:1",
                "https://a:1/",
                Some("server.dc1.consul"),
            ),
            ("a:1", &[("CONSUL_HTTP_ADDR", "")], "a:1", "http://a:1/", None),
        ] {
            let found = settings(address, environment).unwrap();
            assert_eq!(found.target, Target::Tcp(target.to_owned()), "{address}");
            assert_eq!((found.base.as_str(), found.tls_name.as_deref()), (base, tls), "{address}");
        }
        let unix = settings("unix:///run/consul.sock", &[]).unwrap();
        assert_eq!(unix.target, Target::Unix("/run/consul.sock".into()));
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_the_way_out_and_without_secrets() {
        for (address, environment, part) in [
            ("ftp://consul:1", &[][..], "ftp is no scheme"),
            ("http://user:b1gs3cr3t@consul:1", &[], "user and password"),
            ("unix://relative", &[], "begins with /"),
            ("http://", &[], "is not an address"),
            ("a:1", &[("CONSUL_HTTP_TOKEN", "b1gs3cr3t\r\nX-Evil: 1")], "no token has"),
            ("a:1", &[("CONSUL_HTTP_TOKEN_FILE", "/does/not/exist")], "/does/not/exist cannot be read"),
            ("a:1", &[("CONSUL_CLIENT_CERT", "/x")], "CONSUL_CLIENT_KEY"),
            ("a:1", &[("CONSUL_HTTP_SSL_VERIFY", "false")], "CONSUL_CACERT"),
        ] {
            let said = settings(address, environment).unwrap_err();
            assert!(said.contains(part) && !said.contains("b1gs3cr3t"), "{said}");
        }
    }

    #[test]
    fn a_token_comes_from_the_nearest_place_and_is_trimmed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "from-file\n").unwrap();
        let config = |token: Option<&str>| ConsulConfig {
            token: token.map(Secret::new),
            token_file: Some(path.clone()),
            ..ConsulConfig::default()
        };
        let found = |token, environment: &'static str| {
            let variable = move |name: &str| (name == "CONSUL_HTTP_TOKEN").then(|| environment.to_owned());
            let settings = Settings::with_environment(&config(token), variable).unwrap();
            settings.token.unwrap().reveal().to_owned()
        };
        assert_eq!(found(None, ""), "from-file");
        assert_eq!(found(Some("written"), ""), "written");
        assert_eq!(found(Some("written"), "of-the-environment"), "of-the-environment");
    }
}
