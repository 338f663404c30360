//! The programs in `tests/js` and `tests/python`, with what `scripts/setup` installs for them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A program in `tests/js` that reads with this package.
pub fn node(script: &str, package: &str) -> Command {
    installed(&format!("tests/js/node_modules/{package}"));
    let mut command = Command::new("node");
    command.arg(in_repository("tests/js").join(script));
    command
}

/// A program in `tests/js` that drives Chromium.
pub fn browser(script: &str) -> Command {
    installed("/usr/bin/chromium");
    installed("/usr/bin/chromedriver");
    node(script, "selenium-webdriver")
}

/// A program in `tests/python`.
pub fn python(script: &str) -> Command {
    let text_of = |path| fs::read_to_string(in_repository(path)).unwrap_or_default();
    assert_eq!(
        text_of("tests/python/requirements.txt"),
        text_of("target/python/requirements.txt"),
        "what is installed is not what is required: run scripts/setup first"
    );
    let mut command = Command::new(installed("target/python/bin/python"));
    command.arg(in_repository("tests/python").join(script));
    command
}

/// A path that `scripts/setup` makes.
pub fn installed(path: &str) -> PathBuf {
    let path = in_repository(path);
    assert!(
        path.exists(),
        "{path:?} is missing: run scripts/setup first"
    );
    path
}

/// A path relative to the repository's root.
pub fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}
