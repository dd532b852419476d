//! Tests the program as people and service managers use it: its messages and exit statuses when something is wrong. No
//! ZFS is needed: a shell script stands in for `zfs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod common;

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use zsync::catalog::{CatalogRead, CatalogWrite, EmbeddedCatalog};

use common::program::{Ended, LOCAL, POLICY, Place, Running, TWO_HOSTS, ZFS, bare, ended};

#[test]
fn director_without_problems_prints_nothing() {
    let place = Place::new();
    let ended = place.run("director --once");
    assert_eq!((ended.status, ended.stdout.as_str(), ended.stderr.as_str()), (Some(0), "", ""));
}

#[test]
fn unreadable_policy_is_reported_with_hint() {
    let place = Place::new();
    for subcommand in ["director --once", "director", "plan --dry-run"] {
        let run = |config: &str| place.run(&format!("{subcommand} --config {config}"));
        run("{}/none.json").fails(2, &["none.json", "it does not exist", "--config"]);
        run("{}").fails(2, &["it is a folder", "--config"]);
        run("/proc/self/mem").fails(2, &["/proc/self/mem", "cannot read the file"]);
    }
    if !rustix::process::geteuid().is_root() {
        fs::set_permissions(place.path("server.json"), fs::Permissions::from_mode(0o000)).unwrap();
        place.run("director --once").fails(2, &["server.json", "permission denied"]);
    }
}

#[test]
fn invalid_policy_is_reported_with_position() {
    let place = Place::new();
    for (from, to, words) in [
        ("\"prefix\"", "\"prefiks\"", "prefiks"),
        ("\"tank/data\"", "7", "server.json:4:"),
        ("@yearly", "61 * * * *", "61"),
        ("\"datasets\"", "\"timezone\": \"Europe/Pariss\", \"datasets\"", "Europe/Paris"),
        ("\"tank/data\"", "\"tank/data@x\"", "tank/data@x"),
    ] {
        place.policy(&POLICY.replace(from, to));
        for subcommand in ["director --once", "plan --dry-run"] {
            let ended = place.run(subcommand);
            assert_eq!(ended.status, Some(2), "{ended:?}");
            ended.says(&["server.json:", words]);
        }
    }
    assert!(!Path::new(&place.path("catalog")).exists(), "an invalid policy creates no catalog");
}

#[test]
fn director_needs_local_configuration_of_its_host() {
    let place = Place::new();
    place.run("director --once --local {}/none.json").fails(2, &["alpha", "none.json", "it does not exist", "--local"]);
    place.write("local.json", "{ \"local_datasets\": [ { \"nam\": \"tank/data\" } ] }");
    let ended = place.run("director --once");
    assert_eq!(ended.status, Some(2), "{ended:?}");
    ended.says(&["local.json:1:", "nam"]);
}

#[test]
fn invalid_local_configuration_is_reported_if_it_may_name_the_host() {
    let place = Place::new();
    place.write("local.json", "{ \"hostname\": \"alpha\", \"local_datasets\": [] ");
    for subcommand in ["director --once", "plan --dry-run"] {
        let mut command = place.command(&format!("{subcommand} --hostname="));
        let ended = ended(&mut command);
        // An empty --hostname is refused. Without --hostname, local.json is read, because it may contain the name.
        assert_eq!(ended.status, Some(2), "{ended:?}");
        let mut command = bare();
        command.args(subcommand.split(' ')).args(["--config", &place.path("server.json")]);
        command.args(["--local", &place.path("local.json"), "--zfs", &place.path("zfs")]);
        let ended = self::ended(&mut command);
        assert_eq!(ended.status, Some(2), "{ended:?}");
        ended.says(&["local.json:1:"]);
    }
}

#[test]
fn director_works_on_other_hosts_if_its_own_fails() {
    let place = Place::new();
    place.policy(TWO_HOSTS);
    let ended = place.run("director --once --local {}/none.json");
    assert_eq!(ended.status, Some(1), "{ended:?}");
    ended.says(&["cannot list the snapshots of alpha", "none.json", "cannot list the snapshots of beta"]);
    assert_eq!(ended.errors(), 2, "{ended:?}");
}

