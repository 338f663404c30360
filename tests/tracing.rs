//! `guard::TracingObserver`: one span for each stream, in the caller's, and in it what happens to the stream; and nothing that is secret.

use std::{
    cell::{Cell, RefCell},
    fmt,
    sync::Once,
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use http::StatusCode;
use http_body_util::BodyExt;
use testkit::{HttpClient, HttpVersion, TEST_TIMEOUT, TestServer, get_request_head, websocket};
use tower::Layer as _;
use tower_http::trace::TraceLayer;
use tower_push::{
    Channel, Drain, Event, EventId, Gap, GapReason, Guard, Item, Push, PushSource, Resumable,
    guard::{Admission, CloseReason, Observer, StreamInfo, TracingObserver},
    service,
    source::{Rejection, StartPosition, Subscription, channel::LagPolicy, source_fn},
    transport::{LongPoll, Negotiate, Sse, Transport},
};
use tracing::{
    Instrument, Level, Metadata, Span, Subscriber,
    field::{Field, Visit},
    info, info_span,
    span::{Attributes, Id},
    subscriber::Interest,
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
};

thread_local! {
    /// What this test's thread has traced: a line for each span that begins (`+`) or ends (`-`), and for each event.
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    /// Up to which level.
    static LEVEL: Cell<Level> = const { Cell::new(Level::TRACE) };
    /// How many streams this has open is written with each span that ends.
    static DRAIN: RefCell<Option<Drain>> = const { RefCell::new(None) };
}

/// Every test begins with this. One subscriber serves them all, each on its thread.
fn record() {
    static SET: Once = Once::new();
    SET.call_once(|| {
        let recording = tracing_subscriber::registry().with(Recorder);
        tracing::subscriber::set_global_default(recording).unwrap();
    });
}

fn lines() -> Vec<String> {
    LINES.take()
}

struct Recorder;

impl Recorder {
    fn write(line: String) {
        LINES.with_borrow_mut(|lines| lines.push(line));
    }
}

/// Those of the library and of the tests. Others have secrets of their own to keep.
fn is_ours(metadata: &Metadata<'_>) -> bool {
    ["tower_push", "app"].contains(&metadata.target())
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    /// It is another with each test.
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        !is_ours(metadata) || *metadata.level() <= LEVEL.get()
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let metadata = attributes.metadata();
        if is_ours(metadata) {
            let mut fields = Fields(String::new());
            attributes.record(&mut fields);
            let (level, name) = (metadata.level(), metadata.name());
            let parents = path(context.span(id).and_then(|span| span.parent()));
            Self::write(format!("+ {level} {name}{} in {parents}", fields.0));
        }
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        if is_ours(event.metadata()) {
            let mut fields = Fields(String::new());
            event.record(&mut fields);
            let within = path(context.event_span(event));
            let level = event.metadata().level();
            Self::write(format!("{level}{} in {within}", fields.0));
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let span = context.span(&id).unwrap();
        if is_ours(span.metadata()) {
            let open = DRAIN.with_borrow(|drain| drain.as_ref().map(Drain::open_streams));
            let open = open.map_or_else(String::new, |open| format!(", {open} open"));
            Self::write(format!("- {}{open}", span.name()));
        }
    }
}

/// The names of a span and of those around it, outermost first.
fn path<'a, R: LookupSpan<'a>>(
    span: Option<tracing_subscriber::registry::SpanRef<'a, R>>,
) -> String {
    let scope = span.map(|span| span.scope().from_root().map(|span| span.name()).collect());
    scope.map_or_else(String::new, |names: Vec<_>| names.join("/"))
}

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0 += &match field.name() {
            "message" => format!(" {value:?}"),
            // How long it took is another with each run.
            "open_ms" => " open_ms".to_owned(),
            name => format!(" {name}={value:?}"),
        };
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.record_debug(field, &value);
    }
}

