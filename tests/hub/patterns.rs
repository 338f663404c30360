//! Subscriptions to patterns of topics. `model.rs` compares random runs with a list of all events.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    thread,
    time::Duration,
};

use testkit::{body_text, get_request_head, poll_next};
use tower_push::{
    EventId, GapReason, Hub, Item, Push,
    event::Gap,
    source::{
        StartPosition,
        hub::{HubSource, HubSubscriber, PublishOptions, TopicPattern},
    },
    transport::{Sse, Transport},
};

fn hub() -> Hub {
    Hub::builder().max_patterns(8).build()
}

fn orders() -> TopicPattern {
    TopicPattern::prefix("orders/")
}

/// Returns the topics and the payloads of all events that are ready, and the gaps.
fn read_all(subscriber: &mut HubSubscriber) -> (Vec<String>, Vec<Gap>) {
    let (mut events, mut gaps) = (Vec::new(), Vec::new());
    while let Poll::Ready(item) = poll_next(subscriber) {
        match item.unwrap().unwrap() {
            Item::Event(event) | Item::EventWithCursor { event, .. } => {
                let topic = event.topic().unwrap().as_str();
                let text = event.payload().as_text().unwrap();
                events.push(format!("{topic}={text}"));
            }
            Item::Gap(gap) => gaps.push(*gap),
            Item::Cursor(_) => {}
            other => panic!("{other:?}"),
        }
    }
    (events, gaps)
}

#[test]
fn patterns_are_off_by_default() {
    let source = Hub::new().matching([orders()]);
    let error = source.subscribe_from(StartPosition::Now).unwrap_err();
    assert!(error.is_patterns_disabled());
    assert!(error.to_string().contains("max_patterns"));
}

#[tokio::test]
async fn refused_pattern_names_the_reason() {
    let answer = async |source: HubSource| {
        let mut head = get_request_head("/", &[]);
        let response = Sse::new().respond(&mut head, Push::new(source)).await;
        let (head, body) = response.into_parts();
        (head.status.as_u16(), body_text(body).await)
    };
    let (status, body) = answer(Hub::new().matching([orders()])).await;
    let message = "the server allows no subscriptions to patterns of topics";
    assert_eq!((status, body.trim_end()), (501, message));

    let hub = Hub::builder().max_patterns(1).build();
    let first = hub.matching([orders()]);
    let _subscriber = first.subscribe_from(StartPosition::Now).unwrap();
    let (status, body) = answer(hub.matching([TopicPattern::prefix("x")])).await;
    let message = "the server has no room for another topic or pattern";
    assert_eq!((status, body.trim_end()), (503, message));
}

#[test]
fn number_of_patterns_is_bounded() {
    let hub = Hub::builder().max_patterns(1).build();
    let source = hub.matching([orders()]);
    let first = source.subscribe_from(StartPosition::Now).unwrap();
    let second = source.subscribe_from(StartPosition::Now).unwrap();
    let other = hub.matching([TopicPattern::prefix("x")]);
    let error = other.subscribe_from(StartPosition::Now).unwrap_err();
    assert!(error.is_full());
    drop((first, second));
    assert!(other.subscribe_from(StartPosition::Now).is_ok());
}

#[test]
fn new_topics_join_open_subscription() {
    let hub = hub();
    let source = hub.matching([orders()]);
    let mut subscriber = source.subscribe_from(StartPosition::Now).unwrap();
    assert_eq!(read_all(&mut subscriber).0, [""; 0]);
    hub.publish("orders/1", "a").unwrap();
    hub.publish("others/1", "b").unwrap();
    hub.publish(["orders/2", "orders/3"], "c").unwrap();
    let ephemeral = PublishOptions::new().without_history();
    hub.publish_with("orders/4", "d", &ephemeral).unwrap();
    assert_eq!(
        read_all(&mut subscriber).0,
        ["orders/1=a", "orders/2=c", "orders/4=d"]
    );
}

#[test]
fn function_selects_topics() {
    let hub = hub();
    let even = || TopicPattern::from_fn("even", |name| name.len() % 2 == 0);
    let mut subscribers = [even(), even()].map(|pattern| {
        let source = hub.matching([pattern]);
        source.subscribe_from(StartPosition::Now).unwrap()
    });
    for topic in ["a", "bb", "ccc", "dddd"] {
        hub.publish(topic, "x").unwrap();
    }
    for subscriber in &mut subscribers {
        assert_eq!(read_all(subscriber).0, ["bb=x", "dddd=x"]);
    }
}

#[test]
fn history_of_matching_topics_comes_first() {
    let hub = hub();
    for (topic, text) in [
        ("orders/1", "a"),
        ("orders/2", "b"),
        ("orders/1", "c"),
        ("x", "d"),
    ] {
        hub.publish(topic, text).unwrap();
    }
    let source = hub.matching([orders()]);
    let mut all = source.subscribe_from(StartPosition::Oldest).unwrap();
    let mut last = source.subscribe_from(StartPosition::Last(1)).unwrap();
    hub.publish("orders/2", "e").unwrap();
    let (events, gaps) = read_all(&mut all);
    assert_eq!(
        events,
        ["orders/1=a", "orders/2=b", "orders/1=c", "orders/2=e"]
    );
    assert_eq!(gaps, []);
    assert_eq!(
        read_all(&mut last).0,
        ["orders/2=b", "orders/1=c", "orders/2=e"]
    );
    // The topics are no longer held by the subscribers, which have read their history.
    hub.publish("orders/1", "f").unwrap();
    assert_eq!(read_all(&mut all).0, ["orders/1=f"]);
    assert_eq!(read_all(&mut last).0, ["orders/1=f"]);
    assert_eq!(hub.topic("orders/1").unwrap().subscriber_count(), 0);
}

