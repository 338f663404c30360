//! A second copy of the current program as a child process, with its CPU time and memory.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use tower_push::BoxError;

/// A child process that runs the current program. The program should exit when its standard input is closed.
#[derive(Debug)]
pub struct CurrentExeChild {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl CurrentExeChild {
    /// Starts a second copy of the current program with these arguments.
    pub fn spawn(arguments: &[&str]) -> Result<Self, BoxError> {
        let mut child = Command::new(env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().ok_or("no standard input")?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        Ok(Self {
            child,
            stdin,
            stdout: BufReader::new(stdout),
        })
    }

    /// Writes a line to the process's standard input.
    pub fn write_line(&mut self, line: &str) -> Result<(), BoxError> {
        Ok(writeln!(self.stdin, "{line}")?)
    }

    /// Reads a line from the process's standard output.
    pub fn read_line(&mut self) -> Result<String, BoxError> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        match line.trim() {
            "" => Err("a process exited too soon".into()),
            line => Ok(line.to_owned()),
        }
    }

    /// Returns the CPU time that the process has used, user and system, in steps of 10 ms.
    pub fn cpu_time(&self) -> Result<Duration, BoxError> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // `utime` and `stime` are the 12th and 13th field after the program's name, which is in parentheses and may contain spaces. Both
        // fields count clock ticks of 10 ms.
        let (_, fields) = stat.rsplit_once(')').ok_or("no program name")?;
        let ticks: Result<Vec<u64>, _> = fields
            .split_whitespace()
            .skip(12 - 1)
            .take(2)
            .map(str::parse)
            .collect();
        Ok(Duration::from_millis(10 * ticks?.iter().sum::<u64>()))
    }

    /// Returns the resident memory of the process, in bytes.
    pub fn resident_memory(&self) -> Result<usize, BoxError> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = resident.and_then(|line| line.split_whitespace().next()?.parse().ok());
        Ok(kilobytes
            .map(|kilobytes: usize| kilobytes * 1024)
            .ok_or("no VmRSS")?)
    }

    /// Closes the process's standard input and waits until it exits. Returns an error if the process exits with a failure.
    pub fn close(mut self) -> Result<(), BoxError> {
        drop(self.stdin);
        let status = self.child.wait()?;
        if !status.success() {
            return Err(format!("a process exited with {status}").into());
        }
        Ok(())
    }
}

/// Returns an error if this process's limit of file descriptors is too low for `connections` connections and 20 other files.
pub fn check_fd_limit(connections: usize) -> Result<(), BoxError> {
    let needed = connections + 20;
    let limits = fs::read_to_string("/proc/self/limits")?;
    let limit = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let soft = limit.and_then(|limit| limit.split_whitespace().next()?.parse::<usize>().ok());
    match soft {
        Some(soft) if soft < needed => Err(format!(
            "a process may open {soft} files only: run `ulimit -n {needed}` first"
        )
        .into()),
        _ => Ok(()),
    }
}
