//! Members of topics that several servers show.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::StreamExt;
use serde_json::{Value, json};
use testkit::{MembersBroker, NatsServer, Random, run_members_randomly, wait_until};
use tokio::time::sleep;
use tower_push::{
    Hub,
    source::hub::{MemberConnection, PresenceOptions, PublishOptions},
};
use tower_push_nats::JetStreamHub;

use crate::nodes::{Operator, STREAM, builder};

/// The stream of the members.
const MEMBERS_STREAM: &str = "EVENTS_MEMBERS";

/// The shortest node timeout.
const NODE_TIMEOUT: Duration = Duration::from_secs(1);

const GRACE: Duration = Duration::from_millis(100);

fn options() -> PresenceOptions {
    PresenceOptions::new()
        .grace(GRACE)
        .node_timeout(NODE_TIMEOUT)
}

async fn node(server: &NatsServer) -> JetStreamHub {
    node_with(server, options()).await
}

async fn node_with(server: &NatsServer, options: PresenceOptions) -> JetStreamHub {
    let builder = builder(server)
        .request_timeout(Duration::from_millis(500))
        .connect_wait(Duration::from_secs(10));
    builder
        .connect_hub(Hub::builder().presence(options))
        .await
        .unwrap()
}

fn enter(node: &JetStreamHub, key: &str, value: impl Into<Value>) -> MemberConnection {
    testkit::enter(node.hub(), key, value)
}

fn members(node: &JetStreamHub) -> BTreeMap<String, Value> {
    testkit::members(node.hub())
}

async fn expect_members(nodes: &[JetStreamHub], keys: &[&str]) {
    let hubs: Vec<_> = nodes.iter().map(|node| node.hub().clone()).collect();
    testkit::expect_members(&hubs, keys).await;
}

/// Returns the types and the members of all events of members in the stream.
async fn published(server: &NatsServer) -> Vec<String> {
    let operator = Operator::connect(server).await;
    let mut events = Vec::new();
    let info = operator.stream_request("STREAM.INFO", json!({})).await;
    let last = info["state"]["last_seq"].as_u64().unwrap();
    for sequence in 1..=last {
        let request = json!({ "seq": sequence });
        let Ok(read) = operator
            .try_request(&format!("STREAM.MSG.GET.{STREAM}"), request)
            .await
        else {
            continue;
        };
        let text = |name: &str| {
            let bytes = BASE64_STANDARD.decode(read["message"][name].as_str().unwrap());
            String::from_utf8(bytes.unwrap()).unwrap()
        };
        let headers = text("hdrs");
        let types = headers
            .lines()
            .find_map(|line| line.strip_prefix("Event-Type: "));
        let data: Value = serde_json::from_str(&text("data")).unwrap();
        events.push(format!(
            "{} {}",
            types.unwrap(),
            data["member"].as_str().unwrap()
        ));
    }
    events
}

#[tokio::test]
async fn member_of_two_servers_is_one_member() {
    let server = NatsServer::start("");
    let nodes = [node(&server).await, node(&server).await];
    let first = enter(&nodes[0], "user/7 \"ä\"", json!({ "tabs": 1 }));
    expect_members(&nodes, &["user/7 \"ä\""]).await;
    let operator = Operator::connect(&server).await;
    let mut messages = operator.subscribe("events.>").await;
    let second = enter(&nodes[1], "user/7 \"ä\"", json!({ "tabs": 2 }));
    let has_value = || members(&nodes[0])["user/7 \"ä\""] == json!({ "tabs": 2 });
    wait_until(has_value, || "no update").await;
    let message = messages.next().await.unwrap();
    // A topic in the header is written as in a subject.
    let members_topic = message.headers.as_ref().unwrap().get("Event-Members");
    assert_eq!(members_topic.unwrap().as_str(), "room");
    assert_eq!(message.subject.as_str(), "events.room");
    let data: Value = serde_json::from_slice(&message.payload).unwrap();
    let expected = json!({ "member": "user/7 \"ä\"", "value": { "tabs": 2 } });
    assert_eq!(data, expected);
    drop(first);
    enter(&nodes[0], "other", 1).leave_now();
    let marker = enter(&nodes[0], "marker", 1);
    expect_members(&nodes, &["marker", "user/7 \"ä\""]).await;
    sleep(GRACE * 3).await;
    expect_members(&nodes, &["marker", "user/7 \"ä\""]).await;
    second.leave_now();
    marker.leave_now();
    expect_members(&nodes, &[]).await;
    let events = published(&server).await;
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
    let server = NatsServer::start("");
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
    let events = published(&server).await;
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
    let mut server = NatsServer::start("");
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
    let events = published(&server).await;
    for key in ["ada", "dan", "eve"] {
        let of_key = events.iter().filter(|event| event.ends_with(key));
        assert_eq!(of_key.count(), 1, "{events:?}");
    }
    assert_eq!(nodes[0].hub().counts().pending_members, 0);
}

