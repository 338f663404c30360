//! The dialect of [Durable Streams](https://github.com/durable-streams/durable-streams/blob/main/PROTOCOL.md): its reads.

mod cursor;
mod payloads;
mod request;
mod sse;

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request::Parts,
};

pub(super) use self::request::{is_durable, is_live_read};
use self::{
    cursor::StreamCursor,
    payloads::Payloads,
    request::{Live, Offset, Request},
    sse::{Batches, Data, Verbatim},
};
use super::{
    gather::{Bounds, Gather, Gathered, Gathering, Patience, Rest},
    parking::Parking,
    wait::Wait,
};
use crate::{
    error::{BoxError, Error},
    event::{Event, EventId, Item},
    source::{Push, PushSource, Rejection, StartPosition},
    supervision::{PendingStream, SupervisedStream},
    transport::{
        KeepAlive, PushBody, rejection_response,
        response::{NO_STORE, NOSNIFF, insert_ascii},
        streaming::streaming_response,
    },
};

const NEXT_OFFSET: HeaderName = HeaderName::from_static("stream-next-offset");
const STREAM_CURSOR: HeaderName = HeaderName::from_static("stream-cursor");
const UP_TO_DATE: HeaderName = HeaderName::from_static("stream-up-to-date");
const DATA_ENCODING: HeaderName = HeaderName::from_static("stream-sse-data-encoding");

const CLOSED: HeaderName = HeaderName::from_static("stream-closed");
const TRUE: HeaderValue = HeaderValue::from_static("true");
/// What lies between two offsets never changes (§8.1).
const PRIVATE: HeaderValue =
    HeaderValue::from_static("private, max-age=60, stale-while-revalidate=300");
const PUBLIC: HeaderValue =
    HeaderValue::from_static("public, max-age=60, stale-while-revalidate=300");

/// What is at an end, the oldest or the tail, changes: to be asked for each time, which the `ETag` makes cheap.
const REVALIDATE: HeaderValue = HeaderValue::from_static("private, no-cache");

const WHO_ASKS: HeaderValue = HeaderValue::from_static("Cookie, Authorization");

/// How this dialect is spoken.
#[derive(Clone, Debug)]
pub(super) struct Durable {
    pub(super) content_type: HeaderValue,
    pub(super) is_public: bool,
    /// To whoever comes, parameters or not.
    pub(super) is_only: bool,
    pub(super) keep_alive: KeepAlive,
}

/// What is asked of whom.
pub(super) struct Asked {
    pub(super) pending: PendingStream,
    pub(super) push: Push,
    pub(super) parking: Parking,
}

impl Durable {
    fn is_json(&self) -> bool {
        self.data() == Data::Json
    }

    /// How the content goes into SSE, by the essence of its type (§5.8).
    fn data(&self) -> Data {
        let content_type = self.content_type.to_str().unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        if essence.eq_ignore_ascii_case("application/json") {
            Data::Json
        } else if essence
            .get(..5)
            .is_some_and(|kind| kind.eq_ignore_ascii_case("text/"))
        {
            Data::Text
        } else {
            Data::Base64
        }
    }

    /// One read.
    pub(super) async fn respond(
        self,
        head: Parts,
        asked: Asked,
        bounds: Bounds,
        wait: Wait,
        patience: Patience,
    ) -> Response<PushBody> {
        let mut response = match Request::read(&head) {
            Err(wrong) => refusal(StatusCode::BAD_REQUEST, wrong),
            Ok(request) if head.method == Method::HEAD => {
                self.metadata(request, asked, bounds).await
            }
            Ok(request) => match request.live {
                None => self.catch_up(request, &head, asked, bounds).await,
                Some(Live::Sse) => self.stream(request, asked, bounds).await,
                Some(Live::LongPoll) => {
                    let mut response = self.read(&request, asked, bounds, patience).await;
                    wait.tell(response.headers_mut());
                    response
                }
            },
        };
        let headers = response.headers_mut();
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
        response
    }

