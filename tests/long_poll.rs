//! Long-polling: complete responses, one cursor, two dialects, and no event lost between two polls.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::{Value, json};
use testkit::{
    HttpConnection, HttpVersion, StreamingResponse, TEST_TIMEOUT, TestServer, get_request_head,
    programs, send_raw_http1, wait_until,
};
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_stream::wrappers::BroadcastStream;
use tower::{Layer, ServiceExt};
use tower_push::{
    Channel, Event, EventId, Gap, GapReason, Item, KeepAlive, LongPollLayer, Push, PushBody,
    PushSource, Resumable,
    format::{JsonArray, JsonSeq, Ndjson, Raw},
    service,
    source::{
        Rejection, StartPosition, Subscription, channel::LagPolicy, resumable::RestartPolicy,
        source_fn,
    },
    transport::{LongPoll, Negotiate, Transport},
};

const NO_WAIT: Duration = Duration::ZERO;

/// A transport that answers at once, even without events.
fn without_wait() -> LongPoll {
    LongPoll::new().wait_time(NO_WAIT)
}

/// A complete response.
struct PollResponse {
    status: u16,
    headers: http::HeaderMap,
    body: Vec<u8>,
}

impl PollResponse {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Vec<Value> {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Returns the payloads in a batch of envelopes.
    fn data(&self) -> Vec<Value> {
        let records = self.json().into_iter();
        records.filter_map(|r| r.get("data").cloned()).collect()
    }

    /// Returns the cursor in the ETag.
    fn cursor(&self) -> &str {
        let etag = self.header("etag").expect("an ETag");
        let etag = etag.strip_prefix('"').unwrap().strip_suffix('"').unwrap();
        let (id, _) = etag.split_once('+').expect("the format's suffix");
        assert_eq!(self.header("last-event-id"), Some(id));
        id
    }
}

/// Sends a GET request to a transport, and reads the whole response.
async fn poll(
    transport: &LongPoll,
    source: impl PushSource + Send + 'static,
    uri: &str,
    headers: &[(&str, &str)],
) -> PollResponse {
    send_request("GET", transport, source, uri, headers).await
}

async fn send_request(
    method: &str,
    transport: &LongPoll,
    source: impl PushSource + Send + 'static,
    uri: &str,
    headers: &[(&str, &str)],
) -> PollResponse {
    let mut head = get_request_head(uri, headers);
    head.method = method.parse().unwrap();
    read(transport.respond(&mut head, Push::new(source)).await).await
}

async fn read(response: Response<PushBody>) -> PollResponse {
    let (head, body) = response.into_parts();
    PollResponse {
        status: head.status.as_u16(),
        headers: head.headers,
        body: body.collect().await.unwrap().to_bytes().to_vec(),
    }
}

async fn read_from_server(reading: StreamingResponse) -> PollResponse {
    let (status, headers) = (reading.head.status.as_u16(), reading.head.headers.clone());
    let (body, end) = reading.read_to_end().await;
    end.unwrap();
    PollResponse {
        status,
        headers,
        body,
    }
}

/// Returns an event with this number as JSON.
fn number_event(n: u64) -> Event {
    Event::json(&n).unwrap()
}

/// Returns a channel with these numbers, which subscribers read from the first on.
fn channel_of_numbers(numbers: impl IntoIterator<Item = u64>) -> Channel {
    let channel = Channel::builder().start(StartPosition::Oldest).build();
    for n in numbers {
        channel.publish(number_event(n)).unwrap();
    }
    channel
}

async fn wait_for_subscribers(channel: &Channel, subscribers: usize) {
    let subscribed = || channel.subscriber_count() == subscribers;
    let describe = || format!("{} subscribers", channel.subscriber_count());
    wait_until(subscribed, describe).await;
}

mod tower_push_dialect {
    use super::*;

    #[tokio::test]
    async fn batch_has_all_ready_events_and_last_id() {
        let channel = channel_of_numbers(0..3);
        let answer = poll(&without_wait(), channel, "/", &[]).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.data(), [0, 1, 2]);
        let records = answer.json();
        assert_eq!(records[2]["id"], answer.cursor());
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("cache-control"), Some("private, no-cache"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        let vary: Vec<_> = answer.headers.get_all("vary").iter().collect();
        let asked = "If-None-Match, Last-Event-ID, Cookie, Authorization";
        assert_eq!(vary, [asked, "Accept"]);
    }

    #[tokio::test]
    async fn lost_response_is_repeated() {
        let channel = channel_of_numbers(0..3);
        let first = poll(&without_wait(), channel.clone(), "/", &[]).await;
        let again = poll(&without_wait(), channel.clone(), "/", &[]).await;
        assert_eq!(first.body, again.body);
        channel.publish(number_event(3)).unwrap();
        for _ in 0..2 {
            let etag = [("if-none-match", first.header("etag").unwrap())];
            let next = poll(&without_wait(), channel.clone(), "/", &etag).await;
            assert_eq!(next.data(), [3]);
        }
    }

    #[tokio::test]
    async fn cursor_is_accepted_in_each_place() {
        let channel = channel_of_numbers(0..3);
        let ids: Vec<_> = poll(&without_wait(), channel.clone(), "/", &[])
            .await
            .json();
        let id = ids[1]["id"].as_str().unwrap();
        for header in [
            ("if-none-match", format!("\"{id}\"")),
            ("if-none-match", format!("\"{id}+json\"")),
            ("if-none-match", format!("W/\"{id}+ndjson\"")),
            ("last-event-id", id.to_owned()),
        ] {
            let headers = [(header.0, header.1.as_str())];
            let answer = poll(&without_wait(), channel.clone(), "/", &headers).await;
            assert_eq!(answer.data(), [2], "{header:?}");
        }
        let uri = format!("/?last_event_id={id}");
        assert_eq!(
            poll(&without_wait(), channel.clone(), &uri, &[])
                .await
                .data(),
            [2]
        );
        // A client that polls one URL repeats its first cursor in the query, so the newer one in `If-None-Match` must win.
        let last = [(
            "if-none-match",
            &*format!("\"{}\"", ids[2]["id"].as_str().unwrap()),
        )];
        assert_eq!(
            poll(&without_wait(), channel, &uri, &last).await.data(),
            [0; 0]
        );
    }

    #[tokio::test]
    async fn each_format_has_own_etag_and_any_resumes() {
        let channel = channel_of_numbers(0..2);
        let formats = [
            "application/json",
            "application/x-ndjson",
            "multipart/mixed",
            "text/plain",
        ];
        let mut tags = BTreeSet::new();
        for accept in formats {
            let answer = poll(&without_wait(), channel.clone(), "/", &[("accept", accept)]).await;
            tags.insert(answer.header("etag").unwrap().to_owned());
        }
        assert_eq!(tags.len(), formats.len());
        channel.publish(number_event(2)).unwrap();
        for etag in &tags {
            let headers = [("if-none-match", &**etag), ("accept", formats[0])];
            let answer = poll(&without_wait(), channel.clone(), "/", &headers).await;
            assert_eq!(answer.data(), [2], "{etag}");
        }
    }

    /// A source of numbers whose ids contain the characters that entity tags and lists of them reserve.
    fn numbers_with_odd_ids() -> impl PushSource + Clone + Send + 'static {
        source_fn(async |subscription: Subscription| {
            let number_of = |id: &EventId| id.as_str().strip_prefix("n,\"+:").unwrap().parse();
            let after: u64 = subscription.cursor().map_or(Ok(0), number_of).unwrap();
            let events = (after + 1..=2 * (after + 1))
                .map(|n| number_event(n).with_id(format!("n,\"+:{n}")));
            Ok(stream::iter(events).chain(stream::pending()))
        })
    }

