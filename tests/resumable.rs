//! Resumable streams: parked when their client disconnects, resumed by its cursor and by no other client, and released in time.

use std::{
    collections::{HashSet, VecDeque},
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use testkit::{
    HttpConnection, HttpVersion, LiveCounter, TEST_TIMEOUT, TestServer, describe_item,
    event_stream::EventStreamParser, get_request_head, poll_next, send_raw_http1,
};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::Layer;
use tower_push::{
    BoxError, Event, EventId, Gap, GapReason, Item, Push, PushSource, Resumable,
    layer::TransportLayer,
    source::{
        Rejection, StartPosition, Subscription,
        resumable::{RestartPolicy, ResumableSource, ResumableStream},
        source_fn,
    },
    transport::{LongPoll, Negotiate, Transport},
};

/// Subscribes, with a cursor or without.
async fn subscribe<S: PushSource + Send>(
    source: ResumableSource<S>,
    cursor: Option<&EventId>,
) -> Result<ResumableStream, Rejection> {
    let subscription = Subscription::new(&get_request_head("/", &[]), "test");
    source
        .subscribe(match cursor {
            Some(cursor) => subscription.with_start(StartPosition::After(cursor.clone())),
            None => subscription,
        })
        .await
}

/// Subscribes with the cursor of a stream that exists. The stream of the new request must not be polled.
async fn resume_existing(resumable: &Resumable, cursor: &EventId) -> ResumableStream {
    let unpolled = stream::poll_fn(|_| -> Poll<Option<&str>> { panic!("polled") });
    subscribe(resumable.wrap(unpolled), Some(cursor))
        .await
        .unwrap()
}

/// Returns a sender, the number of polls so far, and a stream of the items that are sent.
fn controlled_stream<T>(
    count: &LiveCounter,
) -> (
    UnboundedSender<T>,
    Arc<AtomicUsize>,
    impl Stream<Item = T> + use<T>,
)
where
    T: Send + 'static,
{
    let (sender, receiver) = unbounded_channel();
    let polls = Arc::new(AtomicUsize::new(0));
    let counted = polls.clone();
    let mut stream = count.wrap(UnboundedReceiverStream::new(receiver));
    let stream = stream::poll_fn(move |cx| {
        counted.fetch_add(1, Ordering::SeqCst);
        stream.poll_next_unpin(cx)
    });
    (sender, polls, stream)
}

fn numbers(range: std::ops::Range<u64>) -> impl Stream<Item = String> + Send + use<> {
    stream::iter(range.map(|n| n.to_string()))
}

/// Reads the items that are ready. Returns their descriptions and their cursors.
fn read(subscriber: &mut ResumableStream) -> (Vec<String>, Vec<EventId>) {
    let (mut texts, mut ids) = (Vec::new(), Vec::new());
    while let Poll::Ready(Some(item)) = poll_next(subscriber) {
        ids.extend(cursor_of(&item));
        texts.push(describe_item(item));
    }
    (texts, ids)
}

/// Returns the cursor that a client has after an item.
fn cursor_of(item: &Result<Item, BoxError>) -> Option<EventId> {
    match item {
        Ok(Item::Event(event)) => event.id().cloned(),
        Ok(Item::Gap(gap)) => gap.resumed.clone(),
        Ok(Item::Cursor(id)) => Some(id.clone()),
        _ => None,
    }
}

/// A pseudorandom sequence that is the same in every run.
struct SeededRandom(u64);

impl SeededRandom {
    /// Returns a number below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[tokio::test]
async fn returning_client_resumes_where_it_was() {
    let resumable = Resumable::new();
    assert!(resumable.wrap(numbers(0..1)).is_resumable());
    let count = LiveCounter::default();
    let (sender, _, stream) = controlled_stream(&count);
    let mut first = subscribe(resumable.wrap(stream), None).await.unwrap();
    for text in ["a", "b", "c"] {
        sender.send(text).unwrap();
    }
    let (texts, ids) = read(&mut first);
    assert_eq!(texts, ["cursor", "a", "b", "c"]);
    assert!(ids.is_sorted());
    for (id, (after, rest)) in ids.iter().zip([
        ("", &["a", "b", "c"] as &[_]),
        ("a", &["b", "c"]),
        ("b", &["c"]),
        ("c", &[]),
    ]) {
        let mut again = resume_existing(&resumable, id).await;
        let (texts, again) = read(&mut again);
        assert_eq!(texts, rest, "behind {after:?}");
        assert_eq!(again, ids[ids.len() - rest.len()..], "under the same ids");
    }
    drop(first);
    assert_eq!(count.get(), 1, "parked");
    sender.send("d").unwrap();
    let mut again = resume_existing(&resumable, &ids[2]).await;
    assert_eq!(read(&mut again).0, ["c", "d"]);
    assert_eq!(resumable.counts().resumed, 5);
}

/// The connection drops before the first event, or before the first poll.
#[tokio::test]
async fn immediately_dropped_connection_is_resumed() {
    let resumable = Resumable::new();
    let mut first = subscribe(resumable.wrap(numbers(0..3)), None)
        .await
        .unwrap();
    let id = cursor_of(&first.next().await.unwrap()).unwrap();
    drop(first);
    drop(resume_existing(&resumable, &id).await);
    let (texts, _) = read(&mut resume_existing(&resumable, &id).await);
    assert_eq!(texts, ["0", "1", "2", "finished"]);
}

#[tokio::test]
async fn source_is_not_asked_with_cursor() {
    let resumable = Resumable::new();
    let mut first = subscribe(resumable.wrap(stream::pending::<Event>()), None)
        .await
        .unwrap();
    let id = cursor_of(&first.next().await.unwrap()).unwrap();
    let unasked = source_fn(async |_| -> Result<stream::Empty<Event>, _> { panic!("asked") });
    drop(subscribe(resumable.wrap(unasked), Some(&id)).await.unwrap());
}

#[tokio::test]
async fn parked_stream_is_not_polled() {
    let resumable = Resumable::new();
    let (sender, polls, stream) = controlled_stream(&LiveCounter::default());
    let mut first = subscribe(resumable.wrap(stream), None).await.unwrap();
    sender.send("0".to_owned()).unwrap();
    let (_, ids) = read(&mut first);
    drop(first);
    let polled = polls.load(Ordering::SeqCst);
    for n in 1..=100 {
        sender.send(n.to_string()).unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(polls.load(Ordering::SeqCst), polled);
    let (texts, _) = read(&mut resume_existing(&resumable, &ids[1]).await);
    assert!(texts.into_iter().eq((1..=100).map(|n| n.to_string())));
}

/// The stream is polled for one event at a time, and only as fast as its client reads.
#[tokio::test]
async fn stream_is_not_read_ahead() {
    let resumable = Resumable::new();
    let (sender, polls, stream) = controlled_stream(&LiveCounter::default());
    (0..10).for_each(|n| sender.send(n.to_string()).unwrap());
    let mut first = subscribe(resumable.wrap(stream), None).await.unwrap();
    for read in 0..5 {
        assert!(poll_next(&mut first).is_ready());
        assert_eq!(polls.load(Ordering::SeqCst), read);
    }
}

#[tokio::test]
async fn ids_are_assigned_in_a_fixed_form() {
    let resumable = Resumable::new();
    let mut tokens = HashSet::new();
    for _ in 0..100 {
        let own = Event::text("x").with_id("own").unwrap();
        let items = [Item::Cursor(EventId::from(7)), Item::Event(own)];
        let source = resumable.wrap(stream::iter(items));
        let (texts, ids) = read(&mut subscribe(source, None).await.unwrap());
        assert_eq!(texts, ["cursor", "x", "finished"]);
        for (n, id) in ids.iter().enumerate() {
            let (token, number) = id.as_str().split_once('-').unwrap();
            assert_eq!((token.len(), number), (26, &*format!("{n:012}")));
            tokens.insert(token.to_owned());
        }
    }
    assert_eq!(tokens.len(), 100);
}

#[tokio::test]
async fn cursor_older_than_log_gets_gap() {
    let few = Resumable::builder().max_events(3).build();
    let small = Resumable::builder().max_bytes(3 * 424).build();
    for resumable in [few, small] {
        let mut first = subscribe(resumable.wrap(numbers(0..10)), None)
            .await
            .unwrap();
        let (_, ids) = read(&mut first);
        let mut again = resume_existing(&resumable, &ids[1]).await;
        let Poll::Ready(Some(Ok(Item::Gap(gap)))) = poll_next(&mut again) else {
            panic!("not a gap")
        };
        let expected = Gap::new(GapReason::Expired).requested(ids[1].clone());
        assert_eq!(*gap, expected.resumed(ids[7].clone()).missed(6));
        assert_eq!(read(&mut again).0, ["7", "8", "9", "finished"]);
        let (texts, _) = read(&mut resume_existing(&resumable, &ids[7]).await);
        assert_eq!(texts, ["7", "8", "9", "finished"]);
    }
}

#[tokio::test]
async fn reader_behind_the_log_gets_gap() {
    let resumable = Resumable::builder().max_events(3).build();
    let (sender, _, stream) = controlled_stream(&LiveCounter::default());
    let mut fast = subscribe(resumable.wrap(stream), None).await.unwrap();
    let (_, ids) = read(&mut fast);
    let mut slow = resume_existing(&resumable, &ids[0]).await;
    assert!(poll_next(&mut slow).is_pending());
    (0..10).for_each(|n| sender.send(n.to_string()).unwrap());
    assert_eq!(read(&mut fast).0.len(), 10, "whoever asks loses nothing");
    assert_eq!(read(&mut slow).0, ["lagged Some(7)", "7", "8", "9"]);
}

#[tokio::test]
async fn unknown_cursors_start_new_stream_after_gap() {
    let resumable = Resumable::new();
    let other = Resumable::new();
    let mut secret = subscribe(other.wrap(numbers(100..200)), None)
        .await
        .unwrap();
    let (_, ids) = read(&mut secret);
    let of_another = ids[50].clone();
    let altered = of_another.as_str().replace('0', "1");
    for (cursor, reason) in [
        (of_another.as_str(), GapReason::Expired),
        (&altered, GapReason::Expired),
        (&of_another.as_str()[..26], GapReason::Epoch),
        (&of_another.as_str()[1..], GapReason::Epoch),
        (&of_another.as_str().to_uppercase(), GapReason::Epoch),
        ("7", GapReason::Epoch),
    ] {
        let cursor = EventId::new(cursor).unwrap();
        let source = resumable.wrap(numbers(0..2));
        let mut subscriber = subscribe(source, Some(&cursor)).await.unwrap();
        let Poll::Ready(Some(Ok(Item::Gap(gap)))) = poll_next(&mut subscriber) else {
            panic!("not a gap")
        };
        let start = gap.resumed.clone().unwrap();
        let expected = Gap::new(reason).requested(cursor.clone());
        assert_eq!(*gap, expected.resumed(start.clone()), "{cursor}");
        assert_eq!(read(&mut subscriber).0, ["0", "1", "finished"]);
        let (texts, _) = read(&mut resume_existing(&resumable, &start).await);
        assert_eq!(texts, ["0", "1", "finished"], "resumable from the gap on");
    }
}

#[tokio::test]
async fn cursor_ahead_of_stream_gets_gap() {
    let resumable = Resumable::new();
    let (sender, _, stream) = controlled_stream(&LiveCounter::default());
    sender.send("a").unwrap();
    let mut first = subscribe(resumable.wrap(stream), None).await.unwrap();
    let (_, ids) = read(&mut first);
    let ahead = format!("{}00000000000v", &ids[0].as_str()[..27]);
    let ahead = EventId::new(ahead).unwrap();
    let mut subscriber = resume_existing(&resumable, &ahead).await;
    let Poll::Ready(Some(Ok(Item::Gap(gap)))) = poll_next(&mut subscriber) else {
        panic!("not a gap")
    };
    let expected = Gap::new(GapReason::Epoch).requested(ahead);
    assert_eq!(*gap, expected.resumed(ids[0].clone()));
    sender.send("b").unwrap();
    assert_eq!(read(&mut subscriber).0, ["a", "b"]);
}

#[tokio::test]
async fn only_the_owner_resumes_stream() {
    let resumable = Resumable::new();
    let source = resumable.wrap(numbers(0..2)).owner("alice");
    let (_, ids) = read(&mut subscribe(source, None).await.unwrap());
    for owner in [None, Some("bob"), Some("")] {
        let mut source = resumable.wrap(stream::iter(["new"]));
        if let Some(owner) = owner {
            source = source.owner(owner);
        }
        let mut subscriber = subscribe(source, Some(&ids[0])).await.unwrap();
        assert_eq!(read(&mut subscriber).0, ["expired None", "new", "finished"]);
    }
    let source = resumable.wrap(stream::iter(["new"])).owner("alice");
    let mut subscriber = subscribe(source, Some(&ids[0])).await.unwrap();
    assert_eq!(read(&mut subscriber).0, ["0", "1", "finished"]);
}

#[tokio::test]
async fn gaps_are_logged_and_cursors_are_not() {
    let resumable = Resumable::new();
    let items = [
        Item::Cursor(EventId::from(1)),
        Item::Event(Event::text("a")),
        Item::from(Gap::new(GapReason::Lagged).missed(3)),
        Item::Event(Event::text("b")),
    ];
    let source = resumable.wrap(stream::iter(items));
    let (texts, ids) = read(&mut subscribe(source, None).await.unwrap());
    assert_eq!(texts, ["cursor", "a", "lagged Some(3)", "b", "finished"]);
    assert_eq!(ids.len(), 4, "a gap has an id too");
    let (texts, _) = read(&mut resume_existing(&resumable, &ids[1]).await);
    assert_eq!(texts, ["lagged Some(3)", "b", "finished"]);
    let (texts, _) = read(&mut resume_existing(&resumable, &ids[2]).await);
    assert_eq!(texts, ["b", "finished"]);
}

/// The stream is always ready but yields no item for its reader, and still the reader lets other tasks run.
#[tokio::test]
async fn flood_of_cursors_yields_to_other_tasks() {
    let resumable = Resumable::new();
    let flood = stream::repeat_with(|| Item::Cursor(EventId::from(1)));
    let mut subscriber = subscribe(resumable.wrap(flood), None).await.unwrap();
    subscriber.next().await.unwrap().unwrap();
    let reading = tokio::time::timeout(Duration::from_millis(10), subscriber.next());
    assert!(reading.await.is_err(), "the reader must let the timer run");
}

#[tokio::test]
async fn finished_stream_is_not_restarted() {
    let resumable = Resumable::new();
    let count = LiveCounter::default();
    for last in [vec![], vec![Item::Finished]] {
        let items = ["a", "b"].map(|text| Item::Event(Event::text(text)));
        let source = resumable.wrap(count.wrap(stream::iter(items.into_iter().chain(last))));
        let mut first = subscribe(source, None).await.unwrap();
        let (texts, ids) = read(&mut first);
        assert_eq!(texts, ["cursor", "a", "b", "finished"]);
        assert!(matches!(poll_next(&mut first), Poll::Ready(None)), "fused");
        assert_eq!(count.get(), 0, "a stream that has ended is dropped");
        drop(first);
        for _ in 0..2 {
            let (texts, _) = read(&mut resume_existing(&resumable, &ids[1]).await);
            assert_eq!(texts, ["b", "finished"], "the last response is repeated");
            let source = resumable.wrap(stream::iter(["new"]));
            let refused = subscribe(source, Some(&ids[2])).await.unwrap_err();
            assert_eq!(refused.status(), 204);
        }
    }
}

#[tokio::test]
async fn ended_stream_is_followed_by_next_stream() {
    let resumable = Resumable::builder()
        .restart_policy(RestartPolicy::OnReconnect)
        .build();
    let source = resumable.wrap(numbers(0..2));
    let (texts, ids) = read(&mut subscribe(source, None).await.unwrap());
    assert_eq!(texts, ["cursor", "0", "1"]);
    let (texts, _) = read(&mut resume_existing(&resumable, &ids[1]).await);
    assert_eq!(texts, ["1"]);
    let source = resumable.wrap(stream::iter(["new"]));
    let mut next = subscribe(source, Some(&ids[2])).await.unwrap();
    assert_eq!(read(&mut next).0, ["cursor", "new"], "and no gap");

    let finishes = [Item::Event(Event::text("a")), Item::Finished];
    let source = resumable.wrap(stream::iter(finishes));
    let (_, ids) = read(&mut subscribe(source, None).await.unwrap());
    let source = resumable.wrap(stream::iter(["new"]));
    let refused = subscribe(source, Some(&ids[1])).await.unwrap_err();
    assert_eq!(refused.status(), 204);
}

#[tokio::test]
async fn failed_stream_differs_from_ended_stream() {
    let resumable = Resumable::builder().max_events(2).build();
    let count = LiveCounter::default();
    let (sender, _, stream) = controlled_stream::<Result<&str, BoxError>>(&count);
    let mut first = subscribe(resumable.wrap(stream), None).await.unwrap();
    let (_, mut ids) = read(&mut first);
    let mut second = resume_existing(&resumable, &ids[0]).await;
    assert!(poll_next(&mut second).is_pending());
    for text in ["a", "b", "c"] {
        sender.send(Ok(text)).unwrap();
    }
    let error = EventId::new("no id").unwrap_err();
    sender.send(Err(error.into())).unwrap();
    for _ in 0..3 {
        ids.extend(cursor_of(&first.next().await.unwrap()));
    }
    let error = first.next().await.unwrap().unwrap_err();
    let error: &tower_push::Error = error.downcast_ref().expect("a tower_push::Error");
    assert!(error.is_invalid_id());
    assert!(first.next().await.is_none());
    assert_eq!(count.get(), 0);
    let told = read(&mut second).0;
    assert_eq!(
        told,
        ["lagged Some(1)", "b", "c", &format!("error: {error}")]
    );
    drop((first, second));
    for (cursor, rest) in [
        (&ids[0], &["expired Some(1)", "b", "c"] as &[_]),
        (&ids[2], &["c"]),
        (&ids[3], &[]),
    ] {
        let source = resumable.wrap(stream::iter(["new"]));
        let mut again = subscribe(source, Some(cursor)).await.unwrap();
        let (texts, again) = read(&mut again);
        let new: &[_] = &["epoch None", "new", "finished"];
        assert_eq!(texts, [rest, new].concat());
        let (texts, _) = read(&mut resume_existing(&resumable, &again[rest.len()]).await);
        assert_eq!(texts, ["new", "finished"], "resumable from the gap on");
    }
}

#[tokio::test]
async fn panicking_stream_affects_no_other() {
    /// A stream that panics when it is polled, and again when it is dropped.
    struct PanickingStream(LiveCounter);
    impl Stream for PanickingStream {
        type Item = String;
        fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<String>> {
            panic!("a bug in a source")
        }
    }
    impl Drop for PanickingStream {
        fn drop(&mut self) {
            let _ = self.0.wrap(());
            panic!("another bug in a source")
        }
    }
    let resumable = Resumable::new();
    let source = resumable.wrap(numbers(0..1).chain(PanickingStream(LiveCounter::default())));
    let mut first = subscribe(source, None).await.unwrap();
    let ids: Vec<_> = [poll_next(&mut first), poll_next(&mut first)]
        .iter()
        .filter_map(|polled| match polled {
            Poll::Ready(Some(item)) => cursor_of(item),
            _ => None,
        })
        .collect();
    let mut second = resume_existing(&resumable, &ids[0]).await;
    assert!(catch_unwind(AssertUnwindSafe(|| poll_next(&mut first))).is_err());
    assert_eq!(read(&mut second).0, ["0", "error: the stream panicked"]);
    drop((first, second));
    let source = resumable.wrap(stream::iter(["new"]));
    let mut again = subscribe(source, Some(&ids[0])).await.unwrap();
    assert_eq!(read(&mut again).0, ["0", "epoch None", "new", "finished"]);
}

#[tokio::test(start_paused = true)]
async fn stream_with_panicking_drop_is_released() {
    struct PanickingStream(Arc<AtomicBool>);
    impl Stream for PanickingStream {
        type Item = String;
        fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<String>> {
            Poll::Pending
        }
    }
    impl Drop for PanickingStream {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
            panic!("a bug in a source")
        }
    }
    let resumable = Resumable::builder().max_parked_streams(1).build();
    let count = LiveCounter::default();
    let is_dropped = Arc::new(AtomicBool::new(false));
    let source = resumable.wrap(PanickingStream(is_dropped.clone()));
    drop(subscribe(source, None).await.unwrap());
    // Parking this stream evicts the other one.
    let source = resumable.wrap(count.wrap(stream::pending::<Event>()));
    drop(subscribe(source, None).await.unwrap());
    assert!(is_dropped.load(Ordering::SeqCst));
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(count.get(), 0);
}

#[tokio::test]
async fn rejection_passes_through_and_parks_nothing() {
    let resumable = Resumable::new();
    let refusing = source_fn(async |_| {
        Err::<stream::Empty<Event>, _>(Rejection::new(http::StatusCode::FORBIDDEN))
    });
    let refused = subscribe(resumable.wrap(refusing), None).await.unwrap_err();
    assert_eq!(refused.status(), 403);
    assert_eq!(resumable.counts(), Resumable::new().counts());
}

/// The wrapper has handled the cursor, so the inner plain stream must not begin with another gap.
#[tokio::test]
async fn wrapped_source_does_not_see_cursor() {
    let resumable = Resumable::new();
    let seen = source_fn(async |subscription: Subscription| {
        assert_eq!(subscription.start(), None);
        Ok(stream::iter(["x"]))
    });
    let cursor = EventId::from(7);
    let mut subscriber = subscribe(resumable.wrap(seen), Some(&cursor))
        .await
        .unwrap();
    assert_eq!(read(&mut subscriber).0, ["epoch None", "x", "finished"]);

    let push = Push::new(resumable.wrap(Push::new(stream::iter(["x"]))));
    let unreadable = Subscription::new(&get_request_head("/", &[("last-event-id", "a b")]), "test");
    let items = push.subscribe(unreadable).await.unwrap();
    let items: Vec<_> = items.map(describe_item).collect().await;
    assert_eq!(items, ["epoch None", "cursor", "x", "finished"]);
}

#[tokio::test(start_paused = true)]
async fn parked_stream_expires_without_a_request() {
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let resumable = Resumable::new();
    let count = LiveCounter::default();
    let mut ids = VecDeque::new();
    for _ in 0..3 {
        let source = resumable.wrap(count.wrap(numbers(0..3)));
        let mut subscriber = subscribe(source, None).await.unwrap();
        assert_eq!(
            tasks(),
            ids.len().min(1),
            "one timer for all, when something is parked"
        );
        ids.push_back(cursor_of(&subscriber.next().await.unwrap()).unwrap());
        drop(subscriber);
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    // The streams were parked at 0, 10 and 20 s, and now it is 30 s.
    let second = resume_existing(&resumable, &ids[1]).await;
    tokio::time::sleep(Duration::from_millis(29_990)).await;
    assert_eq!(count.get(), 3);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(count.get(), 2, "the first, at 60 s");
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(
        (count.get(), tasks()),
        (1, 0),
        "a stream that is read stays"
    );
    drop(second);
    tokio::time::sleep(Duration::from_millis(59_990)).await;
    assert_eq!((count.get(), tasks()), (1, 1), "a minute after it was left");
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!((count.get(), tasks()), (0, 0));

    let metrics = resumable.counts();
    assert_eq!(
        (metrics.active, metrics.parked, metrics.parked_bytes),
        (0, 0, 0)
    );
    assert_eq!(
        (metrics.resumed, metrics.parked_too_long, metrics.evicted),
        (1, 3, 0)
    );
    let source = resumable.wrap(stream::iter(["new"]));
    let mut late = subscribe(source, Some(&ids[0])).await.unwrap();
    assert_eq!(read(&mut late).0, ["expired None", "new", "finished"]);
}

#[tokio::test(start_paused = true)]
async fn expired_stream_is_not_resumed_before_timer_runs() {
    let resumable = Resumable::builder().park_timeout(Duration::ZERO).build();
    let mut first = subscribe(resumable.wrap(numbers(0..1)), None)
        .await
        .unwrap();
    let (_, ids) = read(&mut first);
    drop(first);
    let source = resumable.wrap(stream::iter(["new"]));
    let mut late = subscribe(source, Some(&ids[0])).await.unwrap();
    assert_eq!(read(&mut late).0, ["expired None", "new", "finished"]);
    for parked_for in [Duration::ZERO, Duration::MAX] {
        let resumable = Resumable::builder().park_timeout(parked_for).build();
        drop(
            subscribe(resumable.wrap(numbers(0..1)), None)
                .await
                .unwrap(),
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(
            resumable.counts().parked,
            usize::from(!parked_for.is_zero())
        );
    }
}

#[tokio::test]
async fn number_of_parked_streams_is_limited() {
    let resumable = Resumable::builder().max_parked_streams(3).build();
    let count = LiveCounter::default();
    let mut ids = Vec::new();
    let mut live = Vec::new();
    for _ in 0..5 {
        let source = resumable.wrap(count.wrap(numbers(0..3)));
        let mut subscriber = subscribe(source, None).await.unwrap();
        ids.push(cursor_of(&subscriber.next().await.unwrap()).unwrap());
        live.push(subscriber);
    }
    assert_eq!(count.get(), 5, "those that are read are not counted");
    live.into_iter().for_each(drop);
    assert_eq!(count.get(), 3);
    let metrics = resumable.counts();
    assert_eq!((metrics.active, metrics.parked, metrics.evicted), (0, 3, 2));
    for (n, id) in ids.iter().enumerate() {
        let source = resumable.wrap(stream::pending::<Event>());
        let mut subscriber = subscribe(source, Some(id)).await.unwrap();
        let expected: &[_] = match n {
            0 | 1 => &["expired None"],
            _ => &["0", "1", "2", "finished"],
        };
        assert_eq!(read(&mut subscriber).0, expected, "the oldest went");
        drop(subscriber);
        if n == 1 {
            // Each of the next streams takes the place of an older one.
            let source = resumable.wrap(count.wrap(numbers(0..3)));
            drop(subscribe(source, None).await.unwrap());
            break;
        }
    }
    let none = Resumable::builder().max_parked_streams(0).build();
    drop(
        subscribe(none.wrap(count.wrap(numbers(0..3))), None)
            .await
            .unwrap(),
    );
    assert_eq!((none.counts().parked, none.counts().evicted), (0, 1));
}

#[tokio::test]
async fn bytes_of_parked_streams_are_limited() {
    const EVENT_COST: usize = 1000 + 39 + 384;
    let resumable = Resumable::builder()
        .max_parked_bytes(10 * EVENT_COST)
        .build();
    let count = LiveCounter::default();
    for parked in [3, 6, 9, 9, 9] {
        let events = stream::repeat_with(|| "x".repeat(1000)).take(3);
        let source = resumable.wrap(count.wrap(events.chain(stream::pending())));
        let mut subscriber = subscribe(source, None).await.unwrap();
        assert_eq!(read(&mut subscriber).0.len(), 4);
        drop(subscriber);
        let metrics = resumable.counts();
        assert_eq!(metrics.parked_bytes, parked * EVENT_COST);
        assert_eq!(metrics.parked, count.get());
    }
    assert_eq!(resumable.counts().evicted, 2);
    let large = stream::repeat_with(|| "x".repeat(1000)).take(11);
    drop({
        let mut subscriber = subscribe(resumable.wrap(large), None).await.unwrap();
        read(&mut subscriber);
        subscriber
    });
    let metrics = resumable.counts();
    assert_eq!(
        (metrics.parked, metrics.parked_bytes),
        (0, 0),
        "too large alone"
    );
}

#[tokio::test(start_paused = true)]
async fn dropped_resumable_releases_its_streams() {
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let resumable = Resumable::new();
    let count = LiveCounter::default();
    drop(
        subscribe(resumable.wrap(count.wrap(numbers(0..3))), None)
            .await
            .unwrap(),
    );
    let source = resumable.wrap(count.wrap(numbers(0..3)));
    let mut live = subscribe(source, None).await.unwrap();
    drop(resumable);
    assert_eq!((count.get(), tasks()), (2, 1));
    assert_eq!(read(&mut live).0.len(), 5, "who reads, reads on");
    drop(live);
    tokio::task::yield_now().await;
    assert_eq!((count.get(), tasks()), (0, 0));
}

/// A runtime may shut down before the `Resumable` is dropped, and a client may disconnect outside of any runtime.
#[test]
fn resumable_outlives_its_runtimes() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
    };
    let resumable = Resumable::new();
    let count = LiveCounter::default();
    let begin = || subscribe(resumable.wrap(count.wrap(stream::pending::<Event>())), None);
    drop(begin().now_or_never().unwrap().unwrap());
    runtime().block_on(async { drop(begin().await.unwrap()) });
    assert_eq!((count.get(), resumable.counts().parked), (2, 2));
    runtime().block_on(async {
        drop(begin().await.unwrap());
        tokio::time::sleep(Duration::from_secs(180)).await;
        assert_eq!(count.get(), 0, "the next runtime has the timer");
    });
}

/// The stalled reader was polled once and is not polled again, as hyper does with a client that does not read.
#[tokio::test]
async fn stalled_reader_does_not_block_others() {
    let resumable = Resumable::new();
    let (sender, _, stream) = controlled_stream(&LiveCounter::default());
    let mut stalled = subscribe(resumable.wrap(stream), None).await.unwrap();
    let (_, ids) = read(&mut stalled);
    let mut well = resume_existing(&resumable, &ids[0]).await;
    let reading = tokio::spawn(async move {
        let mut texts = Vec::new();
        while texts.len() < 100 {
            texts.push(describe_item(well.next().await.unwrap()));
        }
        texts
    });
    for n in 0..100 {
        // Every other time the stalled reader is the last one to poll.
        if n % 2 == 0 {
            assert!(poll_to_pending(&mut stalled));
        }
        sender.send(n.to_string()).unwrap();
        tokio::task::yield_now().await;
    }
    let texts = tokio::time::timeout(TEST_TIMEOUT, reading)
        .await
        .unwrap()
        .unwrap();
    assert!(texts.into_iter().eq((0..100).map(|n| n.to_string())));
}

fn poll_to_pending(subscriber: &mut ResumableStream) -> bool {
    while let Poll::Ready(item) = poll_next(subscriber) {
        assert!(item.is_some());
    }
    true
}

#[tokio::test]
async fn dropped_reader_passes_its_wake_up_on() {
    let resumable = Resumable::new();
    let (sender, _, stream) = controlled_stream(&LiveCounter::default());
    let mut first = subscribe(resumable.wrap(stream), None).await.unwrap();
    let (_, ids) = read(&mut first);
    let mut second = resume_existing(&resumable, &ids[0]).await;
    let reading = tokio::spawn(async move { describe_item(second.next().await.unwrap()) });
    tokio::task::yield_now().await;
    assert!(
        poll_next(&mut first).is_pending(),
        "the first reader must be the last one to poll"
    );
    drop(first);
    sender.send("a").unwrap();
    assert_eq!(
        tokio::time::timeout(TEST_TIMEOUT, reading)
            .await
            .unwrap()
            .unwrap(),
        "a"
    );
}

/// Several readers of one stream subscribe, stall, leave and resume at random on two threads, while a third thread sends its events.
/// Each reader gets each event once, in order, and none waits for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_readers_get_each_event_once() {
    const ROUNDS: u64 = 150;
    const EVENTS: u64 = 60;
    const READERS: u64 = 3;
    let resumable = Resumable::new();
    let count = LiveCounter::default();
    for round in 0..ROUNDS {
        let (sender, _, stream) = controlled_stream(&count);
        let mut first = subscribe(resumable.wrap(stream), None).await.unwrap();
        let id = cursor_of(&first.next().await.unwrap()).unwrap();
        let readers = (0..READERS).map(|reader| {
            let (resumable, id) = (resumable.clone(), id.clone());
            let random = SeededRandom(1 + round * READERS + reader);
            tokio::spawn(tokio::time::timeout(
                TEST_TIMEOUT,
                read_in_short_sessions(resumable, id, random),
            ))
        });
        let readers: Vec<_> = readers.collect();
        let stalling = round % 2 == 0;
        let held = stalling.then_some(first);
        let feeding = std::thread::spawn(move || {
            let mut random = SeededRandom(round + 1);
            for n in 0..EVENTS {
                sender.send(n.to_string()).unwrap();
                if random.below(4) == 0 {
                    std::thread::yield_now();
                }
            }
        });
        for reader in readers {
            let texts = reader.await.unwrap().expect("a wake-up was lost");
            assert!(texts.into_iter().eq((0..EVENTS).map(|n| n.to_string())));
        }
        feeding.join().unwrap();
        drop(held);
    }
    let metrics = resumable.counts();
    assert_eq!((metrics.active, metrics.parked), (0, ROUNDS as usize));
    assert_eq!(count.get(), 0, "all have ended");
}

async fn read_in_short_sessions(
    resumable: Resumable,
    mut id: EventId,
    mut random: SeededRandom,
) -> Vec<String> {
    let mut texts = Vec::new();
    loop {
        let unpolled = stream::poll_fn(|_| -> Poll<Option<&str>> { panic!("polled") });
        let Ok(mut subscriber) = subscribe(resumable.wrap(unpolled), Some(&id)).await else {
            return texts;
        };
        for _ in 0..random.below(8) {
            match random.below(5) {
                // Polls once, and leaves whether there is an item or not.
                0 => match poll_fn(|cx| Poll::Ready(subscriber.poll_next_unpin(cx))).await {
                    Poll::Ready(Some(item)) => {
                        if !record_item(item, &mut id, &mut texts) {
                            return texts;
                        }
                    }
                    Poll::Ready(None) => unreachable!("the stream finishes first"),
                    Poll::Pending => break,
                },
                1 => tokio::task::yield_now().await,
                _ => {
                    let item = subscriber.next().await.unwrap();
                    if !record_item(item, &mut id, &mut texts) {
                        return texts;
                    }
                }
            }
        }
    }
}

/// Appends an event's text to `texts`, and moves `id` to the item's cursor. Returns whether the stream has finished.
fn record_item(item: Result<Item, BoxError>, id: &mut EventId, texts: &mut Vec<String>) -> bool {
    let Some(next) = cursor_of(&item) else {
        assert_eq!(describe_item(item), "finished");
        return false;
    };
    *id = next;
    texts.push(describe_item(item));
    true
}

/// Each request of a polling client creates a new stream and reads the events that are ready. Any response may be lost.
#[tokio::test]
async fn polling_client_loses_nothing() {
    const EVENTS: u64 = 20_000;
    let resumable = Resumable::new();
    let made = LiveCounter::default();
    let mut random = SeededRandom(7);
    let mut id = None;
    let mut next = 0;
    let (mut hops, mut lost) = (0, 0);
    'polling: loop {
        hops += 1;
        let source = resumable.wrap(made.wrap(numbers(0..EVENTS)));
        let mut subscriber = match subscribe(source, id.as_ref()).await {
            Ok(subscriber) => subscriber,
            Err(refused) => {
                assert_eq!(refused.status(), 204);
                break;
            }
        };
        assert!(made.get() <= 1, "the new stream must be discarded");
        let mut response = Vec::new();
        for _ in 0..=random.below(16) {
            response.extend(subscriber.next().await);
        }
        // The first response must arrive, because the client has no cursor before it.
        if id.is_some() && random.below(3) == 0 {
            lost += 1;
            continue;
        }
        for item in response {
            let Some(cursor) = cursor_of(&item) else {
                assert_eq!(describe_item(item), "finished");
                break 'polling;
            };
            id = Some(cursor);
            match describe_item(item).as_str() {
                "cursor" => assert_eq!(next, 0),
                text => {
                    assert_eq!(text, next.to_string());
                    next += 1;
                }
            }
        }
    }
    assert_eq!(next, EVENTS);
    assert!(hops > 2000 && lost > 500, "{hops} hops, {lost} lost");
    assert_eq!(made.get(), 0);
}

