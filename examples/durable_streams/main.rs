//! A server of the [Durable Streams protocol](https://github.com/durable-streams/durable-streams/blob/main/PROTOCOL.md): each
//! stream is a [`Channel`] in memory, its reads are the library's, and the writes are what is below.
//!
//! ```text
//! cargo run --example durable_streams
//! ```
//! prints its address. A stream from a terminal:
//! ```text
//! curl -X PUT  http://127.0.0.1:3000/log -H 'content-type: application/json'
//! curl -X POST http://127.0.0.1:3000/log -H 'content-type: application/json' -d '[{"n":1},{"n":2}]'
//! curl -i 'http://127.0.0.1:3000/log?offset=-1'                             # what is there
//! curl -i 'http://127.0.0.1:3000/log?offset=AN-OFFSET&live=long-poll'       # what comes next
//! curl -N 'http://127.0.0.1:3000/log?offset=-1&live=sse'                    # both, as it comes
//! curl -X POST http://127.0.0.1:3000/log -H 'stream-closed: true'           # no more of it
//! ```
//! Another address, and how long a long-poll waits: `cargo run --example durable_streams 127.0.0.1:8080 10`, in seconds.
//! What it leaves out is listed in `docs/durable-streams.md`.

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
};
use serde_json::value::RawValue;
use tokio::net::TcpListener;
use tower_http::cors::{Any, CorsLayer};
use tower_push::{
    BoxError, Channel, Event, Push,
    source::StartPosition,
    transport::{LongPoll, Transport},
};

use self::producers::{Claim, Producers, Verdict};

const CLOSED: HeaderName = HeaderName::from_static("stream-closed");
const NEXT_OFFSET: HeaderName = HeaderName::from_static("stream-next-offset");
const SEQ: HeaderName = HeaderName::from_static("stream-seq");

/// What asks for more than there is here. To ignore it would be to promise what is not done.
const UNSUPPORTED: [&str; 5] = [
    "stream-forked-from",
    "stream-fork-offset",
    "stream-fork-sub-offset",
    "stream-ttl",
    "stream-expires-at",
];

