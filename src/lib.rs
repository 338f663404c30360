//! Server push for tower: any `Stream` as a live HTTP response, over the transport that the client asks for.
//!
//! ```
//! use axum::{Router, routing::any};
//! use tokio_stream::{StreamExt, wrappers::IntervalStream};
//! use tower_push::{Push, PushLayer};
//!
//! let ticks = || async {
//!     let interval = tokio::time::interval(std::time::Duration::from_secs(1));
//!     Push::new(IntervalStream::new(interval).map(|_| "tick"))
//! };
//! let app: Router = Router::new().route("/ticks", any(ticks)).layer(PushLayer::new());
//! ```
//!
//! `/ticks` now speaks Server-Sent Events, NDJSON, JSON-seq, multipart, long-polling and WebSocket, whichever a client accepts,
//! asks an upgrade to, or names (`/ticks?transport=ndjson`). What holds on each of them:
//!
//! - **Correct on the wire.** Every payload reads back as it was, and none can forge a field, a line or a boundary. Fields are
//!   checked when an [`Event`] is built; nothing panics later, in the middle of a stream.
//! - **Nothing lost in silence.** What a client will not get is announced as a [`Gap`]. An end is told from a failure: a
//!   source's error cuts the response, and the client sees a truncation (on a WebSocket, its close code).
//! - **Encoded once.** An event's bytes are shared by all its subscribers. What is ready together leaves in one frame; what
//!   stands alone is not kept waiting.
//! - **At home in tower.** [Layers](layer) around what you have; `http` types alone, so that axum, warp and bare hyper are the
//!   same to it.
//!
//! # The parts
//! Data flows one way, through one module each:
//!
//! ```text
//! layer ─► transport ─► source ─► event
//! ```
//!
//! - [`event`]: what is pushed. [`Event`], its [id](EventId), which is the cursor that resumes after it, and [`IntoItem`], which
//!   strings, bytes, JSON and `Result`s of them are.
//! - [`source`]: what a client subscribes to. Any stream is a [`PushSource`]; [`source_fn`](source::source_fn) makes one that
//!   sees the client's cursor, may refuse, and hears what a client says over a WebSocket; [`Channel`] is the one for many
//!   subscribers, with a log that they resume from.
//! - [`transport`]: how it travels. [`Sse`](transport::Sse), [`Chunked`](transport::Chunked), [`LongPoll`](transport::LongPoll),
//!   `WebSocket`, and [`Negotiate`](transport::Negotiate) over several; or one of your own.
//! - [`layer`]: how it gets out. Four doors: a layer over a service of pushes, the same layer over an existing HTTP service, a
//!   [`service`] of one source, and the function [`respond`].
//!
//! Around a transport goes a [`Guard`]: how many streams there may be and for how long, how they end when the server stops
//! ([`Drain`]), and what became of them. See [`guard`].
//!
//! And beside the way: [`WriteProgress`], for the server's connections, which puts out clients that have stopped reading.
//!
//! # Resuming
//! A client that comes back sends the id of the last event it has, in `Last-Event-ID` as `EventSource` does by itself, or as
//! `?last_event_id=`. A source finds it in its [`Subscription`](source::Subscription):
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
//! A plain stream cannot resume, and says so: the client gets a gap first. A [`Channel`] can: publish into it, and every client
//! goes on where it was, on the same transport or another, without a hole or a double. And [`Resumable`] makes any stream so, by
//! keeping it while its client is away.
//!
//! # Feature flags
//! | feature | what it adds | crates |
//! |---|---|---|
//! | (none) | everything but the below | 9 beside this one |
//! | `websocket` | the WebSocket transport, `ClientMessages`; on by default | `hyper`, bare, and `sha1_smol` |
//! | `http2` | WebSockets over HTTP/2 | `hyper` with its HTTP/2 |
//! | `deflate` | compressed WebSocket messages | `flate2`, `zlib-rs` |
//! | `json` | `Event::json`, `Event::json_text`, `Json` | `serde`, `serde_json` |
//! | `hyper` | [`WriteProgress`] around hyper's own kind of connection | `hyper`, bare |
//! | `axum` | [`Push`] and [`Rejection`](source::Rejection) as axum responses | `axum-core` |
//! | `tracing` | a span for each open stream: `guard::Tracing`, `Observer::span` | `tracing`, bare |
//! | `full` | all of them | |
//!
//! WebSockets, long-polling and whatever waits for a time (heartbeats, a [`Guard`]'s ends, [`Resumable`],
//! [`WriteProgress`]) need tokio; for the rest, with [`KeepAlive::disabled`], any runtime will do.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod error {
    pub(crate) use tower_push_proto::{BoxError, Error};
}
pub mod guard;
pub mod layer;
mod origin_policy;
pub mod source;
mod sync;
mod time;
pub mod transport;
mod write_progress;

#[cfg(feature = "websocket")]
#[cfg_attr(docsrs, doc(cfg(feature = "websocket")))]
pub use self::layer::WebSocketLayer;
pub use self::{
    guard::{Drain, Guard},
    layer::{ChunkedLayer, LongPollLayer, PushLayer, SseLayer, respond, service},
    origin_policy::OriginPolicy,
    source::{Channel, Push, PushSource, Resumable},
    transport::{KeepAlive, PushBody},
    write_progress::WriteProgress,
};
#[cfg(feature = "json")]
#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
pub use tower_push_proto::Json;
pub use tower_push_proto::event;
pub use tower_push_proto::{
    BoxError, Error, Event, EventId, EventType, Gap, GapReason, IntoItem, Item,
};
use tower_push_proto::{byte_search, random};

/// The programs and commands in the documents are tests too.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/architecture.md")]
    struct Architecture;
    #[doc = include_str!("../docs/clients.md")]
    struct Clients;
    #[doc = include_str!("../docs/resume.md")]
    struct Resume;
    #[doc = include_str!("../docs/websocket.md")]
    struct WebSocket;
    #[doc = include_str!("../docs/deploying.md")]
    struct Deploying;
    #[doc = include_str!("../docs/security.md")]
    struct Security;
    #[doc = include_str!("../docs/durable-streams.md")]
    struct DurableStreams;
}
