//! The metrics that `examples/metrics.rs` exports for Prometheus: Prometheus' own parser for Python reads them, and they change as
//! clients come and go.

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use testkit::{TEST_TIMEOUT, example_process::ExampleProcess, programs, websocket};
use tower_push_examples::exposition::{Exposition, Histogram, MEDIA_TYPE};

/// The values of the samples. A key is the sample's name and the values of its labels.
type Samples = BTreeMap<String, f64>;

/// Parses metrics with `tests/python/metrics.py`.
fn parse_metrics(text: &str) -> Samples {
    let mut parser = programs::python_script("metrics.py")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run scripts/setup first");
    let mut stdin = parser.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    let parse_metrics = parser.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&parse_metrics.stderr);
    assert!(parse_metrics.status.success(), "{stderr}\n{text}");
    serde_json::from_slice(&parse_metrics.stdout).unwrap()
}

fn curl(url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command.args(["-sS", "-N", "--http1.1", "--noproxy", "*"]);
    command.args(arguments).arg(url);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// A running curl. Dropping this value kills it.
struct CurlClient(Child);

impl CurlClient {
    fn open(url: &str, arguments: &[&str]) -> Self {
        Self(
            curl(url, arguments)
                .spawn()
                .expect("run scripts/setup first"),
        )
    }
}

impl Drop for CurlClient {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs curl to its end.
fn run_curl(url: &str, arguments: &[&str]) -> Output {
    let output = curl(url, arguments)
        .output()
        .expect("run scripts/setup first");
    assert!(output.status.success());
    output
}

struct MetricsExample {
    example: ExampleProcess,
    address: String,
}

impl MetricsExample {
    fn start(streams: &str) -> Self {
        let example = ExampleProcess::start("metrics", &[streams]);
        let address = example.next_address();
        Self { example, address }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.address)
    }

    fn scrape(&self) -> Samples {
        let output = run_curl(&self.url("/metrics"), &["-w", "%{content_type}"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let text = text
            .strip_suffix(MEDIA_TYPE)
            .expect("the media type at the end");
        parse_metrics(text)
    }

    /// Waits until the samples have these values. A missing sample counts as 0.
    fn wait_for_samples(&self, wanted: &[(&str, f64)]) -> Samples {
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            let samples = self.scrape();
            let value = |key| samples.get(key).copied().unwrap_or_default();
            if wanted.iter().all(|(key, wanted)| value(*key) == *wanted) {
                return samples;
            }
            assert!(Instant::now() < deadline, "{wanted:?}: {samples:#?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn metrics_change_as_clients_come_and_go() {
    let server = MetricsExample::start("3");
    let before = server.scrape();
    for (name, value) in &before {
        // The channel publishes even without clients.
        assert!(*value == 0.0 || name.starts_with("push_channel_"), "{name}");
    }
    assert!(before.contains_key("push_streams_closed_total drained"));

    // The next tick answers the poll, and then its stream is closed.
    let polled = run_curl(&server.url("/ticks?transport=long-poll"), &[]);
    assert!(String::from_utf8_lossy(&polled.stdout).contains("tick"));
    let polled = server.wait_for_samples(&[
        ("push_streams_opened_total", 1.0),
        ("push_streams_open long-poll", 0.0),
        ("push_streams_closed_total answered", 1.0),
        ("push_stream_seconds_count long-poll", 1.0),
    ]);
    let [events, bytes] = ["push_events_total", "push_payload_bytes_total"].map(|it| polled[it]);
    assert!(events >= 1.0 && bytes == 4.0 * events);

    let handshake = websocket::handshake_header_lines();
    let upgrade: Vec<_> = handshake.iter().map(|line| ["-H", line]).collect();
    let clients = [
        CurlClient::open(&server.url("/ticks"), &[]),
        CurlClient::open(&server.url("/ticks"), &upgrade.concat()),
    ];
    let countdown = CurlClient::open(&server.url("/countdown"), &[]);
    server.wait_for_samples(&[
        ("push_streams_open sse", 2.0),
        ("push_streams_open websocket", 1.0),
        ("push_channel_subscribers ticks", 2.0),
        ("push_resumable_streams live", 1.0),
    ]);
    // This is one stream more than the example admits.
    let status = ["-o", "/dev/null", "-w", "%{http_code}"];
    assert_eq!(run_curl(&server.url("/ticks"), &status).stdout, b"503");
    // The client's own stream is parked when it disconnects.
    drop(countdown);
    server.wait_for_samples(&[
        ("push_requests_refused_total full", 1.0),
        ("push_streams_closed_total left", 1.0),
        ("push_resumable_streams live", 0.0),
        ("push_resumable_streams parked", 1.0),
    ]);
    drop(clients);
    let after = server.wait_for_samples(&[
        ("push_streams_closed_total left", 3.0),
        ("push_streams_open sse", 0.0),
        ("push_streams_open websocket", 0.0),
        ("push_channel_subscribers ticks", 0.0),
    ]);
    let opened = after["push_streams_opened_total"];
    let sum = |name: &str| {
        let of_name = after.iter().filter(|(key, _)| key.starts_with(name));
        of_name.map(|(_, value)| value).sum::<f64>()
    };
    assert_eq!(opened, 4.0);
    assert_eq!(sum("push_streams_closed_total "), opened);
    assert_eq!(sum("push_stream_seconds_count "), opened);
    assert!(after["push_channel_published_total ticks"] >= 1.0);

    // Every metric that docs/deploying.md names is exported.
    let named = DEPLOYING_DOCUMENT.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
    let names: Vec<_> = after
        .keys()
        .filter_map(|key| key.split(' ').next())
        .collect();
    let named: Vec<_> = named.filter(|word| word.starts_with("push_")).collect();
    assert!(named.len() > 10, "{named:?}");
    for name in named {
        assert!(names.contains(&name), "{name}");
    }
}

/// The document whose metrics must exist.
const DEPLOYING_DOCUMENT: &str = include_str!("../docs/deploying.md");

#[test]
fn interrupt_ends_streams_before_exit() {
    let server = MetricsExample::start("3");
    let mut client = CurlClient::open(&server.url("/ticks"), &[]);
    server.wait_for_samples(&[("push_streams_open sse", 1.0)]);
    server.example.interrupt();
    server
        .example
        .wait_for_line("1 streams were notified, 0 left, 0 were cut");
    assert!(client.0.wait().unwrap().success());
    let mut output = String::new();
    let stdout = client.0.stdout.as_mut().unwrap();
    std::io::Read::read_to_string(stdout, &mut output).unwrap();
    assert!(output.contains("event: end\n"), "{output}");
}

#[test]
fn any_label_and_help_parses_back() {
    let odd = "a\\b\"c\nd\\n, e=\"f\" }{é";
    let mut text = Exposition::default();
    text.gauge("odd", "back\\slash,\nline \"quoted\"")
        .sample(&[("first", odd), ("second", "")], 0.25);
    let mut histogram = Histogram::new([0.5, 2.0]);
    for value in [0.5, 1.0, 100.0] {
        histogram.add(value);
    }
    text.histogram("spread", "Some.")
        .samples(&[("of", odd)], &histogram)
        .samples(&[("of", "")], &Histogram::new([0.5, 2.0]));
    text.counter("some_total", "Some.").sample(&[], u64::MAX);
    let samples = parse_metrics(&text.into_text());
    let bucket = |bound| samples[&format!("spread_bucket {odd} {bound}")];
    assert_eq!(samples[&format!("odd {odd} ")], 0.25);
    assert_eq!(["0.5", "2", "+Inf"].map(bucket), [1.0, 2.0, 3.0]);
    assert_eq!(samples[&format!("spread_sum {odd}")], 101.5);
    assert_eq!(samples["spread_count "], 0.0);
    assert_eq!(samples["some_total"], u64::MAX as f64);
}