/// What clients on other origins may read.
const EXPOSED: [HeaderName; 7] = [
    NEXT_OFFSET,
    CLOSED,
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
    let streams = Streams {
        all: Arc::default(),
        long_poll,
    };
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_methods(Any)
        .allow_headers(Any)
        .expose_headers(EXPOSED);
    let app = Router::new()
        .fallback(answer)
        .layer(map_response(for_browsers))
        .layer(cors)
        .with_state(streams);

    let listener = TcpListener::bind(address).await?;
    println!("open http://{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}

/// What a page of another origin may embed, and no browser may take for something else (§10).
async fn for_browsers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    let policy = HeaderName::from_static("cross-origin-resource-policy");
    headers.insert(policy, HeaderValue::from_static("cross-origin"));
    response
}

/// By path.
#[derive(Clone)]
struct Streams {
    all: Arc<Mutex<HashMap<String, Arc<Stream>>>>,
    long_poll: LongPoll,
}

struct Stream {
    content_type: HeaderValue,
    channel: Channel,
    reads: LongPoll,
    writer: Mutex<Writer>,
}

/// What only those who write need to know.
#[derive(Default)]
struct Writer {
    is_closed: bool,
    last_seq: Option<HeaderValue>,
    producers: Producers,
}

/// A request that is refused: a status, what a program should know, and why.
type Refusal = (StatusCode, HeaderMap, &'static str);

/// An append that is done: a status, and what a program should know.
type Written = (StatusCode, HeaderMap);

fn refused(status: StatusCode, why: &'static str) -> Refusal {
    (status, HeaderMap::new(), why)
}

async fn answer(State(streams): State<Streams>, request: Request<Body>) -> Response {
    let (head, body) = request.into_parts();
    let written = match head.method {
        Method::GET | Method::HEAD => return streams.read(head).await,
        Method::PUT => streams.create(&head, body).await,
        Method::POST => streams.append(&head, body).await,
        Method::DELETE => streams.delete(head.uri.path()),
        _ => Err(refused(
            StatusCode::METHOD_NOT_ALLOWED,
            "GET, HEAD, PUT, POST or DELETE",
        )),
    };
    written.into_response()
}

impl Streams {
    fn find(&self, path: &str) -> Result<Arc<Stream>, Refusal> {
        let stream = lock(&self.all).get(path).cloned();
        stream.ok_or(refused(StatusCode::NOT_FOUND, "no such stream"))
    }

    /// §5.5 to §5.8
    async fn read(&self, head: Parts) -> Response {
        match self.find(head.uri.path()) {
            Ok(stream) => stream.read(head).await,
            Err(refusal) => refusal.into_response(),
        }
    }

    /// §5.1
    async fn create(&self, head: &Parts, body: Body) -> Result<Response, Refusal> {
        is_supported(&head.headers)?;
        let octets = HeaderValue::from_static("application/octet-stream");
        let content_type = head.headers.get(header::CONTENT_TYPE).cloned();
        let content_type = content_type.unwrap_or(octets);
        let closes = closes(&head.headers);
        let messages = messages(&content_type, &whole(body).await?)?;
        let path = head.uri.path();
        let (status, stream) = match lock(&self.all).entry(path.to_owned()) {
            Entry::Occupied(entry) => {
                let stream = entry.get().clone();
                let is_as_asked = is_same(&stream.content_type, &content_type)
                    && lock(&stream.writer).is_closed == closes;
                if !is_as_asked {
                    return Err(refused(StatusCode::CONFLICT, "there is another stream"));
                }
                (StatusCode::OK, stream)
            }
            Entry::Vacant(entry) => {
                let stream = Arc::new(Stream::new(content_type, &self.long_poll));
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

    /// §5.2 and §5.3
    async fn append(&self, head: &Parts, body: Body) -> Result<Response, Refusal> {
        let stream = self.find(head.uri.path())?;
        is_supported(&head.headers)?;
        let written = stream.write(&head.headers, &whole(body).await?);
        let tail = stream.tail().await;
        Ok(match written {
            Ok((status, told)) => (status, tail, told).into_response(),
            Err((status, told, why)) => (status, tail, told, why).into_response(),
        })
    }

    /// §5.4. Those who read it are told that it is closed.
    fn delete(&self, path: &str) -> Result<Response, Refusal> {
        let stream = self.find(path)?;
        lock(&self.all).remove(path);
        lock(&stream.writer).write(&stream.channel, Vec::new(), true);
        Ok(StatusCode::NO_CONTENT.into_response())
    }
}

impl Stream {
    fn new(content_type: HeaderValue, long_poll: &LongPoll) -> Self {
        // It forgets nothing. With bounds here, those who read too late get a 410.
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

    /// All of it is the library's.
    async fn read(&self, mut head: Parts) -> Response {
        let push = Push::new(self.channel.clone());
        self.reads.respond(&mut head, push).await.map(Body::new)
    }

    fn write(&self, headers: &HeaderMap, body: &Bytes) -> Result<Written, Refusal> {
        let mut writer = lock(&self.writer);
        let closes = closes(headers);
        let is_close = closes && body.is_empty();
        let claim = Claim::read(headers).map_err(|why| refused(StatusCode::BAD_REQUEST, why))?;
        let verdict = claim.as_ref().map(|claim| writer.producers.judge(claim));
        // What is said again is answered again, even behind the end.
        let mut told = match verdict {
            Some(Verdict::Again(told)) => return Ok((StatusCode::NO_CONTENT, told)),
            Some(Verdict::Fenced(told)) => {
                return Err((StatusCode::FORBIDDEN, told, "there is a newer producer"));
            }
            _ if writer.is_closed && !(is_close && claim.is_none()) => {
                return Err(refused(StatusCode::CONFLICT, "the stream is closed"));
            }
            Some(Verdict::Gap(told)) => {
                return Err((StatusCode::CONFLICT, told, "something before it is missing"));
            }
            Some(Verdict::NoBeginning) => {
                return Err(refused(StatusCode::BAD_REQUEST, "an epoch begins at 0"));
            }
            Some(Verdict::Next(told)) => told,
            None => HeaderMap::new(),
        };
        let mut messages = Vec::new();
        if !is_close {
            messages = self.messages(headers, body)?;
            writer.follows(headers.get(SEQ))?;
        }
        // Not the tail, which another writer may have moved since.
        told.extend(writer.write(&self.channel, messages, closes));
        let mut status = StatusCode::NO_CONTENT;
        if let Some(claim) = claim {
            writer.producers.accept(claim);
            if !is_close {
                status = StatusCode::OK;
            }
        }
        Ok((status, told))
    }

    /// What there is to append, of the stream's type.
    fn messages(&self, headers: &HeaderMap, body: &Bytes) -> Result<Vec<Event>, Refusal> {
        let nothing = refused(StatusCode::BAD_REQUEST, "there is nothing to append");
        if body.is_empty() {
            return Err(nothing);
        }
        let Some(content_type) = headers.get(header::CONTENT_TYPE) else {
            return Err(refused(StatusCode::BAD_REQUEST, "it has no content type"));
        };
        if !is_same(content_type, &self.content_type) {
            return Err(refused(
                StatusCode::CONFLICT,
                "the stream's content is of another type",
            ));
        }
        let messages = messages(content_type, body)?;
        if messages.is_empty() {
            return Err(nothing);
        }
        Ok(messages)
    }

    /// Where the stream ends, as `HEAD` tells it.
    async fn tail(&self) -> HeaderMap {
        let (head, ()) = Request::head("/").body(()).expect("it is one").into_parts();
        let mut told = self.read(head).await;
        let mut tail = HeaderMap::new();
        for name in [NEXT_OFFSET, CLOSED] {
            tail.extend(told.headers_mut().remove(&name).map(|value| (name, value)));
        }
        tail
    }
}

impl Writer {
    /// Whatever numbers its writers give, they grow, as texts (§5.2).
    fn follows(&mut self, seq: Option<&HeaderValue>) -> Result<(), Refusal> {
        if seq.is_some() && self.last_seq.as_ref() >= seq {
            return Err(refused(
                StatusCode::CONFLICT,
                "its Stream-Seq is not behind the last",
            ));
        }
        if let Some(seq) = seq {
            self.last_seq = Some(seq.clone());
        }
        Ok(())
    }

    /// Returns the offset behind what it wrote, as the header of it.
    fn write(
        &mut self,
        channel: &Channel,
        messages: Vec<Event>,
        closes: bool,
    ) -> Option<(HeaderName, HeaderValue)> {
        let published = messages.into_iter().map(|message| channel.publish(message));
        // None fails, for the channel is closed here and nowhere else.
        let last = published.filter_map(Result::ok).last();
        if closes {
            channel.close();
            self.is_closed = true;
        }
        let offset = HeaderValue::from_str(last?.as_str());
        Some((NEXT_OFFSET, offset.ok()?))
    }
}

/// What a writer may send at once: 64 MiB.
const LARGEST: usize = 64 << 20;

async fn whole(body: Body) -> Result<Bytes, Refusal> {
    let body = axum::body::to_bytes(body, LARGEST).await;
    body.map_err(|_| refused(StatusCode::PAYLOAD_TOO_LARGE, "it is cut, or too large"))
}

/// Of JSON, each value of an array is one, or what is no array (§7.1); of anything else, all of it.
fn messages(content_type: &HeaderValue, body: &Bytes) -> Result<Vec<Event>, Refusal> {
    if body.is_empty() {
        return Ok(Vec::new());
    }
    if essence(content_type) != "application/json" {
        return Ok(vec![Event::binary(body.clone())]);
    }
    // Raw, so that no number and no order of keys is lost.
    let values: Result<Vec<&RawValue>, _> = if body.trim_ascii_start().starts_with(b"[") {
        serde_json::from_slice(body)
    } else {
        serde_json::from_slice(body).map(|value| vec![value])
    };
    let values = values.map_err(|_| refused(StatusCode::BAD_REQUEST, "it is no JSON"))?;
    let events = values
        .into_iter()
        .map(|value| Event::json_text(value.get()));
    let events: Result<_, _> = events.collect();
    events.map_err(|_| refused(StatusCode::BAD_REQUEST, "it is no JSON"))
}

fn is_supported(headers: &HeaderMap) -> Result<(), Refusal> {
    if UNSUPPORTED.iter().any(|name| headers.contains_key(*name)) {
        return Err(refused(
            StatusCode::NOT_IMPLEMENTED,
            "not here: see docs/durable-streams.md",
        ));
    }
    Ok(())
}

fn closes(headers: &HeaderMap) -> bool {
    let closed = headers.get(CLOSED);
    closed.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"))
}

fn is_same(one: &HeaderValue, other: &HeaderValue) -> bool {
    essence(one) == essence(other)
}

/// Without parameters, in lower case.
fn essence(content_type: &HeaderValue) -> String {
    let text = content_type.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default();
    essence.trim().to_ascii_lowercase()
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
