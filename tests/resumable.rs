//! Resumable streams: parked when their client goes, taken up by its cursor, let go in time, and no other client's.

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
use futures_util::{FutureExt, Stream, StreamExt, stream, task::noop_waker};
use testkit::{
    HttpClient, HttpVersion, LiveCounter, TEST_TIMEOUT, TestServer, describe_item,
    event_stream::EventStreamParser, get_request_head, send_raw_http1,
};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::Layer;
use tower_push::{
    BoxError, Event, EventId, Gap, GapReason, Item, Push, PushSource, Resumable,
    layer::TransportLayer,
    source::{
        Rejection, StartPosition, Subscription,
        resumable::{EndPolicy, ResumableSource, ResumableStream},
        source_fn,
    },
    transport::{LongPoll, Negotiate, Transport},
};

/// One subscription, with a cursor or without.
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

/// As [`subscribe`], where the client's stream must be there: the one that comes with the request must not be touched.
async fn take_up(resumable: &Resumable, cursor: &EventId) -> ResumableStream {
    let unwanted = stream::poll_fn(|_| -> Poll<Option<&str>> { panic!("polled") });
    subscribe(resumable.wrap(unwanted), Some(cursor))
        .await
        .unwrap()
}

/// A stream whose items the test sends, and how often it was polled.
fn fed<T>(
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

fn poll(subscriber: &mut ResumableStream) -> Poll<Option<Result<Item, BoxError>>> {
    subscriber.poll_next_unpin(&mut Context::from_waker(&noop_waker()))
}

/// All that is ready, in short, and the cursors of each.
fn read(subscriber: &mut ResumableStream) -> (Vec<String>, Vec<EventId>) {
    let (mut texts, mut ids) = (Vec::new(), Vec::new());
    while let Poll::Ready(Some(item)) = poll(subscriber) {
        ids.extend(cursor(&item));
        texts.push(describe_item(item));
    }
    (texts, ids)
}

fn cursor(item: &Result<Item, BoxError>) -> Option<EventId> {
    match item {
        Ok(Item::Event(event)) => event.id().cloned(),
        Ok(Item::Gap(gap)) => gap.resumed.clone(),
        Ok(Item::Cursor(id)) => Some(id.clone()),
        _ => None,
    }
}

/// A fixed sequence of numbers that look random.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

#[tokio::test]
async fn a_client_that_comes_back_goes_on_where_it_was() {
    let resumable = Resumable::new();
    assert!(resumable.wrap(numbers(0..1)).is_resumable());
    let count = LiveCounter::default();
    let (sender, _, stream) = fed(&count);
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
        let mut again = take_up(&resumable, id).await;
        let (texts, again) = read(&mut again);
        assert_eq!(texts, rest, "behind {after:?}");
        assert_eq!(again, ids[ids.len() - rest.len()..], "under the same ids");
    }
    drop(first);
    assert_eq!(count.get(), 1, "parked");
    sender.send("d").unwrap();
    let mut again = take_up(&resumable, &ids[2]).await;
    assert_eq!(read(&mut again).0, ["c", "d"]);
    assert_eq!(resumable.counts().resumed, 5);
}

/// Before its first event, and before its first poll.
#[tokio::test]
async fn a_connection_that_drops_at_once_is_resumed() {
    let resumable = Resumable::new();
    let mut first = subscribe(resumable.wrap(numbers(0..3)), None)
        .await
        .unwrap();
    let id = cursor(&first.next().await.unwrap()).unwrap();
    drop(first);
    drop(take_up(&resumable, &id).await);
    let (texts, _) = read(&mut take_up(&resumable, &id).await);
    assert_eq!(texts, ["0", "1", "2", "finished"]);
}

#[tokio::test]
async fn the_source_of_a_request_with_a_cursor_is_not_asked() {
    let resumable = Resumable::new();
    let mut first = subscribe(resumable.wrap(stream::pending::<Event>()), None)
        .await
        .unwrap();
    let id = cursor(&first.next().await.unwrap()).unwrap();
    let unasked = source_fn(async |_| -> Result<stream::Empty<Event>, _> { panic!("asked") });
    drop(subscribe(resumable.wrap(unasked), Some(&id)).await.unwrap());
}

