//! What publishers and subscribers of topics get.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures_util::Stream;
use testkit::{describe_item, poll_next, read_ready_items};
use tower_push::{
    EventId, Hub, Item,
    event::Topic,
    source::{
        StartPosition,
        hub::{HubSubscriber, PublishOptions, TopicPattern},
    },
};

fn publish_all(hub: &Hub, events: &[(&str, &str)]) -> Vec<EventId> {
    let publish = |(topic, text): &(&str, &str)| hub.publish(*topic, *text).unwrap();
    events.iter().map(publish).collect()
}

fn subscribe(hub: &Hub, topics: &[&str], start: StartPosition) -> HubSubscriber {
    hub.topics(topics.to_vec())
        .unwrap()
        .subscribe_from(start)
        .unwrap()
}

/// Describes the items that are ready, each event by its topics and payload.
fn read_with_topics(subscriber: &mut HubSubscriber) -> Vec<String> {
    let mut read = Vec::new();
    while let Poll::Ready(Some(item)) = poll_next(subscriber) {
        let item = item.unwrap();
        let topics = match &item {
            Item::Gap(gap) => gap.topic.as_slice(),
            item => item.event().map_or(&[][..], |event| event.topics()),
        };
        let names: Vec<_> = topics.iter().map(Topic::as_str).collect();
        let prefix = match &names[..] {
            [] => String::new(),
            names => format!("{}: ", names.join("+")),
        };
        let text = match item {
            Item::EventWithCursor { event, .. } => describe_item(Ok(Item::Event(event))),
            item => describe_item(Ok(item)),
        };
        read.push(prefix + &text);
    }
    read
}

#[test]
fn events_of_all_topics_come_in_one_order() {
    let hub = Hub::new();
    let mut subscriber = subscribe(&hub, &["a", "b"], StartPosition::Now);
    let ids = publish_all(&hub, &[("a", "1"), ("c", "2"), ("b", "3"), ("a", "4")]);
    assert!(ids.is_sorted());
    let read = read_with_topics(&mut subscriber);
    assert_eq!(read, ["cursor", "a: 1", "b: 3", "a: 4"]);
}

#[test]
fn event_to_several_topics_is_delivered_once() {
    let hub = Hub::new();
    let mut both = subscribe(&hub, &["a", "b"], StartPosition::Now);
    let mut second = subscribe(&hub, &["b"], StartPosition::Now);
    let id = hub.publish(["b", "a", "b"], "x").unwrap();
    assert_eq!(read_with_topics(&mut both), ["cursor", "a+b: x"]);
    assert_eq!(read_with_topics(&mut second), ["cursor", "b: x"]);
    let mut resumed = subscribe(&hub, &["a", "b"], StartPosition::After(id));
    assert_eq!(read_with_topics(&mut resumed), [""; 0]);
}

#[test]
fn event_names_topics_that_subscriber_has() {
    let hub = Hub::builder().max_patterns(8).build();
    let source = hub.topics(["d", "b", "c"]).unwrap();
    let mut topics = source.subscribe_from(StartPosition::Now).unwrap();
    let prefix = |prefix: &str| TopicPattern::prefix(prefix);
    let source = hub.topics(["b"]).unwrap();
    let source = source.with_patterns([prefix("a/"), prefix("a/1")]);
    let mut patterns = source.subscribe_from(StartPosition::Now).unwrap();
    for subscriber in [&mut topics, &mut patterns] {
        assert_eq!(read_with_topics(subscriber), ["cursor"]);
    }
    hub.publish(["a/1", "a/2", "b", "c", "d", "e"], "x")
        .unwrap();
    hub.publish(["a/2", "d"], "y").unwrap();
    let ephemeral = PublishOptions::new().without_history();
    hub.publish_with(["a/1", "a/2", "b", "c"], "z", &ephemeral)
        .unwrap();
    let read = read_with_topics(&mut topics);
    assert_eq!(read, ["b+c+d: x", "d: y", "b+c: z"]);
    let read = read_with_topics(&mut patterns);
    assert_eq!(read, ["b+a/1+a/2: x", "a/2: y", "b+a/1+a/2: z"]);
    // A topic that is new for the client begins with the event that the client has got for another topic.
    let source = hub.topics(["b", "e"]).unwrap();
    let source = source.with_start(StartPosition::Oldest);
    let mut first = source
        .clone()
        .subscribe_from(StartPosition::Oldest)
        .unwrap();
    assert_eq!(read_with_topics(&mut first), ["b+e: x"]);
}

