//! Limits, lifetimes, graceful ends and counts of open streams.
//!
//! Servers expect that a response ends soon, but a stream stays open. A graceful shutdown waits for an open stream forever. After a
//! restart all clients reconnect in the same second. A limit on requests does not limit the number of open streams, and no metric
//! shows this number.
//!
//! A [`Guard`] is a policy for the open streams of one or more layers, services and transports:
//!
//! ```
//! use std::time::Duration;
//! use tower_push::{
//!     Channel, Drain, Guard, OriginPolicy,
//!     guard::{Admission, DrainPlan},
//!     PushLayer, service,
//! };
//!
//! let drain = Drain::new();
//! let guard = Guard::builder()
//!     .drain(&drain)
//!     .max_lifetime(Duration::from_secs(3600))
//!     .admission(&Admission::builder().max_streams(50_000).build())
//!     .origin_policy(OriginPolicy::same_origin())
//!     .build();
//!
//! let layer = PushLayer::new().guard(&guard);
//! let ticks = service(Channel::new()).guard(&guard);
//!
//! // Later: how many streams are open, and the end of all of them.
//! println!("{} streams", guard.counts().open());
//! drain.start(DrainPlan::within(Duration::from_secs(10)));
//! # let _ = (layer, ticks);
//! ```
//!
//! [`Guard::wrap`] puts a guard around a transport. The guarded transport is again a transport.
//!
//! # How a stream ends
//! | reason | when | what the client receives |
//! |---|---|---|
//! | the [drain](Drain) has started | at a random point of the [spread](DrainPlan::spread) | an end, with a random time after which to reconnect |
//! | the stream has reached its [lifetime](GuardBuilder::max_lifetime) | at 80 to 100 % of the maximum | an end, with a time of about a second after which to reconnect |
//! | the client's credential has [expired](crate::source::Subscription::expire_by) | at that time | an end; a WebSocket is closed with 3005 |
//!
//! An end with a time to reconnect is an [`Item::Ended`](crate::Item::Ended). Each transport sends this item in its own form:
//!
//! | transport | what is sent |
//! |---|---|
//! | SSE | `retry: 1500`, then `event: end` with `{"finished":false,"retry":1500}` |
//! | NDJSON, JSON-seq, multipart | the record `{"end":{"finished":false,"retry":1500}}` |
//! | long-poll | a response at once, with the events so far, and `Retry-After` |
//! | WebSocket | a close frame with code 1012 and the reason `{"finished":false,"retry":1500}`; before it the record, in message formats that have one |
//!
//! The client keeps its cursor, and resumes from the cursor when it reconnects.
//!
//! # How a request is refused
//! | reason | response |
//! |---|---|
//! | the drain has started, or an [admission limit](Admission) is reached | 503 with `Retry-After` |
//! | the same reasons, but the request is a `GET` that accepts `text/event-stream` | 200 with `retry: …` and the end of the body: an `EventSource` never reconnects after a 503. [`GuardBuilder::always_503`] turns this off |
//! | the page is not [allowed](GuardBuilder::origin_policy) | 403 |
//!
//! A request is also refused if the drain would end its stream before the source accepts the subscription.
//!
//! A request is refused before its body is read, and a form in the body of a `QUERY` is read while the request is admitted.
//!
//! `HEAD` and `OPTIONS` requests open no stream. Of the guard's policies, only the origin policy can refuse such requests.
//!
//! # What to observe
//! | what | where |
//! |---|---|
//! | numbers of streams: open, opened, closed for each reason; requests refused for each reason | [`Guard::counts`] |
//! | numbers of events, bytes and gaps for each label of topics | [`GuardBuilder::topic_labels`] |
//! | each stream as it happens: duration, events, gaps, errors | an [`Observer`] |
//! | each stream in the logs, with a span of its own | `TracingObserver`, with the feature `tracing` |
//! | events that a channel's subscribers missed, and the size of its log | [`Channel::counts`](crate::Channel::counts) |
//! | numbers of topics, bytes and events of a hub, and of events that its subscribers missed | [`Hub::counts`](crate::Hub::counts) |
//! | subscribers and events of one topic | [`Hub::topic`](crate::Hub::topic) |
//! | numbers of resumable streams: parked, resumed, parked for too long, evicted | [`Resumable::counts`](crate::Resumable::counts) |
//!
//! `examples/metrics.rs` exposes all these numbers to Prometheus.
//!
//! # When a stream is closed
//! A stream counts for [`Drain::wait`], [`Admission`] and [`GuardCounts`] until it is closed. A stream is closed when the server
//! has dropped the future of the response, the response's body and, for a WebSocket, the task that owns the socket. The way in
//! which the stream ended does not matter. A stream that long-polling [parks](crate::Resumable) between two polls does not count
//! as open. Each poll counts as open while it waits for its response.
//!
//! A guard also counts and ends the streams of a transport [of your own](crate::transport#writing-a-transport), if the transport opens them
//! with a [`PendingSubscription`](crate::supervision::PendingSubscription). If the transport opens its streams in a different way, the guard
//! only limits their number, and a drain waits for them.
//!
//! If one guard wraps another, the inner guard ends the streams, and both guards count them.