#[tokio::test]
async fn a_parked_stream_is_not_polled() {
    let resumable = Resumable::new();
    let (sender, polls, stream) = fed(&LiveCounter::default());
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
    let (texts, _) = read(&mut take_up(&resumable, &ids[1]).await);
    assert!(texts.into_iter().eq((1..=100).map(|n| n.to_string())));
}

/// A stream is asked for one event at a time, and only as fast as its client reads.
#[tokio::test]
async fn nothing_is_read_ahead() {
    let resumable = Resumable::new();
    let (sender, polls, stream) = fed(&LiveCounter::default());
    (0..10).for_each(|n| sender.send(n.to_string()).unwrap());
    let mut first = subscribe(resumable.wrap(stream), None).await.unwrap();
    for read in 0..5 {
        assert!(poll(&mut first).is_ready());
        assert_eq!(polls.load(Ordering::SeqCst), read);
    }
}

#[tokio::test]
async fn ids_are_the_streams_own_and_of_a_form() {
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
async fn a_cursor_older_than_the_log_is_told_what_is_missing() {
    let few = Resumable::builder().max_events(3).build();
    let small = Resumable::builder().max_bytes(3 * 40).build();
    for resumable in [few, small] {
        let mut first = subscribe(resumable.wrap(numbers(0..10)), None)
            .await
            .unwrap();
        let (_, ids) = read(&mut first);
        let mut again = take_up(&resumable, &ids[1]).await;
        let Poll::Ready(Some(Ok(Item::Gap(gap)))) = poll(&mut again) else {
            panic!("a gap first")
        };
        let expected = Gap::new(GapReason::Expired).requested(ids[1].clone());
        assert_eq!(gap, expected.resumed(ids[7].clone()).missed(6));
        assert_eq!(read(&mut again).0, ["7", "8", "9", "finished"]);
        let (texts, _) = read(&mut take_up(&resumable, &ids[7]).await);
        assert_eq!(texts, ["7", "8", "9", "finished"]);
    }
}

#[tokio::test]
async fn a_reader_that_another_has_left_behind_is_told_so() {
    let resumable = Resumable::builder().max_events(3).build();
    let (sender, _, stream) = fed(&LiveCounter::default());
    let mut fast = subscribe(resumable.wrap(stream), None).await.unwrap();
    let (_, ids) = read(&mut fast);
    let mut slow = take_up(&resumable, &ids[0]).await;
    assert!(poll(&mut slow).is_pending());
    (0..10).for_each(|n| sender.send(n.to_string()).unwrap());
    assert_eq!(read(&mut fast).0.len(), 10, "whoever asks loses nothing");
    assert_eq!(read(&mut slow).0, ["lagged Some(7)", "7", "8", "9"]);
}

#[tokio::test]
async fn cursors_of_no_stream_begin_the_new_one_behind_a_gap() {
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
        let Poll::Ready(Some(Ok(Item::Gap(gap)))) = poll(&mut subscriber) else {
            panic!("a gap first")
        };
        let start = gap.resumed.clone().unwrap();
        let expected = Gap::new(reason).requested(cursor.clone());
        assert_eq!(gap, expected.resumed(start.clone()), "{cursor}");
        assert_eq!(read(&mut subscriber).0, ["0", "1", "finished"]);
        let (texts, _) = read(&mut take_up(&resumable, &start).await);
        assert_eq!(texts, ["0", "1", "finished"], "resumable from the gap on");
    }
}

#[tokio::test]
async fn a_cursor_ahead_of_its_stream_is_told_so() {
    let resumable = Resumable::new();
    let (sender, _, stream) = fed(&LiveCounter::default());
    sender.send("a").unwrap();
    let mut first = subscribe(resumable.wrap(stream), None).await.unwrap();
    let (_, ids) = read(&mut first);
    let ahead = format!("{}00000000000v", &ids[0].as_str()[..27]);
    let ahead = EventId::new(ahead).unwrap();
    let mut subscriber = take_up(&resumable, &ahead).await;
    let Poll::Ready(Some(Ok(Item::Gap(gap)))) = poll(&mut subscriber) else {
        panic!("a gap first")
    };
    let expected = Gap::new(GapReason::Epoch).requested(ahead);
    assert_eq!(gap, expected.resumed(ids[0].clone()));
    sender.send("b").unwrap();
    assert_eq!(read(&mut subscriber).0, ["a", "b"]);
}

