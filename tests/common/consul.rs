// A real Consul on loopback, which tests start and stop.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long a Consul may take to start on a busy machine.
const START_WITHIN: Duration = Duration::from_secs(60);

/// The program: `$ZSYNC_CONSUL`, else the one that `tests/consul/build` downloaded, else the one in `$PATH`.
pub fn program() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let fetched = cache.map(|cache| cache.join("zsync-consul/consul"));
    let installed = std::env::var_os("PATH")
        .and_then(|path| std::env::split_paths(&path).map(|folder| folder.join("consul")).find(|file| file.is_file()));
    let named = std::env::var_os("ZSYNC_CONSUL").map(PathBuf::from);
    named.or(fetched.filter(|file| file.is_file())).or(installed)
}

/// The program. Without one, the test prints that it is skipped; in CI, that is an error.
pub fn program_or_skip() -> Option<PathBuf> {
    let found = program();
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "there is no consul; tests/consul/build (make setup) downloads one");
        eprintln!("SKIPPED: there is no consul; tests/consul/build downloads one");
    }
    found
}

/// Free ports.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// A single Consul.
pub struct Agent {
    child: Child,
    /// `host:port` of its HTTP API.
    pub address: String,
    ports: [u16; 4],
    more: Vec<String>,
    mode: Mode,
    folder: tempfile::TempDir,
}

/// Where a Consul keeps its data.
#[derive(Clone, Copy)]
enum Mode {
    /// In memory (development mode). Consul then indents its JSON.
    Development,
    /// On disk, as in production.
    Server,
}

impl Agent {
    /// Starts a Consul in development mode; `more` is configuration in HCL.
    pub fn start(more: &[&str]) -> Option<Self> {
        Self::start_as(Mode::Development, more)
    }

    /// Starts a Consul as in production.
    pub fn start_server() -> Option<Self> {
        Self::start_as(Mode::Server, &[])
    }

    /// The id of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn start_as(mode: Mode, more: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let more: Vec<String> = more.iter().map(|&text| text.to_owned()).collect();
        // Another process may take a port first.
        for _ in 0..5 {
            let ports = free_ports();
            let mut child = spawn(&ports, &more, mode, folder.path())?;
            let address = format!("127.0.0.1:{}", ports[0]);
            if leads(&address, &mut child) {
                return Some(Self { child, address, ports, more, mode, folder });
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("Consul does not start");
    }

    /// Kills the process.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts Consul again on the same ports. In development mode, it is empty then.
    pub fn start_again(&mut self) {
        self.child = spawn(&self.ports, &self.more, self.mode, self.folder.path()).unwrap();
        assert!(leads(&self.address, &mut self.child), "Consul does not start again");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(ports: &[u16; 4], more: &[String], mode: Mode, folder: &Path) -> Option<Child> {
    let [http, server, lan, wan] = ports;
    let config = format!(
        "disable_update_check = true\nports {{ http = {http}, grpc = -1, dns = -1, server = {server}, serf_lan = {lan}, serf_wan = {wan} }}"
    );
    // Consul ends with the tests, even if they are killed.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program_or_skip()?);
    command.args(["agent", "-bind", "127.0.0.1", "-client", "127.0.0.1", "-log-level", "warn", "-hcl", &config]);
    for text in more {
        command.args(["-hcl", text]);
    }
    match mode {
        Mode::Development => command.arg("-dev"),
        Mode::Server => command.args(["-server", "-bootstrap-expect", "1", "-data-dir"]).arg(folder),
    };
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Some(command.spawn().unwrap())
}

/// Waits until Consul is ready; returns false if it ends before that.
fn leads(address: &str, child: &mut Child) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < START_WITHIN {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        // Ready means that leader and store respond, and that the agent has registered itself, which sessions need. If
        // Consul requires a token, this request is refused, which counts as a response.
        let health = ask(address, "GET", "/v1/health/state/passing");
        if health.is_some_and(|(status, body)| status == 403 || body.contains("serfHealth") || body == "[]") {
            let stored =
                ask(address, "GET", "/v1/kv/?keys").is_some_and(|(status, _)| [200, 403, 404].contains(&status));
            let alone =
                ask(address, "GET", "/v1/catalog/nodes").is_some_and(|(_, body)| body.contains("Node") || body == "[]");
            if stored && alone {
                return true;
            }
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    false
}

/// Sends one request without zsync's code; returns status and body.
pub fn ask(address: &str, method: &str, path: &str) -> Option<(u16, String)> {
    ask_with(address, method, path, "", "")
}

/// Sends one request with a token and a body; returns status and body.
pub fn ask_with(address: &str, method: &str, path: &str, token: &str, body: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    let token = if token.is_empty() { String::new() } else { format!("X-Consul-Token: {token}\r\n") };
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: consul\r\nConnection: close\r\n{token}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer.split_once("\r\n\r\n").map(|(_, body)| body.trim().to_owned()).unwrap_or_default()))
}

/// The address of one Consul that all tests of a program may share.
pub fn shared() -> Option<&'static str> {
    static SHARED: OnceLock<Option<String>> = OnceLock::new();
    let start = || {
        let (sender, receiver) = std::sync::mpsc::channel();
        // Consul ends with the thread that started it, so that thread must never end.
        std::thread::spawn(move || {
            let agent = Agent::start(&[]);
            let _ = sender.send(agent.as_ref().map(|agent| agent.address.clone()));
            loop {
                std::thread::park();
            }
        });
        receiver.recv().unwrap_or(None)
    };
    SHARED.get_or_init(start).as_deref()
}
