use std::time::Duration;

use super::{Channel, LagPolicy};
use crate::source::{
    StartPosition,
    log::{Epoch, ReplayLog, ReplayLogConfig},
};

/// The configuration of a [`Channel`], from [`Channel::builder`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing unless it is built"]
pub struct ChannelBuilder {
    log: ReplayLogConfig,
    start: StartPosition,
}

impl ChannelBuilder {
    pub(super) fn new() -> Self {
        Self {
            log: ReplayLogConfig::default(),
            start: StartPosition::default(),
        }
    }

    /// Sets the maximum number of events in the log. The default is 1024. 0 is raised to 1.
    pub fn max_events(mut self, events: usize) -> Self {
        self.log.limits.max_events = events.max(1);
        self
    }

    /// Sets the maximum number of bytes of memory that the events in the log take. The default is 8 MiB. The newest event stays in the log even
    /// if it alone exceeds the maximum.
    ///
    /// Payload, id, type and topic of an event count, and 384 bytes that an event takes besides. So small events are bounded, too. If the channel
    /// [conflates](LagPolicy::Conflate), the event's key counts twice, with 32 bytes each time.
    ///
    /// The event's encoding for each transport in use, which takes the event's size again and about 100 bytes, does not count. The joined
    /// encodings of events that were sent together, of up to 256 KiB of events, do not count, either. In a channel
    /// that conflates, the newest events of keys that the log no longer has may take the maximum once more.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.log.limits.max_bytes = bytes;
        self
    }

    /// Sets the age after which an event is removed from the log. By default, age does not remove events. Ages are measured with
    /// tokio's clock.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.log.limits.max_age = Some(age);
        self
    }

    /// Sets what the channel does with subscribers that are too slow. By default, a subscriber that is too slow gets a
    /// [gap](LagPolicy::Gap).
    pub fn lag_policy(mut self, lag_policy: LagPolicy) -> Self {
        self.log.lag_policy = lag_policy;
        self
    }

    /// Sets the time for which the channel may hold back events, so that subscribers get them together. The default is zero: each event is sent at
    /// once. A time above 10 s is shortened to 10 s.
    ///
    /// If no event was sent for the time `window`, the next event is sent at once. The events of the following `window` are sent together when the
    /// window ends, and the next window begins. So a channel with many publications per second causes at most `1 / window` writes per second for
    /// each subscriber, and an event is late by at most `window` and a millisecond. Ids, gaps and counts do not change.
    ///
    /// A client that subscribes, also with a long poll, gets all events that were published before its request at once. The channel also sends the
    /// events that it holds back before the window ends: when it is [closed](Channel::close), when a guard ends the stream, and when the events
    /// held back reach half of the log's limits.
    ///
    /// The subscribers must run in a tokio runtime with timers (`enable_time`).
    pub fn flush_window(mut self, window: Duration) -> Self {
        self.log.flush_window = window;
        self
    }

    /// Sets where subscribers without a cursor begin: by default with the [next event](StartPosition::Now).
    ///
    /// The start is no access control: a client can send a cursor, even an unreadable one, to get older events from the log.
    pub fn start(mut self, start: StartPosition) -> Self {
        self.start = start;
        self
    }

    /// Builds the channel.
    #[must_use]
    pub fn build(self) -> Channel {
        let log = ReplayLog::new(self.log, Epoch::random(), None);
        Channel::from_log(log, self.start)
    }
}