    /// What is there (§5.6).
    async fn catch_up(
        &self,
        request: Request,
        head: &Parts,
        asked: Asked,
        bounds: Bounds,
    ) -> Response<PushBody> {
        let bounds = match request.offset {
            // The place, and no event, whatever comes meanwhile.
            Offset::Now => Bounds {
                events: 0,
                ..bounds
            },
            Offset::Oldest | Offset::After(_) => bounds,
        };
        let response = self.read(&request, asked, bounds, AT_ONCE).await;
        // RFC 9110 §13.1.2: with other methods it is no question about a copy; and HEAD does not come here.
        let asks = head.method == Method::GET && response.status() == StatusCode::OK;
        match response.headers().get(header::ETAG) {
            Some(tag) if asks && holds(&head.headers, tag) => not_modified(response),
            _ => response,
        }
    }

    /// Where the stream's tail is (§5.5). A stream that only this request would know of is not begun.
    async fn metadata(&self, request: Request, asked: Asked, bounds: Bounds) -> Response<PushBody> {
        let request = Request {
            offset: Offset::Now,
            live: None,
            ..request
        };
        let bounds = Bounds {
            events: 0,
            ..bounds
        };
        let mut response = self.tail(&request, asked, bounds).await;
        response.headers_mut().remove(header::CONTENT_LENGTH);
        *response.body_mut() = PushBody::head();
        response
    }

    async fn tail(&self, request: &Request, asked: Asked, bounds: Bounds) -> Response<PushBody> {
        let gathering = self.gathering(request, bounds);
        if !asked.push.is_resumable() {
            return self.answer(request, gathering.finish(Rest::Nothing));
        }
        let pending = asked
            .pending
            .map_subscription(|it| it.with_start(StartPosition::Now));
        match pending.open(asked.push).await {
            Ok(mut items) => {
                let gathered = Gather::new(&mut items, gathering, AT_ONCE).await;
                self.answer(request, gathered)
            }
            Err(refused) => self.refused(request, gathering, refused),
        }
    }

    /// What the source has for a read that is complete.
    async fn read(
        &self,
        request: &Request,
        asked: Asked,
        bounds: Bounds,
        patience: Patience,
    ) -> Response<PushBody> {
        let start = request.offset.start();
        let pending = asked.pending.map_subscription(|it| it.with_start(start));
        let gathering = self.gathering(request, bounds);
        let gathered = (asked.parking).gather(asked.push, pending, gathering, patience);
        match gathered.await {
            Ok(gathered) => self.answer(request, gathered),
            Err(refused) => self.refused(request, self.gathering(request, bounds), refused),
        }
    }

    fn gathering(&self, request: &Request, bounds: Bounds) -> Gathering {
        let encoder = Box::new(Payloads::new(self.is_json()));
        Gathering::new(encoder, bounds, request.offset.id().cloned())
    }

    /// The answer to a client whose subscription was refused, maybe because nothing will ever come.
    fn refused(
        &self,
        request: &Request,
        nothing: Gathering,
        refused: Rejection,
    ) -> Response<PushBody> {
        if refused.status() == StatusCode::NO_CONTENT {
            return self.answer(request, nothing.finish(Rest::Finished));
        }
        rejection_response(refused)
    }

    fn answer(&self, request: &Request, gathered: Gathered) -> Response<PushBody> {
        let Gathered {
            body,
            has_content,
            cursor,
            rest,
            ..
        } = gathered;
        if let Rest::Failed(error) = &rest {
            if !has_content {
                return failed(error.downcast_ref());
            }
        }
        let offset = cursor
            .as_ref()
            .map_or(request.offset.as_str(), EventId::as_str);
        let is_content = has_content || request.live.is_none();
        let mut response = Response::new(PushBody::empty());
        let headers = response.headers_mut();
        insert_ascii(headers, NEXT_OFFSET, offset);
        rest.tell(headers);
        if rest.is_empty() || request.live.is_none() && request.offset == Offset::Now {
            headers.insert(UP_TO_DATE, TRUE);
        }
        if rest.is_finished() {
            headers.insert(CLOSED, TRUE);
        }
        if request.live.is_some() {
            insert_ascii(headers, STREAM_CURSOR, &request.cursor.next().to_string());
        }
        headers.insert(header::CACHE_CONTROL, NO_STORE);
        if is_content {
            headers.insert(header::CONTENT_TYPE, self.content_type.clone());
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
            if request.offset != Offset::Now {
                // A live answer ends where it ends, and a page in the middle is what it is.
                let is_settled = request.live.is_some() || !rest.is_empty();
                let cache = match request.offset {
                    Offset::After(_) if is_settled && self.is_public => PUBLIC,
                    Offset::After(_) if is_settled => PRIVATE,
                    _ => REVALIDATE,
                };
                headers.insert(header::CACHE_CONTROL, cache);
                if !self.is_public {
                    // Who signs in next on the same browser must not read what was for who was before.
                    headers.insert(header::VARY, WHO_ASKS);
                }
                let closed = if rest.is_finished() { ":c" } else { "" };
                let tag = format!("\"{}:{offset}{closed}\"", request.offset.as_str());
                insert_ascii(headers, header::ETAG, &tag);
            }
            *response.body_mut() = PushBody::full(body);
        } else {
            *response.status_mut() = StatusCode::NO_CONTENT;
        }
        response
    }

