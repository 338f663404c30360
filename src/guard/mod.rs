//! Around open streams: how many there may be, how long they live, how they end when the server does, and what became of them.
//!
//! A response that does not end breaks what servers take for granted. A graceful shutdown waits for it for ever; after a restart
//! everyone is back in the same second; a limit of requests does not see it; and nobody knows how many there are. A [`Guard`] is
//! the policy for the streams of one transport or several, and [`wrap`](Guard::wrap) puts it around a transport. What comes out is
//! a transport too, so that it goes through every [door](crate::layer):
//!
//! ```
//! use std::time::Duration;
//! use tower_push::{
//!     Channel, Drain, Guard, OriginPolicy,
//!     guard::{Admission, DrainPlan},
//!     layer::TransportLayer,
//!     service,
//!     transport::{Negotiate, Sse},
//! };
//!
//! let drain = Drain::new();
//! let guard = Guard::builder()
//!     .drain(&drain)
//!     .max_lifetime(Duration::from_secs(3600))
//!     .admission(&Admission::builder().max_streams(50_000).build())
//!     .origin(OriginPolicy::same_origin())
//!     .build();
//!
//! let layer = TransportLayer::with(guard.wrap(Negotiate::new()));
//! let ticks = service(Channel::new()).transport(guard.wrap(Sse::new()));
//!
//! // Later: what is there now, and the end of it.
//! println!("{} streams", guard.counts().open());
//! drain.start(DrainPlan::within(Duration::from_secs(10)));
//! # let _ = (layer, ticks);
//! ```
//!
//! # How a stream ends
//! | why | when | what the client is told |
//! |---|---|---|
//! | the [drain](Drain) has started | at a random point of the [time](DrainPlan::spread) for it | an end for now, and a hint when to come back, drawn for it alone |
//! | it has had its [lifetime](GuardBuilder::max_lifetime) | at 80 to 100 % of it | the same, with a hint of about a second |
//! | what the client was let in by [has expired](crate::source::Subscription::expire_by) | then | an end for now; a WebSocket is closed with 3005 |
//!
//! An end with a hint is [`Item::Ended`](crate::Item::Ended):
//!
//! | transport | what is sent |
//! |---|---|
//! | SSE | `retry: 1500`, then `event: end` with `{"finished":false,"retry":1500}` |
//! | NDJSON, JSON-seq, multipart | the record `{"end":{"finished":false,"retry":1500}}` |
//! | long-poll | an answer at once, with what there is, and `Retry-After` |
//! | WebSocket | close frame 1012, its reason `{"finished":false,"retry":1500}`; the record before it, where the form has one |
//!
//! The cursor stays what it was: who comes back goes on where it was.
//!
//! # How a request is refused
//! | why | the answer |
//! |---|---|
//! | the drain has started, or there are [too many](Admission) streams | 503 with `Retry-After` |
//! | the same, and it accepts `text/event-stream` | 200, `retry: …` and the end of the body, for an `EventSource` never comes back after a 503; unless [said otherwise](GuardBuilder::always_503) |
//! | its page is not [allowed](GuardBuilder::origin) | 403 |
//!
//! A request whose source has not answered yet when its turn in the drain comes is refused too, for its client has been told nothing.
//!
//! `HEAD` opens no stream, and is answered at all times.
//!
//! # What to watch
//! | what | where |
//! |---|---|
//! | the streams that are open, opened, gone and why, and the requests refused and why | [`Guard::counts`] |
//! | the same of each one, as it happens: durations, events, gaps, errors | an [`Observer`] |
//! | the same in the logs: a span for each stream | `Tracing`, with the feature `tracing` |
//! | what a channel's subscribers missed, and how much its log holds | [`Channel::counts`](crate::Channel::counts) |
//! | the streams that are parked, resumed, expired and evicted | [`Resumable::counts`](crate::Resumable::counts) |
//!
//! `examples/metrics.rs` shows all of it to Prometheus.
//!
//! # When a stream is gone
//! It counts, for [`Drain::wait`], [`Admission`] and [`GuardCounts`], from its request until the server has let go of its body,
//! the poll of its answer, or a WebSocket's task of its socket: whichever way it came to that. The streams that long-polling
//! [parks](crate::Resumable) between two polls are not open streams; the polls are.
//!
//! A transport [of your own](crate::transport#a-transport-of-ones-own) is limited, and waited for, in any case. It is in the
//! [`GuardCounts`], and ended too, if it answers with [`respond_streaming`](crate::transport::respond_streaming). Of several guards
//! around each other the innermost ends the streams; the others count them.

mod admission;
mod drain;
#[cfg(all(test, tower_push_loom))]
mod models;
mod observer;
mod stream;
#[cfg(feature = "tracing")]
mod tracing;

