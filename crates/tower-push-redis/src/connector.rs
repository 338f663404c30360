use std::{sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, RedisResult, Value, aio::MultiplexedConnection,
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use tower_push_proto::random;

use crate::{
    error::Error,
    redis_servers::{RedisServers, Topology, host_of, with_address},
};

/// Connects to the master that has a stream.
#[derive(Debug)]
pub(crate) struct Connector {
    servers: RedisServers,
    key: Arc<str>,
    /// The longest time for one connect, and for the response to a command that does not block.
    timeout: Duration,
}

/// The number of redirections that a connect to a cluster follows.
const MAX_REDIRECTIONS: usize = 5;

impl Connector {
    pub(crate) fn new(servers: RedisServers, key: Arc<str>, timeout: Duration) -> Self {
        Self {
            servers,
            key,
            timeout,
        }
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Runs a future that is one command or a pipeline, with a limit on the time that it takes. After an error, the caller drops the
    /// connection.
    pub(crate) async fn with_timeout<T, E: Into<Error>>(
        &self,
        command: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Error> {
        let result = timeout(self.timeout, command).await;
        result.map_err(|_| Error::timeout())?.map_err(Into::into)
    }

    /// Connects to the master. Checks that the server is a master, and that the key holds a stream or nothing.
    pub(crate) async fn connect(&self) -> Result<MultiplexedConnection, Error> {
        let connect = async {
            match &self.servers.topology {
                Topology::Single(info) => self.connect_to(info).await,
                Topology::Sentinel {
                    group,
                    sentinels,
                    master,
                } => self.connect_with_sentinel(group, sentinels, master).await,
                Topology::Cluster { seeds } => self.connect_to_cluster(seeds).await,
            }
        };
        let connected = connect.await;
        connected.map_err(|error| error.with_may_have_run(false))
    }

    async fn connect_to(&self, info: &ConnectionInfo) -> Result<MultiplexedConnection, Error> {
        let mut connection = self.open(info).await?;
        self.check_type(&mut connection).await?;
        self.check_role(&mut connection).await?;
        self.check_transactions(&mut connection).await?;
        Ok(connection)
    }

    /// Opens a connection without a response time-out: the reader's commands block, and the others have [`with_timeout`](Self::with_timeout).
    async fn open(&self, info: &ConnectionInfo) -> Result<MultiplexedConnection, Error> {
        let client = Client::open(info.clone())?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(None);
        self.with_timeout(client.get_multiplexed_async_connection_with_config(&config))
            .await
    }

    /// Checks what the key holds. A node of a cluster that does not have the key answers with a redirection.
    async fn check_type(&self, connection: &mut MultiplexedConnection) -> Result<(), Error> {
        let command = redis::cmd("TYPE").arg(&*self.key).to_owned();
        let name: String = self.with_timeout(command.query_async(connection)).await?;
        match name.as_str() {
            "stream" | "none" => Ok(()),
            _ => Err(Error::wrong_type()),
        }
    }

    /// Checks that the user may run transactions. If the user may not, the client crate does not say so when it runs one.
    async fn check_transactions(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<(), Error> {
        let mut commands = redis::pipe();
        commands.cmd("MULTI").cmd("EXEC").ignore_errors();
        let responses = self.with_timeout(commands.query_async(connection));
        let responses: Vec<RedisResult<Value>> = responses.await?;
        for response in responses {
            response?;
        }
        Ok(())
    }

    /// Returns the server's limit for the bytes of one value, if the user may ask for it.
    pub(crate) async fn max_value_bytes(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<Option<usize>, Error> {
        let mut command = redis::cmd("CONFIG");
        command.arg("GET").arg("proto-max-bulk-len");
        let answer = self.with_timeout(command.query_async::<Vec<String>>(connection));
        match answer.await {
            Ok(answer) => Ok(answer.get(1).and_then(|value| value.parse().ok())),
            Err(error) if error.is_unavailable() => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Checks that the server is a master. A replica may lag, and is emptied when it follows another master.
    pub(crate) async fn check_role(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<(), Error> {
        let command = redis::cmd("ROLE");
        let role: Value = self.with_timeout(command.query_async(connection)).await?;
        match is_master(&role) {
            true => Ok(()),
            false => Err(Error::not_master()),
        }
    }

    async fn connect_with_sentinel(
        &self,
        group: &str,
        sentinels: &[ConnectionInfo],
        master: &ConnectionInfo,
    ) -> Result<MultiplexedConnection, Error> {
        let mut last_error = Error::unavailable();
        for sentinel in sentinels {
            let connected = async {
                let (host, port) = self.master_address(group, sentinel).await?;
                self.connect_to(&with_address(master, host, port)).await
            };
            match connected.await {
                Ok(connection) => return Ok(connection),
                Err(error) => last_error = error,
            }
        }
        Err(last_error)
    }

    async fn master_address(
        &self,
        group: &str,
        sentinel: &ConnectionInfo,
    ) -> Result<(String, u16), Error> {
        let mut connection = self.open(sentinel).await?;
        let mut command = redis::cmd("SENTINEL");
        command.arg("GET-MASTER-ADDR-BY-NAME").arg(group);
        let address: Option<(String, u16)> = self
            .with_timeout(command.query_async(&mut connection))
            .await?;
        address.ok_or_else(Error::unavailable)
    }

    async fn connect_to_cluster(
        &self,
        seeds: &[ConnectionInfo],
    ) -> Result<MultiplexedConnection, Error> {
        let mut last_error = Error::unavailable();
        for seed in seeds {
            match self.follow_redirections(seed).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last_error = error,
            }
        }
        Err(last_error)
    }

    async fn follow_redirections(
        &self,
        seed: &ConnectionInfo,
    ) -> Result<MultiplexedConnection, Error> {
        let mut node = seed.clone();
        for _ in 0..MAX_REDIRECTIONS {
            let error = match self.connect_to(&node).await {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            let Some((host, port)) = error.redirection() else {
                return Err(error);
            };
            // A node that does not know its own host leaves the host out.
            let host = match host.is_empty() {
                true => host_of(&node),
                false => host,
            };
            node = with_address(seed, host, port);
        }
        Err(Error::unavailable())
    }
}

/// Returns whether the response of `ROLE` is a master's.
pub(crate) fn is_master(role: &Value) -> bool {
    let Value::Array(parts) = role else {
        return false;
    };
    let name = parts.first().map(redis::from_redis_value_ref::<String>);
    matches!(name, Some(Ok(name)) if name == "master")
}

/// Returns a key that is on the node of a stream in a cluster: the stream's key, a colon and `name`.
pub(crate) fn key_beside_stream(stream: &str, name: &str) -> String {
    match hash_tag(stream) {
        Some(_) => format!("{stream}:{name}"),
        None if !stream.contains('}') => format!("{{{stream}}}:{name}"),
        // The key between braces would be another one, which ends at the first `}`. So a number with the same slot is between the braces.
        None => {
            let slot = slot(stream);
            let mut numbers = (0_u32..).map(|number| number.to_string());
            let tag = numbers.find(|tag| slot_of_tag(tag) == slot);
            format!("{{{}}}{stream}:{name}", tag.unwrap_or_default())
        }
    }
}

/// Returns the part of a key, between `{` and `}`, that alone determines the node of a cluster.
fn hash_tag(key: &str) -> Option<&str> {
    let (tag, _) = key.split_once('{')?.1.split_once('}')?;
    (!tag.is_empty()).then_some(tag)
}

/// Returns the slot of a key: the number by which a cluster finds the key's node.
fn slot(key: &str) -> u16 {
    slot_of_tag(hash_tag(key).unwrap_or(key))
}

/// Computes CRC-16/XMODEM, as Redis Cluster does.
fn slot_of_tag(tag: &str) -> u16 {
    const SLOTS: u16 = 16384;
    let crc = tag.bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| match crc & 0x8000 {
            0 => crc << 1,
            _ => crc << 1 ^ 0x1021,
        })
    });
    crc % SLOTS
}

/// A connection that is made when it is needed, and that all callers share.
#[derive(Debug)]
pub(crate) struct SharedConnection {
    connector: Arc<Connector>,
    state: Mutex<SharedConnectionState>,
}

#[derive(Debug, Default)]
struct SharedConnectionState {
    connection: Option<MultiplexedConnection>,
    /// The time at which a caller last asked for the connection.
    used_at: Option<Instant>,
    /// The number of connections that were discarded. This is the number of the present or next connection.
    discarded: u64,
    /// The error of the last attempt to connect, and until when callers get it without another attempt.
    failure: Option<(Error, Instant)>,
}

/// A clone of a [`SharedConnection`]'s connection, with the connection's number.
pub(crate) struct NumberedConnection {
    pub(crate) connection: MultiplexedConnection,
    /// The number of the connection: how many connections were discarded before it.
    pub(crate) number: u64,
}

/// The least time after a failed attempt to connect in which no other attempt is made. The time is random.
const MIN_FAILURE_TIME: Duration = Duration::from_millis(50);
const MAX_FAILURE_TIME: Duration = Duration::from_millis(250);

/// The time after which an unused connection is checked before a caller gets it. A server or a proxy may have closed an unused connection. A
/// command on a closed connection would fail with an error that leaves open whether the server has got the command.
const MAX_UNCHECKED_IDLE_TIME: Duration = Duration::from_secs(1);

impl SharedConnection {
    pub(crate) fn new(connector: Arc<Connector>) -> Self {
        Self {
            connector,
            state: Mutex::default(),
        }
    }

    pub(crate) fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Returns the connection, and makes it first if there is none. The caller runs one command with [`run_command`](Self::run_command).
    pub(crate) async fn get_or_connect(&self) -> Result<NumberedConnection, Error> {
        let mut state = self.state.lock().await;
        let used_at = state.used_at.replace(Instant::now());
        if let Some(mut connection) = state.connection.clone() {
            let is_idle = used_at.is_none_or(|time| time.elapsed() >= MAX_UNCHECKED_IDLE_TIME);
            if !is_idle || self.connector.check_role(&mut connection).await.is_ok() {
                return Ok(NumberedConnection {
                    connection,
                    number: state.discarded,
                });
            }
            state.connection = None;
            state.discarded += 1;
        }
        if let Some((error, until)) = &state.failure
            && Instant::now() < *until
        {
            return Err(error.clone());
        }
        match self.connector.connect().await {
            Ok(connection) => {
                state.connection = Some(connection.clone());
                state.failure = None;
                Ok(NumberedConnection {
                    connection,
                    number: state.discarded,
                })
            }
            Err(error) => {
                let delay = random::duration_between(MIN_FAILURE_TIME, MAX_FAILURE_TIME);
                state.failure = Some((error.clone(), Instant::now() + delay));
                Err(error)
            }
        }
    }

    /// Runs a command on the connection with this number. After an error for which a new connection can help, the connection is discarded.
    pub(crate) async fn run_command<T, E: Into<Error>>(
        &self,
        connection_number: u64,
        command: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Error> {
        let result = self.connector.with_timeout(command).await;
        if result.as_ref().is_err_and(Error::needs_new_connection) {
            self.discard(connection_number).await;
        }
        result
    }

    /// Discards the connection, so that the next caller gets a new one.
    pub(crate) async fn reconnect(&self) {
        let mut state = self.state.lock().await;
        state.connection = None;
        state.discarded += 1;
    }

    /// Discards the connection with this number, unless it is discarded already.
    async fn discard(&self, number: u64) {
        let mut state = self.state.lock().await;
        if state.discarded == number {
            state.connection = None;
            state.discarded += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_beside_stream_has_its_slot() {
        // The value of the specification of Redis Cluster: 0x31C3.
        assert_eq!(slot("123456789"), 0x31c3);
        assert_eq!(slot("a{user}b"), slot("user"));
        for stream in [
            "events", "{app}:e", "a}b", "a{}b", "{}", "}{", "a{b", "}{b}",
        ] {
            let key = key_beside_stream(stream, "once:k");
            assert_eq!(slot(&key), slot(stream), "{key}");
            assert!(key.ends_with(":once:k") && key != key_beside_stream("events}", "once:k"));
        }
        assert_ne!(
            key_beside_stream("a}b", "x"),
            key_beside_stream("a{}b", "x")
        );
    }
}
