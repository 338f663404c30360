use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::transport::Transport;

/// Chooses the transport of the next request: the first of the list that works.
///
/// A transport that has worked is kept, also while the server cannot be reached. From a transport that is not the first, the selector returns
/// to the first one after [`RETURN_AFTER`], at the next request.
#[derive(Clone, Debug)]
pub(crate) struct TransportSelector {
    transports: Arc<[Transport]>,
    /// The index of the current transport.
    index: usize,
    /// The number of transports that did not work, one after another, since one has worked.
    unsuitable: usize,
    /// The index of the first of these transports over which nothing has arrived: it may work later.
    silent: Option<usize>,
    /// Whether the current transport may be silent, because the server offers no other one.
    is_patient: bool,
    /// The number of requests for the current transport that failed, one after another, without a response that worked. Not counted for a
    /// transport that [has worked lately](Self::has_worked_lately).
    failures: u32,
    /// The index of the transport that has worked last, and the time at which it has worked last.
    worked: Option<(usize, Instant)>,
    /// The time at which the first transport is tried again. `None` while the current transport is the first.
    return_at: Option<Instant>,
}

/// The time after which the first transport of the list is tried again: 10 min.
const RETURN_AFTER: Duration = Duration::from_secs(600);

/// The time for which a transport that has worked is kept although requests for it fail: 10 min. A server that restarts takes less, and a client
/// that has moved to another network, which drops the transport, gets to another transport in the end.
const KEEP_AFTER_SUCCESS: Duration = Duration::from_secs(600);

/// The number of failures, one after another, after which the next transport is tried: a firewall may drop one transport without a response.
const MAX_FAILURES: u32 = 3;

impl TransportSelector {
    /// Makes a selector. `transports` must not be empty.
    pub(crate) fn new(transports: Arc<[Transport]>) -> Self {
        Self {
            transports,
            index: 0,
            unsuitable: 0,
            silent: None,
            is_patient: false,
            failures: 0,
            worked: None,
            return_at: None,
        }
    }

    /// Chooses the transport of a request.
    pub(crate) fn select(&mut self, now: Instant) -> Transport {
        if self.return_at.is_some_and(|time| time <= now) {
            self.index = 0;
            self.return_at = None;
        }
        self.transports[self.index]
    }

    /// Returns the transport of the last request, or of the next one after a change.
    #[cfg(feature = "websocket")]
    pub(crate) fn current(&self) -> Transport {
        self.transports[self.index]
    }

    /// Whether the list has a transport that has not been tried since one has worked.
    fn has_untried_transport(&self) -> bool {
        self.unsuitable + 1 < self.transports.len()
    }

    /// Whether the client may change to another transport because nothing arrives over the current one: it has never worked, and there is
    /// another one to try that the server may offer.
    pub(crate) fn may_switch_transport(&self) -> bool {
        let has_worked = self.worked.is_some_and(|(index, _)| index == self.index);
        !has_worked && !self.is_patient && self.has_untried_transport()
    }

    /// Whether the current transport has worked at most [`KEEP_AFTER_SUCCESS`] ago.
    fn has_worked_lately(&self, now: Instant) -> bool {
        self.worked.is_some_and(|(index, time)| {
            index == self.index && now.saturating_duration_since(time) <= KEEP_AFTER_SUCCESS
        })
    }

    /// Reports that the server has sent bytes of a feed.
    pub(crate) fn on_success(&mut self, now: Instant) {
        self.unsuitable = 0;
        self.silent = None;
        self.is_patient = false;
        self.failures = 0;
        self.worked = Some((self.index, now));
        if self.index > 0 && self.return_at.is_none() {
            self.return_at = Some(now + RETURN_AFTER);
        }
    }

    /// Reports that the server does not offer the current transport.
    pub(crate) fn on_unsuitable(&mut self) -> NextTransport {
        if self.select_next() {
            return NextTransport::AtOnce;
        }
        let Some(index) = self.silent.take() else {
            return NextTransport::None;
        };
        self.index = index;
        self.is_patient = true;
        NextTransport::AfterDelay
    }

    /// Reports that nothing arrives over the current transport.
    pub(crate) fn on_silence(&mut self) -> NextTransport {
        self.silent.get_or_insert(self.index);
        if self.select_next() {
            return NextTransport::AtOnce;
        }
        self.silent = None;
        NextTransport::AfterDelay
    }

