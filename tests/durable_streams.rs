//! The published conformance suite of Durable Streams against `examples/durable_streams`. Exactly the cases that
//! `docs/durable-streams.md` lists fail. And the client of Durable Streams from npm, which reads a channel.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};
use testkit::{TestServer, example_process::ExampleProcess, programs};
use tower_push::{Channel, Json, service, transport::LongPoll};

/// The example's wait time for long polls, in seconds. It is below the 5 s that the suite allows for a case.
const LONG_POLL_SECONDS: &str = "2";

/// The time that the suite allows for its long-poll cases, in milliseconds. It is enough for a busy machine.
const LONG_POLL_CASE_TIMEOUT_MS: &str = "20000";

/// The time that vitest allows for each other case, in milliseconds. One case compares 100 KiB byte by byte, which takes longer than the default
/// of 5 s on a busy machine.
const CASE_TIMEOUT_MS: &str = "60000";

/// The number of cases in version 0.3.6. The test compares it because a case that does not run cannot fail.
const CASE_COUNT: usize = 338;

/// The groups of cases for features that the example does not have. Only cases of these groups may fail, so every read must pass.
const UNSUPPORTED_GROUPS: [&str; 4] = [
    "Fork - ",
    "HEAD Metadata Edge Cases should return TTL",
    "TTL Expiration Behavior ",
    "TTL and Expiry ",
];

/// The group of cases that the suite skips by default.
const SKIPPED_GROUP: &str = "Reserved subscription APIs ";

#[test]
fn conformance_suite_fails_only_documented_cases() {
    let cases = run_conformance_suite();
    assert_eq!(cases.len(), CASE_COUNT, "the suite has changed");

    let documented = documented_failures();
    for name in &documented {
        let is_unsupported = UNSUPPORTED_GROUPS
            .iter()
            .any(|group| name.starts_with(group));
        assert!(is_unsupported, "this case must pass: {name}");
    }

    let unexpected: Vec<_> = cases
        .iter()
        .filter(|(name, case)| case.failed && !documented.contains(*name))
        .map(|(name, case)| format!("{name}\n{}", case.message))
        .collect();
    assert!(unexpected.is_empty(), "{}", unexpected.join("\n"));

    let passing_failures: Vec<_> = documented
        .iter()
        .filter(|name| !cases.get(*name).is_some_and(|case| case.failed))
        .collect();
    assert!(
        passing_failures.is_empty(),
        "listed as failing, but passes: {passing_failures:#?}"
    );

    let skipped = cases.iter().filter(|(_, case)| case.skipped);
    let skipped: Vec<_> = skipped.map(|(name, _)| name).collect();
    assert!(
        skipped.iter().all(|name| name.starts_with(SKIPPED_GROUP)),
        "{skipped:#?}"
    );
}

struct CaseResult {
    failed: bool,
    skipped: bool,
    message: String,
}

/// Runs the suite, and returns its results by the names of the cases, which are unique.
fn run_conformance_suite() -> BTreeMap<String, CaseResult> {
    let suite = "@durable-streams/server-conformance-tests";
    let mut vitest = programs::node_script("node_modules/vitest/vitest.mjs", suite);
    let report = Path::new(env!("CARGO_TARGET_TMPDIR")).join("durable.json");
    let _ = fs::remove_file(&report);
    let example = ExampleProcess::start("durable_streams", &[LONG_POLL_SECONDS]);
    let output = vitest
        .args(["run", "durable.test.mjs", "--reporter=json"])
        .args(["--testTimeout", CASE_TIMEOUT_MS])
        .arg(format!("--outputFile={}", report.display()))
        .current_dir(programs::repository_path("tests/js"))
        .env("DURABLE_STREAMS", example.next_address())
        .env("LONG_POLL_MS", LONG_POLL_CASE_TIMEOUT_MS)
        .output()
        .expect("run scripts/setup first");
    // The exit status is ignored: it only says that some case has failed.
    let report = fs::read(report).unwrap_or_else(|_| panic!("{output:?}"));
    let report: Value = serde_json::from_slice(&report).unwrap();

    let cases = report["testResults"][0]["assertionResults"].as_array();
    let cases = cases.unwrap_or_else(|| panic!("{output:?}")).iter();
    cases
        .map(|case| {
            let case_is = |status| case["status"] == status;
            let result = CaseResult {
                failed: case_is("failed"),
                skipped: !case_is("failed") && !case_is("passed"),
                message: case["failureMessages"][0].to_string(),
            };
            (case["fullName"].as_str().unwrap().to_owned(), result)
        })
        .collect()
}

/// Returns the names of the cases that the document lists as failing.
fn documented_failures() -> BTreeSet<String> {
    let document = include_str!("../docs/durable-streams.md");
    let (_, failing) = document.split_once("\n## What fails\n").expect("a heading");
    let lists = failing.split("```text\n").skip(1);
    let names = lists.flat_map(|list| list.lines().take_while(|line| *line != "```"));
    names.map(str::to_owned).collect()
}

/// Returns what the client yields, and where it has stopped. `live` is as `tests/js/durable_client.mjs` describes.
async fn read_with_client(server: &TestServer, offset: &str, live: &str) -> (Vec<Value>, Value) {
    let mut command = programs::node_script("durable_client.mjs", "@durable-streams/client");
    command.args([&server.url("/log"), offset, live]);
    let mut messages = programs::run_to_json_lines(command, Duration::from_secs(60)).await;
    let end = messages.pop().unwrap();
    (messages, end)
}

/// The transport's defaults suit the client: it reads the messages that exist, waits for others, and learns that the stream is closed.
#[tokio::test]
async fn npm_client_reads_channel() {
    let channel = Channel::new();
    let server = TestServer::start(service(channel.clone()).transport(LongPoll::new())).await;
    let message = |n: u64| json!({ "n": n, "text": "größe\n\u{2028}" });
    let messages =
        |numbers: std::ops::RangeInclusive<u64>| numbers.map(message).collect::<Vec<_>>();
    for n in 1..=3 {
        channel.publish(Json(message(n))).unwrap();
    }
    let (read, end) = read_with_client(&server, "-1", "false").await;
    assert_eq!(read, messages(1..=3));
    assert_eq!(end["isClosed"], false);
    let offset = end["offset"].as_str().unwrap();

    let publish_later = async {
        for n in 4..=6 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            channel.publish(Json(message(n))).unwrap();
        }
        channel.close();
    };
    let (long_poll, sse, ()) = tokio::join!(
        read_with_client(&server, "-1", "long-poll"),
        read_with_client(&server, offset, "sse"),
        publish_later,
    );
    assert_eq!(long_poll.0, messages(1..=6));
    assert_eq!(sse.0, messages(4..=6));
    for end in [long_poll.1, sse.1] {
        assert_eq!(end["isClosed"], true, "{end}");
    }
    // A closed stream can still be read.
    let (read, end) = read_with_client(&server, offset, "long-poll").await;
    assert_eq!(read, messages(4..=6));
    assert_eq!(end["isClosed"], true);
}
