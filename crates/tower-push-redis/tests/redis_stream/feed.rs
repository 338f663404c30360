//! One feed on several nodes.

use testkit::{RedisProgram, RedisServer, RelayClient};
use tower_push::{Event, event::Topic, source::StartPosition};

use crate::nodes::{KEY, builder, node, node_with_short_log, publish_numbers, wait_until_read};

async fn all_nodes_have_the_same_feed(program: RedisProgram) {
    let server = RedisServer::start(program, &[]);
    let nodes = [node(&server).await, node(&server).await];
    let mut clients = [
        RelayClient::connect(nodes[0].relay()).await,
        RelayClient::connect(nodes[1].relay()).await,
    ];
    for number in 0..20 {
        publish_numbers(&nodes[number as usize % 2], [number]).await;
    }
    let [first, second] = &mut clients;
    for number in 0..20 {
        first.expect_numbers([number]).await;
        second.expect_numbers([number]).await;
        assert_eq!(first.cursor(), second.cursor());
    }
}

#[tokio::test]
async fn redis_nodes_have_the_same_feed() {
    all_nodes_have_the_same_feed(RedisProgram::Redis).await;
}

#[tokio::test]
async fn valkey_nodes_have_the_same_feed() {
    all_nodes_have_the_same_feed(RedisProgram::Valkey).await;
}

/// Clients move to another node after every few events, while events are published on all nodes. The nodes have short logs, so that many moves
/// are upstream resumes that go on to the live log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moving_clients_get_each_event_once() {
    const EVENTS: u64 = 2000;
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(node_with_short_log(&server, 20).await);
    }
    let mut clients = Vec::new();
    for number in 0..20_usize {
        clients.push(RelayClient::connect(nodes[number % 3].relay()).await);
    }
    let publisher = nodes[0].clone();
    let publish = tokio::spawn(async move { publish_numbers(&publisher, 0..EVENTS).await });
    let readers = clients.into_iter().enumerate().map(|(index, mut client)| {
        let nodes = nodes.clone();
        tokio::spawn(async move {
            // Clients differ in speed, so that some of them fall out of the log while they are away.
            let stay = 1 + index as u64 * 7;
            for number in 0..EVENTS {
                let mut item = client.next().await;
                while item.starts_with("error") {
                    // The client has fallen out of the log.
                    client.move_to(nodes[index % 3].relay());
                    item = client.next().await;
                }
                assert_eq!(item, number.to_string());
                if number % stay == stay - 1 {
                    client.move_to(nodes[(number as usize + index) % 3].relay());
                    if index % 4 == 0 {
                        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                    }
                }
            }
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.unwrap();
    }
    publish.await.unwrap();
    let upstream_resumes: u64 = nodes
        .iter()
        .map(|node| node.relay().counts().upstream_resumes)
        .sum();
    assert!(upstream_resumes > 10, "{upstream_resumes}");
    assert!(nodes.iter().all(|node| node.reader_status().replaced == 0));
}

/// No stream exists when the nodes start.
#[tokio::test]
async fn first_cursor_is_valid_on_all_nodes() {
    let server = RedisServer::start(RedisProgram::Valkey, &[]);
    let (first, second) = tokio::join!(node(&server), node(&server));
    assert_eq!(server.command(&["XLEN", KEY]), "0");
    let mut client = RelayClient::connect(first.relay()).await;
    let other = RelayClient::connect(second.relay()).await;
    let start = client.cursor();
    assert_eq!(other.cursor(), start);
    client.move_to(second.relay());
    publish_numbers(&first, 0..3).await;
    client.expect_numbers(0..3).await;
    for late in [builder(&server), builder(&server).max_log_events(1)] {
        let late = late.connect().await.unwrap();
        let mut client = RelayClient::resume(late.relay(), &start);
        client.expect_numbers(0..3).await;
    }
}

#[tokio::test]
async fn new_node_begins_with_newest_events() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let old = node(&server).await;
    let mut client = RelayClient::connect(old.relay()).await;
    publish_numbers(&old, 0..10).await;
    client.expect_numbers(0..4).await;
    publish_numbers(&old, 10..2000).await;
    let new = builder(&server)
        .max_log_events(1990)
        .connect()
        .await
        .unwrap();
    assert_eq!(new.relay().len(), 1990);
    // The event 9 is the last one that is not in the log, and 3 is older.
    let mut oldest = new.relay().subscribe_from(StartPosition::Oldest);
    let first = futures_util::StreamExt::next(&mut oldest).await.unwrap();
    assert_eq!(testkit::describe_item(first), "10");
    client.move_to(new.relay());
    client.expect_numbers(4..2000).await;
    assert_eq!(new.relay().counts().upstream_resumes, 1);
    assert_eq!(new.relay().counts().lost_cursors, 0);
    let small = builder(&server).max_log_bytes(100).connect().await.unwrap();
    assert!((1..100).contains(&small.relay().len()));
}

#[tokio::test]
async fn entries_of_other_programs_are_events() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let node = node(&server).await;
    let mut client = RelayClient::connect(node.relay()).await;
    server.command(&["XADD", KEY, "*", "data", "from the CLI"]);
    server.command(&["XADD", KEY, "*", "user", "7", "action", "log\nin"]);
    client
        .expect(&["from the CLI", r#"{"action":"log\nin","user":"7"}"#])
        .await;
}

#[tokio::test]
async fn topics_select_events() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let nodes = [node(&server).await, node(&server).await];
    let news = Topic::new("news").unwrap();
    let mut client = RelayClient::connect(nodes[0].relay()).await;
    for number in 0..10 {
        let topic = if number % 5 == 0 { "news" } else { "sports" };
        let event = Event::text(number.to_string()).with_topic(topic).unwrap();
        nodes[0].publish(&event).await.unwrap();
    }
    client.expect_numbers(0..1).await;
    wait_until_read(&nodes[1]).await;
    client.move_to(nodes[1].with_topics([news]).relay());
    client.expect_numbers([5]).await;
}
