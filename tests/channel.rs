//! The channel: replay, live events, gaps, lag policies, and its end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use http_body_util::BodyExt;
use testkit::{
    HttpConnection, HttpVersion, TestServer, body_frames, body_text, describe_item,
    get_request_head, poll_next, read_ready_items,
};
use tower_push::{
    Channel, Event, EventId, Item, KeepAlive, Push, PushSource,
    source::{
        StartPosition, Subscription,
        channel::{LagPolicy, Subscriber},
    },
    transport::{Negotiate, Sse, Transport},
};

/// Publishes these numbers, and returns their ids.
fn publish_numbers(channel: &Channel, numbers: impl IntoIterator<Item = u64>) -> Vec<EventId> {
    let publish = |n: u64| channel.publish(n.to_string()).unwrap();
    numbers.into_iter().map(publish).collect()
}

#[test]
fn ids_sort_as_text_and_are_assigned_by_channel() {
    let channel = Channel::new();
    let ids = publish_numbers(&channel, 0..1000);
    assert!(ids.is_sorted());
    let own = Event::text("x").with_id("mine").unwrap();
    let id = channel.publish(own).unwrap();
    assert!(id > ids[999]);
    let mut subscriber = channel.subscribe_from(StartPosition::Last(1));
    let first = poll_next(&mut subscriber);
    let Poll::Ready(Some(Ok(Item::Cursor(cursor)))) = first else {
        panic!("not a cursor: {first:?}")
    };
    assert_eq!(cursor, ids[999]);
    let Poll::Ready(Some(Ok(Item::Event(event)))) = poll_next(&mut subscriber) else {
        panic!("not an event")
    };
    assert_eq!(event.id(), Some(&id));
}

#[test]
fn subscriber_starts_where_requested() {
    type MakeStart = fn(&[EventId]) -> StartPosition;
    let cases: [(MakeStart, &[&str]); 7] = [
        (|_| StartPosition::Now, &["cursor"]),
        (|_| StartPosition::Oldest, &["1", "2", "3"]),
        (|_| StartPosition::Last(2), &["cursor", "2", "3"]),
        (|_| StartPosition::Last(99), &["cursor", "1", "2", "3"]),
        (|_| StartPosition::Last(0), &["cursor"]),
        (|ids| StartPosition::After(ids[0].clone()), &["2", "3"]),
        (|ids| StartPosition::After(ids[2].clone()), &[]),
    ];
    for (start, expected) in cases {
        let channel = Channel::new();
        let ids = publish_numbers(&channel, 1..=3);
        let mut subscriber = channel.subscribe_from(start(&ids));
        assert_eq!(read_ready_items(&mut subscriber), expected);
        publish_numbers(&channel, [4]);
        assert_eq!(read_ready_items(&mut subscriber), ["4"]);
    }
}

#[test]
fn cursor_before_first_event_resumes() {
    let channel = Channel::new();
    let mut early = channel.subscribe_from(StartPosition::Now);
    let Poll::Ready(Some(Ok(Item::Cursor(cursor)))) = poll_next(&mut early) else {
        panic!("not a cursor")
    };
    drop(early);
    publish_numbers(&channel, [1, 2]);
    assert_eq!(
        read_ready_items(&mut channel.subscribe_from(StartPosition::After(cursor))),
        ["1", "2"]
    );
}

#[test]
fn missing_events_become_gap_before_rest_of_log() {
    let channel = Channel::builder().max_events(2).build();
    let ids = publish_numbers(&channel, 1..=5);
    let other = Channel::new();
    let foreign = publish_numbers(&other, 1..=9).pop().unwrap();
    let future = EventId::new(format!("{}v", &ids[4].as_str()[..24])).unwrap();
    for (cursor, expected) in [
        (&ids[0], "expired Some(2)"),
        (&foreign, "epoch None"),
        (&future, "epoch None"),
        (&EventId::from(3), "epoch None"),
    ] {
        let mut subscriber = channel.subscribe_from(StartPosition::After(cursor.clone()));
        let Poll::Ready(Some(Ok(Item::Gap(gap)))) = poll_next(&mut subscriber) else {
            panic!("not a gap")
        };
        assert_eq!(gap.requested.as_ref(), Some(cursor));
        assert_eq!(gap.resumed.as_ref(), Some(&ids[2]));
        assert_eq!(describe_item(Ok(Item::Gap(gap))), expected);
        assert_eq!(read_ready_items(&mut subscriber), ["4", "5"]);
    }
    assert_eq!(channel.counts().missed_on_resume, 2);
    assert_eq!(
        read_ready_items(&mut channel.subscribe_from(StartPosition::After(ids[2].clone()))),
        ["4", "5"],
        "the newest event that was dropped from the log"
    );
}

