//! Client libraries that reconnect by themselves: the close codes of a WebSocket after which they do so, and libraries for event streams which
//! a response with the status 204 does not stop.
//! `scripts/setup` installs the libraries. Without one of them, its tests fail.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, middleware, response::Html, routing::get};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use testkit::{TestServer, programs};
use tower_push::{
    BoxError, Error, Event, Item,
    event::{CloseCode, CloseFrame},
    service,
    source::{Subscription, query::decode_parameter, source_fn},
    transport::{
        Sse, StreamEnd, WebSocket,
        websocket::{CloseCodes, MessageFormat},
    },
};

/// The time in which a program must have exited.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(120);

/// The close codes of tower-push, those of `graphql-transport-ws`, and some others. 1006 stands for a connection without a close frame.
const CODES: [u16; 23] = [
    1000, 1001, 1002, 1006, 1007, 1008, 1009, 1011, 1012, 1013, 3000, 3005, 3008, 3010, 3012, 3500,
    4400, 4401, 4403, 4406, 4409, 4429, 4500,
];

/// Ends the stream with the close code that the query names.
fn end_of(subscription: &Subscription) -> Result<Item, BoxError> {
    let query = subscription.head().uri.query().unwrap_or_default();
    let code = decode_parameter(query, "code").next();
    let number: u16 = code.expect("a client names a code").parse().unwrap();
    match CloseCode::new(number) {
        Some(code) => Ok(Item::closed(
            CloseFrame::new(code, ""),
            StreamEnd::reconnect(None),
        )),
        None => Err(Error::lagged().into()),
    }
}

async fn serve_ends() -> TestServer {
    let source =
        source_fn(async |subscription: Subscription| Ok(stream::iter([end_of(&subscription)])));
    let transport = WebSocket::new()
        .subprotocol("graphql-transport-ws", MessageFormat::Plain)
        .close_codes(CloseCodes::new().lagged(None));
    let app = Router::new()
        .route(
            "/page",
            get(async || Html("<!doctype html><title>test</title>")),
        )
        .route_service("/", service(source).transport(transport));
    TestServer::start(app).await
}

/// Returns the close codes after which the client reconnects.
async fn codes_after_which(client: &str) -> Vec<u16> {
    let server = serve_ends().await;
    let mut command = programs::node_script_with_chromium("reconnecting_clients.mjs");
    command.args([client, &server.url("/")]);
    command.args(CODES.map(|code| code.to_string()));
    serde_json::from_value(run_to_json(command).await).unwrap()
}

/// Returns the JSON text that a program prints.
async fn run_to_json(command: Command) -> Value {
    let mut lines = programs::run_to_json_lines(command, PROGRAM_TIMEOUT).await;
    lines.pop().expect("one JSON text")
}

/// Serves a source that sends one event and finishes at `/events`, and a page at `/page`. Returns the server, and the number of requests for
/// the events.
async fn serve_finished_source() -> (TestServer, Arc<AtomicUsize>) {
    let source = source_fn(async |_| {
        Ok(stream::iter([
            Item::Event(Event::text("one")),
            Item::Finished,
        ]))
    });
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = requests.clone();
    let count = middleware::from_fn(move |request, next: middleware::Next| {
        counter.fetch_add(1, Ordering::Relaxed);
        next.run(request)
    });
    let sse = Sse::new().retry(Duration::from_millis(50));
    let app = Router::new()
        .route_service("/events", service(source).transport(sse))
        .route_layer(count)
        .route(
            "/page",
            get(async || Html("<!doctype html><title>test</title>")),
        );
    (TestServer::start(app).await, requests)
}

/// Returns the events that a page gets from a source that sends one event and finishes, and the number of requests of the page.
async fn read_finished_source(client: &str) -> (Value, usize) {
    let (server, requests) = serve_finished_source().await;
    let mut command = programs::node_script_with_chromium("page_event_sources.mjs");
    command.args([client, &server.url("/events")]);
    let events = run_to_json(command).await;
    (events, requests.load(Ordering::Relaxed))
}