/// A node writes the members that it knows to a new stream.
#[tokio::test]
async fn lost_members_come_back() {
    let server = NatsServer::start("");
    let nodes = [node(&server).await, node(&server).await];
    let _ada = enter(&nodes[0], "ada", 1);
    let _bob = enter(&nodes[1], "bob", 1);
    expect_members(&nodes, &["ada", "bob"]).await;
    let operator = Operator::connect(&server).await;
    let delete = format!("STREAM.DELETE.{MEMBERS_STREAM}");
    operator.request(&delete, json!({})).await;
    let _eve = enter(&nodes[0], "eve", 1);
    expect_members(&nodes, &["ada", "bob", "eve"]).await;
    expect_members(&[node(&server).await], &["ada", "bob", "eve"]).await;
    // The members are not in the hub's stream.
    operator.delete_stream().await;
    expect_members(&[node(&server).await], &["ada", "bob", "eve"]).await;
    sleep(NODE_TIMEOUT * 2).await;
    expect_members(&nodes, &["ada", "bob", "eve"]).await;
}

/// Other programs can publish to the subjects of the members.
#[tokio::test]
async fn foreign_messages_change_no_members() {
    let server = NatsServer::start("");
    let nodes = [node(&server).await, node(&server).await];
    let _ada = enter(&nodes[0], "ada", 1);
    expect_members(&nodes, &["ada"]).await;
    let operator = Operator::connect(&server).await;
    let subject = format!("$MEMBERS.{STREAM}");
    let part = format!("{subject}.part");
    let other = format!("{subject}.other");
    for subject in [&subject, &part, &other] {
        operator.publish(subject, &[], "not of this crate").await;
    }
    let _bob = enter(&nodes[1], "bob", 1);
    expect_members(&nodes, &["ada", "bob"]).await;
    operator.publish(&subject, &[], "").await;
    let late = node(&server).await;
    let nodes = [nodes[0].clone(), nodes[1].clone(), late];
    expect_members(&nodes, &["ada", "bob"]).await;
    // All servers read the members again, because of the gap.
    operator.delete_stream().await;
    let _eve = enter(&nodes[2], "eve", 1);
    expect_members(&nodes, &["ada", "bob", "eve"]).await;
}

/// A stream of another program has the name of the members' stream.
#[tokio::test]
async fn foreign_stream_has_no_members() {
    let server = NatsServer::start("");
    let operator = Operator::connect(&server).await;
    let config = json!({ "name": MEMBERS_STREAM, "subjects": ["other"], "storage": "memory" });
    let create = format!("STREAM.CREATE.{MEMBERS_STREAM}");
    operator.request(&create, config).await;
    operator.publish("other", &[], "1").await;
    let node = node(&server).await;
    assert_eq!(members(&node).len(), 0);
    operator.delete_stream().await;
    let options = PublishOptions::default();
    let publish = async || {
        node.hub()
            .publish_and_wait("news", "text", &options)
            .await
            .is_ok()
    };
    while !publish().await {
        sleep(Duration::from_millis(10)).await;
    }
    wait_until(|| node.reader_status().replaced > 0, || "no gap").await;
}

