//! Combines the configuration of Consul with the environment variables that Consul's own tools use.
//!
//! An environment variable takes precedence over the configuration.

use std::path::{Path, PathBuf};

use surf::Url;

use crate::consul::error::ConsulError;
use crate::policy::{ConsulConfig, Secret};

/// Consul's default address.
const DEFAULT_ADDRESS: &str = "127.0.0.1:8500";

/// The prefix of all keys, unless another one is configured.
const DEFAULT_PREFIX: &str = "zsync";

/// What to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// `host:port`.
    Tcp(String),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// Everything needed to connect to a Consul.
#[derive(Clone, Debug)]
pub struct ConsulSettings {
    /// The address as configured, without user and password, for messages.
    pub(super) display_address: String,
    /// What to connect to.
    pub(super) target: Target,
    /// The URL that paths are appended to. Ends with a slash.
    pub(super) base: Url,
    pub(super) token: Option<Secret>,
    pub(super) ca_file: Option<PathBuf>,
    /// The files of the client certificate and its key.
    pub(super) identity: Option<(PathBuf, PathBuf)>,
    /// The name that the server's certificate must have; `None` without TLS.
    pub(super) tls_name: Option<String>,
    pub(super) datacenter: Option<String>,
    /// The prefix of all keys.
    pub prefix: String,
}

fn setup<T>(message: impl Into<String>) -> Result<T, ConsulError> {
    Err(ConsulError::Setup(message.into()))
}

impl ConsulSettings {
    /// Combines `config` with the environment of the process.
    pub fn new(config: &ConsulConfig) -> Result<Self, ConsulError> {
        Self::with_environment(config, |name| std::env::var(name).ok())
    }

    /// Like [`Self::new`], with an environment that the caller provides.
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
                "CONSUL_HTTP_SSL_VERIFY=false is set, but zsync always verifies Consul's certificate; hint: unset it, and set \
                 CONSUL_CACERT to the CA's certificate",
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
                    return setup("the client certificate has no key; hint: set key_file or CONSUL_CLIENT_KEY");
                }
                (None, Some(_)) => {
                    return setup("the client key has no certificate; hint: set cert_file or CONSUL_CLIENT_CERT");
                }
            };
        Ok(Self {
            display_address: without_credentials(&address),
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

/// Removes user and password from an address.
fn without_credentials(address: &str) -> String {
    match (address.find("://"), address.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}{}", &address[..scheme + 3], &address[at + 1..]),
        _ => address.to_owned(),
    }
}

/// Parses an address: what to connect to, the base URL, and whether to use TLS.
fn endpoint(address: &str, ssl: bool) -> Result<(Target, Url, bool), ConsulError> {
    let invalid = |reason: &str| {
        let text = without_credentials(address);
        setup(format!(
            "{text:?} is not a valid address: {reason}; hint: set consul.address or CONSUL_HTTP_ADDR to host:port, \
             http(s)://host:port or unix:///path"
        ))
    };
    let parsed = |text: &str| Url::parse(text).map_err(|error| error.to_string());
    if let Some(path) = address.strip_prefix("unix://") {
        if !path.starts_with('/') {
            return invalid("the path of a socket must begin with /");
        }
        let Ok(base) = parsed("http://localhost/") else { return invalid("not a URL") };
        return Ok((Target::Unix(Path::new(path).to_owned()), base, false));
    }
    let text = if address.contains("://") {
        address.to_owned()
    } else {
        format!("{}://{address}", if ssl { "https" } else { "http" })
    };
    let mut base = match parsed(&text) {
        Ok(url) => url,
        Err(reason) => return invalid(&reason),
    };
    let tls = match base.scheme() {
        "https" => true,
        "http" => ssl,
        other => return invalid(&format!("the scheme {other} is not http or https")),
    };
    if !base.username().is_empty() || base.password().is_some() {
        return invalid("it must not have a user or a password");
    }
    if base.query().is_some() || base.fragment().is_some() {
        return invalid("it must not have a query or a fragment");
    }
    let Some(host) = base.host_str().map(str::to_owned) else { return invalid("it has no host") };
    // An address without scheme and port means Consul's port; a URL without a port means the port of its scheme.
    let port = match base.port_or_known_default() {
        _ if !address.contains("://") && base.port().is_none() => 8500,
        Some(port) => port,
        None => return invalid("it has no port"),
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
        Err(error) => setup(format!("cannot read the token in {}: {error}", path.display())),
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
        return setup(
            "the token contains blanks, control characters or other characters that are not allowed in a token",
        );
    }
    Ok(Some(Secret::new(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(address: &str, environment: &[(&str, &str)]) -> Result<ConsulSettings, String> {
        let config = ConsulConfig { address: Some(address.to_owned()), ..ConsulConfig::default() };
        let environment: Vec<(String, String)> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let find = move |name: &str| environment.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
        ConsulSettings::with_environment(&config, find).map_err(|error| error.to_string())
    }

    #[test]
    fn addresses_mean_the_same_as_for_consuls_tools() {
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
    fn unusable_settings_are_refused_without_secrets() {
        for (address, environment, part) in [
            ("ftp://consul:1", &[][..], "the scheme ftp is not"),
            ("http://user:b1gs3cr3t@consul:1", &[], "a user or a password"),
            ("unix://relative", &[], "must begin with /"),
            ("http://", &[], "is not a valid address"),
            ("a:1", &[("CONSUL_HTTP_TOKEN", "b1gs3cr3t\r\nX-Evil: 1")], "not allowed in a token"),
            ("a:1", &[("CONSUL_HTTP_TOKEN_FILE", "/does/not/exist")], "cannot read the token in /does/not/exist"),
            ("a:1", &[("CONSUL_CLIENT_CERT", "/x")], "CONSUL_CLIENT_KEY"),
            ("a:1", &[("CONSUL_HTTP_SSL_VERIFY", "false")], "CONSUL_CACERT"),
        ] {
            let message = settings(address, environment).unwrap_err();
            assert!(message.contains(part) && !message.contains("b1gs3cr3t"), "{message}");
        }
    }

    #[test]
    fn token_of_environment_precedes_configuration_and_file() {
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
            let settings = ConsulSettings::with_environment(&config(token), variable).unwrap();
            settings.token.unwrap().reveal().to_owned()
        };
        assert_eq!(found(None, ""), "from-file");
        assert_eq!(found(Some("written"), ""), "written");
        assert_eq!(found(Some("written"), "of-the-environment"), "of-the-environment");
    }
}
