//! Tests authentication: director, agent and slave over TLS on loopback, each with a certificate that is valid or has
//! one flaw. Each refusal must cause one line in the log, which names the peer, and one clear error at the other end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use common::loopback::listen;
use common::tls::write_pem;
use common::{ds, host, local};
use rcgen::{CertificateParams, DnType, Issuer, KeyPair, SanType};
use zsync::agent::{Agent, CheckedOrder};
use zsync::commands::tls::{Minted, Wanted, make_request, mint, mint_ca, mint_requested, of_file, revoke};
use zsync::config::parse_policy;
use zsync::fleet::{Dispatcher, wire_order};
use zsync::model::{Action, Counter, PeerRole, ResponseStatus, TlsFiles};
use zsync::slave::Slave;
use zsync::sys::runtime;
use zsync::transport::tls::{Tls, certificate};
use zsync::wire::{DirectorsOrder, Response};
use zsync::zfs::Zfs;
use zsync::zfs::fake::Fake;

use PeerRole::{Agent as A, Director as D, Slave as S};

// --- The log, line by line.

struct Log(Mutex<Vec<String>>);
static LOG: Log = Log(Mutex::new(Vec::new()));
/// Tests that read the log take turns.
static TURN: Mutex<()> = Mutex::new(());

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            lines().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

fn lines() -> MutexGuard<'static, Vec<String>> {
    LOG.0.lock().unwrap_or_else(PoisonError::into_inner)
}

fn turn() -> MutexGuard<'static, ()> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    log::set_logger(&LOG).ok();
    log::set_max_level(log::LevelFilter::Warn);
    lines().clear();
    turn
}

/// Waits for the line with these words, which must be the only one about its peer. The log may lag behind the peer.
#[track_caller]
fn logged(words: &str) {
    for _ in 0..5000 {
        let all = lines().clone();
        if let Some(line) = all.iter().find(|line| line.contains(words)) {
            let peer = line.split([' ', ':']).skip_while(|word| *word != "127.0.0.1").nth(1);
            let peer = format!("127.0.0.1:{}", peer.unwrap_or_else(|| panic!("{line} names no peer")));
            let about = all.iter().filter(|line| line.contains(&peer)).count();
            assert_eq!(about, 1, "{all:#?}");
            lines().clear();
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{words:?} is not logged: {:#?}", lines());
}

// --- Certificates.

/// A CA, and a folder for the certificates that it issues.
struct Pki {
    folder: tempfile::TempDir,
    ca: Minted,
}

impl Pki {
    fn new() -> Self {
        let ca = mint_ca("test CA", Utc::now(), 3650).unwrap();
        Self { folder: tempfile::tempdir().unwrap(), ca }
    }

    fn write(&self, name: &str, minted: &Minted) -> TlsFiles {
        write_pem(&self.folder.path().join(name), &self.ca, minted)
    }

    fn issue(&self, name: &str, roles: &[PeerRole]) -> Arc<Tls> {
        Arc::new(Tls::load(&self.write(name, &mint(&self.ca, &wanted(name, roles), Utc::now()).unwrap())).unwrap())
    }

    /// A certificate from another CA, for a host that trusts ours.
    fn foreign(&self, name: &str, roles: &[PeerRole]) -> Arc<Tls> {
        let other = mint_ca("other CA", Utc::now(), 3650).unwrap();
        let minted = mint(&other, &wanted(name, roles), Utc::now()).unwrap();
        Arc::new(Tls::load(&self.write(&format!("foreign-{name}"), &minted)).unwrap())
    }

    /// A certificate without zsync's roles, as a company's CA issues it.
    fn unmarked(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Arc<Tls> {
        let key = KeyPair::from_pem(&self.ca.key).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&self.ca.certificate, key).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "server 4711");
        params.subject_alt_names = names.iter().map(|name| SanType::DnsName((*name).try_into().unwrap())).collect();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let minted = Minted { certificate: params.signed_by(&key, &issuer).unwrap().pem(), key: key.serialize_pem() };
        Arc::new(Tls::load(&self.write(&format!("unmarked-{}", names[0]), &minted)).unwrap())
    }

    fn expired(&self, name: &str) -> Arc<Tls> {
        self.unmarked(&[name], |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1))
    }
}

fn wanted(name: &str, roles: &[PeerRole]) -> Wanted {
    Wanted { host: host(name), also: Vec::new(), roles: roles.iter().copied().collect(), days: 825 }
}

// --- Hosts.

const SOURCE: &str = r#"{ "tls": {}, "directors": ["ruler", "delta"], "local_datasets": [ { "name": "tank" } ] }"#;
const COPIES: &str = r#"{ "tls": {}, "local_datasets": [ { "name": "pool/copy", "slave": true } ] }"#;

/// An agent on alpha, and its pool.
fn agent(with: Option<Arc<Tls>>) -> (String, Fake) {
    let fake = Fake::new(1);
    fake.create(&ds("tank"));
    (listen(Agent::new(host("alpha"), Arc::new(fake.clone()), local(SOURCE)).with_tls(with.clone()), with), fake)
}

/// Sends an agent a director's order to take a snapshot.
fn order(director: Option<Arc<Tls>>, agent: &str) -> Response {
    let here = host("ruler");
    let dispatcher = Dispatcher::<Fake> { here, own: Err(String::new()), tls: director };
    let policy = format!(
        r#"{{ "hosts": {{ "alpha": {{ "address": "{agent}" }} }},
             "datasets": [ {{ "hostname": "alpha", "dataset": "tank", "sync": {{ "prefix": "S", "creation": "@daily" }} }} ] }}"#
    );
    let policy = parse_policy("server.json", &policy).unwrap();
    let order = zsync::actions::Order::Take {
        entry: 0,
        host: host("alpha"),
        datasets: vec![ds("tank")],
        name: "S_1".parse().unwrap(),
        skip_if_not_written: false,
        policy: "sync".into(),
        reason: String::new(),
    };
    let order = wire_order(&order, &policy, &zsync::model::Inventory::default());
    runtime::block_on(dispatcher.ask(&policy, &host("alpha"), &order, Counter::default())).0
}

