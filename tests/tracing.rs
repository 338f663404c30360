//! `guard::TracingObserver` creates one span for each stream, inside the caller's span, and traces what happens to the stream. It traces
//! no secrets.

use std::{
    cell::{Cell, RefCell},
    fmt,
    sync::Once,
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use http::StatusCode;
use http_body_util::BodyExt;
use testkit::{HttpConnection, HttpVersion, TestServer, get_request_head, wait_until, websocket};
use tower::Layer as _;
use tower_http::trace::TraceLayer;
use tower_push::{
    Channel, Drain, Event, EventId, Gap, GapReason, Guard, Item, Push, PushSource, Resumable,
    guard::{Admission, CloseReason, Observer, StreamInfo, TracingObserver},
    service,
    source::{Rejection, StartPosition, Subscription, channel::LagPolicy, source_fn},
    transport::{LongPoll, Negotiate, Sse, Transport, WebSocket},
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
    /// What the thread of this test has traced: a line for each start (`+`) and end (`-`) of a span, and for each event.
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    /// The most verbose level that is recorded.
    static LEVEL: Cell<Level> = const { Cell::new(Level::TRACE) };
    /// A drain whose number of open streams is recorded at the end of each span.
    static DRAIN: RefCell<Option<Drain>> = const { RefCell::new(None) };
}

/// Installs the recorder. Every test calls this first. All tests share one subscriber, which records the lines of each thread separately.
fn start_recording() {
    static SET: Once = Once::new();
    SET.call_once(|| {
        let recording = tracing_subscriber::registry().with(Recorder);
        tracing::subscriber::set_global_default(recording).unwrap();
    });
}

/// Removes and returns the lines of this thread.
fn take_lines() -> Vec<String> {
    LINES.take()
}

struct Recorder;

impl Recorder {
    fn write(line: String) {
        LINES.with_borrow_mut(|lines| lines.push(line));
    }
}

/// Returns whether a span or event comes from the library or from a test. Other crates may trace secrets.
fn is_recorded_target(metadata: &Metadata<'_>) -> bool {
    ["tower_push", "app"].contains(&metadata.target())
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    /// `enabled` must be called every time, because each test has its own level.
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        !is_recorded_target(metadata) || *metadata.level() <= LEVEL.get()
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let metadata = attributes.metadata();
        if is_recorded_target(metadata) {
            let mut fields = Fields(String::new());
            attributes.record(&mut fields);
            let (level, name) = (metadata.level(), metadata.name());
            let parents = span_path(context.span(id).and_then(|span| span.parent()));
            Self::write(format!("+ {level} {name}{} in {parents}", fields.0));
        }
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        if is_recorded_target(event.metadata()) {
            let mut fields = Fields(String::new());
            event.record(&mut fields);
            let within = span_path(context.event_span(event));
            let level = event.metadata().level();
            Self::write(format!("{level}{} in {within}", fields.0));
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let span = context.span(&id).unwrap();
        if is_recorded_target(span.metadata()) {
            let open = DRAIN.with_borrow(|drain| drain.as_ref().map(Drain::open_streams));
            let open = open.map_or_else(String::new, |open| format!(", {open} open"));
            Self::write(format!("- {}{open}", span.name()));
        }
    }
}

/// Returns the names of a span and of its parents, outermost first.
fn span_path<'a, R: LookupSpan<'a>>(
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
            // The duration differs from run to run.
            "open_ms" => " open_ms".to_owned(),
            name => format!(" {name}={value:?}"),
        };
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.record_debug(field, &value);
    }
}

async fn wait_until_idle(guard: &Guard) {
    let idle = || guard.counts().open() == 0;
    wait_until(idle, || format!("{:?}", guard.counts())).await;
}

/// A source that traces an event when it is asked and when it is polled.
fn logging_source() -> impl PushSource + Clone + Send + Sync + 'static {
    source_fn(async |_| {
        info!(target: "app", "asked");
        let events = stream::iter(["one"]).chain(stream::pending());
        Ok(events.inspect(|_| info!(target: "app", "polled")))
    })
}