async fn is_idle(guard: &Guard) {
    let wait = async {
        while guard.counts().open() != 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(TEST_TIMEOUT, wait).await;
    assert!(waited.is_ok(), "{:?}", guard.counts());
}

/// A source that writes what it does.
fn talkative() -> impl PushSource + Clone + Send + Sync + 'static {
    source_fn(async |_| {
        info!(target: "app", "asked");
        let events = stream::iter(["one"]).chain(stream::pending());
        Ok(events.inspect(|_| info!(target: "app", "polled")))
    })
}

#[tokio::test]
async fn each_stream_has_one_span_in_that_of_its_request() {
    record();
    for version in HttpVersion::ALL {
        for (transport, reason) in [
            ("sse", "left"),
            ("long-poll", "answered"),
            ("websocket", "left"),
        ] {
            let guard = Guard::builder().observer(TracingObserver::new()).build();
            let service = service(talkative()).transport(guard.wrap(Negotiate::new()));
            let server = TestServer::start(TraceLayer::new_for_http().layer(service)).await;
            match transport {
                "websocket" => {
                    let mut opened = websocket::connect(&server, version, "/", &[]).await;
                    opened.next_frame().await.unwrap();
                }
                name => {
                    let mut client = HttpClient::connect(&server, version).await;
                    let path = format!("/?transport={name}");
                    let mut reading = client.get(&path, &[]).await;
                    match name {
                        "sse" => reading.expect_bytes(":\ndata: one\n\n").await,
                        _ => reading.discard_rest().await,
                    }
                }
            }
            is_idle(&guard).await;
            assert_eq!(
                lines(),
                [
                    "INFO asked in request",
                    &format!("+ INFO push transport=\"{transport}\" number=1 in request"),
                    "DEBUG opened in request/push",
                    "INFO polled in request/push",
                    "TRACE event bytes=3 in request/push",
                    &format!("DEBUG closed reason=\"{reason}\" open_ms in request/push"),
                    "- push",
                ],
                "{version:?}"
            );
        }
    }
}

/// What is traced while this guard's SSE answers with this source, and someone reads all of it, in a span called `caller`.
async fn traced(guard: &Guard, source: impl PushSource + Send + 'static) -> Vec<String> {
    record();
    let sse = guard.wrap(Sse::new());
    let asked = async {
        let response = sse
            .respond(&mut get_request_head("/", &[]), Push::new(source))
            .await;
        let _ = response.into_body().collect().await;
    };
    asked.instrument(info_span!("caller")).await;
    lines()
}

#[tokio::test]
async fn what_is_lost_is_info_and_what_fails_is_a_warning() {
    let guard = Guard::builder().observer(TracingObserver::new()).build();
    let failing = stream::iter([
        Ok(Item::Gap(Gap::new(GapReason::Expired).missed(3))),
        Ok(Item::Gap(Gap::new(GapReason::Epoch))),
        Err("the disk is full"),
    ]);
    assert_eq!(
        traced(&guard, failing).await,
        [
            "+ INFO push transport=\"sse\" number=1 in caller",
            "DEBUG opened in caller/push",
            "INFO gap reason=\"expired\" missed=3 in caller/push",
            "INFO gap reason=\"epoch\" in caller/push",
            "WARN failed error=the disk is full in caller/push",
            "DEBUG closed reason=\"failed\" open_ms in caller/push",
            "- push",
        ]
    );

    let builder = Channel::builder()
        .max_events(1)
        .lag_policy(LagPolicy::Disconnect);
    let channel = builder.start(StartPosition::Now).build();
    let slow = channel.subscribe_from(StartPosition::Now);
    for n in 0..3 {
        channel.publish(Event::text(n.to_string())).unwrap();
    }
    let lagged = traced(&guard, slow).await;
    let warning = lagged.iter().find(|line| line.starts_with("WARN")).unwrap();
    assert!(warning.starts_with("WARN failed error=") && warning.ends_with(" in caller/push"));
    assert!(lagged.contains(&"DEBUG closed reason=\"lagged\" open_ms in caller/push".to_owned()));
}

