//! Shared code of the tests, benchmarks and fuzz targets of tower-push.
//!
//! | module | contents |
//! |---|---|
//! | [`server`] | a server on a free port, for HTTP/1.1 and HTTP/2 |
//! | [`client`] | one connection to a server, over HTTP/1.1 or HTTP/2, whose responses are read as they arrive |
//! | [`pipe_client`] | a client over a pipe in memory, for tests whose clock is paused |
//! | [`breakable_proxy`] | connections to a server that a test can break |
//! | [`counting_io`] | a connection in memory that counts the server's reads and writes |
//! | [`websocket`] | WebSocket handshakes and frames, over HTTP/1.1 and HTTP/2 |
//! | [`event_stream_client`] | a client of an event stream, which counts heartbeats |
//! | [`event_stream`], [`records`] | parsers of what the transports write |
//! | [`record_client`] | a client that reads the records of one response |
//! | [`request`], [`headers`] | requests without a body, and headers from bytes |
//! | [`body`], [`item`] | response bodies and items as values that a test can compare |
//! | [`observed_members`] | the list of a topic's members that a client keeps |
//! | [`live_counter`] | a count of the streams that are alive |
//! | [`wait`] | waiting for a condition |
//! | [`example_process`] | the examples as processes |
//! | [`nats_server`] | NATS servers |
//! | [`nginx`] | nginx with a configuration of the test |
//! | [`programs`] | scripts for Node.js, Python and Chromium, with the packages that `scripts/setup` installs |
//! | [`epoch_ids`], [`published_events`] | ids of logs in memory, and what clients of a broker with faults must get |
//! | [`random`] | random numbers that a seed gives again |
//! | [`commanding_subscriber`] | a client of a hub that sends commands |
//! | [`relay_client`], [`hub_client`] | clients that move from relay to relay, and from hub to hub: each is a [`CursorClient`] |
//! | [`hub_members`] | members of topics on several nodes, and clients that keep their list |
//! | [`hub_members_tests`], [`hub_retries`], [`broker_away`] | tests of nodes over any broker, which the crates of the brokers call |
//! | [`broker_server`] | servers that a test takes away for some time |
//! | [`redis_server`] | Redis and Valkey servers |
//! | [`self_signed_certificate`] | certificates for these servers |
//! | [`delivery_cost`] | the CPU time of a node of a broker for each delivered event |
//! | [`current_exe_child`] | the current program as a second process, with its CPU time and memory |

pub mod body;
pub mod breakable_proxy;
pub mod broker_away;
pub mod broker_server;
pub mod client;
pub mod commanding_subscriber;
pub mod counting_io;
pub mod current_exe_child;
mod cursor_client;
pub mod delivery_cost;
pub mod epoch_ids;
pub mod event_stream;
pub mod event_stream_client;
pub mod example_process;
mod free_port;
pub mod headers;
pub mod hub_client;
pub mod hub_members;
pub mod hub_members_tests;
pub mod hub_retries;
pub mod item;
pub mod live_counter;
pub mod nats_server;
pub mod nginx;
pub mod observed_members;
pub mod pipe_client;
pub mod programs;
pub mod published_events;
pub mod random;
pub mod record_client;
pub mod records;
pub mod redis_server;
pub mod relay_client;
pub mod request;
pub mod self_signed_certificate;
pub mod server;
mod signal;
pub mod wait;
pub mod websocket;

use std::time::Duration;

pub use self::{
    body::{body_frames, body_text},
    breakable_proxy::BreakableProxy,
    broker_server::{Absence, BrokerServer},
    client::{HttpConnection, HttpVersion, StreamingResponse, send_raw_http1},
    commanding_subscriber::CommandingSubscriber,
    counting_io::{CountingIo, IoCounts},
    current_exe_child::CurrentExeChild,
    cursor_client::CursorClient,
    event_stream_client::EventStreamClient,
    example_process::ExampleProcess,
    free_port::free_port,
    headers::parse_headers,
    hub_client::HubClient,
    hub_members::{MembersBroker, enter, expect_members, members, run_members_randomly},
    item::{describe_item, next_item, poll_next, read_ready_items},
    live_counter::LiveCounter,
    nats_server::NatsServer,
    nginx::Nginx,
    observed_members::ObservedMembers,
    published_events::PublishedEvents,
    random::Random,
    record_client::RecordClient,
    redis_server::{RedisProgram, RedisServer},
    relay_client::{RelayClient, read_relay_events},
    request::{empty_request, get_request_head},
    self_signed_certificate::SelfSignedCertificate,
    server::{TestServer, wait_for_connections},
    wait::wait_until,
};

/// The longest time that a test waits for an event: 20 seconds, which is enough on a busy machine. A test that passes never waits this
/// long.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(20);