#[tokio::test]
async fn each_stream_has_one_span_inside_its_request() {
    start_recording();
    for version in HttpVersion::ALL {
        for (transport, reason) in [
            ("sse", "left"),
            ("long-poll", "answered"),
            ("websocket", "left"),
        ] {
            let guard = Guard::builder().observer(TracingObserver::new()).build();
            let service = service(logging_source()).transport(guard.wrap(Negotiate::new()));
            let server = TestServer::start(TraceLayer::new_for_http().layer(service)).await;
            match transport {
                "websocket" => {
                    let mut socket = websocket::connect(&server, version, "/", &[]).await;
                    socket.next_frame().await.unwrap();
                }
                name => {
                    let mut client = HttpConnection::connect(&server, version).await;
                    let path = format!("/?transport={name}");
                    let mut reading = client.get(&path, &[]).await;
                    match name {
                        "sse" => reading.expect_bytes(":\ndata: one\n\n").await,
                        _ => reading.discard_rest().await,
                    }
                }
            }
            wait_until_idle(&guard).await;
            assert_eq!(
                take_lines(),
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

/// Returns what is traced in a span `caller`, while `guard` serves `source` as SSE and the whole response is read.
async fn traced_lines(guard: &Guard, source: impl PushSource + Send + 'static) -> Vec<String> {
    start_recording();
    let sse = guard.wrap(Sse::new());
    let asked = async {
        let response = sse
            .respond(&mut get_request_head("/", &[]), Push::new(source))
            .await;
        let _ = response.into_body().collect().await;
    };
    asked.instrument(info_span!("caller")).await;
    take_lines()
}

#[tokio::test]
async fn gaps_are_info_and_failures_are_warnings() {
    let guard = Guard::builder().observer(TracingObserver::new()).build();
    let failing = stream::iter([
        Ok(Item::from(Gap::new(GapReason::Expired).missed(3))),
        Ok(Item::from(Gap::new(GapReason::Epoch))),
        Err("the disk is full"),
    ]);
    assert_eq!(
        traced_lines(&guard, failing).await,
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
    let lagged = traced_lines(&guard, slow).await;
    let warning = lagged.iter().find(|line| line.starts_with("WARN")).unwrap();
    assert!(warning.starts_with("WARN failed error=") && warning.ends_with(" in caller/push"));
    assert!(lagged.contains(&"DEBUG closed reason=\"lagged\" open_ms in caller/push".to_owned()));
}

#[tokio::test]
async fn refused_client_message_is_logged_in_the_span() {
    start_recording();
    let guard = Guard::builder().observer(TracingObserver::new()).build();
    let transport = guard.wrap(WebSocket::new().max_message_size(4));
    let server = TestServer::start(tower_push::service(Channel::new()).transport(transport)).await;
    for (first_byte, payload, level, code, reason) in [
        (
            0x81,
            "12345",
            "WARN client exceeded `max_message_size`",
            1009,
            "message is too big",
        ),
        (
            0xf1,
            "",
            "DEBUG client violated the protocol",
            1002,
            "reserved bit is set",
        ),
    ] {
        let mut socket = websocket::connect(&server, HttpVersion::Http1, "/", &[]).await;
        take_lines();
        socket.send_frame(first_byte, payload.as_bytes()).await;
        assert_eq!(socket.read_close().await.unwrap().0, code);
        drop(socket);
        wait_until_idle(&guard).await;
        let lines = take_lines();
        let expected = format!("{level} code={code} reason=\"{reason}\" in push");
        assert!(lines.contains(&expected), "{lines:?}");
    }
}

#[tokio::test]
async fn levels_filter_spans_and_events() {
    let guard = Guard::builder().observer(TracingObserver::new()).build();
    LEVEL.set(Level::INFO);
    // At level `info` a stream without gaps and failures traces only its span.
    let well = traced_lines(&guard, stream::iter(["one"])).await;
    let span = "+ INFO push transport=\"sse\" number=1 in caller";
    assert_eq!(well, [span, "- push"]);
    // Without the stream's span, events are in the caller's span.
    LEVEL.set(Level::WARN);
    let failed = traced_lines(&guard, stream::iter([Err::<Event, _>("no")])).await;
    assert_eq!(failed, ["WARN failed error=no in caller"]);
    LEVEL.set(Level::ERROR);
    let failed = traced_lines(&guard, stream::iter([Err::<Event, _>("no")])).await;
    assert!(failed.is_empty(), "{failed:?}");
    LEVEL.set(Level::TRACE);
}

#[tokio::test]
async fn finished_drain_leaves_no_open_span() {
    let drain = Drain::new();
    DRAIN.set(Some(drain.clone()));
    let guard = Guard::builder()
        .drain(&drain)
        .observer(TracingObserver::new())
        .build();
    let lines = traced_lines(&guard, stream::iter(["one"])).await;
    DRAIN.set(None);
    assert_eq!(lines.last().unwrap(), "- push, 1 open");
    assert_eq!(drain.open_streams(), 0);
}

#[tokio::test]
async fn refused_request_has_no_span_of_its_own() {
    let full = Guard::builder()
        .admission(&Admission::builder().max_streams(0).build())
        .observer(TracingObserver::new())
        .build();
    let refused = traced_lines(&full, stream::pending::<Event>()).await;
    assert_eq!(refused, ["INFO refused reason=\"full\" in caller"]);

    let guard = Guard::builder().observer(TracingObserver::new()).build();
    let refusing = source_fn(async |_| {
        Err::<stream::Pending<Event>, _>(Rejection::new(StatusCode::UNAUTHORIZED))
    });
    let refused = traced_lines(&guard, refusing).await;
    assert_eq!(refused, ["INFO refused reason=\"source\" in caller"]);
}

#[tokio::test]
async fn silent_observer_has_no_span() {
    struct SilentObserver;
    impl Observer for SilentObserver {}
    for guard in [
        Guard::new(),
        Guard::builder().observer(SilentObserver).build(),
    ] {
        let lines = traced_lines(&guard, logging_stream()).await;
        assert_eq!(lines, ["INFO polled in caller"]);
        assert_eq!(guard.counts().events, 1);
    }
}

fn logging_stream() -> impl Stream<Item = &'static str> + Send + Unpin + 'static {
    stream::iter(["one"]).inspect(|_| info!(target: "app", "polled"))
}

/// An observer that creates spans with a given name, and traces each call.
struct CustomSpan(&'static str);

impl Observer for CustomSpan {
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
async fn custom_span_encloses_every_observer() {
    let guard = Guard::builder()
        .observer(CustomSpan("none"))
        .observer(CustomSpan("stream"))
        .observer(CustomSpan("other"))
        .build();
    assert_eq!(
        traced_lines(&guard, logging_stream()).await,
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
async fn nested_guards_write_into_their_own_spans() {
    start_recording();
    let [outer, inner] =
        [(); 2].map(|()| Guard::builder().observer(TracingObserver::new()).build());
    for (outer, inner, spans) in [
        (outer.clone(), Guard::new(), 1),
        (Guard::new(), inner.clone(), 1),
        (outer, inner, 2),
    ] {
        let both = outer.wrap(inner.wrap(Sse::new()));
        let push = Push::new(logging_stream());
        let response = both.respond(&mut get_request_head("/", &[]), push).await;
        response.into_body().collect().await.unwrap();
        let lines = take_lines();
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

/// Every text from the client and from the source contains this.
const SECRET: &str = "s3cr3t";

#[tokio::test]
async fn secrets_are_not_traced() {
    start_recording();
    let resumable = Resumable::new();
    let source = {
        let resumable = resumable.clone();
        source_fn(async move |subscription: Subscription| {
            let gap = Gap::new(GapReason::Epoch).requested(EventId::new(SECRET).unwrap());
            let event = Event::text(SECRET).with_type(SECRET)?.with_id(SECRET)?;
            let items = [Item::from(gap), Item::Event(event)];
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
            let mut client = HttpConnection::connect(&server, version).await;
            let mut reading = client.get(&path, &headers).await;
            assert_eq!(reading.head.status, 200);
            // The id that resumes the parked stream. Every client that knows the id can read the stream.
            let token = match reading.header("last-event-id") {
                Some(token) => token.to_owned(),
                None if cursor == SECRET => last_event_id(&mut reading).await,
                // The client has all events, and its cursor does not move.
                None => {
                    reading.expect_bytes(":\n").await;
                    cursor
                }
            };
            assert_ne!(token, SECRET);
            cursor = token.clone();
            drop(reading);
            drop(client);
            wait_until_idle(&guard).await;
            let lines = take_lines();
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
        let mut socket = websocket::connect(&server, version, &path, &[("cookie", SECRET)]).await;
        socket.send_frame(0x81, SECRET.as_bytes()).await;
        drop(socket);
        wait_until_idle(&guard).await;
        let lines = take_lines();
        assert!(lines.contains(&"- push".to_owned()), "{lines:#?}");
        assert!(
            !lines
                .iter()
                .any(|line| line.contains(SECRET) || line.contains(&cursor))
        );
    }
    assert!(resumable.counts().resumed > 0);
}

/// Reads an event stream until an id arrives, and returns the id.
async fn last_event_id(reading: &mut testkit::StreamingResponse) -> String {
    let mut read = String::new();
    loop {
        let bytes = reading.next_chunk().await.unwrap().unwrap();
        read += std::str::from_utf8(&bytes).unwrap();
        if let Some((_, id)) = read.rsplit_once("id: ").filter(|(_, id)| id.contains('\n')) {
            return id.split('\n').next().unwrap_or_default().to_owned();
        }
    }
}