#[test]
fn gap_resumes_at_its_cursor() {
    let channel = Channel::builder().max_events(2).build();
    let ids = publish_numbers(&channel, 1..=5);
    let mut subscriber = channel.subscribe_from(StartPosition::After(ids[0].clone()));
    let Poll::Ready(Some(Ok(Item::Gap(gap)))) = poll_next(&mut subscriber) else {
        panic!("not a gap")
    };
    let mut again = channel.subscribe_from(StartPosition::After(gap.resumed.unwrap()));
    assert_eq!(
        read_ready_items(&mut again),
        ["4", "5"],
        "the same gap must not come again"
    );
}

mod lag {
    use super::*;

    fn channel(lag_policy: LagPolicy) -> (Channel, Subscriber) {
        let channel = Channel::builder()
            .max_events(3)
            .lag_policy(lag_policy)
            .build();
        let mut subscriber = channel.subscribe_from(StartPosition::Now);
        assert_eq!(read_ready_items(&mut subscriber), ["cursor"]);
        publish_numbers(&channel, 1..=8);
        (channel, subscriber)
    }

    #[test]
    fn lag_is_gap_by_default() {
        let (channel, mut subscriber) = channel(LagPolicy::Gap);
        assert_eq!(
            read_ready_items(&mut subscriber),
            ["lagged Some(5)", "6", "7", "8"]
        );
        assert_eq!(channel.counts().lagged, 5);
        assert_eq!(channel.counts().published, 8);
    }

    #[test]
    fn lag_disconnects_and_is_gap_on_return() {
        let (channel, mut subscriber) = channel(LagPolicy::Disconnect);
        let Poll::Ready(Some(Err(error))) = poll_next(&mut subscriber) else {
            panic!("not an error")
        };
        assert!(
            error
                .downcast_ref::<tower_push::Error>()
                .unwrap()
                .is_lagged()
        );
        assert!(matches!(poll_next(&mut subscriber), Poll::Ready(None)));
        assert_eq!(channel.counts().lagged, 5);
    }

    #[test]
    fn lag_conflates_to_newest_of_each_key() {
        let parity = |event: &Event| {
            let n: u64 = event.payload().as_text().unwrap().parse().unwrap();
            (n % 5).to_string()
        };
        // The log has 6, 7 and 8. Of the dropped events, 4 and 5 are the newest of their keys.
        let (channel, mut subscriber) = channel(LagPolicy::conflate(parity));
        assert_eq!(read_ready_items(&mut subscriber), ["4", "5", "6", "7", "8"]);
        assert_eq!(channel.counts().conflated, 3);
        assert_eq!(channel.counts().lagged, 0);
    }

    #[test]
    fn conflating_channel_starts_with_snapshot() {
        let parity = |event: &Event| event.payload().as_text().unwrap().len().to_string();
        let keys = || {
            let channel = Channel::builder().max_events(2);
            channel.lag_policy(LagPolicy::conflate(parity)).build()
        };
        let channel = keys();
        let publish = |texts: &[&str]| {
            let publish = |text: &&str| channel.publish(*text).unwrap();
            texts.iter().map(publish).collect::<Vec<_>>()
        };
        let other = keys().publish("x").unwrap();
        publish(&["a", "bb", "b", "cc", "c", "d"]);
        // The log has c and d. Of the dropped events, cc is the newest of its key.
        let all = ["cc", "c", "d"];
        assert_eq!(
            read_ready_items(&mut channel.subscribe_from(StartPosition::Oldest)),
            all
        );
        assert_eq!(
            read_ready_items(&mut channel.subscribe_from(StartPosition::After(other)))[1..],
            all,
            "behind the gap"
        );
        assert_eq!(
            read_ready_items(&mut channel.subscribe_from(StartPosition::Last(9))),
            ["cursor", "c", "d"]
        );
        // There are more keys than the channel may keep, so it forgets the oldest.
        publish(&["eee", "ffff"]);
        assert_eq!(
            read_ready_items(&mut channel.subscribe_from(StartPosition::Oldest)),
            ["cc", "d", "eee", "ffff"]
        );
        publish(&["ggggg"]);
        assert_eq!(
            read_ready_items(&mut channel.subscribe_from(StartPosition::Oldest)),
            ["d", "eee", "ffff", "ggggg"]
        );
    }

