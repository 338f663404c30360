//! The examples as programs.

use std::{
    env,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
};

use crate::{LONG, installed::in_repository};

/// A running example, killed when it is dropped.
#[derive(Debug)]
pub struct Example {
    process: Child,
    lines: Receiver<String>,
}

impl Example {
    /// On a free port, with these arguments behind it.
    pub fn start(name: &str, arguments: &[&str]) -> Self {
        Self::run(Command::new(built(name)), name, arguments)
    }

    /// The same with so many file descriptors, at most.
    pub fn with_files(files: usize, name: &str) -> Self {
        let mut shell = Command::new("sh");
        let run = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
        shell.arg("-c").arg(run).arg(built(name));
        Self::run(shell, name, &[])
    }

    /// How many file descriptors it has open.
    pub fn files(&self) -> usize {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.process.id()));
        files.map_or(0, Iterator::count)
    }

    fn run(mut command: Command, name: &str, arguments: &[&str]) -> Self {
        let mut process = command
            .arg("127.0.0.1:0")
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("example {name}: {error}"));
        let stdout = process.stdout.take().expect("it is piped");
        let (sender, lines) = channel();
        thread::spawn(move || {
            let mut read = BufReader::new(stdout).lines().map_while(Result::ok);
            read.try_for_each(|line| sender.send(line))
        });
        Self { process, lines }
    }

    /// The next address that it prints.
    pub fn address(&self) -> String {
        let line = self.lines.recv_timeout(LONG).expect("an address");
        let address = line.strip_prefix("open ").expect("open http://…");
        address.split(' ').next().unwrap_or_default().to_owned()
    }

    /// Waits until it prints this line.
    pub fn says(&self, wanted: &str) {
        while self.lines.recv_timeout(LONG).expect(wanted) != wanted {}
    }

    /// What Ctrl-C does.
    pub fn interrupt(&self) {
        let id = self.process.id().to_string();
        let status = Command::new("kill").args(["-INT", &id]).status();
        assert!(status.is_ok_and(|status| status.success()), "kill");
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The example's program, as new as its source: `cargo test --test …` alone does not build examples.
fn built(example: &str) -> PathBuf {
    let test = env::current_exe().expect("the test's own path");
    let profile = test.ancestors().nth(2).expect("…/debug/deps/test");
    let target = profile.parent().expect("target/debug");
    let profile_name = match profile.file_name() {
        Some(name) if name != "debug" => name,
        _ => "dev".as_ref(),
    };
    let status = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["build", "--quiet", "--example", example])
        .arg("--profile")
        .arg(profile_name)
        .arg("--target-dir")
        .arg(target)
        .current_dir(in_repository("."))
        .status();
    assert!(status.is_ok_and(|status| status.success()), "cargo build");
    profile.join("examples").join(example)
}
