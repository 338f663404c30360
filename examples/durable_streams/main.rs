//! A server of the [Durable Streams protocol](https://github.com/durable-streams/durable-streams/blob/main/PROTOCOL.md). Each stream is a
//! [`Channel`] in memory. The library serves the reads, and this program implements the writes.
//!
//! ```text
//! cargo run --example durable_streams
//! ```
//! The program prints its address. A stream in a terminal:
//! ```text
//! curl -X PUT  http://127.0.0.1:3000/log -H 'content-type: application/json'
//! curl -X POST http://127.0.0.1:3000/log -H 'content-type: application/json' -d '[{"n":1},{"n":2}]'
//! curl -i 'http://127.0.0.1:3000/log?offset=-1'                             # the events so far
//! curl -i 'http://127.0.0.1:3000/log?offset=AN-OFFSET&live=long-poll'       # the next events
//! curl -N 'http://127.0.0.1:3000/log?offset=-1&live=sse'                    # both, as an event stream
//! curl -X POST http://127.0.0.1:3000/log -H 'stream-closed: true'           # closes the stream
//! ```
//! Another address, and the wait time of long polls in seconds: `cargo run --example durable_streams 127.0.0.1:8080 10`.
//! `docs/durable-streams.md` lists what the example leaves out.

mod producers;

use std::{
    collections::{HashMap, hash_map::Entry},
    env,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header, request::Parts,
    },
    middleware::map_response,
    response::{IntoResponse, Response},
    serve::ListenerExt,
};
use serde_json::value::RawValue;
use tokio::net::TcpListener;
use tower_http::cors::{Any, CorsLayer};
use tower_push::{
    BoxError, Channel, Event, Push,
    source::StartPosition,
    transport::{LongPoll, Transport},
};

use self::producers::{AppendClaim, Producers, Verdict};

const STREAM_CLOSED: HeaderName = HeaderName::from_static("stream-closed");
const STREAM_NEXT_OFFSET: HeaderName = HeaderName::from_static("stream-next-offset");
const STREAM_SEQ: HeaderName = HeaderName::from_static("stream-seq");

/// Headers that request features which this server does not have. Such requests are refused, because ignoring the headers would promise the
/// features.
const UNSUPPORTED_HEADERS: [&str; 5] = [
    "stream-forked-from",
    "stream-fork-offset",
    "stream-fork-sub-offset",
    "stream-ttl",
    "stream-expires-at",
];

/// The response headers that pages of other origins may read.
const EXPOSED_HEADERS: [HeaderName; 7] = [
    STREAM_NEXT_OFFSET,
    STREAM_CLOSED,
    HeaderName::from_static("stream-up-to-date"),
    HeaderName::from_static("stream-cursor"),
    HeaderName::from_static("stream-sse-data-encoding"),
    header::ETAG,
    header::LOCATION,
];

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut arguments = env::args().skip(1);
    let address = arguments.next().unwrap_or("127.0.0.1:3000".to_owned());
    let mut long_poll = LongPoll::new().durable_only();
    if let Some(seconds) = arguments.next() {
        long_poll = long_poll.wait_time(Duration::from_secs_f64(seconds.parse()?));
    }
    let streams = StreamStore {
        by_path: Arc::default(),
        long_poll,
    };
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_methods(Any)
        .allow_headers(Any)
        .expose_headers(EXPOSED_HEADERS);
    let app = Router::new()
        .fallback(handle_request)
        .layer(map_response(add_browser_headers))
        .layer(cors)
        .with_state(streams);

    let listener = TcpListener::bind(address).await?;
    println!(
        "open http://{} with a client of Durable Streams",
        listener.local_addr()?
    );
    // Without this option, TCP may hold an event back until the client has acknowledged the one before it.
    let listener = listener.tap_io(|socket| {
        let _ = socket.set_nodelay(true);
    });
    axum::serve(listener, app).await?;
    Ok(())
}

/// Adds the headers with which pages of other origins may embed a response, and browsers do not sniff its type (§10).
async fn add_browser_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    let policy = HeaderName::from_static("cross-origin-resource-policy");
    headers.insert(policy, HeaderValue::from_static("cross-origin"));
    response
}

