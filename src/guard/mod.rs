//! Around open streams: how many there may be, how long they live, how they end when the server does, and what became of them.
//!
//! A response that does not end breaks what servers take for granted. A graceful shutdown waits for it for ever; after a restart
//! everyone is back in the same second; a limit of requests does not see it; and nobody knows how many there are. A [`Guard`] is
//! the policy for the streams of one transport or several, and [`over`](Guard::over) puts it around a transport. What comes out is
//! a transport too, so that it goes through every [door](crate::layer):
//!
//! ```
//! use std::time::Duration;
//! use tower_push::{
//!     Channel, Drain, Guard, OriginPolicy,
//!     guard::{Admission, Plan},
//!     layer::TransportLayer,
//!     service,
//!     transport::{Negotiate, Sse},
//! };
//!
//! let drain = Drain::new();
//! let guard = Guard::new()
//!     .drain(&drain)
//!     .lifetime(Duration::from_secs(3600))
//!     .admit(Admission::at_most(50_000))
//!     .origin(OriginPolicy::same_origin());
//!
//! let layer = TransportLayer::with(guard.over(Negotiate::new()));
//! let ticks = service(Channel::new()).transport(guard.over(Sse::new()));
//!
//! // Later: what is there now, and the end of it.
//! println!("{} streams", guard.counts().open());
//! drain.start(Plan::within(Duration::from_secs(10)));
//! # let _ = (layer, ticks);
//! ```
//!
//! # How a stream ends
//! | why | when | what the client is told |
//! |---|---|---|
//! | the [drain](Drain) has started | at a random point of the [time](Plan::spread) for it | an end for now, and a hint when to come back, drawn for it alone |
//! | it has had its [lifetime](Guard::lifetime) | at 80 to 100 % of it | the same, with a hint of about a second |
//! | what the client was let in by [has expired](crate::source::Subscription::expires_at) | then | an end for now; a WebSocket is closed with 3005 |
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
//! | the same, and it accepts `text/event-stream` | 200, `retry: …` and the end of the body, for an `EventSource` never comes back after a 503; unless [said otherwise](Guard::always_503) |
//! | its page is not [allowed](Guard::origin) | 403 |
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
//! It counts, for [`Drain::finished`], [`Admission`] and [`Counts`], from its request until the server has let go of its body,
//! the poll of its answer, or a WebSocket's task of its socket: whichever way it came to that. The streams that long-polling
//! [parks](crate::Resumable) between two polls are not open streams; the polls are.
//!
//! A transport [of your own](crate::transport#a-transport-of-ones-own) is limited, and waited for, in any case. It is in the
//! [`Counts`], and ended too, if it answers with [`respond_streaming`](crate::transport::respond_streaming). Of several guards
//! around each other the innermost ends the streams; the others count them.

mod admission;
mod drain;
#[cfg(all(test, tower_push_loom))]
mod models;
mod observe;
mod stream;
#[cfg(feature = "tracing")]
mod tracing;

use std::{fmt, future::ready, sync::Arc, time::Duration};

use http::{Method, Response, StatusCode, request::Parts};

#[cfg(feature = "tracing")]
#[cfg_attr(docsrs, doc(cfg(feature = "tracing")))]
pub use self::tracing::Tracing;
pub use self::{
    admission::Admission,
    drain::{Drain, Drained, Plan},
    observe::{Cause, Counts, Observer, Refusal, StreamInfo},
};
use self::{admission::Permit, observe::Counters, stream::OpenStream};
use crate::{
    origin_policy::OriginPolicy,
    random,
    source::{LONGEST, Push, Rejection, Ticket},
    transport::{
        Preference, PushBody, Responding, Transport, rejected,
        sse::{EVENT_STREAM, come_back},
    },
};

/// The policy for the open streams of one transport or several. See the [module docs](self).
///
/// A clone is the same guard, with the same counts; but what is set on it afterwards makes another guard of it, with counts of
/// its own. So set everything first. A new guard lets everything through, and counts it.
#[derive(Clone, Default)]
pub struct Guard(Arc<Policy>);

#[derive(Default)]
struct Policy {
    drain: Option<Drain>,
    lifetime: Option<Duration>,
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

    /// Ends the streams when this drain starts, and refuses new ones from then on.
    #[must_use]
    pub fn drain(self, drain: &Drain) -> Self {
        self.with(|policy| policy.drain = Some(drain.clone()))
    }

    /// How old a stream may become, so that a load balancer gets to place it anew: each one ends at a random point of the last
    /// fifth of this time. Without it, streams live for as long as they like.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let guard = tower_push::Guard::new().lifetime(Duration::from_secs(30 * 60));
    /// ```
    #[must_use]
    pub fn lifetime(self, time: Duration) -> Self {
        self.with(|policy| policy.lifetime = Some(time))
    }

    /// How many streams may be open.
    #[must_use]
    pub fn admit(self, admission: Admission) -> Self {
        self.with(|policy| policy.admission = Some(admission))
    }

    /// From which pages requests may come, on every transport: 403 for others. A WebSocket has a policy of its own in any case; the
    /// other transports have none unless it is set here.
    ///
    /// Where no CORS layer says otherwise, a browser does not let another origin's page read a stream. But it asks for it, with the
    /// user's cookies, and holds a stream open for it. A CORS layer belongs around the guard: it is to answer the preflights.
    #[must_use]
    pub fn origin(self, policy: OriginPolicy) -> Self {
        self.with(|this| this.origin = Some(policy))
    }

    /// Tells this observer of everything, too.
    #[must_use]
    pub fn observe(self, observer: impl Observer) -> Self {
        self.with(|policy| policy.observers.push(Arc::new(observer)))
    }

