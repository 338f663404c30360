//! The pages of the examples in headless Chromium, which scripts in `tests/js` control.

use std::{ffi::OsStr, process::Command};

use testkit::{RedisProgram, RedisServer, example_process::ExampleProcess, programs};

#[test]
fn axum_example_shows_live_panels() {
    assert_live_panels(&ExampleProcess::start("axum", &[]).next_address());
}

#[test]
fn hyper_example_shows_live_panels() {
    assert_live_panels(&ExampleProcess::start("hyper", &[]).next_address());
}

#[test]
fn warp_example_with_outer_layer_shows_live_panels() {
    assert_live_panels(&ExampleProcess::start("warp", &[]).next_address());
}

#[test]
fn warp_example_with_inner_route_shows_live_panels() {
    let example = ExampleProcess::start("warp", &[]);
    let _outer_layer_address = example.next_address();
    assert_live_panels(&example.next_address());
}

#[test]
fn chat_example_connects_four_tabs_of_two_browsers() {
    run_with_next_server("chat", "chat.mjs");
}

#[test]
fn notifications_example_shows_all_tabs_of_a_user_the_same() {
    run_with_next_server("notifications", "notifications.mjs");
}

#[test]
fn dashboard_example_chooses_topics_on_one_connection() {
    run_with_next_server("dashboard", "dashboard.mjs");
}

#[test]
fn cluster_example_shows_the_events_of_all_nodes() {
    let redis = RedisServer::start(RedisProgram::Redis, &[]);
    let nodes = [0, 1].map(|_| ExampleProcess::start("cluster", &[&redis.url()]));
    run_browser_script(
        "cluster.mjs",
        &nodes.each_ref().map(|node| node.next_address()),
    );
}

#[test]
fn tls_example_serves_more_than_six_streams_to_one_page() {
    let example = ExampleProcess::start("tls", &[]);
    let address = example.next_address();
    run_browser_script("tls.mjs", &[&address]);
    for (flag, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let output = Command::new("curl")
            .args(["-ksN", "--max-time", "3", flag])
            .args(["-w", "[%{http_version}]"])
            .arg(format!("{address}/ticks"))
            .output()
            .expect("run scripts/setup first");
        let output = String::from_utf8_lossy(&output.stdout);
        assert!(output.starts_with(":\ndata: tick\n\n"), "{output}");
        assert!(output.ends_with(&format!("[{version}]")), "{output}");
    }
}

fn assert_live_panels(address: &str) {
    run_browser_script("page.mjs", &[address]);
}

/// Runs a script with the addresses of two servers: a page's server, and the server after a restart.
fn run_with_next_server(example: &str, script: &str) {
    let servers = [0, 1].map(|_| ExampleProcess::start(example, &[]));
    run_browser_script(
        script,
        &servers.each_ref().map(|server| server.next_address()),
    );
}

fn run_browser_script(script: &str, addresses: &[impl AsRef<OsStr>]) {
    let output = programs::node_script_with_chromium(script)
        .args(addresses)
        .output()
        .expect("run scripts/setup first");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