/// A slave on beta, and its pool.
fn slave(with: Option<Arc<Tls>>, configuration: &str) -> (String, Fake) {
    let fake = Fake::new(2);
    fake.create(&ds("pool"));
    (listen(Slave::new(Arc::new(fake.clone()), local(configuration)), with), fake)
}

/// Sends from an agent that claims to be `name` to a slave.
fn send(name: &str, agent: Option<Arc<Tls>>, slave: &str) -> Response {
    let fake = Fake::new(1);
    fake.create(&ds("tank"));
    fake.write(&ds("tank"), 1000);
    let taken = runtime::block_on(fake.snapshot(&[ds("tank")], &"S_1".parse().unwrap())).unwrap();
    let agent = Agent::new(host(name), Arc::new(fake), local(SOURCE)).with_tls(agent);
    let id = uuid::Uuid::now_v7();
    let order: DirectorsOrder =
        serde_json::from_str(&format!(r#"{{"OrderUUID":"{id}","Action":"{}"}}"#, Action::SendSnapshot)).unwrap();
    let order = DirectorsOrder {
        destination: "beta".into(),
        destination_address: Some(slave.to_owned()),
        snapshot_uuid: vec![taken[0].1.0[0].guid.uuid().to_string()],
        dest_dataset: "pool/copy".into(),
        dataset: Some(ds("tank")),
        ..order
    };
    let (facts, _told) = runtime::channel::unbounded();
    runtime::block_on(agent.carry_out(CheckedOrder::try_from(order).unwrap(), facts, Counter::default()))
}

#[track_caller]
fn refused(response: &Response, words: &str) {
    assert!(!response.is_success, "{response:?}");
    assert!(response.message().contains(words), "{words:?} is not in {response:?}");
    assert!(!response.error.contains('\n') && response.error.len() < 400, "{}", response.error);
}

#[test]
fn hosts_with_valid_certificates_talk() {
    let _turn = turn();
    let pki = Pki::new();
    let (address, alpha) = agent(Some(pki.issue("alpha", &[A])));
    let response = order(Some(pki.issue("ruler", &[D])), &address);
    assert!(response.is_success, "{response:?}");
    assert_eq!(alpha.dataset(&ds("tank")).unwrap().snapshots.len(), 1);
    let (address, beta) = slave(Some(pki.issue("beta", &[S])), COPIES);
    let response = send("alpha", Some(pki.issue("alpha", &[A])), &address);
    assert_eq!((response.is_success, response.status), (true, ResponseStatus::Full), "{response:?}");
    assert_eq!(beta.dataset(&ds("pool/copy")).unwrap().snapshots.len(), 1);
    assert_eq!(*lines(), [""; 0]);
}

#[test]
fn agent_obeys_only_its_directors() {
    let _turn = turn();
    let pki = Pki::new();
    let (address, alpha) = agent(Some(pki.issue("alpha", &[A])));
    // Two peers with certificates of the right CA: one that "directors" does not list, and one whose certificate is not
    // for a director.
    refused(
        &order(Some(pki.issue("omega", &[D])), &address),
        "orders are not taken from omega: \"directors\" in local.json does not list it",
    );
    logged("(omega): orders are not taken from omega");
    refused(
        &order(Some(pki.issue("delta", &[A, S])), &address),
        "the certificate of delta is for agent, slave, not for director",
    );
    logged("(delta): the certificate of delta is for agent, slave");
    // A certificate of another CA, and an expired certificate.
    refused(&order(Some(pki.foreign("ruler", &[D])), &address), "does not know the CA of this host's certificate");
    logged("its certificate was not issued by a CA that is known here");
    refused(&order(Some(pki.expired("ruler")), &address), "says that this host's certificate has expired: ");
    logged("its certificate, that of ruler, expired 2020-01-01T00:00:00Z; hint: renew it with the CA that issued it");
    // A plaintext connection.
    refused(&order(None, &address), "this port accepts only TLS");
    logged("sent plaintext, but this port accepts only TLS");
    assert!(alpha.calls().is_empty(), "{:?}", alpha.calls());
}

#[test]
fn director_refuses_agent_with_other_name() {
    let _turn = turn();
    let pki = Pki::new();
    let ruler = || Some(pki.issue("ruler", &[D]));
    let at = |tls| agent(Some(tls)).0;
    refused(&order(ruler(), &at(pki.issue("gamma", &[A]))), "its certificate is not that of alpha: it names gamma");
    logged("aborted the handshake");
    refused(
        &order(ruler(), &at(pki.foreign("alpha", &[A]))),
        "its certificate was not issued by a CA that is known here",
    );
    logged("does not know the CA of this host's certificate");
    refused(&order(ruler(), &at(pki.expired("alpha"))), "its certificate, that of alpha, expired 2020-01-01");
    logged("says that this host's certificate has expired");
    // A wildcard certificate would stand for every host.
    let wildcard = pki.unmarked(&["gamma.example.org", "*"], |_| {});
    refused(&order(ruler(), &at(wildcard)), "its certificate is not that of alpha");
    // The right host, but not its agent. The director notices after the handshake, so the peer only sees it disconnect.
    refused(&order(ruler(), &at(pki.issue("alpha", &[S, D]))), "its certificate is for director, slave, not for agent");
    // A server without TLS.
    refused(&order(ruler(), &agent(None).0), "it does not speak TLS");
    logged("sent TLS, but this port accepts only plaintext");
}

#[test]
fn slave_receives_only_from_host_in_certificate() {
    let _turn = turn();
    let pki = Pki::new();
    let (address, beta) = slave(Some(pki.issue("beta", &[S])), COPIES);
    refused(
        &send("alpha", Some(pki.issue("gamma", &[A])), &address),
        "gamma says that it is alpha, but its certificate does not name that host",
    );
    logged("(gamma): alpha may not send into pool/copy: gamma says that it is alpha");
    refused(
        &send("alpha", Some(pki.issue("alpha", &[D, S])), &address),
        "the certificate of alpha is for director, slave, not for agent",
    );
    logged("(alpha): alpha may not send into pool/copy");
    refused(
        &send("alpha", Some(pki.foreign("alpha", &[A])), &address),
        "does not know the CA of this host's certificate",
    );
    logged("its certificate was not issued by a CA that is known here");
    refused(&send("alpha", Some(pki.expired("alpha")), &address), "says that this host's certificate has expired");
    logged("its certificate, that of alpha, expired 2020");
    refused(&send("alpha", None, &address), "this port accepts only TLS");
    logged("sent plaintext, but this port accepts only TLS");
    let (strict, _) = slave(Some(pki.issue("beta", &[S])), &COPIES.replace("true", r#"true, "sources": ["gamma"]"#));
    refused(&send("alpha", Some(pki.issue("alpha", &[A])), &strict), "does not receive from alpha");
    logged("(alpha): alpha may not send into pool/copy: pool/copy does not receive from alpha");
    assert!(beta.calls().is_empty(), "{:?}", beta.calls());
}

#[test]
fn agent_refuses_slave_with_other_name() {
    let _turn = turn();
    let pki = Pki::new();
    let alpha = || Some(pki.issue("alpha", &[A]));
    let at = |tls| slave(tls, COPIES).0;
    refused(
        &send("alpha", alpha(), &at(Some(pki.issue("gamma", &[S])))),
        "its certificate is not that of beta: it names gamma",
    );
    logged("aborted the handshake");
    refused(
        &send("alpha", alpha(), &at(Some(pki.issue("beta", &[A, D])))),
        "its certificate is for director, agent, not for slave",
    );
    refused(&send("alpha", alpha(), &at(Some(pki.foreign("beta", &[S])))), "not issued by a CA that is known here");
    logged("does not know the CA");
    refused(&send("alpha", alpha(), &at(None)), "it does not speak TLS");
    logged("sent TLS, but this port accepts only plaintext");
}

/// Nothing is known about the peer then, so the order may be tried again.
#[test]
fn interrupted_handshake_is_a_temporary_failure() {
    let _turn = turn();
    let pki = Pki::new();
    for (closes, words) in
        [(true, "the TLS handshake failed: it closed the connection"), (false, "it did not answer the TLS handshake")]
    {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let mut mute = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                assert!(stream.read(&mut [0; 10_000]).unwrap() > 0);
                mute.extend((!closes).then_some(stream));
            }
        });
        let response = send("alpha", Some(pki.issue("alpha", &[A])), &address);
        refused(&response, words);
        assert!(response.temporary, "{response:?}");
        refused(&response, "check that zsync slave is running on beta");
    }
}

#[test]
fn certificate_without_roles_counts_if_configuration_names_it() {
    let _turn = turn();
    let pki = Pki::new();
    let of = |name: &str| Some(pki.unmarked(&[name, "www.example.org"], |_| {}));
    let (address, _) = agent(of("alpha"));
    assert!(order(of("ruler"), &address).is_success);
    refused(&order(of("omega"), &address), "orders are not taken from omega, www.example.org");
    logged("(omega, www.example.org)");
    // Every machine of the company has such a certificate, so sources must be configured.
    let (open, _) = slave(of("beta"), COPIES);
    refused(&send("alpha", of("alpha"), &open), "has no \"sources\" that name it");
    logged("alpha may not send");
    let (named, _) = slave(of("beta"), &COPIES.replace("true", r#"true, "sources": ["alpha"]"#));
    assert!(send("alpha", of("alpha"), &named).is_success);
    refused(&send("gamma", of("gamma"), &named), "does not receive from gamma");
    logged("gamma may not send");
    // A certificate for servers only.
    let server_only = pki.unmarked(&["ruler"], |params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    });
    assert!(!order(Some(server_only), &address).is_success);
    logged("its certificate does not permit this use; it must permit server and client authentication");
}

/// A TLS client without a certificate.
fn without_certificate(pki: &Pki, address: &str) -> String {
    use futures_rustls::rustls::crypto::ring;
    use futures_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, version};
    let mut roots = RootCertStore::empty();
    for der in zsync::transport::tls::certificates_in(pki.ca.certificate.as_bytes()).unwrap() {
        roots.add(der).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let session = ClientConnection::new(Arc::new(config), "alpha".try_into().unwrap()).unwrap();
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut stream = StreamOwned::new(session, stream);
    stream.write_all(b"{}\n").unwrap();
    stream.read(&mut [0; 100]).unwrap_err().to_string()
}

#[test]
fn client_without_certificate_gets_reason() {
    let _turn = turn();
    let pki = Pki::new();
    let (address, alpha) = agent(Some(pki.issue("alpha", &[A])));
    let said = without_certificate(&pki, &address);
    assert!(said.contains("CertificateRequired"), "{said}");
    logged("it sent no certificate");
    assert!(alpha.calls().is_empty());
}

/// What a server answers to a client with a valid certificate that names these protocols.
fn naming(pki: &Pki, address: &str, protocols: &[&[u8]]) -> String {
    use futures_rustls::pki_types::PrivateKeyDer;
    use futures_rustls::pki_types::pem::PemObject;
    use futures_rustls::rustls::crypto::ring;
    use futures_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, version};
    let minted = mint(&pki.ca, &wanted("ruler", &[D]), Utc::now()).unwrap();
    let chain = zsync::transport::tls::certificates_in(minted.certificate.as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(zsync::transport::tls::certificates_in(pki.ca.certificate.as_bytes()).unwrap().remove(0)).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(minted.key.as_bytes()).unwrap())
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let session = ClientConnection::new(Arc::new(config), "alpha".try_into().unwrap()).unwrap();
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut stream = StreamOwned::new(session, stream);
    let mut answer = String::new();
    match stream.write_all(b"{}\n").and_then(|()| BufReader::new(stream).read_line(&mut answer)) {
        Ok(_) => answer,
        Err(error) => error.to_string(),
    }
}

#[test]
fn only_peers_that_name_the_protocol_are_served() {
    let _turn = turn();
    let pki = Pki::new();
    let (address, alpha) = agent(Some(pki.issue("alpha", &[A])));
    let answer = naming(&pki, &address, &[b"h2", b"zsync/1"]);
    assert!(answer.contains("OrderUUID"), "a message that is no order: {answer}");
    lines().clear();
    let answer = naming(&pki, &address, &[]);
    for part in ["only TLS with the protocol zsync/1 (ALPN)", "update zsync on the host"] {
        assert!(answer.contains(part), "{answer}");
    }
    logged("(ruler) speaks TLS without naming the protocol zsync/1");
    let answer = naming(&pki, &address, &[b"h2"]);
    assert!(answer.contains("NoApplicationProtocol"), "{answer}");
    logged("it asked for another protocol than zsync/1");
    assert!(alpha.calls().is_empty());
}

/// Another TLS service with a certificate of the same CA.
#[test]
fn server_that_names_no_protocol_is_refused() {
    use futures_rustls::pki_types::PrivateKeyDer;
    use futures_rustls::pki_types::pem::PemObject;
    use futures_rustls::rustls::crypto::ring;
    use futures_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned, version};
    let _turn = turn();
    let pki = Pki::new();
    let minted = mint(&pki.ca, &wanted("alpha", &[A]), Utc::now()).unwrap();
    let chain = zsync::transport::tls::certificates_in(minted.certificate.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_slice(minted.key.as_bytes()).unwrap())
        .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = std::thread::spawn(move || {
        let session = ServerConnection::new(Arc::new(config)).unwrap();
        let mut stream = StreamOwned::new(session, listener.accept().unwrap().0);
        drop(stream.read(&mut [0; 100]));
    });
    refused(
        &order(Some(pki.issue("ruler", &[D])), &address),
        "but not zsync's protocol zsync/1: it is another program",
    );
    serving.join().unwrap();
}

