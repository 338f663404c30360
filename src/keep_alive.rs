use std::time::Duration;

use crate::random;

/// How often an idle stream says that it is alive.
///
/// A heartbeat keeps proxies from closing an idle connection, and finds out that a client is gone where nothing else does.
/// It is sent when nothing else was for the interval, which is drawn once per stream from within ±10 % of what is set, so
/// that streams that began together do not beat together. What a heartbeat looks like is the transport's matter.
///
/// The default is 15 s: what the HTML standard
/// [advises](https://html.spec.whatwg.org/multipage/server-sent-events.html#authoring-notes), and below every idle limit in
/// use (nginx and AWS load balancers: 60 s).
///
/// It needs tokio's clock: outside a tokio runtime, or in one without `enable_time`, the body panics when it is first idle. A
/// stream without heartbeats ([`KeepAlive::disabled`]) runs on any runtime.
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

/// Below this, heartbeats would be all that a stream does.
const SHORTEST: Duration = Duration::from_millis(10);

/// Above this, it is as good as none; and any clock can add it.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

impl KeepAlive {
    /// Heartbeats every 15 s of silence, with a jitter of 0.1.
    pub fn new() -> Self {
        Self::default()
    }

    /// No heartbeats.
    pub fn disabled() -> Self {
        Self {
            interval: None,
            ..Self::default()
        }
    }

    /// How long a stream is silent before it sends a heartbeat: at least 10 ms, at most 30 days, 15 s by default.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = Some(interval);
        self
    }

    /// By which part of itself the interval may be longer or shorter: 0 to 1, 0.1 by default.
    pub fn jitter(mut self, part: f64) -> Self {
        self.jitter = if part.is_nan() {
            0.0
        } else {
            part.clamp(0.0, 1.0)
        };
        self
    }

    /// The interval of one stream.
    pub(crate) fn draw(self) -> Option<Duration> {
        let factor = 1.0 + self.jitter * random::signed_unit();
        let drawn = self.interval?.as_secs_f64() * factor;
        let drawn = Duration::try_from_secs_f64(drawn).unwrap_or(LONGEST);
        Some(drawn.clamp(SHORTEST, LONGEST))
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
    fn intervals_are_drawn_from_within_the_jitter() {
        let drawn: Vec<_> = (0..1000)
            .map(|_| KeepAlive::default().draw().unwrap().as_secs_f64())
            .collect();
        assert!(drawn.iter().all(|s| (13.5..=16.5).contains(s)));
        assert!(drawn.iter().any(|s| *s < 14.0) && drawn.iter().any(|s| *s > 16.0));
    }

    #[test]
    fn odd_values_are_tamed() {
        let exact = |interval| {
            KeepAlive::new()
                .interval(interval)
                .jitter(0.0)
                .draw()
                .unwrap()
        };
        assert_eq!(exact(Duration::from_secs(15)), Duration::from_secs(15));
        assert_eq!(exact(Duration::ZERO), SHORTEST);
        assert_eq!(exact(Duration::MAX), LONGEST);
        assert!(
            KeepAlive::new()
                .interval(Duration::MAX)
                .jitter(f64::NAN)
                .draw()
                >= Some(SHORTEST)
        );
        assert!(
            KeepAlive::new()
                .interval(Duration::from_secs(1))
                .jitter(9.0)
                .draw()
                >= Some(SHORTEST)
        );
        assert_eq!(KeepAlive::disabled().draw(), None);
    }
}
