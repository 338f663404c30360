//! The JavaScript client of `clients/js`, in Node.js against a server of this library and servers of others, and in Chromium and Firefox.
//! `scripts/setup` installs what the tests need.

use std::{convert::Infallible, path::PathBuf, process::Stdio, time::Duration};

use axum::{
    BoxError, Router,
    body::Bytes,
    extract::{Path as PathParameter, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{
        Html,
        sse::{Event as AxumEvent, Sse as AxumSse},
    },
    routing::{any, get, post},
};
use futures_util::{Stream, StreamExt, stream};
use serde_json::json;
use testkit::{TestServer, programs};
use tokio::{process::Command, time::timeout};
use tower_push::{
    Channel, Error, Event, EventId, Gap, GapReason, Hub, Item, KeepAlive, Push, PushLayer,
    Resumable,
    event::Topic,
    source::{
        Rejection, StartPosition, Subscription,
        hub::{ClientTopicsSource, HubCommands, TopicAccess, Topics},
        source_fn,
    },
    transport::{LongPoll, Negotiate, Sse},
};

/// The number of events in `/feed`. `tests/js/client/support.mjs` knows the events.
const FEED_LEN: u64 = 12;

/// The time in which the tests of one file end, on a busy machine.
const NODE_TIMEOUT: Duration = Duration::from_secs(600);

/// Returns event number `n` of the feed: texts, JSON and bytes, with and without a type.
fn feed_event(n: u64) -> Result<Event, Error> {
    let event = match n % 4 {
        0 => Event::json(&json!({ "n": n, "text": "é€𝄞" }))?.with_type("json")?,
        1 => Event::text(format!("{n}: é€𝄞\nsecond line")),
        2 => Event::binary(format!("bytes {n}")).with_type("bytes")?,
        _ => Event::text("").with_type("empty")?,
    };
    event.with_id(n)
}

/// Returns the feed after the client's cursor. A cursor that is not a number gets a gap, and all events.
async fn feed() -> Push {
    Push::new(source_fn(async |subscription: Subscription| {
        let cursor = subscription.cursor().cloned();
        let number = cursor.as_ref().map(|id| id.as_str().parse::<u64>());
        let (after, first) = match (number, cursor) {
            (None, _) => (0, Item::Cursor(EventId::from(0))),
            (Some(Ok(n)), _) => (n, Item::Cursor(EventId::from(n))),
            (Some(Err(_)), requested) => {
                let mut gap = Gap::new(GapReason::Expired)
                    .resumed(EventId::from(0))
                    .missed(7);
                gap.requested = requested;
                (0, Item::from(gap))
            }
        };
        let events = stream::iter(after + 1..=FEED_LEN).then(|n| async move {
            // Every transport sends the feed in several pieces.
            if n % 4 == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            feed_event(n).map(Item::Event)
        });
        let items = stream::iter([Ok(first)]).chain(events);
        Ok(items.chain(stream::iter([Ok::<_, Error>(Item::Finished)])))
    }))
}

/// Returns the feed, cut after every second event.
async fn cut_feed() -> Push {
    Push::new(source_fn(async |subscription: Subscription| {
        let cursor = subscription
            .cursor()
            .and_then(|id| id.as_str().parse().ok());
        let after = cursor.unwrap_or(0u64);
        let events = (after + 1..=FEED_LEN)
            .take(2)
            .map(|n| feed_event(n).map(Item::Event).map_err(BoxError::from));
        let last = match after + 2 < FEED_LEN {
            true => Err("the stream is cut".into()),
            false => Ok(Item::Finished),
        };
        Ok(stream::iter(events.chain([last]).collect::<Vec<_>>()))
    }))
}

/// Returns a stream that ends after each event with a time to reconnect, until event number 4.
async fn ending() -> Push {
    Push::new(source_fn(async |subscription: Subscription| {
        let cursor = subscription
            .cursor()
            .and_then(|id| id.as_str().parse().ok());
        let n = cursor.unwrap_or(0u64) + 1;
        let end = match n {
            4 => Item::Finished,
            _ => Item::Ended {
                retry: Duration::from_millis(20),
            },
        };
        Ok(stream::iter([feed_event(n).map(Item::Event), Ok(end)]))
    }))
}

/// Returns the answer of a language model, which stays available if the client is cut off.
async fn answer(State(state): State<ServerState>, question: String) -> Push {
    let words: Vec<_> = question.split(' ').map(str::to_owned).collect();
    let words = stream::iter(words).then(|word| async {
        tokio::time::sleep(Duration::from_millis(2)).await;
        word
    });
    Push::new(state.answers.wrap(words))
}

/// Returns one event that is no text.
async fn bytes(_: Subscription) -> Result<impl Stream<Item = Item>, Rejection> {
    let event = Item::Event(Event::binary(vec![0, 128, 255]));
    Ok(stream::iter([event, Item::Finished]))
}

/// Returns an event stream of axum: no ids, and no bytes but those of the events.
async fn foreign_sse() -> AxumSse<impl Stream<Item = Result<AxumEvent, Infallible>>> {
    let events = (1..=3).map(|n| Ok(AxumEvent::default().event("tick").data(n.to_string())));
    AxumSse::new(stream::iter(events).chain(stream::pending()))
}

/// Returns the source of the hub's topics: clients may publish to topics that begin with `room`, and may not read those that begin with `hidden`.
fn hub_source(hub: &Hub) -> ClientTopicsSource {
    let topics = Topics::from_query("topic").max_topics(100);
    let authorized = hub
        .subscribe(topics)
        .authorize(async |_: Subscription, topic: Topic| {
            Ok::<_, Rejection>(match topic.as_str() {
                name if name.starts_with("hidden") => TopicAccess::refuse_topic(),
                name if name.starts_with("room") => TopicAccess::allow().with_publishing(),
                _ => TopicAccess::allow(),
            })
        });
    authorized
        .authorize_patterns(async |_, _| true)
        .commands(HubCommands::new())
}

/// Returns the routes of a hub: one for its clients, and one for each topic, which publishes and counts subscribers.
fn hub_routes(path: &str, start: StartPosition) -> Router {
    let hub = Hub::builder().start(start).max_patterns(100).build();
    let topics = async |State(hub): State<Hub>| Push::new(hub_source(&hub));
    // The names of several topics are separated by commas.
    let publish = async |State(hub): State<Hub>,
                         PathParameter(topic): PathParameter<String>,
                         text: String| {
        let topics: Vec<_> = topic.split(',').collect();
        hub.publish(topics, text).unwrap().to_string()
    };
    let subscribers = async |State(hub): State<Hub>,
                             PathParameter(topic): PathParameter<String>| {
        hub.topic(topic).unwrap().subscriber_count().to_string()
    };
    Router::new()
        .route(path, any(topics))
        .route(&format!("{path}/{{topic}}"), post(publish).get(subscribers))
        .with_state(hub)
}

#[derive(Clone)]
struct ServerState {
    channel: Channel,
    answers: Resumable,
}

fn app() -> Router {
    let state = ServerState {
        channel: Channel::builder()
            .max_events(1000)
            .start(StartPosition::Oldest)
            .build(),
        answers: Resumable::new(),
    };
    let transports = Negotiate::new()
        .add_transport(Sse::new().keep_alive(KeepAlive::new().interval(Duration::from_millis(50))))
        .add_transport(LongPoll::new().wait_time_range(Duration::ZERO..=Duration::from_secs(30)));
    // Serves the scripts of a directory.
    let scripts = |directory: &'static str| {
        get(async move |PathParameter(file): PathParameter<String>| {
            let content = std::fs::read(programs::repository_path(directory).join(file));
            let content = content.map_err(|_| StatusCode::NOT_FOUND)?;
            Ok::<_, StatusCode>(([(CONTENT_TYPE, "text/javascript; charset=utf-8")], content))
        })
    };
    let channel = async |State(state): State<ServerState>| Push::new(state.channel);
    let publish = async |State(state): State<ServerState>, body: Bytes| {
        let text = String::from_utf8_lossy(&body).into_owned();
        state.channel.publish(text).unwrap().to_string()
    };
    let subscribers =
        async |State(state): State<ServerState>| state.channel.subscriber_count().to_string();
    Router::new()
        .route(
            "/",
            get(async || Html("<!doctype html><title>test</title>")),
        )
        .route("/dist/{file}", scripts("clients/js/dist"))
        .route("/client/{file}", scripts("tests/js/client"))
        .route("/feed", any(feed))
        .route("/cut-feed", any(cut_feed))
        .route("/ending", any(ending))
        .route("/channel", any(channel))
        .route("/publish", post(publish))
        .route("/subscribers", get(subscribers))
        .route("/answer", post(answer))
        .route("/foreign-sse", get(foreign_sse))
        .route_service(
            "/bytes",
            tower_push::service(source_fn(bytes)).transport(Sse::new().base64()),
        )
        .with_state(state)
        .merge(hub_routes("/topics", StartPosition::Last(1)))
        .merge(hub_routes("/topics-last-3", StartPosition::Last(3)))
        .merge(hub_routes("/topics-now", StartPosition::Now))
        .merge(hub_routes("/topics-oldest", StartPosition::Oldest))
        .layer(PushLayer::with(transports))
}

