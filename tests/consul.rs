//! Tests the Consul client with a real Consul in development mode, which the tests start on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use zsync::consul::{Committed, Consul, ConsulError, ConsulSettings, Health, Op, Registration};
use zsync::policy::{ConsulConfig, Secret};
use zsync::sys::runtime;
use zsync::sys::runtime::block_on;

mod common;

use common::consul;

fn client(config: &ConsulConfig) -> Consul {
    Consul::new(&ConsulSettings::with_environment(config, |_| None).unwrap()).unwrap()
}

fn at(address: &str) -> Consul {
    client(&ConsulConfig { address: Some(address.to_owned()), ..ConsulConfig::default() })
}

fn shared() -> Option<Consul> {
    consul::shared().map(at)
}

fn set(key: &str, value: &[u8]) -> Op {
    Op::Set { key: key.to_owned(), value: value.to_vec() }
}

#[test]
fn key_with_any_characters_is_read_as_written() {
    let Some(consul) = shared() else { return };
    let every_byte: Vec<u8> = (0..=255).collect();
    for key in ["names/plain", "names/with blank:and-._", "names/umläut%2Fslash", "names/a?b#c&d=e+f", "names/tank/a/b"]
    {
        assert!(matches!(block_on(consul.commit(&[set(key, &every_byte)])).unwrap(), Committed::At(_)));
        let (pair, index) = block_on(consul.get(key)).unwrap();
        let pair = pair.unwrap();
        assert_eq!((pair.key.as_str(), &pair.value, pair.modify_index), (key, &every_byte, index));
    }
    assert_eq!(block_on(consul.list("names/")).unwrap().len(), 5);
    assert_eq!(block_on(consul.read_trees(&["names/plain", "names/tank", "nothing"])).unwrap().len(), 2);
    assert_eq!(block_on(consul.get("names/none")).unwrap().0, None);
}

#[test]
fn transaction_is_atomic() {
    let Some(consul) = shared() else { return };
    let cas = |key: &str, index| Op::Cas { key: key.to_owned(), value: b"x".to_vec(), index };
    let Committed::At(first) = block_on(consul.commit(&[cas("txn/a", 0), cas("txn/b", 0)])).unwrap() else { panic!() };
    let conflict = block_on(consul.commit(&[cas("txn/c", 0), cas("txn/a", 0)])).unwrap();
    assert!(matches!(conflict, Committed::Conflict(_)), "{conflict:?}");
    assert_eq!(block_on(consul.get("txn/c")).unwrap().0, None, "no part of the transaction was applied");
    let check = Op::Check { key: "txn/b".into(), index: first };
    let delete = Op::DeleteCas { key: "txn/a".into(), index: first };
    assert!(matches!(block_on(consul.commit(&[check, delete])).unwrap(), Committed::At(_)));
    assert_eq!(block_on(consul.list("txn/")).unwrap().len(), 1);
    // As large as the catalog's largest transaction.
    let large = set("txn/large", &vec![7; zsync::consul::MOST_BYTES]);
    assert!(matches!(block_on(consul.commit(&[large])).unwrap(), Committed::At(_)));
    let many: Vec<Op> = (0..zsync::consul::MOST_OPS).map(|n| set(&format!("txn/many/{n}"), b"")).collect();
    assert!(matches!(block_on(consul.commit(&many)).unwrap(), Committed::At(_)));
    let error = block_on(consul.commit(&[many, vec![set("txn/one more", b"")]].concat())).unwrap_err();
    assert!(matches!(error, ConsulError::Refused { status: 413, .. }), "{error}");
}

#[test]
fn watch_ends_with_change_or_timeout() {
    let Some(consul) = shared() else { return };
    block_on(consul.commit(&[set("watched", b"1")])).unwrap();
    let (_, index) = block_on(consul.get("watched")).unwrap();
    let begun = Instant::now();
    let (pair, same) = block_on(consul.watch("watched", index, Duration::from_secs(1))).unwrap();
    assert_eq!((pair.unwrap().value, same), (b"1".to_vec(), index));
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let other = consul.clone();
    let watching = runtime::spawn(async move { other.watch("watched", index, Duration::from_secs(60)).await });
    block_on(consul.commit(&[set("watched", b"2")])).unwrap();
    assert_eq!(block_on(watching).unwrap().0.unwrap().value, b"2");
}