#[tokio::test]
async fn only_the_owner_takes_a_stream_up() {
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
async fn gaps_keep_their_place_and_bare_cursors_have_none() {
    let resumable = Resumable::new();
    let items = [
        Item::Cursor(EventId::from(1)),
        Item::Event(Event::text("a")),
        Item::Gap(Gap::new(GapReason::Lagged).missed(3)),
        Item::Event(Event::text("b")),
    ];
    let source = resumable.wrap(stream::iter(items));
    let (texts, ids) = read(&mut subscribe(source, None).await.unwrap());
    assert_eq!(texts, ["cursor", "a", "lagged Some(3)", "b", "finished"]);
    assert_eq!(ids.len(), 4, "a gap has an id too");
    let (texts, _) = read(&mut take_up(&resumable, &ids[1]).await);
    assert_eq!(texts, ["lagged Some(3)", "b", "finished"]);
    let (texts, _) = read(&mut take_up(&resumable, &ids[2]).await);
    assert_eq!(texts, ["b", "finished"]);
}

/// Nothing that the stream says makes an item, and still others run.
#[tokio::test]
async fn a_flood_of_bare_cursors_lets_others_run() {
    let resumable = Resumable::new();
    let flood = stream::repeat_with(|| Item::Cursor(EventId::from(1)));
    let mut subscriber = subscribe(resumable.wrap(flood), None).await.unwrap();
    subscriber.next().await.unwrap().unwrap();
    let reading = tokio::time::timeout(Duration::from_millis(10), subscriber.next());
    assert!(reading.await.is_err(), "the timer had its turn");
}

#[tokio::test]
async fn a_stream_that_ended_is_not_begun_again() {
    let resumable = Resumable::new();
    let count = LiveCounter::default();
    for last in [vec![], vec![Item::Finished]] {
        let items = ["a", "b"].map(|text| Item::Event(Event::text(text)));
        let source = resumable.wrap(count.wrap(stream::iter(items.into_iter().chain(last))));
        let mut first = subscribe(source, None).await.unwrap();
        let (texts, ids) = read(&mut first);
        assert_eq!(texts, ["cursor", "a", "b", "finished"]);
        assert!(matches!(poll(&mut first), Poll::Ready(None)), "fused");
        assert_eq!(count.get(), 0, "a stream that has ended is dropped");
        drop(first);
        for _ in 0..2 {
            let (texts, _) = read(&mut take_up(&resumable, &ids[1]).await);
            assert_eq!(texts, ["b", "finished"], "the last response is repeated");
            let source = resumable.wrap(stream::iter(["new"]));
            let refused = subscribe(source, Some(&ids[2])).await.unwrap_err();
            assert_eq!(refused.status(), 204);
        }
    }
}

#[tokio::test]
async fn an_end_for_now_is_followed_by_the_next_stream() {
    let resumable = Resumable::builder().end_policy(EndPolicy::Restart).build();
    let source = resumable.wrap(numbers(0..2));
    let (texts, ids) = read(&mut subscribe(source, None).await.unwrap());
    assert_eq!(texts, ["cursor", "0", "1"]);
    let (texts, _) = read(&mut take_up(&resumable, &ids[1]).await);
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
async fn a_stream_that_fails_is_told_from_one_that_ended() {
    let resumable = Resumable::builder().max_events(2).build();
    let count = LiveCounter::default();
    let (sender, _, stream) = fed::<Result<&str, BoxError>>(&count);
    let mut first = subscribe(resumable.wrap(stream), None).await.unwrap();
    let (_, mut ids) = read(&mut first);
    let mut second = take_up(&resumable, &ids[0]).await;
    assert!(poll(&mut second).is_pending());
    for text in ["a", "b", "c"] {
        sender.send(Ok(text)).unwrap();
    }
    let error = EventId::new("no id").unwrap_err();
    sender.send(Err(error.into())).unwrap();
    for _ in 0..3 {
        ids.extend(cursor(&first.next().await.unwrap()));
    }
    let error = first.next().await.unwrap().unwrap_err();
    let error: &tower_push::Error = error.downcast_ref().expect("the error itself");
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
        let (texts, _) = read(&mut take_up(&resumable, &again[rest.len()]).await);
        assert_eq!(texts, ["new", "finished"], "resumable from the gap on");
    }
}

#[tokio::test]
async fn a_stream_that_panics_takes_nobody_with_it() {
    /// A second panic, when it is dropped.
    struct Panics(LiveCounter);
    impl Stream for Panics {
        type Item = String;
        fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<String>> {
            panic!("a bug in a source")
        }
    }
    impl Drop for Panics {
        fn drop(&mut self) {
            let _ = self.0.wrap(());
            panic!("another bug in a source")
        }
    }
    let resumable = Resumable::new();
    let source = resumable.wrap(numbers(0..1).chain(Panics(LiveCounter::default())));
    let mut first = subscribe(source, None).await.unwrap();
    let ids: Vec<_> = [poll(&mut first), poll(&mut first)]
        .iter()
        .filter_map(|polled| match polled {
            Poll::Ready(Some(item)) => cursor(item),
            _ => None,
        })
        .collect();
    let mut second = take_up(&resumable, &ids[0]).await;
    assert!(catch_unwind(AssertUnwindSafe(|| poll(&mut first))).is_err());
    assert_eq!(read(&mut second).0, ["0", "error: the stream panicked"]);
    drop((first, second));
    let source = resumable.wrap(stream::iter(["new"]));
    let mut again = subscribe(source, Some(&ids[0])).await.unwrap();
    assert_eq!(read(&mut again).0, ["0", "epoch None", "new", "finished"]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_drop_panics_is_let_go_like_others() {
    struct Panics(Arc<AtomicBool>);
    impl Stream for Panics {
        type Item = String;
        fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<String>> {
            Poll::Pending
        }
    }
    impl Drop for Panics {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
            panic!("a bug in a source")
        }
    }
    let resumable = Resumable::builder().max_parked_streams(1).build();
    let count = LiveCounter::default();
    let is_dropped = Arc::new(AtomicBool::new(false));
    let source = resumable.wrap(Panics(is_dropped.clone()));
    drop(subscribe(source, None).await.unwrap());
    // Evicts the other.
    let source = resumable.wrap(count.wrap(stream::pending::<Event>()));
    drop(subscribe(source, None).await.unwrap());
    assert!(is_dropped.load(Ordering::SeqCst));
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(count.get(), 0);
}

#[tokio::test]
async fn a_refusal_passes_through_and_leaves_nothing() {
    let resumable = Resumable::new();
    let refusing = source_fn(async |_| {
        Err::<stream::Empty<Event>, _>(Rejection::new(http::StatusCode::FORBIDDEN))
    });
    let refused = subscribe(resumable.wrap(refusing), None).await.unwrap_err();
    assert_eq!(refused.status(), 403);
    assert_eq!(resumable.counts(), Resumable::new().counts());
}

/// The source has dealt with the cursor: another gap from a plain stream would be one too many.
#[tokio::test]
async fn what_is_wrapped_does_not_see_the_cursor() {
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
async fn a_parked_stream_expires_without_anyone_asking() {
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
        ids.push_back(cursor(&subscriber.next().await.unwrap()).unwrap());
        drop(subscriber);
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    // Parked at 0, 10 and 20 s; it is 30 s now.
    let second = take_up(&resumable, &ids[1]).await;
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
        (metrics.resumed, metrics.expired, metrics.evicted),
        (1, 3, 0)
    );
    let source = resumable.wrap(stream::iter(["new"]));
    let mut late = subscribe(source, Some(&ids[0])).await.unwrap();
    assert_eq!(read(&mut late).0, ["expired None", "new", "finished"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_due_is_not_taken_up_even_if_the_timer_is_late() {
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
async fn more_than_so_many_are_not_parked() {
    let resumable = Resumable::builder().max_parked_streams(3).build();
    let count = LiveCounter::default();
    let mut ids = Vec::new();
    let mut live = Vec::new();
    for _ in 0..5 {
        let source = resumable.wrap(count.wrap(numbers(0..3)));
        let mut subscriber = subscribe(source, None).await.unwrap();
        ids.push(cursor(&subscriber.next().await.unwrap()).unwrap());
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
            // Its successors came in place of others.
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
async fn more_than_so_many_bytes_are_not_parked() {
    const EVENT: usize = 1000 + 39;
    let resumable = Resumable::builder().max_parked_bytes(10 * EVENT).build();
    let count = LiveCounter::default();
    for parked in [3, 6, 9, 9, 9] {
        let events = stream::repeat_with(|| "x".repeat(1000)).take(3);
        let source = resumable.wrap(count.wrap(events.chain(stream::pending())));
        let mut subscriber = subscribe(source, None).await.unwrap();
        assert_eq!(read(&mut subscriber).0.len(), 4);
        drop(subscriber);
        let metrics = resumable.counts();
        assert_eq!(metrics.parked_bytes, parked * EVENT);
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
async fn a_lot_that_is_dropped_leaves_nothing() {
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

/// A runtime may end before the lot does, and a client may leave outside of any.
#[test]
fn a_lot_outlives_its_runtimes() {
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

/// One that was polled and is polled no more, as hyper does with a client that does not read.
#[tokio::test]
async fn a_reader_that_stalls_holds_no_other_up() {
    let resumable = Resumable::new();
    let (sender, _, stream) = fed(&LiveCounter::default());
    let mut stalled = subscribe(resumable.wrap(stream), None).await.unwrap();
    let (_, ids) = read(&mut stalled);
    let mut well = take_up(&resumable, &ids[0]).await;
    let reading = tokio::spawn(async move {
        let mut texts = Vec::new();
        while texts.len() < 100 {
            texts.push(describe_item(well.next().await.unwrap()));
        }
        texts
    });
    for n in 0..100 {
        // The one that asks last is the stalled one, every other time.
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
    while let Poll::Ready(item) = poll(subscriber) {
        assert!(item.is_some());
    }
    true
}

#[tokio::test]
async fn a_reader_that_leaves_in_its_turn_holds_no_other_up() {
    let resumable = Resumable::new();
    let (sender, _, stream) = fed(&LiveCounter::default());
    let mut first = subscribe(resumable.wrap(stream), None).await.unwrap();
    let (_, ids) = read(&mut first);
    let mut second = take_up(&resumable, &ids[0]).await;
    let reading = tokio::spawn(async move { describe_item(second.next().await.unwrap()) });
    tokio::task::yield_now().await;
    assert!(poll(&mut first).is_pending(), "the last one to ask");
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

/// Several readers of one stream, which come, stall, leave and come back at random on two threads, while it is fed on a third:
/// each gets everything once, in order, and none waits for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_race_get_everything_once() {
    const ROUNDS: u64 = 150;
    const EVENTS: u64 = 60;
    const READERS: u64 = 3;
    let resumable = Resumable::new();
    let count = LiveCounter::default();
    for round in 0..ROUNDS {
        let (sender, _, stream) = fed(&count);
        let mut first = subscribe(resumable.wrap(stream), None).await.unwrap();
        let id = cursor(&first.next().await.unwrap()).unwrap();
        let readers = (0..READERS).map(|reader| {
            let (resumable, id) = (resumable.clone(), id.clone());
            let dice = Dice(1 + round * READERS + reader);
            tokio::spawn(tokio::time::timeout(
                TEST_TIMEOUT,
                read_in_bits(resumable, id, dice),
            ))
        });
        let readers: Vec<_> = readers.collect();
        let stalling = round % 2 == 0;
        let held = stalling.then_some(first);
        let feeding = std::thread::spawn(move || {
            let mut dice = Dice(round + 1);
            for n in 0..EVENTS {
                sender.send(n.to_string()).unwrap();
                if dice.roll(4) == 0 {
                    std::thread::yield_now();
                }
            }
        });
        for reader in readers {
            let texts = reader.await.unwrap().expect("no wake-up was lost");
            assert!(texts.into_iter().eq((0..EVENTS).map(|n| n.to_string())));
        }
        feeding.join().unwrap();
        drop(held);
    }
    let metrics = resumable.counts();
    assert_eq!((metrics.active, metrics.parked), (0, ROUNDS as usize));
    assert_eq!(count.get(), 0, "all have ended");
}

async fn read_in_bits(resumable: Resumable, mut id: EventId, mut dice: Dice) -> Vec<String> {
    let mut texts = Vec::new();
    loop {
        let unwanted = stream::poll_fn(|_| -> Poll<Option<&str>> { panic!("polled") });
        let Ok(mut subscriber) = subscribe(resumable.wrap(unwanted), Some(&id)).await else {
            return texts;
        };
        for _ in 0..dice.roll(8) {
            match dice.roll(5) {
                // Asks once, and goes whether there is something or not.
                0 => match poll_fn(|cx| Poll::Ready(subscriber.poll_next_unpin(cx))).await {
                    Poll::Ready(Some(item)) => {
                        if !take(item, &mut id, &mut texts) {
                            return texts;
                        }
                    }
                    Poll::Ready(None) => unreachable!("it finishes first"),
                    Poll::Pending => break,
                },
                1 => tokio::task::yield_now().await,
                _ => {
                    let item = subscriber.next().await.unwrap();
                    if !take(item, &mut id, &mut texts) {
                        return texts;
                    }
                }
            }
        }
    }
}

fn take(item: Result<Item, BoxError>, id: &mut EventId, texts: &mut Vec<String>) -> bool {
    let Some(next) = cursor(&item) else {
        assert_eq!(describe_item(item), "finished");
        return false;
    };
    *id = next;
    texts.push(describe_item(item));
    true
}

/// As a polling client does it: each request makes a new stream and takes what there is, and any response may be lost.
#[tokio::test]
async fn a_client_that_polls_loses_nothing() {
    const EVENTS: u64 = 20_000;
    let resumable = Resumable::new();
    let made = LiveCounter::default();
    let mut dice = Dice(7);
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
        assert!(made.get() <= 1, "the new one is thrown away");
        let mut response = Vec::new();
        for _ in 0..=dice.roll(16) {
            response.extend(subscriber.next().await);
        }
        // The first one of all must arrive: its client has nothing to come back with.
        if id.is_some() && dice.roll(3) == 0 {
            lost += 1;
            continue;
        }
        for item in response {
            let Some(cursor) = cursor(&item) else {
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

/// Over sockets, from transport to transport, and from one connection to the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hops_reads_everything_once() {
    const HOPS: usize = 1000;
    let count = LiveCounter::default();
    let calls = Arc::new(AtomicUsize::new(0));
    let (calling, counting) = (calls.clone(), count.clone());
    let feed = source_fn(async move |_| {
        calling.fetch_add(1, Ordering::SeqCst);
        let mut n = 0_u64;
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let ticks = tokio_stream::wrappers::IntervalStream::new(ticks);
        // In bursts, of up to 20.
        let numbers = ticks.flat_map(move |_| {
            let first = n;
            n += 1 + n * 7 % 20;
            stream::iter((first..n).map(|n| n.to_string()))
        });
        Ok(counting.wrap(numbers))
    });
    // More than the sockets' buffers hold, so that what is lost on the way is never older than the log.
    let resumable = Resumable::builder()
        .max_events(1 << 20)
        .max_bytes(64 << 20)
        .build();
    let service = tower_push::service(resumable.wrap(feed)).transport(Negotiate::new());
    let server = TestServer::start(service).await;

    let mut dice = Dice(99);
    let mut http2 = HttpClient::connect(&server, HttpVersion::Http2).await;
    let mut id = String::new();
    let mut next = 0;
    for hop in 0..HOPS {
        let headers = [("last-event-id", id.clone())];
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, id)| (*name, id.as_str()))
            .collect();
        let version = HttpVersion::ALL[usize::from(dice.roll(8) == 0)];
        let mut http1;
        let client = match version {
            HttpVersion::Http1 => {
                http1 = HttpClient::connect(&server, version).await;
                &mut http1
            }
            HttpVersion::Http2 => &mut http2,
        };
        let is_sse = dice.roll(2) == 0;
        let path = if is_sse {
            "/?transport=sse"
        } else {
            "/?transport=ndjson"
        };
        let mut response = client.get(path, &headers).await;
        assert_eq!(response.head.status, 200);
        let mut bytes = Vec::new();
        // A first answer must arrive, or the client cannot come back.
        let frames = dice.roll(4) + u64::from(hop == 0) * 3;
        for _ in 0..frames {
            bytes.extend(response.next_chunk().await.unwrap().unwrap());
        }
        // Cut anywhere.
        if hop > 0 && dice.roll(2) == 0 {
            bytes.truncate(dice.roll(bytes.len() as u64 + 1) as usize);
        }
        drop(response);
        let read = if is_sse {
            from_sse(&bytes)
        } else {
            from_ndjson(&bytes)
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
    assert!(next > HOPS as u64, "{next} events");
    assert_eq!(count.get(), 1);
    drop(server);
    drop(resumable);
    drop(http2);
    count.wait_for(0).await;
}

fn from_sse(bytes: &[u8]) -> Vec<(Option<String>, String)> {
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

fn from_ndjson(bytes: &[u8]) -> Vec<(Option<String>, String)> {
    let text = std::str::from_utf8(bytes).unwrap();
    // What stands behind the last line break was cut.
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

/// The client of a connection that the server does not yet know to be dead.
#[tokio::test]
async fn a_client_takes_its_stream_up_while_its_old_connection_still_hangs() {
    let resumable = Resumable::new();
    let (sender, _, stream) = fed(&LiveCounter::default());
    let once = Arc::new(std::sync::Mutex::new(Some(stream)));
    let feed = source_fn(async move |_| {
        let stream = once.lock().unwrap().take();
        Ok(stream.expect("one stream, all the way"))
    });
    let server = TestServer::start(tower_push::service(resumable.wrap(feed))).await;
    let asking = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let (hanging, read) = send_raw_http1(&server, asking, "\n\n").await;
    let id =
        EventStreamParser::parse(read.split_once("\r\n\r\n").unwrap().1.as_bytes()).last_event_id;
    for version in HttpVersion::ALL {
        let mut client = HttpClient::connect(&server, version).await;
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

/// What goes with a payload may be anything: another reader of the stream, or the lot itself.
#[test]
fn a_payload_is_dropped_under_no_lock() {
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
            assert!(poll(&mut other).is_ready());
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
        let Some(id) = cursor(&poll_one(&mut subscriber)) else {
            panic!("a cursor first");
        };
        let second = take_up(&resumable, &id).now_or_never().unwrap();
        *other.lock().unwrap() = Some(second);
        drop(poll_one(&mut subscriber));
        // The owned one falls off.
        drop(poll_one(&mut subscriber));
        assert!(other.lock().unwrap().is_none());
        done.send(()).unwrap();
    });
    is_done.recv_timeout(TEST_TIMEOUT).expect("no deadlock");
}

fn poll_one(subscriber: &mut ResumableStream) -> Result<Item, BoxError> {
    match poll(subscriber) {
        Poll::Ready(Some(item)) => item,
        other => panic!("{other:?}"),
    }
}

/// A poll is a request of its own, and its handler makes a new stream each time: all of them but the first are thrown away.
#[tokio::test]
async fn a_plain_stream_is_polled_without_a_loss() {
    let (begun, alive) = (Arc::new(AtomicUsize::new(0)), LiveCounter::default());
    let handler = {
        let (begun, alive) = (begun.clone(), alive.clone());
        tower::service_fn(move |_: http::Request<hyper::body::Incoming>| {
            let begun = begun.clone();
            // Counts when it is first polled: what is thrown away never is.
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
        let mut client = HttpClient::connect(&server, version).await;
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
                // This answer was lost: the same cursor gets it again.
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

/// The browser's cache may send the cursor of whoever was there before.
#[tokio::test]
async fn a_poll_goes_on_for_whom_it_began_only() {
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