/// A client over sockets changes the transport and the connection again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switching_client_reads_each_event_once() {
    const CONNECTIONS: usize = 1000;
    let count = LiveCounter::default();
    let calls = Arc::new(AtomicUsize::new(0));
    let (calling, counting) = (calls.clone(), count.clone());
    let feed = source_fn(async move |_| {
        calling.fetch_add(1, Ordering::SeqCst);
        let mut n = 0_u64;
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let ticks = tokio_stream::wrappers::IntervalStream::new(ticks);
        // The numbers come in bursts of up to 20.
        let numbers = ticks.flat_map(move |_| {
            let first = n;
            n += 1 + n * 7 % 20;
            stream::iter((first..n).map(|n| n.to_string()))
        });
        Ok(counting.wrap(numbers))
    });
    // The log holds more than the sockets' buffers, so it still has every event that is lost with a connection.
    let resumable = Resumable::builder()
        .max_events(1 << 20)
        .max_bytes(64 << 20)
        .build();
    let service = tower_push::service(resumable.wrap(feed)).transport(Negotiate::new());
    let server = TestServer::start(service).await;

    let mut random = SeededRandom(99);
    let mut http2 = HttpConnection::connect(&server, HttpVersion::Http2).await;
    let mut id = String::new();
    let mut next = 0;
    for hop in 0..CONNECTIONS {
        let headers = [("last-event-id", id.clone())];
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, id)| (*name, id.as_str()))
            .collect();
        let version = HttpVersion::ALL[usize::from(random.below(8) == 0)];
        let mut http1;
        let client = match version {
            HttpVersion::Http1 => {
                http1 = HttpConnection::connect(&server, version).await;
                &mut http1
            }
            HttpVersion::Http2 => &mut http2,
        };
        let is_sse = random.below(2) == 0;
        let path = if is_sse {
            "/?transport=sse"
        } else {
            "/?transport=ndjson"
        };
        let mut response = client.get(path, &headers).await;
        assert_eq!(response.head.status, 200);
        let mut bytes = Vec::new();
        // The first response must arrive, because the client needs a cursor to reconnect.
        let frames = random.below(4) + u64::from(hop == 0) * 3;
        for _ in 0..frames {
            bytes.extend(response.next_chunk().await.unwrap().unwrap());
        }
        // The response is cut off anywhere.
        if hop > 0 && random.below(2) == 0 {
            bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
        }
        drop(response);
        let read = if is_sse {
            parse_sse(&bytes)
        } else {
            parse_ndjson(&bytes)
        };
        for (data, cursor) in read {
            if let Some(data) = data {
                assert_eq!(data, next.to_string(), "hop {hop}");
                next += 1;
            }
            id = cursor;
        }
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1, "one stream, all the way");
    assert!(next > CONNECTIONS as u64, "{next} events");
    assert_eq!(count.get(), 1);
    drop(server);
    drop(resumable);
    drop(http2);
    count.wait_for(0).await;
}

