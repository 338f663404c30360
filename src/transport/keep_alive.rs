use std::time::Duration;

use crate::random;

/// The heartbeat settings of a transport: how often an idle stream sends a heartbeat.
///
/// A heartbeat keeps proxies from closing an idle connection, and detects that a client is gone if nothing else detects it. A stream
/// sends a heartbeat after an interval in which it sent nothing else. The documentation of each transport says what the transport
/// sends as a heartbeat.
///
/// The default interval is 15 s, as the HTML standard
/// [advises](https://html.spec.whatwg.org/multipage/server-sent-events.html#authoring-notes). The default is shorter than the idle limits
/// of common proxies (nginx and AWS load balancers: 60 s). The default jitter is ±10 %: each stream draws an interval of its own from that
/// range once, so that streams that opened together do not send their heartbeats together.
///
/// Heartbeats need tokio's clock. Outside a tokio runtime, or in one without `enable_time`, a body with heartbeats panics when it
/// is idle for the first time. A stream without heartbeats ([`KeepAlive::disabled`]) runs on any runtime.
///
/// ```
/// use std::time::Duration;
/// use tower_push::KeepAlive;
///
/// let keep_alive = KeepAlive::new().interval(Duration::from_secs(30)).jitter(0.2);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct KeepAlive {
    interval: Option<Duration>,
    jitter: f64,
}

/// The lower bound of the interval: with a shorter interval, a stream would mostly send heartbeats.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// The upper bound of the interval, so that adding an interval to the current time cannot overflow.
const MAX_INTERVAL: Duration = Duration::from_secs(30 * 24 * 60 * 60);

impl KeepAlive {
    /// Creates the default configuration: an interval of 15 s with a jitter of 0.1.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a configuration without heartbeats.
    pub fn disabled() -> Self {
        Self {
            interval: None,
            ..Self::default()
        }
    }

    /// Sets how long a stream is silent before it sends a heartbeat: 10 ms to 30 days, 15 s by default. A value outside of this
    /// range is replaced by the nearer bound.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = Some(interval);
        self
    }

    /// Sets how much the interval of a stream may be shorter or longer, as a fraction of the interval: 0 to 1, 0.1 by default. A value
    /// outside of this range is replaced by the nearer bound, and NaN by 0.
    pub fn jitter(mut self, fraction: f64) -> Self {
        self.jitter = if fraction.is_nan() {
            0.0
        } else {
            fraction.clamp(0.0, 1.0)
        };
        self
    }

    /// Draws the interval of one stream, within the jitter. Returns `None` if streams send no heartbeats.
    ///
    /// A transport with a body of its own draws an interval for each stream, when the stream opens.
    pub fn draw_interval(self) -> Option<Duration> {
        let factor = 1.0 + self.jitter * random::signed_fraction();
        let drawn = self.interval?.as_secs_f64() * factor;
        let drawn = Duration::try_from_secs_f64(drawn).unwrap_or(MAX_INTERVAL);
        Some(drawn.clamp(MIN_INTERVAL, MAX_INTERVAL))
    }
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self {
            interval: Some(Duration::from_secs(15)),
            jitter: 0.1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_vary_within_jitter() {
        let drawn: Vec<_> = (0..1000)
            .map(|_| KeepAlive::new().draw_interval().unwrap().as_secs_f64())
            .collect();
        assert!(drawn.iter().all(|s| (13.5..=16.5).contains(s)));
        assert!(drawn.iter().any(|s| *s < 14.0) && drawn.iter().any(|s| *s > 16.0));
    }

    #[test]
    fn out_of_range_values_are_clamped() {
        let without_jitter = |interval| {
            let keep_alive = KeepAlive::new().interval(interval).jitter(0.0);
            keep_alive.draw_interval().unwrap()
        };
        let second = Duration::from_secs(1);
        assert_eq!(without_jitter(15 * second), 15 * second);
        assert_eq!(without_jitter(Duration::ZERO), MIN_INTERVAL);
        assert_eq!(without_jitter(Duration::MAX), MAX_INTERVAL);
        let with_jitter = |interval, jitter| {
            let keep_alive = KeepAlive::new().interval(interval).jitter(jitter);
            keep_alive.draw_interval()
        };
        assert!(with_jitter(Duration::MAX, f64::NAN) >= Some(MIN_INTERVAL));
        assert!(with_jitter(second, 9.0) >= Some(MIN_INTERVAL));
        assert_eq!(KeepAlive::disabled().draw_interval(), None);
    }
}
