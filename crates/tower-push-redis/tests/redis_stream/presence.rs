//! Members of topics that several servers show.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use serde_json::{Value, json};
use testkit::{
    HubClient, MembersBroker, Random, RedisProgram, RedisServer,
    hub_members_tests::{
        MembersServer, NODE_TIMEOUT, hubs_of, idle_nodes_make_few_requests,
        lists_outlive_loss_of_members, member_of_two_nodes_is_one_member,
        members_of_all_nodes_are_bounded, members_of_dead_node_leave_once,
        members_stay_while_broker_is_away, presence_options,
    },
    run_members_randomly, wait_until,
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

use crate::nodes::{DURABLE, KEY, builder};

/// The hash of the members.
const MEMBERS_KEY: &str = "{events}:presence:members";

async fn node(server: &RedisServer) -> RedisHub {
    node_with(server, presence_options()).await
}

async fn node_with(server: &RedisServer, options: PresenceOptions) -> RedisHub {
    let builder = builder(server)
        .command_timeout(Duration::from_millis(500))
        .connect_retry_time(Duration::from_secs(10));
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
    testkit::expect_members(&hubs_of::<Broker>(nodes), keys).await;
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
    let broker = Broker::start(RedisProgram::Redis, &[]);
    member_of_two_nodes_is_one_member(&broker).await;
}

#[tokio::test]
async fn members_of_dead_server_leave_once() {
    let broker = Broker::start(RedisProgram::Valkey, &[]);
    members_of_dead_node_leave_once(&broker).await;
}

#[tokio::test]
async fn members_stay_while_redis_is_away() {
    let mut broker = Broker::start(RedisProgram::Redis, &DURABLE);
    members_stay_while_broker_is_away(&mut broker).await;
}

#[tokio::test]
async fn members_of_all_servers_are_bounded() {
    let broker = Broker::start(RedisProgram::Redis, &[]);
    members_of_all_nodes_are_bounded(&broker).await;
}

#[tokio::test]
async fn idle_servers_make_few_requests() {
    let broker = Broker::start(RedisProgram::Redis, &[]);
    idle_nodes_make_few_requests(&broker, 0).await;
}

/// The event of a change is an entry with a field.
#[tokio::test]
async fn entry_of_change_names_topic() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let node = node(&server).await;
    let _member = enter(&node, "user/7 \"ä\"", json!({ "tabs": 1 }));
    expect_members(&[node], &["user/7 \"ä\""]).await;
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

/// Each of these commands deletes something that Redis has stored for the members.
#[tokio::test]
async fn lists_outlive_loss_of_keys() {
    const KEYS: [&str; 5] = ["nodes", "numbers", "holds", "members", "topics"];
    let keys = KEYS.map(|name| format!("{{events}}:presence:{name}"));
    let keys = || keys.iter().map(String::as_str);
    let delete_all: Vec<_> = ["DEL"].into_iter().chain(keys()).collect();
    let mut commands = vec![vec!["FLUSHALL"], delete_all];
    commands.extend(keys().map(|key| vec!["DEL", key]));
    let tests = commands.iter().map(async |command| {
        let broker = Broker::start(RedisProgram::Valkey, &[]);
        let lose = async |broker: &Broker| drop(broker.0.command(command));
        lists_outlive_loss_of_members(&broker, lose).await;
    });
    join_all(tests).await;
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
    // The list that was read lacks the members until this server has told Redis of them.
    let is_stored = || server.command(&["HLEN", MEMBERS_KEY]) == "2";
    wait_until(is_stored, || "the members are not stored").await;
    expect_members(&nodes, &["ada", "bob"]).await;

    // A record that is not ours.
    server.command(&["HSET", MEMBERS_KEY, "room\nada", "x"]);
    let _second = enter(node, "ada", 2);
    let updated = || members(node).get("ada") == Some(&json!(2));
    wait_until(updated, || "the member is not updated").await;
    assert!(members_error().is_none());
}

#[tokio::test]
async fn list_is_read_again_when_user_gets_permission_back() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    // A member that leaves while the reader does not get its event.
    server.command(&["HSET", MEMBERS_KEY, "room\nbob", "1 1"]);
    let nodes = [node(&server).await];
    let [node] = &nodes;
    let _ada = enter(node, "ada", 1);
    expect_members(&nodes, &["ada", "bob"]).await;
    let mut client = HubClient::subscribe(node.hub(), &["news"], StartPosition::Now);
    let mut next_text = async || loop {
        match client.next().await {
            cursor if cursor.starts_with("cursor") => {}
            text => return text,
        }
    };
    server.command(&["ACL", "SETUSER", "default", "-hscan"]);
    server.command(&["HDEL", MEMBERS_KEY, "room\nbob"]);
    server.command(&["DEL", KEY]);
    server.command(&["XADD", KEY, "*", "topic", "news", "data", "1"]);
    let gap = next_text().await;
    assert!(gap.contains("epoch"), "{gap}");
    assert_eq!(next_text().await, "1");
    let members_error = || node.reader_status().members_error;
    assert!(members_error().is_some());
    // The requests of this server succeed.
    let requests = || server.call_count("evalsha");
    let before = requests();
    wait_until(|| requests() > before + 1, || "no requests").await;
    assert!(members_error().is_some());
    expect_members(&nodes, &["ada", "bob"]).await;

    server.command(&["ACL", "SETUSER", "default", "+hscan"]);
    let gap = next_text().await;
    assert!(gap.contains("expired"), "{gap}");
    expect_members(&nodes, &["ada"]).await;
    assert!(members_error().is_none());
    server.command(&["XADD", KEY, "*", "topic", "news", "data", "2"]);
    assert_eq!(next_text().await, "2");
}

