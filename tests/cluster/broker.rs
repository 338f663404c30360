//! The broker of a cluster.

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value;
use testkit::{BreakableProxy, NatsServer, RedisProgram, RedisServer, wait_until};
use tokio::time::sleep;
use tower_push_nats::async_nats;

/// A running broker, which loses nothing when it is killed.
pub(crate) enum Broker {
    /// The nodes connect to the proxy.
    Redis(RedisServer, BreakableProxy),
    Nats(NatsServer),
}

/// The data that a broker had when it was copied.
pub(crate) enum DataCopy {
    /// The data of a replica that follows its master no more.
    Replica(RedisServer),
    /// The data that [`NatsServer::save_data`] has copied.
    Saved,
}

impl Broker {
    pub(crate) async fn start_redis() -> Self {
        let options = ["--appendonly", "yes", "--appendfsync", "always"];
        let server = RedisServer::start(RedisProgram::Redis, &options);
        let proxy = BreakableProxy::start(server.port()).await;
        Self::Redis(server, proxy)
    }

    pub(crate) fn start_nats() -> Self {
        Self::Nats(NatsServer::start(""))
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Redis(_, proxy) => format!("redis://{}/", proxy.address()),
            Self::Nats(server) => server.url(),
        }
    }

    /// Kills the server with SIGKILL.
    pub(crate) fn kill(&mut self) {
        match self {
            Self::Redis(server, _) => server.kill(),
            Self::Nats(server) => server.kill(),
        }
    }

    /// Starts the server again after [`kill`](Self::kill), with its data.
    pub(crate) fn start_again(&mut self) {
        match self {
            Self::Redis(server, _) => server.start_again(),
            Self::Nats(server) => server.start_again(),
        }
    }

    /// Stops the server with SIGSTOP until [`resume`](Self::resume).
    pub(crate) fn pause(&self) {
        match self {
            Self::Redis(server, _) => server.pause(),
            Self::Nats(server) => server.pause(),
        }
    }

    pub(crate) fn resume(&self) {
        match self {
            Self::Redis(server, _) => server.resume(),
            Self::Nats(server) => server.resume(),
        }
    }

    /// Deletes the feed with all events.
    pub(crate) async fn delete_feed(&self) {
        match self {
            Self::Redis(server, _) => _ = server.command(&["DEL", "events"]),
            Self::Nats(server) => {
                let answer = request(server, "$JS.API.STREAM.DELETE.events", "").await;
                assert!(answer.contains("\"success\":true"), "{answer}");
            }
        }
    }

    /// Removes all events but the newest one.
    pub(crate) async fn trim_feed(&self) {
        match self {
            Self::Redis(server, _) => _ = server.command(&["XTRIM", "events", "MAXLEN", "=", "1"]),
            Self::Nats(server) => {
                let subject = "$JS.API.STREAM.PURGE.events";
                let answer = request(server, subject, r#"{"keep":1}"#).await;
                assert!(answer.contains("\"success\":true"), "{answer}");
            }
        }
    }

    /// Copies the data. Meanwhile, a server of NATS is not there.
    pub(crate) async fn copy_data(&mut self) -> DataCopy {
        match self {
            Self::Redis(server, _) => {
                let replica = start_replica(server).await;
                replica.command(&["REPLICAOF", "NO", "ONE"]);
                DataCopy::Replica(replica)
            }
            Self::Nats(server) => {
                server.kill();
                server.save_data();
                server.start_again();
                DataCopy::Saved
            }
        }
    }

    /// Kills the server, and starts it again with the data that it had before: it has lost the events that it has acknowledged since.
    pub(crate) fn lose_events_since(&mut self, copy: &DataCopy) {
        self.kill();
        match (self, copy) {
            (Self::Redis(server, _), DataCopy::Replica(replica)) => {
                server.start_again_with_data_of(replica);
            }
            (Self::Nats(server), DataCopy::Saved) => {
                server.restore_data();
                server.start_again();
            }
            _ => panic!("a copy of another broker"),
        }
    }

    /// Makes a replica the master, and then the first master again. After each change, new connections reach the demoted master for the time `pause`,
    /// and open connections stay there. Panics for NATS, whose server has no replicas here.
    pub(crate) async fn demote_master_and_replica(&self, pause: Duration) {
        let Self::Redis(server, proxy) = self else {
            panic!("no replicas");
        };
        let replica = start_replica(server).await;
        for (old, new) in [(server, &replica), (&replica, server)] {
            let port = new.port().to_string();
            let fail_over = || old.try_command(&["FAILOVER", "TO", "127.0.0.1", &port]);
            // The master refuses until it has heard from the replica.
            wait_until(|| fail_over().is_ok(), || "the replica is not online").await;
            let is_demoted = || old.command(&["INFO", "replication"]).contains("role:slave");
            wait_until(is_demoted, || "no failover").await;
            sleep(pause).await;
            proxy.set_server_port(new.port());
            sleep(pause).await;
        }
    }

    /// Adds an event of another program whose id is far in the future. The clock of the server seems to go back then. Panics for NATS, where
    /// ids have no times.
    pub(crate) fn add_event_of_the_future(&self) {
        let Self::Redis(server, _) = self else {
            panic!("no times in ids");
        };
        server.command(&["XADD", "events", "99999999999999-*", "temperature", "hot"]);
    }

    /// Returns the numbers that the feed has.
    pub(crate) async fn numbers(&self) -> BTreeSet<u64> {
        match self {
            Self::Redis(server, _) => {
                let entries = server.command(&["XRANGE", "events", "-", "+"]);
                let lines = entries.lines().collect::<Vec<_>>();
                let fields = lines.windows(2).filter(|field| field[0] == "data");
                fields.filter_map(|field| field[1].parse().ok()).collect()
            }
            Self::Nats(server) => {
                let client = async_nats::connect(server.url()).await.unwrap();
                let request = async |subject: &'static str, payload: String| {
                    let answer = client.request(subject, payload.into()).await.unwrap();
                    String::from_utf8_lossy(&answer.payload).into_owned()
                };
                let info = request("$JS.API.STREAM.INFO.events", String::new()).await;
                let info: Value = serde_json::from_str(&info).unwrap();
                let sequence = |name: &str| info["state"][name].as_u64().unwrap();
                let mut numbers = BTreeSet::new();
                for sequence in sequence("first_seq")..=sequence("last_seq") {
                    let get = format!(r#"{{"seq":{sequence}}}"#);
                    let message = request("$JS.API.DIRECT.GET.events", get).await;
                    numbers.extend(message.parse::<u64>());
                }
                numbers
            }
        }
    }

    /// Adds an event as another program does.
    pub(crate) async fn add_event_of_other_program(&self) {
        match self {
            Self::Redis(server, _) => {
                _ = server.command(&["XADD", "events", "*", "temperature", "hot"]);
            }
            Self::Nats(server) => {
                let answer = request(server, "events", "hot").await;
                assert!(answer.contains("\"seq\""), "{answer}");
            }
        }
    }
}

/// Starts a replica, and waits until it has the data of its master.
async fn start_replica(server: &RedisServer) -> RedisServer {
    let replica = server.start_replica();
    let info = || replica.command(&["INFO", "replication"]);
    wait_until(|| info().contains("master_link_status:up"), info).await;
    replica
}

async fn request(server: &NatsServer, subject: &'static str, payload: &'static str) -> String {
    let client = async_nats::connect(server.url()).await.unwrap();
    let answer = client.request(subject, payload.into()).await.unwrap();
    String::from_utf8_lossy(&answer.payload).into_owned()
}
