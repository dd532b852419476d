//! Builds the arguments of commands that send and receive.

use crate::model::SendFlags;
use crate::zfs::argv::words::words;
use crate::zfs::{ReceiveSpec, SendFrom, SendSpec};

/// Sends. A resumed send takes its flags from the token.
pub(crate) fn send(spec: &SendSpec) -> Vec<String> {
    match spec {
        SendSpec::Resume { token } => vec!["send".to_owned(), "-t".to_owned(), token.clone()],
        SendSpec::Snapshot { dataset, to, from, flags } => {
            let mut argv = words(&["send"]);
            argv.extend(send_flags(*flags));
            match from {
                SendFrom::Nothing => {}
                SendFrom::Snapshot(base) => argv.extend(["-I".to_owned(), format!("@{base}")]),
                SendFrom::Before(base) => argv.extend(["-i".to_owned(), format!("@{base}")]),
                SendFrom::Bookmark(base) => argv.extend(["-i".to_owned(), format!("#{base}")]),
                SendFrom::Origin(origin, base) => argv.extend(["-i".to_owned(), origin.at(base)]),
            }
            argv.push(dataset.at(to));
            argv
        }
    }
}

fn send_flags(flags: SendFlags) -> Option<String> {
    match flags {
        SendFlags::Raw => Some("-w".to_owned()),
        SendFlags::Plain { large: false, compressed: false } => None,
        SendFlags::Plain { .. } => Some(format!("-{flags}")),
    }
}

/// Estimates the size of a send; nothing is sent.
pub(crate) fn size_of_send(spec: &SendSpec) -> Vec<String> {
    let mut argv = send(spec);
    argv.insert(1, "-nP".to_owned());
    argv
}

/// Describes what a resumed send would send; nothing is sent.
pub(crate) fn resumable(token: &str) -> Vec<String> {
    vec!["send".to_owned(), "-nPt".to_owned(), token.to_owned()]
}

/// Receives without mounting. Unless the pool refuses that, the receive can be resumed if it is interrupted.
pub(crate) fn receive(spec: &ReceiveSpec) -> Vec<String> {
    let mut argv = words(if spec.is_unresumable { &["receive", "-u"] } else { &["receive", "-s", "-u"] });
    if spec.overwrite {
        argv.push("-F".to_owned());
    }
    if let Some((dataset, name)) = &spec.origin {
        argv.extend(["-o".to_owned(), format!("origin={}", dataset.at(name))]);
    }
    for (property, value) in &spec.properties {
        argv.extend(["-o".to_owned(), format!("{property}={value}")]);
    }
    argv.push(spec.dataset.to_string());
    argv
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::{DatasetName, SnapName};

    fn ds(text: &str) -> DatasetName {
        text.parse().unwrap()
    }

    fn snap(text: &str) -> SnapName {
        text.parse().unwrap()
    }

    #[test]
    fn send_uses_the_given_flags() {
        let spec = |from, flags| SendSpec::Snapshot { dataset: ds("tank/a"), to: snap("y"), from, flags };
        let line = |spec| send(&spec).join(" ");
        assert_eq!(line(spec(SendFrom::Nothing, SendFlags::PLAIN)), "send -Lc tank/a@y");
        assert_eq!(line(spec(SendFrom::Nothing, SendFlags::Raw)), "send -w tank/a@y");
        assert_eq!(line(spec(SendFrom::Nothing, "-".parse().unwrap())), "send tank/a@y");
        assert_eq!(line(spec(SendFrom::Snapshot(snap("x")), SendFlags::PLAIN)), "send -Lc -I @x tank/a@y");
        assert_eq!(line(spec(SendFrom::Before(snap("x")), SendFlags::PLAIN)), "send -Lc -i @x tank/a@y");
        assert_eq!(line(spec(SendFrom::Bookmark(snap("x")), SendFlags::PLAIN)), "send -Lc -i #x tank/a@y");
        let origin = SendFrom::Origin(ds("tank/o"), snap("x"));
        assert_eq!(line(spec(origin, SendFlags::Raw)), "send -w -i tank/o@x tank/a@y");
        assert_eq!(line(SendSpec::Resume { token: "1-abc".into() }), "send -t 1-abc");
    }

    #[test]
    fn size_of_send_sends_nothing() {
        let spec = SendSpec::Snapshot {
            dataset: ds("tank/a"),
            to: snap("y"),
            from: SendFrom::Snapshot(snap("x")),
            flags: SendFlags::PLAIN,
        };
        assert_eq!(size_of_send(&spec).join(" "), "send -nP -Lc -I @x tank/a@y");
        let token = "1-abc".to_owned();
        assert_eq!(size_of_send(&SendSpec::Resume { token }).join(" "), "send -nP -t 1-abc");
    }

    #[test]
    fn receive_forces_nothing_unless_it_overwrites() {
        let spec = ReceiveSpec {
            dataset: ds("tank/a"),
            properties: BTreeMap::new(),
            origin: None,
            overwrite: false,
            is_unresumable: false,
        };
        let line = |spec: &ReceiveSpec| receive(spec).join(" ");
        assert_eq!(line(&spec), "receive -s -u tank/a");
        assert_eq!(line(&ReceiveSpec { is_unresumable: true, ..spec.clone() }), "receive -u tank/a");
        assert_eq!(line(&ReceiveSpec { overwrite: true, ..spec.clone() }), "receive -s -u -F tank/a");
        let properties = [("canmount", "noauto"), ("readonly", "on")];
        let properties = properties.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let clone = ReceiveSpec { properties, origin: Some((ds("tank/o"), snap("x"))), ..spec };
        assert_eq!(line(&clone), "receive -s -u -o origin=tank/o@x -o canmount=noauto -o readonly=on tank/a");
    }
}