/// Adds milliseconds to all times that Redis has stored.
const SHIFT_TIMES: &str = r"
redis.call('HINCRBY', '{events}:presence:numbers', 'at', ARGV[1])
redis.call('HINCRBY', '{events}:presence:numbers', 'since', ARGV[1])
for _, node in ipairs(redis.call('ZRANGE', '{events}:presence:nodes', 0, -1)) do
    redis.call('ZINCRBY', '{events}:presence:nodes', ARGV[1], node)
end";

/// The clock of the server jumps by an hour, back or forth. No member leaves, and the leases are as long as before.
#[tokio::test]
async fn members_stay_when_clock_jumps() {
    for jump in ["3600000", "-3600000"] {
        let server = RedisServer::start(RedisProgram::Redis, &[]);
        let node_timeout = NODE_TIMEOUT * 3;
        let options = || presence_options().node_timeout(node_timeout);
        let lives = [node_with(&server, options()).await];
        let dies = node_with(&server, options()).await;
        let _ada = enter(&lives[0], "ada", 1);
        let bob = enter(&dies, "bob", 1);
        expect_members(&lives, &["ada", "bob"]).await;
        server.command(&["EVAL", SHIFT_TIMES, "0", jump]);
        sleep(node_timeout * 3 / 2).await;
        expect_members(&lives, &["ada", "bob"]).await;
        let mut events = published(&server);
        events.sort();
        assert_eq!(events, ["hub.join ada", "hub.join bob"]);
        // The node is dropped before its connection, so it does not tell Redis of its end.
        drop((dies, bob));
        expect_members(&lives, &["ada"]).await;
    }
}

/// Another program has overwritten the record of a member.
#[tokio::test]
async fn member_without_record_stays_while_a_server_holds_it() {
    for is_updated in [false, true] {
        let server = RedisServer::start(RedisProgram::Redis, &[]);
        let options = || presence_options().node_timeout(Duration::from_secs(60));
        let nodes = [
            node_with(&server, options()).await,
            node_with(&server, options()).await,
        ];
        let mut first = vec![enter(&nodes[0], "ada", 1)];
        let second = enter(&nodes[1], "ada", 1);
        let expect_holds = async |count: &str| {
            let holds = || server.command(&["ZCARD", "{events}:presence:holds"]);
            wait_until(|| holds() == count, holds).await;
        };
        expect_holds("2").await;
        server.command(&["HSET", MEMBERS_KEY, "room\nada", "x"]);
        let mut expected = vec!["hub.join ada"];
        if is_updated {
            first.push(enter(&nodes[0], "ada", 2));
            expected.push("hub.update ada");
            let is_published = || published(&server) == expected;
            wait_until(is_published, || format!("{:?}", published(&server))).await;
        }
        drop(first);
        expect_holds("1").await;
        assert_eq!(published(&server), expected);
        drop(second);
        expect_holds("0").await;
        expect_members(&nodes, &[]).await;
        expected.push("hub.leave ada");
        assert_eq!(published(&server), expected);
        let topics = server.command(&["HLEN", "{events}:presence:topics"]);
        assert_eq!(topics, "0");
    }
}

struct Broker(RedisServer);

impl Broker {
    fn start(program: RedisProgram, options: &[&str]) -> Self {
        Self(RedisServer::start(program, options))
    }
}

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

impl MembersServer for Broker {
    type Server = RedisServer;

    fn server(&mut self) -> &mut RedisServer {
        &mut self.0
    }

    async fn start_node_with(&self, options: PresenceOptions) -> RedisHub {
        node_with(&self.0, options).await
    }

    /// Returns the number of calls of the script.
    async fn member_requests(&self) -> u64 {
        self.0.call_count("evalsha")
    }
}

async fn run_randomly(seed: u64, program: RedisProgram, has_faults: bool) {
    run_members_randomly(Broker::start(program, &DURABLE), seed, has_faults).await;
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
