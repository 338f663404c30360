//! Transports of another crate, written with the public API and without `respond_streaming`: a guard limits, counts, observes and ends
//! their streams like ours.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use http::{Response, request::Parts};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use testkit::{body_text, get_request_head};
use tokio::{sync::oneshot, time::Instant};
use tower_push::{
    BoxError, Drain, Error, Event, Gap, GapReason, Guard, Item, Push, PushBody, PushSource,
    guard::{Admission, CloseReason, DrainPlan, Observer, RefusalReason, StreamInfo},
    source::{Rejection, Subscription, source_fn},
    supervision::{PendingSubscription, StreamHandle, SupervisedStream},
    transport::{BoxResponseFuture, Transport, rejection_response},
};
use tracing_subscriber::layer::SubscriberExt;

const SECOND: Duration = Duration::from_secs(1);

/// A transport with a line for each item.
#[derive(Clone, Copy, Debug)]
struct Lines;

impl Transport for Lines {
    fn name(&self) -> &'static str {
        "lines"
    }

    fn media_types(&self) -> &[&'static str] {
        &["text/x-lines"]
    }

    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        let pending = PendingSubscription::new(head, self.name());
        Box::pin(async move {
            match pending.open(push).await {
                Ok(stream) => {
                    Response::new(PushBody::new(StreamBody::new(LineStream(Some(stream)))))
                }
                Err(rejection) => rejection_response(rejection),
            }
        })
    }
}

/// The body of [`Lines`], until its last line.
struct LineStream(Option<SupervisedStream>);

fn line(item: &Item) -> Result<String, Error> {
    match item {
        Item::Event(event) => match event.payload().as_text() {
            Some(text) => Ok(format!("{text}\n")),
            None => Err(Error::not_text()),
        },
        Item::Gap(gap) => Ok(format!("gap {}\n", gap.reason.name())),
        Item::Ended { .. } => Ok("come back\n".to_owned()),
        Item::Expired => Ok("expired\n".to_owned()),
        Item::Finished => Ok("finished\n".to_owned()),
        _ => Ok(String::new()),
    }
}

impl Stream for LineStream {
    type Item = Result<Frame<Bytes>, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(stream) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let Poll::Ready(item) = stream.poll_next_unpin(cx) else {
            return Poll::Pending;
        };
        let line = match item {
            Some(Ok(item)) => match line(&item) {
                Ok(line) if item.end().is_none() => return Poll::Ready(Some(Ok(data(line)))),
                Ok(line) => Some(Ok(data(line))),
                Err(error) => {
                    let error = error.into();
                    stream.report_send_error(&error);
                    Some(Err(error))
                }
            },
            Some(Err(error)) => Some(Err(error)),
            None => None,
        };
        self.0 = None;
        Poll::Ready(line)
    }
}

fn data(line: String) -> Frame<Bytes> {
    Frame::data(line.into())
}

/// What observers are told.
#[derive(Clone, Default)]
struct CallLog(Arc<Mutex<Vec<String>>>);

