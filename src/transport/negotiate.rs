use std::{cmp::Reverse, fmt::Write, future::ready, sync::Arc};

use http::{Method, Response, StatusCode, request::Parts};

use super::{
    BoxResponseFuture, Chunked, LongPoll, Preference, PushBody, Sse, Transport, rejection_response,
    response::{refuse_connect, vary_by_accept},
};
use crate::{
    format::{JsonSeq, Multipart},
    source::{Push, Rejection, query},
};

/// A set of transports at one URL. Each request chooses one of the transports.
///
/// The first of these rules that applies chooses the transport of a request:
///
/// 1. The request names the transport with a query parameter, such as `?transport=ndjson`. This rule is for clients that cannot set
///    headers.
/// 2. The `Accept` header prefers a transport, by quality and then by how exactly it names the media type
///    ([RFC 9110 §12.5.1](https://www.rfc-editor.org/rfc/rfc9110#section-12.5.1)).
/// 3. The `Accept` header is absent, or prefers no transport. The first transport of the set is chosen.
///
/// A request that no transport can answer gets 406, with the list of the transports as text. Every response has `Vary: Accept`.
///
/// ```
/// use tower_push::{
///     PushLayer,
///     format::Raw,
///     transport::{Chunked, Negotiate, Sse},
/// };
///
/// let default = PushLayer::new();
/// let one_more = PushLayer::with(Negotiate::new().add_transport(Chunked::new(Raw::new())));
/// let two = PushLayer::with(Negotiate::only(Sse::new()).add_transport(Chunked::default()));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Negotiate {
    transports: Vec<Arc<dyn Transport>>,
    query_parameter: &'static str,
}

impl Negotiate {
    /// Creates the default set: [`Sse`], [`Chunked`] as NDJSON, as JSON text sequences and as `multipart/mixed`, [`LongPoll`], and
    /// `WebSocket` (feature `websocket`), in this order.
    pub fn new() -> Self {
        let all = Self::only(Sse::new())
            .add_transport(Chunked::default())
            .add_transport(Chunked::new(JsonSeq::new()))
            .add_transport(Chunked::new(Multipart::mixed()))
            .add_transport(LongPoll::new());
        #[cfg(feature = "websocket")]
        let all = all.add_transport(super::WebSocket::new());
        all
    }

    /// Creates a set of one transport.
    pub fn only(transport: impl Transport) -> Self {
        Self {
            transports: vec![Arc::new(transport)],
            query_parameter: "transport",
        }
    }

    /// Adds a transport at the end of the set. The new transport replaces a transport of the set that has the same [name](Transport::name).
    pub fn add_transport(mut self, transport: impl Transport) -> Self {
        let has_same_name = |other: &&mut Arc<dyn Transport>| other.name() == transport.name();
        match self.transports.iter_mut().find(has_same_name) {
            Some(replaced) => *replaced = Arc::new(transport),
            None => self.transports.push(Arc::new(transport)),
        }
        self
    }

    /// Sets the query parameter with which a request names the transport: `transport` by default.
    pub fn query_parameter(mut self, name: &'static str) -> Self {
        self.query_parameter = name;
        self
    }

    /// Returns the transport that answers the request; `None` if no transport can.
    fn choose(&self, head: &Parts) -> Option<&Arc<dyn Transport>> {
        let query = head.uri.query().unwrap_or_default();
        let mut names = query::decode_parameter(query, self.query_parameter);
        if let Some(name) = names.find(|name| !name.is_empty()) {
            return self.transports.iter().find(|t| t.name() == name);
        }
        let transports = self.transports.iter().enumerate();
        let candidates = transports
            .filter_map(|(index, t)| Some((t.preference(head)?, Reverse(index), t)))
            // A CONNECT request asks for a tunnel, which an `Accept` header cannot ask for.
            .filter(|(preference, ..)| {
                head.method != Method::CONNECT || *preference == Preference::MAX
            });
        candidates
            .max_by_key(|(preference, index, _)| (*preference, *index))
            .map(|(_, _, transport)| transport)
    }

    /// Makes the 406 response, which lists the transports.
    fn not_acceptable_response(&self) -> Response<PushBody> {
        let mut text = String::from("Nothing here is as you ask for it. There is:\n");
        for transport in &self.transports {
            let (types, name) = (transport.media_types().join(", "), transport.name());
            let _ = match types.as_str() {
                "" => writeln!(text, "{name}"),
                types => writeln!(text, "{types}  (?{}={name})", self.query_parameter),
            };
        }
        rejection_response(Rejection::new(StatusCode::NOT_ACCEPTABLE).message(text))
    }
}

impl Default for Negotiate {
    fn default() -> Self {
        Self::new()
    }
}

impl Transport for Negotiate {
    fn name(&self) -> &'static str {
        "negotiate"
    }

    /// Returns the media types of the first transport.
    fn media_types(&self) -> &[&'static str] {
        self.transports.first().map_or(&[], |t| t.media_types())
    }

    fn preference(&self, head: &Parts) -> Option<Preference> {
        self.choose(head)?.preference(head)
    }

    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        let Some(transport) = self.choose(head) else {
            let mut response =
                refuse_connect(&head.method).unwrap_or_else(|| self.not_acceptable_response());
            vary_by_accept(response.headers_mut());
            if head.method == Method::HEAD {
                *response.body_mut() = PushBody::for_head_request();
            }
            return Box::pin(ready(response));
        };
        let response_future = transport.clone().respond(head, push);
        Box::pin(async {
            let mut response = response_future.await;
            if !response.status().is_informational() {
                vary_by_accept(response.headers_mut());
            }
            response
        })
    }
}
