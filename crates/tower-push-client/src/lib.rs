//! A client for server push, for servers of [tower-push](https://docs.rs/tower-push) and of other projects.
//!
//! A subscription is a [`Stream`](futures_core::Stream) of events that reconnects and resumes by itself, over Server-Sent Events, NDJSON, JSON
//! text sequences, multipart streams, long-polling and WebSockets. The client keeps one cursor for all transports: events are neither lost nor
//! repeated when a connection breaks, when a server restarts, or when the client falls back to another transport. Events that the server cannot
//! replay are reported as a gap.
//!
//! ```
//! use futures_util::StreamExt;
//! use tower_push_client::{Client, ClientItem};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! # let url = format!("http://{}/prices", listener.local_addr()?);
//! # let prices = tower_push::Channel::builder().start(tower_push::source::StartPosition::Oldest).build();
//! # prices.publish("21.5")?;
//! # prices.close();
//! # tokio::spawn(async { tower_push::serve(listener, tower_push::service(prices)).await });
//! // let url = "http://127.0.0.1:3000/prices";
//! let mut prices = Client::new().subscribe(url)?;
//! while let Some(item) = prices.next().await {
//!     match item? {
//!         ClientItem::Event { event, .. } => println!("{}", event.payload().as_text().unwrap_or("bytes")),
//!         ClientItem::Gap(gap) => println!("{:?} events are missing", gap.missed),
//!         ClientItem::Reconnecting { delay, error } => println!("again in {delay:?}: {error:?}"),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Who comes back, and when
//! | what happens | what the client does |
//! |---|---|
//! | the connection breaks, the server cannot be reached, or it answers 408, 409, 421, 425, 429 or 5xx | reconnects, after a random delay whose bound doubles with each failure |
//! | the stream ends; a WebSocket is closed with 1001, 1005, 1011 to 1014, 3000 to 3499 or 4000 to 4999 | reconnects in the same way |
//! | the server names a time: `retry`, `Retry-After`, an end with a time, the reason of a close frame | reconnects after this time, and at most twice this time |
//! | the server is silent for 2.5 times its heartbeat interval | reconnects |
//! | 401, or a WebSocket is closed with 4401 | [prepares](Client::prepare_request) the request once more, at once. A second 401 ends the stream with an error |
//! | 400, 405, 406, 415, 426, 501 or 505 | asks for the next [transport](Client::transports) at once. If the server refuses all of them, the stream ends with the error |
//! | no byte arrives over a new transport in [time](Client::first_byte_timeout) | asks for the next transport at once. If the server refuses the others, returns to this one, and waits |
//! | a redirect within the host | follows it. Each reconnect begins with the original URL |
//! | a long poll is answered at once, without events or with those that the client has | polls again, after a delay that grows |
//! | the source has finished: an end that says so, the status 204, a WebSocket is closed with 1000 | yields [`ClientItem::Finished`], and ends |
//! | any other status, a redirect to another host, a page instead of a feed, an event that cannot be read or is too long; a WebSocket is closed with 1002, 1003, 1007 to 1010 or 3500 to 3999 | ends with the error, which [has the body](Error::body) of the response |
//!
//! # HTTP clients
//! The HTTP client is any [`tower_service::Service`]. `Client::new` uses hyper-util's client, without TLS. [`Client::with_service`] takes
//! another service: hyper-util's client with a TLS connector, `ReqwestService`, or a service inside layers of tower. The stream needs a tokio
//! runtime with its timer.
//!
//! A WebSocket is opened by `Transport::WebSocket` over HTTP/1.1, and by `Transport::WebSocketHttp2` over HTTP/2: choose the one whose version
//! of HTTP the service uses for the URL. `EventStream::sender` sends messages to the server.
//!
//! # Without I/O
//! [`Subscriber`] is the protocol of one subscription as a state machine: for other runtimes, and for tests.
//!
//! # Feature flags
//! | feature | what it adds | crates |
//! |---|---|---|
//! | `hyper-client` (default) | `Client::new` | `hyper-util`, `http-body-util` |
//! | `websocket` (default) | WebSockets over HTTP/1.1 | `hyper` without features, `sha1_smol` |
//! | `http2` | WebSockets over HTTP/2 | `hyper` with HTTP/2 |
//! | `deflate` | compressed WebSocket messages | `flate2` on `zlib-rs` |
//! | `reqwest` | `ReqwestService` | `reqwest` 0.13 |
//! | `source` | `RemoteSource` and `relay_into`: another server's feed as a source | `tower-push` |
//! | `full` | all of the above | |

#![cfg_attr(docsrs, feature(doc_cfg))]

mod client;
mod error;
mod event_stream;
mod feed_url;
mod http_service;
mod item;
#[cfg(feature = "websocket")]
mod message_sender;
#[cfg(feature = "reqwest")]
mod reqwest_service;
#[cfg(feature = "source")]
mod source;
pub mod subscriber;
mod transport;
#[cfg(feature = "websocket")]
mod upgraded_socket;

#[cfg(feature = "websocket")]
#[cfg_attr(docsrs, doc(cfg(feature = "websocket")))]
pub use self::message_sender::{MessageSender, SendMessageError};
#[cfg(feature = "reqwest")]
#[cfg_attr(docsrs, doc(cfg(feature = "reqwest")))]
pub use self::reqwest_service::ReqwestService;
#[cfg(feature = "source")]
#[cfg_attr(docsrs, doc(cfg(feature = "source")))]
pub use self::source::{RemoteSource, RemoteStream, relay_into};
pub use self::{
    client::Client,
    error::{BoxError, Error},
    event_stream::EventStream,
    item::ClientItem,
    subscriber::Subscriber,
    transport::Transport,
};

/// The code of the README, as a doc test.
#[cfg(all(doctest, feature = "hyper-client", feature = "reqwest"))]
#[doc = include_str!("../README.md")]
struct ReadmeDocTests;
