//! The examples, as a person sees them in a browser: each is started, and its page driven in headless Chromium by
//! `tests/js/page.mjs` or `tests/js/chat.mjs`.

use testkit::{example_process::ExampleProcess, programs};

#[test]
fn the_axum_example_shows_live_panels() {
    shows_live_panels(&ExampleProcess::start("axum", &[]).next_address());
}

#[test]
fn the_hyper_example_shows_live_panels() {
    shows_live_panels(&ExampleProcess::start("hyper", &[]).next_address());
}

#[test]
fn the_warp_example_shows_live_panels_where_the_layer_is_around_warp() {
    shows_live_panels(&ExampleProcess::start("warp", &[]).next_address());
}

#[test]
fn the_warp_example_shows_live_panels_where_the_route_is_inside_warp() {
    let example = ExampleProcess::start("warp", &[]);
    let _around = example.next_address();
    shows_live_panels(&example.next_address());
}

#[test]
fn four_tabs_in_two_browsers_talk_over_the_chat_example() {
    drive(
        "chat.mjs",
        &ExampleProcess::start("chat", &[]).next_address(),
    );
}

fn shows_live_panels(address: &str) {
    drive("page.mjs", address);
}

fn drive(script: &str, address: &str) {
    let output = programs::browser_script(script)
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