#[test]
fn first_load_has_last_values_of_each_topic() {
    let hub = Hub::new();
    publish_all(
        &hub,
        &[("a", "1"), ("b", "2"), ("b", "3"), ("b", "4"), ("a", "5")],
    );
    let mut subscriber = subscribe(&hub, &["a", "b", "c"], StartPosition::Last(1));
    hub.publish("c", "6").unwrap();
    assert_eq!(read_with_topics(&mut subscriber), ["b: 4", "a: 5", "c: 6"]);
    let mut subscriber = subscribe(&hub, &["a", "b"], StartPosition::Last(2));
    let read = read_with_topics(&mut subscriber);
    assert_eq!(read, ["a: 1", "b: 3", "b: 4", "a: 5"]);
}

#[test]
fn client_resumes_with_other_topics() {
    let hub = Hub::new();
    let events = [("a", "1"), ("b", "2"), ("c", "3"), ("a", "4"), ("b", "5")];
    let ids = publish_all(&hub, &events);
    let after = |index: usize| StartPosition::After(ids[index].clone());
    let mut larger = subscribe(&hub, &["a", "b", "c"], after(0));
    let read = read_with_topics(&mut larger);
    assert_eq!(read, ["b: 2", "c: 3", "a: 4", "b: 5"]);
    // The cursor is of an event of another topic.
    let mut other = subscribe(&hub, &["b"], after(3));
    assert_eq!(read_with_topics(&mut other), ["b: 5"]);
}

#[test]
fn fresh_topics_begin_without_gap() {
    let hub = Hub::builder()
        .max_events(2)
        .start(StartPosition::Last(2))
        .build();
    let old = [("new", "1"), ("new", "2"), ("new", "3"), ("a", "4")];
    let ids = publish_all(&hub, &old);
    publish_all(&hub, &[("a", "5")]);
    let source = hub.topics(["a", "new"]).unwrap();
    let cursor = StartPosition::After(ids[3].clone());
    let mut stale = source
        .subscribe_from(StartPosition::After(ids[0].clone()))
        .unwrap();
    assert_eq!(
        read_with_topics(&mut stale),
        ["new: 2", "new: 3", "a: 4", "a: 5"]
    );
    let fresh = source.with_fresh_topics("new".try_into().unwrap());
    let mut subscriber = fresh.subscribe_from(cursor).unwrap();
    let mut cursors = Vec::new();
    while let Poll::Ready(Some(Ok(item))) = poll_next(&mut subscriber) {
        cursors.push(item.cursor().unwrap().clone());
    }
    // A client that resumed after the id of an old event would get the events after it again, so the cursor of the old events stays back. After the
    // last old event, the client's cursor is its own again.
    assert_eq!(cursors[..2], [ids[1].clone(), ids[3].clone()]);
    assert_eq!(cursors.len(), 3);
}

#[test]
fn gap_names_topic_and_counts() {
    let hub = Hub::builder().max_events(2).build();
    let first = hub.publish("b", "0").unwrap();
    publish_all(
        &hub,
        &[("a", "1"), ("a", "2"), ("b", "3"), ("a", "4"), ("a", "5")],
    );
    let mut resumed = subscribe(&hub, &["a", "b"], StartPosition::After(first));
    let read = read_with_topics(&mut resumed);
    assert_eq!(read, ["a: expired Some(2)", "b: 3", "a: 4", "a: 5"]);
    publish_all(&hub, &[("a", "6"), ("b", "7"), ("a", "8"), ("a", "9")]);
    let read = read_with_topics(&mut resumed);
    assert_eq!(read, ["a: lagged Some(1)", "b: 7", "a: 8", "a: 9"]);
    let counts = hub.counts();
    assert_eq!(
        (counts.published, counts.missed_on_resume, counts.lagged),
        (10, 2, 1)
    );
}

