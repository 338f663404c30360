use std::{sync::Arc, time::Duration};

use tower_push_proto::sse::SseConfig;
#[cfg(feature = "websocket")]
use tower_push_proto::websocket::MessageFormat;

use crate::transport::Transport;

/// The limits, times and transports of a [`Subscriber`](super::Subscriber). [`Client`](crate::Client) has a setter for each, and
/// [`Client::subscriber_config`](crate::Client::subscriber_config) returns what was set.
#[derive(Clone, Debug)]
pub struct SubscriberConfig {
    pub(crate) transports: Arc<[Transport]>,
    pub(crate) max_event_len: usize,
    pub(crate) base_delay: Duration,
    pub(crate) max_delay: Duration,
    pub(crate) response_timeout: Duration,
    pub(crate) poll_timeout: Duration,
    pub(crate) first_byte_timeout: Duration,
    pub(crate) read_timeout: Option<Duration>,
    pub(crate) max_redirects: u32,
    pub(crate) is_data_only: bool,
    pub(crate) reconnects: bool,
    /// Whether the HTTP client can send requests to URLs of the scheme `https`.
    pub(crate) has_tls: bool,
    pub(crate) sse: SseConfig,
    #[cfg(feature = "websocket")]
    pub(crate) subprotocols: Vec<(String, MessageFormat)>,
    #[cfg(feature = "deflate")]
    pub(crate) deflate: bool,
}

impl SubscriberConfig {
    /// Makes the configuration with the defaults, which the setters of [`Client`](crate::Client) document.
    pub fn new() -> Self {
        Self {
            transports: [Transport::Sse, Transport::LongPoll].into(),
            max_event_len: 4 * 1024 * 1024,
            base_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(30),
            response_timeout: Duration::from_secs(30),
            poll_timeout: Duration::from_secs(90),
            first_byte_timeout: Duration::from_secs(10),
            read_timeout: None,
            max_redirects: 10,
            is_data_only: false,
            reconnects: true,
            has_tls: true,
            sse: SseConfig::new(),
            #[cfg(feature = "websocket")]
            subprotocols: vec![("json.tower-push".to_owned(), MessageFormat::Json)],
            #[cfg(feature = "deflate")]
            deflate: false,
        }
    }
}

impl Default for SubscriberConfig {
    fn default() -> Self {
        Self::new()
    }
}
