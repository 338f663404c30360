//! Members of topics that several servers show.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use testkit::{
    HubClient, MembersBroker, Random, RedisProgram, RedisServer, run_members_randomly, wait_until,
};
use tokio::time::sleep;
use tower_push::{
    Hub,
    source::{
        StartPosition,
        hub::{MemberConnection, PresenceOptions},
    },
};
use tower_push_redis::{ReaderState, RedisHub};

use crate::nodes::{KEY, builder};

/// The hash of the members.
const MEMBERS_KEY: &str = "{events}:presence:members";

/// The shortest node timeout.
const NODE_TIMEOUT: Duration = Duration::from_secs(1);

const GRACE: Duration = Duration::from_millis(100);

fn options() -> PresenceOptions {
    PresenceOptions::new()
        .grace(GRACE)
        .node_timeout(NODE_TIMEOUT)
}

async fn node(server: &RedisServer) -> RedisHub {
    node_with(server, options()).await
}

async fn node_with(server: &RedisServer, options: PresenceOptions) -> RedisHub {
    let builder = builder(server).command_timeout(Duration::from_millis(500));
    builder
        .connect_hub(Hub::builder().presence(options))
        .await
        .unwrap()
}

fn enter(node: &RedisHub, key: &str, value: impl Into<Value>) -> MemberConnection {
    testkit::enter(node.hub(), key, value)
}

fn members(node: &RedisHub) -> BTreeMap<String, Value> {
    testkit::members(node.hub())
}

async fn expect_members(nodes: &[RedisHub], keys: &[&str]) {
    let hubs: Vec<_> = nodes.iter().map(|node| node.hub().clone()).collect();
    testkit::expect_members(&hubs, keys).await;
}

/// Returns the types and the members of all events of members in the stream.
fn published(server: &RedisServer) -> Vec<String> {
    let entries = server.command(&["XRANGE", KEY, "-", "+"]);
    let mut lines = entries.lines();
    let mut events = Vec::new();
    let mut data = Value::Null;
    while let Some(name) = lines.next() {
        match name {
            "data" => data = serde_json::from_str(lines.next().unwrap()).unwrap(),
            "type" => {
                let event_type = lines.next().unwrap();
                events.push(format!("{event_type} {}", data["member"].as_str().unwrap()));
            }
            _ => {}
        }
    }
    events
}

#[tokio::test]
async fn member_of_two_servers_is_one_member() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let nodes = [node(&server).await, node(&server).await];
    let first = enter(&nodes[0], "user/7 \"ä\"", json!({ "tabs": 1 }));
    expect_members(&nodes, &["user/7 \"ä\""]).await;
    let entry = server.command(&["--raw", "XRANGE", KEY, "-", "+"]);
    let fields: Vec<_> = entry.lines().skip(1).collect();
    assert_eq!(
        fields,
        [
            "topic",
            "room",
            "data",
            r#"{"member":"user/7 \"ä\"","value":{"tabs":1}}"#,
            "type",
            "hub.join",
            "format",
            "json",
            "members",
            "room"
        ]
    );
    let second = enter(&nodes[1], "user/7 \"ä\"", json!({ "tabs": 2 }));
    let has_value = || members(&nodes[0])["user/7 \"ä\""] == json!({ "tabs": 2 });
    wait_until(has_value, || "no update").await;
    drop(first);
    enter(&nodes[0], "other", 1).leave_now();
    let marker = enter(&nodes[0], "marker", 1);
    expect_members(&nodes, &["marker", "user/7 \"ä\""]).await;
    sleep(GRACE * 3).await;
    expect_members(&nodes, &["marker", "user/7 \"ä\""]).await;
    second.leave_now();
    marker.leave_now();
    expect_members(&nodes, &[]).await;
    let events = published(&server);
    let of_user: Vec<_> = events
        .iter()
        .filter(|event| event.contains("user"))
        .collect();
    assert_eq!(
        of_user,
        [
            "hub.join user/7 \"ä\"",
            "hub.update user/7 \"ä\"",
            "hub.leave user/7 \"ä\""
        ]
    );
}

