//! Long-polling: complete answers, one cursor, two dialects, and nothing lost between two polls.

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
    HttpClient, HttpVersion, StreamingResponse, TEST_TIMEOUT, TestServer, get_request_head,
    programs, send_raw_http1,
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
        Rejection, StartPosition, Subscription, channel::LagPolicy, resumable::EndPolicy, source_fn,
    },
    transport::{LongPoll, Negotiate, Transport},
};

const NO_TIME: Duration = Duration::ZERO;

/// Answers at once, whatever there is.
fn at_once() -> LongPoll {
    LongPoll::new().wait_time(NO_TIME)
}

struct Answer {
    status: u16,
    headers: http::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Vec<Value> {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// What was published, of a batch of envelopes.
    fn data(&self) -> Vec<Value> {
        let records = self.json().into_iter();
        records.filter_map(|r| r.get("data").cloned()).collect()
    }

    /// The cursor that the answer leaves the client with.
    fn cursor(&self) -> &str {
        let tag = self.header("etag").expect("a validator");
        let tag = tag.strip_prefix('"').unwrap().strip_suffix('"').unwrap();
        let (id, _) = tag.split_once('+').expect("its format");
        assert_eq!(self.header("last-event-id"), Some(id));
        id
    }
}

async fn ask(
    transport: &LongPoll,
    source: impl PushSource + Send + 'static,
    uri: &str,
    headers: &[(&str, &str)],
) -> Answer {
    ask_by("GET", transport, source, uri, headers).await
}

async fn ask_by(
    method: &str,
    transport: &LongPoll,
    source: impl PushSource + Send + 'static,
    uri: &str,
    headers: &[(&str, &str)],
) -> Answer {
    let mut head = get_request_head(uri, headers);
    head.method = method.parse().unwrap();
    read(transport.respond(&mut head, Push::new(source)).await).await
}

async fn read(response: Response<PushBody>) -> Answer {
    let (head, body) = response.into_parts();
    Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: body.collect().await.unwrap().to_bytes().to_vec(),
    }
}

async fn received(reading: StreamingResponse) -> Answer {
    let (status, headers) = (reading.head.status.as_u16(), reading.head.headers.clone());
    let (body, end) = reading.read_to_end().await;
    end.unwrap();
    Answer {
        status,
        headers,
        body,
    }
}

fn number(n: u64) -> Event {
    Event::json(&n).unwrap()
}

/// A channel that holds these, from the first on.
fn numbers(numbers: impl IntoIterator<Item = u64>) -> Channel {
    let channel = Channel::builder().start(StartPosition::Oldest).build();
    for n in numbers {
        channel.publish(number(n)).unwrap();
    }
    channel
}