/// All streams.
#[derive(Clone)]
struct StreamStore {
    /// The streams by path.
    by_path: Arc<Mutex<HashMap<String, Arc<DurableStream>>>>,
    long_poll: LongPoll,
}

/// A stream: its log, the transport of its reads, and the state of its writes.
struct DurableStream {
    content_type: HeaderValue,
    channel: Channel,
    reads: LongPoll,
    writer: Mutex<WriterState>,
}

/// The state that only writes need.
#[derive(Default)]
struct WriterState {
    is_closed: bool,
    last_seq: Option<HeaderValue>,
    producers: Producers,
}

/// The response to a refused request: a status, headers, and a text.
type Refusal = (StatusCode, HeaderMap, &'static str);

/// The response to an append: a status and headers.
type AppendResult = (StatusCode, HeaderMap);

fn refusal(status: StatusCode, reason: &'static str) -> Refusal {
    (status, HeaderMap::new(), reason)
}

async fn handle_request(State(streams): State<StreamStore>, request: Request<Body>) -> Response {
    let (head, body) = request.into_parts();
    let written = match head.method {
        Method::GET | Method::HEAD => return streams.read(head).await,
        Method::PUT => streams.create(&head, body).await,
        Method::POST => streams.append(&head, body).await,
        Method::DELETE => streams.delete(head.uri.path()),
        _ => Err(refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "GET, HEAD, PUT, POST or DELETE",
        )),
    };
    written.into_response()
}

impl StreamStore {
    fn find(&self, path: &str) -> Result<Arc<DurableStream>, Refusal> {
        let stream = lock(&self.by_path).get(path).cloned();
        stream.ok_or(refusal(StatusCode::NOT_FOUND, "no such stream"))
    }

    /// Reads a stream (§5.5 to §5.8).
    async fn read(&self, head: Parts) -> Response {
        match self.find(head.uri.path()) {
            Ok(stream) => stream.read(head).await,
            Err(refusal) => refusal.into_response(),
        }
    }

    /// Creates a stream (§5.1).
    async fn create(&self, head: &Parts, body: Body) -> Result<Response, Refusal> {
        check_is_supported(&head.headers)?;
        let octets = HeaderValue::from_static("application/octet-stream");
        let content_type = head.headers.get(header::CONTENT_TYPE).cloned();
        let content_type = content_type.unwrap_or(octets);
        let closes = closes(&head.headers);
        let messages = split_messages(&content_type, &read_body(body).await?)?;
        let path = head.uri.path();
        let (status, stream) = match lock(&self.by_path).entry(path.to_owned()) {
            Entry::Occupied(entry) => {
                let stream = entry.get().clone();
                let is_same_stream = has_same_media_type(&stream.content_type, &content_type)
                    && lock(&stream.writer).is_closed == closes;
                if !is_same_stream {
                    return Err(refusal(StatusCode::CONFLICT, "there is another stream"));
                }
                (StatusCode::OK, stream)
            }
            Entry::Vacant(entry) => {
                let stream = Arc::new(DurableStream::new(content_type, &self.long_poll));
                lock(&stream.writer).write(&stream.channel, messages, closes);
                (StatusCode::CREATED, entry.insert(stream).clone())
            }
        };
        let host = head.headers.get(header::HOST);
        let host = host.and_then(|host| host.to_str().ok());
        let location = format!("http://{}{path}", host.unwrap_or("localhost"));
        let headers = [(header::LOCATION, location)];
        let mut response = (status, headers, stream.tail().await).into_response();
        let content_type = stream.content_type.clone();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type);
        Ok(response)
    }

    /// Appends to a stream, or closes it (§5.2 and §5.3).
    async fn append(&self, head: &Parts, body: Body) -> Result<Response, Refusal> {
        let stream = self.find(head.uri.path())?;
        check_is_supported(&head.headers)?;
        let written = stream.write(&head.headers, &read_body(body).await?);
        let tail = stream.tail().await;
        Ok(match written {
            Ok((status, headers_out)) => (status, tail, headers_out).into_response(),
            Err((status, headers_out, reason)) => {
                (status, tail, headers_out, reason).into_response()
            }
        })
    }

    /// Deletes a stream (§5.4). Its readers see that it is closed.
    fn delete(&self, path: &str) -> Result<Response, Refusal> {
        let stream = self.find(path)?;
        lock(&self.by_path).remove(path);
        lock(&stream.writer).write(&stream.channel, Vec::new(), true);
        Ok(StatusCode::NO_CONTENT.into_response())
    }
}