#[test]
fn director_reaches_its_own_host_through_configured_agent() {
    let place = Place::new();
    let policy =
        POLICY.replace("\"datasets\"", "\"hosts\": { \"alpha\": { \"address\": \"127.0.0.1:1\" } }, \"datasets\"");
    place.policy(&policy);
    place
        .run("director --once --local {}/none.json")
        .fails(1, &["cannot list the snapshots of alpha", "127.0.0.1:1", "refused"]);
}

#[test]
fn unreachable_agent_is_reported_once() {
    let place = Place::new();
    place.policy(TWO_HOSTS);
    let ended = place.run("director --once --verbose");
    ended.fails(1, &["beta", "127.0.0.1:1", "refused", "check that zsync agent is running on beta"]);
    assert_eq!(ended.stderr.matches("beta").count(), 3, "beta is named with its address, and in the hint: {ended:?}");
}

#[test]
fn unusable_zfs_is_reported_with_hint() {
    let place = Place::new();
    let all = ["director --once", "director", "agent", "slave"];
    for subcommand in all {
        let ended = place.run(&format!("{subcommand} --zfs /nonexistent/zfs"));
        ended.fails(2, &["cannot run \"/nonexistent/zfs\"", "--zfs"]);
    }
    for (script, words) in [
        ("echo zfs-0.8.6-1; echo zfs-kmod-0.8.6-1", ["zfs-0.8.6-1", "2.0 or newer"]),
        ("echo 'The ZFS modules cannot be auto-loaded.' >&2; exit 1", ["exit status 1", "cannot be auto-loaded"]),
        ("echo hello", ["cannot parse the output", "hello"]),
        ("printf '\\377\\376'", ["cannot parse the output", "UTF-8"]),
        ("exit 0", ["cannot parse the output", "empty"]),
        ("kill -9 $$", ["version", "SIGKILL"]),
    ] {
        place.zfs(&format!("#!/bin/sh\n{script}\n"));
        for subcommand in all {
            place.run(subcommand).fails(2, &words);
        }
    }
}

#[test]
fn malformed_listing_is_quoted() {
    let place = Place::new();
    place.zfs(&ZFS.replace(
        "tank/data\\tfilesystem\\t2\\t0\\t-\\t-\\t-\\t-\\t-",
        "tank/data\\tfilesystem\\tmany\\t0\\t-\\t-\\t-\\t-\\t-",
    ));
    place.run("director --once").fails(1, &["cannot list the pool tank of alpha", "guid \"many\" is not a number"]);
}

/// `zfs list` reports missing datasets before it prints the others, so the output of one that was killed is not a
/// complete listing.
#[test]
fn listing_that_was_killed_is_not_believed() {
    let place = Place::new();
    place.zfs(&ZFS.replace(
        "printf 'tank/data\\tfilesystem",
        "echo \"cannot open 'tank/x': dataset does not exist\" >&2; kill -9 $$; printf 'tank/data\\tfilesystem",
    ));
    place.run("director --once").fails(1, &["cannot list the pool tank of alpha", "SIGKILL"]);
}

#[test]
fn pass_fails_if_dataset_of_policy_is_missing() {
    let place = Place::new();
    place.policy(&POLICY.replace("tank/data", "tank/dada"));
    place.write("local.json", &LOCAL.replace("tank/data", "tank"));
    place.zfs(&ZFS.replace("tank/data\\tfilesystem", "tank\\tfilesystem").replace("\\ttank/data\\n", "\\ttank\\n"));
    place.run("director --once").fails(1, &["alpha:tank/dada", "does not exist", "local.json"]);
}

#[test]
fn occupied_port_is_reported() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for subcommand in ["agent", "slave"] {
        let ended = place.run(&format!("{subcommand} --listen {address} --log warn"));
        ended.fails(2, &[&address.to_string(), "in use", "--listen", subcommand]);
    }
}

