//! The channel: replay, live, gaps, policies, the end.

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
use futures_util::{FutureExt, StreamExt, task::noop_waker};
use http_body_util::BodyExt;
use testkit::{
    HttpClient, HttpVersion, TestServer, body_frames, body_text, describe_item, get_request_head,
};
use tower_push::{
    BoxError, Channel, Event, EventId, Gap, Item, KeepAlive, Push, PushSource,
    source::{
        StartPosition, Subscription,
        channel::{LagPolicy, Subscriber},
    },
    transport::{Negotiate, Sse, Transport},
};

fn publish(channel: &Channel, numbers: impl IntoIterator<Item = u64>) -> Vec<EventId> {
    let publish = |n: u64| channel.publish(n.to_string()).unwrap();
    numbers.into_iter().map(publish).collect()
}

/// All that is ready, in short.
fn ready(subscriber: &mut Subscriber) -> Vec<String> {
    let mut read = Vec::new();
    while let Poll::Ready(Some(item)) = poll(subscriber) {
        read.push(describe_item(item));
    }
    read
}

fn poll(subscriber: &mut Subscriber) -> Poll<Option<Result<Item, BoxError>>> {
    subscriber.poll_next_unpin(&mut Context::from_waker(&noop_waker()))
}

#[test]
fn ids_sort_as_texts_and_are_the_channels_own() {
    let channel = Channel::new();
    let ids = publish(&channel, 0..1000);
    assert!(ids.is_sorted());
    let own = Event::text("x").with_id("mine").unwrap();
    let id = channel.publish(own).unwrap();
    assert!(id > ids[999]);
    let mut subscriber = channel.subscribe_from(StartPosition::Last(1));
    let Poll::Ready(Some(Ok(Item::Event(event)))) = poll(&mut subscriber) else {
        panic!("an event")
    };
    assert_eq!(event.id(), Some(&id));
}

#[test]
fn a_subscriber_begins_where_it_asks() {
    type Asked = fn(&[EventId]) -> StartPosition;
    let cases: [(Asked, &[&str]); 7] = [
        (|_| StartPosition::Now, &["cursor"]),
        (|_| StartPosition::Oldest, &["1", "2", "3"]),
        (|_| StartPosition::Last(2), &["2", "3"]),
        (|_| StartPosition::Last(99), &["1", "2", "3"]),
        (|_| StartPosition::Last(0), &["cursor"]),
        (|ids| StartPosition::After(ids[0].clone()), &["2", "3"]),
        (|ids| StartPosition::After(ids[2].clone()), &[]),
    ];
    for (start, expected) in cases {
        let channel = Channel::new();
        let ids = publish(&channel, 1..=3);
        let mut subscriber = channel.subscribe_from(start(&ids));
        assert_eq!(ready(&mut subscriber), expected);
        publish(&channel, [4]);
        assert_eq!(ready(&mut subscriber), ["4"]);
    }
}

#[test]
fn a_cursor_given_before_the_first_event_resumes_too() {
    let channel = Channel::new();
    let mut early = channel.subscribe_from(StartPosition::Now);
    let Poll::Ready(Some(Ok(Item::Cursor(cursor)))) = poll(&mut early) else {
        panic!("a cursor first")
    };
    drop(early);
    publish(&channel, [1, 2]);
    assert_eq!(
        ready(&mut channel.subscribe_from(StartPosition::After(cursor))),
        ["1", "2"]
    );
}

#[test]
fn what_the_log_has_not_is_a_gap_and_then_there_is_what_it_has() {
    let channel = Channel::builder().max_events(2).build();
    let ids = publish(&channel, 1..=5);
    let other = Channel::new();
    let foreign = publish(&other, 1..=9).pop().unwrap();
    let future = EventId::new(format!("{}v", &ids[4].as_str()[..24])).unwrap();
    for (cursor, expected) in [
        (&ids[0], "expired Some(2)"),
        (&foreign, "epoch None"),
        (&future, "epoch None"),
        (&EventId::from(3), "epoch None"),
    ] {
        let mut subscriber = channel.subscribe_from(StartPosition::After(cursor.clone()));
        let Poll::Ready(Some(Ok(Item::Gap(gap)))) = poll(&mut subscriber) else {
            panic!("a gap first")
        };
        assert_eq!(gap.requested.as_ref(), Some(cursor));
        assert_eq!(gap.resumed.as_ref(), Some(&ids[2]));
        assert_eq!(describe_item(Ok(Item::Gap(gap))), expected);
        assert_eq!(ready(&mut subscriber), ["4", "5"]);
    }
    assert_eq!(channel.counts().expired, 2);
    assert_eq!(
        ready(&mut channel.subscribe_from(StartPosition::After(ids[2].clone()))),
        ["4", "5"],
        "the last that fell off"
    );
}

