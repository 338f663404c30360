//! This program once more, in another role, and what it costs the machine.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use tower_push::BoxError;

/// This program as another process. It ends with its standard input.
#[derive(Debug)]
pub struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// Starts this program with other arguments.
    pub fn start(arguments: &[&str]) -> Result<Self, BoxError> {
        let mut child = Command::new(env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().ok_or("no standard input")?;
        let output = child.stdout.take().ok_or("no standard output")?;
        Ok(Self {
            child,
            input,
            output: BufReader::new(output),
        })
    }

    /// Writes a line to its standard input.
    pub fn tell(&mut self, line: &str) -> Result<(), BoxError> {
        Ok(writeln!(self.input, "{line}")?)
    }

    /// Reads a line from its standard output.
    pub fn line(&mut self) -> Result<String, BoxError> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        match line.trim() {
            "" => Err("a process ended too soon".into()),
            line => Ok(line.to_owned()),
        }
    }

    /// Its CPU time: two fields of `stat`, which are behind the program's name in parentheses, in hundredths of a second.
    pub fn cpu(&self) -> Result<Duration, BoxError> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, stat) = stat.rsplit_once(')').ok_or("no name")?;
        let ticks: Result<Vec<u64>, _> = stat
            .split_whitespace()
            .skip(12 - 1)
            .take(2)
            .map(str::parse)
            .collect();
        Ok(Duration::from_millis(10 * ticks?.iter().sum::<u64>()))
    }

    /// Its resident memory, in bytes.
    pub fn memory(&self) -> Result<usize, BoxError> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = resident.and_then(|line| line.split_whitespace().next()?.parse().ok());
        Ok(kilobytes
            .map(|kilobytes: usize| kilobytes * 1024)
            .ok_or("no VmRSS")?)
    }

    /// Closes its standard input and waits for its successful end.
    pub fn stop(mut self) -> Result<(), BoxError> {
        drop(self.input);
        let status = self.child.wait()?;
        if !status.success() {
            return Err(format!("a process ended with {status}").into());
        }
        Ok(())
    }
}

/// A server or its clients need one for each connection, and some more.
pub fn check_open_files(clients: usize) -> Result<(), BoxError> {
    let needed = clients + 20;
    let limits = fs::read_to_string("/proc/self/limits")?;
    let limit = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let soft = limit.and_then(|limit| limit.split_whitespace().next()?.parse::<usize>().ok());
    match soft {
        Some(soft) if soft < needed => Err(format!(
            "a process may open {soft} files only: say `ulimit -n {needed}` first"
        )
        .into()),
        _ => Ok(()),
    }
}
