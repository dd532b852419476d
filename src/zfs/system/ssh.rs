//! Runs the `zfs` command of another host, through OpenSSH's client.
//!
//! The client's own configuration applies: aliases, users, keys, jump hosts, known hosts. All commands for one host share
//! one connection, which the client closes when nobody has used it for a minute.

use std::path::{Path, PathBuf};

use async_process::Command;

use crate::sys::process;

/// The client, searched for in `PATH`.
const CLIENT: &str = "ssh";
/// Its options. Nobody is asked for a password; a host that is down is noticed within a minute; and the far command
/// gets the language in which errors are recognised, if that host's configuration permits it.
const OPTIONS: &[&str] = &[
    "BatchMode=yes",
    "ConnectTimeout=15",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=3",
    "SendEnv=LC_ALL",
    "ControlMaster=auto",
    "ControlPersist=60",
];
/// How long the path of the connection's socket may be before its name, in bytes: the name is a hash of 40 digits with a
/// suffix, and Unix permits 104 bytes in all.
const MAX_CONTROL_FOLDER: usize = 40;
/// Where `zfs` is on hosts whose shells do not search for programs of administrators.
pub(super) const OTHER_PLACES: &[&str] = &["/usr/sbin/zfs", "/sbin/zfs", "/usr/local/sbin/zfs"];

/// A host that is reached through ssh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ssh {
    /// The destination as `ssh` takes it: `host` or `user@host`.
    pub destination: String,
    /// Options for `ssh -o`, which come before the client's configuration.
    pub options: Vec<String>,
}

impl Ssh {
    /// The command that runs a program with these arguments on the host.
    pub(super) fn command(&self, program: &Path, argv: &[String]) -> Command {
        let mut command = process::command(Path::new(CLIENT));
        command.arg("-T");
        let own = OPTIONS.iter().map(|option| (*option).to_owned()).chain(control_path());
        for option in self.options.iter().cloned().chain(own) {
            command.arg("-o").arg(option);
        }
        command.arg("--").arg(&self.destination).arg(line(&program.to_string_lossy(), argv));
        command
    }
}

/// The option that names the socket of the shared connection. There is none without a folder in which nobody else can
/// put one.
fn control_path() -> Option<String> {
    let folder = PathBuf::from(std::env::var_os("HOME")?).join(".ssh");
    let fits = folder.as_os_str().len() <= MAX_CONTROL_FOLDER && folder.is_dir();
    fits.then(|| format!("ControlPath={}/zsync-%C", folder.display()))
}

/// A command line for a shell that speaks POSIX, csh's language or fish's.
pub(super) fn line(program: &str, argv: &[String]) -> String {
    let mut line = quoted(program);
    for word in argv {
        line.push(' ');
        line.push_str(&quoted(word));
    }
    line
}

/// A word as a shell has to see it. Words without special characters stay as they are, because some hosts permit only
/// command lines that they know.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    // zsh replaces a word that begins with "=".
    if !word.is_empty() && !word.starts_with('=') && word.chars().all(is_plain) {
        return word.to_owned();
    }
    let mut quoted = String::from("'");
    for c in word.chars() {
        match c {
            '\'' => quoted.push_str("'\\''"),
            // csh reads a history event even within quotes, and fish a backslash before a quote or another one.
            '!' | '\\' => {
                quoted.push_str("'\\");
                quoted.push(c);
                quoted.push('\'');
            }
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "the test looks at what a real shell makes of the words")]
    fn words_in_shell(words: &[String]) -> Vec<String> {
        let script = line("printf", &[&["%s\\0".to_owned()], words].concat());
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_terminator('\0').map(str::to_owned).collect()
    }

    #[test]
    fn plain_words_are_not_quoted() {
        let words = ["list", "-Hp", "-o", "name,guid", "tank/home@BACKUP_2026-11-23_10:30:00"].map(str::to_owned);
        assert_eq!(line("zfs", &words), "zfs list -Hp -o name,guid tank/home@BACKUP_2026-11-23_10:30:00");
        let words = ["#cursor", "with blank", "", "it's", "=x", "a!b"].map(str::to_owned);
        assert_eq!(line("zfs", &words), r"zfs '#cursor' 'with blank' '' 'it'\''s' '=x' 'a'\!'b'");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn shell_sees_the_words(words in prop::collection::vec("[^\\x00]{0,12}", 1..20)) {
            prop_assert_eq!(words_in_shell(&words), words);
        }
    }
}
