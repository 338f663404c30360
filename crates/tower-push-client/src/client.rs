use std::{
    fmt,
    future::{Future, ready},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::Body;
use tower_push_proto::{EventId, sse::SseConfig};
use tower_service::Service;

use crate::{
    error::{BoxError, Error},
    event_stream::EventStream,
    http_service::{BoxFuture, HttpService},
    subscriber::SubscriberConfig,
    transport::{NEEDS_TLS, Transport, has_valid_port, http_scheme, with_http_scheme},
};

/// Subscribes to streams of events. Holds the tower service that sends its HTTP requests, and the settings of new subscriptions.
///
/// A `Client` is a plain value: the setters change the value, and a clone is independent. Subscriptions that exist keep their settings.
/// See the [crate docs](crate) for an example.
#[derive(Clone)]
#[must_use]
pub struct Client {
    service: HttpService,
    prepare: Option<PrepareRequest>,
    cursor: Option<EventId>,
    config: Arc<SubscriberConfig>,
}

type PrepareRequest =
    Arc<dyn Fn(Request<Bytes>) -> BoxFuture<Result<Request<Bytes>, BoxError>> + Send + Sync>;

impl Client {
    /// Makes a client over a new HTTP client of hyper-util, for HTTP/1.1 without TLS. The connections have `TCP_NODELAY`. Connecting may take
    /// 10 s: after that, the request fails with an error of [connecting](Error::is_connect).
    ///
    /// For `https`, make a client [with a service](Self::with_service) that has TLS: this one refuses such URLs.
    #[cfg(feature = "hyper-client")]
    #[cfg_attr(docsrs, doc(cfg(feature = "hyper-client")))]
    pub fn new() -> Self {
        use hyper_util::{
            client::legacy::{Client, connect::HttpConnector},
            rt::TokioExecutor,
        };

        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let client = Client::builder(TokioExecutor::new());
        let client = client.build::<_, http_body_util::Full<Bytes>>(connector);
        Self::with_service(client).map_config(|config| config.has_tls = false)
    }

    /// Makes a client over any HTTP service: hyper-util's client with a connector of your choice,
    /// `ReqwestService`, a service in layers of tower, or a router for tests.
    ///
    /// The service must not have a timeout for whole responses, because a feed has no end. It should have one for connecting: a connect that
    /// hangs otherwise ends with the [`response_timeout`](Self::response_timeout), and counts as a failure of the transport. For WebSockets,
    /// the extensions of its responses must contain hyper's `OnUpgrade`, as those of hyper and reqwest do.
    pub fn with_service<S, B, R>(service: S) -> Self
    where
        S: Service<Request<B>, Response = Response<R>> + Clone + Send + Sync + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        B: From<Bytes> + Send + 'static,
        R: Body + Send + 'static,
        R::Error: Into<BoxError>,
    {
        Self {
            service: HttpService::new(service),
            prepare: None,
            cursor: None,
            config: Arc::default(),
        }
    }

    /// Sets a function that prepares each request: it adds credentials, other headers or a body, or changes the method.
    ///
    /// The function is called for every request, also for those that reconnect, so that a token can be fresh. After a response with the
    /// status 401, the request is prepared and sent once more. If the function fails, or takes longer than the
    /// [`response_timeout`](Self::response_timeout), or than the [`poll_timeout`](Self::poll_timeout) for a long poll, the client reconnects
    /// later.
    ///
    /// ```
    /// use http::HeaderValue;
    /// use tower_push_client::Client;
    ///
    /// # async fn current_token() -> Result<String, std::io::Error> { Ok(String::new()) }
    /// let client = Client::new().prepare_request(async |mut request| {
    ///     let token = HeaderValue::try_from(format!("Bearer {}", current_token().await?))?;
    ///     request.headers_mut().insert("authorization", token);
    ///     Ok(request)
    /// });
    /// # let _ = client;
    /// ```
    pub fn prepare_request<F, Fut>(mut self, prepare: F) -> Self
    where
        F: Fn(Request<Bytes>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Request<Bytes>, BoxError>> + Send + 'static,
    {
        self.prepare = Some(Arc::new(move |request| Box::pin(prepare(request))));
        self
    }

    /// Sets the cursor after which a new subscription begins: none by default, so that it begins where the server begins.
    pub fn cursor(mut self, cursor: impl Into<Option<EventId>>) -> Self {
        self.cursor = cursor.into();
        self
    }

    /// Sets the transports to ask for, the preferred one first: [`Sse`](Transport::Sse) and [`LongPoll`](Transport::LongPoll) by default.
    /// An empty list counts as the default.
    ///
    /// The client asks for the next transport if the server does not offer one, if nothing arrives over it in time, or if three requests for it
    /// fail without a response. The client keeps the transport that works, also while the server restarts: errors of
    /// [connecting](Error::is_connect) say nothing about a transport, and a transport that has worked in the last 10 minutes is kept although
    /// requests fail. After 10 minutes with another transport than the first, the next reconnect tries the first one again. The cursor is the
    /// same on all transports.
    pub fn transports(self, transports: impl IntoIterator<Item = Transport>) -> Self {
        let transports: Arc<[Transport]> = transports.into_iter().collect();
        self.map_config(|config| {
            config.transports = match transports.is_empty() {
                true => SubscriberConfig::new().transports,
                false => transports,
            }
        })
    }

    /// Sets the longest event, in bytes: 4 MiB by default. A longer event ends the stream with [`Error::is_too_long`]. A batch of a long
    /// poll may have four times this length.
    pub fn max_event_len(self, bytes: usize) -> Self {
        self.map_config(|config| config.max_event_len = bytes)
    }

    /// Sets the bounds of the delay before another request: 1 s and 30 s by default.
    ///
    /// The delay is random, between 0 and an upper bound. The bound is `base` at first, doubles with each failure, and is at most `max`. If
    /// the server asks for a delay, by `retry`, `Retry-After` or an end, the delay is at least this time and at most twice as long.
    pub fn retry_delay(self, base: Duration, max: Duration) -> Self {
        self.map_config(|config| (config.base_delay, config.max_delay) = (base, max))
    }

    /// Sets whether the client reconnects: `true` by default. A stream that does not reconnect ends with its first connection.
    pub fn reconnect(self, reconnects: bool) -> Self {
        self.map_config(|config| config.reconnects = reconnects)
    }

    /// Sets how long the server may take for the head of its response: 30 s by default. For long polls, see
    /// [`poll_timeout`](Self::poll_timeout).
    pub fn response_timeout(self, timeout: Duration) -> Self {
        self.map_config(|config| config.response_timeout = timeout.min(MAX_TIMEOUT))
    }

    /// Sets how long a long poll may take, from the request to the end of the response: 90 s by default.
    pub fn poll_timeout(self, timeout: Duration) -> Self {
        self.map_config(|config| config.poll_timeout = timeout.min(MAX_TIMEOUT))
    }

    /// Sets how long a response may have no byte before the client tries its next transport, because a proxy may hold the response back: 10 s
    /// by default. The last transport of the list, a transport that has worked before, and the only one that the server does not refuse may be
    /// silent for longer.
    pub fn first_byte_timeout(self, timeout: Duration) -> Self {
        self.map_config(|config| config.first_byte_timeout = timeout.min(MAX_TIMEOUT))
    }

    /// Sets how long the server may be silent before the client reconnects. By default, the client learns how often the server sends
    /// heartbeats, and waits 2.5 times as long, at least 10 s. Until the server has sent a
    /// heartbeat, it may be silent for any time.
    pub fn read_timeout(self, timeout: Duration) -> Self {
        self.map_config(|config| config.read_timeout = Some(timeout.min(MAX_TIMEOUT)))
    }

    /// Sets how many redirects are followed, one after another: 10 by default. Redirects to another host, and from `https` to `http`, are
    /// not followed, but reported ([`Error::is_redirect`]).
    pub fn max_redirects(self, redirects: u32) -> Self {
        self.map_config(|config| config.max_redirects = redirects)
    }

    /// Reads lines of NDJSON, JSON text sequences, and responses of type `application/json` as payloads without an envelope, as servers of
    /// other projects and the `data_only` formats of tower-push send them. Such feeds have no ids: the client cannot resume.
    ///
    /// A number in the last line of NDJSON is ignored without a line break after it, because a number that was cut off looks complete.
    pub fn data_only(self) -> Self {
        self.map_config(|config| config.is_data_only = true)
    }

    /// Sets the server's names for gaps, ends and heartbeats in event streams, and whether payloads are in base64: those of
    /// [`SseConfig::new`] by default.
    pub fn sse(self, sse: SseConfig) -> Self {
        self.map_config(|config| config.sse = sse)
    }

    /// Sets the subprotocols to offer on a WebSocket, with the formats of their messages: `json.tower-push` with
    /// [`MessageFormat::Json`](tower_push_proto::websocket::MessageFormat::Json) by default. Without a subprotocol, a message is a payload
    /// without an id.
    #[cfg(feature = "websocket")]
    #[cfg_attr(docsrs, doc(cfg(feature = "websocket")))]
    pub fn subprotocols<N: Into<String>>(
        self,
        subprotocols: impl IntoIterator<Item = (N, tower_push_proto::websocket::MessageFormat)>,
    ) -> Self {
        let subprotocols = subprotocols.into_iter();
        let subprotocols = subprotocols.map(|(name, format)| (name.into(), format));
        self.map_config(|config| config.subprotocols = subprotocols.collect())
    }

    /// Sets whether the client offers compression on a WebSocket: `false` by default. If the server agrees, messages of at least 128 bytes are
    /// compressed in both directions, each on its own.
    ///
    /// Compression saves bandwidth and costs CPU time. It is off by default because the length of a compressed message can reveal a secret in
    /// it, and because any crate of a program can turn the feature `deflate` on.
    #[cfg(feature = "deflate")]
    #[cfg_attr(docsrs, doc(cfg(feature = "deflate")))]
    pub fn deflate(self, is_offered: bool) -> Self {
        self.map_config(|config| config.deflate = is_offered)
    }

    /// Subscribes to the feed at `url`. The first request is sent when the stream is polled.
    ///
    /// The schemes are `http` and `https`; `ws` and `wss` mean the same with a WebSocket, unless other transports were set.
    ///
    /// # Errors
    /// [`Error::is_invalid_url`] if the URL has no host, an invalid port, or another scheme; or if the URL needs TLS, and the client is one of
    /// `Client::new`.
    pub fn subscribe(&self, url: impl AsRef<str>) -> Result<EventStream, Error> {
        let (client, uri) = self.for_url(url.as_ref())?;
        Ok(EventStream::new(client, uri))
    }

    /// Checks the URL of a feed. Returns a client with the transports for it, and the URL of the client's requests.
    ///
    /// # Errors
    /// See [`subscribe`](Self::subscribe). The text of the error does not contain the URL, which may have a password.
    pub(crate) fn for_url(&self, url: &str) -> Result<(Self, Uri), Error> {
        let url = url.split('#').next().unwrap_or_default();
        let uri: Uri = url
            .parse()
            .map_err(|error| Error::invalid_url(format!("the URL is invalid: {error}")))?;
        let Some(scheme) = http_scheme(&uri) else {
            let detail = "the URL has none of the schemes http, https, ws and wss";
            return Err(Error::invalid_url(detail));
        };
        if uri.host().is_none_or(str::is_empty) {
            return Err(Error::invalid_url("the URL has no host"));
        }
        if !has_valid_port(&uri) {
            return Err(Error::invalid_url("the port of the URL is invalid"));
        }
        if scheme == "https" && !self.config.has_tls {
            return Err(Error::invalid_url(format!("the URL {NEEDS_TLS}")));
        }
        let is_websocket = matches!(uri.scheme_str(), Some("ws" | "wss"));
        let client = match is_websocket {
            true => self.clone().for_websocket_url()?,
            false => self.clone(),
        };
        Ok((client, with_http_scheme(uri)))
    }

    #[cfg(feature = "websocket")]
    fn for_websocket_url(self) -> Result<Self, Error> {
        let is_default = self.config.transports == SubscriberConfig::new().transports;
        Ok(match is_default {
            true => self.transports([Transport::WebSocket]),
            false => self,
        })
    }

    #[cfg(not(feature = "websocket"))]
    fn for_websocket_url(self) -> Result<Self, Error> {
        Err(Error::invalid_url(
            "WebSockets need the feature `websocket`",
        ))
    }

    /// Returns the settings of this client, for a [`Subscriber`](crate::Subscriber) that the application drives itself.
    ///
    /// ```
    /// use std::time::Instant;
    /// use tower_push_client::{Client, Subscriber, Transport};
    ///
    /// let client = Client::new().transports([Transport::Ndjson]);
    /// let (url, now) = ("http://localhost/prices".parse()?, Instant::now());
    /// let mut subscriber = Subscriber::new(client.subscriber_config(), url, None, now);
    /// let request = subscriber.poll_request(now).unwrap();
    /// assert_eq!(request.headers()["accept"], "application/x-ndjson");
    /// # Ok::<(), http::uri::InvalidUri>(())
    /// ```
    pub fn subscriber_config(&self) -> Arc<SubscriberConfig> {
        let mut config = self.config.clone();
        if !config.has_tls {
            // The application has an HTTP client of its own.
            Arc::make_mut(&mut config).has_tls = true;
        }
        config
    }

    pub(crate) fn config(&self) -> &Arc<SubscriberConfig> {
        &self.config
    }

    pub(crate) fn initial_cursor(&self) -> Option<&EventId> {
        self.cursor.as_ref()
    }

    /// Prepares a request. Without a function that prepares requests, returns it unchanged.
    pub(crate) fn prepare(
        &self,
        request: Request<Bytes>,
    ) -> BoxFuture<Result<Request<Bytes>, BoxError>> {
        match &self.prepare {
            Some(prepare) => prepare(request),
            None => Box::pin(ready(Ok(request))),
        }
    }

    pub(crate) fn service(&self) -> &HttpService {
        &self.service
    }

    fn map_config(mut self, change: impl FnOnce(&mut SubscriberConfig)) -> Self {
        change(Arc::make_mut(&mut self.config));
        self
    }
}

/// The longest time for connecting to a server, 10 s. A lost packet of the TCP handshake is sent again after 1 s, 3 s and 7 s.
#[cfg(feature = "hyper-client")]
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest timeout, 30 days. With this limit the sum of an `Instant` and a timeout cannot overflow.
const MAX_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

#[cfg(feature = "hyper-client")]
impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("cursor", &self.cursor)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
