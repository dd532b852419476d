//! What can be typed; it touches nothing.

use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::cli::report::Format;
use crate::config::{DEFAULT_LOCAL_FILE, DEFAULT_SERVER_FILE};
use crate::model::{DatasetName, HostName, PeerRole};

/// Keeps a fleet's ZFS snapshots taken, replicated and pruned by policy.
#[derive(Debug, Parser)]
#[command(name = "zsync", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "One machine:  zsync director --once      (from cron; nothing else runs)\n\
                        Several:      zsync agent on each host with datasets, zsync slave on each that receives,\n\
                        \u{20}             zsync director on one\n\
                        Preview:      zsync plan --dry-run\n\
                        How it goes:  zsync status\n\
                        Certificates: zsync tls init, then zsync tls issue for each host\n\n\
                        Files: /etc/zsync/server.json (policy), /etc/zsync/local.json (each host). \
                        Exit status: 0 all well, 1 some order failed, some host could not be looked at or \
                        the policy asks for what cannot be, 2 could not work at all, 3 plan --exit-code: there are orders. See zsync(8).")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Decide by policy what to take, send and destroy, and have agents do it.
    Director(Director),
    /// Carry out a director's orders on this host.
    Agent(Agent),
    /// Receive streams from agents into this host's datasets.
    Slave(Slave),
    /// Preview the orders that the director would give.
    Plan(Plan),
    /// Show the fleet at a glance: newest snapshots, replicas, what lags, what is under way.
    Status(Status),
    /// Judge how well the policy is kept, for Nagios, Icinga and cron.
    Check(Check),
    /// Forget marks in the catalog by age.
    Clean(Clean),
    /// Take over what zeplic kept in Consul.
    Migrate(Migrate),
    /// Make certificates with which hosts prove to each other who they are, and explain them.
    #[command(subcommand)]
    Tls(Tls),
    /// Print the completions of a shell.
    Completions(Completions),
    /// Print the JSON schema of a configuration file, for editors.
    Schema(Schema),
}

/// Options that every subcommand has.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// This host's name in the policy [default: "hostname" of local.json, else what the system calls itself]
    #[arg(long, env = "ZSYNC_HOSTNAME", value_name = "NAME")]
    pub hostname: Option<HostName>,
    /// What this host lets zsync do with its datasets
    #[arg(long, value_name = "FILE", default_value = DEFAULT_LOCAL_FILE)]
    pub local: PathBuf,
    /// The zfs program
    #[arg(long, value_name = "PROGRAM", default_value = "zfs")]
    pub zfs: PathBuf,
    /// How much to log: error, warn, info, debug, trace [default: RUST_LOG, else info for
    /// agent, slave and a director in its loop, warn otherwise]
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<log::LevelFilter>,
    /// How to log
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub log_format: LogFormat,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people; for systemd's journal without the time, but with priorities.
    #[default]
    Text,
    /// One JSON object a line: time, level, target, message.
    Json,
}

fn any_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|e| e.to_string())
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = any_duration(text)?;
    if duration.is_zero() { Err("it is zero".into()) } else { Ok(duration) }
}

/// How far ahead a policy may be played.
const MOST_SIMULATED: Duration = Duration::from_secs(20 * 366 * 86_400);

fn simulated(text: &str) -> Result<Duration, String> {
    let length = duration(text)?;
    if length > MOST_SIMULATED { Err("it is longer than 20 years".into()) } else { Ok(length) }
}

fn moment(text: &str) -> Result<DateTime<Utc>, String> {
    humantime::parse_rfc3339_weak(text)
        .map(DateTime::from)
        .or_else(|_| text.parse::<DateTime<Utc>>())
        .map_err(|_| "write it like 2026-11-23T10:30:00Z".to_owned())
}

/// `zsync director`.
#[derive(Args, Debug)]
#[command(after_help = "Exit status: 0 all well, 1 some order failed, some host could not be looked at or \
                        the policy asks for what cannot be, 2 could not work at all.\n\nFrom cron, with the folders of zsync and zfs in its PATH:\n  \
                        */5 * * * * root zsync director --once")]