#[test]
fn a_gap_resumes_where_it_says() {
    let channel = Channel::builder().max_events(2).build();
    let ids = publish(&channel, 1..=5);
    let mut subscriber = channel.subscribe_from(StartPosition::After(ids[0].clone()));
    let Poll::Ready(Some(Ok(Item::Gap(Gap { resumed, .. })))) = poll(&mut subscriber) else {
        panic!("a gap first")
    };
    let mut again = channel.subscribe_from(StartPosition::After(resumed.unwrap()));
    assert_eq!(ready(&mut again), ["4", "5"], "and not the same gap again");
}

mod lag {
    use super::*;

    fn channel(lag_policy: LagPolicy) -> (Channel, Subscriber) {
        let channel = Channel::builder()
            .max_events(3)
            .lag_policy(lag_policy)
            .build();
        let mut subscriber = channel.subscribe_from(StartPosition::Now);
        assert_eq!(ready(&mut subscriber), ["cursor"]);
        publish(&channel, 1..=8);
        (channel, subscriber)
    }

    #[test]
    fn is_a_gap_by_default() {
        let (channel, mut subscriber) = channel(LagPolicy::Gap);
        assert_eq!(ready(&mut subscriber), ["lagged Some(5)", "6", "7", "8"]);
        assert_eq!(channel.counts().lagged, 5);
        assert_eq!(channel.counts().published, 8);
    }

    #[test]
    fn cuts_off_and_is_a_gap_when_the_client_is_back() {
        let (channel, mut subscriber) = channel(LagPolicy::Disconnect);
        let Poll::Ready(Some(Err(error))) = poll(&mut subscriber) else {
            panic!("an error")
        };
        assert!(
            error
                .downcast_ref::<tower_push::Error>()
                .unwrap()
                .is_lagged()
        );
        assert!(matches!(poll(&mut subscriber), Poll::Ready(None)));
        assert_eq!(channel.counts().lagged, 5);
    }

    #[test]
    fn conflates_to_the_newest_of_each_key() {
        let parity = |event: &Event| {
            let n: u64 = event.payload().as_text().unwrap().parse().unwrap();
            (n % 5).to_string()
        };
        // In the log: 6, 7, 8. Of the others 4 and 5 are the newest of their keys, and 1, 2, 3 are not.
        let (channel, mut subscriber) = channel(LagPolicy::conflate(parity));
        assert_eq!(ready(&mut subscriber), ["4", "5", "6", "7", "8"]);
        assert_eq!(channel.counts().conflated, 3);
        assert_eq!(channel.counts().lagged, 0);
    }

    #[test]
    fn who_asks_a_conflating_channel_for_all_gets_a_snapshot_first() {
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
        // In the log: c, d. Of the others, cc is the newest of its key.
        let all = ["cc", "c", "d"];
        assert_eq!(
            ready(&mut channel.subscribe_from(StartPosition::Oldest)),
            all
        );
        assert_eq!(
            ready(&mut channel.subscribe_from(StartPosition::After(other)))[1..],
            all,
            "behind the gap"
        );
        assert_eq!(
            ready(&mut channel.subscribe_from(StartPosition::Last(9))),
            ["c", "d"]
        );
        // More keys than it may keep: the oldest is forgotten.
        publish(&["eee", "ffff"]);
        assert_eq!(
            ready(&mut channel.subscribe_from(StartPosition::Oldest)),
            ["cc", "d", "eee", "ffff"]
        );
        publish(&["ggggg"]);
        assert_eq!(
            ready(&mut channel.subscribe_from(StartPosition::Oldest)),
            ["d", "eee", "ffff", "ggggg"]
        );
    }

    #[test]
    fn tells_lag_from_a_late_return_only_until_it_has_caught_up() {
        let channel = Channel::builder().max_events(1).build();
        let ids = publish(&channel, [1]);
        let mut subscriber = channel.subscribe_from(StartPosition::After(ids[0].clone()));
        assert_eq!(ready(&mut subscriber), [""; 0]);
        publish(&channel, [2, 3]);
        assert_eq!(ready(&mut subscriber), ["lagged Some(1)", "3"]);
    }
}

