//! Commands that subscribe with a cursor, in a hub with a broker: a server whose logs do not have all events after the cursor reads them from the
//! broker. The client's other topics wait, and its cursor stays valid for all of its topics.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use testkit::CommandingSubscriber;
use tower_push::{
    Hub, Item,
    event::Topic,
    source::{
        Subscription,
        hub::{TopicAccess, Topics},
    },
};

use crate::broker::{Broker, Node};

/// Connects a client that sends commands. It may see the members of `lounge`, and the last event of `limited`.
fn connect(node: &Node, uri: &str) -> CommandingSubscriber {
    let topics = Topics::from_query("topic").max_patterns(2);
    let source = node.hub.subscribe(topics);
    let source = source
        .authorize(async |_: Subscription, topic: Topic| match topic.as_str() {
            "lounge" => TopicAccess::allow().with_members(),
            "limited" => TopicAccess::allow().max_history(1),
            _ => TopicAccess::allow(),
        })
        .authorize_patterns(async |_, _| true);
    CommandingSubscriber::subscribe(source, uri, None).unwrap()
}

/// Returns the next item: the text and the cursor of an event, and its topics if it has several; the reason, the topic and the cursor of a gap; a
/// cursor; or the type of an answer.
async fn next_description(client: &mut CommandingSubscriber) -> String {
    let item = tokio::time::timeout(Duration::from_secs(60), client.items.next()).await;
    let item = item.expect("no item").expect("the end").unwrap();
    let cursor = item
        .cursor()
        .map_or("", |cursor| cursor.as_str())
        .to_owned();
    match item {
        Item::Event(event) | Item::EventWithCursor { event, .. } => match event.event_type() {
            Some(event_type) => event_type.as_str().to_owned(),
            None => {
                let topics = event.topics().iter().map(Topic::as_str);
                let topics = topics.collect::<Vec<_>>().join("+");
                format!("{topics} {} {cursor}", event.payload().as_text().unwrap())
            }
        },
        Item::Gap(gap) => {
            let topic = gap.topic.as_ref().map_or("", Topic::as_str);
            format!("gap {} {topic} {cursor}", gap.reason.name())
        }
        Item::Cursor(_) => format!("cursor {cursor}"),
        other => format!("{other:?}"),
    }
}

async fn expect(client: &mut CommandingSubscriber, expected: &[&str]) {
    for expected in expected {
        assert_eq!(next_description(client).await, *expected);
    }
    let further = client.items.next().now_or_never();
    assert!(further.is_none(), "{further:?}");
}

/// Publishes the events 1 to 6, of `news` and `sport` in turn.
fn broker_with_six_events() -> Broker {
    let broker = Broker::default();
    for number in 1..=6 {
        let topic = if number % 2 == 0 { "sport" } else { "news" };
        broker.publish(&[topic], &number.to_string());
    }
    broker
}

/// Returns a server that has the last of six events, and a client of `sport` that has everything.
async fn client_of_sport(broker: &Broker) -> (Node, CommandingSubscriber) {
    let node = broker.node(Hub::builder().max_patterns(4), 1);
    let mut client = connect(&node, "/?topic=sport");
    expect(&mut client, &["cursor 0.6"]).await;
    (node, client)
}

/// A cursor that the server does not know: of another server, which has older events.
const SUBSCRIBE_TO_NEWS: &str = r#"{"subscribe":{"topic":"news","cursor":"0.1"}}"#;

/// The cursor goes back to the first of the older events, and comes forward with the last.
#[tokio::test(start_paused = true)]
async fn older_events_come_from_broker() {
    let broker = broker_with_six_events();
    let (mut node, mut client) = client_of_sport(&broker).await;
    client.send(SUBSCRIBE_TO_NEWS);
    let expected = ["hub.subscribed", "news 3 0.3", "news 5 0.5", "cursor 0.6"];
    expect(&mut client, &expected).await;
    broker.publish(&["news", "sport"], "7");
    node.push(1);
    expect(&mut client, &["sport+news 7 0.7"]).await;
    assert_eq!(node.hub.counts().missed_on_resume, 0);
}

