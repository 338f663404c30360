//! Two processes, whose clients change the node for each event.

use testkit::{
    ExampleProcess, HttpConnection, HttpVersion, StreamingResponse, records::RecordReader,
};

use crate::{broker::Broker, requests::RequestSender};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_on_redis_show_one_feed() {
    nodes_show_one_feed(Broker::start_redis().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_on_nats_show_one_feed() {
    nodes_show_one_feed(Broker::start_nats()).await;
}

async fn nodes_show_one_feed(mut broker: Broker) {
    let sender = RequestSender::new();
    let start = || {
        let node = ExampleProcess::start("cluster", &[&broker.url()]);
        let address = node.next_address();
        (node, address.strip_prefix("http://").unwrap().to_owned())
    };
    let (first_process, first) = start();
    let (_second_process, second) = start();
    let nodes = [first.as_str(), second.as_str()];

    let mut cursor = sender.publish(nodes[0], 0).await;
    for number in 1..20_u64 {
        let mut follower = Follower::open(nodes[number as usize % 2], &cursor).await;
        sender.publish(nodes[number as usize / 2 % 2], number).await;
        follower.expect_number(number).await;
        cursor = follower.reader.cursor.clone().unwrap();
    }

    // While the broker is away, the streams stay open.
    let mut connected = Follower::open(nodes[1], &cursor).await;
    broker.kill();
    sender.wait_for_readiness(nodes[1], 503).await;
    broker.start_again();
    for number in 20..25 {
        sender.publish(nodes[number as usize % 2], number).await;
        connected.expect_number(number).await;
    }
    sender.wait_for_readiness(nodes[1], 200).await;

    // The clients of a node that is killed go on at the other one.
    let mut follower = Follower::open(nodes[0], &cursor).await;
    for number in 20..25 {
        follower.expect_number(number).await;
    }
    drop(first_process);
    cursor = follower.reader.cursor.clone().unwrap();
    sender.publish(nodes[1], 25).await;
    let mut follower = Follower::open(nodes[1], &cursor).await;
    follower.expect_number(25).await;
}
