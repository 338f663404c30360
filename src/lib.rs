//! Server push for [tower](https://docs.rs/tower): any `Stream` becomes a live HTTP response, on axum, warp and hyper.
//!
//! One URL serves Server-Sent Events, WebSocket, long-polling, and chunked streams of NDJSON, JSON text sequences or multipart.
//! The client chooses by its `Accept` header, by an upgrade to WebSocket, or by a query parameter.
//!
//! # A first program
//! ```toml
//! [dependencies]
//! axum = "0.8"
//! tokio = { version = "1", features = ["full"] }
//! tokio-stream = { version = "0.1", features = ["time"] }
//! tower-push = { version = "0.1", features = ["axum"] }
//! ```
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use axum::{Router, routing::any, serve::ListenerExt};
//! use tokio::{net::TcpListener, time::interval};
//! use tokio_stream::{StreamExt, wrappers::IntervalStream};
//! use tower_push::{Push, PushLayer};
//!
//! async fn ticks() -> Push {
//!     Push::new(IntervalStream::new(interval(Duration::from_secs(1))).map(|_| "tick"))
//! }
//!
//! #[tokio::main]
//! async fn main() -> std::io::Result<()> {
//!     let app = Router::new().route("/ticks", any(ticks)).layer(PushLayer::new());
//!     let listener = TcpListener::bind("127.0.0.1:3000").await?.tap_io(|socket| {
//!         let _ = socket.set_nodelay(true); // TCP sends each event at once
//!     });
//!     axum::serve(listener, app).await
//! }
//! ```
//!
//! ```text
//! curl -N http://127.0.0.1:3000/ticks                                      Server-Sent Events
//! curl -N http://127.0.0.1:3000/ticks -H 'Accept: application/x-ndjson'    NDJSON
//! curl -N 'http://127.0.0.1:3000/ticks?transport=multipart'                multipart
//! new WebSocket("ws://127.0.0.1:3000/ticks")                               WebSocket, in a browser
//! ```
//!
//! # What every transport guarantees
//! - **Correct bytes.** A client reads every payload as it was sent. No payload can forge a field, a line or a boundary. Ids and
//!   types are checked when an [`Event`] is built, so an encoder cannot fail in the middle of a stream because of them.
//! - **No silent loss.** A [`Gap`] in the stream tells the client of events that it will not receive. If the source fails, the
//!   response is cut: the client sees a truncated body, or an error code on a WebSocket, and cannot mistake it for
//!   an end.
//! - **Encoding once.** All subscribers share the encoded bytes of an event. Events that are ready together are sent in one
//!   frame, and an event that is ready alone is sent at once.
//!
//! # Modules
//! | module | contents |
//! |---|---|
//! | [`event`] | [`Event`], its [`EventId`] and [`EventType`](event::EventType), [`Gap`], and [`IntoItem`](event::IntoItem), the conversion from strings, bytes, JSON and `Result`s |
//! | [`source`] | what clients subscribe to: [`PushSource`], which every stream implements; [`source_fn`](source::source_fn); [`Channel`], for many subscribers; [`Hub`], for many topics; [`Relay`], for several servers; [`Resumable`], for streams that outlive a connection; [`BroadcastSource`](source::BroadcastSource), [`WatchSource`](source::WatchSource) and [`MpscSource`](source::MpscSource), for tokio's channels |
//! | [`transport`] | how events are sent: [`Sse`](transport::Sse), [`Chunked`](transport::Chunked), [`LongPoll`](transport::LongPoll), `WebSocket`, and [`Negotiate`](transport::Negotiate), which chooses among several |
//! | [`format`](mod@format) | how the transports `Chunked` and `LongPoll` write records: [`Ndjson`](format::Ndjson), [`JsonSeq`](format::JsonSeq), [`JsonArray`](format::JsonArray), [`Multipart`](format::Multipart), [`Raw`](format::Raw) |
//! | [`layer`] | how a [`Push`] becomes a response: [layers](layer::TransportLayer), the [`service`] of one source, [`respond`] and [`respond_with`] |
//! | [`guard`] | limits, lifetimes, counts and observers of open streams, in a [`Guard`], and their end when the server stops, with a [`Drain`] |
//! | [`publisher`] | publishing to a [`Hub`] over HTTP: a service for `POST` requests |
//! | `server` | a server for any tower service, with what long-lived responses need (feature `server`) |
//! | [`supervision`] | for transports of your own: how a subscription is opened, so that a [`Guard`] can count and end its stream |
//!
//! Two types at the root belong to no module: [`OriginPolicy`] decides which web pages may connect. [`WriteTimeout`] wraps a
//! server's connections and disconnects clients that have stopped reading.
//!
//! # Resuming
//! A client that reconnects sends the id of the last event that it has received, in the header `Last-Event-ID` or in the query
//! parameter `last_event_id`. An `EventSource` sends the header by itself. The source reads the id as a cursor from its
//! [`Subscription`](source::Subscription):
//!
//! ```
//! use tower_push::{Event, Push, source::source_fn};
//!
//! # fn next_after(cursor: Option<&tower_push::EventId>) -> u64 { 0 }
//! let countdown = Push::new(source_fn(async |subscription| {
//!     let next = next_after(subscription.cursor());
//!     Ok(tokio_stream::iter((next..10).map(|n| Event::text(format!("T minus {}", 10 - n)).with_id(n))))
//! }));
//! ```
//!
//! - A plain stream cannot be resumed. A client that sends a cursor gets a gap first.
//! - A [`Channel`] keeps the latest events in a log. A client resumes from any cursor in the log, on any transport, without a
//!   lost or repeated event.
//! - A [`Resumable`] keeps a stream for a while after its client has disconnected, and continues it when the client returns.
//!
//! # Guides
//! - [Sources](https://github.com/tower-push/tower-push/blob/main/docs/sources.md): which source fits, and recipes for common tasks
//! - [Resuming](https://github.com/tower-push/tower-push/blob/main/docs/resume.md): cursors, gaps, slow clients
//! - [Topics](https://github.com/tower-push/tower-push/blob/main/docs/topics.md): many topics on one connection
//! - [Several servers](https://github.com/tower-push/tower-push/blob/main/docs/relay.md): one feed from a broker or a database
//! - [Several servers on Redis](https://github.com/tower-push/tower-push/blob/main/docs/scaling.md): the crate `tower-push-redis`
//! - [WebSocket](https://github.com/tower-push/tower-push/blob/main/docs/websocket.md): subprotocols, close codes, messages from
//!   clients, compression
//! - [Deploying](https://github.com/tower-push/tower-push/blob/main/docs/deploying.md): proxies, timeouts, graceful shutdown,
//!   metrics, kernel settings
//! - [The server](https://github.com/tower-push/tower-push/blob/main/docs/server.md): `tower_push::serve`, TLS, and accept loops of your own
//! - [Performance](https://github.com/tower-push/tower-push/blob/main/docs/performance.md): measured CPU time and memory
//! - [Security](https://github.com/tower-push/tower-push/blob/main/docs/security.md): threats, the defaults, and what to turn on
//! - [Clients](https://github.com/tower-push/tower-push/blob/main/docs/clients.md): what to know of existing clients
//! - [Durable Streams](https://github.com/tower-push/tower-push/blob/main/docs/durable-streams.md): the protocol, and a server
//! - [Architecture](https://github.com/tower-push/tower-push/blob/main/docs/architecture.md): how the crate is built, and why
//!
//! # Feature flags
//! | feature | adds | crates |
//! |---|---|---|
//! | (none) | everything that is not listed below | 13 besides this one |
//! | `websocket` (default) | the WebSocket transport | `hyper` without features, `sha1_smol` |
//! | `http2` | WebSockets over HTTP/2 | `hyper` with its HTTP/2 |
//! | `deflate` | compressed WebSocket messages | `flate2`, `zlib-rs` |
//! | `gzip` | Server-Sent Events and chunked streams in gzip: `transport::GzipConfig` | `flate2`, `zlib-rs` |
//! | `json` | JSON payloads: `Event::json`, `Event::json_text`, `Json`, `format::Publication`; the commands of a hub's clients and the members of its topics: `HubCommands`, `Hub::presence` | `serde`, `serde_json` |
//! | `hyper` | [`WriteTimeout`] for hyper's I/O traits | `hyper` without features |
//! | `axum` | [`Push`] and [`Rejection`](source::Rejection) as axum responses | `axum-core` |
//! | `server` | `serve`, a server for HTTP/1.1 and HTTP/2 | `hyper` with its HTTP/1 and HTTP/2, `hyper-util` |
//! | `tracing` | a span for each open stream: `guard::TracingObserver`, `Observer::make_span` | `tracing` without features |
//! | `warp` | `layer::warp`: [`Push`] and [`Rejection`](source::Rejection) as warp replies, and a filter for the head of a request | `warp` without features: 40 crates |
//! | `full` | all of the above except `warp` | |
//!
//! # Runtime
//! These parts need a tokio runtime: WebSockets, long-polling, heartbeats, the time limits of a [`Guard`], [`Resumable`], a [`Relay`] with an
//! upstream, and [`WriteTimeout`]. Everything else runs on any runtime if heartbeats are off ([`KeepAlive::disabled`]).

