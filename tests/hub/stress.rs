//! Threads that publish, subscribe and leave at the same time.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    task::Poll,
    thread,
};

use testkit::poll_next;
use tower_push::{EventId, Hub, Item, source::StartPosition};

/// The number of loops: 20 000, or that of the environment variable `HUB_STRESS_LOOPS`, as in `scripts/test-long`.
fn loop_count() -> u64 {
    let loops = std::env::var("HUB_STRESS_LOOPS").ok();
    loops.map_or(20_000, |loops| {
        loops.parse().expect("HUB_STRESS_LOOPS is a number")
    })
}

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
        for round in 0..loop_count() {
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
        assert!(expected > loop_count() / 10, "{expected}");
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
        for reload in 0..loop_count() {
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

/// How far the messages to one user are. They are the numbers from 1 on.
#[derive(Default)]
struct UserMessages {
    /// The last message whose publication has begun.
    begun: AtomicU64,
    /// The last message that may be published now. A tab that is far behind would lose messages by right.
    allowed: AtomicU64,
}

/// The number of messages that are published ahead of a user's tab.
const MAX_AHEAD: u64 = 50;

/// Publishes to all users in turn until `is_done`.
fn publish_to_users(hub: &Hub, users: &[UserMessages], is_done: &AtomicBool) {
    while !is_done.load(Ordering::Relaxed) {
        for (user, messages) in users.iter().enumerate() {
            let number = messages.begun.load(Ordering::SeqCst) + 1;
            if number <= messages.allowed.load(Ordering::SeqCst) {
                messages.begun.store(number, Ordering::SeqCst);
                hub.publish(format!("user/{user}"), number.to_string())
                    .unwrap();
            }
        }
        thread::yield_now();
    }
}

/// Opens a tab of a user, and reads until a message has arrived whose publication began later. The tab gets every such message, in order.
fn read_in_new_tab(hub: &Hub, user: usize, messages: &UserMessages) {
    let topic = hub.topic(format!("user/{user}")).unwrap();
    let mut tab = topic.subscribe_from(StartPosition::Now).unwrap();
    let begun = messages.begun.load(Ordering::SeqCst);
    messages
        .allowed
        .fetch_max(begun + MAX_AHEAD, Ordering::SeqCst);
    let mut last = None::<u64>;
    while last.is_none_or(|last| last <= begun) {
        let Poll::Ready(item) = poll_next(&mut tab) else {
            thread::yield_now();
            continue;
        };
        let event = match item.unwrap().unwrap() {
            Item::Event(event) => event,
            Item::Cursor(_) => continue,
            other => panic!("{other:?}"),
        };
        let number: u64 = event.payload().as_text().unwrap().parse().unwrap();
        match last {
            Some(last) => assert_eq!(number, last + 1, "a message was lost"),
            None => assert!(number <= begun + 1, "{begun} to {number} were lost"),
        }
        last = Some(number);
    }
}

/// Tabs of a few users are opened and closed, while others publish to the users. Topics are created and removed all the time, because an idle
/// user has neither a subscriber nor history.
#[test]
fn reloaded_tab_gets_every_message_of_other_publishers() {
    for max_events in [0, 256] {
        let hub = Hub::builder().max_events(max_events).max_topics(2).build();
        let users: [UserMessages; 4] = Default::default();
        let (is_done, reloads) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            scope.spawn(|| publish_to_users(&hub, &users, &is_done));
            let tabs = [0, 1].map(|first_user| {
                let (hub, users, reloads) = (&hub, &users, &reloads);
                scope.spawn(move || {
                    let mut reload = 2 * reloads.fetch_add(1, Ordering::Relaxed);
                    while reload < loop_count() {
                        let user = (2 * (reload % 2) + first_user) as usize;
                        read_in_new_tab(hub, user, &users[user]);
                        reload = 2 * reloads.fetch_add(1, Ordering::Relaxed);
                    }
                })
            });
            let tabs = tabs.map(thread::ScopedJoinHandle::join);
            is_done.store(true, Ordering::Relaxed);
            tabs.into_iter().for_each(|tab| tab.unwrap());
        });
    }
}
