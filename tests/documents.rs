//! The code blocks of the documents in `docs/`, as doc tests: `cargo test --package tower-push-tests --doc`.

#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../docs/architecture.md")]
    struct Architecture;
    #[doc = include_str!("../docs/clients.md")]
    struct Clients;
    #[doc = include_str!("../docs/hub-protocol.md")]
    struct HubProtocol;
    #[doc = include_str!("../docs/performance.md")]
    struct Performance;
    #[doc = include_str!("../docs/relay.md")]
    struct Relay;
    #[doc = include_str!("../docs/resume.md")]
    struct Resume;
    #[doc = include_str!("../docs/scaling.md")]
    struct Scaling;
    #[doc = include_str!("../docs/sources.md")]
    struct Sources;
    #[doc = include_str!("../docs/topics.md")]
    struct Topics;
    #[doc = include_str!("../docs/websocket.md")]
    struct WebSocket;
    #[doc = include_str!("../docs/deploying.md")]
    struct Deploying;
    #[doc = include_str!("../docs/security.md")]
    struct Security;
    #[doc = include_str!("../docs/server.md")]
    struct Server;
    #[doc = include_str!("../docs/durable-streams.md")]
    struct DurableStreams;
}
