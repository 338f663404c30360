//! What the tests, benchmarks and fuzz targets of tower-push share.
//!
//! | module | what it has |
//! |---|---|
//! | [`server`] | a server for one test, on a port of its own |
//! | [`client`] | an HTTP client on one connection, HTTP/1.1 or HTTP/2, whose responses are read as they arrive |
//! | [`websocket`] | WebSocket handshakes and frames, over HTTP/1.1 and HTTP/2 |
//! | [`event_source`], [`records`] | parsers of what the transports write |
//! | [`request`](mod@request), [`headers`](mod@headers) | requests without a body, headers from bytes |
//! | [`body`], [`item`] | bodies and items as values to compare |
//! | [`count`] | how many streams are alive |
//! | [`example`] | the examples, as programs |
//! | [`installed`] | programs for Node.js, Python and Chromium, with what `scripts/setup` installs |
//! | [`process`] | the program itself as another process, its CPU time and memory |

pub mod body;
pub mod client;
pub mod count;
pub mod event_source;
pub mod example;
pub mod headers;
pub mod installed;
pub mod item;
pub mod process;
pub mod records;
pub mod request;
pub mod server;
pub mod websocket;

use std::time::Duration;

pub use self::{
    body::{frames, text},
    client::{Client, Reading, VERSIONS, Version, raw_http1},
    count::Count,
    headers::headers,
    item::short,
    request::{get, request},
    server::Server,
};

/// Long enough for a busy machine, short enough to fail: it is never waited for in a test that passes.
pub const LONG: Duration = Duration::from_secs(20);
