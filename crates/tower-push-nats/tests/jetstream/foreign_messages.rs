//! Messages of other programs: with headers that the NATS client cannot parse, with a status, with other names of headers, and larger than the server
//! allows now.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use testkit::{HubClient, NatsServer, RelayClient, TEST_TIMEOUT};
use tower_push::{Event, Hub, source::relay::UpstreamLimits};

use crate::nodes::{Operator, builder, node, publish_numbers, wait_until_read};

/// Headers that the NATS client cannot parse.
const UNREADABLE: [&[u8]; 6] = [
    b"NATS/1.0\r\nno colon\r\n\r\n",
    b"NATS/1.0\r\nMy Header: x\r\n\r\n",
    b"NATS/1.0\r\nA: \xff\r\n\r\n",
    b"NATS/1.0 status\r\n\r\n",
    b"NATS/1.0\r\n:\r\nA\xc2\xa0: b\r\n\r\n",
    // The task of the NATS client panics.
    b"NATS/1.0\r\nA: x\ry\r\n\r\n",
];

/// Headers with a status, as answers of servers have them.
const WITH_STATUS: [&[u8]; 4] = [
    b"NATS/1.0 404\r\n\r\n",
    b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1\r\n\r\n",
];

/// Publishes a message with these bytes as its headers, which the NATS client would not send.
fn publish_raw(server: &NatsServer, subject: &str, headers: &[u8], payload: &str) {
    let mut socket = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let total = headers.len() + payload.len();
    let mut bytes = b"CONNECT {\"verbose\":false,\"headers\":true}\r\n".to_vec();
    bytes.extend(format!("HPUB {subject} {} {total}\r\n", headers.len()).into_bytes());
    bytes.extend_from_slice(headers);
    bytes.extend_from_slice(payload.as_bytes());
    bytes.extend_from_slice(b"\r\nPING\r\n");
    socket.write_all(&bytes).unwrap();
    let mut answer = Vec::new();
    // The server handles the commands of a connection in their order.
    while !answer.ends_with(b"PONG\r\n") {
        let mut part = [0; 4096];
        let len = socket.read(&mut part).unwrap();
        assert!(len > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&part[..len]);
    }
}

/// Publishes the messages 2 to 9 under a subject: half of them with these headers.
async fn publish_mixed(server: &NatsServer, operator: &Operator, subject: &str, headers: &[u8]) {
    for number in [2, 4, 5, 8] {
        publish_raw(server, subject, headers, &number.to_string());
        for plain in (number + 1..10).take_while(|plain| ![4, 5, 8].contains(plain)) {
            operator.publish(subject, &[], &plain.to_string()).await;
        }
    }
}

#[tokio::test]
async fn node_reads_messages_with_any_headers() {
    for headers in UNREADABLE.into_iter().chain(WITH_STATUS) {
        let server = NatsServer::start("");
        let following = node(&server).await;
        let operator = Operator::connect(&server).await;
        let mut client = RelayClient::connect(following.relay()).await;
        let first = publish_numbers(&following, 0..1).await.unwrap();
        publish_numbers(&following, 1..2).await;
        client.expect_numbers(0..2).await;
        publish_mixed(&server, &operator, "events", headers).await;
        client.expect_numbers(2..10).await;
        // A new node, which does not wait for the server.
        let new = node(&server).await;
        RelayClient::resume(new.relay(), &first)
            .expect_numbers(1..10)
            .await;
        // A client that gets the messages in pages, from a node that does not know of them.
        let short = builder(&server).max_log_events(1).connect().await.unwrap();
        for _ in 0..2 {
            RelayClient::resume(short.relay(), &first)
                .expect_numbers(1..10)
                .await;
        }
        for node in [&following, &new, &short] {
            wait_until_read(node).await;
            assert_eq!(node.relay().counts().gaps, 0);
        }
        publish_numbers(&short, 10..12).await;
        client.expect_numbers(10..12).await;
    }
}

/// Each consumer breaks at its first message.
#[tokio::test]
async fn node_reads_many_unreadable_messages() {
    let server = NatsServer::start("");
    let node = node(&server).await;
    let mut client = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..1).await;
    for number in 1..60 {
        publish_raw(&server, "events", UNREADABLE[0], &number.to_string());
    }
    client.expect_numbers(0..60).await;
    assert!(node.reader_status().reconnects < 12);
    wait_until_read(&node).await;
}

/// The server selects the messages of a topic.
#[tokio::test]
async fn page_of_topic_has_unreadable_messages() {
    let server = NatsServer::start("");
    let first_node = node(&server).await;
    let operator = Operator::connect(&server).await;
    let number = |number: u64| Event::text(number.to_string()).with_topic("news").unwrap();
    let first = first_node.publish(&number(0)).await.unwrap();
    first_node.publish(&number(1)).await.unwrap();
    publish_mixed(&server, &operator, "events.news", UNREADABLE[0]).await;
    let limits = UpstreamLimits::new().max_page_events(4);
    let hub = Hub::builder().upstream_limits(limits);
    let node = builder(&server).max_log_events(1).connect_hub(hub).await;
    let node = node.unwrap();
    let mut client = HubClient::resume(node.hub(), &["news"], &first);
    for number in 1..10 {
        let event = client.next_event().await;
        assert_eq!(event.payload().as_text(), Some(&*number.to_string()));
    }
}

/// The leader returns the headers of a message as bytes, and the NATS client parses those of a delivery.
#[tokio::test]
async fn message_is_the_same_whichever_way_it_is_read() {
    let server = NatsServer::start("");
    let node = node(&server).await;
    let operator = Operator::connect(&server).await;
    let mut client = RelayClient::connect(node.relay()).await;
    for (number, headers) in [
        &b"NATS/1.0\r\nevent-token: abc234\r\n\r\n"[..],
        b"NATS/1.0\r\nEvent-Token:\r\n abc234\r\n\r\n",
        b"NATS/1.0\r\nNats-Msg-Id: a\r\n b\r\n\tc\r\n\r\n",
        b"NATS/1.0 503\r\nEvent-Token: abc234\r\n\r\n",
    ]
    .into_iter()
    .enumerate()
    {
        let number = number as u64;
        publish_raw(&server, "events", headers, &number.to_string());
        client.expect_numbers([number]).await;
        // The reader compares its position with the leader's message.
        operator.delete_consumers().await.unwrap();
        let reconnects = node.reader_status().reconnects;
        testkit::wait_until(
            || node.reader_status().reconnects > reconnects,
            || format!("{:?}", node.reader_status()),
        )
        .await;
    }
    operator.publish_numbers([4]).await;
    client.expect_numbers([4]).await;
    assert_eq!(node.reader_status().replaced, 0);
}

/// The server accepted larger messages earlier.
#[tokio::test]
async fn message_above_limit_of_server_is_read() {
    let mut server = NatsServer::start("max_payload: 8388608");
    let first_node = node(&server).await;
    let first = publish_numbers(&first_node, 0..1).await.unwrap();
    let large = "x".repeat(6 << 20);
    first_node
        .publish(&Event::text(large.clone()))
        .await
        .unwrap();
    publish_numbers(&first_node, 1..2).await;
    drop(first_node);
    server.kill();
    server.set_config("");
    server.start_again();
    let new = node(&server).await;
    let short = builder(&server).max_log_events(1).connect().await.unwrap();
    for node in [&new, &short] {
        let mut client = RelayClient::resume(node.relay(), &first);
        assert!(client.next().await == large);
        client.expect_numbers([1]).await;
    }
}