    #[test]
    fn gap_after_catching_up_has_reason_lagged() {
        let channel = Channel::builder().max_events(1).build();
        let ids = publish_numbers(&channel, [1]);
        let mut subscriber = channel.subscribe_from(StartPosition::After(ids[0].clone()));
        assert_eq!(read_ready_items(&mut subscriber), [""; 0]);
        publish_numbers(&channel, [2, 3]);
        assert_eq!(read_ready_items(&mut subscriber), ["lagged Some(1)", "3"]);
    }
}

#[test]
fn closed_channel_finishes_after_remaining_events() {
    let channel = Channel::new();
    let mut present = channel.subscribe_from(StartPosition::Now);
    let ids = publish_numbers(&channel, [1, 2]);
    channel.close();
    assert!(channel.publish("3").unwrap_err().is_closed());
    assert_eq!(
        read_ready_items(&mut present),
        ["cursor", "1", "2", "finished"]
    );
    assert!(matches!(poll_next(&mut present), Poll::Ready(None)));
    assert_eq!(
        read_ready_items(&mut channel.subscribe_from(StartPosition::Oldest)),
        ["1", "2", "finished"]
    );

    let subscribe = |headers: &[(&str, &str)]| {
        let subscription = Subscription::new(&get_request_head("/", headers), "sse");
        channel
            .clone()
            .subscribe(subscription)
            .now_or_never()
            .unwrap()
    };
    let late = subscribe(&[("last-event-id", ids[1].as_str())]);
    assert_eq!(late.unwrap_err().status(), 204);
    assert_eq!(subscribe(&[]).unwrap_err().status(), 204);
    let mut behind = subscribe(&[("last-event-id", ids[0].as_str())]).unwrap();
    assert_eq!(read_ready_items(&mut behind), ["2", "finished"]);
    let mut strange = subscribe(&[("last-event-id", "strange")]).unwrap();
    assert_eq!(
        read_ready_items(&mut strange),
        ["epoch None", "1", "2", "finished"]
    );
}

#[tokio::test]
async fn unreadable_cursor_is_like_foreign_epoch() {
    let channel = Channel::new();
    publish_numbers(&channel, [1, 2]);
    channel.close();
    let mut head = get_request_head("/", &[("last-event-id", "not an id")]);
    let response = Sse::new().respond(&mut head, Push::new(channel)).await;
    let body = body_text(response.into_body()).await;
    assert!(
        body.contains("event: gap\ndata: {\"reason\":\"epoch\",\"requested\":null"),
        "{body}"
    );
    assert!(
        body.contains("data: 1\n\n") && body.contains("data: 2\n\n"),
        "{body}"
    );
}

#[test]
fn log_limits_hold() {
    let channel = Channel::builder().max_bytes(1000).build();
    for n in 0..1200 {
        channel.publish("x".repeat(n)).unwrap();
        assert!(channel.byte_len() <= 1000 || channel.len() == 1);
        assert!(channel.len() == 2 || !(1..80).contains(&n), "{n}");
    }
    assert!(!channel.is_empty());
}

#[tokio::test(start_paused = true)]
async fn old_events_expire() {
    let channel = Channel::builder().max_age(Duration::from_secs(60)).build();
    publish_numbers(&channel, [1]);
    tokio::time::advance(Duration::from_secs(30)).await;
    publish_numbers(&channel, [2]);
    tokio::time::advance(Duration::from_secs(31)).await;
    assert_eq!(
        read_ready_items(&mut channel.subscribe_from(StartPosition::Oldest)),
        ["2"]
    );
    tokio::time::advance(Duration::from_secs(30)).await;
    assert_eq!(channel.len(), 0);
    assert_eq!(
        read_ready_items(&mut channel.subscribe_from(StartPosition::Oldest)),
        ["cursor"]
    );
}

#[tokio::test]
async fn producer_waits_for_subscribers() {
    let channel = Channel::new();
    channel.unsubscribed().await;
    let first = channel.subscribe_from(StartPosition::Now);
    channel.subscribed().await;
    let second = channel.subscribe_from(StartPosition::Now);
    assert_eq!(channel.subscriber_count(), 2);
    drop(first);
    assert!(channel.unsubscribed().now_or_never().is_none());
    let idle = tokio::spawn({
        let channel = channel.clone();
        async move { channel.unsubscribed().await }
    });
    drop(second);
    idle.await.unwrap();
    assert_eq!(channel.subscriber_count(), 0);
}