#[test]
fn resuming_after_gap_repeats_no_gap() {
    let hub = Hub::builder().max_events(1).build();
    let first = hub.publish("a", "0").unwrap();
    publish_all(&hub, &[("a", "1"), ("b", "2"), ("a", "3")]);
    let mut subscriber = subscribe(&hub, &["a", "b"], StartPosition::After(first));
    let Poll::Ready(Some(Ok(item))) = poll_next(&mut subscriber) else {
        panic!("no item")
    };
    let resumed = StartPosition::After(item.cursor().unwrap().clone());
    let mut again = subscribe(&hub, &["a", "b"], resumed);
    assert_eq!(read_with_topics(&mut again), ["b: 2", "a: 3"]);
}

#[test]
fn cursor_of_another_hub_is_an_epoch_gap() {
    let hub = Hub::new();
    publish_all(&hub, &[("a", "1"), ("b", "2")]);
    let foreign = Hub::new().publish("a", "x").unwrap();
    let mut subscriber = subscribe(&hub, &["a", "b"], StartPosition::After(foreign));
    assert_eq!(
        read_with_topics(&mut subscriber),
        ["epoch None", "a: 1", "b: 2"]
    );
}

#[test]
fn last_values_replace_each_other_without_gap() {
    let hub = Hub::builder().last_value_only().build();
    let source = hub.topics(["a", "b"]).unwrap();
    let ids = publish_all(&hub, &[("a", "1"), ("b", "2")]);
    let mut subscriber = source.subscribe_from(StartPosition::Last(1)).unwrap();
    assert_eq!(read_with_topics(&mut subscriber), ["a: 1", "b: 2"]);
    publish_all(&hub, &[("a", "3"), ("a", "4"), ("b", "5"), ("a", "6")]);
    assert_eq!(read_with_topics(&mut subscriber), ["b: 5", "a: 6"]);
    let mut resumed = source
        .subscribe_from(StartPosition::After(ids[0].clone()))
        .unwrap();
    assert_eq!(read_with_topics(&mut resumed), ["b: 5", "a: 6"]);
}

#[test]
fn events_without_history_reach_connected_subscribers_only() {
    let hub = Hub::new();
    let mut connected = subscribe(&hub, &["a", "b"], StartPosition::Now);
    let first = hub.publish("a", "1").unwrap();
    let typing = PublishOptions::new().without_history();
    for number in 0..300 {
        hub.publish_with("a", number.to_string(), &typing).unwrap();
    }
    hub.publish("b", "2").unwrap();
    let read = read_ready_items(&mut connected);
    assert_eq!(
        read.len(),
        1 + 1 + 256 + 1,
        "the oldest are dropped without a gap"
    );
    assert_eq!((read[1].as_str(), read[2].as_str()), ("1", "44"));
    let mut late = subscribe(&hub, &["a", "b"], StartPosition::After(first));
    assert_eq!(read_ready_items(&mut late), ["2"]);
    drop((connected, late));
    assert_eq!(hub.topic("a").unwrap().len(), 1);
}

#[test]
fn hub_without_history_holds_no_topic() {
    let hub = Hub::builder().max_events(0).build();
    hub.publish("a", "1").unwrap();
    assert_eq!(hub.counts().topics, 0);
    let mut subscriber = subscribe(&hub, &["a"], StartPosition::Now);
    hub.publish("a", "2").unwrap();
    let Poll::Ready(Some(Ok(Item::Event(event)))) = poll_next(&mut subscriber) else {
        panic!("no event")
    };
    assert_eq!((event.id(), event.payload().as_text()), (None, Some("2")));
    drop(subscriber);
    assert_eq!(hub.counts().topics, 0);
}