fn parse_sse(bytes: &[u8]) -> Vec<(Option<String>, String)> {
    let parser = EventStreamParser::parse(bytes);
    let messages = parser.messages.into_iter();
    let read = messages.map(|m| {
        assert_eq!(m.event_type, "message", "{}", m.data);
        (Some(m.data), m.last_event_id)
    });
    let mut read: Vec<_> = read.collect();
    if read.is_empty() && !parser.last_event_id.is_empty() {
        read.push((None, parser.last_event_id));
    }
    read
}

fn parse_ndjson(bytes: &[u8]) -> Vec<(Option<String>, String)> {
    let text = std::str::from_utf8(bytes).unwrap();
    // The bytes after the last line break are an incomplete record.
    let lines = text
        .rsplit_once('\n')
        .map_or("", |(whole, _)| whole)
        .lines();
    let records = lines.filter(|line| !line.is_empty()).map(|line| {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(record.get("gap").is_none(), "{line}");
        let field = |name: &str| Some(record.get(name)?.as_str()?.to_owned());
        (
            field("data"),
            field("id").or_else(|| field("cursor")).expect(line),
        )
    });
    records.collect()
}

/// The client reconnects while the server still considers its old connection alive.
#[tokio::test]
async fn client_resumes_while_old_connection_hangs() {
    let resumable = Resumable::new();
    let (sender, _, stream) = controlled_stream(&LiveCounter::default());
    let once = Arc::new(std::sync::Mutex::new(Some(stream)));
    let feed = source_fn(async move |_| {
        let stream = once.lock().unwrap().take();
        Ok(stream.expect("the stream must be created only once"))
    });
    let server = TestServer::start(tower_push::service(resumable.wrap(feed))).await;
    let asking = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let (hanging, read) = send_raw_http1(&server, asking, "\n\n").await;
    let id =
        EventStreamParser::parse(read.split_once("\r\n\r\n").unwrap().1.as_bytes()).last_event_id;
    for version in HttpVersion::ALL {
        let mut client = HttpConnection::connect(&server, version).await;
        let mut response = client.get("/", &[("last-event-id", &id)]).await;
        sender.send("x").unwrap();
        let mut parser = EventStreamParser::default();
        while parser.messages.is_empty() {
            parser.feed(&response.next_chunk().await.unwrap().unwrap());
        }
        assert_eq!(parser.messages[0].data, "x");
        assert_eq!(resumable.counts().active, 1);
    }
    drop(hanging);
}

