//! Threads that publish, subscribe and leave at the same time.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    task::Poll,
    thread,
};

use testkit::poll_next;
use tower_push::{EventId, Hub, Item, source::StartPosition};

const LOOPS: u64 = 100_000;
const TOPICS: [&str; 3] = ["a", "b", "c"];

/// Publishes ascending numbers to the topics in turn until `is_done`, at most 500 numbers ahead of `read`.
fn publish_numbers(hub: &Hub, read: &AtomicU64, is_done: &AtomicBool) {
    let mut next = 1_u64;
    while !is_done.load(Ordering::Relaxed) {
        if next > read.load(Ordering::Relaxed) + 500 {
            thread::yield_now();
            continue;
        }
        let number = next.to_string();
        let topic = TOPICS[next as usize % 3];
        match next % 7 {
            0 => hub.publish(TOPICS, number).unwrap(),
            _ => hub.publish(topic, number).unwrap(),
        };
        next += 1;
    }
}

#[test]
fn resuming_during_publications_leaves_no_hole() {
    let hub = Hub::builder().max_events(2000).build();
    let (read, is_done) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| publish_numbers(&hub, &read, &is_done));
        let source = hub.topics(TOPICS).unwrap();
        let mut cursor = None::<EventId>;
        let mut expected = 1;
        for round in 0..LOOPS {
            let start = cursor
                .take()
                .map_or(StartPosition::Oldest, StartPosition::After);
            let mut subscriber = source.subscribe_from(start.clone()).unwrap();
            let wanted = round % 4;
            let mut count = 0;
            if let StartPosition::After(id) = start {
                cursor = Some(id);
            }
            while count <= wanted {
                let item = match poll_next(&mut subscriber) {
                    Poll::Ready(item) => item.unwrap().unwrap(),
                    Poll::Pending => break,
                };
                cursor = item.cursor().cloned().or(cursor);
                match item {
                    Item::Event(event) => {
                        assert_eq!(event.payload().as_text(), Some(&*expected.to_string()));
                        expected += 1;
                        count += 1;
                    }
                    Item::Cursor(_) => {}
                    other => panic!("{other:?}"),
                }
            }
            read.store(expected - 1, Ordering::Relaxed);
        }
        is_done.store(true, Ordering::Relaxed);
        assert!(expected > LOOPS / 10, "{expected}");
    });
}

/// A user's tabs come and go while others publish to the user. A map of channels by hand loses messages here.
#[test]
fn open_tab_gets_every_message_while_others_reload() {
    let hub = Hub::builder().max_events(0).build();
    let is_done = AtomicBool::new(false);
    let users: [String; 4] = std::array::from_fn(|user| format!("user/{user}"));
    thread::scope(|scope| {
        for offset in 0..2 {
            let (hub, users, is_done) = (&hub, &users, &is_done);
            scope.spawn(move || {
                let mut reload = offset;
                while !is_done.load(Ordering::Relaxed) {
                    let topic = hub.topic(users[reload % 4].as_str()).unwrap();
                    drop(topic.subscribe_from(StartPosition::Now).unwrap());
                    reload += 1;
                }
            });
        }
        for reload in 0..LOOPS {
            let topic = hub.topic(users[reload as usize % 4].as_str()).unwrap();
            let mut tab = topic.subscribe_from(StartPosition::Now).unwrap();
            hub.publish(topic.name(), reload.to_string()).unwrap();
            let Poll::Ready(Some(Ok(Item::Event(event)))) = poll_next(&mut tab) else {
                panic!("the message {reload} was lost");
            };
            assert_eq!(event.payload().as_text(), Some(&*reload.to_string()));
        }
        is_done.store(true, Ordering::Relaxed);
    });
    assert_eq!(hub.counts().topics, 0);
}
