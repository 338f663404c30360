use std::{cmp::Reverse, fmt::Write, future::ready, sync::Arc};

use http::{HeaderValue, Method, StatusCode, Version, header::ACCEPT, request::Parts};

use super::{
    BoxResponseFuture, Chunked, LongPoll, Preference, PushBody, Sse, Transport, method_rejection,
    rejection_response, respond_with_form,
    response::{connect_rejection, vary_by_accept},
};
use crate::{
    format::{JsonSeq, Multipart},
    source::{Push, PushSource, Rejection, query},
};

/// A set of transports at one URL. Each request chooses one of the transports.
///
/// The first of these rules that applies chooses the transport of a request:
///
/// 1. The request names the transport with a query parameter, such as `?transport=ndjson`. This rule is for clients that cannot set
///    headers.
/// 2. The request can be meant for one transport only ([`Preference::MAX`]): it asks for a WebSocket, or is a live read of Durable
///    Streams.
/// 3. The `Accept` header prefers a transport, by quality and then by how exactly it names the media type
///    ([RFC 9110 §12.5.1](https://www.rfc-editor.org/rfc/rfc9110#section-12.5.1)).
/// 4. The `Accept` header is absent, or prefers no transport. The first transport of the set is chosen.
///
/// Rules 2 to 4 choose only among the transports that name the request's method ([`Transport::methods`]). A request whose method no
/// transport names, such as a `DELETE`, is [rejected](method_rejection) unless rule 1 applies; `Allow` then lists the methods of all
/// transports. Any other request that no transport can answer gets 406, with the list of the transports as text. Every response has
/// `Vary: Accept`.
///
/// # When long-polling is chosen
/// Rules 3 and 4 choose [`LongPoll`] only for a `GET`, `HEAD` or `QUERY`, and only if the source is not
/// [for one client](crate::PushSource::is_for_one_client). A client that sends a `POST`, or that reads a stream of its own, expects the
/// whole stream in one response. Many such clients send `Accept: application/json` and read an event stream: the SDKs of language models
/// are examples. If the `Accept` header names no other transport's media type, the first transport of the set answers that does not
/// [poll](Transport::is_polling). If every transport of the set polls, rules 3 and 4 choose among all.
///
/// The [guide to clients](https://github.com/tower-push/tower-push/blob/main/docs/clients.md) has a table of requests and the transports
/// that answer them.
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
    methods: AllowedMethods,
    query_parameter: &'static str,
}

/// The [methods](Transport::methods) of all transports of a set.
#[derive(Clone, Debug, Default)]
struct AllowedMethods {
    /// The methods up to HTTP/1.1.
    http1: Vec<&'static str>,
    /// The methods from HTTP/2 on.
    http2: Vec<&'static str>,
}