/// Dropping a payload may run any code, which may use another reader of the stream or the `Resumable`.
#[test]
fn payload_is_dropped_outside_locks() {
    struct Owner(Resumable, Arc<Mutex<Option<ResumableStream>>>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            b"owned"
        }
    }
    impl Drop for Owner {
        fn drop(&mut self) {
            assert_eq!(self.0.counts().active, 1);
            let mut other = self.1.lock().unwrap().take().unwrap();
            assert!(poll_next(&mut other).is_ready());
        }
    }

    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let resumable = Resumable::builder().max_events(1).build();
        let other = Arc::new(Mutex::new(None));
        let owned = Bytes::from_owner(Owner(resumable.clone(), other.clone()));
        let events = [Event::binary(owned), Event::text("a"), Event::text("b")];
        let events = stream::iter(events).chain(stream::pending());
        let mut subscriber = subscribe(resumable.wrap(events), None)
            .now_or_never()
            .unwrap()
            .unwrap();
        let Some(id) = cursor_of(&next_ready_item(&mut subscriber)) else {
            panic!("not a cursor");
        };
        let second = resume_existing(&resumable, &id).now_or_never().unwrap();
        *other.lock().unwrap() = Some(second);
        drop(next_ready_item(&mut subscriber));
        // The log drops the event whose payload owns the reader.
        drop(next_ready_item(&mut subscriber));
        assert!(other.lock().unwrap().is_none());
        done.send(()).unwrap();
    });
    is_done.recv_timeout(TEST_TIMEOUT).expect("a deadlock");
}