impl DurableStream {
    fn new(content_type: HeaderValue, long_poll: &LongPoll) -> Self {
        // The log keeps all events. With limits here, a client whose offset has expired would get a 410.
        let channel = Channel::builder()
            .max_events(usize::MAX)
            .max_bytes(usize::MAX)
            .start(StartPosition::Oldest)
            .build();
        Self {
            reads: long_poll.clone().durable_content_type(content_type.clone()),
            content_type,
            channel,
            writer: Mutex::default(),
        }
    }

    /// Lets the library serve a read.
    async fn read(&self, mut head: Parts) -> Response {
        let push = Push::new(self.channel.clone());
        self.reads.respond(&mut head, push).await.map(Body::new)
    }

    fn write(&self, headers: &HeaderMap, body: &Bytes) -> Result<AppendResult, Refusal> {
        let mut writer = lock(&self.writer);
        let closes = closes(headers);
        let is_close = closes && body.is_empty();
        let claim = AppendClaim::read(headers)
            .map_err(|reason| refusal(StatusCode::BAD_REQUEST, reason))?;
        let verdict = claim.as_ref().map(|claim| writer.producers.judge(claim));
        // A repeated append gets its response again, even after the stream is closed.
        let mut headers_out = match verdict {
            Some(Verdict::Again(headers_out)) => return Ok((StatusCode::NO_CONTENT, headers_out)),
            Some(Verdict::Fenced(headers_out)) => {
                return Err((
                    StatusCode::FORBIDDEN,
                    headers_out,
                    "there is a newer producer",
                ));
            }
            _ if writer.is_closed && !(is_close && claim.is_none()) => {
                return Err(refusal(StatusCode::CONFLICT, "the stream is closed"));
            }
            Some(Verdict::Gap(headers_out)) => {
                return Err((
                    StatusCode::CONFLICT,
                    headers_out,
                    "something before it is missing",
                ));
            }
            Some(Verdict::NoBeginning) => {
                return Err(refusal(StatusCode::BAD_REQUEST, "an epoch begins at 0"));
            }
            Some(Verdict::Next(headers_out)) => headers_out,
            None => HeaderMap::new(),
        };
        let mut messages = Vec::new();
        if !is_close {
            messages = self.messages(headers, body)?;
            writer.check_seq(headers.get(STREAM_SEQ))?;
        }
        // The offset is that of this append. Another writer may have moved the tail since.
        headers_out.extend(writer.write(&self.channel, messages, closes));
        let mut status = StatusCode::NO_CONTENT;
        if let Some(claim) = claim {
            writer.producers.accept(claim);
            if !is_close {
                status = StatusCode::OK;
            }
        }
        Ok((status, headers_out))
    }

    /// Returns the messages of a body, whose type must be the stream's.
    fn messages(&self, headers: &HeaderMap, body: &Bytes) -> Result<Vec<Event>, Refusal> {
        let nothing = refusal(StatusCode::BAD_REQUEST, "there is nothing to append");
        if body.is_empty() {
            return Err(nothing);
        }
        let Some(content_type) = headers.get(header::CONTENT_TYPE) else {
            return Err(refusal(StatusCode::BAD_REQUEST, "it has no content type"));
        };
        if !has_same_media_type(content_type, &self.content_type) {
            return Err(refusal(
                StatusCode::CONFLICT,
                "the stream's content is of another type",
            ));
        }
        let messages = split_messages(content_type, body)?;
        if messages.is_empty() {
            return Err(nothing);
        }
        Ok(messages)
    }