#[test]
fn plaintext_order_to_tls_port_gets_response() {
    let _turn = turn();
    let pki = Pki::new();
    let (address, _) = agent(Some(pki.issue("alpha", &[A])));
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.write_all(b"{\"OrderUUID\":\"9b2c1c4e-1111-4222-8333-0123456789ab\"}\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    let answer: Response = serde_json::from_str(&line).unwrap();
    refused(&answer, "this port accepts only TLS; hint: set \"tls\"");
    logged("sent plaintext");
}

/// Both sides say whose certificate it is, since when it has expired, and how to renew it.
#[test]
fn expired_certificate_of_zsync_is_reported_with_command() {
    let _turn = turn();
    let pki = Pki::new();
    let (address, _) = agent(Some(pki.issue("alpha", &[A])));
    let long_ago = Utc::now() - TimeDelta::days(100);
    let expired = mint(&pki.ca, &Wanted { days: 3, ..wanted("ruler", &[D]) }, long_ago).unwrap();
    let expired = Arc::new(Tls::load(&pki.write("expired", &expired)).unwrap());
    let command = "hint: renew it where its CA is: zsync tls issue ruler --role director --renew";
    let since = expired.own().until.unwrap().format("expired %Y-%m-%dT%H:%M:%SZ");
    let response = order(Some(expired), &address);
    refused(&response, &format!("expired/host.crt, that of ruler, {since}; {command}"));
    logged(&format!("its certificate, that of ruler, {since}; hint: renew it with the CA that issued it"));
}

#[test]
fn certificates_are_renewed_without_restart() {
    let _turn = turn();
    let pki = Pki::new();
    let served = pki.issue("alpha", &[S]);
    let (address, _) = agent(Some(Arc::clone(&served)));
    let ruler = pki.issue("ruler", &[D]);
    refused(&order(Some(Arc::clone(&ruler)), &address), "not for agent");
    // New files are read only when a reload is requested.
    pki.issue("alpha", &[A]);
    refused(&order(Some(Arc::clone(&ruler)), &address), "not for agent");
    served.reload().unwrap();
    assert!(order(Some(Arc::clone(&ruler)), &address).is_success);
    // Invalid files change nothing.
    let folder = pki.folder.path().join("alpha");
    fs::write(folder.join("host.key"), "no key").unwrap();
    let error = served.reload().unwrap_err().to_string();
    assert!(error.contains("alpha/host.key: it contains no unencrypted private key"), "{error}");
    assert!(order(Some(Arc::clone(&ruler)), &address).is_success);
    let other = mint(&pki.ca, &wanted("alpha", &[A]), Utc::now()).unwrap();
    fs::write(folder.join("host.key"), &other.key).unwrap();
    let error = served.reload().unwrap_err().to_string();
    assert!(error.contains("it is not the key of") && !error.contains("PRIVATE"), "{error}");
    assert!(order(Some(ruler), &address).is_success);
}

#[test]
fn invalid_own_certificate_is_reported_at_start() {
    let pki = Pki::new();
    let warned = |tls: &Tls, role| tls.warnings(Utc::now(), &host("alpha"), role).join("\n");
    assert_eq!(warned(&pki.issue("alpha", &[A]), A), "");
    assert!(warned(&pki.issue("alpha", &[A]), S).contains("is for agent, not for slave"));
    assert!(warned(&pki.issue("beta", &[A]), A).contains("names beta, not alpha"));
    assert!(warned(&pki.foreign("alpha", &[A]), A).contains("other hosts will not trust"));
    assert!(warned(&pki.expired("alpha"), A).contains("that of alpha, expired 2020-01-01"));
    let soon = Wanted { days: 5, ..wanted("alpha", &[A]) };
    let soon = pki.write("soon", &mint(&pki.ca, &soon, Utc::now()).unwrap());
    let loaded = Tls::load(&soon).unwrap();
    let hint = "in 5 days; hint: renew it where its CA is: zsync tls issue alpha --role agent --renew";
    assert!(warned(&loaded, A).contains(hint), "{}", warned(&loaded, A));
    assert_eq!(loaded.trouble(Utc::now()), Some(warned(&loaded, A)));
    let later = loaded.trouble(Utc::now() + TimeDelta::days(7)).unwrap();
    assert!(later.contains("/soon/host.crt expired on 20") && later.contains("--renew"), "{later}");
    assert_eq!(pki.issue("alpha", &[A]).trouble(Utc::now()), None);
    fs::set_permissions(&soon.key, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(Tls::load(&soon).unwrap().loose_key().unwrap().contains("has mode 0640"));
    let missing = TlsFiles { ca: pki.folder.path().join("none"), ..soon };
    let error = Tls::load(&missing).err().unwrap().to_string();
    assert!(error.contains("/none: the file does not exist; hint: create it as zsync-tls(8) describes"), "{error}");
}

#[test]
fn minted_certificate_has_requested_contents() {
    let ca = mint_ca("test CA", Utc::now(), 30).unwrap();
    let wanted = Wanted { also: vec![host("alpha.example.org")], days: 10, ..wanted("alpha", &[A, D]) };
    let minted = mint(&ca, &wanted, Utc::now()).unwrap();
    let der = zsync::transport::tls::certificates_in(minted.certificate.as_bytes()).unwrap();
    let said = certificate(&der[0]).unwrap();
    assert_eq!(said.identity.names, [host("alpha"), host("alpha.example.org")]);
    assert_eq!(said.identity.roles, Some(BTreeSet::from([D, A])));
    let (from, until) = (said.from.unwrap(), said.until.unwrap());
    assert!(from < Utc::now() && until > Utc::now() + TimeDelta::days(10) && until < Utc::now() + TimeDelta::days(12));
    for (wrong, words) in [
        (Wanted { days: 31, ..wanted.clone() }, "the CA's own certificate is valid only until"),
        (Wanted { host: host("10.0.0.1"), ..wanted.clone() }, "is not a DNS name"),
        (Wanted { host: host("a..b"), ..wanted.clone() }, "is not a DNS name"),
    ] {
        let error = mint(&ca, &wrong, Utc::now()).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    }
    let other = mint_ca("test CA", Utc::now(), 30).unwrap();
    let mixed = Minted { certificate: ca.certificate, key: other.key };
    assert!(
        mint(&mixed, &wanted, Utc::now()).err().unwrap().to_string().contains("does not belong to its certificate")
    );
    // The certificate of a host is not that of a CA.
    assert!(mint(&minted, &wanted, Utc::now()).err().unwrap().to_string().contains("is not that of a CA"));
}

#[test]
fn host_certificate_cannot_issue_certificates() {
    let _turn = turn();
    let pki = Pki::new();
    // beta signs a director's certificate with its own key, and presents its own certificate as an intermediate.
    let beta = mint(&pki.ca, &wanted("beta", &[A, S]), Utc::now()).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&beta.certificate, KeyPair::from_pem(&beta.key).unwrap()).unwrap();
    let mut params = CertificateParams::new(vec!["ruler".to_owned()]).unwrap();
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().unwrap();
    let forged = params.signed_by(&key, &issuer).unwrap().pem() + &beta.certificate;
    let forged = pki.write("forged", &Minted { certificate: forged, key: key.serialize_pem() });
    let (address, alpha) = agent(Some(pki.issue("alpha", &[A])));
    assert!(!order(Some(Arc::new(Tls::load(&forged).unwrap())), &address).is_success);
    logged("its certificate is invalid");
    assert!(alpha.calls().is_empty());
}

/// A revoked certificate is refused once the list was read again. A list that cannot be used lets nobody in.
#[test]
fn revoked_certificate_is_refused_on_both_sides() {
    let _turn = turn();
    let pki = Pki::new();
    let list = pki.folder.path().join("ca.crl");
    let write = |more: &[_], now, days| {
        let previous = fs::read_to_string(&list).ok();
        fs::write(&list, revoke(&pki.ca, previous.as_deref(), more, now, days).unwrap()).unwrap();
    };
    let checking = |name: &str, roles: &[PeerRole]| {
        let files = pki.write(name, &mint(&pki.ca, &wanted(name, roles), Utc::now()).unwrap());
        Tls::load(&TlsFiles { crl: Some(list.clone()), ..files })
    };
    let error = checking("alpha", &[A]).err().unwrap().to_string();
    assert!(error.contains("ca.crl: the list of revoked certificates does not exist; hint: make it with"), "{error}");
    fs::write(&list, "nonsense").unwrap();
    let error = checking("alpha", &[A]).err().unwrap().to_string();
    assert!(error.contains("it contains no list of revoked certificates"), "{error}");
    fs::remove_file(&list).unwrap();
    write(&[], Utc::now(), 365);

    let served = Arc::new(checking("alpha", &[A]).unwrap());
    let (address, alpha) = agent(Some(Arc::clone(&served)));
    let [ruler, delta] = ["ruler", "delta"].map(|name| Some(pki.issue(name, &[D])));
    assert!(order(ruler.clone(), &address).is_success);
    let revoked = of_file(&pki.ca, &pki.folder.path().join("ruler/host.crt")).unwrap();
    write(std::slice::from_ref(&revoked), Utc::now(), 365);
    // The list counts once it was read again.
    assert!(order(ruler.clone(), &address).is_success);
    served.reload().unwrap();
    let before = alpha.calls().len();
    refused(&order(ruler.clone(), &address), "ruler/host.crt, that of ruler; hint: to trust this host again, issue");
    logged(&format!("its certificate, that of ruler with the serial number {}, was revoked", revoked.text));
    assert_eq!(alpha.calls().len(), before);
    assert!(order(delta.clone(), &address).is_success);
    // The other way round: the director does not trust a revoked agent.
    write(&[of_file(&pki.ca, &pki.folder.path().join("alpha/host.crt")).unwrap()], Utc::now(), 365);
    let director = Arc::new(checking("delta", &[D]).unwrap());
    refused(&order(Some(director), &address), "its certificate, that of alpha with the serial number");
    logged("says that this host's certificate was revoked");
    assert!(served.warnings(Utc::now(), &host("alpha"), A).is_empty());
    served.reload().unwrap();
    assert!(served.warnings(Utc::now(), &host("alpha"), A)[0].contains("was revoked"));

    // A list that is about to expire, and one that has expired.
    write(&[], Utc::now(), 20);
    served.reload().unwrap();
    let warning = served.list_trouble(Utc::now()).unwrap();
    assert!(warning.contains(" days, and then no peer is trusted; hint: run zsync tls revoke"), "{warning}");
    write(&[], Utc::now() - TimeDelta::days(10), 3);
    served.reload().unwrap();
    assert!(served.list_trouble(Utc::now()).unwrap().contains("so no peer is trusted"));
    refused(
        &order(delta.clone(), &address),
        "or has no valid list of what that CA has revoked; hint: its log says which",
    );
    logged("its certificate cannot be checked: the list of revoked certificates");
    // A list of another CA.
    let other = mint_ca("other CA", Utc::now(), 3650).unwrap();
    assert!(of_file(&other, &pki.folder.path().join("alpha/host.crt")).is_err());
    assert!(revoke(&other, fs::read_to_string(&list).ok().as_deref(), &[], Utc::now(), 9).is_err());
    fs::write(&list, revoke(&other, None, &[], Utc::now(), 365).unwrap()).unwrap();
    served.reload().unwrap();
    refused(&order(delta, &address), "or has no valid list");
    logged("has no list of revoked certificates of its CA; hint: append that list");
}

/// Two CAs of one name: every host is trusted for what its own CA says, but the list of revoked certificates of the one
/// is taken for that of the other.
#[test]
fn list_of_another_ca_with_the_same_name_is_reported() {
    let _turn = turn();
    let [one, two] = [Pki::new(), Pki::new()];
    let both = format!("{}{}", one.ca.certificate, two.ca.certificate);
    let list = one.folder.path().join("ca.crl");
    let load = |of: &Pki, name: &str, roles: &[PeerRole], crl: Option<PathBuf>| {
        let files = of.write(name, &mint(&of.ca, &wanted(name, roles), Utc::now()).unwrap());
        fs::write(&files.ca, &both).unwrap();
        Arc::new(Tls::load(&TlsFiles { crl, ..files }).unwrap())
    };
    let served = load(&one, "alpha", &[A], None);
    let (address, _) = agent(Some(served));
    let order_by = |of: &Pki, name: &str| order(Some(load(of, name, &[D], None)), &address);
    assert!(order_by(&one, "ruler").is_success && order_by(&two, "delta").is_success);

    fs::write(&list, revoke(&one.ca, None, &[], Utc::now(), 365).unwrap()).unwrap();
    let (address, _) = agent(Some(load(&one, "alpha", &[A], Some(list.clone()))));
    let order_by = |of: &Pki, name: &str| order(Some(load(of, name, &[D], None)), &address);
    assert!(order_by(&one, "ruler").is_success);
    assert!(!order_by(&two, "delta").is_success);
    logged("hint: if two CAs that are known here have this name, replace one of them");
}

/// A certificate for a request has exactly the names and roles that were typed where the CA is.
#[test]
fn request_gets_only_what_the_administrator_typed() {
    let ca = mint_ca("test CA", Utc::now(), 3650).unwrap();
    let key = KeyPair::generate().unwrap();
    let beta = wanted("beta", &[A, S]);
    let sign = |request: &str, wanted: &Wanted| mint_requested(&ca, wanted, request, Utc::now());
    let request = make_request(&host("beta"), &[host("beta.example.org")], &key.serialize_pem()).unwrap();
    let both = Wanted { also: vec![host("beta.example.org")], ..beta.clone() };
    let issued = sign(&request, &both).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let minted = Minted { certificate: issued, key: key.serialize_pem() };
    let loaded = Tls::load(&write_pem(folder.path(), &ca, &minted)).unwrap();
    assert_eq!(loaded.own().identity.names, [host("beta"), host("beta.example.org")]);
    assert_eq!(loaded.own().identity.roles, Some(BTreeSet::from([A, S])));
    assert_eq!(loaded.warnings(Utc::now(), &host("beta"), S), [""; 0]);

    let asking = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = CertificateParams::new(vec!["beta".to_owned()]).unwrap();
        change(&mut params);
        params.serialize_request(&key).unwrap().pem().unwrap()
    };
    let role = |role: &'static str| {
        move |p: &mut CertificateParams| {
            p.subject_alt_names.push(SanType::URI(format!("zsync:role:{role}").try_into().unwrap()));
        }
    };
    let nameless = |p: &mut CertificateParams| {
        p.subject_alt_names.clear();
        p.distinguished_name = rcgen::DistinguishedName::new();
    };
    // What it asks for beyond names is not granted: this one does not become a CA.
    let ca_request = asking(&|p| p.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    let issued = sign(&ca_request, &beta).unwrap();
    let der = zsync::transport::tls::certificates_in(issued.as_bytes()).unwrap();
    assert!(!x509_parser::parse_x509_certificate(&der[0]).unwrap().1.is_ca());
    assert!(sign(&asking(&role("slave")), &beta).is_ok());
    // A request whose signature is that of another one.
    let other = asking(&|_| {});
    let mut forged = x509_parser::pem::parse_x509_pem(other.as_bytes()).unwrap().1.contents;
    let at = forged.windows(4).position(|four| four == b"beta").unwrap();
    forged[at..at + 4].copy_from_slice(b"alfa");
    let base64 = {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(&forged)
    };
    let forged = format!("-----BEGIN CERTIFICATE REQUEST-----\n{base64}\n-----END CERTIFICATE REQUEST-----\n");
    for (request, wanted, words) in [
        (request.clone(), &beta, "asks for the name \"beta.example.org\", not only for beta; hint: check that it is"),
        (request, &wanted("alpha", &[A]), "asks for the name \"beta\", not only for alpha"),
        (asking(&role("director")), &beta, "asks for \"zsync:role:director\", which --role does not permit"),
        (asking(&nameless), &beta, "does not ask for the name beta"),
        (asking(&|p| p.subject_alt_names.push(SanType::IpAddress([10, 0, 0, 1].into()))), &beta, "only DNS names"),
        (forged, &wanted("alfa", &[A]), "it is not signed with its own key"),
        ("nonsense".to_owned(), &beta, "no certificate signing request in PEM"),
        (minted.certificate.clone(), &beta, "it is not a certificate signing request"),
    ] {
        let error = format!("{:#}", sign(&request, wanted).err().unwrap());
        assert!(error.contains(words), "{words:?}: {error}");
    }
}