fn next_ready_item(subscriber: &mut ResumableStream) -> Result<Item, BoxError> {
    match poll_next(subscriber) {
        Poll::Ready(Some(item)) => item,
        other => panic!("{other:?}"),
    }
}

/// Each poll is a request, whose handler creates a new stream. All streams but the first are discarded.
#[tokio::test]
async fn plain_stream_is_polled_without_loss() {
    let (begun, alive) = (Arc::new(AtomicUsize::new(0)), LiveCounter::default());
    let handler = {
        let (begun, alive) = (begun.clone(), alive.clone());
        tower::service_fn(move |_: http::Request<hyper::body::Incoming>| {
            let begun = begun.clone();
            // The count grows at the first poll of a stream. A discarded stream is never polled.
            let numbers = stream::once(async move { begun.fetch_add(1, Ordering::SeqCst) })
                .flat_map(|_| stream::iter(1..=200))
                .map(|n: u32| n.to_string());
            let push = Push::new(alive.wrap(numbers));
            async { Ok::<_, std::convert::Infallible>(push) }
        })
    };
    let long_poll = LongPoll::new().max_events(7);
    let server = TestServer::start(TransportLayer::with(long_poll).layer(handler)).await;
    for version in HttpVersion::ALL {
        let mut client = HttpConnection::connect(&server, version).await;
        let (mut cursor, mut read) = (String::new(), Vec::new());
        for poll in 0.. {
            let answer = client.get("/", &[("last-event-id", &cursor)]).await;
            if answer.head.status == 204 {
                break;
            }
            let next = answer.header("last-event-id").unwrap().to_owned();
            let (body, ended) = answer.read_to_end().await;
            ended.unwrap();
            if poll % 3 == 2 {
                // This response counts as lost, and the same cursor must get it again.
                continue;
            }
            cursor = next;
            let batch: Vec<serde_json::Value> = serde_json::from_slice(&body).unwrap();
            assert!(
                batch.iter().all(|record| record.get("gap").is_none()),
                "{batch:?}"
            );
            let data = batch.iter().filter_map(|record| record.get("data"));
            read.extend(data.map(|data| data.as_str().unwrap().parse::<u32>().unwrap()));
        }
        assert_eq!(read, (1..=200).collect::<Vec<_>>(), "{version:?}");
    }
    assert_eq!(
        begun.load(Ordering::SeqCst),
        2,
        "one stream for each client"
    );
    alive.wait_for(0).await;
}