/// A server that has begun to write its members to a new stream has died.
#[tokio::test]
async fn lost_members_come_back_after_incomplete_snapshot() {
    let server = NatsServer::start("");
    let nodes = [node(&server).await, node(&server).await];
    let _ada = enter(&nodes[0], "ada", 1);
    let _bob = enter(&nodes[1], "bob", 1);
    let dead = node(&server).await;
    let dan = enter(&dead, "dan", 1);
    expect_members(&nodes, &["ada", "bob", "dan"]).await;
    // With their next requests, both servers read that the third one holds a member.
    let _later = [enter(&nodes[0], "x", 1), enter(&nodes[1], "y", 1)];
    expect_members(&nodes, &["ada", "bob", "dan", "x", "y"]).await;
    drop((dead, dan));
    let operator = Operator::connect(&server).await;
    let info = format!("STREAM.INFO.{MEMBERS_STREAM}");
    let info = operator.request(&info, json!({})).await;
    let delete = format!("STREAM.DELETE.{MEMBERS_STREAM}");
    operator.request(&delete, json!({})).await;
    let create = format!("STREAM.CREATE.{MEMBERS_STREAM}");
    // A node may have created the stream first.
    let _ = operator.try_request(&create, info["config"].clone()).await;
    let part = json!({ "id": "abcdef", "part": { "nodes": {}, "members": [] } });
    let subject = format!("$MEMBERS.{STREAM}.part");
    operator.publish(&subject, &[], &part.to_string()).await;
    let _eve = enter(&nodes[0], "eve", 1);
    // Only the ledger of the lost stream says that the dead server held a member.
    expect_members(&nodes, &["ada", "bob", "eve", "x", "y"]).await;
    let late = node(&server).await;
    expect_members(&[late], &["ada", "bob", "eve", "x", "y"]).await;
    sleep(NODE_TIMEOUT * 2).await;
    expect_members(&nodes, &["ada", "bob", "eve", "x", "y"]).await;
}

