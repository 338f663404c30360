use std::fmt;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

use crate::Error;

/// The servers that have the stream: one server, a group with Sentinels, or a cluster.
///
/// All addresses are URLs (`redis://user:password@host:port/db`, or `rediss://` for TLS) or a [`redis::ConnectionInfo`], which can hold
/// certificates.
///
/// ```
/// use tower_push_redis::RedisServers;
///
/// let one = RedisServers::single("redis://127.0.0.1/")?;
/// let group = RedisServers::sentinel("mymaster", ["redis://10.0.0.1:26379", "redis://10.0.0.2:26379"], "redis://app:secret@master/")?;
/// let cluster = RedisServers::cluster(["redis://10.0.0.1:6379", "redis://10.0.0.2:6379"])?;
/// # Ok::<(), tower_push_redis::Error>(())
/// ```
#[derive(Clone)]
pub struct RedisServers {
    pub(crate) topology: Topology,
}

#[derive(Clone)]
pub(crate) enum Topology {
    Single(ConnectionInfo),
    Sentinel {
        group: String,
        sentinels: Vec<ConnectionInfo>,
        /// The options of a connection to the master, whose address the Sentinels know.
        master: ConnectionInfo,
    },
    Cluster {
        seeds: Vec<ConnectionInfo>,
    },
}

impl RedisServers {
    /// Makes the address of one server.
    ///
    /// # Errors
    /// An [`Error`] if the address is invalid.
    pub fn single(server: impl IntoConnectionInfo) -> Result<Self, Error> {
        Ok(Topology::Single(connection_info(server)?).into())
    }

    /// Makes the addresses of the Sentinels that watch `group`. The Sentinels are asked for the master at each connect, in this order.
    ///
    /// `master` says how to connect to the master: its user, password, database, TLS and certificates are used, and its host and port are
    /// replaced.
    ///
    /// # Errors
    /// An [`Error`] if an address is invalid.
    pub fn sentinel<T: IntoConnectionInfo>(
        group: impl Into<String>,
        sentinels: impl IntoIterator<Item = T>,
        master: impl IntoConnectionInfo,
    ) -> Result<Self, Error> {
        let sentinels = sentinels.into_iter().map(connection_info);
        Ok(Topology::Sentinel {
            group: group.into(),
            sentinels: sentinels.collect::<Result<_, _>>()?,
            master: connection_info(master)?,
        }
        .into())
    }

    /// Makes the addresses of a cluster from those of some of its nodes. These nodes are asked, in this order, for the node that has the
    /// stream. That node is contacted with the same user, password, TLS and certificates.
    ///
    /// A stream is on one node of a cluster. To use several nodes, use several streams.
    ///
    /// # Errors
    /// An [`Error`] if an address is invalid.
    pub fn cluster<T: IntoConnectionInfo>(
        seeds: impl IntoIterator<Item = T>,
    ) -> Result<Self, Error> {
        let seeds = seeds.into_iter().map(connection_info);
        Ok(Topology::Cluster {
            seeds: seeds.collect::<Result<_, _>>()?,
        }
        .into())
    }
}

impl From<Topology> for RedisServers {
    fn from(topology: Topology) -> Self {
        Self { topology }
    }
}

fn connection_info(server: impl IntoConnectionInfo) -> Result<ConnectionInfo, Error> {
    let info = server.into_connection_info()?;
    // Without `TCP_NODELAY`, TCP may hold a command back until the server has acknowledged the command before it.
    let tcp_settings = info.tcp_settings().clone().set_nodelay(true);
    Ok(info.set_tcp_settings(tcp_settings))
}

/// Returns how to connect to another host and port, with the same user, password and TLS.
pub(crate) fn with_address(info: &ConnectionInfo, host: String, port: u16) -> ConnectionInfo {
    let address = match info.addr() {
        ConnectionAddr::TcpTls {
            insecure,
            tls_params,
            ..
        } => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => ConnectionAddr::Tcp(host, port),
    };
    info.clone().set_addr(address)
}

/// Returns the host of an address. Returns an empty text for a Unix socket.
pub(crate) fn host_of(info: &ConnectionInfo) -> String {
    match info.addr() {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.clone(),
        _ => String::new(),
    }
}

/// Writes addresses without users and passwords.
impl fmt::Debug for RedisServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses = |infos: &[ConnectionInfo]| {
            let addresses = infos.iter().map(|info| info.addr().to_string());
            addresses.collect::<Vec<_>>().join(", ")
        };
        match &self.topology {
            Topology::Single(info) => write!(f, "Single({})", info.addr()),
            Topology::Sentinel {
                group, sentinels, ..
            } => write!(f, "Sentinel({group}: {})", addresses(sentinels)),
            Topology::Cluster { seeds } => write!(f, "Cluster({})", addresses(seeds)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_is_not_shown() {
        for server in [
            "redis://me:secret@host/",
            "rediss://me:secret@host/?token=secret",
            "http://me:secret@host/",
            "redis://me:secret@host:port/",
            "redis://me:secret@host/database",
            "redis://me:secret@",
            "unix:/socket?pass=secret&db=x",
        ] {
            let text = match RedisServers::single(server) {
                Ok(servers) => format!("{servers:?}"),
                Err(error) => format!("{error} {error:?}"),
            };
            assert!(!text.contains("secret"), "{server}: {text}");
        }
    }
}
