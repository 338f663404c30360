//! The examples, as a person sees them in a browser: each is started, and its page driven in headless Chromium by
//! `tests/js/page.mjs`.

use std::{
    env,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        LazyLock,
        mpsc::{Receiver, channel},
    },
    thread,
    time::Duration,
};

#[test]
fn the_axum_example_shows_live_panels() {
    shows_live_panels(&Example::start("axum").address());
}

#[test]
fn the_hyper_example_shows_live_panels() {
    shows_live_panels(&Example::start("hyper").address());
}

#[test]
fn the_warp_example_shows_live_panels_where_the_layer_is_around_warp() {
    shows_live_panels(&Example::start("warp").address());
}

#[test]
fn the_warp_example_shows_live_panels_where_the_route_is_inside_warp() {
    let example = Example::start("warp");
    let _around = example.address();
    shows_live_panels(&example.address());
}

fn shows_live_panels(address: &str) {
    let js = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/js");
    let driven = js.join("node_modules/selenium-webdriver").exists()
        && Path::new("/usr/bin/chromium").exists()
        && Path::new("/usr/bin/chromedriver").exists();
    assert!(driven, "run scripts/setup first");
    let output = Command::new("node")
        .arg(js.join("page.mjs"))
        .arg(address)
        .output()
        .expect("run scripts/setup first");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A running example, killed when it is dropped.
struct Example {
    process: Child,
    lines: Receiver<String>,
}

/// Far above what it takes to bind a port.
const START: Duration = Duration::from_secs(20);

impl Example {
    fn start(name: &str) -> Self {
        let mut process = Command::new(built(name))
            .arg("127.0.0.1:0")
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
    fn address(&self) -> String {
        let line = self.lines.recv_timeout(START).expect("an address");
        let address = line.strip_prefix("open ").expect("open http://…");
        address.split(' ').next().unwrap_or_default().to_owned()
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The example's program, as new as its source: `cargo test --test browser` alone does not build examples.
fn built(example: &str) -> PathBuf {
    static EXAMPLES: LazyLock<PathBuf> = LazyLock::new(|| {
        let test = env::current_exe().expect("the test's own path");
        let profile = test.ancestors().nth(2).expect("…/debug/deps/browser");
        let target = profile.parent().expect("target/debug");
        let profile_name = match profile.file_name() {
            Some(name) if name != "debug" => name,
            _ => "dev".as_ref(),
        };
        let status = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()))
            .args(["build", "--quiet"])
            .args([
                "--example",
                "axum",
                "--example",
                "hyper",
                "--example",
                "warp",
            ])
            .arg("--profile")
            .arg(profile_name)
            .arg("--target-dir")
            .arg(target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(status.is_ok_and(|status| status.success()), "cargo build");
        profile.join("examples")
    });
    EXAMPLES.join(example)
}