#[test]
fn lock_has_one_holder_at_a_time() {
    let Some(consul) = shared() else { return };
    let session =
        |name| block_on(consul.create_session(name, Duration::from_secs(10), Duration::from_secs(1))).unwrap();
    let (first, second) = (session("first"), session("second"));
    let acquire = |session: &str| block_on(consul.acquire("lock", b"me".to_vec(), session)).unwrap();
    assert!(acquire(&first));
    let (pair, _) = block_on(consul.get("lock")).unwrap();
    let pair = pair.unwrap();
    assert_eq!(pair.session.as_ref(), Some(&first));
    assert!(!acquire(&second));
    assert!(block_on(consul.release("lock", Vec::new(), &first)).unwrap());
    assert!(acquire(&second), "a released lock can be acquired at once");
    let after = block_on(consul.get("lock")).unwrap().0.unwrap();
    assert!(after.modify_index > pair.modify_index);
    assert!(block_on(consul.renew_session(&second, Duration::from_secs(5))).unwrap());
    block_on(consul.destroy_session(&second)).unwrap();
    assert!(!block_on(consul.renew_session(&second, Duration::from_secs(5))).unwrap());
    assert!(!acquire(&second), "the session no longer exists");
    assert!(!acquire(&first), "the lock is delayed after its session died");
    let begun = Instant::now();
    while !acquire(&first) {
        assert!(begun.elapsed() < Duration::from_secs(10));
        block_on(runtime::sleep(Duration::from_millis(50)));
    }
}

#[test]
fn service_has_the_health_it_reports() {
    let Some(consul) = shared() else { return };
    let service = Registration {
        service: "zsync-test".into(),
        id: "zsync-test-alpha beta".into(),
        host: "alpha".into(),
        address: "10.0.0.1".into(),
        port: 7711,
        ttl: Duration::from_secs(1),
        forget_after: Duration::from_secs(3600),
    };
    assert!(!block_on(consul.report(&service.id, Health::Passing, "")).unwrap(), "it is not registered");
    block_on(consul.register(&service)).unwrap();
    let found = || {
        let found = block_on(consul.instances("zsync-test")).unwrap();
        found.into_iter().map(|one| (one.host, one.address, one.health, one.output)).collect::<Vec<_>>()
    };
    assert_eq!(found()[0].2, Health::Critical, "a new service is critical until it reports otherwise");
    assert!(block_on(consul.report(&service.id, Health::Warning, "behind")).unwrap());
    assert_eq!(found(), [("alpha".into(), "10.0.0.1:7711".into(), Health::Warning, "behind".into())]);
    assert!(block_on(consul.report(&service.id, Health::Passing, "well")).unwrap());
    assert_eq!(found()[0].2, Health::Passing);
    let begun = Instant::now();
    while found()[0].2 != Health::Critical {
        assert!(begun.elapsed() < Duration::from_secs(20), "the service did not become critical after its TTL");
        block_on(runtime::sleep(Duration::from_millis(50)));
    }
    block_on(consul.deregister(&service.id)).unwrap();
    assert!(found().is_empty());
}

const TOKEN: &str = "11111111-2222-3333-4444-555555555555";

#[test]
fn token_is_sent_and_never_printed() {
    let acl = format!(r#"acl {{ enabled = true, default_policy = "deny", tokens {{ master = "{TOKEN}" }} }}"#);
    let Some(consul) = consul::Agent::start(&[&acl]) else { return };
    let with = |token: &str| ConsulConfig {
        address: Some(consul.address.clone()),
        token: Some(Secret::new(token)),
        ..ConsulConfig::default()
    };
    // The token takes effect a moment after the leader is elected.
    let begun = Instant::now();
    while let Err(error) = block_on(client(&with(TOKEN)).commit(&[set("a", b"1")])) {
        assert!(begun.elapsed() < Duration::from_secs(20), "{error}");
        block_on(runtime::sleep(Duration::from_millis(50)));
    }
    let wrong = "99999999-2222-3333-4444-b1gs3cr3t";
    for config in [with(wrong), ConsulConfig { token: None, ..with("") }] {
        let consul = client(&config);
        let error = block_on(consul.commit(&[set("a", b"1")])).unwrap_err();
        let said = format!("{error} {error:?} {consul:?} {config:?}");
        assert!(said.contains("403") && said.contains("CONSUL_HTTP_TOKEN"), "{said}");
        assert!(!said.contains("b1gs3cr3t") && !said.contains(TOKEN), "{said}");
    }
}

#[test]
fn lost_consul_is_reported_in_one_line_and_found_again() {
    let Some(mut consul) = consul::Agent::start(&[]) else { return };
    let client = at(&consul.address);
    block_on(client.commit(&[set("a", b"1")])).unwrap();
    consul.kill();
    let error = block_on(client.get("a")).unwrap_err();
    let said = error.to_string();
    assert!(said.starts_with(&format!("cannot reach Consul at {} (GET /v1/kv/a): ", consul.address)), "{said}");
    assert_eq!(said.lines().count(), 1);
    assert_eq!(block_on(client.list("b")).unwrap_err().gist(), error.gist(), "the gist does not depend on the request");
    consul.start_again();
    // The kept connection is dead, so the request is sent again on a new one.
    assert_eq!(block_on(client.get("a")).unwrap().0, None, "a restarted Consul in development mode is empty");
    assert!(!block_on(client.leader()).unwrap().is_empty());
}

/// A server that responds to each connection with the same bytes; with none, it stays silent.
fn respond_with(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut some = [0; 1000];
            drop(stream.read(&mut some));
            drop(stream.write_all(answer));
        }
    });
    address
}

