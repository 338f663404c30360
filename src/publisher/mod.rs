//! Publishing over HTTP: a service that publishes the bodies of `POST` requests to a [`Hub`].
//!
//! ```
//! use std::sync::Arc;
//!
//! use http::request::Parts;
//! use tower_push::{Hub, event::Topic};
//!
//! let hub = Hub::new();
//! let publisher = hub.publisher().authorize(async |head: Arc<Parts>, topic: Topic| {
//!     let is_admin = head.headers.get("authorization").is_some_and(|token| token == "Bearer secret");
//!     is_admin && topic.as_str().starts_with("orders/")
//! });
//! let app: axum::Router = axum::Router::new().nest_service("/topics", publisher);
//! ```
//!
//! ```text
//! curl -H 'Authorization: Bearer secret' -d 'shipped' -H 'Content-Type: text/plain' http://127.0.0.1:3000/topics/orders/42
//! {"id":"k3f9x1-1042"}
//! ```
//!
//! # Requests
//! A request whose path names a topic publishes its body to that topic, as one event. Any other request names the topics in its body.
//!
//! | topic | `Content-Type` | body | response |
//! |---|---|---|---|
//! | in the path | `text/…` or a form | a text payload | `{"id":"…"}` |
//! | in the path | `application/json`, `…+json` | a JSON payload (feature `json`), or else a text payload | `{"id":"…"}` |
//! | in the path | another, or none | a binary payload | `{"id":"…"}` |
//! | in the body | `application/json` | a `format::Publication` (feature `json`) | `{"id":"…"}` |
//! | in the body | `application/json` | an array of publications (feature `json`) | `[{"id":"…"},…]` |
//! | in the body | `application/x-www-form-urlencoded` | the fields `topic` (once or several times), `data`, and perhaps `type`, as [Mercure](https://mercure.rocks/spec#publication) has them | the id as plain text |
//!
//! If the path names the topic, the query parameter `event` may name the type of the event. The rest of the path after the
//! [prefix](PublisherBuilder::path_prefix) is the topic, percent-decoded. The topic may contain slashes.
//!
//! The header [`Idempotency-Key`](https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/) names the publication: a request that
//! is repeated with the same key publishes nothing, and gets the same response. The hub remembers keys for a
//! [time](crate::source::hub::HubBuilder::idempotency_lifetime) and up to a [number](crate::source::hub::HubBuilder::max_idempotency_keys). In a batch, the key names all publications together, and a publication may have a key
//! of its own, `idempotency_key`. A key belongs to the topics and not to the client, and a repeated key is not compared with its event. So clients
//! choose random keys, which other clients cannot guess.
//!
//! # What is published
//! Nothing is published before the whole body has been read and checked, and before every topic in it is authorized. A batch is published
//! wholly or not at all, in its order. A publication that succeeds has the status 200.
//!
//! If the hub has a [broker](crate::source::hub::HubBackend), the response waits for the broker. A batch that fails is then published up to the
//! event that failed; a client that sends the batch again with the same `Idempotency-Key` publishes the rest.
//!
//! # Errors
//! An error is a problem report ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)): JSON with the members `title`, `status` and `detail`.
//!
//! | status | reason |
//! |---|---|
//! | 400 | the body, a topic, the event type or the key is invalid or not UTF-8, JSON has more than 120 levels of arrays and objects, the type begins with `hub.`, or the body breaks off |
//! | 403 | `authorize` returned `false` (a rejection of its own has its own status), or a page of another [origin](PublisherBuilder::origin_policy) has sent the request |
//! | 405 | the method is not `POST` |
//! | 408 | the body did not arrive within 10 s |
//! | 413 | the body is longer than the [limit](PublisherBuilder::max_body_len), or has more [publications](PublisherBuilder::max_publications) or [topics](PublisherBuilder::max_topics) |
//! | 415 | the path names no topic, and the body is neither JSON nor a form; or the `charset` of a text or form is not UTF-8 |
//! | 429 | the publications exceed the [rate](PublisherBuilder::max_rate) |
//! | 503 | the hub's broker has not accepted the event, or has not answered, so that the event may be published or not |

mod publish_access;
mod publish_request;
mod publisher_builder;
mod responses;
mod token_bucket;

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Method, Request, Response, StatusCode, request::Parts};
use http_body::Body;
use tokio::time::Instant;
use tower_service::Service;

pub use self::{publish_access::PublishAccess, publisher_builder::PublisherBuilder};
use self::{
    publish_request::{CheckedPublication, read_request},
    publisher_builder::{AuthorizeFn, PublisherConfig},
    responses::{method_not_allowed, problem_response, published_response, rate_limit_rejection},
    token_bucket::TokenBucket,
};
use crate::{
    event::{EventId, Topic},
    source::{Hub, Rejection},
    sync::{Mutex, lock},
    transport::{PushBody, read_body, within_body_timeout},
};