/// A subscriber leaves and resumes a hundred thousand times, while a publisher keeps a few events ahead of it. So every subscription
/// passes from replay to live events.
#[test]
fn replay_joins_live_without_loss_or_duplicates() {
    const RETURNS: u64 = 100_000;
    const AHEAD: u64 = 4;
    let channel = Channel::builder().max_events(64).build();
    let read = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicU64::new(0));
    let publisher = thread::spawn({
        let (channel, read, done) = (channel.clone(), read.clone(), done.clone());
        move || {
            let mut next = 1;
            while done.load(Ordering::Relaxed) == 0 {
                if next <= read.load(Ordering::Relaxed) + AHEAD {
                    channel.publish(next.to_string()).unwrap();
                    next += 1;
                } else {
                    thread::yield_now();
                }
            }
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut subscriber = channel.subscribe_from(StartPosition::Oldest);
    let mut expected = 1;
    for returns in 0..RETURNS {
        let mut cursor = None;
        for _ in 0..=returns % 3 {
            loop {
                match runtime.block_on(subscriber.next()).unwrap().unwrap() {
                    Item::Event(event) => {
                        assert_eq!(event.payload().as_text(), Some(&*expected.to_string()));
                        read.store(expected, Ordering::Relaxed);
                        expected += 1;
                        cursor = event.id().cloned();
                        break;
                    }
                    Item::Cursor(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        subscriber = channel.subscribe_from(StartPosition::After(cursor.unwrap()));
    }
    done.store(1, Ordering::Relaxed);
    publisher.join().unwrap();
    let counters = channel.counts();
    assert_eq!((counters.lagged, counters.missed_on_resume), (0, 0));
}

/// Several publishers publish at the same time. Every subscriber gets all events, those of one publisher in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_subscribers_get_all_events_in_order() {
    const EVENTS: u64 = 2000;
    let channel = Channel::builder().max_events(usize::MAX).build();
    let subscribers: Vec<_> = (0..50)
        .map(|_| {
            let mut subscriber = channel.subscribe_from(StartPosition::Oldest);
            tokio::spawn(async move {
                let mut read = Vec::new();
                while let Some(item) = subscriber.next().await {
                    match item.unwrap() {
                        Item::Event(event) => read.push(event.id().unwrap().clone()),
                        Item::Finished => break,
                        _ => {}
                    }
                }
                read
            })
        })
        .collect();
    let publishers: Vec<_> = (0..2)
        .map(|_| {
            let channel = channel.clone();
            tokio::task::spawn_blocking(move || publish_numbers(&channel, 0..EVENTS))
        })
        .collect();
    let mut published = Vec::new();
    for publisher in publishers {
        let ids = publisher.await.unwrap();
        assert!(ids.is_sorted());
        published.extend(ids);
    }
    channel.close();
    published.sort();
    for subscriber in subscribers {
        assert_eq!(subscriber.await.unwrap(), published);
    }
    assert_eq!(channel.subscriber_count(), 0);
}

#[tokio::test]
async fn one_encoding_is_shared_by_all_subscribers() {
    for name in ["sse", "ndjson", "json-seq"] {
        let channel = Channel::new();
        let mut pointers = Vec::new();
        let mut bodies = Vec::new();
        for _ in 0..10 {
            let mut head = get_request_head(&format!("/?transport={name}"), &[]);
            let mut body = tower_push::respond(&mut head, channel.clone())
                .await
                .into_body();
            body.frame().await.unwrap().unwrap();
            bodies.push(body);
        }
        channel.publish("shared").unwrap();
        for body in &mut bodies {
            let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
            pointers.push(frame.as_ptr());
        }
        assert!(
            pointers.iter().all(|pointer| *pointer == pointers[0]),
            "{name}"
        );
    }
}

#[tokio::test]
async fn disconnected_client_gets_gap_on_reconnect() {
    let channel = Channel::builder()
        .max_events(2)
        .lag_policy(LagPolicy::Disconnect)
        .build();
    let push = || Push::new(channel.clone());
    let response = Sse::new()
        .respond(&mut get_request_head("/", &[]), push())
        .await;
    let ids = publish_numbers(&channel, 1..=5);
    let (read, end) = body_frames(response.into_body()).await;
    assert!(end.is_err());
    assert!(
        !String::from_utf8(read.concat())
            .unwrap()
            .contains("event: end")
    );

    channel.close();
    let mut head = get_request_head("/", &[("last-event-id", ids[0].as_str())]);
    let body = body_text(Sse::new().respond(&mut head, push()).await.into_body()).await;
    let gap = format!(
        "event: gap\nid: {}\ndata: {{\"reason\":\"expired\",\"requested\":\"{}\",\"resumed\":\"{}\",\"missed\":2}}",
        ids[2], ids[0], ids[2]
    );
    assert!(body.contains(&gap), "{body}");
}

/// A client that reconnects with its cursor, over any transport, misses no event.
#[tokio::test]
async fn client_keeps_position_across_transports() {
    let channel = Channel::new();
    let quiet = Negotiate::new().add_transport(Sse::new().keep_alive(KeepAlive::disabled()));
    let service = tower_push::service(channel.with_start(StartPosition::Oldest)).transport(quiet);
    let server = TestServer::start(service).await;
    let ids = publish_numbers(&channel, 1..=4);
    for version in HttpVersion::ALL {
        for (transport, cursor, expected) in [
            ("sse", None, format!(":\nid: {}\ndata: 1\n\n", ids[0])),
            (
                "ndjson",
                Some(&ids[0]),
                format!(" {{\"id\":\"{}\",\"data\":\"2\"}}\n", ids[1]),
            ),
            (
                "json-seq",
                Some(&ids[1]),
                format!("\u{1e}\u{1e}{{\"id\":\"{}\",\"data\":\"3\"}}\n", ids[2]),
            ),
            (
                "sse",
                Some(&ids[2]),
                format!(":\nid: {}\ndata: 4\n\n", ids[3]),
            ),
        ] {
            let mut client = HttpConnection::connect(&server, version).await;
            let path = match cursor {
                Some(id) => format!("/?transport={transport}&last_event_id={id}"),
                None => format!("/?transport={transport}"),
            };
            client.get(&path, &[]).await.expect_bytes(expected).await;
        }
    }
    let gone = async {
        while channel.subscriber_count() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(testkit::TEST_TIMEOUT, gone)
        .await
        .unwrap();
}

/// Dropping a waker or a payload may run any code, which may use the channel or another subscriber.
#[test]
fn foreign_code_runs_outside_locks() {
    struct Holding(
        #[allow(dead_code, reason = "dropped with the waker")] std::sync::Mutex<Option<Subscriber>>,
    );
    impl std::task::Wake for Holding {
        fn wake(self: Arc<Self>) {}
    }

    struct Owner(Channel);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            b"owned"
        }
    }
    impl Drop for Owner {
        fn drop(&mut self) {
            self.0.publish("from a drop").unwrap();
        }
    }

    let (done, is_done) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let channel = Channel::builder().max_events(1).build();
        // There are more subscribers than wait lists, so some of them share a list.
        let mut subscribers: Vec<_> = (0..256)
            .map(|_| channel.subscribe_from(StartPosition::Now))
            .collect();
        while let Some(mut subscriber) = subscribers.pop() {
            assert_eq!(read_ready_items(&mut subscriber), ["cursor"]);
            for other in subscribers.drain(..subscribers.len().min(8)) {
                let waker = Arc::new(Holding(Some(other).into())).into();
                let _ = subscriber.poll_next_unpin(&mut Context::from_waker(&waker));
                drop(waker);
            }
            // Registering another waker drops the one before, with the subscriber in it.
            assert!(matches!(poll_next(&mut subscriber), Poll::Pending));
        }
        let owned = Bytes::from_owner(Owner(channel.clone()));
        channel.publish(owned).unwrap();
        channel.publish("the owned one falls off").unwrap();
        done.send(channel.counts().published).unwrap();
    });
    let published = is_done.recv_timeout(Duration::from_secs(20));
    assert_eq!(published.expect("a deadlock"), 3);
}

/// The other subscribers are still woken, and the publisher still gets the event's id.
#[test]
fn panicking_waker_or_payload_affects_no_other() {
    struct Panicking;
    impl std::task::Wake for Panicking {
        fn wake(self: Arc<Self>) {
            panic!("a waker that panics");
        }
    }
    struct Owner;
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            b"owned"
        }
    }
    impl Drop for Owner {
        fn drop(&mut self) {
            panic!("a payload that panics");
        }
    }
    #[derive(Default)]
    struct Woken(AtomicU64);
    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    let channel = Channel::builder().max_events(1).build();
    // Every wait list has many subscribers.
    let mut subscribers: Vec<_> = (0..256)
        .map(|_| channel.subscribe_from(StartPosition::Now))
        .collect();
    let woken = Arc::new(Woken::default());
    for (n, subscriber) in subscribers.iter_mut().enumerate() {
        assert_eq!(read_ready_items(subscriber), ["cursor"]);
        let waker = match n % 3 {
            0 => Arc::new(Panicking).into(),
            _ => woken.clone().into(),
        };
        let polled = subscriber.poll_next_unpin(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
    }
    channel.publish(Bytes::from_owner(Owner)).unwrap();
    assert_eq!(woken.0.load(Ordering::Relaxed), 170);
    channel.publish("the owned one falls off").unwrap();
    assert_eq!(channel.counts().published, 2);
}