#[tokio::test]
async fn a_level_leaves_out_what_is_below_it() {
    let guard = Guard::builder().observer(TracingObserver::new()).build();
    LEVEL.set(Level::INFO);
    // At `info` a stream that goes well writes nothing.
    let well = traced(&guard, stream::iter(["one"])).await;
    let span = "+ INFO push transport=\"sse\" number=1 in caller";
    assert_eq!(well, [span, "- push"]);
    // Where the span is left out, there is still the caller's.
    LEVEL.set(Level::WARN);
    let failed = traced(&guard, stream::iter([Err::<Event, _>("no")])).await;
    assert_eq!(failed, ["WARN failed error=no in caller"]);
    LEVEL.set(Level::ERROR);
    let failed = traced(&guard, stream::iter([Err::<Event, _>("no")])).await;
    assert!(failed.is_empty(), "{failed:?}");
    LEVEL.set(Level::TRACE);
}

#[tokio::test]
async fn a_drain_that_is_finished_has_left_no_span_open() {
    let drain = Drain::new();
    DRAIN.set(Some(drain.clone()));
    let guard = Guard::builder()
        .drain(&drain)
        .observer(TracingObserver::new())
        .build();
    let lines = traced(&guard, stream::iter(["one"])).await;
    DRAIN.set(None);
    assert_eq!(lines.last().unwrap(), "- push, 1 open");
    assert_eq!(drain.open_streams(), 0);
}

#[tokio::test]
async fn who_is_refused_has_no_span_but_the_caller_s() {
    let full = Guard::builder()
        .admission(&Admission::builder().max_streams(0).build())
        .observer(TracingObserver::new())
        .build();
    let refused = traced(&full, stream::pending::<Event>()).await;
    assert_eq!(refused, ["INFO refused reason=\"full\" in caller"]);

    let guard = Guard::builder().observer(TracingObserver::new()).build();
    let refusing = source_fn(async |_| {
        Err::<stream::Pending<Event>, _>(Rejection::new(StatusCode::UNAUTHORIZED))
    });
    let refused = traced(&guard, refusing).await;
    assert_eq!(refused, ["INFO refused reason=\"source\" in caller"]);
}

#[tokio::test]
async fn who_does_not_ask_for_it_gets_none() {
    struct Silent;
    impl Observer for Silent {}
    for guard in [Guard::new(), Guard::builder().observer(Silent).build()] {
        let lines = traced(&guard, talkative_once()).await;
        assert_eq!(lines, ["INFO polled in caller"]);
        assert_eq!(guard.counts().events, 1);
    }
}

fn talkative_once() -> impl Stream<Item = &'static str> + Send + Unpin + 'static {
    stream::iter(["one"]).inspect(|_| info!(target: "app", "polled"))
}