/// A browser's cache may send the cursor of another user of that browser.
#[tokio::test]
async fn poll_resumes_only_for_its_owner() {
    let long_poll = LongPoll::new().wait_time(Duration::ZERO);
    let poll = async |path: &str, headers: &[(&str, &str)], text: &'static str| {
        let source = stream::iter([text]).chain(stream::pending());
        let mut head = get_request_head(path, headers);
        let response = Transport::respond(&long_poll, &mut head, Push::new(source)).await;
        let tag = response.headers()["etag"].to_str().unwrap().to_owned();
        (tag, testkit::body_text(response.into_body()).await)
    };
    let alice = ("authorization", "Bearer alice");
    let (tag, first) = poll("/mine", &[alice], "alice's").await;
    assert!(first.contains("alice's"), "{first}");
    let cached = ("if-none-match", &*tag);
    let (_, again) = poll("/mine", &[alice, cached], "new").await;
    assert_eq!(
        again.trim_end(),
        "[]",
        "her own stream, and nothing more yet"
    );
    for (path, authorization) in [("/mine", "Bearer bob"), ("/other", "Bearer alice")] {
        let (_, other) = poll(path, &[("authorization", authorization), cached], "new").await;
        assert!(
            other.contains("\"gap\"") && other.contains("new"),
            "{other}"
        );
    }
}
