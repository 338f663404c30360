//! Loom tests that publish, subscribe, read, wait and leave in every order of the steps. `scripts/loom` runs these tests.

use std::{
    future::poll_fn,
    task::{Context, Poll, Waker},
};

use loom::{future::block_on, model, thread};

use super::{
    Hub, HubSubscriber,
    reader_request::{AllowedTopic, ReaderRequest},
    topic_or_pattern::TopicOrPattern,
};
use crate::{
    event::{Item, Topic},
    source::{
        EventLoopJoin, StartPosition, WatchedLog, hub::PublishOptions, source_stream::SourceStream,
    },
};

/// Reads this number of events. A lost wake-up is a deadlock, which loom reports.
fn read(subscriber: &mut HubSubscriber, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.len() < count {
        let item = block_on(poll_fn(|cx| poll(subscriber, cx)));
        match item {
            Item::Event(event) => texts.push(event.payload().as_text().unwrap().to_owned()),
            Item::Cursor(_) => {}
            other => panic!("{other:?}"),
        }
    }
    texts
}

fn poll(subscriber: &mut HubSubscriber, cx: &mut Context<'_>) -> Poll<Item> {
    let item = futures_util::Stream::poll_next(std::pin::Pin::new(subscriber), cx);
    item.map(|item| item.unwrap().unwrap())
}

fn subscribe(hub: &Hub, topics: &[&str]) -> HubSubscriber {
    let source = hub.topics(topics.to_vec()).unwrap();
    source.subscribe_from(StartPosition::Now).unwrap()
}

#[test]
fn reader_of_two_topics_misses_nothing() {
    model(|| {
        let hub = Hub::new();
        let mut subscriber = subscribe(&hub, &["a", "b"]);
        let publisher = thread::spawn(move || {
            hub.publish("a", "1").unwrap();
            hub.publish("b", "2").unwrap();
        });
        assert_eq!(read(&mut subscriber, 2), ["1", "2"]);
        publisher.join().unwrap();
    });
}

#[test]
fn waiting_reader_gets_event_held_back() {
    model(|| {
        let window = std::time::Duration::from_secs(10);
        let hub = Hub::builder().flush_window(window).build();
        let mut subscriber = subscribe(&hub, &["a"]);
        let publisher = thread::spawn(move || {
            hub.publish("a", "1").unwrap();
            hub.publish("a", "2").unwrap();
        });
        assert_eq!(read(&mut subscriber, 2), ["1", "2"]);
        publisher.join().unwrap();
    });
}

#[test]
fn event_to_two_topics_arrives_once() {
    model(|| {
        let hub = Hub::new();
        let mut subscriber = subscribe(&hub, &["a", "b"]);
        let publisher = thread::spawn(move || {
            hub.publish(["a", "b"], "1").unwrap();
            let ephemeral = PublishOptions::new().without_history();
            hub.publish_with("b", "2", &ephemeral).unwrap();
        });
        assert_eq!(read(&mut subscriber, 2), ["1", "2"]);
        publisher.join().unwrap();
    });
}

/// The only event of a topic is published while the last subscriber leaves and the next one comes. The topic has no history, so the hub
/// removes and creates it.
#[test]
fn topic_that_comes_and_goes_loses_no_event() {
    model(|| {
        let hub = Hub::builder().max_events(0).build();
        let leaving = subscribe(&hub, &["a"]);
        let leaver = thread::spawn(move || drop(leaving));
        let mut subscriber = subscribe(&hub, &["a"]);
        let publisher = thread::spawn(move || hub.publish("a", "1").unwrap());
        assert_eq!(read(&mut subscriber, 1), ["1"]);
        leaver.join().unwrap();
        publisher.join().unwrap();
    });
}

#[test]
fn evicted_topic_is_found_or_leaves_a_gap() {
    model(|| {
        let hub = Hub::builder().max_topics(1).build();
        let start = hub.publish("b", "0").unwrap();
        let publisher = thread::spawn({
            let hub = hub.clone();
            move || {
                hub.publish("a", "1").unwrap();
                hub.publish("b", "2").unwrap();
            }
        });
        let topic = hub.topic("a").unwrap();
        let subscriber = topic.subscribe_from(StartPosition::After(start));
        publisher.join().unwrap();
        let cx = &mut Context::from_waker(Waker::noop());
        match poll(&mut subscriber.unwrap(), cx) {
            Poll::Ready(Item::Event(event)) => assert_eq!(event.payload().as_text(), Some("1")),
            Poll::Ready(Item::Gap(gap)) => assert_eq!(gap.topic.unwrap().as_str(), "a"),
            other => panic!("{other:?}"),
        }
    });
}

