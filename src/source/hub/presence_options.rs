use std::time::Duration;

/// The settings by which a hub lists the members of its topics: see [`HubBuilder::presence`](super::HubBuilder::presence).
///
/// ```
/// use std::time::Duration;
/// use tower_push::{Hub, source::hub::PresenceOptions};
///
/// let presence = PresenceOptions::new().grace(Duration::from_secs(30)).topic_suffix("/members");
/// let hub = Hub::builder().presence(presence).build();
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct PresenceOptions {
    pub(super) grace: Duration,
    pub(super) max_members: usize,
    pub(super) max_total_members: usize,
    pub(super) max_member_len: usize,
    pub(super) topic_suffix: Box<str>,
    pub(super) node_timeout: Duration,
}

impl PresenceOptions {
    /// Creates the options of a hub's default: a grace time of 10 s, 1000 members of a topic, 100 000 members of all topics, 1 KiB for each
    /// member, events on the topic itself, and a node timeout of 30 s.
    pub fn new() -> Self {
        Self {
            grace: Duration::from_secs(10),
            max_members: 1000,
            max_total_members: 100_000,
            max_member_len: 1024,
            topic_suffix: "".into(),
            node_timeout: Duration::from_secs(30),
        }
    }

    /// Sets how long a member without a connection remains a member. The default is 10 s. A client that reconnects or polls again within
    /// this time does not leave. With zero, the member leaves at once.
    pub fn grace(mut self, time: Duration) -> Self {
        self.grace = time;
        self
    }

    /// Sets the maximum number of members of a topic. The default is 1000. A further member is refused with the status 503.
    pub fn max_members(mut self, members: usize) -> Self {
        self.max_members = members;
        self
    }

    /// Sets the maximum number of members of all topics of the hub together. The default is 100 000. A further member is refused with the
    /// status 503.
    pub fn max_total_members(mut self, members: usize) -> Self {
        self.max_total_members = members;
        self
    }

    /// Sets the maximum number of bytes of a member's key and its value in JSON together. The default is 1024. A longer member is refused with
    /// the status 400.
    pub fn max_member_len(mut self, bytes: usize) -> Self {
        self.max_member_len = bytes;
        self
    }

    /// Publishes the events of a topic's members to another topic, whose name has this suffix. By default, the suffix is empty, and the events
    /// are in the topic itself.
    ///
    /// With `/members`, the members of `room/1` join and leave in the topic `room/1/members`. This topic has a history of its own, so that
    /// members who come and go do not replace the messages in the history of `room/1`.
    pub fn topic_suffix(mut self, suffix: impl Into<Box<str>>) -> Self {
        self.topic_suffix = suffix.into();
        self
    }

    /// Sets the time after which the members of an unreachable node leave, for hubs with a [`PresenceBackend`](super::PresenceBackend). The
    /// default is 30 s. A time below 1 s is raised to 1 s. All nodes of a hub must have the same time.
    ///
    /// A node with members makes at least three requests to the broker within this time, so that the broker knows that the node is alive. A member
    /// that reconnects to another node within this time does not leave.
    pub fn node_timeout(mut self, timeout: Duration) -> Self {
        self.node_timeout = timeout.max(Duration::from_secs(1));
        self
    }
}

impl Default for PresenceOptions {
    fn default() -> Self {
        Self::new()
    }
}
