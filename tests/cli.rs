//! The program as people and service managers meet it: what it says and which status it ends with when something is
//! wrong. No ZFS is needed; where a `zfs` is, it is a shell script.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod program;

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use program::{Ended, LOCAL, POLICY, Place, Running, TWO_HOSTS, ZFS, bare, ended};

#[test]
fn all_is_well_and_nothing_is_said() {
    let place = Place::new();
    let ended = place.run("director --once");
    assert_eq!((ended.status, ended.stdout.as_str(), ended.stderr.as_str()), (Some(0), "", ""));
}

#[test]
fn a_policy_that_cannot_be_read_is_told_with_the_way_out() {
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
fn what_is_wrong_in_a_policy_is_told_with_its_place() {
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
    assert!(!Path::new(&place.path("catalog")).exists(), "a policy that is wrong leaves nothing behind");
}

#[test]
fn the_directors_own_host_needs_its_local_configuration() {
    let place = Place::new();
    place.run("director --once --local {}/none.json").fails(2, &["alpha", "none.json", "it does not exist", "--local"]);
    place.write("local.json", "{ \"local_datasets\": [ { \"nam\": \"tank/data\" } ] }");
    let ended = place.run("director --once");
    assert_eq!(ended.status, Some(2), "{ended:?}");
    ended.says(&["local.json:1:", "nam"]);
}

#[test]
fn a_wrong_local_configuration_is_not_passed_over_where_it_may_name_the_host() {
    let place = Place::new();
    place.write("local.json", "{ \"hostname\": \"alpha\", \"local_datasets\": [] ");
    for subcommand in ["director --once", "plan --dry-run"] {
        let mut command = place.command(&format!("{subcommand} --hostname="));
        let ended = ended(&mut command);
        // An empty name is refused by itself; without any, the file is asked.
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
fn other_hosts_are_worked_on_where_the_own_one_cannot_be() {
    let place = Place::new();
    place.policy(TWO_HOSTS);
    let ended = place.run("director --once --local {}/none.json");
    assert_eq!(ended.status, Some(1), "{ended:?}");
    ended.says(&["alpha cannot be looked at", "none.json", "beta cannot be looked at"]);
    assert_eq!(ended.stderr.lines().count(), 2, "{ended:?}");
}

#[test]
fn the_only_host_may_be_the_directors_own_and_have_an_agent_all_the_same() {
    let place = Place::new();
    let policy =
        POLICY.replace("\"datasets\"", "\"hosts\": { \"alpha\": { \"address\": \"127.0.0.1:1\" } }, \"datasets\"");
    place.policy(&policy);
    place
        .run("director --once --local {}/none.json")
        .fails(1, &["alpha cannot be looked at", "127.0.0.1:1", "refused"]);
}

#[test]
fn an_agent_that_is_down_is_named_once_and_nothing_else_stops() {
    let place = Place::new();
    place.policy(TWO_HOSTS);
    let ended = place.run("director --once --verbose");
    ended.fails(1, &["beta", "127.0.0.1:1", "refused", "is zsync agent running there?"]);
    assert_eq!(ended.stderr.matches("beta").count(), 2, "by name, and as what is out of reach: {ended:?}");
}

#[test]
fn a_zfs_that_cannot_be_worked_with_is_told_with_the_way_out() {
    let place = Place::new();
    let all = ["director --once", "director", "agent", "slave"];
    for subcommand in all {
        let ended = place.run(&format!("{subcommand} --zfs /nonexistent/zfs"));
        ended.fails(2, &["cannot run \"/nonexistent/zfs\"", "--zfs"]);
    }
    for (script, words) in [
        ("echo zfs-0.8.6-1; echo zfs-kmod-0.8.6-1", ["zfs-0.8.6-1", "2.0 or newer"]),
        ("echo 'The ZFS modules cannot be auto-loaded.' >&2; exit 1", ["exit status 1", "cannot be auto-loaded"]),
        ("echo hello", ["cannot understand the output", "hello"]),
        ("printf '\\377\\376'", ["cannot understand the output", "UTF-8"]),
        ("exit 0", ["cannot understand the output", "empty"]),
        ("kill -9 $$", ["version", "SIGKILL"]),
    ] {
        place.zfs(&format!("#!/bin/sh\n{script}\n"));
        for subcommand in all {
            place.run(subcommand).fails(2, &words);
        }
    }
}

#[test]
fn a_listing_that_is_nonsense_is_shown_and_changes_nothing() {
    let place = Place::new();
    place.zfs(&ZFS.replace(
        "tank/data\\tfilesystem\\t2\\t0\\toff\\t-\\t-\\t-\\t-",
        "tank/data\\tfilesystem\\tmany\\t0\\toff\\t-\\t-\\t-\\t-",
    ));
    place.run("director --once").fails(1, &["alpha cannot be looked at", "guid \"many\" is not a number"]);
}

#[test]
fn a_dataset_with_a_name_that_is_not_taken_hides_no_others() {
    let place = Place::new();
    let strange = "printf 'tank/data\\tfilesystem\\t2\\t0\\toff\\t-\\t-\\t-\\t-\\ntank/data/x \\tfilesystem\\t3\\t0\\toff\\t-\\t-\\t-\\t-\\n'";
    place.zfs(&ZFS.replace("printf 'tank/data\\tfilesystem\\t2\\t0\\toff\\t-\\t-\\t-\\t-\\n'", strange));
    let ended = place.run("director --once");
    assert_eq!(ended.status, Some(0), "{ended:?}");
    ended.says(&["tank/data/x ", "blank", "left out"]);
}

#[test]
fn a_dataset_of_the_policy_that_is_missing_fails_the_pass() {
    let place = Place::new();
    place.policy(&POLICY.replace("tank/data", "tank/dada"));
    place.write("local.json", &LOCAL.replace("tank/data", "tank"));
    place.zfs(&ZFS.replace("tank/data\\tfilesystem", "tank\\tfilesystem"));
    place.run("director --once").fails(1, &["alpha:tank/dada", "does not exist", "server.json"]);
}

#[test]
fn a_port_that_is_taken_is_told() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for subcommand in ["agent", "slave"] {
        let ended = place.run(&format!("{subcommand} --listen {address} --log warn"));
        ended.fails(2, &[&address.to_string(), "in use", "--listen", subcommand]);
    }
}

#[test]
fn listening_beyond_this_machine_in_plaintext_takes_a_word() {
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
fn an_address_that_is_none_is_told() {
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
fn two_directors_do_not_share_a_catalog() {
    let place = Place::new();
    let mut first = Running::start(&mut place.command("director --interval 1s --log debug"));
    first.wait_for("the pass took", 1);
    let process = format!("process {}", first.child.id());
    place.run("director --once").fails(2, &["another director", &process, &place.path("catalog")]);
    let ended = place.run("plan --dry-run");
    assert_eq!(ended.status, Some(0), "a plan may be made meanwhile: {ended:?}");
    assert_eq!(first.stop(), Some(0));
    assert_eq!(place.run("director --once").status, Some(0));
}

#[test]
fn a_damaged_catalog_is_told_and_a_deleted_one_rebuilt() {
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
fn usage_errors_end_with_status_2() {
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
fn every_subcommand_explains_itself() {
    for subcommand in ["", "director", "agent", "slave", "plan", "check"] {
        let ended = ended(bare().args(subcommand.split_whitespace()).arg("--help"));
        assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
        assert!(ended.stdout.contains("Usage: zsync"), "{ended:?}");
    }
    let ended = ended(bare().arg("--version"));
    assert_eq!(ended.stdout, format!("zsync {}\n", env!("CARGO_PKG_VERSION")));
}

/// Runs with a reader of one of its streams that goes away at once.
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
fn a_reader_that_goes_away_is_no_error() {
    let place = Place::new();
    // More than a pipe holds.
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
    assert_eq!(ended.status, Some(2), "it says why to nobody, and ends as it should: {ended:?}");
}

#[test]
fn services_end_well_and_soon_when_they_are_asked_to() {
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
    // Also amidst a pass, here with a zfs that takes its time.
    place.zfs(&ZFS.replace("#!/bin/sh\n", "#!/bin/sh\n[ \"$*\" = version ] || exec sleep 60\n"));
    let mut running = Running::start(&mut place.command("director --interval 1h --grace 1s --log debug"));
    running.wait_for("runs", 2);
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn a_failure_that_stays_the_same_is_logged_once() {
    let place = Place::new();
    place.policy(TWO_HOSTS);
    let mut running = Running::start(&mut place.command("director --interval 1s --log debug"));
    running.wait_for("the pass took", 3);
    assert_eq!(running.count("beta cannot be looked at"), 1, "{:#?}", running.seen);
    // The file that is in force is changed into nonsense: said once as well, and the policy before it goes on.
    place.write("server.json", "{");
    running.wait_for("stays in force", 1);
    running.wait_for("the pass took", 3);
    assert_eq!(running.count("stays in force"), 1, "{:#?}", running.seen);
    assert_eq!(running.count("all is well again"), 0, "{:#?}", running.seen);
    // What is put right is told, too.
    place.policy(POLICY);
    running.wait_for("the policy: all is well again", 1);
    assert_eq!(running.count("beta: all is well again"), 1, "{:#?}", running.seen);
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn a_host_that_was_not_ready_is_taken_up_when_it_is() {
    let place = Place::new();
    place.policy(TWO_HOSTS);
    let local: PathBuf = place.path("local.json").into();
    fs::remove_file(&local).unwrap();
    let mut running = Running::start(&mut place.command("director --interval 1s --log debug"));
    running.wait_for("alpha cannot be looked at", 1);
    fs::write(&local, LOCAL).unwrap();
    running.wait_for("alpha: all is well again", 1);
    assert_eq!(running.stop(), Some(0));
}