    #[tokio::test]
    async fn cursor_of_any_visible_ascii_resumes() {
        let source = numbers_with_odd_ids();
        let first = poll(&without_wait(), source.clone(), "/", &[]).await;
        assert_eq!(first.data(), [1, 2]);
        assert_eq!(first.header("last-event-id"), Some("n,\"+:2"));
        let etag = first.header("etag").unwrap();
        assert_eq!(etag, "\"n!2C!22!2B!3A2+json\"");
        for headers in [[("if-none-match", etag)], [("last-event-id", "n,\"+:2")]] {
            let second = poll(&without_wait(), source.clone(), "/", &headers).await;
            assert_eq!(second.data(), [3, 4, 5, 6], "{headers:?}");
        }
        let in_query = poll(
            &without_wait(),
            source.clone(),
            "/?last_event_id=n,%22%2B:2",
            &[],
        )
        .await;
        assert_eq!(in_query.data(), [3, 4, 5, 6]);
        let read = poll(&without_wait(), source.clone(), "/?offset=-1", &[]).await;
        assert_eq!(read.header("stream-next-offset"), Some("n!2C!22!2B!3A2"));
        for offset in ["n!2C!22!2B!3A2", "n%212C%2122%212B%213A2"] {
            let uri = format!("/?offset={offset}");
            let read = poll(&without_wait(), source.clone(), &uri, &[]).await;
            assert_eq!(read.json(), [3, 4, 5, 6]);
        }
    }

    #[tokio::test]
    async fn odd_validators_are_ignored() {
        let channel = channel_of_numbers(0..2);
        let long = format!("\"{}\"", "x".repeat(10 * 1024));
        for etag in [
            "*",
            "junk",
            "\"a\", \"b\"",
            "\"a:b\"",
            "\"\"",
            "W/",
            &long,
            "\"é\"",
        ] {
            let answer = poll(
                &without_wait(),
                channel.clone(),
                "/",
                &[("if-none-match", etag)],
            )
            .await;
            assert_eq!((answer.status, answer.data().len()), (200, 2), "{etag}");
        }
        let two = [("if-none-match", "\"a\""), ("if-none-match", "\"b\"")];
        assert_eq!(
            poll(&without_wait(), channel, "/", &two).await.data(),
            [0, 1]
        );
    }