#[test]
fn plaintext_beyond_loopback_needs_an_option() {
    let place = Place::new();
    for subcommand in ["agent", "slave"] {
        for address in ["0.0.0.0:0", "[::]:0"] {
            let ended = place.run(&format!("{subcommand} --listen {address} --log warn"));
            ended.fails(2, &[address, "--insecure-plaintext", "127.0.0.1"]);
        }
        let mut running =
            Running::start(&mut place.command(&format!("{subcommand} --listen 0.0.0.0:0 --insecure-plaintext")));
        running.wait_for("listens on 0.0.0.0", 2);
        assert_eq!(running.stop(), Some(0));
    }
}

#[test]
fn invalid_listen_address_is_reported() {
    let place = Place::new();
    for address in ["127.0.0.1:99999", "a:b:c", "http://localhost", "[::1", "no.such.host.invalid:7711", "192.0.2.1:1"]
    {
        let mut command = place.command(&format!("agent --log warn --insecure-plaintext --listen {address}"));
        let ended = ended(&mut command);
        assert_eq!(ended.status, Some(2), "{ended:?}");
        ended.says(&[address, "--listen"]);
    }
}

#[test]
fn hosts_that_left_the_policy_are_forgotten_after_a_month() {
    let place = Place::new();
    let catalog = || EmbeddedCatalog::open(Path::new(&place.path("catalog"))).unwrap();
    let listed = |host: &str, days: i64| {
        let at = Utc::now() - TimeDelta::days(days);
        catalog()
            .replace_host(&host.parse().unwrap(), at, vec![("tank/x".parse().unwrap(), Default::default())])
            .unwrap();
    };
    let known = || {
        let hosts = catalog().inventory().unwrap().hosts;
        hosts.keys().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    listed("retired", 31);
    listed("moved", 29);
    assert_eq!(place.run("director --once").status, Some(0));
    assert_eq!(known(), "alpha moved");
    listed("retired", 31);
    assert_eq!(place.run("director --once").status, Some(0));
    assert_eq!(known(), "alpha moved retired", "it is done once a day");
    let ended = place.run("clean --config {}/server.json");
    assert!(
        ended.stdout.starts_with("deleted retired, which the policy does not name\ndeleted 0 records"),
        "{ended:?}"
    );
    let ended = place.run("clean --config {}/server.json --older-than 1ms");
    assert!(ended.stdout.starts_with("deleted moved, "), "{ended:?}");
    assert_eq!(known(), "alpha", "a host that the policy names stays, whatever its age");
}

#[test]
fn misspelt_names_are_reported_with_the_names_that_are_known() {
    let place = Place::new();
    // The policy covers the dataset, but no host has it.
    assert_eq!(place.run("director --once").status, Some(0));
    place.run("status --dataset tank/dada").fails(2, &["--dataset", "has tank/dada"]);
    place.run("status --dataset tank/data/typo").fails(2, &["--dataset", "tank/data/typo does not exist on alpha"]);
    place.run("status --host alhpa").fails(2, &["--host", "does not name alhpa; it names alpha"]);
    assert_eq!(place.run("status --dataset tank/data").status, Some(0));
    let ended = place.run("check --dataset tank/dada");
    assert!(ended.status == Some(3) && ended.stdout.contains("--dataset"), "{ended:?}");
    place.run("plan --dry-run --compare {}/none.json").fails(2, &["none.json", "does not exist", "--compare"]);
    // A policy for a host that is called otherwise.
    place.policy(&POLICY.replace("\"alpha\"", "\"alhpa\""));
    let ended = place.run("plan --dry-run");
    assert!(ended.stdout.contains("alhpa has not answered") && ended.stdout.contains("is called alpha"), "{ended:?}");
    let ended = place.run("check --verbose");
    assert!(ended.stdout.contains("alhpa: has never been listed (this host is called alpha)"), "{ended:?}");
}

#[test]
fn second_director_is_refused_by_embedded_catalog() {
    let place = Place::new();
    let mut first = Running::start(&mut place.command("director --interval 1s --log debug"));
    first.wait_for("the pass took", 1);
    let process = format!("process {}", first.child.id());
    place.run("director --once").fails(2, &["another director", &process, &place.path("catalog")]);
    for arguments in ["plan --dry-run", "plan --cached"] {
        let ended = place.run(arguments);
        assert_eq!(ended.status, Some(0), "a plan does not need the lock: {ended:?}");
    }
    assert_eq!(first.stop(), Some(0));
    assert_eq!(place.run("director --once").status, Some(0));
}

#[test]
fn damaged_catalog_is_reported_and_deleted_one_rebuilt() {
    let place = Place::new();
    assert_eq!(place.run("director --once").status, Some(0));
    place.write("catalog/catalog.sqlite", "this is no database at all, not at all, at all");
    for subcommand in ["director --once", "director", "plan --dry-run"] {
        place.run(subcommand).fails(2, &["damaged", "move the folder", &place.path("catalog")]);
    }
    fs::remove_dir_all(place.path("catalog")).unwrap();
    assert_eq!(place.run("director --once").status, Some(0));
    place.policy(&POLICY.replace("CATALOG", "/proc/nowhere/catalog"));
    place.run("director --once").fails(2, &["/proc/nowhere/catalog", "catalog.embedded.path"]);
}

#[test]
fn dry_run_reports_missing_answers_and_cached_plan_asks_nobody() {
    let place = Place::new();
    place.policy(TWO_HOSTS);
    let ended = place.run("plan --dry-run");
    assert_eq!(ended.status, Some(1), "{ended:?}");
    ended.says(&["cannot list the snapshots of beta: cannot reach beta"]);
    assert!(ended.stdout.contains("beta has not answered"), "{ended:?}");
    assert!(!ended.stdout.contains("alpha has not answered"), "{ended:?}");
    assert!(!Path::new(&place.path("catalog")).exists(), "a dry run writes nothing");
    let ended = place.run("plan --dry-run --local {}/none.json");
    assert_eq!(ended.status, Some(1), "without a local.json, the pass does nothing on this host either: {ended:?}");
    ended.says(&["cannot list the snapshots of alpha", "none.json"]);
    let ended = place.run("plan --cached");
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    assert!(ended.stdout.contains("beta: the catalog has no listing of it"), "{ended:?}");
    place.run("director --once");
    let ended = place.run("plan --cached");
    assert!(ended.stdout.contains("alpha: as listed at ") && ended.stdout.contains("ago"), "{ended:?}");
}

#[test]
fn usage_error_ends_with_status_2() {
    let place = Place::new();
    for arguments in [
        "",
        "direct",
        "director --onse",
        "director --once --interval 5m",
        "director --interval 0s",
        "director --interval soon",
        "director --hostname -x",
        "director --plan file",
        "plan --simulate 0d",
        "plan --catalog file --out file",
        "plan --cached --catalog file",
        "plan --dry-run --at yesterday",
        "plan --dry-run --dataset tank//x",
        "agent --log loud",
        "director --format xml",
    ] {
        let ended = ended(bare().args(arguments.split_whitespace()));
        assert_eq!((ended.status, ended.stdout.as_str()), (Some(2), ""), "{arguments}: {ended:?}");
        assert!(ended.stderr.contains("sage:") || ended.stderr.contains("--help"), "{arguments}: {ended:?}");
    }
    drop(place);
}

#[test]
fn every_subcommand_has_help() {
    for subcommand in ["", "director", "agent", "slave", "plan", "check"] {
        let ended = ended(bare().args(subcommand.split_whitespace()).arg("--help"));
        assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
        assert!(ended.stdout.contains("Usage: zsync"), "{ended:?}");
    }
    let ended = ended(bare().arg("--version"));
    assert_eq!(ended.stdout, format!("zsync {}\n", env!("CARGO_PKG_VERSION")));
}

/// Runs the program while one of its output streams is closed at once.
fn unread(command: &mut Command, stdout: bool) -> Ended {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut rest = String::new();
    if stdout {
        drop(child.stdout.take());
        child.stderr.take().unwrap().read_to_string(&mut rest).unwrap();
    } else {
        drop(child.stderr.take());
        child.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
    }
    let status = child.wait().unwrap().code();
    let (out, err) = if stdout { (String::new(), rest) } else { (rest, String::new()) };
    Ended { status, stdout: out, stderr: err }
}

#[test]
fn closed_standard_output_is_no_error() {
    let place = Place::new();
    // More than a pipe can hold.
    let list = "i=0; while [ $i -lt 3000 ]; do i=$((i + 1)); \
                printf 'tank/data@SYNC_2020-01-01_00:00:00_%d\\t%d\\t%d\\t1600000000\\t0\\n' $i $i $i; done";
    place.zfs(&ZFS.replace("printf 'tank/data@SYNC_2026-01-01_00:00:00\\t1\\t1\\t%s\\t0\\n' \"$(date +%s)\"", list));
    for arguments in ["plan --dry-run --format json --explain", "plan --dry-run", "director --once --verbose"] {
        let ended = unread(&mut place.command(arguments), true);
        assert!(ended.status.is_some_and(|status| status < 2), "{arguments}: {ended:?}");
        assert!(!ended.stderr.contains("standard output"), "{arguments}: {ended:?}");
    }
    let ended = unread(bare().arg("--help"), true);
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""));
    let ended = unread(&mut place.command("director --once --config /nonexistent"), false);
    assert_eq!(ended.status, Some(2), "the status does not depend on standard error: {ended:?}");
}