mod admission;
mod admitted_stream_lifecycle;
mod drain;
mod guard_counts;
#[cfg(all(test, tower_push_loom))]
mod loom_tests;
mod observer;
mod reasons;
mod shared_guard;
mod topic_labels;
#[cfg(feature = "tracing")]
mod tracing_observer;

use std::{fmt, future::ready, sync::Arc, time::Duration};

use http::{Method, Response, Version, request::Parts};

#[cfg(feature = "server")]
pub(crate) use self::drain::DrainStartWaiter;
#[cfg(feature = "tracing")]
#[cfg_attr(docsrs, doc(cfg(feature = "tracing")))]
pub use self::tracing_observer::TracingObserver;
use self::{
    admission::AdmissionPermit, admitted_stream_lifecycle::AdmittedStreamLifecycle,
    shared_guard::SharedGuard, topic_labels::TopicLabelCounters,
};
pub use self::{
    admission::{Admission, AdmissionBuilder},
    drain::{Drain, DrainOutcome, DrainPlan},
    guard_counts::GuardCounts,
    observer::{Observer, StreamInfo},
    reasons::{CloseReason, RefusalReason},
    topic_labels::TopicTraffic,
};
use crate::{
    event::Topic,
    origin_policy::OriginPolicy,
    source::Push,
    supervision::{StreamHandle, StreamHandleExtension},
    transport::{
        BoxResponseFuture, Preference, PushBody, Transport, UnreadForm,
        add_connection_close_unless_upgraded, is_event_source_request, is_websocket_upgrade,
        respond_with_form,
    },
};

/// A policy for the open streams of one or more transports. See the [module docs](self).
///
/// Clones share the policy and the counts.
///
/// ```
/// use tower_push::{Drain, Guard, PushLayer, guard::Admission};
///
/// let drain = Drain::new();
/// let admission = Admission::builder().max_streams(50_000).build();
/// let guard = Guard::builder().drain(&drain).admission(&admission).build();
/// let layer = PushLayer::new().guard(&guard);
/// ```
#[derive(Clone, Default)]
pub struct Guard(Arc<SharedGuard>);

/// Configures a [`Guard`]. By default, the guard only counts streams.
#[derive(Default)]
#[must_use]
pub struct GuardBuilder(SharedGuard);

/// A transport whose streams a [`Guard`] limits, counts and ends. Created by [`Guard::wrap`].
#[derive(Debug)]
pub struct GuardedTransport<T> {
    guard: Guard,
    transport: Arc<T>,
}

impl Guard {
    /// Creates a guard that only counts streams.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a builder. By default, the guard only counts streams.
    pub fn builder() -> GuardBuilder {
        GuardBuilder::default()
    }

    /// Puts this guard around `transport`. The result is a transport.
    ///
    /// For a layer or a service, [`TransportLayer::guard`](crate::TransportLayer::guard) and
    /// [`SourceService::guard`](crate::layer::SourceService::guard) are shorter.
    pub fn wrap<T: Transport>(&self, transport: T) -> GuardedTransport<T> {
        self.wrap_shared(Arc::new(transport))
    }

    /// Puts this guard around a shared transport, which other parts of the program may use without the guard.
    pub(crate) fn wrap_shared<T>(&self, transport: Arc<T>) -> GuardedTransport<T> {
        GuardedTransport {
            guard: self.clone(),
            transport,
        }
    }