/// The server knows the cursor, and its log of the topic has dropped an event after it.
#[tokio::test(start_paused = true)]
async fn events_that_log_has_dropped_come_from_broker() {
    let broker = broker_with_six_events();
    let node = broker.node(Hub::builder().max_events(1), 6);
    let mut client = connect(&node, "/?topic=sport");
    client.send(SUBSCRIBE_TO_NEWS);
    // The log has the event 5, after the last event of the page.
    let expected = [
        "cursor 0.6",
        "hub.subscribed",
        "news 3 0.3",
        "news 5 0.5",
        "cursor 0.6",
    ];
    expect(&mut client, &expected).await;
}

/// The logs have all events after the cursor, so the broker is not asked.
#[tokio::test(start_paused = true)]
async fn broker_is_not_read_if_logs_have_events() {
    let broker = broker_with_six_events();
    let node = broker.node(Hub::builder(), 5);
    let mut client = connect(&node, "/?topic=sport");
    client.send(SUBSCRIBE_TO_NEWS);
    let expected = ["cursor 0.6", "hub.subscribed", "news 3 0.3", "news 5 0.6"];
    expect(&mut client, &expected).await;
    assert!(broker.lock().requests.is_empty());
}

/// The client has no other topics, so that the cursor moves with the pages.
#[tokio::test(start_paused = true)]
async fn first_topic_of_client_is_read_from_broker() {
    let broker = broker_with_six_events();
    let mut node = broker.node(Hub::builder(), 0);
    let mut client = connect(&node, "/");
    broker.publish(&["news"], "7");
    client.send(SUBSCRIBE_TO_NEWS);
    let expected = [
        "cursor 0.6",
        "hub.subscribed",
        "news 3 0.3",
        "news 5 0.5",
        "news 7 0.7",
    ];
    expect(&mut client, &expected).await;
    broker.publish(&["news"], "8");
    node.push(usize::MAX);
    expect(&mut client, &["news 8 0.8"]).await;
}

/// The broker is ahead of the server's feed. The events of its page have the cursor up to which the client has the events of its other topic.
#[tokio::test(start_paused = true)]
async fn cursor_stays_before_events_of_other_topics() {
    let broker = broker_with_six_events();
    let (mut node, mut client) = client_of_sport(&broker).await;
    let events: [&[&str]; 3] = [&["sport"], &["news", "sport"], &["news"]];
    for (topics, number) in events.into_iter().zip(7..) {
        broker.publish(topics, &number.to_string());
    }
    client.send(SUBSCRIBE_TO_NEWS);
    let expected = [
        "hub.subscribed",
        "news 3 0.3",
        "news 5 0.5",
        "news 8 0.6",
        "news 9 0.6",
    ];
    expect(&mut client, &expected).await;
    // The event of both topics comes for the other topic in the order of that topic.
    node.push(usize::MAX);
    expect(&mut client, &["sport 7 0.7", "sport 8 0.8"]).await;
    broker.publish(&["news"], "10");
    node.push(usize::MAX);
    expect(&mut client, &["news 10 0.10"]).await;
}

