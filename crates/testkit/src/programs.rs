//! The scripts in `tests/js` and `tests/python`, and the packages that `scripts/setup` installs for them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;

/// Returns a command that runs a script in `tests/js`. Panics if the npm package that the script uses is not installed.
pub fn node_script(script: &str, package: &str) -> Command {
    installed_path(&format!("tests/js/node_modules/{package}"));
    let mut command = Command::new("node");
    command.arg(repository_path("tests/js").join(script));
    command
}

/// Returns a command that runs a script in `tests/js` with node. The script drives Chromium.
pub fn node_script_with_chromium(script: &str) -> Command {
    installed_path("/usr/bin/chromium");
    installed_path("/usr/bin/chromedriver");
    node_script(script, "selenium-webdriver")
}

/// Returns a command that runs a script in `tests/js` with node. The script drives Firefox.
pub fn node_script_with_firefox(script: &str) -> Command {
    installed_path("/usr/bin/firefox-esr");
    node_script(script, "ws")
}

/// Returns a command that runs a script in `tests/python`. Panics if the installed packages differ from `requirements.txt`.
pub fn python_script(script: &str) -> Command {
    let text_of = |path| fs::read_to_string(repository_path(path)).unwrap_or_default();
    assert_eq!(
        text_of("tests/python/requirements.txt"),
        text_of("target/python/requirements.txt"),
        "the installed packages differ from the required ones: run scripts/setup first"
    );
    let mut command = Command::new(installed_path("target/python/bin/python"));
    command.arg(repository_path("tests/python").join(script));
    command
}

/// Runs a program to its end, and returns the JSON texts that it prints, one in each line. Panics if the program fails, prints other lines,
/// or has not exited within `timeout`.
pub async fn run_to_json_lines(command: Command, timeout: Duration) -> Vec<Value> {
    let mut command = tokio::process::Command::from(command);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(timeout, output).await;
    let output = output.expect("the program should have exited");
    let output = output.unwrap_or_else(|error| panic!("{error}: run scripts/setup first"));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {log}");
    let lines = output.stdout.split(|byte| *byte == b'\n');
    let lines = lines.filter(|line| !line.is_empty());
    let parse =
        |line| serde_json::from_slice(line).unwrap_or_else(|error| panic!("{error}: {log}"));
    lines.map(parse).collect()
}

/// Returns a path relative to the repository's root. Panics if `scripts/setup` has not created this path.
pub fn installed_path(path: &str) -> PathBuf {
    let path = repository_path(path);
    assert!(
        path.exists(),
        "{path:?} is missing: run scripts/setup first"
    );
    path
}

/// Returns a path relative to the repository's root.
pub fn repository_path(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}