#![cfg_attr(docsrs, feature(doc_cfg))]

mod deadline;
#[cfg(feature = "server")]
mod detach;
#[cfg(feature = "websocket")]
mod event_loop;
pub mod format;
pub mod guard;
pub mod layer;
mod moving_deadline_timer;
mod origin_policy;
pub mod publisher;
#[cfg(feature = "server")]
#[cfg_attr(docsrs, doc(cfg(feature = "server")))]
pub mod server;
pub mod source;
pub mod supervision;
mod sync;
pub mod transport;
mod write_timeout;

#[doc(inline)]
#[cfg(feature = "json")]
#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
pub use self::event::Json;
#[doc(inline)]
pub use self::event::{Event, EventId, Gap, GapReason, Item};
#[doc(inline)]
#[cfg(feature = "websocket")]
#[cfg_attr(docsrs, doc(cfg(feature = "websocket")))]
pub use self::layer::WebSocketLayer;
#[doc(inline)]
#[cfg(feature = "server")]
#[cfg_attr(docsrs, doc(cfg(feature = "server")))]
pub use self::server::serve;
#[doc(inline)]
pub use self::{
    guard::{Drain, Guard},
    layer::{
        ChunkedLayer, LongPollLayer, PushLayer, SseLayer, TransportLayer, respond, respond_with,
        service,
    },
    origin_policy::OriginPolicy,
    source::{Channel, Hub, Push, PushSource, Relay, Resumable},
    transport::{KeepAlive, PushBody},
    write_timeout::WriteTimeout,
};
use tower_push_proto::random;
pub use tower_push_proto::{BoxError, Error, event};
