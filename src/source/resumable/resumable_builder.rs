use std::time::Duration;

use super::{
    Resumable,
    item_log::ItemLogLimits,
    resumable_config::{EndPolicy, ResumableConfig},
};

/// The configuration of a [`Resumable`], from [`Resumable::builder`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing unless it is built"]
pub struct ResumableBuilder {
    config: ResumableConfig,
}

impl ResumableBuilder {
    pub(super) fn new() -> Self {
        Self {
            config: ResumableConfig {
                park_timeout: Duration::from_secs(60),
                max_parked_streams: 10_000,
                max_parked_bytes: 64 << 20,
                log_limits: ItemLogLimits {
                    max_entries: 256,
                    max_bytes: 256 << 10,
                },
                end_policy: EndPolicy::default(),
            },
        }
    }

    /// Sets how long a stream stays parked after its last client has left: 60 s by default.
    pub fn park_timeout(mut self, timeout: Duration) -> Self {
        self.config.park_timeout = timeout;
        self
    }

    /// Sets how many streams are parked at most: 10 000 by default. With 0, a client can resume a stream only while another client
    /// reads it.
    pub fn max_parked_streams(mut self, streams: usize) -> Self {
        self.config.max_parked_streams = streams;
        self
    }

    /// Sets how many bytes of payloads, ids, types and topics the logs of all parked streams together hold at most: 64 MiB by
    /// default.
    pub fn max_parked_bytes(mut self, bytes: usize) -> Self {
        self.config.max_parked_bytes = bytes;
        self
    }

    /// Sets how many events and gaps the log of a stream holds at most: 256 by default, at least 1.
    pub fn max_events(mut self, events: usize) -> Self {
        self.config.log_limits.max_entries = events;
        self
    }

    /// Sets how many bytes of payloads, ids, types and topics the log of a stream holds at most: 256 KiB by default. The newest
    /// event is held whatever its size.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.config.log_limits.max_bytes = bytes;
        self
    }

    /// Sets what it means for clients that their stream yields `None`: by default that the source has
    /// [finished](EndPolicy::Finish).
    pub fn end_policy(mut self, end_policy: EndPolicy) -> Self {
        self.config.end_policy = end_policy;
        self
    }

    /// Builds the `Resumable`.
    #[must_use]
    pub fn build(self) -> Resumable {
        Resumable::from_config(self.config)
    }
}