    /// Returns the headers that describe the tail, as in the response to `HEAD`.
    async fn tail(&self) -> HeaderMap {
        let (head, ()) = Request::head("/")
            .body(())
            .expect("a valid request")
            .into_parts();
        let mut headers_out = self.read(head).await;
        let mut tail = HeaderMap::new();
        for name in [STREAM_NEXT_OFFSET, STREAM_CLOSED] {
            tail.extend(
                headers_out
                    .headers_mut()
                    .remove(&name)
                    .map(|value| (name, value)),
            );
        }
        tail
    }
}

impl WriterState {
    /// Checks that `Stream-Seq` grows. The values of `Stream-Seq` are compared as texts (§5.2).
    fn check_seq(&mut self, seq: Option<&HeaderValue>) -> Result<(), Refusal> {
        if seq.is_some() && self.last_seq.as_ref() >= seq {
            return Err(refusal(
                StatusCode::CONFLICT,
                "its Stream-Seq is not behind the last",
            ));
        }
        if let Some(seq) = seq {
            self.last_seq = Some(seq.clone());
        }
        Ok(())
    }

    /// Publishes messages, and closes the stream if `closes` is set. Returns the header with the offset after the last message.
    fn write(
        &mut self,
        channel: &Channel,
        messages: Vec<Event>,
        closes: bool,
    ) -> Option<(HeaderName, HeaderValue)> {
        let published = messages.into_iter().map(|message| channel.publish(message));
        // Publishing does not fail, because only this method closes the channel.
        let last = published.filter_map(Result::ok).last();
        if closes {
            channel.close();
            self.is_closed = true;
        }
        let offset = HeaderValue::from_str(last?.as_str());
        Some((STREAM_NEXT_OFFSET, offset.ok()?))
    }
}

/// The largest body of an append, 64 MiB.
const MAX_APPEND_LEN: usize = 64 << 20;

async fn read_body(body: Body) -> Result<Bytes, Refusal> {
    let body = axum::body::to_bytes(body, MAX_APPEND_LEN).await;
    body.map_err(|_| refusal(StatusCode::PAYLOAD_TOO_LARGE, "it is cut, or too large"))
}

/// Splits a body into messages. In JSON, each value of an array is a message, and any other value is one message (§7.1). A body of another type is
/// one message.
fn split_messages(content_type: &HeaderValue, body: &Bytes) -> Result<Vec<Event>, Refusal> {
    if body.is_empty() {
        return Ok(Vec::new());
    }
    if media_type(content_type) != "application/json" {
        return Ok(vec![Event::binary(body.clone())]);
    }
    // Raw values keep the numbers and the order of keys as they are.
    let values: Result<Vec<&RawValue>, _> = if body.trim_ascii_start().starts_with(b"[") {
        serde_json::from_slice(body)
    } else {
        serde_json::from_slice(body).map(|value| vec![value])
    };
    let values = values.map_err(|_| refusal(StatusCode::BAD_REQUEST, "it is no JSON"))?;
    let events = values
        .into_iter()
        .map(|value| Event::json_text(value.get()));
    let events: Result<_, _> = events.collect();
    events.map_err(|_| refusal(StatusCode::BAD_REQUEST, "it is no JSON"))
}

fn check_is_supported(headers: &HeaderMap) -> Result<(), Refusal> {
    if UNSUPPORTED_HEADERS
        .iter()
        .any(|name| headers.contains_key(*name))
    {
        return Err(refusal(
            StatusCode::NOT_IMPLEMENTED,
            "not here: see docs/durable-streams.md",
        ));
    }
    Ok(())
}

fn closes(headers: &HeaderMap) -> bool {
    let closed = headers.get(STREAM_CLOSED);
    closed.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"))
}

fn has_same_media_type(one: &HeaderValue, other: &HeaderValue) -> bool {
    media_type(one) == media_type(other)
}

/// Returns the media type without parameters, in lower case.
fn media_type(content_type: &HeaderValue) -> String {
    let text = content_type.to_str().unwrap_or_default();
    let media_type = text.split(';').next().unwrap_or_default();
    media_type.trim().to_ascii_lowercase()
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
