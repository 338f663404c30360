//! The broker of a cluster.

use testkit::{NatsServer, RedisProgram, RedisServer};
use tower_push_nats::async_nats;

/// A running broker, which loses nothing when it is killed.
pub(crate) enum Broker {
    Redis(RedisServer),
    Nats(NatsServer),
}

impl Broker {
    pub(crate) fn start_redis() -> Self {
        let options = ["--appendonly", "yes", "--appendfsync", "always"];
        Self::Redis(RedisServer::start(RedisProgram::Redis, &options))
    }

    pub(crate) fn start_nats() -> Self {
        Self::Nats(NatsServer::start(""))
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Redis(server) => server.url(),
            Self::Nats(server) => server.url(),
        }
    }

    /// Kills the server with SIGKILL.
    pub(crate) fn kill(&mut self) {
        match self {
            Self::Redis(server) => server.kill(),
            Self::Nats(server) => server.kill(),
        }
    }

    /// Starts the server again after [`kill`](Self::kill), with its data.
    pub(crate) fn start_again(&mut self) {
        match self {
            Self::Redis(server) => server.start_again(),
            Self::Nats(server) => server.start_again(),
        }
    }

    /// Stops the server with SIGSTOP until [`resume`](Self::resume).
    pub(crate) fn pause(&self) {
        match self {
            Self::Redis(server) => server.pause(),
            Self::Nats(server) => server.pause(),
        }
    }

    pub(crate) fn resume(&self) {
        match self {
            Self::Redis(server) => server.resume(),
            Self::Nats(server) => server.resume(),
        }
    }

    /// Deletes the feed with all events.
    pub(crate) async fn delete_feed(&self) {
        match self {
            Self::Redis(server) => _ = server.command(&["DEL", "events"]),
            Self::Nats(server) => {
                let answer = request(server, "$JS.API.STREAM.DELETE.events", "").await;
                assert!(answer.contains("\"success\":true"), "{answer}");
            }
        }
    }

    /// Removes all events but the newest one.
    pub(crate) async fn trim_feed(&self) {
        match self {
            Self::Redis(server) => _ = server.command(&["XTRIM", "events", "MAXLEN", "=", "1"]),
            Self::Nats(server) => {
                let subject = "$JS.API.STREAM.PURGE.events";
                let answer = request(server, subject, r#"{"keep":1}"#).await;
                assert!(answer.contains("\"success\":true"), "{answer}");
            }
        }
    }

    /// Adds an event as another program does.
    pub(crate) async fn add_event_of_other_program(&self) {
        match self {
            Self::Redis(server) => {
                _ = server.command(&["XADD", "events", "*", "temperature", "hot"]);
            }
            Self::Nats(server) => {
                let answer = request(server, "events", "hot").await;
                assert!(answer.contains("\"seq\""), "{answer}");
            }
        }
    }
}

async fn request(server: &NatsServer, subject: &'static str, payload: &'static str) -> String {
    let client = async_nats::connect(server.url()).await.unwrap();
    let answer = client.request(subject, payload.into()).await.unwrap();
    String::from_utf8_lossy(&answer.payload).into_owned()
}