#[tokio::test]
async fn members_of_dead_server_leave_once() {
    let server = RedisServer::start(RedisProgram::Valkey, &[]);
    let nodes = [
        node(&server).await,
        node(&server).await,
        node(&server).await,
    ];
    let dead = node(&server).await;
    let _stays = enter(&nodes[0], "stays", 1);
    let _also_elsewhere = enter(&nodes[1], "elsewhere", 1);
    let keys: Vec<_> = (100..250).map(|number| format!("dies {number}")).collect();
    let mut connections: Vec<_> = keys.iter().map(|key| enter(&dead, key, 1)).collect();
    connections.push(enter(&dead, "elsewhere", 1));
    let all = keys
        .iter()
        .map(String::as_str)
        .chain(["elsewhere", "stays"]);
    expect_members(&nodes, &all.collect::<Vec<_>>()).await;
    // The node is dropped before its connections, so it does not tell the broker of their end.
    drop((dead, connections));
    expect_members(&nodes, &["elsewhere", "stays"]).await;
    let late = node(&server).await;
    expect_members(&[late], &["elsewhere", "stays"]).await;
    let events = published(&server);
    for key in &keys {
        let of_key = events.iter().filter(|event| event.ends_with(key));
        assert_eq!(of_key.count(), 2, "{key}");
    }
    assert_eq!(
        events
            .iter()
            .filter(|event| event.ends_with("elsewhere"))
            .count(),
        1
    );
}

#[tokio::test]
async fn members_stay_while_broker_is_away() {
    let durable = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut server = RedisServer::start(RedisProgram::Redis, &durable);
    // After the absence, both servers connect again within this time.
    let node_timeout = Duration::from_secs(4);
    let options = options().node_timeout(node_timeout);
    let nodes = [
        node_with(&server, options.clone()).await,
        node_with(&server, options).await,
    ];
    let _ada = enter(&nodes[0], "ada", 1);
    let bob = enter(&nodes[1], "bob", 1);
    expect_members(&nodes, &["ada", "bob"]).await;
    server.pause();
    sleep(node_timeout * 3 / 2).await;
    let _eve = enter(&nodes[1], "eve", 1);
    bob.leave_now();
    // In this time, the node sends its request, which the paused server answers late.
    sleep(Duration::from_millis(700)).await;
    let _bob = enter(&nodes[1], "bob", 2);
    server.resume();
    expect_members(&nodes, &["ada", "bob", "eve"]).await;
    server.kill();
    sleep(node_timeout * 3 / 2).await;
    let _dan = enter(&nodes[0], "dan", 1);
    server.start_again();
    expect_members(&nodes, &["ada", "bob", "dan", "eve"]).await;
    sleep(node_timeout * 3 / 2).await;
    expect_members(&nodes, &["ada", "bob", "dan", "eve"]).await;
    let events = published(&server);
    for key in ["ada", "dan", "eve"] {
        let of_key = events.iter().filter(|event| event.ends_with(key));
        assert_eq!(of_key.count(), 1, "{events:?}");
    }
    assert_eq!(nodes[0].hub().counts().pending_members, 0);
}

#[tokio::test]
async fn lost_members_come_back() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let nodes = [node(&server).await, node(&server).await];
    let _ada = enter(&nodes[0], "ada", 1);
    let _bob = enter(&nodes[1], "bob", 1);
    expect_members(&nodes, &["ada", "bob"]).await;
    server.command(&["FLUSHALL"]);
    let is_back = || published(&server).len() == 2;
    wait_until(is_back, || "the members do not come back").await;
    expect_members(&nodes, &["ada", "bob"]).await;
    server.command(&["DEL", KEY]);
    // The list is read from the members' own keys.
    let late = node(&server).await;
    expect_members(&[late], &["ada", "bob"]).await;
}

/// Another program has written to a key of the members.
#[tokio::test]
async fn members_of_other_type_hold_up_no_events() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let nodes = [node(&server).await];
    let [node] = &nodes;
    let _ada = enter(node, "ada", 1);
    expect_members(&nodes, &["ada"]).await;
    let mut client = HubClient::subscribe(node.hub(), &["news"], StartPosition::Now);
    server.command(&["SET", MEMBERS_KEY, "x"]);
    server.command(&["DEL", KEY]);
    server.command(&["XADD", KEY, "*", "topic", "news", "data", "1"]);
    let next_text = async |client: &mut HubClient| loop {
        match client.next().await {
            cursor if cursor.starts_with("cursor") => {}
            text => return text,
        }
    };
    let gap = next_text(&mut client).await;
    assert!(gap.contains("epoch"), "{gap}");
    assert_eq!(next_text(&mut client).await, "1");
    let members_error = || node.reader_status().members_error;
    let is_wrong_type = || members_error().is_some_and(|error| error.is_wrong_type());
    wait_until(is_wrong_type, || format!("{:?}", members_error())).await;
    assert_eq!(node.reader_status().state, ReaderState::Following);
    // The list stays as it is. Nothing is published of a request that fails.
    expect_members(&nodes, &["ada"]).await;
    let _bob = enter(node, "bob", 1);
    sleep(NODE_TIMEOUT).await;
    assert_eq!(published(&server), [""; 0]);

    server.command(&["DEL", MEMBERS_KEY]);
    expect_members(&nodes, &["ada", "bob"]).await;
    wait_until(|| members_error().is_none(), || "an error is left").await;

    // A record that is not ours.
    server.command(&["HSET", MEMBERS_KEY, "room\nada", "x"]);
    let _second = enter(node, "ada", 2);
    let updated = || members(node)["ada"] == 2;
    wait_until(updated, || "the member is not updated").await;
    assert!(members_error().is_none());
}