    /// What there is and what comes, as events (§5.8).
    async fn stream(&self, request: Request, asked: Asked, bounds: Bounds) -> Response<PushBody> {
        let Asked {
            pending,
            push,
            parking,
        } = asked;
        let start = request.offset.start();
        let pending = pending.map_subscription(|it| it.with_start(start));
        let is_lost = parking.lost(&push, pending.subscription()).is_some();
        let is_untold = |event: &Event| is_lost && event.id().is_none();
        let push = parking.push_for(push, pending.subscription());
        let (items, ahead) = match pending.open(push).await {
            Err(refused) if refused.status() == StatusCode::NO_CONTENT => {
                (None, Some(Ok(Item::Finished)))
            }
            Err(refused) => return rejection_response(refused),
            Ok(mut items) => match poll_fn(|cx| ready_now(&mut items, cx)).await {
                Some(Some(Ok(Item::Gap(_)))) => return gone(&items),
                Some(Some(Ok(Item::Event(event)))) if is_untold(&event) => return gone(&items),
                Some(Some(first)) => (Some(items), Some(first)),
                Some(None) => (None, None),
                None => (Some(items), None),
            },
        };
        let data = self.data();
        let batches = Batches::new(items, ahead, data, bounds, &request);
        let mut headers = HeaderMap::with_capacity(8);
        let event_stream = HeaderValue::from_static("text/event-stream");
        headers.insert(header::CONTENT_TYPE, event_stream);
        if data == Data::Base64 {
            headers.insert(DATA_ENCODING, HeaderValue::from_static("base64"));
        }
        let batches = SupervisedStream::unsupervised(batches);
        streaming_response(batches, headers, Box::new(Verbatim), self.keep_alive)
    }
}

const AT_ONCE: Patience = Patience {
    first: Duration::ZERO,
    more: Duration::ZERO,
};

/// What a stream yields without waiting; `None` if it would have to.
fn ready_now<S>(items: &mut S, cx: &mut Context<'_>) -> Poll<Option<Option<Result<Item, BoxError>>>>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin,
{
    Poll::Ready(match Pin::new(items).poll_next(cx) {
        Poll::Ready(next) => Some(next),
        Poll::Pending => None,
    })
}

/// Whether the client has what the tag stands for. `*` does not say what it has.
fn holds(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).into_iter();
    let mut tags = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|tag| tag.trim().trim_start_matches("W/"));
    tags.any(|held| held.as_bytes() == tag.as_bytes())
}

fn not_modified(mut response: Response<PushBody>) -> Response<PushBody> {
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    *response.body_mut() = PushBody::empty();
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    headers.remove(header::CONTENT_LENGTH);
    response
}

fn failed(error: Option<&Error>) -> Response<PushBody> {
    if error.is_some_and(Error::is_gap_unsupported) {
        return refusal(StatusCode::GONE, GONE);
    }
    refusal(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
}

const GONE: &str = "what is behind this offset is gone: begin with offset=-1";

/// The answer where there is no place to tell of a gap.
fn gone<S>(items: &SupervisedStream<S>) -> Response<PushBody> {
    let error = Error::gap_unsupported();
    let response = failed(Some(&error));
    items.report_send_error(&error.into());
    response
}

fn refusal(status: StatusCode, message: &'static str) -> Response<PushBody> {
    rejection_response(Rejection::new(status).message(message))
}
