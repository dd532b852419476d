//! Runs three Consul servers in network namespaces of their own, and isolates the one that a director uses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use zsync::catalog::{CatalogError, CatalogRead, CatalogWrite, ConsulCatalog};
use zsync::consul::{Consul, ConsulSettings};
use zsync::director::{Election, ElectionResult, Leadership};
use zsync::model::HostName;
use zsync::policy::ConsulConfig;
use zsync::sys::runtime::block_on;

mod common;

use common::consul;

/// Servers in namespaces on one bridge, to which this process is connected as well.
struct Cluster {
    name: String,
    servers: Vec<Child>,
    _folder: tempfile::TempDir,
}

fn ip(args: &str) -> bool {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    if !output.status.success() {
        eprintln!("ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}

fn address(server: usize) -> String {
    format!("10.79.13.{}", server + 1)
}

impl Cluster {
    fn start() -> Option<Self> {
        let program = consul::program_or_skip()?;
        let root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
        let tools = Command::new("ip").arg("-V").output().is_ok_and(|output| output.status.success());
        if !root || !tools {
            eprintln!("SKIPPED: namespaces need root and ip (iproute2)");
            return None;
        }
        let name = format!("zc{}", std::process::id() % 100_000);
        let mut cluster = Self { name: name.clone(), servers: Vec::new(), _folder: tempfile::tempdir().unwrap() };
        let made = ip(&format!("link add {name} type bridge"))
            && ip(&format!("addr add 10.79.13.254/24 dev {name}"))
            && ip(&format!("link set {name} up"))
            && (0..3).all(|n| {
                let ns = cluster.ns(n);
                ip(&format!("netns add {ns}"))
                    && ip(&format!("link add {ns} type veth peer name eth0 netns {ns}"))
                    && ip(&format!("link set {ns} master {name} up"))
                    && ip(&format!("-n {ns} addr add {}/24 dev eth0", address(n)))
                    && ip(&format!("-n {ns} link set eth0 up"))
                    && ip(&format!("-n {ns} link set lo up"))
            });
        if !made {
            assert!(std::env::var_os("CI").is_none(), "namespaces cannot be made here");
            eprintln!("SKIPPED: namespaces cannot be made here");
            return None;
        }
        for n in 0..3 {
            let data = cluster._folder.path().join(n.to_string());
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "ip", "netns", "exec", &cluster.ns(n)]).arg(&program);
            command.args(["agent", "-server", "-bootstrap-expect", "3", "-node", &format!("server{n}"), "-data-dir"]);
            command.arg(&data).args(["-bind", &address(n), "-client", &address(n), "-log-level", "warn"]);
            command.args([
                "-hcl",
                "disable_update_check = true",
                "-hcl",
                "ports { grpc = -1, dns = -1, serf_wan = -1 }",
            ]);
            // Elections as fast as in production.
            command.args(["-hcl", "performance { raft_multiplier = 2 }"]);
            for other in (0..3).filter(|other| *other != n) {
                command.args(["-retry-join", &address(other), "-retry-interval", "1s"]);
            }
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            cluster.servers.push(command.spawn().unwrap());
        }
        Some(cluster)
    }

    fn ns(&self, n: usize) -> String {
        format!("{}s{n}", self.name)
    }

    /// Isolates a server from the others, but not from this process.
    fn cut(&self, server: usize, off: bool) {
        for other in (0..3).filter(|other| *other != server) {
            let verb = if off { "add" } else { "del" };
            assert!(ip(&format!("-n {} route {verb} blackhole {}/32", self.ns(server), address(other))));
        }
    }

    fn leader(&self) -> Option<usize> {
        let leaders = (0..3).filter_map(|n| block_on(client(n).leader()).ok());
        let leader = leaders.into_iter().next()?;
        (0..3).find(|n| leader.starts_with(&format!("{}:", address(*n))))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
        for n in 0..3 {
            ip(&format!("netns del {}", self.ns(n)));
        }
        ip(&format!("link del {}", self.name));
    }
}

fn client(server: usize) -> Consul {
    let config = ConsulConfig { address: Some(format!("{}:8500", address(server))), ..ConsulConfig::default() };
    Consul::new(&ConsulSettings::with_environment(&config, |_| None).unwrap()).unwrap()
}

fn until<T>(what: &str, within: u64, mut found: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(within), "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn seek(server: usize, name: &str) -> Option<Leadership> {
    let office = Election::new(client(server), "zsync", name.parse().unwrap());
    match block_on(office.try_win()) {
        Ok(ElectionResult::Won(leadership)) => Some(leadership),
        _ => None,
    }
}

#[test]
fn director_at_isolated_server_stops_before_another_one_starts() {
    let Some(cluster) = Cluster::start() else { return };
    let cut = until("a leader is elected", 90, || cluster.leader());
    let other = (cut + 1) % 3;
    let first = until("the first takes the lock", 60, || seek(cut, "one"));
    let host: HostName = "alpha".parse().unwrap();
    let catalog = |server| ConsulCatalog::new(client(server), "zsync");
    let listed =
        |n: i64| catalog(other).replace_host(&host, chrono::DateTime::from_timestamp(n, 0).unwrap(), Vec::new());
    until("a host publishes", 30, || listed(1).ok());
    assert!(catalog(cut).host(&host).unwrap().is_some());

    cluster.cut(cut, true);
    let begun = Instant::now();
    let second = until("the other one takes over", 90, || {
        let taken = seek(other, "two");
        // At any time at most one director gives orders.
        let both = taken.is_some() && first.fence().is_ok();
        assert!(!both, "two directors are leaders");
        taken
    });
    println!("another director took over {:.1} s after the cut", begun.elapsed().as_secs_f64());
    assert!(matches!(first.fence(), Err(CatalogError::LockLost(_))));
    assert!(!block_on(first.lost()).is_empty());
    until("a host publishes to the majority", 30, || listed(2).ok());
    // The isolated server does not serve stale data as current.
    let stale = catalog(cut).host(&host);
    assert!(stale.is_err(), "{stale:?}");

    cluster.cut(cut, false);
    let known = until("it is back with the others", 90, || catalog(cut).host(&host).ok().flatten());
    assert_eq!(known.observed.unwrap().timestamp(), 2);
    second.fence().unwrap();
    assert!(seek(cut, "one").is_none(), "another director is the leader");
}