    #[tokio::test]
    async fn foreign_and_unreadable_cursors_get_gap() {
        let channel = channel_of_numbers(0..2);
        let other = channel_of_numbers(0..9);
        let foreign = poll(&without_wait(), other, "/", &[]).await;
        let etag = foreign.header("etag").unwrap().to_owned();
        let long = "x".repeat(10 * 1024);
        for header in [
            ("if-none-match", &*etag),
            ("last-event-id", "a b"),
            ("last-event-id", &long),
        ] {
            let answer = poll(&without_wait(), channel.clone(), "/", &[header]).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.json()[0]["gap"]["reason"], "epoch");
            assert_eq!(answer.data(), [0, 1]);
        }
    }

    #[tokio::test]
    async fn expired_cursor_gets_gap_with_count() {
        let channel = Channel::builder().max_events(2).build();
        let id = channel.publish(number_event(0)).unwrap();
        (1..6).for_each(|n| drop(channel.publish(number_event(n))));
        let answer = poll(
            &without_wait(),
            channel,
            "/",
            &[("last-event-id", id.as_str())],
        )
        .await;
        let gap = &answer.json()[0]["gap"];
        assert_eq!(
            (&gap["reason"], &gap["missed"]),
            (&json!("expired"), &json!(3))
        );
        assert_eq!(answer.data(), [4, 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn poll_with_only_a_repeated_gap_waits() {
        let source = || source_fn(async |_| Ok(stream::pending::<Item>()));
        let began = Instant::now();
        let answer = poll(&LongPoll::new(), source(), "/", &[("last-event-id", "a b")]).await;
        assert_eq!(began.elapsed().as_secs(), 25);
        assert_eq!(answer.json()[0]["gap"]["reason"], "epoch");
    }

    #[tokio::test(start_paused = true)]
    async fn timeout_returns_empty_batch_with_cursor() {
        let channel = Channel::new();
        let began = Instant::now();
        let first = poll(&LongPoll::new(), channel.clone(), "/", &[]).await;
        assert_eq!(began.elapsed(), Duration::from_secs(25));
        // With any other status a browser's cache would forget the ETag.
        assert_eq!((first.status, first.text()), (200, "[]\n"));
        assert_eq!(first.header("content-length"), Some("3"));
        assert_eq!(channel.subscriber_count(), 0);

        channel.publish(number_event(7)).unwrap();
        let etag = [("if-none-match", first.header("etag").unwrap())];
        let began = Instant::now();
        let next = poll(&LongPoll::new(), channel.clone(), "/", &etag).await;
        assert_eq!((began.elapsed(), next.data()), (NO_WAIT, vec![json!(7)]));

        let etag = [("if-none-match", next.header("etag").unwrap())];
        let last = poll(&LongPoll::new(), channel, "/", &etag).await;
        assert_eq!((last.text(), last.cursor()), ("[]\n", next.cursor()));
    }

    #[tokio::test(start_paused = true)]
    async fn client_chooses_wait_time_within_limits() {
        let measure_wait = async |transport: &LongPoll, uri: &str, prefer: &[(&str, &str)]| {
            let began = Instant::now();
            let answer = poll(transport, Channel::new(), uri, prefer).await;
            let applied = answer.header("preference-applied").map(str::to_owned);
            (began.elapsed().as_secs(), applied)
        };
        let by_default = LongPoll::new();
        let told = |seconds: u64| (seconds, Some(format!("wait={seconds}")));
        assert_eq!(
            measure_wait(&by_default, "/?timeout=7", &[]).await,
            (7, None)
        );
        assert_eq!(
            measure_wait(&by_default, "/", &[("prefer", "wait=7")]).await,
            told(7)
        );
        assert_eq!(
            measure_wait(&by_default, "/", &[("prefer", "wait=0")]).await,
            told(0)
        );
        assert_eq!(
            measure_wait(&by_default, "/", &[("prefer", "wait=9999")]).await,
            told(60)
        );
        assert_eq!(
            measure_wait(&by_default, "/", &[("prefer", "wait=x")]).await,
            (25, None)
        );
        assert_eq!(
            measure_wait(&by_default, "/?timeout=soon", &[]).await,
            (25, None)
        );
        let seconds = Duration::from_secs;
        let bound = LongPoll::new()
            .wait_time(seconds(3))
            .wait_time_range(seconds(2)..=seconds(5));
        assert_eq!(measure_wait(&bound, "/", &[]).await, (3, None));
        assert_eq!(measure_wait(&bound, "/?timeout=1", &[]).await, (2, None));
        assert_eq!(measure_wait(&bound, "/?timeout=6", &[]).await, (5, None));
        // An empty range must not panic.
        let odd = LongPoll::new().wait_time_range(seconds(5)..=seconds(2));
        assert_eq!(measure_wait(&odd, "/?timeout=1", &[]).await, (5, None));
        let endless = LongPoll::new().wait_time(Duration::MAX);
        assert!(measure_wait(&endless, "/", &[]).await.0 >= 24 * 60 * 60);
    }

    #[tokio::test(start_paused = true)]
    async fn batch_window_collects_events() {
        let channel = channel_of_numbers([]);
        let transport = LongPoll::new().batch_window(Duration::from_millis(20));
        let publishing = async {
            for n in 0..4 {
                tokio::time::sleep(Duration::from_millis(8)).await;
                channel.publish(number_event(n)).unwrap();
            }
        };
        let (answer, ()) = tokio::join!(poll(&transport, channel.clone(), "/", &[]), publishing);
        // The events come at 8, 16 and 24 ms, and the window closes at 28 ms.
        assert_eq!(answer.data(), [0, 1, 2]);
    }

    #[tokio::test]
    async fn batch_is_bounded_and_next_one_continues() {
        for transport in [without_wait().max_events(3), without_wait().max_bytes(200)] {
            let channel = channel_of_numbers(0..10);
            let (mut all, mut batches) = (Vec::new(), 0);
            let mut cursor = String::new();
            loop {
                let headers = [("last-event-id", &*cursor)];
                let answer = poll(&transport, channel.clone(), "/", &headers).await;
                let data = answer.data();
                if data.is_empty() {
                    break;
                }
                assert!(data.len() <= 5);
                all.extend(data);
                batches += 1;
                cursor = answer.cursor().to_owned();
            }
            assert_eq!(all, (0..10).map(|n| json!(n)).collect::<Vec<_>>());
            assert!(batches >= 2);
        }
    }

    #[tokio::test]
    async fn finished_source_ends_batch_then_returns_204() {
        let channel = channel_of_numbers(0..2);
        channel.close();
        let last = poll(&LongPoll::new(), channel.clone(), "/", &[]).await;
        assert_eq!(last.data(), [0, 1]);
        let end = json!({"id": "~finished", "end": {"finished": true}});
        assert_eq!(last.json()[2], end);
        assert_eq!(last.cursor(), EventId::FINISHED);
        let etag = [("if-none-match", last.header("etag").unwrap())];
        let over = poll(&LongPoll::new(), channel, "/", &etag).await;
        assert_eq!((over.status, over.text()), (204, ""));
        assert_eq!(over.header("content-type"), None);
        assert_eq!(over.header("content-length"), None);
    }

    #[tokio::test]
    async fn ended_stream_has_no_end_record() {
        let source = source_fn(async |_| Ok(stream::iter([number_event(1).with_id(7)])));
        let answer = poll(&LongPoll::new(), source, "/", &[]).await;
        assert_eq!(answer.json(), [json!({"id": "7", "data": 1})]);
    }

    /// If the response came at once, a plain loop would send requests as fast as it can.
    #[tokio::test(start_paused = true)]
    async fn empty_ended_stream_is_answered_after_wait_time() {
        let empty = || source_fn(async |_| Ok(stream::empty::<Event>()));
        let measure_wait = async |push: Push, uri: &str| {
            let began = Instant::now();
            let restart = Resumable::builder()
                .restart_policy(RestartPolicy::OnReconnect)
                .build();
            let transport = LongPoll::new().resumable(restart);
            let answer = poll(&transport, push, uri, &[]).await;
            (began.elapsed().as_secs(), answer)
        };
        let (waited, answer) = measure_wait(Push::new(empty()), "/?last_event_id=a").await;
        assert_eq!((waited, answer.text(), answer.cursor()), (25, "[]\n", "a"));
        let (waited, answer) = measure_wait(Push::new(empty()), "/?timeout=3").await;
        assert_eq!((waited, answer.text()), (3, "[]\n"));
        let (waited, answer) = measure_wait(Push::new(stream::empty::<Event>()), "/").await;
        assert_eq!((waited, answer.text()), (25, "[]\n"));
        let (waited, answer) = measure_wait(Push::new(empty()), "/?offset=a&live=long-poll").await;
        assert_eq!((waited, answer.status), (25, 204));

        // A stream with an event, or a source that has finished, is answered at once.
        let one = source_fn(async |_| Ok(stream::iter([number_event(1).with_id(7)])));
        assert_eq!(measure_wait(Push::new(one), "/").await.0, 0);
        let finished = stream::iter([Item::Finished]);
        assert_eq!(measure_wait(Push::new(finished), "/").await.0, 0);
        assert_eq!(measure_wait(Push::new(empty()), "/?offset=a").await.0, 0);
    }

    /// A source without ids: each stream has these numbers, and then stays open.
    fn source_without_cursors(numbers: std::ops::Range<u64>) -> impl PushSource + Send {
        source_fn(async move |_| {
            Ok(stream::iter(numbers.map(number_event)).chain(stream::pending()))
        })
    }

    #[tokio::test]
    async fn stream_without_cursors_is_parked_and_resumed() {
        let transport = without_wait().max_events(2);
        let first = poll(&transport, source_without_cursors(0..5), "/", &[]).await;
        assert_eq!(first.data(), [0, 1]);
        let mut cursor = first.cursor().to_owned();
        for expected in [&[2, 3][..], &[4], &[]] {
            let headers = [("last-event-id", &*cursor)];
            let lost = poll(&transport, source_without_cursors(0..5), "/", &headers).await;
            let again = poll(&transport, source_without_cursors(0..5), "/", &headers).await;
            assert_eq!(
                (again.data(), lost.body),
                (
                    expected.iter().map(|n| json!(n)).collect(),
                    again.body.clone()
                )
            );
            cursor = again.cursor().to_owned();
        }
    }

    #[tokio::test]
    async fn released_stream_without_cursors_is_gap() {
        let none = Resumable::builder().max_parked_streams(0).build();
        let transport = without_wait().resumable(none);
        let first = poll(&transport, source_without_cursors(0..2), "/", &[]).await;
        assert_eq!(first.data(), [0, 1]);
        let headers = [("last-event-id", first.cursor())];
        let next = poll(&transport, source_without_cursors(0..2), "/", &headers).await;
        assert_eq!(next.json()[0]["gap"]["reason"], "expired");
        assert_eq!(next.data(), [0, 1]);
        assert_ne!(next.cursor(), first.cursor());
        for live in ["", "&live=long-poll", "&live=sse"] {
            let uri = format!("/?offset={}{live}", first.cursor());
            let answer = poll(&transport, source_without_cursors(0..2), &uri, &[]).await;
            assert_eq!(answer.status, 410, "{live}");
        }
    }

    #[tokio::test]
    async fn stream_without_cursors_ends_like_plain_stream() {
        let source = || source_fn(async |_| Ok(stream::iter([number_event(1)])));
        let transport = LongPoll::new();
        let first = poll(&transport, source(), "/", &[]).await;
        assert_eq!(first.json(), [json!({"data": 1})]);
        let headers = [("last-event-id", first.cursor())];
        let last = poll(&transport, source(), "/", &headers).await;
        assert_eq!((last.data().len(), last.cursor()), (0, EventId::FINISHED));
    }

    #[tokio::test]
    async fn stream_without_cursors_reports_its_failure() {
        let failing =
            || source_fn(async |_| Ok(stream::iter([Ok(number_event(1)), Err("secret")])));
        let transport = LongPoll::new();
        let first = poll(&transport, failing(), "/", &[]).await;
        assert_eq!((first.status, first.data()), (200, vec![json!(1)]));
        let headers = [("last-event-id", first.cursor())];
        assert_eq!(poll(&transport, failing(), "/", &headers).await.status, 500);
    }

    #[tokio::test]
    async fn source_with_cursors_is_never_parked() {
        let told = || {
            source_fn(async move |subscription: Subscription| {
                let id = EventId::from(7);
                let first = match subscription.cursor() {
                    Some(cursor) => Item::Cursor(cursor.clone()),
                    None => Item::Event(number_event(7).with_id(id)?),
                };
                let hello = Item::Event(Event::text("hello"));
                Ok(stream::iter([first, hello]).chain(stream::pending()))
            })
        };
        let resumable = Resumable::new();
        let transport = without_wait().resumable(resumable.clone());
        let first = poll(&transport, told(), "/", &[]).await;
        assert_eq!((first.json().len(), first.cursor()), (2, "7"));
        // The second cursor is of another `Resumable`, so the source has to handle it.
        let foreign = poll(&without_wait(), source_without_cursors(0..1), "/", &[]).await;
        for cursor in ["7", foreign.cursor()] {
            let next = poll(&transport, told(), "/", &[("last-event-id", cursor)]).await;
            assert_eq!((next.json().len(), next.cursor()), (1, cursor));
        }
        assert_eq!(resumable.counts(), Resumable::new().counts());
    }

    /// A source whose streams yield the numbers up to 2 and then fail.
    fn failing(first: u64) -> impl PushSource + Send {
        source_fn(async move |subscription: Subscription| {
            let seen = subscription.cursor().map(|id| id.as_str().parse::<u64>());
            let next = seen.map_or(first, |seen| seen.unwrap() + 1);
            let events = (next..3).map(|n| Ok(number_event(n).with_id(n).unwrap()));
            Ok(stream::iter(events).chain(stream::iter([Err("secret")])))
        })
    }

    #[tokio::test]
    async fn failure_comes_after_earlier_events() {
        let answer = poll(&LongPoll::new(), failing(0), "/", &[]).await;
        assert_eq!((answer.status, answer.data().len()), (200, 3));
        let etag = [("if-none-match", answer.header("etag").unwrap())];
        let failed = poll(&LongPoll::new(), failing(0), "/", &etag).await;
        assert_eq!(failed.status, 500);
        assert!(!failed.text().contains("secret"));
        assert_eq!(failed.header("cache-control"), Some("no-store"));
    }

    #[tokio::test]
    async fn rejection_is_http_status() {
        let source = source_fn(async |_| {
            Err::<stream::Empty<Event>, _>(Rejection::new(StatusCode::FORBIDDEN))
        });
        let answer = poll(&LongPoll::new(), source, "/", &[]).await;
        assert_eq!((answer.status, answer.text()), (403, "Forbidden"));
    }

    #[tokio::test]
    async fn head_has_no_etag_and_does_not_subscribe() {
        let source = source_fn(async |_| -> Result<stream::Empty<Event>, _> {
            panic!("a HEAD request must not subscribe")
        });
        let answer = send_request("HEAD", &LongPoll::new(), source, "/", &[]).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("etag"), None);
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }

    #[tokio::test]
    async fn accept_header_selects_format() {
        let channel = channel_of_numbers(0..2);
        let accepting = async |accept: &str| {
            poll(&without_wait(), channel.clone(), "/", &[("accept", accept)]).await
        };
        for accept in ["*/*", "text/html", "application/json, text/plain;q=0.1"] {
            assert_eq!(accepting(accept).await.data(), [0, 1], "{accept}");
        }
        let ndjson = accepting("application/x-ndjson").await;
        let lines: Vec<Value> = ndjson
            .text()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!((lines.len(), &lines[1]["data"]), (2, &json!(1)));
        assert_eq!(lines[1]["id"], ndjson.cursor());
        assert_eq!(accepting("text/plain").await.text(), "0\n1\n");

        let multipart = accepting("multipart/mixed").await;
        let content_type = multipart.header("content-type").unwrap();
        let (_, boundary) = content_type.split_once("boundary=").unwrap();
        let part = |id: &Value, n| {
            let id = id.as_str().unwrap();
            format!(
                "--{boundary}\r\nContent-Type: application/json\r\nEvent-ID: {id}\r\nContent-Length: 1\r\n\r\n{n}\r\n"
            )
        };
        let [first, second] = [0, 1].map(|n: usize| part(&lines[n]["id"], n));
        assert_eq!(
            multipart.text(),
            format!("{first}{second}--{boundary}--\r\n")
        );
    }

    #[tokio::test]
    async fn empty_batch_is_valid_in_every_format() {
        for (accept, body) in [
            ("application/json", "[]\n"),
            ("application/x-ndjson", ""),
            ("text/plain", ""),
        ] {
            let answer = poll(&without_wait(), Channel::new(), "/", &[("accept", accept)]).await;
            assert_eq!((answer.status, answer.text()), (200, body));
            assert_eq!(
                answer.header("content-length"),
                Some(&*body.len().to_string())
            );
        }
        let headers = [("accept", "multipart/mixed")];
        let answer = poll(&without_wait(), Channel::new(), "/", &headers).await;
        let boundary = answer.header("content-type").unwrap();
        let (_, boundary) = boundary.split_once("boundary=").unwrap();
        assert_eq!(answer.text(), format!("--{boundary}--\r\n"));
    }

    #[tokio::test]
    async fn end_is_record_in_every_format() {
        let over = |transport: LongPoll| async move {
            let channel = channel_of_numbers([1]);
            channel.close();
            poll(&transport, channel, "/", &[]).await.text().to_owned()
        };
        let ndjson = over(LongPoll::only(Ndjson::new())).await;
        assert!(
            ndjson.ends_with("\"data\":1}\n{\"id\":\"~finished\",\"end\":{\"finished\":true}}\n")
        );
        let sequence = over(LongPoll::only(JsonSeq::new())).await;
        assert!(sequence.starts_with("\u{1e}{\"id\""));
        assert_eq!(sequence.matches('\u{1e}').count(), 2);
        assert_eq!(over(LongPoll::only(Raw::new())).await, "1\n");
    }

    #[tokio::test]
    async fn format_without_gaps_returns_410() {
        let raw = LongPoll::only(Raw::new());
        let answer = poll(
            &raw,
            channel_of_numbers([1]),
            "/",
            &[("last-event-id", "a-1")],
        )
        .await;
        assert_eq!(answer.status, 410);
        let told = LongPoll::only(Raw::new().gap("..."));
        let answer = poll(
            &told,
            channel_of_numbers([1]),
            "/",
            &[("last-event-id", "a-1")],
        )
        .await;
        assert_eq!(answer.text(), "...\n1\n");
    }

    #[tokio::test]
    async fn layer_and_negotiation_serve_long_polls() {
        let handler = |_: Request<()>| async {
            Ok::<_, std::convert::Infallible>(Push::new(channel_of_numbers([1])))
        };
        let layered = tower::ServiceBuilder::new()
            .layer(LongPollLayer::new())
            .service_fn(handler);
        let request = Request::get("/").body(()).unwrap();
        let answer = read(layered.oneshot(request).await.unwrap()).await;
        assert_eq!(answer.data(), [1]);

        let all = Negotiate::new().add_transport(without_wait());
        for (uri, headers) in [
            ("/?transport=long-poll", &[][..]),
            ("/", &[("accept", "application/json")]),
            (
                "/?offset=-1&live=long-poll",
                &[("accept", "text/event-stream")],
            ),
        ] {
            let mut head = get_request_head(uri, headers);
            let answer = read(
                all.respond(&mut head, Push::new(channel_of_numbers([1])))
                    .await,
            )
            .await;
            assert_eq!(
                answer.header("content-type"),
                Some("application/json"),
                "{uri}"
            );
            let vary = answer.headers.get_all("vary").iter();
            assert_eq!(vary.filter(|v| *v == "Accept").count(), 1);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_request_gets_response(
            query in "(offset|live|cursor|timeout|last_event_id)?=?[ -~]{0,40}",
            etag in "[ -~]{0,40}",
            id in "[ -~]{0,40}",
            prefer in "(wait=)?[ -~]{0,20}",
        ) {
            let query: String = query.chars().filter(|c| !"\"#<>\\^`{|} ".contains(*c)).collect();
            let Ok(uri) = format!("/?{query}").parse::<http::Uri>() else { return Ok(()) };
            let headers = [("if-none-match", &*etag), ("last-event-id", &*id), ("prefer", &*prefer)];
            let transport = without_wait().wait_time_range(NO_WAIT..=NO_WAIT);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let answer = runtime.block_on(poll(&transport, channel_of_numbers(0..2), &uri.to_string(), &headers));
            prop_assert!([200, 204, 400, 410].contains(&answer.status), "{}", answer.status);
            if answer.status == 200 {
                let length = answer.body.len().to_string();
                prop_assert_eq!(answer.header("content-length"), Some(&*length));
            }
        }

        #[test]
        fn batch_of_any_texts_is_json(texts in proptest::collection::vec(any::<String>(), 0..20)) {
            let channel = Channel::builder().start(StartPosition::Oldest).build();
            for text in &texts {
                channel.publish(Event::text(text.clone())).unwrap();
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let answer = runtime.block_on(poll(&without_wait(), channel, "/", &[]));
            prop_assert_eq!(answer.data(), texts);
        }
    }
}

mod durable {
    use super::*;

    fn durable(answer: &PollResponse) -> [Option<&str>; 4] {
        [
            "stream-next-offset",
            "stream-up-to-date",
            "stream-closed",
            "stream-cursor",
        ]
        .map(|name| answer.header(name))
    }

    fn text() -> LongPoll {
        without_wait().durable_content_type(HeaderValue::from_static("text/plain"))
    }

    #[tokio::test]
    async fn catch_up_read_returns_at_once() {
        let channel = channel_of_numbers(0..3);
        let all = poll(&LongPoll::new(), channel.clone(), "/?offset=-1", &[]).await;
        assert_eq!((all.status, all.text()), (200, "[0,1,2]"));
        assert_eq!(all.header("content-type"), Some("application/json"));
        let [next, up_to_date, closed, _] = durable(&all);
        assert_eq!((up_to_date, closed), (Some("true"), None));
        let next = next.unwrap();
        assert_eq!(all.header("cache-control"), Some("private, no-cache"));

        let uri = format!("/?offset={next}");
        let tail = poll(&LongPoll::new(), channel.clone(), &uri, &[]).await;
        assert_eq!((tail.status, tail.text()), (200, "[]"));
        assert_eq!(durable(&tail)[0], Some(next));
        channel.publish(Event::text("three")).unwrap();
        let more = poll(&LongPoll::new(), channel.clone(), &uri, &[]).await;
        assert_eq!(more.text(), "[\"three\"]");

        let bytes = poll(&text(), channel, "/?offset=-1", &[]).await;
        assert_eq!(bytes.text(), "012three");
        assert_eq!(bytes.header("content-type"), Some("text/plain"));
    }

    #[tokio::test]
    async fn only_last_page_is_up_to_date() {
        let channel = channel_of_numbers(0..5);
        let transport = text().max_events(2);
        let (mut offset, mut pages) = ("-1".to_owned(), Vec::new());
        loop {
            let uri = format!("/?offset={offset}");
            let page = poll(&transport, channel.clone(), &uri, &[]).await;
            let [next, up_to_date, ..] = durable(&page);
            assert!(offset == "-1" || next.unwrap() > &*offset);
            offset = next.unwrap().to_owned();
            pages.push(page.text().to_owned());
            if up_to_date.is_some() {
                break;
            }
        }
        assert_eq!(pages, ["01", "23", "4"]);
    }

    #[tokio::test]
    async fn offset_now_is_tail_without_events() {
        let channel = channel_of_numbers(0..3);
        let tail = poll(&text(), channel.clone(), "/?offset=-1", &[]).await;
        let now = poll(&LongPoll::new(), channel.clone(), "/?offset=now", &[]).await;
        assert_eq!((now.status, now.text()), (200, "[]"));
        assert_eq!(durable(&now)[..3], [durable(&tail)[0], Some("true"), None]);
        assert_eq!(now.header("cache-control"), Some("no-store"));
        assert_eq!(now.header("etag"), None);
        assert_eq!(poll(&text(), channel, "/?offset=now", &[]).await.text(), "");
    }

    #[tokio::test]
    async fn head_returns_tail_offset() {
        let channel = channel_of_numbers(0..3);
        let tail = poll(&text(), channel.clone(), "/?offset=-1", &[]).await;
        let only = text().durable_only();
        let head = send_request("HEAD", &only, channel.clone(), "/", &[]).await;
        assert_eq!((head.status, head.text()), (200, ""));
        assert_eq!(durable(&head)[0], durable(&tail)[0]);
        assert_eq!(head.header("cache-control"), Some("no-store"));
        channel.close();
        let head = send_request("HEAD", &only, channel.clone(), "/", &[]).await;
        assert_eq!(durable(&head)[2], Some("true"));
        assert_eq!(poll(&only, channel, "/", &[]).await.text(), "012");
    }

    #[tokio::test]
    async fn head_of_plain_stream_parks_nothing() {
        let resumable = Resumable::new();
        let transport = text().resumable(resumable.clone());
        let plain = || stream::pending::<Event>();
        let head = send_request("HEAD", &transport, plain(), "/?offset=-1", &[]).await;
        assert_eq!((head.status, durable(&head)[0]), (200, Some("now")));
        assert_eq!(resumable.counts(), Resumable::new().counts());
        poll(&transport, plain(), "/?offset=now", &[]).await;
        assert_eq!(resumable.counts().parked, 1);
    }

    /// The cursor `~finished` belongs to the other dialect, and no response of this dialect has it.
    #[tokio::test]
    async fn finished_source_without_cursors_keeps_offset() {
        let finished = || source_fn(async |_| Ok(stream::iter([Item::Finished])));
        for (uri, status) in [("/?offset=-1", 200), ("/?offset=-1&live=long-poll", 204)] {
            let answer = poll(&text(), finished(), uri, &[]).await;
            assert_eq!(answer.status, status);
            assert_eq!(
                durable(&answer)[..3],
                [Some("-1"), Some("true"), Some("true")]
            );
        }
        let answer = poll(&text(), finished(), "/?offset=-1&live=sse", &[]).await;
        let parse_control = parse_control(&events(answer.text())[0].1);
        assert_eq!(parse_control["streamNextOffset"], "-1");
        assert_eq!(parse_control["streamClosed"], true);
    }

    #[tokio::test(start_paused = true)]
    async fn sse_heartbeats_are_configured_on_transport() {
        let beats = async |transport: LongPoll| {
            let mut head = get_request_head("/?offset=now&live=sse", &[]);
            let response = transport.respond(&mut head, Push::new(Channel::new()));
            let mut body = response.await.into_body();
            let (mut frames, began) = (0, Instant::now());
            while let Ok(Some(_)) =
                tokio::time::timeout(Duration::from_secs(10), body.frame()).await
            {
                frames += 1;
                if began.elapsed().as_secs() > 60 {
                    break;
                }
            }
            frames
        };
        assert_eq!(beats(text().keep_alive(KeepAlive::disabled())).await, 1);
        let every = KeepAlive::new()
            .interval(Duration::from_secs(5))
            .jitter(0.0);
        assert!(beats(text().keep_alive(every)).await > 10);
    }

    #[tokio::test(start_paused = true)]
    async fn long_poll_timeout_is_204_with_growing_cursor() {
        let channel = channel_of_numbers(0..2);
        let tail = poll(&text(), channel.clone(), "/?offset=now", &[]).await;
        let offset = durable(&tail)[0].unwrap();
        let mut cursor = String::new();
        for _ in 0..3 {
            let uri = format!("/?cursor={cursor}&live=long-poll&offset={offset}");
            let began = Instant::now();
            let answer = poll(&LongPoll::new(), channel.clone(), &uri, &[]).await;
            assert_eq!(began.elapsed().as_secs(), 25);
            assert_eq!((answer.status, answer.text()), (204, ""));
            assert_eq!(answer.header("content-type"), None);
            assert_eq!(answer.header("content-length"), None);
            let [next, up_to_date, closed, grown] = durable(&answer);
            assert_eq!(
                (next, up_to_date, closed),
                (Some(offset), Some("true"), None)
            );
            let last = cursor.parse().unwrap_or(0_u64);
            assert!(grown.unwrap().parse::<u64>().unwrap() > last);
            cursor = grown.unwrap().to_owned();
        }
        let uri = format!("/?live=long-poll&offset={offset}");
        let publish = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            channel.publish(number_event(2)).unwrap();
        };
        let transport = text().wait_time(TEST_TIMEOUT);
        let asking = poll(&transport, channel.clone(), &uri, &[]);
        let (answer, ()) = tokio::join!(asking, publish);
        assert_eq!((answer.status, answer.text()), (200, "2"));
        assert_eq!(durable(&answer)[1], Some("true"));
        assert!(durable(&answer)[3].is_some());
    }

    #[tokio::test]
    async fn closed_stream_is_reported_at_its_tail() {
        let channel = channel_of_numbers(0..2);
        let open = poll(&text(), channel.clone(), "/?offset=-1", &[]).await;
        channel.close();
        let closed = poll(&text(), channel.clone(), "/?offset=-1", &[]).await;
        assert_eq!(closed.text(), "01");
        assert_eq!(
            durable(&closed)[..3],
            [durable(&open)[0], Some("true"), Some("true")]
        );
        assert_ne!(open.header("etag"), closed.header("etag"));
        let partial = poll(&text().max_events(1), channel.clone(), "/?offset=-1", &[]).await;
        assert_eq!(durable(&partial)[1..3], [None, None]);

        let offset = durable(&closed)[0].unwrap();
        for (uri, status) in [("/?offset=", 200), ("/?live=long-poll&offset=", 204)] {
            let uri = format!("{uri}{offset}");
            let answer = poll(&text().wait_time(TEST_TIMEOUT), channel.clone(), &uri, &[]).await;
            assert_eq!((answer.status, answer.text()), (status, ""));
            assert_eq!(
                durable(&answer)[..3],
                [Some(offset), Some("true"), Some("true")]
            );
        }
        let now = poll(&text(), channel.clone(), "/?offset=now", &[]).await;
        let [next, up_to_date, is_closed, _] = durable(&now);
        assert_eq!((up_to_date, is_closed), (Some("true"), Some("true")));
        let uri = format!("/?offset={}", next.unwrap());
        let again = poll(&text(), channel, &uri, &[]).await;
        assert_eq!((again.status, durable(&again)[2]), (200, Some("true")));
    }

    #[tokio::test]
    async fn only_catch_up_read_gets_304() {
        let channel = channel_of_numbers(0..2);
        let first = poll(&text(), channel.clone(), "/?offset=-1", &[]).await;
        let etag = first.header("etag").unwrap().to_owned();
        let asked = async |uri: &str, etag: &str| {
            poll(&text(), channel.clone(), uri, &[("if-none-match", etag)]).await
        };
        for held in [&*etag, &*format!("W/{etag}"), &*format!("\"x\", {etag}")] {
            let same = asked("/?offset=-1", held).await;
            assert_eq!((same.status, same.text()), (304, ""));
            assert_eq!(same.header("content-type"), None);
            assert_eq!(same.header("etag"), Some(&*etag));
        }
        for other in ["*", "\"x\"", "junk", "é"] {
            assert_eq!(asked("/?offset=-1", other).await.status, 200, "{other}");
        }
        assert_eq!(asked("/?offset=-1&live=long-poll", &etag).await.status, 200);
        channel.publish(number_event(2)).unwrap();
        let grown = asked("/?offset=-1", &etag).await;
        let etag = grown.header("etag").unwrap().to_owned();
        assert_eq!(grown.text(), "012");
        channel.close();
        let closed = asked("/?offset=-1", &etag).await;
        assert_eq!((closed.status, durable(&closed)[2]), (200, Some("true")));
    }

    #[tokio::test]
    async fn malformed_requests_are_refused() {
        let long = format!("/?offset={}", "x".repeat(300));
        for uri in [
            "/?offset=",
            "/?offset",
            "/?offset=a&offset=a",
            "/?offset=a/b",
            "/?offset=0,1",
            "/?offset=0%201",
            "/?offset=%ff",
            "/?offset=~finished",
            "/?offset=~finished&live=sse",
            &long,
            "/?live=sse",
            "/?live=long-poll",
            "/?offset=-1&live=",
            "/?offset=-1&live=x",
            "/?offset=-1&live=sse&live=sse",
        ] {
            let answer = poll(&text(), channel_of_numbers([1]), uri, &[]).await;
            assert_eq!(answer.status, 400, "{uri}");
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
            assert_eq!(answer.header("cache-control"), Some("no-store"));
        }
    }

    #[tokio::test]
    async fn expired_offset_gets_410() {
        let channel = Channel::builder().max_events(2).build();
        let id = channel.publish(number_event(0)).unwrap();
        (1..6).for_each(|n| drop(channel.publish(number_event(n))));
        for offset in [id.as_str(), "unknown-1"] {
            for live in ["", "&live=long-poll", "&live=sse"] {
                let uri = format!("/?offset={offset}{live}");
                let answer = poll(&text(), channel.clone(), &uri, &[]).await;
                assert_eq!(answer.status, 410, "{uri}");
            }
        }
        let answer = poll(&text(), channel, "/?offset=-1", &[]).await;
        assert_eq!((answer.status, answer.text()), (200, "45"));
    }

    #[tokio::test]
    async fn shared_reads_are_public_by_choice() {
        let channel = channel_of_numbers(1..=4);
        let first = poll(&text().max_events(1), channel.clone(), "/?offset=-1", &[]).await;
        let middle = format!("/?offset={}", durable(&first)[0].unwrap());
        for (transport, policy) in [
            (text(), "private"),
            (text().durable_public_cache(), "public"),
        ] {
            let transport = transport.max_events(1);
            let answer = poll(&transport, channel.clone(), &middle, &[]).await;
            let cache = format!("{policy}, max-age=60, stale-while-revalidate=300");
            assert_eq!(answer.header("cache-control"), Some(&*cache));
            // The first offset and the tail change, so their responses must be revalidated.
            let answer = poll(&transport, channel.clone(), "/?offset=-1", &[]).await;
            assert_eq!(answer.header("cache-control"), Some("private, no-cache"));
            for now in ["/?offset=now", "/?offset=now&live=long-poll"] {
                let answer = poll(&transport, channel.clone(), now, &[]).await;
                assert_eq!(answer.header("cache-control"), Some("no-store"), "{now}");
            }
        }
    }

    #[tokio::test]
    async fn closed_stream_has_one_tail() {
        let channel = channel_of_numbers(1..=2);
        let all = poll(&text(), channel.clone(), "/?offset=-1", &[]).await;
        channel.close();
        let head = http::Request::head("/?offset=now").body(()).unwrap();
        let mut head = head.into_parts().0;
        let told = text().respond(&mut head, Push::new(channel.clone())).await;
        let now = poll(&text(), channel, "/?offset=now", &[]).await;
        assert_eq!(durable(&now)[0], durable(&all)[0]);
        assert_eq!(durable(&now)[2], Some("true"));
        assert_eq!(
            told.headers()["stream-next-offset"],
            durable(&all)[0].unwrap()
        );
        assert_eq!(told.headers()["stream-closed"], "true");
    }

    #[tokio::test]
    async fn only_get_is_conditional() {
        let channel = channel_of_numbers(1..=2);
        let all = poll(&text(), channel.clone(), "/?offset=-1", &[]).await;
        let etag = all.header("etag").unwrap();
        let again = poll(
            &text(),
            channel.clone(),
            "/?offset=-1",
            &[("if-none-match", etag)],
        )
        .await;
        assert_eq!(again.status, 304);
        let post = http::Request::post("/?offset=-1").header("if-none-match", etag);
        let mut head = post.body(()).unwrap().into_parts().0;
        let answer = text().respond(&mut head, Push::new(channel)).await;
        assert_eq!(answer.status(), 200);
    }

    /// The application may use these parameters for its own purposes.
    #[tokio::test]
    async fn protocol_parameters_select_only_long_poll() {
        for uri in [
            "/?offset=20&limit=10",
            "/?live=true",
            "/?live=",
            "/?offset=-1",
            "/?live=sse",
        ] {
            let mut head = get_request_head(uri, &[("accept", "text/event-stream")]);
            let push = Push::new(channel_of_numbers([1]));
            let response = Negotiate::new().respond(&mut head, push).await;
            assert_eq!(response.status(), 200, "{uri}");
            let content_type = &response.headers()["content-type"];
            assert_eq!(content_type, "text/event-stream; charset=utf-8");
        }
    }

    /// Parses an event stream into the types and the data of its events.
    fn events(text: &str) -> Vec<(String, String)> {
        let blocks = text.split("\n\n").filter(|block| block.contains("event:"));
        let field = |block: &str, name: &str| -> Vec<String> {
            let lines = block.lines().filter_map(|line| line.strip_prefix(name));
            lines
                .map(|value| value.strip_prefix(' ').unwrap_or(value).to_owned())
                .collect()
        };
        blocks
            .map(|block| {
                (
                    field(block, "event:").join(""),
                    field(block, "data:").join("\n"),
                )
            })
            .collect()
    }

    fn parse_control(data: &str) -> Value {
        serde_json::from_str(data).unwrap()
    }

    #[tokio::test]
    async fn sse_batches_are_data_control_pairs() {
        let channel = channel_of_numbers(0..2);
        channel.close();
        let transport = without_wait();
        let answer = poll(&transport, channel, "/?offset=-1&live=sse", &[]).await;
        assert_eq!(answer.header("content-type"), Some("text/event-stream"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(
            answer.header("cache-control"),
            Some("no-cache, no-transform")
        );
        let events = events(answer.text());
        assert_eq!(events[0], ("data".into(), "[0,1]".into()));
        let parse_control = parse_control(&events[1].1);
        assert_eq!(parse_control["streamClosed"], true);
        assert_eq!(parse_control["upToDate"], true);
        assert_eq!(parse_control["streamCursor"], Value::Null);
        assert_eq!(events.len(), 2);

        let offset = parse_control["streamNextOffset"].as_str().unwrap();
        let uri = format!("/?live=sse&offset={offset}");
        let channel = channel_of_numbers(0..2);
        channel.close();
        assert_eq!(poll(&transport, channel, &uri, &[]).await.status, 410);
    }

    #[tokio::test]
    async fn sse_reports_closed_stream_at_its_tail() {
        let channel = channel_of_numbers(0..2);
        channel.close();
        let tail = poll(&text(), channel.clone(), "/?offset=-1", &[]).await;
        let offset = durable(&tail)[0].unwrap();
        for offset in [offset, "now"] {
            let uri = format!("/?live=sse&offset={offset}");
            let answer = poll(&text(), channel.clone(), &uri, &[]).await;
            let events = events(answer.text());
            assert_eq!((events.len(), &*events[0].0), (1, "control"));
            assert_eq!(parse_control(&events[0].1)["streamClosed"], true);
        }
    }

    #[tokio::test]
    async fn sse_continues_with_live_events() {
        let channel = channel_of_numbers([]);
        let server = TestServer::start(service(channel.clone()).transport(text())).await;
        let mut client = HttpConnection::connect(&server, HttpVersion::ALL[0]).await;
        let mut reading = client.get("/?offset=now&live=sse&cursor=1", &[]).await;
        assert_eq!(reading.header("content-length"), None);
        let next = async |reading: &mut StreamingResponse| {
            let bytes = reading.next_chunk().await.unwrap().unwrap();
            events(std::str::from_utf8(&bytes).unwrap())
        };
        let first = next(&mut reading).await;
        assert_eq!(first.len(), 1);
        let first = parse_control(&first[0].1);
        assert_eq!(first["upToDate"], true);
        assert!(
            first["streamCursor"]
                .as_str()
                .unwrap()
                .parse::<u64>()
                .unwrap()
                > 1
        );
        channel
            .publish(Event::text(" a\r\n\revent: control\ndata: x"))
            .unwrap();
        let second = next(&mut reading).await;
        assert_eq!(
            second[0],
            ("data".into(), " a\n\nevent: control\ndata: x".into())
        );
        let second = parse_control(&second[1].1);
        assert!(second["streamNextOffset"].as_str() > first["streamNextOffset"].as_str());
        assert_eq!(second["upToDate"], true);
        channel.publish(Event::text("last")).unwrap();
        channel.close();
        let (rest, end) = reading.read_to_end().await;
        end.unwrap();
        let rest = String::from_utf8(rest).unwrap();
        let rest = events(&rest);
        assert!(rest.iter().any(|event| event.1 == "last"));
        assert_eq!(parse_control(&rest.last().unwrap().1)["streamClosed"], true);
    }

    #[tokio::test]
    async fn sse_batch_is_bounded() {
        let channel = channel_of_numbers(0..5);
        channel.close();
        let answer = poll(&text().max_events(2), channel, "/?offset=-1&live=sse", &[]).await;
        let events = events(answer.text());
        let data: Vec<_> = events
            .iter()
            .filter(|e| e.0 == "data")
            .map(|e| &*e.1)
            .collect();
        assert_eq!(data, ["01", "23", "4"]);
        let up_to_date = |n: usize| parse_control(&events[n].1)["upToDate"].clone();
        assert_eq!(
            [up_to_date(1), up_to_date(3), up_to_date(5)],
            [Value::Null, Value::Null, json!(true)]
        );
    }

    #[tokio::test]
    async fn sse_base64_depends_on_content_type() {
        for (content_type, data) in [
            ("application/octet-stream", "SGVsbG8="),
            ("image/png", "SGVsbG8="),
            ("text/plain; charset=utf-8", "Hello"),
            ("TEXT/csv", "Hello"),
        ] {
            let channel = channel_of_numbers([]);
            channel.publish(Event::binary(&b"Hello"[..])).unwrap();
            channel.close();
            let transport =
                without_wait().durable_content_type(HeaderValue::from_static(content_type));
            let answer = poll(&transport, channel, "/?offset=-1&live=sse", &[]).await;
            assert_eq!(events(answer.text())[0].1, data);
            let encoding = (data != "Hello").then_some("base64");
            assert_eq!(answer.header("stream-sse-data-encoding"), encoding);
        }
    }

    /// Appends have split characters. A client that resumes after any `control` event gets the rest of the text.
    #[tokio::test]
    async fn sse_text_has_whole_characters() {
        let channel = channel_of_numbers([]);
        let appends = [
            &b"a\xe2"[..],
            b"\x82",
            b"\xac b\xc3",
            b"\xa9\xf0\x9f",
            b"\x98\x80",
        ];
        for bytes in appends {
            channel.publish(Event::binary(bytes)).unwrap();
        }
        channel.close();
        let transport = text().max_events(1);
        let read = async |offset: &str| {
            let uri = format!("/?live=sse&offset={offset}");
            let answer = poll(&transport, channel.clone(), &uri, &[]).await;
            events(answer.text())
        };
        let whole = read("-1").await;
        let data = whole.iter().filter(|event| event.0 == "data");
        let data: Vec<_> = data.map(|event| &*event.1).collect();
        assert_eq!(data, ["a€", " bé", "😀"]);
        for (number, (_, control)) in whole
            .iter()
            .filter(|event| event.0 == "control")
            .enumerate()
        {
            let offset = parse_control(control)["streamNextOffset"].clone();
            let rest = read(offset.as_str().unwrap()).await;
            let rest = rest.iter().filter(|event| event.0 == "data");
            let rest: String = rest.map(|event| &*event.1).collect();
            assert_eq!(rest, data[number + 1..].concat());
        }
    }

    /// The rest of the character may still come, until the stream is closed.
    #[tokio::test]
    async fn sse_text_waits_for_rest_of_character() {
        let channel = channel_of_numbers([]);
        let mut head = get_request_head("/?offset=-1&live=sse", &[]);
        let response = text().respond(&mut head, Push::new(channel.clone())).await;
        let mut body = response.into_body();
        let mut next = async || {
            let frame = body.frame().await.unwrap().unwrap();
            let bytes = frame.into_data().unwrap();
            String::from_utf8(bytes.to_vec()).unwrap()
        };
        assert!(next().await.starts_with("event: control\n"));
        channel.publish(Event::binary(&b"a\xc3"[..])).unwrap();
        channel.publish(Event::binary(&b"\xa9b\xc3"[..])).unwrap();
        assert!(next().await.starts_with("event: data\ndata:aé\n\n"));
        channel.close();
        let last = next().await;
        assert!(
            last.starts_with("event: data\ndata:b\u{fffd}\n\n"),
            "{last}"
        );
        assert!(last.contains("\"streamClosed\":true"), "{last}");
    }

    #[tokio::test]
    async fn sse_text_stream_is_cut_at_binary_payload() {
        let channel = channel_of_numbers([]);
        channel.publish(Event::binary(&b"\xff"[..])).unwrap();
        let mut head = get_request_head("/?offset=-1&live=sse", &[]);
        let response = text().respond(&mut head, Push::new(channel)).await;
        assert!(response.into_body().collect().await.is_err());
    }
}

mod sockets {
    use super::*;

    #[tokio::test]
    async fn response_has_content_length() {
        let channel = channel_of_numbers(0..3);
        let server = TestServer::start(service(channel.clone()).transport(without_wait())).await;
        for uri in [
            "/",
            "/?offset=-1",
            "/?offset=now",
            "/?offset=-1&live=long-poll",
        ] {
            for version in HttpVersion::ALL {
                let mut client = HttpConnection::connect(&server, version).await;
                let answer = read_from_server(client.get(uri, &[]).await).await;
                let length = answer.body.len().to_string();
                assert_eq!(
                    answer.header("content-length"),
                    Some(&*length),
                    "{uri} {version:?}"
                );
                assert_eq!(answer.header("transfer-encoding"), None);
                assert_eq!(answer.header("connection"), None);
            }
        }
        let until = "\r\n\r\n";
        let request =
            "GET /?offset=now&live=long-poll HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let (_socket, text) = send_raw_http1(&server, request, until).await;
        assert!(text.starts_with("HTTP/1.1 204"));
        assert!(text.ends_with(until), "{text}");
        let text = text.to_lowercase();
        assert!(!text.contains("transfer-encoding") && !text.contains("content-length"));
        let request = "HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let (_socket, text) = send_raw_http1(&server, request, until).await;
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with(until));
    }

    #[tokio::test]
    async fn aborted_poll_unsubscribes() {
        let channel = Channel::new();
        let server = TestServer::start(service(channel.clone()).transport(LongPoll::new())).await;
        for version in HttpVersion::ALL {
            for uri in ["/", "/?offset=now&live=long-poll", "/?offset=now&live=sse"] {
                let mut client = HttpConnection::connect(&server, version).await;
                let poll = tokio::spawn(async move {
                    let reading = client.get(uri, &[]).await;
                    reading.discard_rest().await;
                });
                wait_for_subscribers(&channel, 1).await;
                poll.abort();
                wait_for_subscribers(&channel, 0).await;
            }
        }
    }

    #[tokio::test]
    async fn parallel_polls_with_one_cursor_get_same_batch() {
        let channel = channel_of_numbers([]);
        let server = TestServer::start(service(channel.clone()).transport(LongPoll::new())).await;
        let mut polls = Vec::new();
        for version in [HttpVersion::ALL, HttpVersion::ALL].concat() {
            let mut client = HttpConnection::connect(&server, version).await;
            polls.push(tokio::spawn(async move {
                read_from_server(client.get("/", &[]).await).await.body
            }));
        }
        wait_for_subscribers(&channel, 4).await;
        channel.publish(number_event(7)).unwrap();
        let mut bodies = Vec::new();
        for poll in polls {
            bodies.push(poll.await.unwrap());
        }
        assert!(String::from_utf8_lossy(&bodies[0]).contains("\"data\":7"));
        assert!(bodies.iter().all(|body| *body == bodies[0]));
        assert_eq!(channel.subscriber_count(), 0);
    }

    /// Polls until it has `count` events. Discards every third response, and aborts every fifth poll.
    async fn poll_all_events(server: &TestServer, dialect: usize, count: u64) -> Vec<u64> {
        let version = HttpVersion::ALL[dialect % 2];
        let (mut got, mut cursor) = (Vec::new(), None::<String>);
        for round in 0_u64.. {
            if got.len() as u64 >= count {
                break;
            }
            let etag = cursor.as_ref().map(|id| format!("\"{id}\""));
            let etag = etag.as_deref().map(|etag| [("if-none-match", etag)]);
            let (uri, headers) = match dialect {
                0 | 1 => (
                    "/?timeout=1".to_owned(),
                    etag.as_ref().map_or(&[][..], |etag| &etag[..]),
                ),
                _ => {
                    let offset = cursor.as_deref().unwrap_or("-1");
                    (
                        format!("/?offset={offset}&live=long-poll&timeout=1"),
                        &[][..],
                    )
                }
            };
            let mut client = HttpConnection::connect(server, version).await;
            if round % 5 == 4 {
                let poll = client.get(&uri, headers);
                let _ = tokio::time::timeout(Duration::from_micros(300), poll).await;
                continue;
            }
            let answer = read_from_server(client.get(&uri, headers).await).await;
            if round % 3 == 2 {
                continue;
            }
            if answer.status == 204 {
                continue;
            }
            let (data, next) = match dialect {
                0 | 1 => (answer.data(), answer.cursor()),
                _ => (answer.json(), answer.header("stream-next-offset").unwrap()),
            };
            got.extend(data.iter().map(|n| n.as_u64().unwrap()));
            cursor = Some(next.to_owned());
        }
        got
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn failed_polls_lose_and_duplicate_nothing() {
        const COUNT: u64 = 5_000;
        let channel = Channel::builder()
            .max_events(COUNT as usize)
            .start(StartPosition::Oldest)
            .build();
        let transport = LongPoll::new().max_events(64);
        let server = TestServer::start(service(channel.clone()).transport(transport)).await;
        let publishing = async {
            for n in 0..COUNT {
                channel.publish(number_event(n)).unwrap();
                if n % 16 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        };
        let reading =
            futures_util::future::join_all((0..4).map(|d| poll_all_events(&server, d, COUNT)));
        let (got, ()) = tokio::join!(reading, publishing);
        for got in got {
            assert!(got.into_iter().eq(0..COUNT));
        }
        wait_for_subscribers(&channel, 0).await;
    }

    /// The handler of each poll subscribes to live events only, and does not have the earlier ones.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn source_without_cursors_is_polled_without_loss() {
        const COUNT: u64 = 500;
        let sender = broadcast::Sender::<u64>::new(1024);
        let live = sender.clone();
        let handler = tower::service_fn(move |_: Request<hyper::body::Incoming>| {
            let events = BroadcastStream::new(live.subscribe());
            let source = source_fn(async move |_| Ok(events.map(|n| n.map(number_event))));
            async { Ok::<_, Infallible>(Push::new(source)) }
        });
        let transport = LongPoll::new().max_events(3);
        let server = TestServer::start(LongPollLayer::with(transport).layer(handler)).await;
        let publishing = tokio::spawn(async move {
            for n in 0.. {
                let _ = sender.send(n);
                tokio::time::sleep(Duration::from_millis(n % 3)).await;
            }
        });
        let readers = (0..4).map(|dialect| poll_all_events(&server, dialect, COUNT));
        for got in futures_util::future::join_all(readers).await {
            assert!(got.is_sorted() && got.windows(2).all(|w| w[0] + 1 == w[1]));
        }
        publishing.abort();
    }

    #[tokio::test]
    async fn fast_publisher_causes_gaps_not_silence() {
        let channel = Channel::builder()
            .max_events(8)
            .lag_policy(LagPolicy::Gap)
            .start(StartPosition::Oldest)
            .build();
        let (mut seen, mut missed) = (0_u64, 0);
        let mut cursor = String::new();
        let published = AtomicU64::new(0);
        for round in 0..50 {
            for _ in 0..(round * 7) % 20 {
                channel
                    .publish(number_event(published.fetch_add(1, Ordering::Relaxed)))
                    .unwrap();
            }
            let headers = [("last-event-id", &*cursor)];
            let answer = poll(&without_wait(), channel.clone(), "/", &headers).await;
            for record in answer.json() {
                match record.get("gap") {
                    Some(gap) => missed += gap["missed"].as_u64().unwrap(),
                    None => {
                        assert_eq!(record["data"], seen + missed);
                        seen += 1;
                    }
                }
            }
            cursor = answer.cursor().to_owned();
        }
        assert_eq!(seen + missed, published.into_inner());
        assert!(missed > 0);
    }
}

mod in_chromium {
    use super::*;

    /// A plain `fetch` loop in Chromium, whose cache remembers the cursor: `tests/js/long_poll.mjs`.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn plain_fetch_loop_loses_nothing() {
        let mut node = programs::node_script_with_chromium("long_poll.mjs");
        let channel = Channel::new();
        let long_poll = service(channel.clone())
            .transport(LongPoll::new().wait_time(Duration::from_millis(60)));
        let page = tower::service_fn(move |request: Request<hyper::body::Incoming>| {
            let long_poll = long_poll.clone();
            async move {
                if request.uri().path() == "/" {
                    let mut page = Response::new(PushBody::full("<!doctype html><title>x</title>"));
                    let html = HeaderValue::from_static("text/html");
                    page.headers_mut().insert("content-type", html);
                    return Ok(page);
                }
                long_poll.oneshot(request).await
            }
        });
        let server = TestServer::start(page).await;
        let publishing = tokio::spawn(async move {
            for n in 0.. {
                channel.publish(number_event(n)).unwrap();
                // Most pauses are shorter than a poll's wait time, and some are longer.
                let pause = if n % 7 == 0 { 150 } else { 15 };
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        });
        node.arg(server.url("/"));
        let output = tokio::task::spawn_blocking(move || node.output());
        let output = output.await.unwrap().expect("run scripts/setup first");
        publishing.abort();
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn json_array_is_streaming_format() {
    let source = stream::iter([Item::from(Gap::new(GapReason::Lagged))]).chain(stream::iter(
        ["a", "b"].map(|text| Item::Event(Event::text(text))),
    ));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let text = runtime.block_on(async {
        let chunked = tower_push::transport::Chunked::new(JsonArray::new());
        let response = chunked
            .respond(&mut get_request_head("/", &[]), Push::new(source))
            .await;
        testkit::body_text(response.into_body()).await
    });
    let records: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(records.len(), 4);
    assert_eq!(records[3], json!({"end": {"finished": false}}));
}
