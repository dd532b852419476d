//! Measures zsync when it is idle: memory and wake-ups of an agent and a slave, the program's size, and how long a
//! small plan takes from start to end. Run it with `cargo bench --bench footprint`. No ZFS is needed: a script without
//! datasets stands in for it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use serde_json::json;
use zsync::catalog::{CatalogWrite, EmbeddedCatalog};
use zsync::commands::tls::{Wanted, mint, mint_ca};
use zsync::model::{DatasetInventory, Guid, Marks, PeerRole, Snapshot};

const ZSYNC: &str = env!("CARGO_BIN_EXE_zsync");
/// The number of datasets that the policy names.
const DATASETS: [&str; 3] = ["tank/home", "tank/mail", "tank/www"];
/// How long the idle services are observed.
const WATCHED: Duration = Duration::from_secs(10);
/// The number of plans.
const PLANS: usize = 21;
const MOST_RESIDENT_KB: u64 = 10 << 10;
const MOST_WAKEUPS: f64 = 1.0;
const MOST_START: Duration = Duration::from_millis(20);

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _: std::io::Result<()> = self.0.kill();
        self.0.wait().unwrap();
    }
}

impl Daemon {
    /// A number in a file of /proc with lines such as "Pss:  4711 kB".
    fn number(&self, file: &str, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/{file}", self.0.id())).unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{file} has no {name}"));
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// How often each thread went to sleep so far, and so was woken, by id and name.
    fn naps(&self) -> BTreeMap<String, u64> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        let nap = |entry: std::io::Result<fs::DirEntry>| {
            let entry = entry.unwrap();
            let text = fs::read_to_string(entry.path().join("status")).unwrap();
            let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
            let of = format!("{} {}", entry.file_name().to_string_lossy(), field("Name:"));
            (of, field("voluntary_ctxt_switches:").parse().unwrap())
        };
        threads.map(nap).collect()
    }
}

fn verdict(good: bool) -> &'static str {
    if good { "met" } else { "MISSED" }
}

fn idle(what: &str, daemon: &Daemon) {
    // By then, the start-up is over.
    sleep(Duration::from_secs(2));
    let before = daemon.naps();
    sleep(WATCHED);
    let woken: Vec<(String, u64)> = daemon
        .naps()
        .into_iter()
        .map(|(of, naps)| {
            let since = naps - before.get(&of).copied().unwrap_or_default();
            (of, since)
        })
        .collect();
    let [resident, own] = ["VmRSS:", "RssAnon:"].map(|name| daemon.number("status", name));
    let shared_out = daemon.number("smaps_rollup", "Pss:");
    let rate = woken.iter().map(|(_, naps)| naps).sum::<u64>() as f64 / WATCHED.as_secs_f64();
    let good = resident < MOST_RESIDENT_KB && rate <= MOST_WAKEUPS;
    println!("{what:<32} {resident:>7} {shared_out:>7} {own:>7} {:>8} {rate:>10.1}  {}", woken.len(), verdict(good));
    for (of, naps) in woken.into_iter().filter(|(_, naps)| *naps > 0) {
        println!("    thread {of}: woken {naps} times in {} s", WATCHED.as_secs());
    }
}

fn start(role: &str, folder: &Path, local: &Path) -> (Daemon, u16) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let daemon = Command::new(ZSYNC)
        .args([role, "--listen", &format!("127.0.0.1:{port}"), "--log", "error", "--zfs"])
        .arg(folder.join("zfs"))
        .arg("--local")
        .arg(local)
        .env("ZSYNC_STATE", folder.join(format!("state-{port}")))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let daemon = Daemon(daemon);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        sleep(Duration::from_millis(5));
    }
    (daemon, port)
}

/// Orders a listing of everything from an agent.
fn ask(port: u16) {
    let mut conn = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let order = json!({ "OrderUUID": uuid::Uuid::now_v7(), "Action": "kv_resync" });
    writeln!(conn, "{order}").unwrap();
    let answered = BufReader::new(conn).lines().any(|line| line.unwrap().contains("\"IsSuccess\":true"));
    assert!(answered, "an agent did not respond with its listing");
}

fn write_tls(folder: &Path) -> serde_json::Value {
    let ca = mint_ca("bench CA", Utc::now(), 30).unwrap();
    let roles = [PeerRole::Agent, PeerRole::Slave].into();
    let wanted = Wanted { host: "alpha".parse().unwrap(), also: Vec::new(), roles, days: 30 };
    let minted = mint(&ca, &wanted, Utc::now()).unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    json!({ "ca": file("ca.crt", &ca.certificate), "certificate": file("host.crt", &minted.certificate),
        "key": file("host.key", &minted.key) })
}

