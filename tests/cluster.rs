//! `examples/cluster.rs` as two processes over a real Redis server that fails: clients move between the nodes.

use std::time::{Duration, Instant};

use testkit::{
    ExampleProcess, HttpConnection, HttpVersion, RedisProgram, RedisServer, StreamingResponse,
    TEST_TIMEOUT, records::RecordReader,
};

/// A client that reads NDJSON records from one node. It ignores the ticks that the nodes publish, and stops at a gap.
struct Follower {
    response: StreamingResponse,
    reader: RecordReader,
    texts: Vec<String>,
}

impl Follower {
    async fn open(address: &str, cursor: &str) -> Self {
        let address = address.parse().unwrap();
        let mut connection = HttpConnection::connect_to(address, HttpVersion::Http1).await;
        let path = format!("/feed?transport=ndjson&last_event_id={cursor}");
        let response = connection.get(&path, &[]).await;
        assert_eq!(response.head.status, 200);
        Self {
            response,
            reader: RecordReader::new("application/x-ndjson", Some(cursor.to_owned())),
            texts: Vec::new(),
        }
    }

    async fn expect_number(&mut self, number: u64) {
        while self.texts.is_empty() {
            let bytes = self.response.next_chunk().await.expect("more records");
            for record in self.reader.feed(&bytes.expect("the stream is cut")) {
                let text = record.data.clone();
                let text = text.unwrap_or_else(|| panic!("{record:?}"));
                if !text.starts_with("tick") {
                    self.texts.push(text);
                }
            }
        }
        assert_eq!(self.texts.remove(0), number.to_string());
    }
}

async fn request(method: reqwest::Method, url: &str, body: &str, key: &str) -> (u16, String) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.request(method, url).body(body.to_owned());
    let response = request.header("idempotency-key", key).send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

/// Publishes a number, again and again until the node has done it. The idempotency key makes this safe. Returns the event's id.
async fn publish(address: &str, number: u64) -> String {
    let url = format!("http://{address}/feed");
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        let number = number.to_string();
        match request(reqwest::Method::POST, &url, &number, &number).await {
            (200, id) => return id,
            (503, error) => assert!(Instant::now() < deadline, "{error}"),
            other => panic!("{other:?}"),
        }
    }
}

async fn wait_for_readiness(address: &str, expected: u16) {
    let deadline = Instant::now() + 2 * TEST_TIMEOUT;
    let url = format!("http://{address}/ready");
    while request(reqwest::Method::GET, &url, "", "").await.0 != expected {
        assert!(Instant::now() < deadline, "the node is not {expected}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_show_one_feed() {
    let mut server = RedisServer::start(
        RedisProgram::Redis,
        &["--appendonly", "yes", "--appendfsync", "always"],
    );
    let start = || {
        let node = ExampleProcess::start("cluster", &[&server.url()]);
        let address = node.next_address();
        (node, address.strip_prefix("http://").unwrap().to_owned())
    };
    let (first_process, first) = start();
    let (_second_process, second) = start();
    let nodes = [first.as_str(), second.as_str()];

    let mut cursor = publish(nodes[0], 0).await;
    for number in 1..20_u64 {
        let mut follower = Follower::open(nodes[number as usize % 2], &cursor).await;
        publish(nodes[number as usize / 2 % 2], number).await;
        follower.expect_number(number).await;
        cursor = follower.reader.cursor.clone().unwrap();
    }

    // While Redis is away, the streams stay open.
    let mut connected = Follower::open(nodes[1], &cursor).await;
    server.kill();
    wait_for_readiness(nodes[1], 503).await;
    server.start_again();
    for number in 20..25 {
        publish(nodes[number as usize % 2], number).await;
        connected.expect_number(number).await;
    }
    wait_for_readiness(nodes[1], 200).await;

    // The clients of a node that is killed go on at the other one.
    let mut follower = Follower::open(nodes[0], &cursor).await;
    for number in 20..25 {
        follower.expect_number(number).await;
    }
    drop(first_process);
    cursor = follower.reader.cursor.clone().unwrap();
    publish(nodes[1], 25).await;
    let mut follower = Follower::open(nodes[1], &cursor).await;
    follower.expect_number(25).await;
}