/// Its spans are of this name. It writes what it hears.
struct Own(&'static str);

impl Observer for Own {
    fn make_span(&self, _: &StreamInfo, subscription: &Subscription) -> Span {
        let path = subscription.head().uri.path();
        match self.0 {
            "none" => Span::none(),
            "stream" => info_span!(target: "app", "stream", path),
            _ => info_span!(target: "app", "other"),
        }
    }
    fn on_close(&self, _: &StreamInfo, reason: CloseReason, _: Duration) {
        info!(target: "app", "{} hears {}", self.0, reason.name());
    }
}

#[tokio::test]
async fn an_observer_s_own_span_is_every_observer_s() {
    let guard = Guard::builder()
        .observer(Own("none"))
        .observer(Own("stream"))
        .observer(Own("other"))
        .build();
    assert_eq!(
        traced(&guard, talkative_once()).await,
        [
            "+ INFO stream path=\"/\" in caller",
            "INFO polled in caller/stream",
            "INFO none hears ended in caller/stream",
            "INFO stream hears ended in caller/stream",
            "INFO other hears ended in caller/stream",
            "- stream",
        ]
    );
}

#[tokio::test]
async fn a_guard_around_another_writes_into_its_own_span() {
    record();
    let [outer, inner] =
        [(); 2].map(|()| Guard::builder().observer(TracingObserver::new()).build());
    for (outer, inner, spans) in [
        (outer.clone(), Guard::new(), 1),
        (Guard::new(), inner.clone(), 1),
        (outer, inner, 2),
    ] {
        let both = outer.wrap(inner.wrap(Sse::new()));
        let push = Push::new(talkative_once());
        let response = both.respond(&mut get_request_head("/", &[]), push).await;
        response.into_body().collect().await.unwrap();
        let lines = lines();
        let count = |what: &str| lines.iter().filter(|line| line.starts_with(what)).count();
        for what in [
            "+ INFO push",
            "DEBUG opened in push",
            "TRACE event bytes=3 in push",
            "- push",
        ] {
            assert_eq!(count(what), spans, "{what}: {lines:#?}");
        }
        assert!(
            lines.contains(&"INFO polled in push".to_owned()),
            "{lines:#?}"
        );
    }
}

/// Everything that a client or a source says has this in it.
const SECRET: &str = "s3cr3t";

#[tokio::test]
async fn nothing_that_is_secret_is_written() {
    record();
    let resumable = Resumable::new();
    let source = {
        let resumable = resumable.clone();
        source_fn(async move |subscription: Subscription| {
            let gap = Gap::new(GapReason::Epoch).requested(EventId::new(SECRET).unwrap());
            let event = Event::text(SECRET).with_type(SECRET)?.with_id(SECRET)?;
            let items = [Item::Gap(gap), Item::Event(event)];
            let items = stream::iter(items).chain(stream::pending());
            resumable.wrap(items).subscribe(subscription).await
        })
    };
    let guard = Guard::builder().observer(TracingObserver::new()).build();
    let impatient = LongPoll::new().wait_time(Duration::from_millis(10));
    let transports = guard.wrap(Negotiate::new().add_transport(impatient));
    let server = TestServer::start(service(source).transport(transports)).await;
    let mut cursor = SECRET.to_owned();
    for version in HttpVersion::ALL {
        for transport in ["sse", "long-poll", "sse"] {
            let path =
                format!("/{SECRET}?transport={transport}&key={SECRET}&last_event_id={cursor}");
            let headers = [
                ("authorization", SECRET),
                ("cookie", SECRET),
                ("last-event-id", &cursor),
            ];
            let mut client = HttpClient::connect(&server, version).await;
            let mut reading = client.get(&path, &headers).await;
            assert_eq!(reading.head.status, 200);
            // The cursor that takes the stream up: whoever has it has the stream.
            let token = match reading.header("last-event-id") {
                Some(token) => token.to_owned(),
                None => id_in(&mut reading).await,
            };
            assert_ne!(token, SECRET);
            cursor = token.clone();
            drop(reading);
            drop(client);
            is_idle(&guard).await;
            let lines = lines();
            assert!(lines.contains(&"- push".to_owned()), "{lines:#?}");
            for line in lines {
                let secrets = [SECRET, &token, token.split('-').next().unwrap()];
                assert!(
                    !secrets.iter().any(|secret| line.contains(secret)),
                    "{line}"
                );
            }
        }
        let path = format!("/{SECRET}?last_event_id={cursor}");
        let mut opened = websocket::connect(&server, version, &path, &[("cookie", SECRET)]).await;
        opened.send_frame(0x81, SECRET.as_bytes()).await;
        drop(opened);
        is_idle(&guard).await;
        let lines = lines();
        assert!(lines.contains(&"- push".to_owned()), "{lines:#?}");
        assert!(
            !lines
                .iter()
                .any(|line| line.contains(SECRET) || line.contains(&cursor))
        );
    }
    assert!(resumable.counts().resumed > 0);
}

/// The last id of an event stream that has begun.
async fn id_in(reading: &mut testkit::StreamingResponse) -> String {
    let mut read = String::new();
    loop {
        let bytes = reading.next_chunk().await.unwrap().unwrap();
        read += std::str::from_utf8(&bytes).unwrap();
        if let Some((_, id)) = read.rsplit_once("id: ").filter(|(_, id)| id.contains('\n')) {
            return id.split('\n').next().unwrap_or_default().to_owned();
        }
    }
}