impl AllowedMethods {
    fn of(transports: &[Arc<dyn Transport>]) -> Self {
        let union_for = |version| {
            let mut union = Vec::new();
            for method in transports.iter().flat_map(|t| t.methods(version)) {
                if !union.contains(method) {
                    union.push(*method);
                }
            }
            union
        };
        Self {
            http1: union_for(Version::HTTP_11),
            http2: union_for(Version::HTTP_2),
        }
    }
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
        let set = Self {
            transports: Vec::new(),
            methods: AllowedMethods::default(),
            query_parameter: "transport",
        };
        set.add_transport(transport)
    }

    /// Adds a transport at the end of the set. The new transport replaces a transport of the set that has the same [name](Transport::name).
    pub fn add_transport(mut self, transport: impl Transport) -> Self {
        let has_same_name = |other: &&mut Arc<dyn Transport>| other.name() == transport.name();
        match self.transports.iter_mut().find(has_same_name) {
            Some(replaced) => *replaced = Arc::new(transport),
            None => self.transports.push(Arc::new(transport)),
        }
        self.methods = AllowedMethods::of(&self.transports);
        self
    }

    /// Sets the query parameter with which a request names the transport: `transport` by default.
    pub fn query_parameter(mut self, name: &'static str) -> Self {
        self.query_parameter = name;
        self
    }

    /// Returns the transport that answers the request; `None` if no transport can. `push` is the push that the transport would send, if
    /// the push is known.
    fn choose(&self, head: &Parts, push: Option<&Push>) -> Option<&Arc<dyn Transport>> {
        let query = head.uri.query().unwrap_or_default();
        let mut names = query::decode_parameter(query, self.query_parameter);
        if let Some(name) = names.find(|name| !name.is_empty()) {
            return self.transports.iter().find(|t| t.name() == name);
        }
        let is_for_one_client = push.is_some_and(PushSource::is_for_one_client);
        if head.method != Method::POST && !is_for_one_client {
            return self.most_preferred(head, |_, _| true);
        }
        let sends_one_response =
            |t: &dyn Transport, preference| !t.is_polling() || preference == Preference::MAX;
        self.most_preferred(head, sends_one_response).or_else(|| {
            // The request accepts only media types of transports that poll. The other transports are compared as if the request accepted
            // every media type.
            let polled = self.most_preferred(head, |_, _| true)?;
            let mut head = head.clone();
            let everything = HeaderValue::from_static("*/*;q=0.001");
            head.headers.append(ACCEPT, everything);
            let streamed = self.most_preferred(&head, sends_one_response);
            streamed.or(Some(polled))
        })
    }

    /// Returns the transport that the request prefers among those that name its method and for which `is_candidate` returns `true`.
    fn most_preferred(
        &self,
        head: &Parts,
        is_candidate: impl Fn(&dyn Transport, Preference) -> bool,
    ) -> Option<&Arc<dyn Transport>> {
        let transports = self.transports.iter().enumerate();
        let method = head.method.as_str();
        let candidates = transports
            .filter(|(_, t)| t.methods(head.version).contains(&method))
            .filter_map(|(index, t)| Some((t.preference(head)?, Reverse(index), t)))
            .filter(|(preference, _, t)| is_candidate(&***t, *preference));
        candidates
            .max_by_key(|(preference, index, _)| (*preference, *index))
            .map(|(_, _, transport)| transport)
    }

    /// Makes the rejection with the status 406, whose message lists the transports.
    fn not_acceptable_rejection(&self) -> Rejection {
        let mut text = String::from("Nothing here is as you ask for it. There is:\n");
        for transport in &self.transports {
            let (types, name) = (transport.media_types().join(", "), transport.name());
            let _ = match types.as_str() {
                "" => writeln!(text, "{name}"),
                types => writeln!(text, "{types}  (?{}={name})", self.query_parameter),
            };
        }
        Rejection::new(StatusCode::NOT_ACCEPTABLE).message(text)
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

    /// Returns the methods of all transports of the set.
    fn methods(&self, version: Version) -> &[&'static str] {
        match version > Version::HTTP_11 {
            true => &self.methods.http2,
            false => &self.methods.http1,
        }
    }

    fn preference(&self, head: &Parts) -> Option<Preference> {
        self.choose(head, None)?.preference(head)
    }

    /// Returns whether all transports of the set poll.
    fn is_polling(&self) -> bool {
        self.transports.iter().all(|t| t.is_polling())
    }

    /// Returns `true`, because [`respond`](Self::respond) reads the form itself, unless the chosen transport does. Such a transport may refuse a
    /// request before it reads the body.
    fn reads_form(&self) -> bool {
        true
    }

    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        let Some(transport) = self.choose(head, Some(&push)) else {
            let rejection = match method_rejection(&head.method, self.methods(head.version)) {
                Some(rejection) => rejection,
                None if head.method == Method::CONNECT => connect_rejection(),
                None => self.not_acceptable_rejection(),
            };
            let mut response = rejection_response(rejection);
            vary_by_accept(response.headers_mut());
            if head.method == Method::HEAD {
                *response.body_mut() = PushBody::for_head_request();
            }
            return Box::pin(ready(response));
        };
        let response_future = respond_with_form(transport, head, push);
        Box::pin(async {
            let mut response = response_future.await;
            if !response.status().is_informational() {
                vary_by_accept(response.headers_mut());
            }
            response
        })
    }
}