/// Returns all codes but these.
fn all_but(codes: &[u16]) -> Vec<u16> {
    let others = CODES.iter().filter(|code| !codes.contains(code));
    others.copied().collect()
}

#[tokio::test]
async fn reconnecting_sockets_reconnect_after_every_code() {
    for client in ["reconnecting-websocket", "partysocket", "websocket-ts"] {
        assert_eq!(codes_after_which(client).await, CODES, "{client}");
    }
}

#[tokio::test]
async fn react_use_websocket_reconnects_if_told_to() {
    let client = "react-use-websocket";
    assert_eq!(codes_after_which(client).await, [] as [u16; 0]);
    let client = "react-use-websocket with shouldReconnect";
    assert_eq!(codes_after_which(client).await, CODES);
}

#[tokio::test]
async fn sockette_stops_after_normal_codes() {
    assert_eq!(codes_after_which("sockette").await, all_but(&[1000, 1001]));
}

#[tokio::test]
async fn rxjs_retries_without_close_frame_only() {
    assert_eq!(codes_after_which("rxjs").await, [1006]);
}

#[tokio::test]
async fn graphql_ws_stops_after_its_fatal_codes() {
    let fatal = [
        1002, 1007, 1008, 1009, 1011, 4400, 4401, 4406, 4409, 4429, 4500,
    ];
    assert_eq!(codes_after_which("graphql-ws").await, all_but(&fatal));
}

#[tokio::test]
async fn robust_websocket_stops_after_three_codes() {
    let codes = codes_after_which("robust-websocket").await;
    assert_eq!(codes, all_but(&[1000, 1008, 1011]));
}

#[tokio::test]
async fn htmx_reconnects_after_four_codes() {
    assert_eq!(
        codes_after_which("htmx-ext-ws").await,
        [1006, 1011, 1012, 1013]
    );
}

#[tokio::test]
async fn turbo_never_reconnects() {
    assert_eq!(codes_after_which("turbo").await, [] as [u16; 0]);
}

#[tokio::test]
async fn htmx_closes_at_event_finished() {
    let (events, requests) = read_finished_source("htmx with sse-close").await;
    assert_eq!(events, json!([["message", "one"], ["closed", null]]));
    assert_eq!(requests, 1);
    // After a 204, htmx creates an `EventSource` without a cursor, which reads the events again.
    let (events, requests) = read_finished_source("htmx").await;
    assert_eq!(events[1], json!(["message", "one"]));
    assert!(requests > 3, "{requests}");
}

#[tokio::test]
async fn sse_js_has_to_be_closed_at_event_finished() {
    let read = json!([["message", "one"], ["finished", "{\"finished\":true}"]]);
    let (events, requests) = read_finished_source("sse.js that is closed").await;
    assert_eq!((events, requests), (read.clone(), 1));
    let (events, requests) = read_finished_source("sse.js").await;
    assert_eq!(events, read);
    assert!(requests > 3, "{requests}");
}

/// The crate `eventsource-client` of LaunchDarkly takes a 204 for a stream that has ended.
#[tokio::test]
async fn launchdarkly_client_has_to_be_dropped_at_event_finished() {
    use eventsource_client::{Client as _, ClientBuilder, ReconnectOptions, SSE};
    let (server, requests) = serve_finished_source().await;
    let delay = Duration::from_millis(50);
    let reconnect = ReconnectOptions::reconnect(true).delay(delay).build();
    let builder = ClientBuilder::for_url(&server.url("/events")).unwrap();
    let client = builder.reconnect(reconnect).build_http();
    let mut stream = client.stream();
    let mut event_types = Vec::new();
    let reading = async {
        while requests.load(Ordering::Relaxed) <= 3 {
            if let Ok(SSE::Event(event)) = stream.next().await.unwrap() {
                event_types.push(event.event_type);
            }
        }
    };
    let read = tokio::time::timeout(PROGRAM_TIMEOUT, reading).await;
    assert!(read.is_ok(), "{event_types:?} {requests:?}");
    // The event `finished` arrives once, before the requests that get a 204.
    assert_eq!(event_types, ["message", "finished"]);
}
