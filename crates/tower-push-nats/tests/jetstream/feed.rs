//! One feed on several nodes.

use testkit::{NatsServer, RelayClient, programs::python_script};
use tower_push::{Event, Item, event::Topic, source::StartPosition};

use crate::nodes::{builder, node, node_with_short_log, publish_numbers, wait_until_read};

#[tokio::test]
async fn all_nodes_have_the_same_feed() {
    let server = NatsServer::start("");
    let nodes = [node(&server).await, node(&server).await];
    let mut clients = [
        RelayClient::connect(nodes[0].relay()).await,
        RelayClient::connect(nodes[1].relay()).await,
    ];
    let mut ids = Vec::new();
    for number in 0..20 {
        ids.push(
            publish_numbers(&nodes[number as usize % 2], [number])
                .await
                .unwrap(),
        );
    }
    let [first, second] = &mut clients;
    for number in 0..20 {
        first.expect_numbers([number]).await;
        second.expect_numbers([number]).await;
        assert_eq!(first.cursor(), second.cursor());
        assert_eq!(first.cursor(), ids[number as usize]);
    }
}

/// Clients move to another node after every few events, while events are published. The nodes have short logs, so that many moves are upstream
/// resumes that go on to the live log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moving_clients_get_each_event_once() {
    const EVENTS: u64 = 500;
    let server = NatsServer::start("");
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
    let counts = nodes.iter().map(|node| node.relay().counts());
    let upstream_resumes: u64 = counts.map(|counts| counts.upstream_resumes).sum();
    assert!(upstream_resumes > 10, "{upstream_resumes}");
    assert!(nodes.iter().all(|node| node.reader_status().replaced == 0));
}

#[tokio::test]
async fn new_node_begins_with_newest_events() {
    let server = NatsServer::start("");
    let old = node(&server).await;
    let mut client = RelayClient::connect(old.relay()).await;
    publish_numbers(&old, 0..10).await;
    client.expect_numbers(0..4).await;
    publish_numbers(&old, 10..1500).await;
    let new = builder(&server)
        .max_log_events(1490)
        .connect()
        .await
        .unwrap();
    assert_eq!(new.relay().len(), 1490);
    // The event 9 is the last one that is not in the log, and 3 is older.
    let mut oldest = new.relay().subscribe_from(StartPosition::Oldest);
    let first = futures_util::StreamExt::next(&mut oldest).await.unwrap();
    assert_eq!(testkit::describe_item(first), "10");
    client.move_to(new.relay());
    client.expect_numbers(4..1500).await;
    assert_eq!(new.relay().counts().upstream_resumes, 1);
    assert_eq!(new.relay().counts().lost_cursors, 0);
    let small = builder(&server)
        .max_log_bytes(1000)
        .connect()
        .await
        .unwrap();
    assert!((1..100).contains(&small.relay().len()));
}

/// Messages of nats-py, a client of another project.
#[tokio::test]
async fn messages_of_other_programs_are_events() {
    let server = NatsServer::start("");
    let node = node(&server).await;
    let mut subscriber = node.relay().subscribe_from(StartPosition::Oldest);
    let publish = |arguments: &[&str]| {
        let mut script = python_script("nats_publish.py");
        let output = script.arg(server.url()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    publish(&["events.news.local", "hello"]);
    publish(&[
        "events",
        "[1]",
        "Content-Type=application/json",
        "Event-Type=list",
    ]);
    publish(&["events", "with a key", "Nats-Msg-Id=order 7"]);
    let mut events = Vec::new();
    while events.len() < 3 {
        let item = futures_util::StreamExt::next(&mut subscriber)
            .await
            .unwrap();
        if let Item::Event(event) = item.unwrap() {
            events.push(event);
        }
    }
    assert_eq!(events[0].payload().as_text(), Some("hello"));
    assert_eq!(events[0].topic().map(Topic::as_str), Some("news.local"));
    assert_eq!(format!("{:?}", events[1].payload()), r#"Json("[1]")"#);
    assert_eq!(events[1].event_type().unwrap().as_str(), "list");
    assert_eq!(events[1].topic(), None);
    // A cursor of such an event is as good as another one, on a node that reads the event in another way.
    let short_log = builder(&server).max_log_events(1).connect().await.unwrap();
    let mut client = RelayClient::resume(short_log.relay(), events[0].id().unwrap());
    assert_eq!(client.next().await, "[1]");
    assert_eq!(&client.cursor(), events[1].id().unwrap());
    client.expect(&["with a key"]).await;
    assert_eq!(&client.cursor(), events[2].id().unwrap());
}

#[tokio::test]
async fn topics_select_events() {
    let server = NatsServer::start("");
    let nodes = [node(&server).await, node(&server).await];
    let news = Topic::new("news: *local* é").unwrap();
    let mut client = RelayClient::connect(nodes[0].relay()).await;
    for number in 0..10 {
        let topic = if number % 5 == 0 {
            news.as_str()
        } else {
            "sports"
        };
        let event = Event::text(number.to_string()).with_topic(topic).unwrap();
        nodes[0].publish(&event).await.unwrap();
    }
    client.expect_numbers(0..1).await;
    wait_until_read(&nodes[1]).await;
    client.move_to(nodes[1].with_topics([news]).relay());
    client.expect_numbers([5]).await;
}