pub struct Director {
    /// Options that every subcommand has.
    #[command(flatten)]
    pub common: Common,
    /// The policy
    #[arg(long, short, value_name = "FILE", default_value = DEFAULT_SERVER_FILE)]
    pub config: PathBuf,
    /// Options of those that remember something.
    #[command(flatten)]
    pub state: State,
    /// Make one pass and exit; silent when all is well
    #[arg(long)]
    pub once: bool,
    /// In the first pass ask every host what it holds, and tell what the catalog had wrong
    #[arg(long)]
    pub resync: bool,
    /// From the beginning of one pass to that of the next
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration, conflicts_with = "once")]
    pub interval: Duration,
    /// With --once: break off after so long; what was not done is left to the next pass
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "once")]
    pub timeout: Option<Duration>,
    /// After SIGTERM: how long orders under way may go on before they are broken off, to be gone on with later
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = any_duration)]
    pub grace: Duration,
    /// With --once: tell what was done even when all is well
    #[arg(long, short)]
    pub verbose: bool,
    /// With --once: how to tell it (json and ndjson imply --verbose)
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Tell metrics to Prometheus at http://HOST:PORT/metrics; on 127.0.0.1 where only a port is said
    #[arg(long, value_name = "[HOST:]PORT", conflicts_with = "once")]
    pub metrics: Option<String>,
    /// With --once: write metrics to this file, for node_exporter's textfile collector
    #[arg(long, value_name = "FILE", requires = "once")]
    pub metrics_file: Option<PathBuf>,
    /// With --once: carry out this plan of zsync plan --out, and nothing else
    #[arg(long, value_name = "FILE", requires = "once")]
    pub plan: Option<PathBuf>,
}

/// `zsync agent`.
#[derive(Args, Debug)]
#[command(after_help = "Give it an order by hand:\n  \
    printf '{\"OrderUUID\":\"%s\",\"Action\":\"take_snapshot\",\"SnapshotName\":\"by-hand\",\"DestDataset\":\"tank/foo\"}' \\\n    \
    \"$(cat /proc/sys/kernel/random/uuid)\" | nc -N localhost 7711")]
pub struct Agent {
    /// Options that every subcommand has.
    #[command(flatten)]
    pub common: Common,
    /// Options of those that listen.
    #[command(flatten)]
    pub listen: Listen,
    /// Options of those that remember something.
    #[command(flatten)]
    pub state: State,
}

/// `zsync slave`.
#[derive(Args, Debug)]
pub struct Slave {
    /// Options that every subcommand has.
    #[command(flatten)]
    pub common: Common,
    /// Options of those that listen.
    #[command(flatten)]
    pub listen: Listen,
    /// Options of those that remember something.
    #[command(flatten)]
    pub state: State,
}

/// Options of those that remember something.
#[derive(Args, Clone, Debug)]
pub struct State {
    /// Where this host keeps what has to survive restarts: how recent orders ended, whose orders count, what is still to
    /// be published
    #[arg(long, env = "ZSYNC_STATE", value_name = "FOLDER", default_value = "/var/lib/zsync")]
    pub state: PathBuf,
}

/// Options of those that listen.
#[derive(Args, Clone, Debug)]
pub struct Listen {
    /// Where to listen, at port 7711 (agent) or 7722 (slave) unless one is written [default: "listen" of local.json,
    /// else 127.0.0.1]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub listen: Option<String>,
    /// Listen in plaintext beyond this machine: whoever reaches the port is obeyed
    #[arg(long)]
    pub insecure_plaintext: bool,
    /// Tell metrics to Prometheus at http://HOST:PORT/metrics; on 127.0.0.1 where only a port is said
    #[arg(long, value_name = "[HOST:]PORT")]
    pub metrics: Option<String>,
    /// After SIGTERM: how long what is under way may go on before it is broken off, to be gone on with later
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = any_duration)]
    pub grace: Duration,
}

/// `zsync plan`.
#[derive(Args, Debug)]
#[command(after_help = "Exit status: 0; 1 some host could not be looked at; 2 could not work at all; \
                        with --exit-code 3 when there are orders (with --compare: differences).\n\n\
                        JSON: zsync-plan-json(5)")]
