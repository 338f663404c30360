use std::{fmt, time::Duration};

use async_nats::{ConnectOptions, ServerAddr};
use tower_push_proto::feed_backoff::FeedBackoff;

use crate::{error::Error, subject_mapping::decode_percent};

/// The servers of a NATS system, and how to connect to them.
///
/// ```
/// use tower_push_nats::{NatsServers, async_nats::ConnectOptions};
///
/// # fn main() -> Result<(), tower_push_nats::Error> {
/// let one = NatsServers::new("nats://127.0.0.1:4222")?;
/// // Several servers of one cluster; the client finds the others by itself.
/// let cluster = NatsServers::new("tls://a.example.com,tls://b.example.com")?;
/// // With a user, or with a token.
/// let user = NatsServers::new("nats://user:password@127.0.0.1")?;
/// let token = NatsServers::new("nats://token@127.0.0.1")?;
/// // With other options of the crate async-nats: certificates, nkeys, credentials files.
/// let options = ConnectOptions::new().add_root_certificates("ca.pem".into());
/// let own = NatsServers::new("tls://127.0.0.1")?.options(options);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct NatsServers {
    addresses: Vec<ServerAddr>,
    options: ConnectOptions,
}

/// The time after which the NATS client pings a silent server.
const PING_INTERVAL: Duration = Duration::from_secs(10);

impl NatsServers {
    /// Parses one address, or several with commas between them.
    ///
    /// The first address with a user sets the user and the password for all servers, in place of those of [`options`](Self::options). A user
    /// without a password is a token.
    ///
    /// # Errors
    /// [`Error::is_invalid_servers`] if an address is invalid.
    pub fn new(addresses: &str) -> Result<Self, Error> {
        let addresses: Result<Vec<ServerAddr>, _> = addresses
            .split(',')
            .map(|address| address.trim().parse())
            .collect();
        let addresses = addresses.map_err(Error::invalid_servers)?;
        if addresses.iter().any(|address| address.host().is_empty()) {
            return Err(Error::invalid_servers("an address has no host"));
        }
        Ok(Self {
            addresses,
            options: ConnectOptions::new(),
        })
    }

    /// Sets the options of the client, for example for TLS and for users.
    ///
    /// This crate replaces the values of these options: the time-outs, the interval of pings, the delays between attempts to connect, and the
    /// callback for events.
    pub fn options(mut self, options: ConnectOptions) -> Self {
        self.options = options;
        self
    }

    pub(crate) fn addresses(&self) -> Vec<ServerAddr> {
        self.addresses.clone()
    }

    /// Returns the options of one connection. `timeout` is the longest time for an attempt to connect.
    pub(crate) fn connect_options(&self, timeout: Duration) -> ConnectOptions {
        self.options_of_addresses()
            .connection_timeout(timeout)
            .ping_interval(PING_INTERVAL)
            // The connection has a time-out of its own for each request.
            .request_timeout(None)
            .max_reconnects(None)
            .reconnect_delay_callback(FeedBackoff::delay_of_attempt)
    }

    /// Returns the options, with the user of the addresses. The client does not use the user of an address.
    fn options_of_addresses(&self) -> ConnectOptions {
        let options = self.options.clone();
        let mut addresses = self.addresses.iter();
        let Some(address) = addresses.find(|address| address.has_user_pass()) else {
            return options;
        };
        let decode = |text: Option<&str>| text.and_then(decode_percent);
        let user = decode(address.username()).unwrap_or_default();
        match decode(address.password()) {
            Some(password) => options.user_and_password(user, password),
            None => options.token(user),
        }
    }
}

impl fmt::Debug for NatsServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An address can have a password.
        let address = |address: &ServerAddr| format!("{}:{}", address.host(), address.port());
        let addresses: Vec<_> = self.addresses.iter().map(address).collect();
        f.debug_struct("NatsServers")
            .field("addresses", &addresses)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed() {
        let servers = NatsServers::new("nats://user:secret@127.0.0.1, tls://b:5222").unwrap();
        let text = format!("{servers:?}");
        assert!(
            text.contains("127.0.0.1:4222") && text.contains("b:5222"),
            "{text}"
        );
        assert!(!text.contains("secret"), "{text}");
        for invalid in [
            "",
            "a b",
            "http://me:secret@127.0.0.1",
            "nats://me:secret@a:port",
            "nats://me:secret@",
            "nats://a,,",
        ] {
            let error = NatsServers::new(invalid).unwrap_err();
            assert!(error.is_invalid_servers(), "{invalid}");
            let text = format!("{error} {error:?}");
            assert!(!text.contains("secret"), "{text}");
        }
    }
}