use std::{fmt, future::ready, sync::Arc, time::Duration};

use http::{Method, Response, StatusCode, request::Parts};

#[cfg(feature = "tracing")]
#[cfg_attr(docsrs, doc(cfg(feature = "tracing")))]
pub use self::tracing::Tracing;
use self::{admission::Permit, observer::Counters, stream::OpenStream};
pub use self::{
    admission::{Admission, AdmissionBuilder},
    drain::{Drain, DrainOutcome, DrainPlan},
    observer::{CloseReason, GuardCounts, Observer, RefusalReason, StreamInfo},
};
use crate::{
    deadline::MAX_STREAM_LIFETIME,
    origin_policy::OriginPolicy,
    random,
    source::{Push, Rejection},
    supervision::StreamHandle,
    transport::{
        BoxResponseFuture, Preference, PushBody, Transport, event_source_retry_response,
        is_event_source_request, rejection_response,
    },
};

/// The policy for the open streams of one transport or of several. See the [module docs](self).
///
/// [`Guard::builder`] configures one; [`Guard::new`] is the guard that lets everything through, and counts it. A clone is the same
/// guard, with the same counts.
#[derive(Clone, Default)]
pub struct Guard(Arc<Policy>);

/// Configures a [`Guard`].
#[must_use]
#[derive(Default)]
pub struct GuardBuilder(Policy);

#[derive(Default)]
struct Policy {
    drain: Option<Drain>,
    max_lifetime: Option<Duration>,
    admission: Option<Admission>,
    origin: Option<OriginPolicy>,
    always_503: bool,
    observers: Vec<Arc<dyn Observer>>,
    counters: Counters,
}

impl Guard {
    /// A guard that lets everything through.
    pub fn new() -> Self {
        Self::default()
    }

    /// A guard to configure. Without any setting it lets everything through.
    pub fn builder() -> GuardBuilder {
        GuardBuilder::default()
    }

    /// Puts this guard around `transport`. The result is a transport for [`SourceService::transport`] or for
    /// [`TransportLayer::with`].
    ///
    /// [`SourceService::transport`]: crate::layer::SourceService::transport
    /// [`TransportLayer::with`]: crate::layer::TransportLayer::with
    pub fn wrap<T: Transport>(&self, transport: T) -> Guarded<T> {
        Guarded {
            guard: self.clone(),
            transport,
        }
    }

    /// The counts of this guard's streams so far, and how many streams are open.
    pub fn counts(&self) -> GuardCounts {
        self.0.counters.read()
    }
}

impl GuardBuilder {
    /// The drain that ends the streams. Once it has started, new requests are refused. Without one, the guard ends no stream when the
    /// server stops.
    pub fn drain(mut self, drain: &Drain) -> Self {
        self.0.drain = Some(drain.clone());
        self
    }

    /// The maximum lifetime of a stream, so that a load balancer can place its client anew. Each stream ends at a random point of the last
    /// fifth of this time. Without it, streams have no maximum lifetime.
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

    /// The limits on how many streams may be open. Without it, there are none.
    pub fn admission(mut self, admission: &Admission) -> Self {
        self.0.admission = Some(admission.clone());
        self
    }

    /// The pages that may send requests, on every transport; the guard answers 403 to others. A WebSocket has a policy of its own in any
    /// case; the other transports have none unless it is set here.
    ///
    /// Without a CORS layer that allows it, a browser does not let another origin's page read a stream. But the browser sends the request,
    /// with the user's cookies, and holds a stream open for the page. Put a CORS layer around the guard, so that the layer answers the
    /// preflight requests.
    pub fn origin(mut self, policy: OriginPolicy) -> Self {
        self.0.origin = Some(policy);
        self
    }

    /// Adds an observer that is notified of everything that happens to the streams.
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.0.observers.push(Arc::new(observer));
        self
    }

    /// Refuses an `EventSource` with 503, like every other client. By default the guard answers 200 to make an `EventSource` reconnect.
    /// Use it where monitors and load balancers must see the refusal. A browser's `EventSource` then stays closed until the page is
    /// loaded again.
    pub fn always_503(mut self) -> Self {
        self.0.always_503 = true;
        self
    }

    /// The guard.
    pub fn build(self) -> Guard {
        Guard(Arc::new(self.0))
    }
}

impl Policy {
    fn tell(&self, what: impl Fn(&dyn Observer)) {
        self.observers.iter().for_each(|observer| what(&**observer));
    }

    fn draw_lifetime(&self) -> Option<Duration> {
        let lifetime = self.max_lifetime?.min(MAX_STREAM_LIFETIME);
        Some(lifetime.mul_f64(1.0 - 0.2 * random::unit()))
    }