    /// Returns a snapshot of the counts of this guard's streams.
    pub fn counts(&self) -> GuardCounts {
        self.0.counts()
    }
}

impl GuardBuilder {
    /// Sets the drain that ends the streams. Once the drain has [started](Drain::start), the guard refuses requests.
    /// [`Drain::wait`] waits until the streams have ended. By default, a guard has no drain.
    pub fn drain(mut self, drain: &Drain) -> Self {
        self.0.drain = Some(drain.clone());
        self
    }

    /// Sets the maximum lifetime of a stream, so that a load balancer can move its client to another server. By default there is
    /// no maximum. `time` is at most 30 years: longer times count as 30 years.
    ///
    /// Each stream ends at a random time between 80 and 100 % of the maximum.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_push::Guard;
    ///
    /// let guard = Guard::builder().max_lifetime(Duration::from_secs(30 * 60)).build();
    /// ```
    pub fn max_lifetime(mut self, time: Duration) -> Self {
        self.0.max_lifetime = Some(time);
        self
    }

    /// Sets the limits on the number of open streams. By default there are no limits. Guards that share an [`Admission`] count
    /// their streams together.
    pub fn admission(mut self, admission: &Admission) -> Self {
        self.0.admission = Some(admission.clone());
        self
    }

    /// Sets which web pages may send requests, over any transport. The guard answers 403 to other pages. By default the guard
    /// allows all pages, and only WebSockets have a policy of their own.
    ///
    /// Without a CORS layer that allows it, a browser does not let another origin's page read a stream. But the browser sends the
    /// page's request, with the user's cookies, and the stream stays open until the page is closed. A CORS layer belongs around
    /// the guard, so that the CORS layer answers preflight requests before the guard sees them.
    pub fn origin_policy(mut self, policy: OriginPolicy) -> Self {
        self.0.origin_policy = Some(policy);
        self
    }

    /// Adds an observer, which the guard calls when a stream opens, sends or closes. By default, a guard has no observers.
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.0.observers.push(Arc::new(observer));
        self
    }

    /// Counts events and gaps by a label of their topics, for metrics: [`GuardCounts::by_topic_label`]. By default, the guard does not look at
    /// topics.
    ///
    /// Topics are often as many as users, and each value of a label costs memory here and in the system that stores the metrics. So `label_of`
    /// should return the kind of a topic, and at most the first `max_labels` labels have counts of their own. All further topics are
    /// counted together, under `other`. Events without a topic have no label.
    ///
    /// `label_of` is called for each event of each stream.
    ///
    /// ```
    /// use tower_push::Guard;
    ///
    /// // "orders/42" counts as "orders".
    /// let guard = Guard::builder()
    ///     .topic_labels(20, |topic| topic.as_str().split('/').next().unwrap_or_default())
    ///     .build();
    /// for (label, counts) in &guard.counts().by_topic_label {
    ///     println!("topic_events_total{{topic={label:?}}} {}", counts.events);
    /// }
    /// ```
    pub fn topic_labels(
        mut self,
        max_labels: usize,
        label_of: impl Fn(&Topic) -> &str + Send + Sync + 'static,
    ) -> Self {
        self.0.topic_labels = Some(TopicLabelCounters::new(max_labels, label_of));
        self
    }

    /// Refuses an `EventSource` with 503, like any other client. By default, an `EventSource` gets a 200 that makes it reconnect.
    ///
    /// Set `always_503` if monitors or load balancers must see the refusal. With this setting, the `EventSource`
    /// of a browser stays closed until the page creates a new one.
    pub fn always_503(mut self) -> Self {
        self.0.always_503 = true;
        self
    }

    /// Builds the guard.
    pub fn build(self) -> Guard {
        Guard(Arc::new(self.0))
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt_as("Guard", f)
    }
}

impl fmt::Debug for GuardBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt_as("GuardBuilder", f)
    }
}

/// Clones share the guard and the transport.
impl<T> Clone for GuardedTransport<T> {
    fn clone(&self) -> Self {
        self.guard.wrap_shared(self.transport.clone())
    }
}

impl<T> GuardedTransport<T> {
    /// Returns the guard.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }
}

