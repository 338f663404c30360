//! Streams of hubs in the event loops of a server, which drive many connections in one task, and the same streams in hyper: events of topics with many
//! subscribers and with one, revoked access, patterns, flush windows, and the gaps and the end of a feed.

use std::{ops::Range, time::Duration};

use testkit::{
    describe_item, next_item,
    pipe_client::{PipeClient, SSE, WEBSOCKET},
    read_ready_items,
};
use tokio::{runtime::Handle, task::yield_now, time::Instant};
use tower_push::{
    Drain, Guard, Hub,
    guard::DrainPlan,
    server::Server,
    service,
    source::{
        PushSource, StartPosition,
        hub::{PublishOptions, TopicAccess, TopicPattern, Topics},
    },
};

use crate::broker::Broker;

/// The number of clients: enough for a group of readers in an event loop, and for readers that came before there was one.
const CLIENTS: Range<usize> = 0..8;

/// A server that detaches streams and drives them in event loops, and one that leaves them to hyper.
fn servers() -> [Server; 2] {
    [true, false].map(|detaches| Server::builder().detach(detaches).build())
}

/// Opens a stream of `source(client)` for each of [`CLIENTS`]. The clients use SSE and WebSockets in turn.
async fn connect<S>(server: &Server, source: impl Fn(usize) -> S) -> Vec<PipeClient>
where
    S: PushSource + Clone + Send + 'static,
{
    let mut clients = Vec::new();
    for number in CLIENTS {
        let json_websocket = format!("{WEBSOCKET}sec-websocket-protocol: json.tower-push\r\n");
        let headers = [SSE, &json_websocket][number % 2];
        let service = service(source(number));
        let mut client = PipeClient::request(server, service, None, headers).await;
        client.expect("\r\n\r\n").await;
        clients.push(client);
    }
    settle().await;
    clients
}

/// The ends of the streams of [`connect`]: the last chunk of a body, and the first byte of a close frame.
const STREAM_ENDS: [&str; 2] = ["\r\n0\r\n\r\n", "\u{88}"];

/// Lets the tasks of the server run until they wait.
async fn settle() {
    for _ in 0..200 {
        yield_now().await;
    }
}

fn private_topic(client: usize) -> String {
    format!("user/{client}")
}

async fn expect_each(clients: &mut [PipeClient], text: &str) {
    for client in clients {
        client.expect(text).await;
    }
}

/// Asserts that only the client with this number gets the text, which was published before the call.
async fn expect_only(clients: &mut [PipeClient], number: usize, text: &str) {
    clients[number].expect(text).await;
    settle().await;
    for (other, client) in clients.iter_mut().enumerate() {
        client.read_ready();
        assert_eq!(client.response.contains(text), other == number, "{other}");
    }
}

#[tokio::test(start_paused = true)]
async fn shared_and_private_topics_reach_their_readers() {
    for server in servers() {
        let hub = Hub::new();
        let topics = |client| hub.topics(["news", &private_topic(client)]).unwrap();
        let mut clients = connect(&server, topics).await;
        for round in 0..20 {
            let news = format!("news-{round}.");
            hub.publish("news", news.as_str()).unwrap();
            expect_each(&mut clients, &news).await;
            let client = round % CLIENTS.end;
            let private = format!("private-{round}.");
            hub.publish(private_topic(client), private.as_str())
                .unwrap();
            expect_only(&mut clients, client, &private).await;
            let both = format!("both-{round}.");
            let topics = ["news".to_owned(), private_topic(client)];
            hub.publish(topics, both.as_str()).unwrap();
            expect_each(&mut clients, &both).await;
        }
        for client in &clients {
            for round in 0..20 {
                for text in [format!("news-{round}."), format!("both-{round}.")] {
                    assert_eq!(client.response.matches(&text).count(), 1, "{text}");
                }
            }
        }
        drop(clients);
        settle().await;
        for topic in ["news".to_owned(), private_topic(0)] {
            assert_eq!(hub.topic(topic).unwrap().subscriber_count(), 0);
        }
    }
}

/// The streams of a hub share the tasks of the event loops, here one. Streams in hyper have a task each.
#[tokio::test(start_paused = true)]
async fn streams_of_hub_share_a_task() {
    let task_count = || Handle::current().metrics().num_alive_tasks();
    for (server, tasks) in servers().into_iter().zip([1, CLIENTS.end / 2 + 1]) {
        let before = task_count();
        let hub = Hub::builder().max_patterns(8).build();
        let topics = |client| hub.topics(["news", &private_topic(client)]).unwrap();
        let clients = connect(&server, topics).await;
        assert_eq!(task_count() - before, tasks);
        drop(clients);
        settle().await;
        let matching = |_| hub.matching([TopicPattern::prefix("user/")]);
        let clients = connect(&server, matching).await;
        assert_eq!(task_count() - before, tasks);
        drop(clients);
        drop(server);
        settle().await;
        assert_eq!(task_count(), before);
    }
}

#[tokio::test(start_paused = true)]
async fn revoked_client_is_disconnected_alone() {
    for server in servers() {
        // The last client waits in a group for the topic, and the first one does not.
        for revoked in [CLIENTS.start, CLIENTS.end - 1] {
            let hub = Hub::new();
            let source_of = |client: usize| {
                let topics = Topics::from_fn(move |_| vec!["room".into(), private_topic(client)]);
                let access = TopicAccess::allow().member(private_topic(client));
                let source = hub.subscribe(topics);
                let access = move || access.clone();
                source.authorize(move |_, _| std::future::ready(access()))
            };
            let mut clients = connect(&server, source_of).await;
            hub.publish("room", "before.").unwrap();
            expect_each(&mut clients, "before.").await;
            let member = private_topic(revoked);
            let is_revoked = |other: Option<&str>| other == Some(member.as_str());
            assert_eq!(hub.revoke("room", is_revoked).unwrap(), 1);
            clients[revoked].expect(STREAM_ENDS[revoked % 2]).await;
            hub.publish("room", "after.").unwrap();
            for (number, client) in clients.iter_mut().enumerate() {
                match number == revoked {
                    true => assert!(!client.response.contains("after.")),
                    false => _ = client.expect("after.").await,
                }
            }
        }
    }
}