/// The command's cursor is of a server that has read more of the broker than this one.
#[tokio::test(start_paused = true)]
async fn cursor_ahead_of_feed_waits_for_it() {
    let broker = broker_with_six_events();
    let (mut node, mut client) = client_of_sport(&broker).await;
    broker.publish(&["sport"], "7");
    broker.publish(&["news"], "8");
    broker.publish(&["news"], "9");
    client.send(r#"{"subscribe":{"topic":"news","cursor":"0.8"}}"#);
    expect(&mut client, &["hub.subscribed", "news 9 0.6"]).await;
    node.push(usize::MAX);
    expect(&mut client, &["sport 7 0.7"]).await;
    broker.publish(&["news"], "10");
    node.push(usize::MAX);
    expect(&mut client, &["news 10 0.10"]).await;
}

#[tokio::test(start_paused = true)]
async fn gap_names_topic_if_broker_lacks_events() {
    let broker = broker_with_six_events();
    let (mut node, mut client) = client_of_sport(&broker).await;
    broker.lock().trim(4);
    broker.lock().counts_missed = true;
    client.send(SUBSCRIBE_TO_NEWS);
    expect(&mut client, &["hub.subscribed"]).await;
    let item = client.items.next().await.unwrap().unwrap();
    let Item::Gap(gap) = item else {
        panic!("{item:?}")
    };
    // The broker counts the events of all topics.
    assert_eq!(gap.missed, None);
    assert_eq!(gap.topic.unwrap().as_str(), "news");
    assert_eq!(gap.resumed.unwrap().as_str(), "0.4");
    expect(&mut client, &["news 5 0.5", "cursor 0.6"]).await;
    broker.publish(&["news"], "7");
    node.push(1);
    expect(&mut client, &["news 7 0.7"]).await;
}

/// The topic begins with the server's own events, and the stream goes on.
#[tokio::test(start_paused = true)]
async fn failed_read_is_gap_in_topic() {
    let broker = broker_with_six_events();
    broker.publish(&["news"], "7");
    let node = broker.node(Hub::builder(), 1);
    let mut node = node;
    let mut client = connect(&node, "/?topic=sport");
    broker.lock().failures = 1;
    client.send(SUBSCRIBE_TO_NEWS);
    let expected = [
        "cursor 0.7",
        "hub.subscribed",
        "gap epoch news ",
        "news 7 0.7",
    ];
    expect(&mut client, &expected).await;
    broker.publish(&["news", "sport"], "8");
    node.push(1);
    expect(&mut client, &["sport+news 8 0.8"]).await;
    assert_eq!(node.hub.topic("news").unwrap().subscriber_count(), 1);
}

/// The server knows the cursor, so it knows which events its log lacks.
#[tokio::test(start_paused = true)]
async fn failed_read_after_known_cursor_is_expired_gap() {
    let broker = broker_with_six_events();
    let node = broker.node(Hub::builder().max_events(1), 6);
    let mut client = connect(&node, "/?topic=sport");
    broker.lock().failures = 1;
    client.send(SUBSCRIBE_TO_NEWS);
    let expected = [
        "cursor 0.6",
        "hub.subscribed",
        "gap expired news 0.1",
        "news 5 0.6",
    ];
    expect(&mut client, &expected).await;
}

#[tokio::test(start_paused = true)]
async fn cursor_of_other_broker_is_gap_in_topic() {
    let broker = broker_with_six_events();
    let (_node, mut client) = client_of_sport(&broker).await;
    client.send(r#"{"subscribe":{"topic":"news","cursor":"9.1"}}"#);
    expect(&mut client, &["hub.subscribed", "gap epoch news "]).await;
    assert!(broker.lock().requests.is_empty());
}

/// The broker is created anew while a page is read.
#[tokio::test(start_paused = true)]
async fn recreation_during_resume_is_gap_in_topic() {
    let broker = broker_with_six_events();
    broker.lock().delay = Duration::from_millis(5);
    let (mut node, mut client) = client_of_sport(&broker).await;
    client.send(SUBSCRIBE_TO_NEWS);
    expect(&mut client, &["hub.subscribed"]).await;
    broker.lock().recreate();
    broker.lock().recreate();
    broker.publish(&["news"], "new");
    expect(&mut client, &["gap epoch news "]).await;
    node.push(usize::MAX);
    expect(&mut client, &["gap epoch  2.0", "news new 2.1"]).await;
}

/// The feed has a gap while the pages are read. The client is told of it for its other topic.
#[tokio::test(start_paused = true)]
async fn gap_of_feed_during_resume_follows_pages() {
    let broker = broker_with_six_events();
    broker.lock().delay = Duration::from_millis(5);
    let (mut node, mut client) = client_of_sport(&broker).await;
    for number in 7..=10 {
        broker.publish(&["sport", "news"], &number.to_string());
    }
    client.send(SUBSCRIBE_TO_NEWS);
    expect(&mut client, &["hub.subscribed"]).await;
    broker.lock().trim(8);
    node.push(usize::MAX);
    let expected = [
        "gap expired news 0.6",
        "news 9 0.6",
        "news 10 0.6",
        "gap expired  0.8",
        "sport 9 0.9",
        "sport 10 0.10",
    ];
    tokio::time::sleep(Duration::from_millis(50)).await;
    expect(&mut client, &expected).await;
}

/// The client leaves the topic while it waits for a page, and adds another one.
#[tokio::test(start_paused = true)]
async fn left_topic_ends_resume() {
    let broker = broker_with_six_events();
    broker.lock().delay = Duration::from_millis(5);
    let (mut node, mut client) = client_of_sport(&broker).await;
    client.send(SUBSCRIBE_TO_NEWS);
    expect(&mut client, &["hub.subscribed"]).await;
    client.send(r#"{"unsubscribe":{"topic":"news"}}"#);
    client.send(r#"{"subscribe":{"topic":"other"}}"#);
    expect(&mut client, &["hub.unsubscribed", "hub.subscribed"]).await;
    broker.publish(&["news"], "7");
    broker.publish(&["other"], "8");
    node.push(2);
    expect(&mut client, &["other 8 0.8"]).await;
    assert_eq!(node.hub.topic("news").unwrap().subscriber_count(), 0);
}

/// The client leaves the topic when the cursor has gone back. The cursor comes forward.
#[tokio::test(start_paused = true)]
async fn cursor_comes_forward_after_topic_is_left() {
    let broker = broker_with_six_events();
    let (_node, mut client) = client_of_sport(&broker).await;
    client.send(SUBSCRIBE_TO_NEWS);
    for expected in ["hub.subscribed", "news 3 0.3"] {
        assert_eq!(next_description(&mut client).await, expected);
    }
    client.send(r#"{"unsubscribe":{"topic":"news"}}"#);
    expect(&mut client, &["cursor 0.6", "hub.unsubscribed"]).await;
}

#[tokio::test(start_paused = true)]
async fn further_subscription_waits_for_resume() {
    let broker = broker_with_six_events();
    broker.lock().delay = Duration::from_millis(5);
    let (mut node, mut client) = client_of_sport(&broker).await;
    client.send(SUBSCRIBE_TO_NEWS);
    client.send(r#"{"subscribe":{"topic":"other"}}"#);
    client.send(r#"{"unsubscribe":{"topic":"sport"}}"#);
    for expected in ["hub.subscribed", "news 3 0.3", "news 5 0.5", "cursor 0.6"] {
        assert_eq!(next_description(&mut client).await, expected);
    }
    expect(&mut client, &["hub.subscribed", "hub.unsubscribed"]).await;
    broker.publish(&["other"], "7");
    node.push(1);
    expect(&mut client, &["other 7 0.7"]).await;
}

/// A client that sends commands without reading the answers waits itself: its socket is not read while the queue is full.
#[tokio::test(start_paused = true)]
async fn commands_behind_waiting_one_are_bounded() {
    let broker = broker_with_six_events();
    broker.lock().delay = Duration::from_secs(1);
    let (_node, mut client) = client_of_sport(&broker).await;
    client.send(SUBSCRIBE_TO_NEWS);
    expect(&mut client, &["hub.subscribed"]).await;
    let send = |client: &CommandingSubscriber| {
        client.send(r#"{"subscribe":{"topic":"other"}}"#)
            && client.send(r#"{"unsubscribe":{"topic":"other"}}"#)
    };
    let mut sent = 0;
    for _ in 0..10_000 {
        sent += usize::from(send(&client));
        expect(&mut client, &[]).await;
    }
    // One command waits in the hub, and 64 wait in the queue.
    assert_eq!(sent, 32);
    for expected in ["news 3 0.3", "news 5 0.5", "cursor 0.6"] {
        assert_eq!(next_description(&mut client).await, expected);
    }
    for _ in 0..sent {
        assert_eq!(next_description(&mut client).await, "hub.subscribed");
        assert_eq!(next_description(&mut client).await, "hub.unsubscribed");
    }
}

/// The other topics wait while pages are read, and miss nothing.
#[tokio::test(start_paused = true)]
async fn other_topics_wait_for_resume() {
    let broker = broker_with_six_events();
    broker.lock().delay = Duration::from_millis(5);
    let (mut node, mut client) = client_of_sport(&broker).await;
    client.send(SUBSCRIBE_TO_NEWS);
    expect(&mut client, &["hub.subscribed"]).await;
    broker.publish(&["sport"], "7");
    node.push(1);
    expect(&mut client, &[]).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let expected = ["news 3 0.3", "news 5 0.5", "cursor 0.6", "sport 7 0.7"];
    expect(&mut client, &expected).await;
}

/// A topic with a limited history is read from the log: a page may have too many events.
#[tokio::test(start_paused = true)]
async fn limited_topic_is_read_from_log() {
    let broker = Broker::default();
    for number in 1..=6 {
        broker.publish(&["limited"], &number.to_string());
    }
    let node = broker.node(Hub::builder(), 3);
    let mut client = connect(&node, "/?topic=sport");
    client.send(r#"{"subscribe":{"topic":"limited","cursor":"0.1"}}"#);
    let expected = [
        "cursor 0.6",
        "hub.subscribed",
        "gap epoch limited ",
        "limited 6 0.6",
    ];
    expect(&mut client, &expected).await;
    assert!(broker.lock().requests.is_empty());
}

/// A pattern is read from the broker, without the events of a topic that the client has already.
#[tokio::test(start_paused = true)]
async fn pattern_is_read_from_broker() {
    let broker = broker_with_six_events();
    broker.publish(&["sport", "news", "other"], "7");
    let (mut node, mut client) = {
        let node = broker.node(Hub::builder().max_patterns(1), 1);
        let client = connect(&node, "/?topic=sport");
        (node, client)
    };
    client.send(r#"{"subscribe":{"pattern":{"prefix":""}, "cursor":"0.2"}}"#);
    let expected = [
        "cursor 0.7",
        "hub.subscribed",
        "news 3 0.3",
        "news 5 0.5",
        "news+other 7 0.7",
    ];
    expect(&mut client, &expected).await;
    for topics in [&["sport"][..], &["new"], &["sport", "news"]] {
        broker.publish(topics, "x");
    }
    node.push(usize::MAX);
    expect(
        &mut client,
        &["sport x 0.8", "new x 0.9", "news+sport x 0.10"],
    )
    .await;
}

const SUBSCRIBE_TO_ALL: &str = r#"{"subscribe":{"pattern":{"prefix":""},"cursor":"0.2"}}"#;
const LEAVE_ALL: &str = r#"{"unsubscribe":{"pattern":{"prefix":""}}}"#;
const LEAVE_SPORT: &str = r#"{"unsubscribe":{"topic":"sport"}}"#;

/// The client leaves a topic while it reads a pattern from the broker that matches the topic. It still gets the events of the topic.
#[tokio::test(start_paused = true)]
async fn topic_left_during_resume_of_pattern_is_in_pattern() {
    let broker = broker_with_six_events();
    broker.lock().delay = Duration::from_millis(5);
    let (mut node, mut client) = client_of_sport(&broker).await;
    client.send(SUBSCRIBE_TO_ALL);
    expect(&mut client, &["hub.subscribed"]).await;
    broker.publish(&["sport"], "7");
    node.push(1);
    client.send(LEAVE_SPORT);
    for expected in ["hub.unsubscribed", "news 3 0.3", "news 5 0.5"] {
        assert_eq!(next_description(&mut client).await, expected);
    }
    broker.publish(&["sport"], "8");
    node.push(1);
    tokio::time::sleep(Duration::from_millis(50)).await;
    expect(&mut client, &["cursor 0.6", "sport 7 0.7", "sport 8 0.8"]).await;
    client.send(LEAVE_ALL);
    expect(&mut client, &["hub.unsubscribed"]).await;
    assert_eq!(node.hub.topic("sport").unwrap().subscriber_count(), 0);
}

/// The client leaves a topic, and then the pattern that matches it, while it reads the pattern from the broker.
#[tokio::test(start_paused = true)]
async fn topic_and_pattern_left_during_resume_are_gone() {
    let broker = broker_with_six_events();
    broker.lock().delay = Duration::from_millis(5);
    let (mut node, mut client) = client_of_sport(&broker).await;
    client.send(SUBSCRIBE_TO_ALL);
    client.send(LEAVE_SPORT);
    client.send(LEAVE_ALL);
    let expected = ["hub.subscribed", "hub.unsubscribed", "hub.unsubscribed"];
    expect(&mut client, &expected).await;
    broker.publish(&["sport"], "7");
    node.push(1);
    expect(&mut client, &[]).await;
    assert_eq!(node.hub.topic("sport").unwrap().subscriber_count(), 0);
}

/// The client has a pattern. A topic that it matches, and a further pattern, are read from the logs.
#[tokio::test(start_paused = true)]
async fn topic_of_pattern_is_read_from_log() {
    let broker = broker_with_six_events();
    let node = broker.node(Hub::builder().max_patterns(2), 1);
    let mut client = connect(&node, "/?pattern_prefix=n");
    client.send(SUBSCRIBE_TO_NEWS);
    let expected = ["cursor 0.6", "hub.subscribed", "gap epoch news "];
    expect(&mut client, &expected).await;
    client.send(SUBSCRIBE_TO_ALL);
    let expected = ["hub.subscribed", "gap epoch  ", "sport 6 0.6"];
    expect(&mut client, &expected).await;
    assert!(broker.lock().requests.is_empty());
}

/// A list of members precedes the gap of the page. The list is older than the gap, so another one follows at the end of the pages, before the
/// cursor moves on.
#[tokio::test(start_paused = true)]
async fn lists_of_members_fit_gap_that_is_ahead_of_feed() {
    let broker = broker_with_six_events();
    let (mut node, mut client) = client_of_sport(&broker).await;
    for number in 7..=9 {
        broker.publish(&["lounge"], &number.to_string());
    }
    broker.lock().trim(8);
    client.send(r#"{"subscribe":{"topic":"lounge","cursor":"0.1"}}"#);
    let expected = [
        "hub.subscribed",
        "hub.members",
        "gap expired lounge ",
        "lounge 9 0.1",
    ];
    expect(&mut client, &expected).await;
    // The feed lacks events, too.
    node.push(usize::MAX);
    let expected = ["hub.members", "hub.members", "gap expired  0.8"];
    expect(&mut client, &expected).await;
    broker.publish(&["lounge"], "10");
    node.push(usize::MAX);
    expect(&mut client, &["lounge 10 0.10"]).await;
}

/// A client that resumes a topic gets the changes of its members after the cursor, and no list.
#[tokio::test(start_paused = true)]
async fn members_of_resumed_topic_are_not_listed() {
    let broker = broker_with_six_events();
    broker.publish(&["lounge"], "7");
    let node = broker.node(Hub::builder(), 0);
    let mut client = connect(&node, "/?topic=sport");
    client.send(r#"{"subscribe":{"topic":"lounge","cursor":"0.1"}}"#);
    let expected = ["cursor 0.7", "hub.subscribed", "lounge 7 0.7"];
    expect(&mut client, &expected).await;
}
