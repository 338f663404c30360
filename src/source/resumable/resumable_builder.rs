use std::time::Duration;

use super::{
    Resumable,
    item_log::ItemLogLimits,
    resumable_config::{RestartPolicy, ResumableConfig},
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
                restart_policy: RestartPolicy::default(),
            },
        }
    }

    /// Sets how long a stream stays parked after its last client has disconnected. The default is 60 s.
    pub fn park_timeout(mut self, timeout: Duration) -> Self {
        self.config.park_timeout = timeout;
        self
    }

    /// Sets the maximum number of parked streams. The default is 10 000. With 0, a client can resume a stream only while another
    /// client reads it.
    pub fn max_parked_streams(mut self, streams: usize) -> Self {
        self.config.max_parked_streams = streams;
        self
    }

    /// Sets the maximum number of bytes of memory that the events in the logs of all parked streams take together. The default is 64 MiB. Bytes
    /// are counted as for [`max_bytes`](Self::max_bytes).
    pub fn max_parked_bytes(mut self, bytes: usize) -> Self {
        self.config.max_parked_bytes = bytes;
        self
    }

    /// Sets the maximum number of events and gaps in the log of a stream. The default is 256. 0 counts as 1.
    pub fn max_events(mut self, events: usize) -> Self {
        self.config.log_limits.max_entries = events;
        self
    }

    /// Sets the maximum number of bytes of memory that the events in the log of a stream take. The default is 256 KiB. The newest event stays in
    /// the log even if it alone exceeds the maximum.
    ///
    /// Payload, id, type and topic of an event count, and 384 bytes that an event takes besides, as in a
    /// [channel](crate::source::channel::ChannelBuilder::max_bytes).
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.config.log_limits.max_bytes = bytes;
        self
    }

    /// Sets whether a client gets a new stream after its stream has yielded `None`. By default the client does not, and is told that the source has
    /// [finished](RestartPolicy::Never).
    pub fn restart_policy(mut self, restart_policy: RestartPolicy) -> Self {
        self.config.restart_policy = restart_policy;
        self
    }

    /// Builds the `Resumable`.
    #[must_use]
    pub fn build(self) -> Resumable {
        Resumable::from_config(self.config)
    }
}