/// A subscriber in an event loop, as the only member of the groups of its topics.
struct GroupMember {
    subscriber: HubSubscriber,
    groups: Vec<(std::sync::Arc<dyn WatchedLog>, crate::sync::WaiterKey)>,
}

impl GroupMember {
    fn new(mut subscriber: HubSubscriber, topic_count: usize) -> Self {
        let join = std::pin::Pin::new(&mut subscriber).join_event_loop();
        let EventLoopJoin::Joined(logs) = join else {
            panic!("a hub is read in event loops");
        };
        assert_eq!(logs.len(), topic_count);
        let groups = logs.into_iter().map(|log| {
            let waiter = log.register_waiter();
            (log, waiter)
        });
        Self {
            groups: groups.collect(),
            subscriber,
        }
    }

    /// Waits for the next item, as an event loop does that has no other connections.
    fn next(&mut self) -> Item {
        block_on(poll_fn(|cx| {
            loop {
                let logs = self.groups.iter();
                let statuses: Vec<_> = logs.map(|(log, _)| log.status()).collect();
                if let Poll::Ready(item) = poll(&mut self.subscriber, cx) {
                    return Poll::Ready(item);
                }
                let mut groups = self.groups.iter().zip(statuses);
                let is_waiting = groups.all(|((log, waiter), status)| {
                    let outcome = log.store_waker_unless_changed(waiter, cx.waker(), status);
                    outcome.is_stored()
                });
                if is_waiting {
                    return Poll::Pending;
                }
            }
        }))
    }

    fn next_text(&mut self) -> String {
        loop {
            match self.next() {
                Item::Event(event) => return event.payload().as_text().unwrap().to_owned(),
                Item::Cursor(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

impl Drop for GroupMember {
    fn drop(&mut self) {
        for (log, waiter) in &self.groups {
            log.deregister_waiter(waiter);
        }
    }
}

#[test]
fn member_of_two_groups_misses_nothing() {
    model(|| {
        let hub = Hub::new();
        let subscriber = subscribe(&hub, &["a", "b"]);
        let publisher = thread::spawn(move || {
            hub.publish("a", "1").unwrap();
            hub.publish("b", "2").unwrap();
        });
        let mut member = GroupMember::new(subscriber, 2);
        assert_eq!([(); 2].map(|()| member.next_text()), ["1", "2"]);
        publisher.join().unwrap();
    });
}

#[test]
fn member_of_group_gets_event_held_back() {
    model(|| {
        let window = std::time::Duration::from_secs(10);
        let hub = Hub::builder().flush_window(window).build();
        let subscriber = subscribe(&hub, &["a"]);
        // Begins the window.
        hub.publish("a", "1").unwrap();
        let publisher = thread::spawn(move || hub.publish("a", "2").unwrap());
        let mut member = GroupMember::new(subscriber, 1);
        assert_eq!([(); 2].map(|()| member.next_text()), ["1", "2"]);
        publisher.join().unwrap();
    });
}

#[test]
fn member_of_group_learns_that_access_is_revoked() {
    model(|| {
        let hub = Hub::new();
        let topic = Topic::new("a").unwrap();
        let request = ReaderRequest {
            topics: vec![AllowedTopic::from(&topic)],
            patterns: Vec::new(),
            fresh_topics: None,
            first_start: StartPosition::Now,
            start: StartPosition::Now,
            sender: None,
        };
        let mut reader = request.open(hub.state.clone()).unwrap();
        let members = vec![(TopicOrPattern::Topic(topic), None)];
        let registration = hub.state.revocable_subscriptions.register(members, 0);
        reader.set_revocable(registration.unwrap());
        let revoker = thread::spawn(move || hub.revoke("a", |_| true).unwrap());
        let mut member = GroupMember::new(HubSubscriber::new(reader), 1);
        while !matches!(member.next(), Item::Expired) {}
        assert_eq!(revoker.join().unwrap(), 1);
    });
}
