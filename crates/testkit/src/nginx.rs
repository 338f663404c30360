//! nginx with a configuration of the test.

use std::{
    env, fs,
    path::PathBuf,
    process::{self, Child, Command},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{TEST_TIMEOUT, free_port};

/// A running nginx on a port of its own. Dropping this value kills the process and removes its files.
#[derive(Debug)]
pub struct Nginx {
    process: Child,
    directory: PathBuf,
    port: u16,
}

/// The parts of the configuration that are the same in all tests. The test's own part is the included file `push.conf`. All paths are relative to a
/// temporary directory.
const MAIN_CONFIGURATION: &str = "\
daemon off;
master_process off;
pid nginx.pid;
error_log stderr crit;
events {
    worker_connections 4096;
}
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    scgi_temp_path scgi;
    uwsgi_temp_path uwsgi;
    include push.conf;
}
";

impl Nginx {
    /// Starts nginx, and waits until it accepts connections. `configuration` returns the content of the block `http`, in which nginx must listen on
    /// this port of 127.0.0.1.
    pub async fn start(configuration: impl FnOnce(u16) -> String) -> Self {
        let port = free_port();
        let name = format!("tower-push-nginx-{}-{port}", process::id());
        let directory = env::temp_dir().join(name);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("nginx.conf"), MAIN_CONFIGURATION).unwrap();
        fs::write(directory.join("push.conf"), configuration(port)).unwrap();
        let process = Command::new("nginx")
            .args(["-e", "stderr", "-c", "nginx.conf", "-p"])
            .arg(&directory)
            .spawn()
            .expect("nginx: run scripts/setup first");
        let nginx = Self {
            process,
            directory,
            port,
        };
        nginx.wait_until_listening().await;
        nginx
    }

    /// Returns the port, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    async fn wait_until_listening(&self) {
        let connected = async {
            while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let connected = timeout(TEST_TIMEOUT, connected).await;
        connected.expect("nginx should listen");
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Replaces a text that occurs exactly once. Panics if it does not.
pub fn replace_once(configuration: &str, from: &str, to: &str) -> String {
    assert_eq!(configuration.matches(from).count(), 1, "{from}");
    configuration.replace(from, to)
}