async fn becomes(channel: &Channel, subscribers: usize) {
    let wait = async {
        while channel.subscriber_count() != subscribers {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(TEST_TIMEOUT, wait).await;
    assert!(waited.is_ok(), "{} subscribers", channel.subscriber_count());
}

mod validators {
    use super::*;

    #[tokio::test]
    async fn a_batch_is_everything_that_is_ready_under_the_last_id() {
        let channel = numbers(0..3);
        let answer = ask(&at_once(), channel, "/", &[]).await;
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
    async fn a_lost_response_is_repeated_by_asking_again() {
        let channel = numbers(0..3);
        let first = ask(&at_once(), channel.clone(), "/", &[]).await;
        let again = ask(&at_once(), channel.clone(), "/", &[]).await;
        assert_eq!(first.body, again.body);
        channel.publish(number(3)).unwrap();
        for _ in 0..2 {
            let tag = [("if-none-match", first.header("etag").unwrap())];
            let next = ask(&at_once(), channel.clone(), "/", &tag).await;
            assert_eq!(next.data(), [3]);
        }
    }

    #[tokio::test]
    async fn the_cursor_comes_back_in_each_of_its_ways() {
        let channel = numbers(0..3);
        let ids: Vec<_> = ask(&at_once(), channel.clone(), "/", &[]).await.json();
        let id = ids[1]["id"].as_str().unwrap();
        for header in [
            ("if-none-match", format!("\"{id}\"")),
            ("if-none-match", format!("\"{id}+json\"")),
            ("if-none-match", format!("W/\"{id}+ndjson\"")),
            ("last-event-id", id.to_owned()),
        ] {
            let headers = [(header.0, header.1.as_str())];
            let answer = ask(&at_once(), channel.clone(), "/", &headers).await;
            assert_eq!(answer.data(), [2], "{header:?}");
        }
        let uri = format!("/?last_event_id={id}");
        assert_eq!(
            ask(&at_once(), channel.clone(), &uri, &[]).await.data(),
            [2]
        );
        // In a loop over one URL, the query is where it began.
        let last = [(
            "if-none-match",
            &*format!("\"{}\"", ids[2]["id"].as_str().unwrap()),
        )];
        assert_eq!(ask(&at_once(), channel, &uri, &last).await.data(), [0; 0]);
    }

    #[tokio::test]
    async fn each_format_has_a_tag_of_its_own_and_any_of_them_resumes() {
        let channel = numbers(0..2);
        let formats = [
            "application/json",
            "application/x-ndjson",
            "multipart/mixed",
            "text/plain",
        ];
        let mut tags = BTreeSet::new();
        for accept in formats {
            let answer = ask(&at_once(), channel.clone(), "/", &[("accept", accept)]).await;
            tags.insert(answer.header("etag").unwrap().to_owned());
        }
        assert_eq!(tags.len(), formats.len());
        channel.publish(number(2)).unwrap();
        for tag in &tags {
            let headers = [("if-none-match", &**tag), ("accept", formats[0])];
            let answer = ask(&at_once(), channel.clone(), "/", &headers).await;
            assert_eq!(answer.data(), [2], "{tag}");
        }
    }

    #[tokio::test]
    async fn odd_validators_are_no_cursor_and_never_an_error() {
        let channel = numbers(0..2);
        let long = format!("\"{}\"", "x".repeat(10 * 1024));
        for tag in [
            "*",
            "junk",
            "\"a\", \"b\"",
            "\"a:b\"",
            "\"\"",
            "W/",
            &long,
            "\"é\"",
        ] {
            let answer = ask(&at_once(), channel.clone(), "/", &[("if-none-match", tag)]).await;
            assert_eq!((answer.status, answer.data().len()), (200, 2), "{tag}");
        }
        let two = [("if-none-match", "\"a\""), ("if-none-match", "\"b\"")];
        assert_eq!(ask(&at_once(), channel, "/", &two).await.data(), [0, 1]);
    }

    #[tokio::test]
    async fn a_cursor_of_another_epoch_or_none_at_all_is_a_gap() {
        let channel = numbers(0..2);
        let other = numbers(0..9);
        let foreign = ask(&at_once(), other, "/", &[]).await;
        let tag = foreign.header("etag").unwrap().to_owned();
        let long = "x".repeat(10 * 1024);
        for header in [
            ("if-none-match", &*tag),
            ("last-event-id", "a b"),
            ("last-event-id", &long),
        ] {
            let answer = ask(&at_once(), channel.clone(), "/", &[header]).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.json()[0]["gap"]["reason"], "epoch");
            assert_eq!(answer.data(), [0, 1]);
        }
    }

    #[tokio::test]
    async fn an_expired_cursor_is_a_gap_with_its_count() {
        let channel = Channel::builder().max_events(2).build();
        let id = channel.publish(number(0)).unwrap();
        (1..6).for_each(|n| drop(channel.publish(number(n))));
        let answer = ask(&at_once(), channel, "/", &[("last-event-id", id.as_str())]).await;
        let gap = &answer.json()[0]["gap"];
        assert_eq!(
            (&gap["reason"], &gap["missed"]),
            (&json!("expired"), &json!(3))
        );
        assert_eq!(answer.data(), [4, 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_is_held_while_it_would_come_again_at_once() {
        let source = || source_fn(async |_| Ok(stream::pending::<Item>()));
        let began = Instant::now();
        let answer = ask(&LongPoll::new(), source(), "/", &[("last-event-id", "a b")]).await;
        assert_eq!(began.elapsed().as_secs(), 25);
        assert_eq!(answer.json()[0]["gap"]["reason"], "epoch");
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_answers_an_empty_batch_and_where_the_client_stands() {
        let channel = Channel::new();
        let began = Instant::now();
        let first = ask(&LongPoll::new(), channel.clone(), "/", &[]).await;
        assert_eq!(began.elapsed(), Duration::from_secs(25));
        // Browsers forget the cursor with any other status.
        assert_eq!((first.status, first.text()), (200, "[]\n"));
        assert_eq!(first.header("content-length"), Some("3"));
        assert_eq!(channel.subscriber_count(), 0);

        channel.publish(number(7)).unwrap();
        let tag = [("if-none-match", first.header("etag").unwrap())];
        let began = Instant::now();
        let next = ask(&LongPoll::new(), channel.clone(), "/", &tag).await;
        assert_eq!((began.elapsed(), next.data()), (NO_TIME, vec![json!(7)]));

        let tag = [("if-none-match", next.header("etag").unwrap())];
        let last = ask(&LongPoll::new(), channel, "/", &tag).await;
        assert_eq!((last.text(), last.cursor()), ("[]\n", next.cursor()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_time_is_the_clients_within_bounds() {
        let waits = async |transport: &LongPoll, uri: &str, prefer: &[(&str, &str)]| {
            let began = Instant::now();
            let answer = ask(transport, Channel::new(), uri, prefer).await;
            let applied = answer.header("preference-applied").map(str::to_owned);
            (began.elapsed().as_secs(), applied)
        };
        let by_default = LongPoll::new();
        let told = |seconds: u64| (seconds, Some(format!("wait={seconds}")));
        assert_eq!(waits(&by_default, "/?timeout=7", &[]).await, (7, None));
        assert_eq!(
            waits(&by_default, "/", &[("prefer", "wait=7")]).await,
            told(7)
        );
        assert_eq!(
            waits(&by_default, "/", &[("prefer", "wait=0")]).await,
            told(0)
        );
        assert_eq!(
            waits(&by_default, "/", &[("prefer", "wait=9999")]).await,
            told(60)
        );
        assert_eq!(
            waits(&by_default, "/", &[("prefer", "wait=x")]).await,
            (25, None)
        );
        assert_eq!(waits(&by_default, "/?timeout=soon", &[]).await, (25, None));
        let seconds = Duration::from_secs;
        let bound = LongPoll::new()
            .wait_time(seconds(3))
            .wait_time_range(seconds(2)..=seconds(5));
        assert_eq!(waits(&bound, "/", &[]).await, (3, None));
        assert_eq!(waits(&bound, "/?timeout=1", &[]).await, (2, None));
        assert_eq!(waits(&bound, "/?timeout=6", &[]).await, (5, None));
        // Bounds that exclude each other must not panic.
        let odd = LongPoll::new().wait_time_range(seconds(5)..=seconds(2));
        assert_eq!(waits(&odd, "/?timeout=1", &[]).await, (5, None));
        let endless = LongPoll::new().wait_time(Duration::MAX);
        assert!(waits(&endless, "/", &[]).await.0 >= 24 * 60 * 60);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_window_gathers_what_comes_one_by_one() {
        let channel = numbers([]);
        let transport = LongPoll::new().batch_window(Duration::from_millis(20));
        let publishing = async {
            for n in 0..4 {
                tokio::time::sleep(Duration::from_millis(8)).await;
                channel.publish(number(n)).unwrap();
            }
        };
        let (answer, ()) = tokio::join!(ask(&transport, channel.clone(), "/", &[]), publishing);
        // At 8, 16 and 24 ms; the window closes at 28.
        assert_eq!(answer.data(), [0, 1, 2]);
    }

    #[tokio::test]
    async fn a_batch_is_bounded_and_the_next_one_goes_on() {
        for transport in [at_once().max_events(3), at_once().max_bytes(200)] {
            let channel = numbers(0..10);
            let (mut all, mut batches) = (Vec::new(), 0);
            let mut cursor = String::new();
            loop {
                let headers = [("last-event-id", &*cursor)];
                let answer = ask(&transport, channel.clone(), "/", &headers).await;
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
    async fn the_end_is_told_in_the_batch_and_then_by_204() {
        let channel = numbers(0..2);
        channel.close();
        let last = ask(&LongPoll::new(), channel.clone(), "/", &[]).await;
        assert_eq!(last.data(), [0, 1]);
        let end = json!({"id": "~finished", "end": {"finished": true}});
        assert_eq!(last.json()[2], end);
        assert_eq!(last.cursor(), EventId::FINISHED);
        let tag = [("if-none-match", last.header("etag").unwrap())];
        let over = ask(&LongPoll::new(), channel, "/", &tag).await;
        assert_eq!((over.status, over.text()), (204, ""));
        assert_eq!(over.header("content-type"), None);
        assert_eq!(over.header("content-length"), None);
    }

    #[tokio::test]
    async fn an_end_for_now_has_no_record() {
        let source = source_fn(async |_| Ok(stream::iter([number(1).with_id(7)])));
        let answer = ask(&LongPoll::new(), source, "/", &[]).await;
        assert_eq!(answer.json(), [json!({"id": "7", "data": 1})]);
    }

    /// At once, the plainest loop would ask as fast as it can.
    #[tokio::test(start_paused = true)]
    async fn a_stream_that_ends_with_nothing_is_answered_after_the_wait_time() {
        let empty = || source_fn(async |_| Ok(stream::empty::<Event>()));
        let waits = async |push: Push, uri: &str| {
            let began = Instant::now();
            let restart = Resumable::builder().end_policy(EndPolicy::Restart).build();
            let transport = LongPoll::new().resumable(restart);
            let answer = ask(&transport, push, uri, &[]).await;
            (began.elapsed().as_secs(), answer)
        };
        let (waited, answer) = waits(Push::new(empty()), "/?last_event_id=a").await;
        assert_eq!((waited, answer.text(), answer.cursor()), (25, "[]\n", "a"));
        let (waited, answer) = waits(Push::new(empty()), "/?timeout=3").await;
        assert_eq!((waited, answer.text()), (3, "[]\n"));
        let (waited, answer) = waits(Push::new(stream::empty::<Event>()), "/").await;
        assert_eq!((waited, answer.text()), (25, "[]\n"));
        let (waited, answer) = waits(Push::new(empty()), "/?offset=a&live=long-poll").await;
        assert_eq!((waited, answer.status), (25, 204));

        // Who has something, or has finished for ever, is answered at once.
        let one = source_fn(async |_| Ok(stream::iter([number(1).with_id(7)])));
        assert_eq!(waits(Push::new(one), "/").await.0, 0);
        let finished = stream::iter([Item::Finished]);
        assert_eq!(waits(Push::new(finished), "/").await.0, 0);
        assert_eq!(waits(Push::new(empty()), "/?offset=a").await.0, 0);
    }

    /// For whoever comes: these, and then nothing for long.
    fn untold(numbers: std::ops::Range<u64>) -> impl PushSource + Send {
        source_fn(async move |_| Ok(stream::iter(numbers.map(number)).chain(stream::pending())))
    }

    #[tokio::test]
    async fn the_stream_of_a_source_that_tells_no_cursor_goes_on() {
        let transport = at_once().max_events(2);
        let first = ask(&transport, untold(0..5), "/", &[]).await;
        assert_eq!(first.data(), [0, 1]);
        let mut cursor = first.cursor().to_owned();
        for expected in [&[2, 3][..], &[4], &[]] {
            let headers = [("last-event-id", &*cursor)];
            let lost = ask(&transport, untold(0..5), "/", &headers).await;
            let again = ask(&transport, untold(0..5), "/", &headers).await;
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
    async fn such_a_stream_that_was_let_go_is_a_gap() {
        let none = Resumable::builder().max_parked_streams(0).build();
        let transport = at_once().resumable(none);
        let first = ask(&transport, untold(0..2), "/", &[]).await;
        assert_eq!(first.data(), [0, 1]);
        let headers = [("last-event-id", first.cursor())];
        let next = ask(&transport, untold(0..2), "/", &headers).await;
        assert_eq!(next.json()[0]["gap"]["reason"], "expired");
        assert_eq!(next.data(), [0, 1]);
        assert_ne!(next.cursor(), first.cursor());
        for live in ["", "&live=long-poll", "&live=sse"] {
            let uri = format!("/?offset={}{live}", first.cursor());
            let answer = ask(&transport, untold(0..2), &uri, &[]).await;
            assert_eq!(answer.status, 410, "{live}");
        }
    }

    #[tokio::test]
    async fn such_a_stream_ends_as_a_plain_one_does() {
        let source = || source_fn(async |_| Ok(stream::iter([number(1)])));
        let transport = LongPoll::new();
        let first = ask(&transport, source(), "/", &[]).await;
        assert_eq!(first.json(), [json!({"data": 1})]);
        let headers = [("last-event-id", first.cursor())];
        let last = ask(&transport, source(), "/", &headers).await;
        assert_eq!((last.data().len(), last.cursor()), (0, EventId::FINISHED));
    }

    #[tokio::test]
    async fn such_a_stream_tells_of_its_failure_too() {
        let failing = || source_fn(async |_| Ok(stream::iter([Ok(number(1)), Err("secret")])));
        let transport = LongPoll::new();
        let first = ask(&transport, failing(), "/", &[]).await;
        assert_eq!((first.status, first.data()), (200, vec![json!(1)]));
        let headers = [("last-event-id", first.cursor())];
        assert_eq!(ask(&transport, failing(), "/", &headers).await.status, 500);
    }

    #[tokio::test]
    async fn a_source_that_tells_cursors_is_asked_anew_and_never_parked() {
        let told = || {
            source_fn(async move |subscription: Subscription| {
                let id = EventId::from(7);
                let first = match subscription.cursor() {
                    Some(cursor) => Item::Cursor(cursor.clone()),
                    None => Item::Event(number(7).with_id(id)?),
                };
                let hello = Item::Event(Event::text("hello"));
                Ok(stream::iter([first, hello]).chain(stream::pending()))
            })
        };
        let resumable = Resumable::new();
        let transport = at_once().resumable(resumable.clone());
        let first = ask(&transport, told(), "/", &[]).await;
        assert_eq!((first.json().len(), first.cursor()), (2, "7"));
        // Of another lot: the source's affair.
        let foreign = ask(&at_once(), untold(0..1), "/", &[]).await;
        for cursor in ["7", foreign.cursor()] {
            let next = ask(&transport, told(), "/", &[("last-event-id", cursor)]).await;
            assert_eq!((next.json().len(), next.cursor()), (1, cursor));
        }
        assert_eq!(resumable.counts(), Resumable::new().counts());
    }

    /// Events, and then a failure, for whoever comes.
    fn failing(first: u64) -> impl PushSource + Send {
        source_fn(async move |subscription: Subscription| {
            let seen = subscription.cursor().map(|id| id.as_str().parse::<u64>());
            let next = seen.map_or(first, |seen| seen.unwrap() + 1);
            let events = (next..3).map(|n| Ok(number(n).with_id(n).unwrap()));
            Ok(stream::iter(events).chain(stream::iter([Err("secret")])))
        })
    }

    #[tokio::test]
    async fn a_failure_comes_after_what_was_there_before_it() {
        let answer = ask(&LongPoll::new(), failing(0), "/", &[]).await;
        assert_eq!((answer.status, answer.data().len()), (200, 3));
        let tag = [("if-none-match", answer.header("etag").unwrap())];
        let failed = ask(&LongPoll::new(), failing(0), "/", &tag).await;
        assert_eq!(failed.status, 500);
        assert!(!failed.text().contains("secret"));
        assert_eq!(failed.header("cache-control"), Some("no-store"));
    }

    #[tokio::test]
    async fn a_refusal_is_its_status() {
        let source = source_fn(async |_| {
            Err::<stream::Empty<Event>, _>(Rejection::new(StatusCode::FORBIDDEN))
        });
        let answer = ask(&LongPoll::new(), source, "/", &[]).await;
        assert_eq!((answer.status, answer.text()), (403, "Forbidden"));
    }

    #[tokio::test]
    async fn head_has_no_validator_and_does_not_ask() {
        let source =
            source_fn(async |_| -> Result<stream::Empty<Event>, _> { panic!("it is asked") });
        let answer = ask_by("HEAD", &LongPoll::new(), source, "/", &[]).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("etag"), None);
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }

    #[tokio::test]
    async fn the_format_is_the_one_that_the_client_accepts() {
        let channel = numbers(0..2);
        let accepting =
            async |accept: &str| ask(&at_once(), channel.clone(), "/", &[("accept", accept)]).await;
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
    async fn an_empty_batch_is_one_in_every_format() {
        for (accept, body) in [
            ("application/json", "[]\n"),
            ("application/x-ndjson", ""),
            ("text/plain", ""),
        ] {
            let answer = ask(&at_once(), Channel::new(), "/", &[("accept", accept)]).await;
            assert_eq!((answer.status, answer.text()), (200, body));
            assert_eq!(
                answer.header("content-length"),
                Some(&*body.len().to_string())
            );
        }
        let headers = [("accept", "multipart/mixed")];
        let answer = ask(&at_once(), Channel::new(), "/", &headers).await;
        let boundary = answer.header("content-type").unwrap();
        let (_, boundary) = boundary.split_once("boundary=").unwrap();
        assert_eq!(answer.text(), format!("--{boundary}--\r\n"));
    }

    #[tokio::test]
    async fn the_end_is_a_record_in_the_other_formats_too() {
        let over = |transport: LongPoll| async move {
            let channel = numbers([1]);
            channel.close();
            ask(&transport, channel, "/", &[]).await.text().to_owned()
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
    async fn a_format_that_cannot_tell_of_a_gap_answers_410() {
        let raw = LongPoll::only(Raw::new());
        let answer = ask(&raw, numbers([1]), "/", &[("last-event-id", "a-1")]).await;
        assert_eq!(answer.status, 410);
        let told = LongPoll::only(Raw::new().gap("..."));
        let answer = ask(&told, numbers([1]), "/", &[("last-event-id", "a-1")]).await;
        assert_eq!(answer.text(), "...\n1\n");
    }

    #[tokio::test]
    async fn a_layer_and_a_set_of_transports_serve_it() {
        let handler =
            |_: Request<()>| async { Ok::<_, std::convert::Infallible>(Push::new(numbers([1]))) };
        let layered = tower::ServiceBuilder::new()
            .layer(LongPollLayer::new())
            .service_fn(handler);
        let request = Request::get("/").body(()).unwrap();
        let answer = read(layered.oneshot(request).await.unwrap()).await;
        assert_eq!(answer.data(), [1]);

        let all = Negotiate::new().add_transport(at_once());
        for (uri, headers) in [
            ("/?transport=long-poll", &[][..]),
            ("/", &[("accept", "application/json")]),
            (
                "/?offset=-1&live=long-poll",
                &[("accept", "text/event-stream")],
            ),
        ] {
            let mut head = get_request_head(uri, headers);
            let answer = read(all.respond(&mut head, Push::new(numbers([1]))).await).await;
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
        fn any_request_is_answered(
            query in "(offset|live|cursor|timeout|last_event_id)?=?[ -~]{0,40}",
            tag in "[ -~]{0,40}",
            id in "[ -~]{0,40}",
            prefer in "(wait=)?[ -~]{0,20}",
        ) {
            let query: String = query.chars().filter(|c| !"\"#<>\\^`{|} ".contains(*c)).collect();
            let Ok(uri) = format!("/?{query}").parse::<http::Uri>() else { return Ok(()) };
            let headers = [("if-none-match", &*tag), ("last-event-id", &*id), ("prefer", &*prefer)];
            let transport = at_once().wait_time_range(NO_TIME..=NO_TIME);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let answer = runtime.block_on(ask(&transport, numbers(0..2), &uri.to_string(), &headers));
            prop_assert!([200, 204, 400, 410].contains(&answer.status), "{}", answer.status);
            if answer.status == 200 {
                let length = answer.body.len().to_string();
                prop_assert_eq!(answer.header("content-length"), Some(&*length));
            }
        }

        #[test]
        fn a_batch_of_any_texts_is_json(texts in proptest::collection::vec(any::<String>(), 0..20)) {
            let channel = Channel::builder().start(StartPosition::Oldest).build();
            for text in &texts {
                channel.publish(Event::text(text.clone())).unwrap();
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let answer = runtime.block_on(ask(&at_once(), channel, "/", &[]));
            prop_assert_eq!(answer.data(), texts);
        }
    }
}

mod durable {
    use super::*;

    fn durable(answer: &Answer) -> [Option<&str>; 4] {
        [
            "stream-next-offset",
            "stream-up-to-date",
            "stream-closed",
            "stream-cursor",
        ]
        .map(|name| answer.header(name))
    }

    fn text() -> LongPoll {
        at_once().durable_content_type(HeaderValue::from_static("text/plain"))
    }

    #[tokio::test]
    async fn a_catch_up_read_answers_at_once_with_what_is_there() {
        let channel = numbers(0..3);
        let all = ask(&LongPoll::new(), channel.clone(), "/?offset=-1", &[]).await;
        assert_eq!((all.status, all.text()), (200, "[0,1,2]"));
        assert_eq!(all.header("content-type"), Some("application/json"));
        let [next, up_to_date, closed, _] = durable(&all);
        assert_eq!((up_to_date, closed), (Some("true"), None));
        let next = next.unwrap();
        assert_eq!(all.header("cache-control"), Some("private, no-cache"));

        let uri = format!("/?offset={next}");
        let tail = ask(&LongPoll::new(), channel.clone(), &uri, &[]).await;
        assert_eq!((tail.status, tail.text()), (200, "[]"));
        assert_eq!(durable(&tail)[0], Some(next));
        channel.publish(Event::text("three")).unwrap();
        let more = ask(&LongPoll::new(), channel.clone(), &uri, &[]).await;
        assert_eq!(more.text(), "[\"three\"]");

        let bytes = ask(&text(), channel, "/?offset=-1", &[]).await;
        assert_eq!(bytes.text(), "012three");
        assert_eq!(bytes.header("content-type"), Some("text/plain"));
    }

    #[tokio::test]
    async fn pages_are_up_to_date_only_at_the_tail() {
        let channel = numbers(0..5);
        let transport = text().max_events(2);
        let (mut offset, mut pages) = ("-1".to_owned(), Vec::new());
        loop {
            let uri = format!("/?offset={offset}");
            let page = ask(&transport, channel.clone(), &uri, &[]).await;
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
    async fn now_is_the_tail_and_never_an_event() {
        let channel = numbers(0..3);
        let tail = ask(&text(), channel.clone(), "/?offset=-1", &[]).await;
        let now = ask(&LongPoll::new(), channel.clone(), "/?offset=now", &[]).await;
        assert_eq!((now.status, now.text()), (200, "[]"));
        assert_eq!(durable(&now)[..3], [durable(&tail)[0], Some("true"), None]);
        assert_eq!(now.header("cache-control"), Some("no-store"));
        assert_eq!(now.header("etag"), None);
        assert_eq!(ask(&text(), channel, "/?offset=now", &[]).await.text(), "");
    }

    #[tokio::test]
    async fn head_tells_the_tail() {
        let channel = numbers(0..3);
        let tail = ask(&text(), channel.clone(), "/?offset=-1", &[]).await;
        let only = text().durable_only();
        let head = ask_by("HEAD", &only, channel.clone(), "/", &[]).await;
        assert_eq!((head.status, head.text()), (200, ""));
        assert_eq!(durable(&head)[0], durable(&tail)[0]);
        assert_eq!(head.header("cache-control"), Some("no-store"));
        channel.close();
        let head = ask_by("HEAD", &only, channel.clone(), "/", &[]).await;
        assert_eq!(durable(&head)[2], Some("true"));
        assert_eq!(ask(&only, channel, "/", &[]).await.text(), "012");
    }

    #[tokio::test]
    async fn head_of_a_plain_stream_parks_nothing() {
        let resumable = Resumable::new();
        let transport = text().resumable(resumable.clone());
        let plain = || stream::pending::<Event>();
        let head = ask_by("HEAD", &transport, plain(), "/?offset=-1", &[]).await;
        assert_eq!((head.status, durable(&head)[0]), (200, Some("now")));
        assert_eq!(resumable.counts(), Resumable::new().counts());
        ask(&transport, plain(), "/?offset=now", &[]).await;
        assert_eq!(resumable.counts().parked, 1);
    }

    /// It is a word of the other transports, and no answer of this dialect has it.
    #[tokio::test]
    async fn a_finished_source_without_cursors_leaves_the_client_at_its_offset() {
        let finished = || source_fn(async |_| Ok(stream::iter([Item::Finished])));
        for (uri, status) in [("/?offset=-1", 200), ("/?offset=-1&live=long-poll", 204)] {
            let answer = ask(&text(), finished(), uri, &[]).await;
            assert_eq!(answer.status, status);
            assert_eq!(
                durable(&answer)[..3],
                [Some("-1"), Some("true"), Some("true")]
            );
        }
        let answer = ask(&text(), finished(), "/?offset=-1&live=sse", &[]).await;
        let control = control(&events(answer.text())[0].1);
        assert_eq!(control["streamNextOffset"], "-1");
        assert_eq!(control["streamClosed"], true);
    }

    #[tokio::test(start_paused = true)]
    async fn heartbeats_of_an_event_stream_are_the_transports() {
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
    async fn a_long_poll_waits_and_answers_204_with_a_cursor_that_grows() {
        let channel = numbers(0..2);
        let tail = ask(&text(), channel.clone(), "/?offset=now", &[]).await;
        let offset = durable(&tail)[0].unwrap();
        let mut cursor = String::new();
        for _ in 0..3 {
            let uri = format!("/?cursor={cursor}&live=long-poll&offset={offset}");
            let began = Instant::now();
            let answer = ask(&LongPoll::new(), channel.clone(), &uri, &[]).await;
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
            channel.publish(number(2)).unwrap();
        };
        let transport = text().wait_time(TEST_TIMEOUT);
        let asking = ask(&transport, channel.clone(), &uri, &[]);
        let (answer, ()) = tokio::join!(asking, publish);
        assert_eq!((answer.status, answer.text()), (200, "2"));
        assert_eq!(durable(&answer)[1], Some("true"));
        assert!(durable(&answer)[3].is_some());
    }

    #[tokio::test]
    async fn a_closed_stream_is_told_at_its_tail() {
        let channel = numbers(0..2);
        let open = ask(&text(), channel.clone(), "/?offset=-1", &[]).await;
        channel.close();
        let closed = ask(&text(), channel.clone(), "/?offset=-1", &[]).await;
        assert_eq!(closed.text(), "01");
        assert_eq!(
            durable(&closed)[..3],
            [durable(&open)[0], Some("true"), Some("true")]
        );
        assert_ne!(open.header("etag"), closed.header("etag"));
        let partial = ask(&text().max_events(1), channel.clone(), "/?offset=-1", &[]).await;
        assert_eq!(durable(&partial)[1..3], [None, None]);

        let offset = durable(&closed)[0].unwrap();
        for (uri, status) in [("/?offset=", 200), ("/?live=long-poll&offset=", 204)] {
            let uri = format!("{uri}{offset}");
            let answer = ask(&text().wait_time(TEST_TIMEOUT), channel.clone(), &uri, &[]).await;
            assert_eq!((answer.status, answer.text()), (status, ""));
            assert_eq!(
                durable(&answer)[..3],
                [Some(offset), Some("true"), Some("true")]
            );
        }
        let now = ask(&text(), channel.clone(), "/?offset=now", &[]).await;
        let [next, up_to_date, is_closed, _] = durable(&now);
        assert_eq!((up_to_date, is_closed), (Some("true"), Some("true")));
        let uri = format!("/?offset={}", next.unwrap());
        let again = ask(&text(), channel, &uri, &[]).await;
        assert_eq!((again.status, durable(&again)[2]), (200, Some("true")));
    }

    #[tokio::test]
    async fn only_a_catch_up_read_is_answered_304() {
        let channel = numbers(0..2);
        let first = ask(&text(), channel.clone(), "/?offset=-1", &[]).await;
        let tag = first.header("etag").unwrap().to_owned();
        let asked = async |uri: &str, tag: &str| {
            ask(&text(), channel.clone(), uri, &[("if-none-match", tag)]).await
        };
        for held in [&*tag, &*format!("W/{tag}"), &*format!("\"x\", {tag}")] {
            let same = asked("/?offset=-1", held).await;
            assert_eq!((same.status, same.text()), (304, ""));
            assert_eq!(same.header("content-type"), None);
            assert_eq!(same.header("etag"), Some(&*tag));
        }
        for other in ["*", "\"x\"", "junk", "é"] {
            assert_eq!(asked("/?offset=-1", other).await.status, 200, "{other}");
        }
        assert_eq!(asked("/?offset=-1&live=long-poll", &tag).await.status, 200);
        channel.publish(number(2)).unwrap();
        let grown = asked("/?offset=-1", &tag).await;
        let tag = grown.header("etag").unwrap().to_owned();
        assert_eq!(grown.text(), "012");
        channel.close();
        let closed = asked("/?offset=-1", &tag).await;
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
            let answer = ask(&text(), numbers([1]), uri, &[]).await;
            assert_eq!(answer.status, 400, "{uri}");
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
            assert_eq!(answer.header("cache-control"), Some("no-store"));
        }
    }

    #[tokio::test]
    async fn an_offset_of_what_is_gone_is_answered_410() {
        let channel = Channel::builder().max_events(2).build();
        let id = channel.publish(number(0)).unwrap();
        (1..6).for_each(|n| drop(channel.publish(number(n))));
        for offset in [id.as_str(), "unknown-1"] {
            for live in ["", "&live=long-poll", "&live=sse"] {
                let uri = format!("/?offset={offset}{live}");
                let answer = ask(&text(), channel.clone(), &uri, &[]).await;
                assert_eq!(answer.status, 410, "{uri}");
            }
        }
        let answer = ask(&text(), channel, "/?offset=-1", &[]).await;
        assert_eq!((answer.status, answer.text()), (200, "45"));
    }

    #[tokio::test]
    async fn what_may_be_shared_is_public_by_choice() {
        let channel = numbers(1..=4);
        let first = ask(&text().max_events(1), channel.clone(), "/?offset=-1", &[]).await;
        let middle = format!("/?offset={}", durable(&first)[0].unwrap());
        for (transport, policy) in [
            (text(), "private"),
            (text().durable_public_cache(), "public"),
        ] {
            let transport = transport.max_events(1);
            let answer = ask(&transport, channel.clone(), &middle, &[]).await;
            let cache = format!("{policy}, max-age=60, stale-while-revalidate=300");
            assert_eq!(answer.header("cache-control"), Some(&*cache));
            // What is oldest and what is newest changes.
            let answer = ask(&transport, channel.clone(), "/?offset=-1", &[]).await;
            assert_eq!(answer.header("cache-control"), Some("private, no-cache"));
            for now in ["/?offset=now", "/?offset=now&live=long-poll"] {
                let answer = ask(&transport, channel.clone(), now, &[]).await;
                assert_eq!(answer.header("cache-control"), Some("no-store"), "{now}");
            }
        }
    }

    #[tokio::test]
    async fn a_closed_stream_has_one_tail() {
        let channel = numbers(1..=2);
        let all = ask(&text(), channel.clone(), "/?offset=-1", &[]).await;
        channel.close();
        let head = http::Request::head("/?offset=now").body(()).unwrap();
        let mut head = head.into_parts().0;
        let told = text().respond(&mut head, Push::new(channel.clone())).await;
        let now = ask(&text(), channel, "/?offset=now", &[]).await;
        assert_eq!(durable(&now)[0], durable(&all)[0]);
        assert_eq!(durable(&now)[2], Some("true"));
        assert_eq!(
            told.headers()["stream-next-offset"],
            durable(&all)[0].unwrap()
        );
        assert_eq!(told.headers()["stream-closed"], "true");
    }

    #[tokio::test]
    async fn a_copy_is_asked_about_by_get_only() {
        let channel = numbers(1..=2);
        let all = ask(&text(), channel.clone(), "/?offset=-1", &[]).await;
        let tag = all.header("etag").unwrap();
        let again = ask(
            &text(),
            channel.clone(),
            "/?offset=-1",
            &[("if-none-match", tag)],
        )
        .await;
        assert_eq!(again.status, 304);
        let post = http::Request::post("/?offset=-1").header("if-none-match", tag);
        let mut head = post.body(()).unwrap().into_parts().0;
        let answer = text().respond(&mut head, Push::new(channel)).await;
        assert_eq!(answer.status(), 200);
    }

    /// They may be words of the application's own.
    #[tokio::test]
    async fn words_of_the_protocol_take_no_request_from_another_transport() {
        for uri in [
            "/?offset=20&limit=10",
            "/?live=true",
            "/?live=",
            "/?offset=-1",
            "/?live=sse",
        ] {
            let mut head = get_request_head(uri, &[("accept", "text/event-stream")]);
            let push = Push::new(numbers([1]));
            let response = Negotiate::new().respond(&mut head, push).await;
            assert_eq!(response.status(), 200, "{uri}");
            assert_eq!(response.headers()["content-type"], "text/event-stream");
        }
    }

    /// The events of an event stream: their types and their data.
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

    fn control(data: &str) -> Value {
        serde_json::from_str(data).unwrap()
    }

    #[tokio::test]
    async fn events_are_data_and_control_in_pairs() {
        let channel = numbers(0..2);
        channel.close();
        let transport = at_once();
        let answer = ask(&transport, channel, "/?offset=-1&live=sse", &[]).await;
        assert_eq!(answer.header("content-type"), Some("text/event-stream"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(
            answer.header("cache-control"),
            Some("no-cache, no-transform")
        );
        let events = events(answer.text());
        assert_eq!(events[0], ("data".into(), "[0,1]".into()));
        let control = control(&events[1].1);
        assert_eq!(control["streamClosed"], true);
        assert_eq!(control["upToDate"], true);
        assert_eq!(control["streamCursor"], Value::Null);
        assert_eq!(events.len(), 2);

        let offset = control["streamNextOffset"].as_str().unwrap();
        let uri = format!("/?live=sse&offset={offset}");
        let channel = numbers(0..2);
        channel.close();
        assert_eq!(ask(&transport, channel, &uri, &[]).await.status, 410);
    }

    #[tokio::test]
    async fn a_closed_stream_says_so_at_its_tail() {
        let channel = numbers(0..2);
        channel.close();
        let tail = ask(&text(), channel.clone(), "/?offset=-1", &[]).await;
        let offset = durable(&tail)[0].unwrap();
        for offset in [offset, "now"] {
            let uri = format!("/?live=sse&offset={offset}");
            let answer = ask(&text(), channel.clone(), &uri, &[]).await;
            let events = events(answer.text());
            assert_eq!((events.len(), &*events[0].0), (1, "control"));
            assert_eq!(control(&events[0].1)["streamClosed"], true);
        }
    }

    #[tokio::test]
    async fn the_stream_goes_on_with_what_comes() {
        let channel = numbers([]);
        let server = TestServer::start(service(channel.clone()).transport(text())).await;
        let mut client = HttpClient::connect(&server, HttpVersion::ALL[0]).await;
        let mut reading = client.get("/?offset=now&live=sse&cursor=1", &[]).await;
        assert_eq!(reading.header("content-length"), None);
        let next = async |reading: &mut StreamingResponse| {
            let bytes = reading.next_chunk().await.unwrap().unwrap();
            events(std::str::from_utf8(&bytes).unwrap())
        };
        let first = next(&mut reading).await;
        assert_eq!(first.len(), 1);
        let first = control(&first[0].1);
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
        let second = control(&second[1].1);
        assert!(second["streamNextOffset"].as_str() > first["streamNextOffset"].as_str());
        assert_eq!(second["upToDate"], true);
        channel.publish(Event::text("last")).unwrap();
        channel.close();
        let (rest, end) = reading.read_to_end().await;
        end.unwrap();
        let rest = String::from_utf8(rest).unwrap();
        let rest = events(&rest);
        assert!(rest.iter().any(|event| event.1 == "last"));
        assert_eq!(control(&rest.last().unwrap().1)["streamClosed"], true);
    }

    #[tokio::test]
    async fn a_batch_of_events_is_bounded_too() {
        let channel = numbers(0..5);
        channel.close();
        let answer = ask(&text().max_events(2), channel, "/?offset=-1&live=sse", &[]).await;
        let events = events(answer.text());
        let data: Vec<_> = events
            .iter()
            .filter(|e| e.0 == "data")
            .map(|e| &*e.1)
            .collect();
        assert_eq!(data, ["01", "23", "4"]);
        let up_to_date = |n: usize| control(&events[n].1)["upToDate"].clone();
        assert_eq!(
            [up_to_date(1), up_to_date(3), up_to_date(5)],
            [Value::Null, Value::Null, json!(true)]
        );
    }

    #[tokio::test]
    async fn bytes_are_base64_by_the_type_of_the_content() {
        for (content_type, data) in [
            ("application/octet-stream", "SGVsbG8="),
            ("image/png", "SGVsbG8="),
            ("text/plain; charset=utf-8", "Hello"),
            ("TEXT/csv", "Hello"),
        ] {
            let channel = numbers([]);
            channel.publish(Event::binary(&b"Hello"[..])).unwrap();
            channel.close();
            let transport = at_once().durable_content_type(HeaderValue::from_static(content_type));
            let answer = ask(&transport, channel, "/?offset=-1&live=sse", &[]).await;
            assert_eq!(events(answer.text())[0].1, data);
            let encoding = (data != "Hello").then_some("base64");
            assert_eq!(answer.header("stream-sse-data-encoding"), encoding);
        }
    }

    #[tokio::test]
    async fn bytes_that_are_no_text_cut_a_stream_of_text() {
        let channel = numbers([]);
        channel.publish(Event::binary(&b"\xff"[..])).unwrap();
        let mut head = get_request_head("/?offset=-1&live=sse", &[]);
        let response = text().respond(&mut head, Push::new(channel)).await;
        assert!(response.into_body().collect().await.is_err());
    }
}

mod sockets {
    use super::*;

    #[tokio::test]
    async fn an_answer_has_its_length_and_is_never_chunked() {
        let channel = numbers(0..3);
        let server = TestServer::start(service(channel.clone()).transport(at_once())).await;
        for uri in [
            "/",
            "/?offset=-1",
            "/?offset=now",
            "/?offset=-1&live=long-poll",
        ] {
            for version in HttpVersion::ALL {
                let mut client = HttpClient::connect(&server, version).await;
                let answer = received(client.get(uri, &[]).await).await;
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
    async fn an_aborted_poll_leaves_nothing_behind() {
        let channel = Channel::new();
        let server = TestServer::start(service(channel.clone()).transport(LongPoll::new())).await;
        for version in HttpVersion::ALL {
            for uri in ["/", "/?offset=now&live=long-poll", "/?offset=now&live=sse"] {
                let mut client = HttpClient::connect(&server, version).await;
                let poll = tokio::spawn(async move {
                    let reading = client.get(uri, &[]).await;
                    reading.discard_rest().await;
                });
                becomes(&channel, 1).await;
                poll.abort();
                becomes(&channel, 0).await;
            }
        }
    }

    #[tokio::test]
    async fn parallel_polls_with_one_cursor_get_the_same() {
        let channel = numbers([]);
        let server = TestServer::start(service(channel.clone()).transport(LongPoll::new())).await;
        let mut polls = Vec::new();
        for version in [HttpVersion::ALL, HttpVersion::ALL].concat() {
            let mut client = HttpClient::connect(&server, version).await;
            polls.push(tokio::spawn(async move {
                received(client.get("/", &[]).await).await.body
            }));
        }
        becomes(&channel, 4).await;
        channel.publish(number(7)).unwrap();
        let mut bodies = Vec::new();
        for poll in polls {
            bodies.push(poll.await.unwrap());
        }
        assert!(String::from_utf8_lossy(&bodies[0]).contains("\"data\":7"));
        assert!(bodies.iter().all(|body| *body == bodies[0]));
        assert_eq!(channel.subscriber_count(), 0);
    }

    /// Polls until it has `count` events; every third answer is thrown away, and every fifth poll is given up.
    async fn reads_all(server: &TestServer, dialect: usize, count: u64) -> Vec<u64> {
        let version = HttpVersion::ALL[dialect % 2];
        let (mut got, mut cursor) = (Vec::new(), None::<String>);
        for round in 0_u64.. {
            if got.len() as u64 >= count {
                break;
            }
            let tag = cursor.as_ref().map(|id| format!("\"{id}\""));
            let tag = tag.as_deref().map(|tag| [("if-none-match", tag)]);
            let (uri, headers) = match dialect {
                0 | 1 => (
                    "/?timeout=1".to_owned(),
                    tag.as_ref().map_or(&[][..], |tag| &tag[..]),
                ),
                _ => {
                    let offset = cursor.as_deref().unwrap_or("-1");
                    (
                        format!("/?offset={offset}&live=long-poll&timeout=1"),
                        &[][..],
                    )
                }
            };
            let mut client = HttpClient::connect(server, version).await;
            if round % 5 == 4 {
                let poll = client.get(&uri, headers);
                let _ = tokio::time::timeout(Duration::from_micros(300), poll).await;
                continue;
            }
            let answer = received(client.get(&uri, headers).await).await;
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
    async fn nothing_is_lost_or_doubled_however_polls_fail() {
        const COUNT: u64 = 5_000;
        let channel = Channel::builder()
            .max_events(COUNT as usize)
            .start(StartPosition::Oldest)
            .build();
        let transport = LongPoll::new().max_events(64);
        let server = TestServer::start(service(channel.clone()).transport(transport)).await;
        let publishing = async {
            for n in 0..COUNT {
                channel.publish(number(n)).unwrap();
                if n % 16 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        };
        let reading = futures_util::future::join_all((0..4).map(|d| reads_all(&server, d, COUNT)));
        let (got, ()) = tokio::join!(reading, publishing);
        for got in got {
            assert!(got.into_iter().eq(0..COUNT));
        }
        becomes(&channel, 0).await;
    }

    /// Each poll's handler follows what is live: what came before it, it does not have.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_source_that_tells_no_cursor_is_polled_without_a_loss() {
        const COUNT: u64 = 500;
        let sender = broadcast::Sender::<u64>::new(1024);
        let live = sender.clone();
        let handler = tower::service_fn(move |_: Request<hyper::body::Incoming>| {
            let events = BroadcastStream::new(live.subscribe());
            let source = source_fn(async move |_| Ok(events.map(|n| n.map(number))));
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
        let readers = (0..4).map(|dialect| reads_all(&server, dialect, COUNT));
        for got in futures_util::future::join_all(readers).await {
            assert!(got.is_sorted() && got.windows(2).all(|w| w[0] + 1 == w[1]));
        }
        publishing.abort();
    }

    #[tokio::test]
    async fn a_publisher_that_outruns_its_clients_leaves_gaps_and_no_silence() {
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
                    .publish(number(published.fetch_add(1, Ordering::Relaxed)))
                    .unwrap();
            }
            let headers = [("last-event-id", &*cursor)];
            let answer = ask(&at_once(), channel.clone(), "/", &headers).await;
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

/// The plainest loop, in Chromium, whose cache is the client's memory: `tests/js/long_poll.mjs`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plainest_loop_in_a_browser_loses_nothing() {
    let mut node = programs::browser_script("long_poll.mjs");
    let channel = Channel::new();
    let long_poll =
        service(channel.clone()).transport(LongPoll::new().wait_time(Duration::from_millis(60)));
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
            channel.publish(number(n)).unwrap();
            // Mostly sooner than a poll's wait is over, and now and then later.
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

#[test]
fn a_json_array_is_a_format_for_streams_too() {
    let source = stream::iter([Item::Gap(Gap::new(GapReason::Lagged))]).chain(stream::iter(
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