impl Hub {
    /// Returns the builder of a service that publishes the bodies of `POST` requests to this hub. See the
    /// [module docs](crate::publisher) for an example.
    pub fn publisher(&self) -> PublisherBuilder {
        PublisherBuilder::new(self.clone())
    }
}

/// A tower service that publishes to a hub. From [`PublisherBuilder::authorize`]. See the [module docs](self).
///
/// Clones share the [rate limit](PublisherBuilder::max_rate).
#[derive(Clone)]
#[must_use]
pub struct Publisher(Arc<PublisherState>);

struct PublisherState {
    config: PublisherConfig,
    authorize: Box<AuthorizeFn>,
    /// `None` if the rate is not limited.
    bucket: Option<Mutex<TokenBucket>>,
    created_at: Instant,
}

impl Publisher {
    fn new(config: PublisherConfig, authorize: Box<AuthorizeFn>) -> Self {
        let bucket = config.max_rate.map(TokenBucket::new).map(Mutex::new);
        Self(Arc::new(PublisherState {
            config,
            authorize,
            bucket,
            created_at: Instant::now(),
        }))
    }
}

impl PublisherState {
    /// Reads, checks, authorizes and publishes a request.
    async fn respond<B>(&self, head: Parts, body: B) -> Result<Response<PushBody>, Rejection>
    where
        B: Body + Send,
        B::Data: Send,
    {
        if head.method != Method::POST {
            return Err(method_not_allowed(&head.method));
        }
        if !self.config.origin_policy.allows(&head) {
            let page_refused = Rejection::new(StatusCode::FORBIDDEN);
            return Err(page_refused.message("pages of this origin may not publish"));
        }
        let body = within_body_timeout(read_body(body, self.config.max_body_len)).await?;
        let (publications, form) = read_request(&head, &body, &self.config)?;
        drop(body);
        let head = Arc::new(head);
        self.authorize(&head, &publications).await?;
        self.take_tokens(publications.len())?;
        let ids = self.publish(&head, publications).await?;
        Ok(published_response(&ids, form))
    }

    /// Asks for each topic whether the request may publish to it. The function is asked only once about a topic that several publications name.
    async fn authorize(
        &self,
        head: &Arc<Parts>,
        publications: &[CheckedPublication],
    ) -> Result<(), Rejection> {
        let topics = publications
            .iter()
            .flat_map(|publication| &publication.topics);
        let mut topics: Vec<&Topic> = topics.collect();
        topics.sort_unstable();
        topics.dedup();
        for topic in topics {
            let access = (self.authorize)(head.clone(), topic.clone()).await;
            access.into_result()?;
        }
        Ok(())
    }

    /// Takes a token for each publication.
    fn take_tokens(&self, count: usize) -> Result<(), Rejection> {
        let Some(bucket) = &self.bucket else {
            return Ok(());
        };
        let taken = lock(bucket).take(count, self.created_at.elapsed());
        taken.map_err(rate_limit_rejection)
    }

    /// Publishes all events, one after another. Returns their ids.
    ///
    /// # Errors
    /// Never fails in a hub without a broker, because topics and events were checked before. In a hub with a broker, the first event that is
    /// not published ends the publication, and the events before it are published.
    async fn publish(
        &self,
        head: &Parts,
        publications: Vec<CheckedPublication>,
    ) -> Result<Vec<EventId>, Rejection> {
        let mut ids = Vec::with_capacity(publications.len());
        for publication in publications {
            let mut options = (self.config.options)(head);
            if let Some(key) = publication.idempotency_key {
                options = options.idempotency_key(key);
            }
            let CheckedPublication { topics, event, .. } = publication;
            let published = self
                .config
                .hub
                .publish_and_wait(topics, event, &options)
                .await;
            ids.push(published.map_err(|error| Rejection::from(&error))?);
        }
        Ok(ids)
    }
}

impl<B> Service<Request<B>> for Publisher
where
    B: Body + Send + 'static,
    B::Data: Send,
{
    type Response = Response<PushBody>;
    type Error = Infallible;
    type Future = PublishFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> PublishFuture {
        let state = self.0.clone();
        let (head, body) = request.into_parts();
        PublishFuture(Box::pin(async move {
            let response = state.respond(head, body).await;
            response.unwrap_or_else(problem_response)
        }))
    }
}

/// The future of a [`Publisher`]. If the future is dropped before it is ready, nothing is published, unless the hub has a broker: then the events
/// may be published or not.
#[must_use = "futures do nothing unless polled"]
pub struct PublishFuture(Pin<Box<dyn Future<Output = Response<PushBody>> + Send>>);

impl Future for PublishFuture {
    type Output = Result<Response<PushBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map(Ok)
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("config", &self.0.config)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for PublishFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublishFuture")
    }
}