    fn allows(&self, head: &Parts) -> bool {
        self.origin
            .as_ref()
            .is_none_or(|origin| origin.allows(head))
    }

    fn admit(self: &Arc<Self>, head: &Parts) -> Result<OpenStream, RefusalReason> {
        // Who would be refused for both comes back when the drain says.
        if self.drain.as_ref().is_some_and(Drain::has_started) {
            return Err(RefusalReason::Draining);
        }
        let permit = match &self.admission {
            Some(admission) => admission.admit(head)?,
            None => Permit::default(),
        };
        let seat = match &self.drain {
            Some(drain) => Some(drain.enter().ok_or(RefusalReason::Draining)?),
            None => None,
        };
        Ok(OpenStream::new(self.clone(), seat, permit))
    }

    fn refuse(&self, head: &Parts, refusal: RefusalReason) -> Response<PushBody> {
        self.count(Some(head), refusal);
        self.refusal(refusal, is_event_source_request(head))
    }

    fn refusal(&self, refusal: RefusalReason, is_event_source: bool) -> Response<PushBody> {
        let retry = match refusal {
            RefusalReason::Draining => self.drain.as_ref().map(Drain::retry),
            RefusalReason::Full | RefusalReason::Key => {
                self.admission.as_ref().map(Admission::draw_retry)
            }
            RefusalReason::Origin | RefusalReason::Source => None,
        };
        match retry {
            None => rejection_response(Rejection::new(StatusCode::FORBIDDEN)),
            Some(retry) if !self.always_503 && is_event_source => {
                event_source_retry_response(retry)
            }
            Some(retry) => {
                let busy = Rejection::new(StatusCode::SERVICE_UNAVAILABLE);
                rejection_response(busy.retry_after(retry))
            }
        }
    }

    fn debug(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name)
            .field("drain", &self.drain)
            .field("max_lifetime", &self.max_lifetime)
            .field("admission", &self.admission)
            .field("origin", &self.origin)
            .field("always_503", &self.always_503)
            .field("observers", &self.observers.len())
            .finish_non_exhaustive()
    }

    /// Nobody needs the head if there is no observer.
    fn count(&self, head: Option<&Parts>, refusal: RefusalReason) {
        self.counters.refuses(refusal);
        if let Some(head) = head {
            self.tell(|observer| observer.on_refusal(head, refusal));
        }
    }
}

impl fmt::Debug for GuardBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.debug("GuardBuilder", f)
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.debug("Guard", f)
    }
}

/// A transport under a [`Guard`], from [`Guard::wrap`]. See the [module docs](self).
#[derive(Clone, Debug)]
pub struct Guarded<T> {
    guard: Guard,
    transport: T,
}

impl<T> Guarded<T> {
    /// The guard.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }
}

/// Under a guard that lets everything through.
impl<T: Transport + Default> Default for Guarded<T> {
    fn default() -> Self {
        Guard::new().wrap(T::default())
    }
}

impl<T: Transport> Transport for Guarded<T> {
    fn name(&self) -> &'static str {
        self.transport.name()
    }

    fn media_types(&self) -> &[&'static str] {
        self.transport.media_types()
    }

    fn preference(&self, head: &Parts) -> Option<Preference> {
        self.transport.preference(head)
    }

    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        let policy = &self.guard.0;
        if !policy.allows(head) {
            return Box::pin(ready(policy.refuse(head, RefusalReason::Origin)));
        }
        if head.method == Method::HEAD {
            return self.transport.respond(head, push);
        }
        let stream = match policy.admit(head) {
            Ok(stream) => Arc::new(stream.inside(head.extensions.remove())),
            Err(refusal) => {
                if let Some(outer) = head.extensions.get::<StreamHandle>() {
                    outer.lifecycle().on_refusal();
                }
                return Box::pin(ready(policy.refuse(head, refusal)));
            }
        };
        // For those who hear of it if it is refused.
        let asked = (!policy.observers.is_empty()).then(|| head.clone());
        let is_event_source = policy.drain.is_some() && is_event_source_request(head);
        head.extensions.insert(StreamHandle::new(stream.clone()));
        let responding = self.transport.respond(head, push);
        // Who made the request may keep its head for longer.
        head.extensions.remove::<StreamHandle>();
        Box::pin(async move {
            let mut response = match stream.in_time(responding).await {
                Some(response) => {
                    stream.answered(&response, asked.as_ref());
                    response
                }
                None => stream.refuse(asked.as_ref(), is_event_source),
            };
            response.body_mut().attach_handle(StreamHandle::new(stream));
            response
        })
    }
}