/// Runs a program with the address of a server in the variable `SERVER`. Panics with the program's output unless its tests pass.
async fn assert_passes(mut command: Command) {
    let server = TestServer::start(app()).await;
    command
        .env("SERVER", server.url(""))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(NODE_TIMEOUT, command.output()).await;
    let output = output
        .expect("the tests should have ended")
        .expect("run scripts/setup first");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

async fn run_node_tests(file: &str) {
    programs::installed_path("tests/js/node_modules/ws");
    let path: PathBuf = programs::repository_path("tests/js/client").join(file);
    let mut command = Command::new("node");
    command.args(["--test", "--test-reporter=tap"]).arg(path);
    assert_passes(command).await;
}

/// Runs the tests of `runtime.mjs` in a JavaScript runtime, and in a worker of it.
async fn run_in_runtime(program: PathBuf, arguments: &[&str]) {
    programs::installed_path("tests/js/node_modules/ws");
    let mut command = Command::new(program);
    command
        .args(arguments)
        .arg(programs::repository_path("tests/js/client/runtime.mjs"));
    assert_passes(command).await;
}

/// The built files are in the repository, so that users and examples need no npm.
#[test]
fn built_files_are_those_of_the_source() {
    programs::installed_path("clients/js/node_modules/esbuild");
    let output = std::process::Command::new("node")
        .arg(programs::repository_path("clients/js/build.mjs"))
        .arg("--check")
        .output()
        .expect("run scripts/setup first");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn feed_arrives_once_over_each_transport() {
    run_node_tests("feed.test.mjs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn event_stream_parser_follows_the_standard() {
    run_node_tests("sse_parser.test.mjs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_have_the_right_consequence() {
    run_node_tests("failures.test.mjs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_an_error_or_does_no_harm() {
    run_node_tests("bad_input.test.mjs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statuses_and_close_codes_have_the_reactions_of_the_table() {
    run_node_tests("reactions.test.mjs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_do_what_they_say() {
    run_node_tests("options.test.mjs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bindings_of_the_docs_work_in_frameworks() {
    run_node_tests("frameworks.test.mjs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn environment_wakes_connections() {
    run_node_tests("environment.test.mjs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_change_over_each_transport() {
    run_node_tests("topics.test.mjs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tabs_with_any_cursor_share_connections() {
    run_node_tests("shared.test.mjs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tabs_with_other_topics_share_connection() {
    run_node_tests("shared_topics.test.mjs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tabs_agree_about_leaders() {
    run_node_tests("leadership.test.mjs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_runs_in_node() {
    run_in_runtime("node".into(), &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_runs_in_deno() {
    let deno = programs::installed_path("tests/js/node_modules/.bin/deno");
    run_in_runtime(
        deno,
        &[
            "run",
            "--allow-all",
            "--no-lock",
            "--node-modules-dir=manual",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_runs_in_bun() {
    let bun = programs::installed_path("tests/js/node_modules/.bin/bun");
    run_in_runtime(bun, &["run"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_runs_in_workers_of_chromium() {
    assert_passes(programs::node_script_with_chromium("client_workers.mjs").into()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chromium_tabs_share_connections() {
    let mut command = programs::node_script_with_chromium("client_browser.mjs");
    command.arg("chromium");
    assert_passes(command.into()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn firefox_frames_share_connections() {
    let mut command = programs::node_script_with_firefox("client_browser.mjs");
    command.arg("firefox");
    assert_passes(command.into()).await;
}