#[tokio::test]
async fn members_of_all_servers_are_bounded() {
    let server = NatsServer::start("");
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

/// The idle cost: a server with members appends three entries within the node timeout, and others none.
#[tokio::test]
async fn idle_servers_append_few_entries() {
    let server = NatsServer::start("");
    let nodes = [node(&server).await, node(&server).await];
    let operator = Operator::connect(&server).await;
    sleep(NODE_TIMEOUT).await;
    let info = format!("STREAM.INFO.{MEMBERS_STREAM}");
    let missing = operator.try_request(&info, json!({})).await;
    assert_eq!(missing.unwrap_err()["err_code"], 10059);
    let entries = async || {
        let info = operator.request(&info, json!({})).await;
        info["state"]["last_seq"].as_u64().unwrap()
    };
    let ada = enter(&nodes[0], "ada", 1);
    expect_members(&nodes, &["ada"]).await;
    let before = (entries().await, Instant::now());
    sleep(NODE_TIMEOUT * 3).await;
    let appended = entries().await - before.0;
    let periods = before.1.elapsed().as_secs_f64() / NODE_TIMEOUT.as_secs_f64();
    // The entry that says that the event of the join is published may follow.
    let limit = 2.0 * (3.0 * periods + 1.0) + 1.0;
    assert!(appended as f64 <= limit, "{appended} entries");
    ada.leave_now();
    expect_members(&nodes, &[]).await;
    sleep(NODE_TIMEOUT).await;
    let before = entries().await;
    sleep(NODE_TIMEOUT).await;
    assert_eq!(entries().await, before);
}

/// The server dies after its request is in the stream, and before it has published the events of the request.
#[tokio::test]
async fn events_of_dead_server_are_published_once() {
    let server = NatsServer::start("");
    let nodes = [node(&server).await, node(&server).await];
    let _stays = [enter(&nodes[0], "0", 1), enter(&nodes[1], "1", 1)];
    expect_members(&nodes, &["0", "1"]).await;
    let request = json!({
        "kind": "request",
        "node": "dead",
        "number": 1,
        "acknowledged_number": 0,
        "node_timeout": NODE_TIMEOUT.as_millis() as u64,
        "max_members": 100,
        "max_total_members": 100,
        "changes": [
            { "topic": "room", "key": "a", "action": "enter", "value": 1 },
            { "topic": "room", "key": "a", "action": "update", "value": 2 },
            { "topic": "room", "key": "b", "action": "enter", "value": 1 },
        ],
    });
    let operator = Operator::connect(&server).await;
    let subject = format!("$MEMBERS.{STREAM}");
    operator.publish(&subject, &[], &request.to_string()).await;
    expect_members(&nodes, &["0", "1", "a", "b"]).await;
    assert_eq!(members(&nodes[0])["a"], 2);
    expect_members(&nodes, &["0", "1"]).await;
    let mut events = published(&server).await;
    events.retain(|event| event.ends_with('a') || event.ends_with('b'));
    let expected = [
        "hub.join a",
        "hub.update a",
        "hub.join b",
        "hub.leave a",
        "hub.leave b",
    ];
    assert_eq!(events, expected);
}

/// The stream of the members has a bounded length.
#[tokio::test]
async fn snapshots_bound_the_log() {
    let server = NatsServer::start("");
    let nodes = [node(&server).await, node(&server).await];
    let _stays = enter(&nodes[0], "stays", "x".repeat(500));
    let _other = enter(&nodes[1], "other", "x".repeat(500));
    expect_members(&nodes, &["other", "stays"]).await;
    let operator = Operator::connect(&server).await;
    let info = format!("STREAM.INFO.{MEMBERS_STREAM}");
    let mut number = 0;
    loop {
        let info = operator.request(&info, json!({})).await;
        if info["state"]["first_seq"].as_u64().unwrap() > 1 {
            break;
        }
        number += 1;
        let room = nodes[number % 2].hub().presence("room").unwrap();
        let _ = room.update("stays", number as u64).unwrap();
        let has_value = || members(&nodes[0])["stays"] == number as u64;
        wait_until(has_value, || "no update").await;
        assert!(number < 3000, "{info}");
    }
    let late = node(&server).await;
    assert_eq!(members(&late), members(&nodes[0]));
    assert_eq!(members(&late).len(), 2);
    drop(_other);
    expect_members(&[nodes[0].clone(), late], &["stays"]).await;
}

struct Broker(NatsServer);

impl MembersBroker for Broker {
    type Node = JetStreamHub;

    async fn start_node(&self) -> JetStreamHub {
        node(&self.0).await
    }

    fn hub(node: &JetStreamHub) -> &Hub {
        node.hub()
    }

    /// The stream of the hub is never deleted or purged: JetStream would forget the idempotency keys, and a late repetition of a join could follow
    /// the leave.
    async fn fail(&mut self, random: &mut Random) {
        match random.below(3) {
            0 | 1 => {
                self.0.pause();
                sleep(Duration::from_millis(200 + random.below(2000))).await;
                self.0.resume();
            }
            _ => {
                self.0.kill();
                sleep(Duration::from_millis(random.below(1500))).await;
                self.0.start_again();
            }
        }
    }

    async fn published(&self) -> Vec<String> {
        published(&self.0).await
    }
}

#[tokio::test]
async fn random_members_of_three_servers_are_listed() {
    for seed in seeds(1..=2) {
        run_members_randomly(Broker(NatsServer::start("")), seed, false).await;
    }
}

#[tokio::test]
async fn random_members_survive_faults() {
    for seed in seeds(11..=12) {
        run_members_randomly(Broker(NatsServer::start("")), seed, true).await;
    }
}

/// Returns the seeds of a test: `range`, or the one in the environment variable `SEED`.
fn seeds(range: std::ops::RangeInclusive<u64>) -> std::ops::RangeInclusive<u64> {
    match std::env::var("SEED") {
        Ok(seed) => seed.parse().unwrap()..=seed.parse().unwrap(),
        Err(_) => range,
    }
}
