//! Several servers over one store: a client returns to any of them with its cursor.

use std::time::Duration;

use testkit::{HttpConnection, HttpVersion, TestServer};
use tower_push::{
    Relay,
    source::{StartPosition, relay::RelayBuilder},
};
use tower_push_outside_tests::Journal;

use crate::{
    support::LineReader,
    transport_switching::{TRANSPORTS, follow_numbers, read_some, start_server},
};

fn builder(max_events: usize) -> RelayBuilder {
    let builder = Relay::builder().max_events(max_events);
    builder.start(StartPosition::Oldest)
}

fn append_numbers(journal: &Journal, numbers: std::ops::Range<u64>) {
    for number in numbers {
        journal.append(number.to_string());
    }
}

/// Requests NDJSON records after `cursor`.
async fn get_lines(server: &TestServer, cursor: &str) -> LineReader {
    let mut client = HttpConnection::connect(server, HttpVersion::Http1).await;
    let path = format!("/?transport=ndjson&last_event_id={cursor}");
    LineReader::new(client.get(&path, &[]).await)
}

/// The servers lag behind the journal, each by another time. So a client is often ahead of the server to which it returns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_hops_between_servers_on_all_transports() {
    let journal = Journal::new();
    let mut servers = Vec::new();
    for delay in [0, 2, 5] {
        let relay = journal.relay(builder(64), 0, Duration::from_millis(delay));
        servers.push(start_server(relay).await);
    }
    let servers: [TestServer; 3] = servers.try_into().ok().unwrap();
    follow_numbers(servers, move |number| {
        journal.append(number.to_string());
    })
    .await;
}

#[tokio::test]
async fn old_cursor_resumes_on_all_transports() {
    for transport in TRANSPORTS {
        let journal = Journal::new();
        append_numbers(&journal, 0..1000);
        let relay = journal.relay(builder(16), 16, Duration::ZERO);
        let server = start_server(relay.clone()).await;
        let mut client = HttpConnection::connect(&server, HttpVersion::Http2).await;
        let (mut expected, mut cursor) = (100, "0.100".to_owned());
        while expected < 1000 {
            let (events, next) = read_some(&mut client, transport, Some(&cursor)).await;
            for event in events {
                assert_eq!(event, expected.to_string(), "{transport}");
                expected += 1;
            }
            cursor = next;
            // Some transports read one event of each response here. The last events are enough for them.
            if expected == 110 {
                (expected, cursor) = (950, "0.950".to_owned());
            }
        }
        let counts = relay.counts();
        assert!(counts.upstream_resumes > 0, "{transport}");
        assert_eq!((counts.missed_on_resume, counts.lost_cursors), (0, 0));
    }
}

#[tokio::test]
async fn trimmed_and_recreated_journal_is_gap() {
    let journal = Journal::new();
    append_numbers(&journal, 0..100);
    let relay = journal.relay(builder(8), 8, Duration::ZERO);
    let server = start_server(relay.clone()).await;
    journal.trim(20);
    let mut reader = get_lines(&server, "0.70").await;
    let lines = reader.expect(21).await;
    assert_eq!(
        (lines[0].as_str(), lines[1].as_str()),
        ("gap expired 10", "80")
    );
    assert_eq!(lines[20], "99");

    journal.recreate();
    append_numbers(&journal, 200..203);
    let lines = reader.expect(4).await;
    assert_eq!(lines, ["gap epoch null", "200", "201", "202"]);
    let mut returned = get_lines(&server, "0.90").await;
    let lines = returned.expect(4).await;
    assert_eq!(lines, ["gap epoch null", "200", "201", "202"]);
    assert_eq!(returned.cursor(), Some("1.3"));
}