#[test]
fn closed_is_finished_for_all_once_they_have_the_rest() {
    let channel = Channel::new();
    let mut present = channel.subscribe_from(StartPosition::Now);
    let ids = publish(&channel, [1, 2]);
    channel.close();
    assert!(channel.publish("3").unwrap_err().is_closed());
    assert_eq!(ready(&mut present), ["cursor", "1", "2", "finished"]);
    assert!(matches!(poll(&mut present), Poll::Ready(None)));
    assert_eq!(
        ready(&mut channel.subscribe_from(StartPosition::Oldest)),
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
    assert_eq!(ready(&mut behind), ["2", "finished"]);
    let mut strange = subscribe(&[("last-event-id", "strange")]).unwrap();
    assert_eq!(ready(&mut strange), ["epoch None", "1", "2", "finished"]);
}

#[tokio::test]
async fn a_cursor_that_cannot_be_read_is_answered_like_one_of_another_epoch() {
    let channel = Channel::new();
    publish(&channel, [1, 2]);
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
fn the_bounds_hold() {
    let channel = Channel::builder().max_bytes(100).build();
    for n in 0..100 {
        channel.publish("x".repeat(n)).unwrap();
        assert!(channel.byte_len() <= 100 || channel.len() == 1);
    }
    assert!(!channel.is_empty());
}

#[tokio::test(start_paused = true)]
async fn events_age() {
    let channel = Channel::builder().max_age(Duration::from_secs(60)).build();
    publish(&channel, [1]);
    tokio::time::advance(Duration::from_secs(30)).await;
    publish(&channel, [2]);
    tokio::time::advance(Duration::from_secs(31)).await;
    assert_eq!(
        ready(&mut channel.subscribe_from(StartPosition::Oldest)),
        ["2"]
    );
    tokio::time::advance(Duration::from_secs(30)).await;
    assert_eq!(channel.len(), 0);
    assert_eq!(
        ready(&mut channel.subscribe_from(StartPosition::Oldest)),
        ["cursor"]
    );
}

#[tokio::test]
async fn a_producer_knows_when_to_stop_and_when_to_begin() {
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

/// Subscribers that leave in the middle and come back, while a publisher keeps a few events ahead of them: a hundred thousand
/// times from the log into what is live.
#[test]
fn replay_goes_over_into_live_without_a_hole_or_a_double() {
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
    assert_eq!((counters.lagged, counters.expired), (0, 0));
}

/// A mebibyte of events, many subscribers and several publishers: each subscriber gets each publisher's events in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_get_all_in_one_order() {
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
            tokio::task::spawn_blocking(move || publish(&channel, 0..EVENTS))
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
async fn one_encoding_serves_all_subscribers_of_a_transport() {
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
async fn a_disconnected_client_finds_its_gap_on_the_next_connection() {
    let channel = Channel::builder()
        .max_events(2)
        .lag_policy(LagPolicy::Disconnect)
        .build();
    let push = || Push::new(channel.clone());
    let response = Sse::new()
        .respond(&mut get_request_head("/", &[]), push())
        .await;
    let ids = publish(&channel, 1..=5);
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

/// Over sockets: a client that comes back with its cursor, on any transport, misses nothing.
#[tokio::test]
async fn a_client_keeps_its_place_from_one_transport_to_another() {
    let channel = Channel::new();
    let quiet = Negotiate::new().add_transport(Sse::new().keep_alive(KeepAlive::disabled()));
    let service = tower_push::service(channel.with_start(StartPosition::Oldest)).transport(quiet);
    let server = TestServer::start(service).await;
    let ids = publish(&channel, 1..=4);
    for version in HttpVersion::ALL {
        for (transport, cursor, expected) in [
            ("sse", None, format!(":\nid: {}\ndata: 1\n\n", ids[0])),
            (
                "ndjson",
                Some(&ids[0]),
                format!("\n{{\"id\":\"{}\",\"data\":\"2\"}}\n", ids[1]),
            ),
            (
                "json-seq",
                Some(&ids[1]),
                format!("\u{1e}\u{1e}{{\"id\":\"{}\",\"data\":\"3\"}}\n", ids[2]),
            ),
            (
                "sse",
                Some(&ids[2]),
                format!("id: {}\n:\nid: {}\ndata: 4\n\n", ids[2], ids[3]),
            ),
        ] {
            let mut client = HttpClient::connect(&server, version).await;
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

/// What goes with a waker, or with a payload, may be anything: another subscriber, or the channel itself.
#[test]
fn no_code_of_others_runs_under_a_lock() {
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
        // More than there are lists to wait in, so that some share one.
        let mut subscribers: Vec<_> = (0..256)
            .map(|_| channel.subscribe_from(StartPosition::Now))
            .collect();
        while let Some(mut subscriber) = subscribers.pop() {
            assert_eq!(ready(&mut subscriber), ["cursor"]);
            for other in subscribers.drain(..subscribers.len().min(8)) {
                let waker = Arc::new(Holding(Some(other).into())).into();
                let _ = subscriber.poll_next_unpin(&mut Context::from_waker(&waker));
                drop(waker);
            }
            // Another waker: the one before it goes, and the subscriber in it.
            assert!(matches!(poll(&mut subscriber), Poll::Pending));
        }
        let owned = Bytes::from_owner(Owner(channel.clone()));
        channel.publish(owned).unwrap();
        channel.publish("the owned one falls off").unwrap();
        done.send(channel.counts().published).unwrap();
    });
    let published = is_done.recv_timeout(Duration::from_secs(20));
    assert_eq!(published.expect("no deadlock"), 3);
}

/// Neither may it take the news from others that wait, nor the id from who published.
#[test]
fn a_waker_or_a_payload_that_panics_is_alone_with_it() {
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
    // Many in each list.
    let mut subscribers: Vec<_> = (0..256)
        .map(|_| channel.subscribe_from(StartPosition::Now))
        .collect();
    let woken = Arc::new(Woken::default());
    for (n, subscriber) in subscribers.iter_mut().enumerate() {
        assert_eq!(ready(subscriber), ["cursor"]);
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
