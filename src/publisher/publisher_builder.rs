use std::{borrow::Cow, fmt, future::Future, pin::Pin, sync::Arc};

use http::request::Parts;

use super::{PublishAccess, Publisher};
use crate::{
    event::Topic,
    origin_policy::OriginPolicy,
    source::{Hub, hub::PublishOptions},
};

/// Makes a [`Publisher`], from [`Hub::publisher`].
///
/// [`authorize`](Self::authorize) or [`without_authorization`](Self::without_authorization) comes last, and returns the service.
#[must_use = "this is no service before `authorize` or `without_authorization`"]
pub struct PublisherBuilder(PublisherConfig);

/// The settings of a [`Publisher`].
pub(super) struct PublisherConfig {
    pub(super) hub: Hub,
    pub(super) path_prefix: Cow<'static, str>,
    pub(super) max_body_len: usize,
    pub(super) max_publications: usize,
    pub(super) max_topics: usize,
    /// The maximum number of publications per second. `None` if it is not limited.
    pub(super) max_rate: Option<u32>,
    pub(super) origin_policy: OriginPolicy,
    pub(super) options: Box<OptionsFn>,
}

type OptionsFn = dyn Fn(&Parts) -> PublishOptions + Send + Sync;

/// Decides whether a request may publish to a topic.
pub(super) type AuthorizeFn = dyn Fn(Arc<Parts>, Topic) -> AccessFuture + Send + Sync;

type AccessFuture = Pin<Box<dyn Future<Output = PublishAccess> + Send>>;

impl PublisherBuilder {
    pub(super) fn new(hub: Hub) -> Self {
        Self(PublisherConfig {
            hub,
            path_prefix: Cow::Borrowed("/"),
            max_body_len: 1024 * 1024,
            max_publications: 1000,
            max_topics: 64,
            max_rate: None,
            origin_policy: OriginPolicy::same_origin(),
            options: Box::new(|_| PublishOptions::new()),
        })
    }

    /// Sets the part of the path before the topic. The default is `/`: a router that nests services, as axum's `nest_service`, has removed the
    /// rest. A path without the prefix names no topic.
    ///
    /// ```
    /// # let hub = tower_push::Hub::new();
    /// // POST /topics/orders/42
    /// let publisher = hub.publisher().path_prefix("/topics/").without_authorization();
    /// ```
    pub fn path_prefix(mut self, prefix: impl Into<Cow<'static, str>>) -> Self {
        self.0.path_prefix = prefix.into();
        self
    }

    /// Sets the maximum length of a request's body, in bytes. The default is 1 MiB.
    pub fn max_body_len(mut self, len: usize) -> Self {
        self.0.max_body_len = len;
        self
    }

    /// Sets the maximum number of publications in a batch. The default is 1000.
    pub fn max_publications(mut self, publications: usize) -> Self {
        self.0.max_publications = publications;
        self
    }

    /// Sets the maximum number of topics of one publication, repetitions included. The default is 64.
    pub fn max_topics(mut self, topics: usize) -> Self {
        self.0.max_topics = topics;
        self
    }

    /// Sets the maximum number of publications per second, of all requests to this publisher together. Up to this number may come at once. By
    /// default there is no limit.
    ///
    /// A request that exceeds the rate gets the status 429 with `Retry-After`, and publishes nothing. A batch that is larger than `per_second`
    /// is always refused. For a limit per user, refuse with the status 429 in [`authorize`](Self::authorize).
    pub fn max_rate(mut self, per_second: u32) -> Self {
        self.0.max_rate = Some(per_second);
        self
    }

    /// Sets the web pages that may publish. By default these are pages of the [same origin](OriginPolicy::same_origin), so that a page of another
    /// site cannot publish with the cookies of a user who visits it. Programs that are no browsers send no `Origin`, and pass.
    pub fn origin_policy(mut self, policy: OriginPolicy) -> Self {
        self.0.origin_policy = policy;
        self
    }

    /// Sets the function that chooses the [`PublishOptions`] of a request's events from the head of the request: for example, the sender that
    /// does not get its own events. The publisher adds the idempotency key.
    ///
    /// ```
    /// use tower_push::source::hub::PublishOptions;
    ///
    /// # let hub = tower_push::Hub::new();
    /// let publisher = hub
    ///     .publisher()
    ///     .options(|head| match head.headers.get("x-tab").and_then(|tab| tab.to_str().ok()) {
    ///         Some(tab) => PublishOptions::new().except(tab),
    ///         None => PublishOptions::new(),
    ///     })
    ///     .without_authorization();
    /// ```
    pub fn options(
        mut self,
        options: impl Fn(&Parts) -> PublishOptions + Send + Sync + 'static,
    ) -> Self {
        self.0.options = Box::new(options);
        self
    }

    /// Returns a service that asks `authorize`, for each topic of a request, whether the request may publish to it. `authorize` is asked when
    /// the body has been read, once for each topic.
    ///
    /// The result is a `bool`, a [`PublishAccess`], or a `Result<(), Rejection>`. If one topic is refused, nothing of the request is published.
    /// See the [module docs](super) for an example.
    pub fn authorize<F, Fut>(self, authorize: F) -> Publisher
    where
        F: Fn(Arc<Parts>, Topic) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: Into<PublishAccess>> + Send + 'static,
    {
        let authorize = move |head, topic| {
            let access = authorize(head, topic);
            Box::pin(async move { access.await.into() }) as AccessFuture
        };
        Publisher::new(self.0, Box::new(authorize))
    }

    /// Returns a service with which everybody can publish to every topic. Use it behind a layer that authorizes requests.
    pub fn without_authorization(self) -> Publisher {
        self.authorize(|_, _| std::future::ready(true))
    }
}

impl fmt::Debug for PublisherConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublisherConfig")
            .field("path_prefix", &self.path_prefix)
            .field("max_body_len", &self.max_body_len)
            .field("max_publications", &self.max_publications)
            .field("max_topics", &self.max_topics)
            .field("max_rate", &self.max_rate)
            .field("origin_policy", &self.origin_policy)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for PublisherBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PublisherBuilder").field(&self.0).finish()
    }
}
