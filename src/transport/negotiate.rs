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

/// Several transports behind one URL, of which the client takes its pick.
///
/// - A query parameter names the transport, `?transport=ndjson`: for clients that cannot set headers.
/// - Otherwise the `Accept` header decides, by quality, then by how exactly it names a type
///   ([RFC 9110 §12.5.1](https://www.rfc-editor.org/rfc/rfc9110#section-12.5.1)).
/// - Otherwise (`*/*`, or no header at all) it is the first in the set.
///
/// A request that none can answer gets 406 and a text that says what there is. All answers carry `Vary: Accept`.
///
/// ```
/// use tower_push::{
///     PushLayer,
///     format::Raw,
///     transport::{Chunked, Negotiate, Sse},
/// };
///
/// let by_default = PushLayer::new();
/// let one_more = PushLayer::with(Negotiate::new().add_transport(Chunked::new(Raw::new())));
/// let only_these = PushLayer::with(Negotiate::only(Sse::new()).add_transport(Chunked::default()).query_parameter("via"));
/// ```
#[derive(Clone, Debug)]
pub struct Negotiate {
    transports: Vec<Arc<dyn Transport>>,
    parameter: &'static str,
}

impl Negotiate {
    /// Every transport that needs no choice of its own: [`Sse`], [`Chunked`] as NDJSON, JSON-seq and `multipart/mixed`,
    /// [`LongPoll`], and `WebSocket` (feature `websocket`).
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

    /// A set of one.
    pub fn only(transport: impl Transport) -> Self {
        Self {
            transports: vec![Arc::new(transport)],
            parameter: "transport",
        }
    }

    /// Adds a transport, behind the others in preference; or puts it in the place of the one that has its
    /// [name](Transport::name).
    #[must_use]
    pub fn add_transport(mut self, transport: impl Transport) -> Self {
        let same = |other: &&mut Arc<dyn Transport>| other.name() == transport.name();
        match self.transports.iter_mut().find(same) {
            Some(place) => *place = Arc::new(transport),
            None => self.transports.push(Arc::new(transport)),
        }
        self
    }

    /// The query parameter by which a client names the transport: `transport` by default.
    #[must_use]
    pub fn query_parameter(mut self, name: &'static str) -> Self {
        self.parameter = name;
        self
    }

    fn choose(&self, head: &Parts) -> Option<&Arc<dyn Transport>> {
        let query = head.uri.query().unwrap_or_default();
        let named = query::parameter_values(query, self.parameter).find(|name| !name.is_empty());
        if let Some(named) = named {
            return self.transports.iter().find(|t| t.name() == named);
        }
        let wanted = self.transports.iter().enumerate();
        let wanted = wanted.filter_map(|(order, t)| Some((t.preference(head)?, Reverse(order), t)));
        // Whoever accepts anything has not asked for a tunnel of any kind.
        let is_tunnel = head.method == Method::CONNECT;
        let wanted = wanted.filter(|(p, ..)| !is_tunnel || *p == Preference::MAX);
        wanted
            .max_by_key(|(preference, order, _)| (*preference, *order))
            .map(|(_, _, transport)| transport)
    }

    /// 406, and what there is.
    fn refuse(&self) -> Response<PushBody> {
        let mut text = String::from("Nothing here is as you ask for it. There is:\n");
        for transport in &self.transports {
            let (types, name) = (transport.media_types().join(", "), transport.name());
            let _ = match types.as_str() {
                "" => writeln!(text, "{name}"),
                types => writeln!(text, "{types}  (?{}={name})", self.parameter),
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

    /// Those of the first transport.
    fn media_types(&self) -> &[&'static str] {
        self.transports.first().map_or(&[], |t| t.media_types())
    }

    fn preference(&self, head: &Parts) -> Option<Preference> {
        self.choose(head)?.preference(head)
    }

    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        let Some(transport) = self.choose(head) else {
            let mut response = refuse_connect(&head.method).unwrap_or_else(|| self.refuse());
            vary_by_accept(response.headers_mut());
            if head.method == Method::HEAD {
                *response.body_mut() = PushBody::head();
            }
            return Box::pin(ready(response));
        };
        let responding = transport.clone().respond(head, push);
        Box::pin(async {
            let mut response = responding.await;
            if !response.status().is_informational() {
                vary_by_accept(response.headers_mut());
            }
            response
        })
    }
}