/// Wraps the default transport with a guard that only counts streams.
impl<T: Transport + Default> Default for GuardedTransport<T> {
    fn default() -> Self {
        Guard::new().wrap(T::default())
    }
}

impl<T: Transport> Transport for GuardedTransport<T> {
    fn name(&self) -> &'static str {
        self.transport.name()
    }

    fn media_types(&self) -> &[&'static str] {
        self.transport.media_types()
    }

    fn preference(&self, head: &Parts) -> Option<Preference> {
        self.transport.preference(head)
    }

    fn is_polling(&self) -> bool {
        self.transport.is_polling()
    }

    fn methods(&self, version: Version) -> &[&'static str] {
        self.transport.methods(version)
    }

    /// Returns `true`, because [`respond`](Self::respond) reads the form itself. A guard can thus refuse a request before its body is read.
    fn reads_form(&self) -> bool {
        true
    }

    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        let guard = &self.guard.0;
        if !guard.allows_origin(head) {
            return Box::pin(ready(refuse(guard, head, RefusalReason::Origin)));
        }
        if matches!(head.method, Method::HEAD | Method::OPTIONS) {
            return self.transport.respond(head, push);
        }
        let stream = match admit(guard, head) {
            Ok(stream) => Arc::new(stream),
            Err(reason) => {
                if let Some(outer) = StreamHandleExtension::take_from(head) {
                    outer.lifecycle().on_refusal_by_inner_guard();
                }
                return Box::pin(ready(refuse(guard, head, reason)));
            }
        };
        // The observers need the head if the request is refused later.
        let head_for_observers = (!guard.observers.is_empty()).then(|| head.clone());
        let is_event_source = guard.drain.is_some() && is_event_source_request(head);
        let is_upgrade_request = is_websocket_upgrade(head);
        let handle_offer = StreamHandleExtension::insert(head, StreamHandle::new(stream.clone()));
        let has_unread_form = UnreadForm::is_in(head);
        let response = respond_with_form(&self.transport, head, push);
        // If the form is not read yet, the inner transport takes the stream's handle only after it has read the form. The offer of the handle
        // must not be dropped before that.
        let handle_offer = has_unread_form.then_some(handle_offer);
        head.extensions.remove::<StreamHandleExtension>();
        Box::pin(async move {
            let head = head_for_observers.as_ref();
            let response = stream.response_unless_drained(response).await;
            drop(handle_offer);
            let mut response = match response {
                Some(response) => {
                    stream.record_response(&response, head);
                    response
                }
                None => stream.refuse_for_drain(head, is_event_source),
            };
            add_connection_close_unless_upgraded(is_upgrade_request, &mut response);
            response.body_mut().attach_handle(StreamHandle::new(stream));
            response
        })
    }
}

/// Admits the stream of a request. If another guard wraps this one, takes the handle of the outer guard out of the head.
///
/// # Errors
/// Returns the reason for the refusal if the drain has started, or if a limit is reached. If the request is refused, the outer guard's
/// handle stays in the head.
fn admit(
    guard: &Arc<SharedGuard>,
    head: &mut Parts,
) -> Result<AdmittedStreamLifecycle, RefusalReason> {
    // The drain is checked before the limits, because the drain's time to reconnect is the right one for a client that both would
    // refuse.
    if guard.drain.as_ref().is_some_and(Drain::has_started) {
        return Err(RefusalReason::Draining);
    }
    let permit = match &guard.admission {
        Some(admission) => admission.try_acquire(head)?,
        None => AdmissionPermit::default(),
    };
    let drainable = match &guard.drain {
        Some(drain) => Some(drain.register().ok_or(RefusalReason::Draining)?),
        None => None,
    };
    let outer = StreamHandleExtension::take_from(head);
    Ok(AdmittedStreamLifecycle::new(
        guard.clone(),
        drainable,
        permit,
        outer,
    ))
}

/// Records the refusal of a request that was not admitted, and returns the response.
fn refuse(guard: &SharedGuard, head: &Parts, reason: RefusalReason) -> Response<PushBody> {
    guard.record_refusal(Some(head), reason);
    let mut refusal = guard.refusal_response(reason, is_event_source_request(head));
    add_connection_close_unless_upgraded(is_websocket_upgrade(head), &mut refusal);
    refusal
}
