use std::{fmt, sync::Arc, time::Duration};

use http::{Response, StatusCode, request::Parts};

use super::{
    admission::Admission,
    drain::Drain,
    guard_counts::{GuardCounters, GuardCounts},
    observer::Observer,
    reasons::RefusalReason,
    topic_labels::TopicLabelCounters,
};
use crate::{
    deadline::MAX_STREAM_LIFETIME,
    event::{Event, Gap},
    origin_policy::OriginPolicy,
    random,
    source::Rejection,
    transport::{PushBody, event_source_retry_response, rejection_response},
};

/// The settings and the counters that all clones of a [`Guard`](super::Guard) share.
#[derive(Default)]
pub(super) struct SharedGuard {
    pub(super) drain: Option<Drain>,
    pub(super) max_lifetime: Option<Duration>,
    pub(super) admission: Option<Admission>,
    pub(super) origin_policy: Option<OriginPolicy>,
    pub(super) always_503: bool,
    pub(super) observers: Vec<Arc<dyn Observer>>,
    pub(super) topic_labels: Option<TopicLabelCounters>,
    pub(super) counters: GuardCounters,
}

impl SharedGuard {
    /// Calls `notify` with each observer.
    pub(super) fn notify_observers(&self, notify: impl Fn(&dyn Observer)) {
        for observer in &self.observers {
            notify(&**observer);
        }
    }

    /// Chooses a random lifetime for one stream: 80 to 100 % of the maximum. Returns `None` if there is no maximum.
    pub(super) fn random_lifetime(&self) -> Option<Duration> {
        let max_lifetime = self.max_lifetime?.min(MAX_STREAM_LIFETIME);
        Some(max_lifetime.mul_f64(1.0 - 0.2 * random::fraction()))
    }

    /// Returns whether the origin policy allows the page that has sent the request.
    pub(super) fn allows_origin(&self, head: &Parts) -> bool {
        let policy = self.origin_policy.as_ref();
        policy.is_none_or(|policy| policy.allows(head))
    }

    /// Counts an event that a stream sends.
    pub(super) fn record_event(&self, event: &Event) {
        let payload_len = event.payload().as_bytes().len();
        self.counters.record_event(payload_len);
        if let (Some(labels), Some(topic)) = (&self.topic_labels, event.topic()) {
            labels.record_event(topic, payload_len);
        }
    }

    /// Counts a gap that a stream sends.
    pub(super) fn record_gap(&self, gap: &Gap) {
        self.counters.record_gap();
        if let (Some(labels), Some(topic)) = (&self.topic_labels, &gap.topic) {
            labels.record_gap(topic);
        }
    }

    /// Returns the counts of the guard's streams.
    pub(super) fn counts(&self) -> GuardCounts {
        let mut counts = self.counters.snapshot();
        if let Some(labels) = &self.topic_labels {
            counts.by_topic_label = labels.snapshot();
        }
        counts
    }

    /// Counts a refused request, and notifies the observers if `head` is given. Callers keep the head only if there are
    /// observers.
    pub(super) fn record_refusal(&self, head: Option<&Parts>, reason: RefusalReason) {
        self.counters.record_refusal(reason);
        if let Some(head) = head {
            self.notify_observers(|observer| observer.on_refusal(head, reason));
        }
    }

    /// Creates the response to a request that this guard refuses for `reason`.
    pub(super) fn refusal_response(
        &self,
        reason: RefusalReason,
        is_event_source: bool,
    ) -> Response<PushBody> {
        let retry = match reason {
            RefusalReason::Draining => self.drain.as_ref().map(Drain::random_retry_delay),
            RefusalReason::Full | RefusalReason::Key => {
                self.admission.as_ref().map(Admission::random_retry_delay)
            }
            RefusalReason::Origin | RefusalReason::Source => None,
        };
        match retry {
            None => rejection_response(Rejection::new(StatusCode::FORBIDDEN)),
            Some(retry) if is_event_source && !self.always_503 => {
                event_source_retry_response(retry)
            }
            Some(retry) => {
                let rejection = Rejection::new(StatusCode::SERVICE_UNAVAILABLE);
                rejection_response(rejection.retry_after(retry))
            }
        }
    }

    /// Formats the settings as a struct with the name `type_name`.
    pub(super) fn fmt_as(&self, type_name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(type_name)
            .field("drain", &self.drain)
            .field("max_lifetime", &self.max_lifetime)
            .field("admission", &self.admission)
            .field("origin_policy", &self.origin_policy)
            .field("always_503", &self.always_503)
            .field("topic_labels", &self.topic_labels)
            .field("observers", &self.observers.len())
            .finish_non_exhaustive()
    }
}
