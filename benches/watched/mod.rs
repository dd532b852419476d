//! Measures programs while they run.

use std::fs;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// Runs a program; gives its exit status, its duration, and its peak memory in MB.
pub fn run(command: &mut Command) -> (ExitStatus, Duration, u64) {
    let began = Instant::now();
    let mut child = command.spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with("VmHWM"));
        peak = peak.max(line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0));
        std::thread::sleep(Duration::from_millis(2));
    }
    (child.wait().unwrap(), began.elapsed(), peak / 1024)
}