    /// Selects the next transport of the list. Returns whether it has not been tried since one has worked.
    fn select_next(&mut self) -> bool {
        let has_untried_transport = self.has_untried_transport();
        self.unsuitable = if has_untried_transport {
            self.unsuitable + 1
        } else {
            0
        };
        self.index = (self.index + 1) % self.transports.len();
        self.is_patient = false;
        self.failures = 0;
        self.return_at = None;
        has_untried_transport
    }

    /// Reports that a request failed although the server could be reached, or that its response ended without a byte.
    pub(crate) fn on_failure(&mut self, now: Instant) {
        if self.has_worked_lately(now) {
            return;
        }
        self.failures += 1;
        if self.failures >= MAX_FAILURES {
            self.on_silence();
        }
    }
}

/// When the next transport can be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextTransport {
    /// At once: it has not been tried since one has worked.
    AtOnce,
    /// After a delay: all were tried, and one of them may work later.
    AfterDelay,
    /// Never: the server offers none of the list.
    None,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector() -> TransportSelector {
        TransportSelector::new([Transport::Sse, Transport::Ndjson, Transport::LongPoll].into())
    }

    #[test]
    fn unsuitable_transports_are_tried_once_each() {
        let (mut selector, now) = (selector(), Instant::now());
        assert_eq!(selector.on_unsuitable(), NextTransport::AtOnce);
        assert_eq!(selector.select(now), Transport::Ndjson);
        assert_eq!(selector.on_unsuitable(), NextTransport::AtOnce);
        assert_eq!(selector.select(now), Transport::LongPoll);
        assert_eq!(selector.on_unsuitable(), NextTransport::None);
        assert_eq!(selector.select(now), Transport::Sse);
    }

    /// The server offers one transport, over which nothing has arrived yet.
    #[test]
    fn silent_transport_is_kept_if_it_is_the_only_one() {
        let (mut selector, now) = (selector(), Instant::now());
        assert_eq!(selector.on_unsuitable(), NextTransport::AtOnce);
        assert!(selector.may_switch_transport());
        assert_eq!(selector.on_silence(), NextTransport::AtOnce);
        assert_eq!(selector.on_unsuitable(), NextTransport::AfterDelay);
        assert_eq!(selector.select(now), Transport::Ndjson);
        assert!(!selector.may_switch_transport());
        // The server has become another one.
        assert_eq!(selector.on_unsuitable(), NextTransport::AtOnce);
        assert!(selector.may_switch_transport());
    }

    #[test]
    fn silent_transports_are_tried_again() {
        let (mut selector, now) = (selector(), Instant::now());
        for _ in 0..2 {
            assert_eq!(selector.on_silence(), NextTransport::AtOnce);
            assert_eq!(selector.on_silence(), NextTransport::AtOnce);
            assert_eq!(selector.on_silence(), NextTransport::AfterDelay);
            assert_eq!(selector.select(now), Transport::Sse);
        }
    }

    #[test]
    fn first_transport_is_tried_again_later() {
        let (mut selector, now) = (selector(), Instant::now());
        selector.on_unsuitable();
        selector.on_success(now);
        selector.on_success(now + Duration::from_secs(1));
        let later = now + RETURN_AFTER;
        assert_eq!(
            selector.select(later - Duration::from_secs(1)),
            Transport::Ndjson
        );
        assert_eq!(selector.select(later), Transport::Sse);
    }

    #[test]
    fn repeated_failures_lead_to_the_next_transport() {
        let (mut selector, now) = (selector(), Instant::now());
        selector.on_failure(now);
        selector.on_failure(now);
        assert_eq!(selector.select(now), Transport::Sse);
        selector.on_failure(now);
        assert_eq!(selector.select(now), Transport::Ndjson);
    }

    #[test]
    fn failures_count_late_after_a_success() {
        let (mut selector, now) = (selector(), Instant::now());
        selector.on_success(now);
        for _ in 0..100 {
            selector.on_failure(now + KEEP_AFTER_SUCCESS);
        }
        assert_eq!(selector.select(now), Transport::Sse);
        let later = now + KEEP_AFTER_SUCCESS + Duration::from_millis(1);
        for _ in 0..MAX_FAILURES {
            selector.on_failure(later);
        }
        assert_eq!(selector.select(later), Transport::Ndjson);
    }
}