#[test]
fn sender_gets_no_echo() {
    let hub = Hub::new();
    let source = hub.topics(["a", "b"]).unwrap();
    let mut sender = source
        .clone()
        .sender("tab-1")
        .subscribe_from(StartPosition::Now)
        .unwrap();
    let mut other = source
        .clone()
        .sender("tab-2")
        .subscribe_from(StartPosition::Now)
        .unwrap();
    let mut unnamed = source.subscribe_from(StartPosition::Now).unwrap();
    let except = PublishOptions::new().except("tab-1");
    let first = hub.publish_with("a", "1", &except).unwrap();
    hub.publish_with(["a", "b"], "2", &except).unwrap();
    hub.publish("b", "3").unwrap();
    assert_eq!(read_ready_items(&mut sender), ["cursor", "3"]);
    assert_eq!(read_ready_items(&mut other), ["cursor", "1", "2", "3"]);
    assert_eq!(read_ready_items(&mut unnamed), ["cursor", "1", "2", "3"]);
    let source = hub.topics(["a", "b"]).unwrap().sender("tab-1");
    let mut returned = source.subscribe_from(StartPosition::After(first)).unwrap();
    assert_eq!(read_ready_items(&mut returned), ["3"]);
}

#[test]
fn idempotency_key_publishes_once() {
    let hub = Hub::builder()
        .max_idempotency_keys(2)
        .idempotency_lifetime(Duration::from_secs(60))
        .build();
    let publish = |topics: &[&str], key: &str| {
        let options = PublishOptions::new().idempotency_key(key);
        hub.publish_with(topics.to_vec(), "x", &options).unwrap()
    };
    let first = publish(&["a"], "k");
    assert_eq!(publish(&["a"], "k"), first);
    assert_ne!(publish(&["a", "b"], "k"), first, "other topics");
    publish(&["a"], "l");
    assert_ne!(publish(&["a"], "k"), first, "only two keys are remembered");
    assert_eq!(hub.topic("a").unwrap().len(), 4);
    assert_eq!(hub.counts().published, 4);
}

#[test]
fn publication_to_no_topic_is_an_error() {
    let hub = Hub::new();
    let nowhere = Vec::<String>::new();
    assert!(hub.publish(nowhere, "x").unwrap_err().is_no_topic());
    assert_eq!(hub.counts().published, 0);
}

#[test]
fn history_is_paged() {
    let hub = Hub::builder().max_events(3).build();
    let topic = hub.topic("a").unwrap();
    let first = topic.publish("0").unwrap();
    publish_all(&hub, &[("a", "1"), ("b", "x"), ("a", "2"), ("a", "3")]);
    let texts = |events: &[tower_push::Event]| {
        let texts = events
            .iter()
            .map(|event| event.payload().as_text().unwrap().to_owned());
        texts.collect::<Vec<_>>()
    };
    let page = topic.history(None, 2);
    assert_eq!(
        (texts(&page.events), page.has_more, page.has_gap),
        (vec!["1".into(), "2".into()], true, false)
    );
    let page = topic.history(page.events[1].id(), 2);
    assert_eq!(
        (texts(&page.events), page.has_more, page.has_gap),
        (vec!["3".into()], false, false)
    );
    publish_all(&hub, &[("a", "4")]);
    assert!(topic.history(Some(&first), 2).has_gap);
    let foreign = Hub::new().publish("a", "x").unwrap();
    assert!(topic.history(Some(&foreign), 2).has_gap);
}

#[test]
fn hub_is_bounded_in_topics() {
    let hub = Hub::builder().max_topics(2).build();
    let ids = publish_all(&hub, &[("a", "1"), ("b", "2"), ("c", "3")]);
    assert_eq!(hub.counts().topics, 2);
    let _held = [
        subscribe(&hub, &["b"], StartPosition::Now),
        subscribe(&hub, &["c"], StartPosition::Now),
    ];
    let full = hub
        .topic("a")
        .unwrap()
        .subscribe_from(StartPosition::Now)
        .unwrap_err();
    assert!(full.is_full());
    let partly = hub
        .topics(["b", "d"])
        .unwrap()
        .subscribe_from(StartPosition::Now);
    assert!(partly.is_err() && hub.topic("b").unwrap().subscriber_count() == 1);
    // An event for which there is no room leaves a gap.
    hub.publish("d", "4").unwrap();
    drop(_held);
    let mut late = subscribe(&hub, &["a", "d"], StartPosition::After(ids[2].clone()));
    assert_eq!(read_with_topics(&mut late), ["d: expired None"]);
}