pub struct Plan {
    /// Options that every subcommand has.
    #[command(flatten)]
    pub common: Common,
    /// The policy
    #[arg(long, short, value_name = "FILE", default_value = DEFAULT_SERVER_FILE)]
    pub config: PathBuf,
    /// Change nothing anywhere: decide from the catalog, and for this host from its ZFS. Without it the agents are asked
    /// first what they hold, and how much would be sent and freed, which is written to the catalog; no order changes anything
    #[arg(long)]
    pub dry_run: bool,
    /// Decide from this exported catalog and nothing else (- is standard input); nothing is changed anywhere
    #[arg(long, value_name = "FILE")]
    pub catalog: Option<PathBuf>,
    /// Only orders to this host
    #[arg(long, value_name = "NAME")]
    pub host: Option<HostName>,
    /// Only orders about this dataset and what is below it
    #[arg(long, value_name = "DATASET")]
    pub dataset: Option<DatasetName>,
    /// How to print; ndjson lines are orders as agents take them
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Tell of every snapshot why it stays or goes, and of everything not due why not
    #[arg(long)]
    pub explain: bool,
    /// Decide as of this moment instead of now
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub at: Option<DateTime<Utc>>,
    /// Exit with 3 when there are orders
    #[arg(long)]
    pub exit_code: bool,
    /// Play the policy forward for so long, and tell what would be done and be left each day
    #[arg(long, value_name = "DURATION", value_parser = simulated, conflicts_with = "explain")]
    pub simulate: Option<Duration>,
    /// Tell what this other policy would destroy, keep, take or send that the policy does not; with --simulate, play both
    /// forward and tell them side by side
    #[arg(long, value_name = "OTHER")]
    pub compare: Option<PathBuf>,
    /// Save the plan, for zsync director --once --plan; good for 24 hours and for this policy
    #[arg(long, value_name = "FILE", conflicts_with_all = ["catalog", "at", "simulate", "compare"])]
    pub out: Option<PathBuf>,
    /// Write the catalog, and this host's ZFS, as --catalog reads it (- is standard output); decides nothing
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-",
          conflicts_with_all = ["simulate", "compare", "out", "explain", "exit_code", "at", "host", "dataset", "format"])]
    pub export_catalog: Option<PathBuf>,
}

/// `zsync clean`.
#[derive(Args, Debug)]
#[command(after_help = "The director does the same by itself once a day, with 30 days.\n\n\
                        Exit status: 0; 2 could not work at all.")]
pub struct Clean {
    /// Options that every subcommand has.
    #[command(flatten)]
    pub common: Common,
    /// The policy, which names the catalog
    #[arg(long, short, value_name = "FILE", default_value = DEFAULT_SERVER_FILE)]
    pub config: PathBuf,
    /// How old a mark has to be
    #[arg(long, value_name = "DURATION", default_value = "30days", value_parser = duration)]
    pub older_than: Duration,
}

/// `zsync migrate`.
#[derive(Args, Debug)]
#[command(after_help = "Run it once, when every host's agent has published; nothing of zeplic's is changed.\n\n\
                        Exit status: 0; 2 could not work at all.")]
pub struct Migrate {
    /// Options that every subcommand has.
    #[command(flatten)]
    pub common: Common,
    /// The policy, which names the catalog
    #[arg(long, short, value_name = "FILE", default_value = DEFAULT_SERVER_FILE)]
    pub config: PathBuf,
}

/// `zsync tls`.
#[derive(Debug, Subcommand)]
#[command(after_help = "Two hosts, secured from alpha:\n  \
    zsync tls init\n  \
    zsync tls issue alpha --role director,agent\n  \
    zsync tls issue beta --role agent,slave\n  \
    cp -r /etc/zsync/ca/alpha /etc/zsync/tls\n  \
    scp -pr /etc/zsync/ca/beta beta:/etc/zsync/tls\n\
    Then set \"tls\": {} in server.json and local.json, and \"directors\" in local.json. See zsync-tls(8).")]
pub enum Tls {
    /// Make a CA, the one whose word the fleet believes.
    Init(TlsInit),
    /// Issue a certificate to a host.
    Issue(TlsIssue),
    /// Explain certificates, and tell what is wrong with them.
    Show(TlsShow),
}

/// `zsync tls init`.
#[derive(Args, Debug)]
pub struct TlsInit {
    /// Where the CA is kept
    #[arg(long, value_name = "DIR", default_value = "/etc/zsync/ca")]
    pub ca: PathBuf,
    /// What it is called in its certificate
    #[arg(long, value_name = "NAME", default_value = "zsync CA")]
    pub name: String,
    /// How many days it is valid
    #[arg(long, value_name = "N", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
}