#[test]
fn resume_tells_of_removed_topics() {
    let hub = Hub::builder().max_patterns(1).max_topics(1).build();
    let cursor = hub.publish("orders/1", "a").unwrap();
    hub.publish("orders/2", "b").unwrap();
    hub.publish("x", "c").unwrap();
    let resume = |cursor: EventId| {
        let start = StartPosition::After(cursor);
        hub.matching([orders()]).subscribe_from(start).unwrap()
    };
    let (events, gaps) = read_all(&mut resume(cursor));
    assert_eq!(events, [""; 0]);
    assert_eq!((gaps.len(), gaps[0].reason), (1, GapReason::Expired));
    assert_eq!((&gaps[0].topic, gaps[0].missed), (&None, None));
    let told = gaps[0].resumed.clone().unwrap();
    assert_eq!(read_all(&mut resume(told)).1, []);
}

#[test]
fn slow_subscriber_of_pattern_gets_gap() {
    let hub = hub();
    let source = hub.matching([orders()]);
    let mut subscriber = source.subscribe_from(StartPosition::Now).unwrap();
    for number in 0..1030 {
        hub.publish(format!("orders/{number}"), "x").unwrap();
    }
    let (events, gaps) = read_all(&mut subscriber);
    assert_eq!((events.len(), gaps.len()), (1024, 1));
    assert_eq!(
        (gaps[0].reason, gaps[0].missed),
        (GapReason::Lagged, Some(6))
    );
}

#[tokio::test(start_paused = true)]
async fn pattern_has_no_events_that_are_too_old() {
    let minute = Duration::from_secs(60);
    let hub = Hub::builder().max_patterns(1).max_age(minute).build();
    hub.publish("orders/1", "a").unwrap();
    tokio::time::advance(2 * minute).await;
    hub.publish("orders/2", "b").unwrap();
    let source = hub.matching([orders()]);
    let mut subscriber = source.subscribe_from(StartPosition::Oldest).unwrap();
    assert_eq!(read_all(&mut subscriber).0, ["orders/2=b"]);
}

#[test]
fn last_values_of_a_pattern_are_one_for_each_topic() {
    let hub = Hub::builder().max_patterns(1).last_value_only().build();
    for text in ["1", "2"] {
        hub.publish("orders/1", text).unwrap();
        hub.publish("orders/2", text).unwrap();
    }
    let source = hub.matching([orders()]);
    let mut subscriber = source.subscribe_from(StartPosition::Last(1)).unwrap();
    assert_eq!(read_all(&mut subscriber).0, ["orders/1=2", "orders/2=2"]);
}

#[test]
fn wide_pattern_reads_history_of_the_newest_topics() {
    let hub = hub();
    let cursor = hub.publish("x", "x").unwrap();
    for number in 0..1000 {
        hub.publish(format!("orders/{number}"), "x").unwrap();
    }
    let source = hub.matching([TopicPattern::prefix("")]);
    let mut first = source.subscribe_from(StartPosition::Oldest).unwrap();
    let (events, gaps) = read_all(&mut first);
    assert_eq!((events.len(), gaps.len()), (256, 0));
    assert_eq!(events[0], "orders/744=x");
    let mut resumed = source.subscribe_from(StartPosition::After(cursor)).unwrap();
    let (events, gaps) = read_all(&mut resumed);
    assert_eq!((events.len(), gaps.len()), (256, 1));
}

/// Subscribes to a pattern while another thread publishes to topics that come and go: no hole, and no double.
#[test]
fn publication_during_subscription_is_delivered_once() {
    const EVENTS: usize = 20_000;
    /// The publisher is at most this number of events ahead, so that no log trims an unread event.
    const MAX_AHEAD: usize = 500;
    let hub = Hub::builder().max_patterns(1).max_events(1000).build();
    let mut cursor = hub.publish("orders/start", "start").unwrap();
    let received = Arc::new(AtomicUsize::new(0));
    let publisher = thread::spawn({
        let (hub, received) = (hub.clone(), received.clone());
        move || {
            for number in 0..EVENTS {
                while number > received.load(Ordering::Acquire) + MAX_AHEAD {
                    thread::yield_now();
                }
                let topic = format!("orders/{}", number % 33);
                hub.publish(topic, number.to_string()).unwrap();
            }
        }
    });
    let source = hub.matching([orders()]);
    let mut next = 0;
    while next < EVENTS {
        let start = StartPosition::After(cursor.clone());
        let mut subscriber = source.subscribe_from(start).unwrap();
        for _ in 0..20 {
            let Poll::Ready(item) = poll_next(&mut subscriber) else {
                thread::yield_now();
                continue;
            };
            let item = item.unwrap().unwrap();
            if let Some(id) = item.cursor() {
                cursor = id.clone();
            }
            match item {
                Item::Event(event) | Item::EventWithCursor { event, .. } => {
                    let number = event.payload().as_text().unwrap();
                    assert_eq!(number, next.to_string());
                    next += 1;
                    received.store(next, Ordering::Release);
                }
                Item::Cursor(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    publisher.join().unwrap();
}