#[tokio::test]
async fn members_of_all_servers_are_bounded() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let limited = options().max_members(2);
    let nodes = [
        node_with(&server, limited.clone()).await,
        node_with(&server, limited).await,
    ];
    // Each server admits two members before it hears of the other's.
    let first = ["a", "b"].map(|key| enter(&nodes[0], key, 1));
    let _second = ["c", "d"].map(|key| enter(&nodes[1], key, 1));
    let has_two = || nodes.iter().all(|node| members(node).len() == 2);
    wait_until(has_two, || "not two members").await;
    let refused = nodes[0].hub().presence("room").unwrap().enter("e", 1);
    assert_eq!(refused.unwrap_err().status(), 503);
    first.into_iter().for_each(MemberConnection::leave_now);
    // Those that were refused are tried again.
    expect_members(&nodes, &["c", "d"]).await;
}

/// The idle cost: a server with members makes three requests within the node timeout, and others none.
#[tokio::test]
async fn idle_servers_make_few_requests() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let nodes = [node(&server).await, node(&server).await];
    // The first server has created the stream.
    let calls = server.call_count("evalsha");
    sleep(NODE_TIMEOUT).await;
    assert_eq!(server.call_count("evalsha"), calls);
    let ada = enter(&nodes[0], "ada", 1);
    expect_members(&nodes, &["ada"]).await;
    let before = (server.call_count("evalsha"), Instant::now());
    sleep(NODE_TIMEOUT * 3).await;
    let calls = server.call_count("evalsha") - before.0;
    let periods = before.1.elapsed().as_secs_f64() / NODE_TIMEOUT.as_secs_f64();
    assert!(calls as f64 <= 2.0 * (3.0 * periods + 1.0), "{calls} calls");
    ada.leave_now();
    expect_members(&nodes, &[]).await;
    sleep(NODE_TIMEOUT).await;
    let calls = server.call_count("evalsha");
    sleep(NODE_TIMEOUT).await;
    assert_eq!(server.call_count("evalsha"), calls);
}

struct Broker(RedisServer);

impl MembersBroker for Broker {
    type Node = RedisHub;

    async fn start_node(&self) -> RedisHub {
        node(&self.0).await
    }

    fn hub(node: &RedisHub) -> &Hub {
        node.hub()
    }

    async fn fail(&mut self, random: &mut Random) {
        match random.below(7) {
            0 | 1 => drop(
                self.0
                    .command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]),
            ),
            2 => {
                self.0.pause();
                sleep(Duration::from_millis(200 + random.below(2000))).await;
                self.0.resume();
            }
            3 => {
                self.0.kill();
                sleep(Duration::from_millis(random.below(1500))).await;
                self.0.start_again();
            }
            4 => drop(self.0.command(&["DEL", KEY])),
            5 => drop(self.0.command(&["FLUSHALL"])),
            _ => drop(self.0.command(&["XTRIM", KEY, "MAXLEN", "=", "3"])),
        }
    }

    async fn published(&self) -> Vec<String> {
        published(&self.0)
    }
}

async fn run_randomly(seed: u64, program: RedisProgram, has_faults: bool) {
    let server = RedisServer::start(program, &["--appendonly", "yes", "--appendfsync", "always"]);
    run_members_randomly(Broker(server), seed, has_faults).await;
}

#[tokio::test]
async fn random_members_of_three_servers_are_listed() {
    for seed in seeds(1..=2) {
        run_randomly(seed, RedisProgram::Redis, false).await;
    }
}

#[tokio::test]
async fn random_members_survive_faults() {
    for seed in seeds(11..=12) {
        run_randomly(seed, RedisProgram::Valkey, true).await;
    }
}

/// Returns the seeds of a test: `range`, or the one in the environment variable `SEED`.
fn seeds(range: std::ops::RangeInclusive<u64>) -> std::ops::RangeInclusive<u64> {
    match std::env::var("SEED") {
        Ok(seed) => seed.parse().unwrap()..=seed.parse().unwrap(),
        Err(_) => range,
    }
}