/// `zsync tls issue`.
#[derive(Args, Debug)]
pub struct TlsIssue {
    /// The host's name in the policy
    #[arg(value_name = "HOST")]
    pub host: HostName,
    /// What the host may be to others: director, agent, slave
    #[arg(long, value_name = "ROLE", required = true, value_delimiter = ',')]
    pub role: Vec<PeerRole>,
    /// Another name of the host; may be repeated
    #[arg(long, value_name = "NAME")]
    pub also: Vec<HostName>,
    /// How many days the certificate is valid
    #[arg(long, value_name = "N", default_value_t = 825, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
    /// Where the CA is kept
    #[arg(long, value_name = "DIR", default_value = "/etc/zsync/ca")]
    pub ca: PathBuf,
    /// Where the files go [default: a folder of the host's name beside the CA's files]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Replace the files of an earlier certificate
    #[arg(long)]
    pub renew: bool,
}

/// `zsync tls show`.
#[derive(Args, Debug)]
#[command(after_help = "Exit status: 0; 1 when something is wrong with one of them; 2 could not work at all.")]
pub struct TlsShow {
    /// Files of certificates (PEM); what lies beside them, ca.crt and the key, is checked against them
    #[arg(value_name = "FILE", default_value = "/etc/zsync/tls/host.crt")]
    pub files: Vec<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// `zsync status`.
#[derive(Args, Debug)]
#[command(after_help = "It changes nothing. Exit status: 0; 2 could not work at all. For monitoring: zsync check.")]
pub struct Status {
    /// Options that every subcommand has.
    #[command(flatten)]
    pub common: Common,
    /// The policy
    #[arg(long, short, value_name = "FILE", default_value = DEFAULT_SERVER_FILE)]
    pub config: PathBuf,
    /// Only datasets of this host, and what is sent there
    #[arg(long, value_name = "NAME")]
    pub host: Option<HostName>,
    /// Only this dataset and what is below it
    #[arg(long, value_name = "DATASET")]
    pub dataset: Option<DatasetName>,
    /// Ask no agents: show what the last pass saw
    #[arg(long)]
    pub offline: bool,
    /// Show it again and again, each 5 seconds or as often as said
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "5s", value_parser = duration)]
    pub watch: Option<Duration>,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// `zsync check`.
#[derive(Args, Debug)]
#[command(after_help = "Exit status, as monitoring plug-ins have it: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.")]
pub struct Check {
    /// Options that every subcommand has.
    #[command(flatten)]
    pub common: Common,
    /// The policy
    #[arg(long, short, value_name = "FILE", default_value = DEFAULT_SERVER_FILE)]
    pub config: PathBuf,
    /// Look at the configuration files only: is everything in them valid?
    #[arg(long, conflicts_with_all = ["host", "dataset", "format"])]
    pub config_only: bool,
    /// Only datasets of this host, and what is sent there
    #[arg(long, value_name = "NAME")]
    pub host: Option<HostName>,
    /// Only this dataset and what is below it
    #[arg(long, value_name = "DATASET")]
    pub dataset: Option<DatasetName>,
    /// Tell everything that is wrong, one a line, after the summary
    #[arg(long, short)]
    pub verbose: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    pub format: CheckFormat,
}

/// How `zsync check` prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum CheckFormat {
    /// One line with performance data, as monitoring plug-ins print it.
    #[default]
    Nagios,
    /// One JSON document.
    Json,
}

/// `zsync completions`.
#[derive(Args, Debug)]
#[command(
    after_help = "For this shell only:  source <(zsync completions bash)\nFor good:             make install, or see zsync-completions(8)."
)]
pub struct Completions {
    /// Whose
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: Shell,
}

/// A shell that is completed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shell {
    /// GNU Bash.
    Bash,
    /// The Z shell.
    Zsh,
    /// The friendly interactive shell.
    Fish,
}

impl Completions {
    /// The completions, as the shell reads them.
    #[must_use]
    pub fn text(&self) -> Vec<u8> {
        let shell = match self.shell {
            Shell::Bash => clap_complete::Shell::Bash,
            Shell::Zsh => clap_complete::Shell::Zsh,
            Shell::Fish => clap_complete::Shell::Fish,
        };
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "zsync", &mut text);
        text
    }
}

/// `zsync schema`.
#[derive(Args, Debug)]
pub struct Schema {
    /// Of which file: server.json or local.json
    #[arg(value_enum, value_name = "FILE")]
    pub file: ConfigFile,
}

/// A configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ConfigFile {
    /// The policy, server.json.
    Server,
    /// What a host lets zsync do, local.json.
    Local,
}