/// The private key never leaves the host, and is kept until it has its certificate.
#[test]
fn request_and_issue_commands_keep_the_key_on_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let zsync = |line: &str| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_zsync"))
            .arg("tls")
            .args(line.split_whitespace().map(|word| word.replace("{}", folder.path().to_str().unwrap())))
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(zsync("init --ca {}/ca").0, Some(0));
    let (status, text) = zsync("request beta --out {}/host");
    assert!(status == Some(0) && text.contains("zsync tls issue beta --csr host.csr --role ROLE"), "{text}");
    let mode = |name: &str| fs::metadata(path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!([mode("host"), mode("host/host.key"), mode("host/host.csr")], [0o700, 0o600, 0o644]);
    let issue = "issue beta --csr {}/host/host.csr --role agent,slave --ca {}/ca";
    let (status, text) = zsync(issue);
    assert!(status == Some(0) && text.contains("copy the files in its folder to /etc/zsync/tls on beta"), "{text}");
    assert!(!fs::exists(path("ca/beta/host.key")).unwrap());
    for file in ["ca.crt", "host.crt"] {
        fs::copy(path(&format!("ca/beta/{file}")), path(&format!("host/{file}"))).unwrap();
    }
    let (status, text) = zsync("show {}/host/host.crt");
    assert!(status == Some(0) && text.contains("roles    agent, slave"), "{text}");
    let key = fs::read(path("host/host.key")).unwrap();
    assert!(zsync("request beta --out {}/host").1.contains("with the existing key"));
    assert_eq!(fs::read(path("host/host.key")).unwrap(), key);
    assert_eq!(zsync(&format!("{issue} --renew")).0, Some(0));
    // A key that was stolen gets no certificate again, neither at once nor later.
    let (status, text) = zsync(&format!("{issue} --renew --revoke"));
    assert!(status == Some(2) && text.contains("its key is that of the revoked certificate"), "{text}");
    assert_eq!(zsync("revoke beta --ca {}/ca").0, Some(0));
    let (status, text) = zsync(&format!("{issue} --renew"));
    assert!(status == Some(2) && text.contains("hint: run zsync tls request beta --new-key on beta"), "{text}");
    assert!(zsync("request beta --new-key --out {}/host").1.contains("with the new key"));
    assert_ne!(fs::read(path("host/host.key")).unwrap(), key);
    assert_eq!(mode("host/host.key"), 0o600);
    assert_eq!(zsync(&format!("{issue} --renew --revoke")).0, Some(0));
    let (status, text) = zsync(&issue.replace("beta --csr", "gamma --csr"));
    assert!(status == Some(2) && text.contains("asks for the name \"beta\""), "{text}");
    assert!(!fs::exists(path("ca/gamma")).unwrap());
    fs::write(path("ca/beta/host.key"), "").unwrap();
    let (status, text) = zsync(&format!("{issue} --renew"));
    assert!(status == Some(2) && text.contains("stays on its host"), "{text}");
    assert!(text.contains("hint: remove that file"), "{text}");
}