/// A month of daily snapshots of each dataset, half of them sent.
fn write_catalog(folder: &Path) {
    let catalog = EmbeddedCatalog::open(folder).unwrap();
    for (host, root) in [("alpha", "tank"), ("beta", "pool/copy")] {
        let snapshot = |n: u64| {
            let creation = Utc::now() - TimeDelta::days(i64::try_from(31 - n).unwrap());
            Snapshot {
                name: creation.format("BACKUP_%Y-%m-%d_%H:%M:%S").to_string().parse().unwrap(),
                guid: Guid(n),
                createtxg: n,
                creation,
                userrefs: 0,
                has_clones: false,
                used: 4096,
                marks: Marks::default(),
            }
        };
        let listing = DATASETS.iter().map(|name| {
            let inventory = DatasetInventory { snapshots: (1..31).map(snapshot).collect(), ..Default::default() };
            (name.replace("tank", root).parse().unwrap(), inventory)
        });
        catalog.replace_host(&host.parse().unwrap(), Utc::now(), listing.collect()).unwrap();
    }
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let zfs = file("zfs", "#!/bin/sh\n[ \"$1\" != version ] || echo zfs-2.3.9\n");
    fs::set_permissions(&zfs, fs::Permissions::from_mode(0o755)).unwrap();
    let source: Vec<_> = DATASETS.iter().map(|name| json!({ "name": name })).collect();
    let copies = json!([ { "name": "pool/copy", "slave": true } ]);
    let tls = write_tls(folder.path());
    let local = |name: &str, text: serde_json::Value| file(name, &text.to_string());
    let agent = local("agent.json", json!({ "local_datasets": source }));
    let agent_tls = local("agent-tls.json", json!({ "local_datasets": source, "tls": tls, "directors": ["alpha"] }));
    let slave = local("slave.json", json!({ "local_datasets": copies }));
    let slave_tls = local("slave-tls.json", json!({ "local_datasets": copies, "tls": tls }));

    let size = fs::metadata(ZSYNC).unwrap().len();
    println!("the program: {:.1} MB", size as f64 / 1e6);
    println!(
        "{:<32} {:>7} {:>7} {:>7} {:>8} {:>10}  target: < {} kB resident, <= {MOST_WAKEUPS} wake-up a second",
        "idle", "RSS kB", "PSS kB", "own kB", "threads", "wake-ups/s", MOST_RESIDENT_KB
    );
    for (what, role, local) in [
        ("agent", "agent", &agent),
        ("agent with TLS", "agent", &agent_tls),
        ("slave", "slave", &slave),
        ("slave with TLS", "slave", &slave_tls),
    ] {
        let (daemon, _) = start(role, folder.path(), local);
        idle(what, &daemon);
    }
    let (daemon, port) = start("agent", folder.path(), &agent);
    for _ in 0..100 {
        ask(port);
    }
    idle("agent after 100 orders", &daemon);
    drop(daemon);

    let catalog = folder.path().join("catalog");
    write_catalog(&catalog);
    let entries: Vec<_> = DATASETS
        .iter()
        .map(|name| {
            json!({ "hostname": "alpha", "dataset": name, "backup": { "prefix": "BACKUP", "creation": "@hourly",
                "sync_on": "beta", "sync_dataset": name.replace("tank", "pool/copy"),
                "retention": ["24 in last day", "1/day in last month"] } })
        })
        .collect();
    let policy = file(
        "server.json",
        &json!({ "catalog": { "embedded": { "path": catalog } }, "datasets": entries }).to_string(),
    );
    let mut times: Vec<Duration> = (0..PLANS)
        .map(|_| {
            let mut plan = Command::new(ZSYNC);
            // If no dataset is on the own host, the catalog has everything.
            let plan = plan.args(["plan", "--cached", "--hostname", "ruler", "--config"]).arg(&policy);
            let began = Instant::now();
            let output = plan.output().unwrap();
            let took = began.elapsed();
            assert!(output.status.success() && !output.stdout.is_empty(), "{output:?}");
            took
        })
        .collect();
    times.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let median = times[PLANS / 2];
    println!(
        "zsync plan --cached, {} datasets, {PLANS} times: {:.1} ms, {:.1} to {:.1}  target: < {:.0} ms  {}",
        DATASETS.len(),
        ms(median),
        ms(times[0]),
        ms(times[PLANS - 1]),
        ms(MOST_START),
        verdict(median < MOST_START)
    );
}