#[test]
fn response_of_other_server_is_an_error() {
    for (answer, part) in [
        (&b"SSH-2.0-OpenSSH_9.2\r\n"[..], "cannot reach"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[]", "cannot reach"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhelo", "cannot parse the response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", ""),
        (b"HTTP/1.1 301 Moved\r\nContent-Length: 0\r\nLocation: /x\r\n\r\n", "with status 301"),
        (b"HTTP/1.1 500 Error\r\nContent-Length: 17\r\n\r\nNo cluster leader", "electing a leader"),
        (b"", "cannot reach"),
    ] {
        let consul = at(&respond_with(answer));
        let result = block_on(consul.get("a"));
        match result {
            Err(error) => assert!(!part.is_empty() && error.to_string().contains(part), "{error}"),
            Ok(found) => assert!(part.is_empty() && found.0.is_none(), "{found:?} of {part}"),
        }
    }
}

#[test]
fn request_to_silent_server_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let consul = at(&listener.local_addr().unwrap().to_string());
    let begun = Instant::now();
    let error = block_on(consul.renew_session("x", Duration::from_millis(300))).unwrap_err();
    assert!(matches!(error, ConsulError::Timeout { .. }), "{error}");
    assert!(error.to_string().contains("did not answer PUT /v1/session/renew/x within 300ms"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[test]
fn client_speaks_over_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("consul.sock");
    let listen = format!(r#"addresses {{ http = "127.0.0.1 unix://{}" }}"#, socket.display());
    let Some(_consul) = consul::Agent::start(&[&listen]) else { return };
    let client = at(&format!("unix://{}", socket.display()));
    block_on(client.commit(&[set("a", b"1")])).unwrap();
    assert_eq!(block_on(client.get("a")).unwrap().0.unwrap().value, b"1");
}

#[test]
fn tls_is_verified_on_both_sides() {
    let Some(program) = consul::program_or_skip() else { return };
    let folder = tempfile::tempdir().unwrap();
    let make = |below: &str, args: &[&str]| {
        let place = folder.path().join(below);
        std::fs::create_dir_all(&place).unwrap();
        let made = std::process::Command::new(&program).arg("tls").args(args).current_dir(&place).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        place
    };
    let ours = make("ours", &["ca", "create"]);
    make("ours", &["cert", "create", "-server"]);
    make("ours", &["cert", "create", "-client"]);
    let theirs = make("theirs", &["ca", "create"]);
    make("theirs", &["cert", "create", "-client"]);
    let [https] = consul::free_ports();
    let listen = format!(
        r#"verify_incoming_https = true, ca_file = "{0}/consul-agent-ca.pem", cert_file = "{0}/dc1-server-consul-0.pem",
           key_file = "{0}/dc1-server-consul-0-key.pem", ports {{ https = {https} }}"#,
        ours.display()
    )
    .replace(", ", "\n");
    let Some(_consul) = consul::Agent::start(&[&listen]) else { return };
    let config = |ca: &std::path::Path, identity: Option<&std::path::Path>| ConsulConfig {
        address: Some(format!("https://127.0.0.1:{https}")),
        ca_file: Some(ca.join("consul-agent-ca.pem")),
        cert_file: identity.map(|place| place.join("dc1-client-consul-0.pem")),
        key_file: identity.map(|place| place.join("dc1-client-consul-0-key.pem")),
        ..ConsulConfig::default()
    };
    let good = client(&config(&ours, Some(&ours)));
    block_on(good.commit(&[set("a", b"1")])).unwrap();
    assert_eq!(block_on(good.get("a")).unwrap().0.unwrap().value, b"1");
    let named = ConsulConfig { tls_server_name: Some("server.dc1.consul".into()), ..config(&ours, Some(&ours)) };
    block_on(client(&named).get("a")).unwrap();
    let wrong_name = ConsulConfig { tls_server_name: Some("elsewhere.example".into()), ..config(&ours, Some(&ours)) };
    for (what, config) in [
        ("no certificate", config(&ours, None)),
        ("a certificate of another CA", config(&ours, Some(&theirs))),
        ("a server of another CA", config(&theirs, Some(&theirs))),
        ("a server of another name", wrong_name),
    ] {
        let error = block_on(client(&config).get("a")).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot reach Consul at https://127.0.0.1:") && error.contains("TLS: "),
            "{what}: {error}"
        );
        assert_eq!(error.lines().count(), 1, "{what}: {error}");
    }
    let plain = ConsulConfig { address: Some(format!("http://127.0.0.1:{https}")), ..ConsulConfig::default() };
    let error = block_on(client(&plain).get("a")).unwrap_err().to_string();
    assert!(error.contains("begin consul.address with https://"), "{error}");
}
