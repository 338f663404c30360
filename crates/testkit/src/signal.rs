//! Signals to other processes.

use std::{
    fs,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use crate::TEST_TIMEOUT;

/// Sends a signal to a process that runs. `signal` is an option of the program `kill`, such as `-CONT`.
pub(crate) fn send_signal(process: &Child, signal: &str) {
    let id = process.id().to_string();
    let status = Command::new("kill").args([signal, &id]).status();
    assert!(status.is_ok_and(|status| status.success()), "kill");
}

/// Stops a process with SIGSTOP, and waits until all of its threads have stopped. Until then, a thread can still answer a request.
pub(crate) fn stop_process(process: &Child) {
    send_signal(process, "-STOP");
    let deadline = Instant::now() + TEST_TIMEOUT;
    while has_running_thread(process.id()) {
        assert!(Instant::now() < deadline, "the process does not stop");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Returns `false` on systems without `/proc`.
fn has_running_thread(process: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else {
        return false;
    };
    threads.flatten().any(|thread| {
        // The state follows the name of the program, which is in parentheses.
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
        state.is_some_and(|state| !state.starts_with(['T', 'Z', 'X']))
    })
}