/// A reader of a pattern leaves the topics that match when it has read their history, and reads the log of the pattern then.
#[tokio::test(start_paused = true)]
async fn readers_of_pattern_get_history_and_new_events() {
    for server in servers() {
        let hub = Hub::builder().max_patterns(8).build();
        for number in 0..5 {
            let text = format!("old-{number}.");
            hub.publish(format!("room/{number}"), text).unwrap();
        }
        let source_of = |_| {
            let source = hub.matching([TopicPattern::prefix("room/")]);
            source.with_start(StartPosition::Oldest)
        };
        let mut clients = connect(&server, source_of).await;
        for number in 0..5 {
            expect_each(&mut clients, &format!("old-{number}.")).await;
        }
        for number in 0..10 {
            let text = format!("new-{number}.");
            hub.publish(format!("room/{number}"), text.as_str())
                .unwrap();
            expect_each(&mut clients, &text).await;
        }
        assert_eq!(hub.topic("room/0").unwrap().subscriber_count(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn flush_window_holds_events_for_groups_too() {
    const WINDOW: Duration = Duration::from_millis(100);
    for server in servers() {
        let hub = Hub::builder().flush_window(WINDOW).build();
        let topics = |client| hub.topics(["news", &private_topic(client)]).unwrap();
        let mut clients = connect(&server, topics).await;
        tokio::time::sleep(2 * WINDOW).await;
        let start = Instant::now();
        hub.publish("news", "first.").unwrap();
        expect_each(&mut clients, "first.").await;
        for text in ["second.", "third."] {
            hub.publish("news", text).unwrap();
        }
        settle().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        for client in &mut clients {
            client.read_ready();
            assert!(!client.response.contains("second."));
        }
        expect_each(&mut clients, "third.").await;
        // tokio's timers have a resolution of one millisecond.
        assert!((WINDOW..WINDOW + Duration::from_millis(2)).contains(&start.elapsed()));
    }
}

#[tokio::test(start_paused = true)]
async fn gap_and_end_of_feed_reach_all_readers() {
    for server in servers() {
        let broker = Broker::default();
        let mut node = broker.node(Hub::builder(), 0);
        let hub = node.hub.clone();
        let topics = |client| hub.topics(["news", &private_topic(client)]).unwrap();
        let mut clients = connect(&server, topics).await;
        broker.publish(&["news"], "first.");
        node.push(usize::MAX);
        expect_each(&mut clients, "first.").await;
        broker.lock().recreate();
        node.push(usize::MAX);
        expect_each(&mut clients, "epoch").await;
        drop(node);
        for (number, client) in clients.iter_mut().enumerate() {
            client.expect(STREAM_ENDS[number % 2]).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn sender_gets_no_echo_in_group() {
    for server in servers() {
        let hub = Hub::new();
        let source_of = |client| hub.topics("room").unwrap().sender(private_topic(client));
        let mut clients = connect(&server, source_of).await;
        let last = CLIENTS.end - 1;
        for number in 0..3 {
            let options = PublishOptions::new().except(private_topic(last));
            let text = format!("message-{number}.");
            hub.publish_with("room", text.as_str(), &options).unwrap();
            expect_each(&mut clients[..last], &text).await;
        }
        hub.publish("room", "to all.").unwrap();
        expect_each(&mut clients, "to all.").await;
        assert!(!clients[last].response.contains("message"));
    }
}

/// A poll of a reader that gets none of the events of its topics is bounded, so that the other connections of its event loop can go on.
#[tokio::test]
async fn poll_is_bounded_without_events_for_reader() {
    let hub = Hub::builder()
        .max_events(10_000)
        .max_bytes(64 << 20)
        .build();
    let source = hub.topics(["a", "b"]).unwrap().sender("tab-1");
    let mut subscriber = source.subscribe_from(StartPosition::Now).unwrap();
    assert_eq!(read_ready_items(&mut subscriber), ["cursor"]);
    for number in 0..5000 {
        let options = PublishOptions::new().except("tab-1");
        let text = number.to_string();
        hub.publish_with(["a", "b"], text, &options).unwrap();
    }
    hub.publish("a", "last").unwrap();
    assert_eq!(read_ready_items(&mut subscriber), [""; 0]);
    let next = next_item(&mut subscriber).await;
    assert_eq!(describe_item(Ok(next)), "last");
}

#[tokio::test(start_paused = true)]
async fn drain_ends_streams_of_hub() {
    for detaches in [true, false] {
        let drain = Drain::new();
        let guard = Guard::builder().drain(&drain).build();
        let server = Server::builder().detach(detaches).drain(&drain).build();
        let hub = Hub::new();
        let mut clients = Vec::new();
        for client in CLIENTS {
            let source = hub.topics(["news", &private_topic(client)]).unwrap();
            let service = service(source).guard(&guard);
            let mut client = PipeClient::request(&server, service, None, SSE).await;
            client.expect("\r\n\r\n").await;
            clients.push(client);
        }
        settle().await;
        drain.start(DrainPlan::within(Duration::from_secs(5)).spread(Duration::from_secs(1)));
        for client in &mut clients {
            client.expect(r#""finished":false"#).await;
            client.expect(STREAM_ENDS[0]).await;
        }
        drop(clients);
        assert_eq!(drain.wait().await.notified, CLIENTS.end);
    }
}