impl CallLog {
    fn write(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Observer for CallLog {
    fn on_open(&self, stream: &StreamInfo, _: &Subscription) {
        self.write(format!("open {}", stream.transport));
    }
    fn on_refusal(&self, _: &Parts, reason: RefusalReason) {
        self.write(format!("refused {}", reason.name()));
    }
    fn on_event(&self, _: &StreamInfo, event: &Event) {
        self.write(format!("event {:?}", event.payload().as_text()));
    }
    fn on_gap(&self, _: &StreamInfo, gap: &Gap) {
        self.write(format!("gap {}", gap.reason.name()));
    }
    fn on_failure(&self, _: &StreamInfo, error: &BoxError) {
        self.write(format!("failure {error}"));
    }
    fn on_close(&self, _: &StreamInfo, reason: CloseReason, _: Duration) {
        self.write(format!("close {}", reason.name()));
    }
}

/// Responds over `transport`, and reads the body to its end or its failure.
async fn read(
    transport: &impl Transport,
    source: impl PushSource + Send + 'static,
) -> Result<String, BoxError> {
    let response = transport
        .respond(&mut get_request_head("/", &[]), Push::new(source))
        .await;
    let body = response.into_body().collect().await?;
    Ok(String::from_utf8(body.to_bytes().to_vec()).unwrap())
}

fn silence() -> stream::Pending<Event> {
    stream::pending()
}

#[tokio::test(start_paused = true)]
async fn stream_is_counted_and_observed() {
    let log = CallLog::default();
    let guard = Guard::builder().observer(log.clone()).build();
    let items = stream::iter([
        Item::Event(Event::text("one")),
        Item::from(Gap::new(GapReason::Lagged)),
        Item::Event(Event::text("two")),
    ]);
    let body = read(&guard.wrap(Lines), items).await.unwrap();
    assert_eq!(body, "one\ngap lagged\ntwo\n");
    let counts = guard.counts();
    assert_eq!((counts.opened, counts.open()), (1, 0));
    assert_eq!((counts.events, counts.bytes, counts.gaps), (2, 6, 1));
    assert_eq!(counts.closed(CloseReason::Ended), 1);
    assert_eq!(
        log.take(),
        [
            "open lines",
            "event Some(\"one\")",
            "gap lagged",
            "event Some(\"two\")",
            "close ended",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn close_reason_is_what_ended_the_stream() {
    let guard = Guard::new();
    let lines = guard.wrap(Lines);
    let failing = |error: Error| stream::iter([Err::<Event, _>(error)]);
    assert!(read(&lines, failing(Error::lagged())).await.is_err());
    assert!(read(&lines, failing(Error::not_text())).await.is_err());
    read(&lines, stream::iter([Item::Finished])).await.unwrap();
    drop(
        lines
            .respond(&mut get_request_head("/", &[]), Push::new(silence()))
            .await,
    );
    let expiring = source_fn(async |subscription: Subscription| {
        subscription.expire_within(SECOND);
        Ok(silence())
    });
    assert_eq!(read(&lines, expiring).await.unwrap(), "expired\n");
    let counts = guard.counts();
    for reason in [
        CloseReason::Lagged,
        CloseReason::Failed,
        CloseReason::Finished,
        CloseReason::Left,
        CloseReason::CredentialExpired,
    ] {
        assert_eq!(counts.closed(reason), 1, "{reason:?}");
    }
    assert_eq!(counts.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn unsendable_item_is_a_failure() {
    let log = CallLog::default();
    let guard = Guard::builder().observer(log.clone()).build();
    let bytes = stream::iter([Event::binary(vec![0xff])]).chain(silence());
    assert!(read(&guard.wrap(Lines), bytes).await.is_err());
    assert_eq!(guard.counts().closed(CloseReason::Failed), 1);
    assert_eq!(
        log.take()[2..],
        [
            format!("failure {}", Error::not_text()),
            "close failed".to_owned()
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn drain_and_lifetime_end_the_stream() {
    let drain = Drain::new();
    let guard = Guard::builder()
        .drain(&drain)
        .max_lifetime(100 * SECOND)
        .build();
    let lines = guard.wrap(Lines);
    let begun = Instant::now();
    assert_eq!(read(&lines, silence()).await.unwrap(), "come back\n");
    assert!((80 * SECOND..=100 * SECOND).contains(&begun.elapsed()));

    let open = tokio::spawn(async move { read(&lines, silence()).await.unwrap() });
    tokio::time::sleep(SECOND).await;
    assert_eq!(drain.open_streams(), 1);
    drain.start(DrainPlan::within(10 * SECOND));
    let outcome = drain.wait().await;
    assert_eq!((outcome.notified, outcome.left, outcome.cut), (1, 0, 0));
    assert_eq!(open.await.unwrap(), "come back\n");
    let counts = guard.counts();
    assert_eq!(counts.closed(CloseReason::Aged), 1);
    assert_eq!(counts.closed(CloseReason::Drained), 1);
}

#[tokio::test]
async fn admission_limits_the_stream() {
    let admission = Admission::builder().max_streams(1).build();
    let guard = Guard::builder().admission(&admission).build();
    let lines = guard.wrap(Lines);
    let respond = || lines.respond(&mut get_request_head("/", &[]), Push::new(silence()));
    let open = respond().await;
    assert_eq!(respond().await.status(), 503);
    drop(open);
    assert_eq!(respond().await.status(), 200);
    assert_eq!(guard.counts().refused(RefusalReason::Full), 1);
}

#[tokio::test]
async fn refusal_of_the_source_is_recorded() {
    let log = CallLog::default();
    let guard = Guard::builder().observer(log.clone()).build();
    let refusing = source_fn(async |_| {
        Err::<stream::Pending<Event>, _>(Rejection::new(http::StatusCode::NOT_FOUND))
    });
    assert_eq!(
        read(&guard.wrap(Lines), refusing).await.unwrap(),
        "Not Found"
    );
    assert_eq!(guard.counts().refused(RefusalReason::Source), 1);
    assert_eq!(log.take(), ["refused source"]);
}

#[tokio::test]
async fn source_that_keeps_its_subscription_keeps_no_stream_open() {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keeping = {
        let kept = kept.clone();
        source_fn(async move |subscription: Subscription| {
            kept.lock().unwrap().push(subscription);
            Ok(stream::iter(["one"]))
        })
    };
    let drain = Drain::new();
    let guard = Guard::builder().drain(&drain).build();
    read(&guard.wrap(Lines), keeping).await.unwrap();
    assert_eq!(kept.lock().unwrap().len(), 1);
    assert_eq!(drain.open_streams(), 0);
}

/// A transport whose response ends at once, while its socket lives on in another task: here until the test drops the handle.
#[derive(Clone, Debug)]
struct SocketLike(Arc<Mutex<Option<oneshot::Sender<OpenSocket>>>>);

type OpenSocket = (SupervisedStream, StreamHandle);

impl Transport for SocketLike {
    fn name(&self) -> &'static str {
        "socket-like"
    }

    fn media_types(&self) -> &[&'static str] {
        &[]
    }

    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        let pending = PendingSubscription::new(head, self.name());
        let task = self.0.lock().unwrap().take();
        Box::pin(async move {
            let stream = pending.open(push).await.unwrap();
            let handle = stream.handle().unwrap().clone();
            task.unwrap().send((stream, handle)).unwrap();
            Response::new(PushBody::empty())
        })
    }
}

#[tokio::test]
async fn handle_keeps_the_stream_open() {
    let (sender, task) = oneshot::channel();
    let guard = Guard::new();
    let transport = guard.wrap(SocketLike(Arc::new(Mutex::new(Some(sender)))));
    let response = transport.respond(
        &mut get_request_head("/", &[]),
        Push::new(stream::iter(["one"])),
    );
    assert_eq!(body_text(response.await.into_body()).await, "");
    let (mut stream, handle) = task.await.unwrap();
    assert!(matches!(stream.next().await, Some(Ok(Item::Event(_)))));
    assert_eq!(guard.counts().open(), 1);
    drop(stream);
    assert_eq!(guard.counts().open(), 1);
    drop(handle);
    assert_eq!(guard.counts().open(), 0);
    // No client has the complete response to a poll.
    assert_eq!(guard.counts().closed(CloseReason::Left), 1);
}

/// A transport for polls: one event in each response, whose body does not know its length.
#[derive(Clone, Debug)]
struct OnePerPoll {
    reports: bool,
}

impl Transport for OnePerPoll {
    fn name(&self) -> &'static str {
        "one-per-poll"
    }

    fn media_types(&self) -> &[&'static str] {
        &[]
    }

    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        let pending = PendingSubscription::new(head, self.name());
        let reports = self.reports;
        Box::pin(async move {
            let mut stream = pending.open(push).await.unwrap();
            let Some(Ok(item)) = stream.next().await else {
                return Response::new(PushBody::empty());
            };
            let next = std::future::poll_fn(|cx| stream.poll_next_uncounted(cx));
            let is_more = matches!(next.now_or_never(), Some(Some(Ok(_))));
            if reports {
                stream.report_complete_response();
            }
            let body = format!("{}more: {is_more}\n", line(&item).unwrap());
            let body = StreamBody::new(stream::iter([Ok::<_, Infallible>(data(body))]));
            Response::new(PushBody::new(body.map_err(BoxError::from)))
        })
    }
}

#[tokio::test]
async fn poll_reports_its_complete_response() {
    for (reports, reason) in [(true, CloseReason::Answered), (false, CloseReason::Left)] {
        let guard = Guard::new();
        let poll = guard.wrap(OnePerPoll { reports });
        let two = stream::iter(["one", "two"]);
        assert_eq!(read(&poll, two).await.unwrap(), "one\nmore: true\n");
        let counts = guard.counts();
        assert_eq!(counts.closed(reason), 1, "{reason:?}");
        // The second event was looked at, and not sent.
        assert_eq!(counts.events, 1);
    }
}

/// Makes a span for each stream.
struct Spans;

impl Observer for Spans {
    fn make_span(&self, stream: &StreamInfo, _: &Subscription) -> tracing::Span {
        tracing::info_span!("stream", transport = stream.transport)
    }
}

#[tokio::test]
async fn source_is_polled_in_the_stream_s_span() {
    let _default = tracing::subscriber::set_default(
        tracing_subscriber::registry().with(tracing_subscriber::layer::Identity::new()),
    );
    let guard = Guard::builder().observer(Spans).build();
    let name = stream::once(async {
        let span = tracing::Span::current();
        span.metadata().map_or("none", |span| span.name())
    });
    let body = read(&guard.wrap(Lines), Box::pin(name)).await.unwrap();
    assert_eq!(body, "stream\n");
}

/// A transport that does not use the library's way to open a subscription.
#[derive(Clone, Copy, Debug)]
struct Unsupervised;

impl Transport for Unsupervised {
    fn name(&self) -> &'static str {
        "unsupervised"
    }

    fn media_types(&self) -> &[&'static str] {
        &[]
    }

    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        let subscription = Subscription::new(head, self.name());
        Box::pin(async move {
            let items = push.subscribe(subscription).await.unwrap();
            let lines = items.map(|item| item.map(|item| data(line(&item).unwrap())));
            Response::new(PushBody::new(StreamBody::new(lines)))
        })
    }
}

#[tokio::test]
async fn unsupervised_stream_is_limited_and_drained() {
    let drain = Drain::new();
    let admission = Admission::builder().max_streams(1).build();
    let guard = Guard::builder().drain(&drain).admission(&admission).build();
    let transport = guard.wrap(Unsupervised);
    let respond = || transport.respond(&mut get_request_head("/", &[]), Push::new(silence()));
    let open = respond().await;
    assert_eq!(respond().await.status(), 503);
    assert_eq!(drain.open_streams(), 1);
    assert_eq!(guard.counts().opened, 0);
    drain.start(DrainPlan::within(SECOND));
    drop(open);
    assert_eq!(drain.wait().await.left, 1);
}

/// A head's clone, in a subscription that a source keeps for ever, keeps no stream counted.
#[tokio::test]
async fn kept_subscription_of_unsupervised_stream_is_not_counted() {
    let drain = Drain::new();
    let guard = Guard::builder().drain(&drain).build();
    let kept = Arc::new(Mutex::new(None));
    let keep = kept.clone();
    let source = source_fn(move |subscription: Subscription| async move {
        *keep.lock().unwrap() = Some(subscription);
        Ok(stream::pending::<&str>())
    });
    let mut head = get_request_head("/", &[]);
    let response = guard
        .wrap(Unsupervised)
        .respond(&mut head, Push::new(source));
    let open = response.await;
    assert_eq!(drain.open_streams(), 1);
    drop(open);
    assert!(kept.lock().unwrap().is_some());
    assert_eq!(drain.open_streams(), 0);
}
