//! Signals to other processes.

use std::process::{Child, Command};

/// Sends a signal to a process that runs. `signal` is an option of the program `kill`, such as `-STOP`.
pub(crate) fn send_signal(process: &Child, signal: &str) {
    let id = process.id().to_string();
    let status = Command::new("kill").args([signal, &id]).status();
    assert!(status.is_ok_and(|status| status.success()), "kill");
}