#[test]
fn revoke_command_makes_list_of_all_certificates_of_host() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca");
    let zsync = |line: &str| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_zsync"))
            .arg("tls")
            .args(line.split_whitespace())
            .args(["--ca", ca.to_str().unwrap()])
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    let revoked = || {
        use futures_rustls::pki_types::CertificateRevocationListDer;
        use futures_rustls::pki_types::pem::PemObject;
        let der = CertificateRevocationListDer::from_pem_file(ca.join("ca.crl")).unwrap();
        let (_, list) = x509_parser::parse_x509_crl(&der).unwrap();
        let number = u32::try_from(list.crl_number().unwrap()).unwrap();
        (number, list.iter_revoked_certificates().count())
    };
    assert_eq!(zsync("init").0, Some(0));
    assert_eq!(zsync("issue alpha --role agent").0, Some(0));
    assert_eq!(zsync("issue beta --role agent").0, Some(0));
    let (status, text) = zsync("revoke omega");
    assert!(status == Some(2) && text.contains("no valid certificate of omega was found"), "{text}");
    assert_eq!(zsync("revoke").0, Some(0));
    assert_eq!(revoked(), (1, 0));
    // A renewal revokes the earlier certificate only if asked to.
    assert_eq!(zsync("issue alpha --role agent --renew").0, Some(0));
    let (status, text) = zsync("issue beta --role agent --renew --revoke");
    assert!(status == Some(0) && text.matches("revoked the certificate").count() == 1, "{text}");
    assert_eq!(revoked(), (2, 1));
    assert_eq!(fs::read(ca.join("ca.crl")).unwrap(), fs::read(ca.join("beta/ca.crl")).unwrap());
    let (status, text) = zsync("revoke alpha");
    assert!(status == Some(0) && text.matches("revoked the certificate").count() == 2, "{text}");
    assert!(text.contains("valid for 365 days; copy it to every host"), "{text}");
    assert_eq!(revoked(), (3, 3));
    assert_eq!(zsync("revoke alpha").0, Some(0));
    assert_eq!(revoked(), (4, 3), "nothing is listed twice");
    fs::write(ca.join("ca.crl"), "nonsense").unwrap();
    let (status, text) = zsync("revoke alpha");
    assert!(status == Some(2) && text.contains("cannot continue the list of revoked certificates"), "{text}");
}