#[test]
fn hub_is_bounded_in_bytes() {
    let hub = Hub::builder().max_total_bytes(5000).build();
    let _subscriber = subscribe(&hub, &["a"], StartPosition::Now);
    for number in 0..100 {
        let topic = ["a", "b", "c"][number % 3];
        hub.publish(topic, "x".repeat(number)).unwrap();
        assert!(hub.counts().bytes <= 5000);
    }
    hub.publish("b", "x".repeat(6000)).unwrap();
    assert_eq!(hub.topic("b").unwrap().len(), 1);
    assert_eq!(hub.topic("a").unwrap().len(), 0);
    hub.publish("a", "y").unwrap();
    assert!(hub.counts().bytes <= 5000);
}

/// Small events take more memory than the bytes of their payloads.
#[test]
fn hub_is_bounded_in_small_events() {
    let hub = Hub::builder().max_total_bytes(100_000).build();
    let topics: Vec<_> = (0..50).map(|number| number.to_string()).collect();
    let topics: Vec<_> = topics.iter().map(String::as_str).collect();
    let _subscriber = subscribe(&hub, &topics, StartPosition::Now);
    for number in 0..5000 {
        hub.publish(topics[number % topics.len()], "").unwrap();
        assert!(hub.counts().bytes <= 100_000);
    }
    let lens = topics.iter().map(|topic| hub.topic(*topic).unwrap().len());
    let count: usize = lens.sum();
    assert!((100..=260).contains(&count), "{count} events");
}