#[test]
fn service_ends_soon_with_status_0_on_sigterm() {
    let place = Place::new();
    for (arguments, up) in [
        ("agent --listen 127.0.0.1:0", "agent listens on 127.0.0.1"),
        ("slave --listen 127.0.0.1:0", "slave listens on 127.0.0.1"),
        ("director --interval 1h --log debug", "the pass took"),
    ] {
        let mut running = Running::start(&mut place.command(arguments));
        running.wait_for(up, 1);
        let asked = Instant::now();
        assert_eq!(running.stop(), Some(0), "{arguments}");
        assert!(asked.elapsed() < Duration::from_secs(5), "{arguments}: {:?}", asked.elapsed());
    }
    // A director also ends soon during a pass, here with a slow zfs.
    place.zfs(&ZFS.replace("#!/bin/sh\n", "#!/bin/sh\n[ \"$*\" = version ] || exec sleep 60\n"));
    let mut running = Running::start(&mut place.command("director --interval 1h --grace 1s --log debug"));
    running.wait_for("running", 2);
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn repeated_failure_is_logged_once() {
    let place = Place::new();
    place.policy(TWO_HOSTS);
    let mut running = Running::start(&mut place.command("director --interval 1s --log debug"));
    running.wait_for("the pass took", 3);
    assert_eq!(running.count("cannot list the snapshots of beta"), 1, "{:#?}", running.seen);
    // The policy becomes invalid: that is reported once as well, and the former policy stays in force.
    place.write("server.json", "{");
    running.wait_for("stays in force", 1);
    running.wait_for("the pass took", 3);
    assert_eq!(running.count("stays in force"), 1, "{:#?}", running.seen);
    assert_eq!(running.count("all is well again"), 0, "{:#?}", running.seen);
    // The correction is reported, too.
    place.policy(POLICY);
    running.wait_for("the policy: all is well again", 1);
    assert_eq!(running.count("beta: all is well again"), 1, "{:#?}", running.seen);
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn director_takes_up_its_host_once_it_is_ready() {
    let place = Place::new();
    place.policy(TWO_HOSTS);
    let local: PathBuf = place.path("local.json").into();
    fs::remove_file(&local).unwrap();
    let mut running = Running::start(&mut place.command("director --interval 1s --log debug"));
    running.wait_for("cannot list the snapshots of alpha", 1);
    fs::write(&local, LOCAL).unwrap();
    running.wait_for("alpha: all is well again", 1);
    assert_eq!(running.stop(), Some(0));
}