    /// Refuses an `EventSource` with 503 like everybody else, where it would be answered 200 to make it come back: for monitors and
    /// load balancers that must see it. In browsers it then stays away until the page is loaded again.
    #[must_use]
    pub fn always_503(self) -> Self {
        self.with(|policy| policy.always_503 = true)
    }

    /// The transport under this guard: for `service(…).transport(…)`, or for a layer, which is then
    /// [`TransportLayer::with`](crate::layer::TransportLayer::with) and not one of the shorter names.
    pub fn over<T: Transport>(&self, transport: T) -> Guarded<T> {
        Guarded {
            guard: self.clone(),
            transport,
        }
    }

    /// What its streams have done, and how many there are now.
    pub fn counts(&self) -> Counts {
        self.0.counters.read()
    }

    fn with(self, change: impl FnOnce(&mut Policy)) -> Self {
        let mut policy = Arc::try_unwrap(self.0).unwrap_or_else(|shared| shared.anew());
        change(&mut policy);
        Self(Arc::new(policy))
    }
}

impl Policy {
    /// The same policy, with counts of its own.
    fn anew(&self) -> Self {
        Self {
            drain: self.drain.clone(),
            lifetime: self.lifetime,
            admission: self.admission.clone(),
            origin: self.origin.clone(),
            always_503: self.always_503,
            observers: self.observers.clone(),
            counters: Counters::default(),
        }
    }

    fn tell(&self, what: impl Fn(&dyn Observer)) {
        self.observers.iter().for_each(|observer| what(&**observer));
    }

    fn draw_lifetime(&self) -> Option<Duration> {
        let lifetime = self.lifetime?.min(LONGEST);
        Some(lifetime.mul_f64(1.0 - 0.2 * random::unit()))
    }

    fn allows(&self, head: &Parts) -> bool {
        self.origin
            .as_ref()
            .is_none_or(|origin| origin.allows(head))
    }

    fn admit(self: &Arc<Self>, head: &Parts) -> Result<OpenStream, Refusal> {
        // Who would be refused for both comes back when the drain says.
        if self.drain.as_ref().is_some_and(Drain::has_started) {
            return Err(Refusal::Draining);
        }
        let permit = match &self.admission {
            Some(admission) => admission.admit(head)?,
            None => Permit::default(),
        };
        let seat = match &self.drain {
            Some(drain) => Some(drain.enter().ok_or(Refusal::Draining)?),
            None => None,
        };
        Ok(OpenStream::new(self.clone(), seat, permit))
    }

    fn refuse(&self, head: &Parts, refusal: Refusal) -> Response<PushBody> {
        self.count(Some(head), refusal);
        self.refusal(refusal, is_event_source(head))
    }

    fn refusal(&self, refusal: Refusal, is_event_source: bool) -> Response<PushBody> {
        let retry = match refusal {
            Refusal::Draining => self.drain.as_ref().map(Drain::retry),
            Refusal::Full | Refusal::Key => self.admission.as_ref().map(Admission::draw_retry),
            Refusal::Origin | Refusal::Source => None,
        };
        match retry {
            None => rejected(Rejection::new(StatusCode::FORBIDDEN)),
            Some(retry) if !self.always_503 && is_event_source => come_back(retry),
            Some(retry) => {
                let busy = Rejection::new(StatusCode::SERVICE_UNAVAILABLE);
                rejected(busy.retry_after(retry))
            }
        }
    }

    /// Nobody needs the head if there is no observer.
    fn count(&self, head: Option<&Parts>, refusal: Refusal) {
        self.counters.refuses(refusal);
        if let Some(head) = head {
            self.tell(|observer| observer.refused(head, refusal));
        }
    }
}

/// Whether it asks for an event stream by name, as an `EventSource` does. To a CONNECT, 200 would say that there is a tunnel.
fn is_event_source(head: &Parts) -> bool {
    let accepted = Preference::accepted(&head.headers, &[EVENT_STREAM]);
    head.method != Method::CONNECT && accepted.is_some_and(|(preference, _)| preference.is_exact())
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("drain", &self.0.drain)
            .field("lifetime", &self.0.lifetime)
            .field("admission", &self.0.admission)
            .field("origin", &self.0.origin)
            .field("always_503", &self.0.always_503)
            .field("observers", &self.0.observers.len())
            .finish_non_exhaustive()
    }
}

/// A transport under a [`Guard`], from [`Guard::over`]. See the [module docs](self).
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
        Guard::new().over(T::default())
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

    fn respond(&self, head: &mut Parts, push: Push) -> Responding {
        let policy = &self.guard.0;
        if !policy.allows(head) {
            return Box::pin(ready(policy.refuse(head, Refusal::Origin)));
        }
        if head.method == Method::HEAD {
            return self.transport.respond(head, push);
        }
        let stream = match policy.admit(head) {
            Ok(stream) => Arc::new(stream.inside(head.extensions.remove())),
            Err(refusal) => {
                if let Some(outer) = head.extensions.get::<Ticket>() {
                    outer.watch().refused();
                }
                return Box::pin(ready(policy.refuse(head, refusal)));
            }
        };
        // For those who hear of it if it is refused.
        let asked = (!policy.observers.is_empty()).then(|| head.clone());
        let is_event_source = policy.drain.is_some() && is_event_source(head);
        head.extensions.insert(Ticket::new(stream.clone()));
        let responding = self.transport.respond(head, push);
        // Who made the request may keep its head for longer.
        head.extensions.remove::<Ticket>();
        Box::pin(async move {
            let mut response = match stream.in_time(responding).await {
                Some(response) => {
                    stream.answered(&response, asked.as_ref());
                    response
                }
                None => stream.refuse(asked.as_ref(), is_event_source),
            };
            response.body_mut().hold(Ticket::new(stream));
            response
        })
    }
}