#[test]
fn hub_is_bounded_in_events_without_history() {
    let hub = Hub::builder().max_total_bytes(800_000).build();
    let topics: Vec<_> = (0..50).map(|number| number.to_string()).collect();
    let topics: Vec<_> = topics.iter().map(String::as_str).collect();
    let mut subscriber = subscribe(&hub, &topics, StartPosition::Now);
    hub.publish("history", "stays").unwrap();
    let without_history = PublishOptions::new().without_history();
    for number in 0..5000 {
        let topic = topics[number % topics.len()];
        let payload = "x".repeat(number % 2000);
        hub.publish_with(topic, payload, &without_history).unwrap();
        assert!(hub.counts().bytes <= 100_500, "{}", hub.counts().bytes);
    }
    assert!(hub.counts().bytes > 50_000, "{}", hub.counts().bytes);
    let read = read_with_topics(&mut subscriber);
    // The newest event stays in its log.
    assert!(read.last().unwrap().starts_with("49: x"));
    drop(subscriber);
    assert!(hub.counts().bytes < 500, "{}", hub.counts().bytes);
    assert_eq!(hub.topic("history").unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn idle_topics_and_old_events_are_removed() {
    let second = Duration::from_secs(1);
    let hub = Hub::builder()
        .idle_timeout(10 * second)
        .max_age(60 * second)
        .build();
    let first = hub.publish("a", "1").unwrap();
    let mut held = subscribe(&hub, &["b"], StartPosition::Now);
    publish_all(&hub, &[("a", "2"), ("b", "3")]);
    tokio::time::sleep(11 * second).await;
    hub.remove_idle_topics();
    assert_eq!((hub.counts().topics, hub.topic("b").unwrap().len()), (1, 1));
    tokio::time::sleep(60 * second).await;
    assert_eq!(hub.topic("b").unwrap().len(), 0);
    assert_eq!(read_ready_items(&mut held), ["cursor", "lagged Some(1)"]);
    let mut returned = subscribe(&hub, &["a"], StartPosition::After(first));
    assert_eq!(read_with_topics(&mut returned), ["a: expired None"]);
}

#[tokio::test(start_paused = true)]
async fn last_value_stays_however_long_nobody_uses_its_topic() {
    let hour = Duration::from_secs(3600);
    for (builder, kept) in [
        (Hub::builder().last_value_only(), 1),
        (Hub::builder().last_value_only().idle_timeout(hour), 0),
    ] {
        let hub = builder.build();
        publish_all(&hub, &[("quiet", "value")]);
        tokio::time::sleep(2 * hour).await;
        hub.remove_idle_topics();
        let mut subscriber = subscribe(&hub, &["quiet"], StartPosition::Last(1));
        let values = read_ready_items(&mut subscriber);
        assert_eq!(values.iter().filter(|item| *item == "value").count(), kept);
    }
}

#[test]
fn cursor_of_quiet_subscriber_moves_on() {
    let hub = Hub::new();
    let mut quiet = subscribe(&hub, &["quiet"], StartPosition::Now);
    assert_eq!(read_ready_items(&mut quiet), ["cursor"]);
    for _ in 0..63 {
        hub.publish("busy", "x").unwrap();
    }
    assert_eq!(read_ready_items(&mut quiet), [""; 0], "not yet");
    let last = hub.publish("busy", "x").unwrap();
    let Poll::Ready(Some(Ok(Item::Cursor(cursor)))) = poll_next(&mut quiet) else {
        panic!("no cursor")
    };
    assert_eq!(cursor, last);
    assert_eq!(read_ready_items(&mut quiet), [""; 0]);
    // A subscriber that gets events gets no cursor without an event.
    (0..200).for_each(|_| drop(hub.publish("busy", "x").unwrap()));
    hub.publish("quiet", "y").unwrap();
    assert_eq!(read_ready_items(&mut quiet), ["y"]);
}

#[test]
fn lagging_subscriber_can_be_disconnected() {
    let hub = Hub::builder()
        .max_events(1)
        .disconnect_lagging(true)
        .build();
    let mut subscriber = subscribe(&hub, &["a", "b"], StartPosition::Now);
    publish_all(&hub, &[("a", "1"), ("a", "2")]);
    let read = read_ready_items(&mut subscriber);
    assert_eq!(read, ["cursor", "error: the subscriber was too slow"]);
    assert!(matches!(poll_next(&mut subscriber), Poll::Ready(None)));
}

/// A topic is removed and created again. A client that returns gets what is newer than its cursor, and a gap if and only if an event was lost.
#[test]
fn recreated_topic_has_gap_only_for_lost_events() {
    let hub = Hub::builder().max_topics(1).build();
    let read = |start: &EventId| {
        let mut returned = subscribe(&hub, &["a"], StartPosition::After(start.clone()));
        read_with_topics(&mut returned)
    };
    let ids = publish_all(&hub, &[("a", "1"), ("a", "2"), ("b", "evicts a")]);
    assert_eq!(hub.topic("a").unwrap().len(), 0);
    assert_eq!(
        read(&ids[1]),
        [""; 0],
        "the client had all of the removed events"
    );
    publish_all(&hub, &[("a", "3")]);
    assert_eq!(read(&ids[0]), ["a: expired None", "a: 3"]);
    assert_eq!(read(&ids[1]), ["a: 3"]);
    let again = publish_all(&hub, &[("b", "evicts a again"), ("a", "4"), ("a", "5")]);
    assert_eq!(read(&again[1]), ["a: 5"]);
    assert_eq!(read(&ids[1]), ["a: expired None", "a: 4", "a: 5"]);
}

/// Counts how often a task is woken.
#[derive(Default)]
struct WakeCounter(AtomicUsize);

impl Wake for WakeCounter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn hot_topic_wakes_no_subscriber_of_others() {
    let hub = Hub::new();
    let mut quiet = subscribe(&hub, &["quiet"], StartPosition::Now);
    assert_eq!(read_with_topics(&mut quiet), ["cursor"]);
    let wakes = Arc::new(WakeCounter::default());
    let waker = Waker::from(wakes.clone());
    let cx = &mut Context::from_waker(&waker);
    assert!(Pin::new(&mut quiet).poll_next(cx).is_pending());
    for number in 0..10_000 {
        hub.publish("hot", number.to_string()).unwrap();
    }
    assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
    hub.publish("quiet", "x").unwrap();
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    // The first read has the event: the hot topic's events are not in its way.
    let Poll::Ready(Some(Ok(Item::Event(event)))) = poll_next(&mut quiet) else {
        panic!("no event");
    };
    assert_eq!(event.payload().as_text(), Some("x"));
}