/// The umask has no influence.
#[test]
fn keys_are_readable_by_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let zsync = |args: &[&str]| {
        let output = std::process::Command::new("sh")
            .args(["-c", "umask 0; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_zsync"), "tls"])
            .args(args)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    let ca = folder.path().join("etc/ca");
    let mode = |path: &str| fs::metadata(ca.join(path)).unwrap().permissions().mode() & 0o7777;
    let at = ["--ca", ca.to_str().unwrap()];
    assert_eq!(zsync(&[&["init"][..], &at].concat()).0, Some(0));
    let (status, text) = zsync(&[&["init"][..], &at].concat());
    assert!(status == Some(2) && text.contains("ca.crt exists"), "{text}");
    let issue = [&["issue", "alpha", "--role", "agent,director"][..], &at].concat();
    let (status, text) = zsync(&issue);
    assert!(status == Some(0) && text.contains("to /etc/zsync/tls on alpha"), "{text}");
    let before = fs::read(ca.join("alpha/host.key")).unwrap();
    let (status, text) = zsync(&issue);
    assert!(status == Some(2) && text.contains("--renew"), "{text}");
    assert_eq!(before, fs::read(ca.join("alpha/host.key")).unwrap());
    assert_eq!(zsync(&[&issue[..], &["--renew"]].concat()).0, Some(0));
    assert_ne!(before, fs::read(ca.join("alpha/host.key")).unwrap());
    assert_eq!([mode(""), mode("ca.key"), mode("ca.crt")], [0o700, 0o600, 0o644]);
    assert_eq!([mode("alpha"), mode("alpha/host.key"), mode("alpha/host.crt")], [0o700, 0o600, 0o644]);
    let left: Vec<_> = fs::read_dir(ca.join("alpha")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");

    let shown = |file: &Path| zsync(&["show", file.to_str().unwrap()]);
    let (status, text) = shown(&ca.join("alpha/host.crt"));
    assert!(status == Some(0) && text.contains("names    alpha\n  roles    director, agent\n"), "{text}");
    assert!(text.contains("days left") && !text.contains("WRONG"), "{text}");
    fs::set_permissions(ca.join("alpha/host.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let (status, text) = shown(&ca.join("alpha/host.crt"));
    assert!(status == Some(1) && text.contains("WRONG") && text.contains("mode 0644"), "{text}");
    assert!(shown(&ca.join("ca.crt")).1.contains("a CA     CN=zsync CA 20"));
    let also = ca.with_extension("also");
    assert_eq!(zsync(&["init", "--ca", also.to_str().unwrap()]).0, Some(0));
    let name = |ca: &Path| shown(&ca.join("ca.crt")).1.lines().find(|line| line.contains("CN=")).unwrap().to_owned();
    assert_ne!(name(&ca), name(&also), "no two CAs have the same name");
    assert_eq!(shown(&ca.join("ca.key")).0, Some(2));
    let (_, text) = zsync(&["issue", "gamma", "--role", "king"]);
    assert!(text.contains("roles are director, agent and slave"), "{text}");
}
