//! The published conformance suite of Durable Streams against `examples/durable_streams`. What fails is what
//! `docs/durable-streams.md` lists, no more and no less.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use serde_json::Value;

use testkit::{example_process::ExampleProcess, programs};

/// In seconds: below the 5 s that a case of the suite may take.
const LONG_POLL: &str = "2";

/// In milliseconds, as the suite is told. It is how long its long-poll cases may take, so that a busy machine has time.
const PATIENCE: &str = "20000";

/// How many cases version 0.3.6 has: fewer would pass without having been run.
const CASES: usize = 338;

/// What the example does not have: only cases of these groups may fail. All others, and so all reads, pass.
const WRITES: [&str; 4] = [
    "Fork - ",
    "HEAD Metadata Edge Cases should return TTL",
    "TTL Expiration Behavior ",
    "TTL and Expiry ",
];

/// An option that the suite leaves off by itself.
const SKIPPED: &str = "Reserved subscription APIs ";

#[test]
fn durable_streams_conformance_fails_only_where_the_document_says() {
    let cases = conformance();
    assert_eq!(cases.len(), CASES, "it is another suite");

    let listed = listed();
    for name in &listed {
        let is_a_write = WRITES.iter().any(|group| name.starts_with(group));
        assert!(is_a_write, "a read must not fail: {name}");
    }

    let unexpected: Vec<_> = cases
        .iter()
        .filter(|(name, case)| case.failed && !listed.contains(*name))
        .map(|(name, case)| format!("{name}\n{}", case.message))
        .collect();
    assert!(unexpected.is_empty(), "{}", unexpected.join("\n"));

    let stale: Vec<_> = listed
        .iter()
        .filter(|name| !cases.get(*name).is_some_and(|case| case.failed))
        .collect();
    assert!(stale.is_empty(), "listed, and passes: {stale:#?}");

    let skipped = cases.iter().filter(|(_, case)| case.skipped);
    let skipped: Vec<_> = skipped.map(|(name, _)| name).collect();
    assert!(
        skipped.iter().all(|name| name.starts_with(SKIPPED)),
        "{skipped:#?}"
    );
}

struct Case {
    failed: bool,
    skipped: bool,
    message: String,
}

/// By name. The suite has no two of one.
fn conformance() -> BTreeMap<String, Case> {
    let suite = "@durable-streams/server-conformance-tests";
    let mut vitest = programs::node_script("node_modules/vitest/vitest.mjs", suite);
    let report = Path::new(env!("CARGO_TARGET_TMPDIR")).join("durable.json");
    let _ = fs::remove_file(&report);
    let example = ExampleProcess::start("durable_streams", &[LONG_POLL]);
    let output = vitest
        .args(["run", "durable.test.mjs", "--reporter=json"])
        .arg(format!("--outputFile={}", report.display()))
        .current_dir(programs::repository_path("tests/js"))
        .env("DURABLE_STREAMS", example.next_address())
        .env("LONG_POLL_MS", PATIENCE)
        .output()
        .expect("run scripts/setup first");
    // Its status only says that something failed.
    let report = fs::read(report).unwrap_or_else(|_| panic!("{output:?}"));
    let report: Value = serde_json::from_slice(&report).unwrap();

    let cases = report["testResults"][0]["assertionResults"].as_array();
    let cases = cases.unwrap_or_else(|| panic!("{output:?}")).iter();
    cases
        .map(|case| {
            let case_is = |status| case["status"] == status;
            let read = Case {
                failed: case_is("failed"),
                skipped: !case_is("failed") && !case_is("passed"),
                message: case["failureMessages"][0].to_string(),
            };
            (case["fullName"].as_str().unwrap().to_owned(), read)
        })
        .collect()
}

/// The cases that the document says fail: an item each.
fn listed() -> BTreeSet<String> {
    let document = include_str!("../docs/durable-streams.md");
    let (_, failing) = document
        .split_once("\n## What fails\n")
        .expect("its heading");
    let items = failing.lines().filter_map(|line| line.strip_prefix("- "));
    items
        .map(|item| item.trim_matches('`').to_owned())
        .collect()
}
