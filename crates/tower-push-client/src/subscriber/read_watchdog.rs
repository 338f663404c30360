use std::time::{Duration, Instant};

/// Notices that a server has gone silent.
///
/// With a timeout from the configuration, the deadline always runs. Without this timeout, the watchdog learns how often the server sends
/// heartbeats, and allows 2.5 times the longest interval. A server that sends no heartbeats may be silent for any time.
#[derive(Clone, Debug)]
pub(crate) struct ReadWatchdog {
    timeout: Option<Duration>,
    /// The longest time between an input and a heartbeat that directly followed it.
    heartbeat_interval: Option<Duration>,
    /// The time at which the last input arrived, or at which the connection was established.
    last_input: Instant,
    /// The silence before the last input. `None` if the input was the first of its connection.
    last_silence: Option<Duration>,
    has_input: bool,
}

/// The shortest learned deadline: 10 s.
const MIN_LEARNED_TIMEOUT: Duration = Duration::from_secs(10);

/// Two inputs that follow each other faster than this do not count as an interval of heartbeats: 1 s.
const MIN_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// The longest interval that is learned: 10 min.
const MAX_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(600);

impl ReadWatchdog {
    pub(crate) fn new(timeout: Option<Duration>, now: Instant) -> Self {
        Self {
            timeout,
            heartbeat_interval: None,
            last_input: now,
            last_silence: None,
            has_input: false,
        }
    }

    /// Begins a new connection. The learned interval is kept, because the next connection usually leads to the same server.
    pub(crate) fn on_connected(&mut self, now: Instant) {
        self.last_input = now;
        self.last_silence = None;
        self.has_input = false;
    }

    pub(crate) fn on_input(&mut self, now: Instant) {
        let silence = now.saturating_duration_since(self.last_input);
        self.last_silence = self.has_input.then_some(silence);
        self.last_input = now;
        self.has_input = true;
    }

    /// Learns that the last input was a heartbeat.
    pub(crate) fn on_heartbeat(&mut self) {
        if let Some(silence) = self.last_silence.take() {
            if silence >= MIN_HEARTBEAT_INTERVAL {
                let interval = silence.min(MAX_HEARTBEAT_INTERVAL);
                self.heartbeat_interval = self.heartbeat_interval.max(Some(interval));
            }
        }
    }

    /// Returns when the connection counts as dead unless input arrives before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let learned = || {
            let interval = self.heartbeat_interval?;
            Some(interval.mul_f32(2.5).max(MIN_LEARNED_TIMEOUT))
        };
        Some(self.last_input + self.timeout.or_else(learned)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn deadline_is_learned_from_heartbeats() {
        let start = Instant::now();
        let mut watchdog = ReadWatchdog::new(None, start);
        watchdog.on_connected(start);
        // The opening of a stream shows nothing about its heartbeats.
        watchdog.on_input(start + 3 * SECOND);
        watchdog.on_heartbeat();
        assert_eq!(watchdog.deadline(), None);

        watchdog.on_input(start + 18 * SECOND);
        watchdog.on_heartbeat();
        let timeout = Duration::from_millis(37_500);
        assert_eq!(watchdog.deadline(), Some(start + 18 * SECOND + timeout));

        // The next connection knows the interval.
        watchdog.on_connected(start + 100 * SECOND);
        assert_eq!(watchdog.deadline(), Some(start + 100 * SECOND + timeout));
    }

    #[test]
    fn configured_timeout_always_runs() {
        let start = Instant::now();
        let watchdog = ReadWatchdog::new(Some(SECOND), start);
        assert_eq!(watchdog.deadline(), Some(start + SECOND));
    }
}
