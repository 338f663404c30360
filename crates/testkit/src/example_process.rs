//! The programs in `examples/`, started as child processes.

use std::{
    env,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
};

use crate::{
    TEST_TIMEOUT,
    programs::repository_path,
    signal::{send_signal, stop_process},
};

/// A running example. Dropping this value kills the process.
#[derive(Debug)]
pub struct ExampleProcess {
    command: Command,
    process: Child,
    stdout_lines: Receiver<String>,
}

impl ExampleProcess {
    /// Builds an example and starts it on a free port. The example's command line is the address and then `arguments`.
    pub fn start(name: &str, arguments: &[&str]) -> Self {
        Self::start_at(ANY_PORT, name, arguments)
    }

    /// Like [`start`](Self::start), on the port of `address`.
    pub fn start_at(address: &str, name: &str, arguments: &[&str]) -> Self {
        Self::spawn(Command::new(build_example(name)), address, arguments)
    }

    /// Like [`start`](Self::start), with variables of the environment.
    pub fn start_with_env(name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(build_example(name));
        command.envs(variables.iter().copied());
        Self::spawn(command, ANY_PORT, arguments)
    }

    /// Like [`start`](Self::start) without arguments, but the process may open at most `max_fds` file descriptors.
    pub fn start_with_fd_limit(max_fds: usize, name: &str) -> Self {
        let mut shell = Command::new("sh");
        let script = format!("ulimit -n {max_fds} && exec \"$0\" \"$@\"");
        shell.arg("-c").arg(script).arg(build_example(name));
        Self::spawn(shell, ANY_PORT, &[])
    }

    /// Returns how many file descriptors the process has open.
    pub fn open_fd_count(&self) -> usize {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", self.process.id()));
        fds.map_or(0, Iterator::count)
    }

    fn spawn(mut command: Command, address: &str, arguments: &[&str]) -> Self {
        command.arg(address).args(arguments).stdout(Stdio::piped());
        let (process, stdout_lines) = spawn_with_stdout(&mut command);
        Self {
            command,
            process,
            stdout_lines,
        }
    }

    /// Kills the process with SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Starts the example again after its process has ended, with the same command line.
    pub fn start_again(&mut self) {
        (self.process, self.stdout_lines) = spawn_with_stdout(&mut self.command);
    }

    /// Stops the process with SIGSTOP until [`resume`](Self::resume).
    pub fn pause(&self) {
        stop_process(&self.process);
    }

    /// Lets the process go on after [`pause`](Self::pause).
    pub fn resume(&self) {
        send_signal(&self.process, "-CONT");
    }

    /// Returns whether the process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.process.try_wait().is_ok_and(|status| status.is_some())
    }

    /// Waits for the next line that the example prints, and returns its address. The line must be `open http://…` or `open https://…`.
    pub fn next_address(&self) -> String {
        let line = self.stdout_lines.recv_timeout(TEST_TIMEOUT);
        let line = line.expect("the example should print an address");
        let address = line.strip_prefix("open ").expect("open http://…");
        address.split(' ').next().unwrap_or_default().to_owned()
    }

    /// Waits until the example prints `expected`. Skips other lines.
    pub fn wait_for_line(&self, expected: &str) {
        while self
            .stdout_lines
            .recv_timeout(TEST_TIMEOUT)
            .expect(expected)
            != expected
        {}
    }

    /// Sends SIGINT, like Ctrl-C.
    pub fn interrupt(&self) {
        send_signal(&self.process, "-INT");
    }
}

impl Drop for ExampleProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The address with which a server listens on a port that the system chooses.
const ANY_PORT: &str = "127.0.0.1:0";

/// Starts a program. Returns the lines that it prints, which a thread reads.
fn spawn_with_stdout(command: &mut Command) -> (Child, Receiver<String>) {
    let mut process = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stdout = process.stdout.take().expect("stdout is piped");
    let (sender, stdout_lines) = channel();
    thread::spawn(move || {
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        lines.try_for_each(|line| sender.send(line))
    });
    (process, stdout_lines)
}

/// Builds an example with the profile of the running test, and returns the path of its program. The function is needed because `cargo test
/// --test NAME` builds no examples.
fn build_example(name: &str) -> PathBuf {
    let test = env::current_exe().expect("path of the running test");
    let profile_dir = test.ancestors().nth(2).expect("…/debug/deps/test");
    let target_dir = profile_dir.parent().expect("target/debug");
    let profile = match profile_dir.file_name() {
        Some(name) if name != "debug" => name,
        _ => "dev".as_ref(),
    };
    let status = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["build", "--quiet", "--example", name])
        .arg("--profile")
        .arg(profile)
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(repository_path("."))
        .status();
    assert!(status.is_ok_and(|status| status.success()), "cargo build");
    profile_dir.join("examples").join(name)
}
