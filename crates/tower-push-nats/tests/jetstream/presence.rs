//! Members of topics that several servers show.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::{StreamExt, future::join_all};
use serde_json::{Value, json};
use testkit::{
    MembersBroker, NatsServer, Random,
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
    source::hub::{MemberConnection, PresenceOptions, PublishOptions},
};
use tower_push_nats::JetStreamHub;

use crate::nodes::{Operator, STREAM, builder};

/// The stream of the members.
pub(crate) const MEMBERS_STREAM: &str = "EVENTS_MEMBERS";

async fn node(server: &NatsServer) -> JetStreamHub {
    node_with(server, presence_options()).await
}

async fn node_with(server: &NatsServer, options: PresenceOptions) -> JetStreamHub {
    let builder = builder(server)
        .request_timeout(Duration::from_millis(500))
        .connect_retry_time(Duration::from_secs(10));
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
    testkit::expect_members(&hubs_of::<Broker>(nodes), keys).await;
}

/// Starts two nodes: the first one has the member `ada`, and the second one `bob`.
async fn nodes_with_ada_and_bob(server: &NatsServer) -> ([JetStreamHub; 2], [MemberConnection; 2]) {
    let nodes = [node(server).await, node(server).await];
    let connections = [enter(&nodes[0], "ada", 1), enter(&nodes[1], "bob", 1)];
    expect_members(&nodes, &["ada", "bob"]).await;
    (nodes, connections)
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
    member_of_two_nodes_is_one_member(&Broker::start()).await;
}

#[tokio::test]
async fn members_of_dead_server_leave_once() {
    members_of_dead_node_leave_once(&Broker::start()).await;
}

#[tokio::test]
async fn members_stay_while_server_is_away() {
    members_stay_while_broker_is_away(&mut Broker::start()).await;
}

#[tokio::test]
async fn members_of_all_servers_are_bounded() {
    members_of_all_nodes_are_bounded(&Broker::start()).await;
}

/// The requests of an idle server are the entries that it appends.
#[tokio::test]
async fn idle_servers_append_few_entries() {
    // The entry that says that the event of the join is published may follow.
    idle_nodes_make_few_requests(&Broker::start(), 1).await;
}

/// Without members, there is no stream of members.
#[tokio::test]
async fn first_member_creates_stream() {
    let server = NatsServer::start("");
    let node = node(&server).await;
    let operator = Operator::connect(&server).await;
    let info = format!("STREAM.INFO.{MEMBERS_STREAM}");
    let missing = operator.try_request(&info, json!({})).await;
    assert_eq!(missing.unwrap_err()["err_code"], 10059);
    let _ada = enter(&node, "ada", 1);
    expect_members(&[node], &["ada"]).await;
    operator.request(&info, json!({})).await;
}

/// The event of a change is a message with a header.
#[tokio::test]
async fn message_of_change_names_topic() {
    let server = NatsServer::start("");
    let node = node(&server).await;
    let operator = Operator::connect(&server).await;
    let mut messages = operator.subscribe("events.>").await;
    let _member = enter(&node, "user/7 \"ä\"", json!({ "tabs": 2 }));
    let message = messages.next().await.unwrap();
    // A topic in the header is written as in a subject.
    let members_topic = message.headers.as_ref().unwrap().get("Event-Members");
    assert_eq!(members_topic.unwrap().as_str(), "room");
    assert_eq!(message.subject.as_str(), "events.room");
    let data: Value = serde_json::from_slice(&message.payload).unwrap();
    let expected = json!({ "member": "user/7 \"ä\"", "value": { "tabs": 2 } });
    assert_eq!(data, expected);
}

/// A node writes the members that it knows to a new stream.
#[tokio::test]
async fn lost_members_come_back() {
    let server = NatsServer::start("");
    let (nodes, _connections) = nodes_with_ada_and_bob(&server).await;
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

/// Each of these requests deletes messages of the members' stream, and maybe of the hub's stream.
#[tokio::test]
async fn lists_outlive_loss_of_streams() {
    let tests = [
        &[("DELETE", MEMBERS_STREAM)][..],
        &[("PURGE", MEMBERS_STREAM)],
        &[("DELETE", MEMBERS_STREAM), ("DELETE", STREAM)],
        &[("PURGE", MEMBERS_STREAM), ("DELETE", STREAM)],
        &[("DELETE", STREAM), ("DELETE", MEMBERS_STREAM)],
    ];
    let tests = tests.map(async |requests| {
        let broker = Broker::start();
        let lose = async |broker: &Broker| {
            let operator = Operator::connect(&broker.server).await;
            for (name, stream) in requests {
                let request = format!("STREAM.{name}.{stream}");
                operator.request(&request, json!({})).await;
            }
        };
        lists_outlive_loss_of_members(&broker, lose).await;
    });
    join_all(tests).await;
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
    let error = node.reader_status().members_error;
    assert!(error.is_some_and(|error| error.is_wrong_stream()));
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

/// A user without permission for the members' stream.
const WITHOUT_MEMBERS: &str = r#"
no_auth_user: limited
authorization {
  users = [
    { user: limited, password: secret, permissions: { publish: { deny: [
        "$JS.API.STREAM.INFO.EVENTS_MEMBERS", "$JS.API.STREAM.MSG.GET.EVENTS_MEMBERS",
        "$JS.API.DIRECT.GET.EVENTS_MEMBERS", "$JS.API.STREAM.CREATE.EVENTS_MEMBERS" ] } } },
  ]
}"#;

/// Nobody leaves because the list cannot be read.
#[tokio::test]
async fn list_is_kept_while_user_may_not_read_it() {
    let mut server = NatsServer::start("");
    let (nodes, _connections) = nodes_with_ada_and_bob(&server).await;
    server.kill();
    server.set_config(WITHOUT_MEMBERS);
    server.start_again();
    replace_stream(&server, &nodes).await;
    let error = |node: &JetStreamHub| node.reader_status().members_error;
    for node in &nodes {
        let error = error(node);
        assert!(
            error.as_ref().is_some_and(|error| error.is_unauthorized()),
            "{error:?}"
        );
    }
    expect_members(&nodes, &["ada", "bob"]).await;
    // A node that starts now does not know the members.
    let late = node(&server).await;
    assert!(error(&late).is_some_and(|error| error.is_unauthorized()));
    expect_members(std::slice::from_ref(&late), &[]).await;

    server.kill();
    server.set_config("");
    server.start_again();
    let nodes = [nodes[0].clone(), nodes[1].clone(), late];
    let can_read = || nodes.iter().all(|node| error(node).is_none());
    wait_until(can_read, || format!("{:?}", error(&nodes[2]))).await;
    expect_members(&nodes, &["ada", "bob"]).await;
}

/// Replaces the stream of the hub, and waits until the nodes follow the new one.
async fn replace_stream(server: &NatsServer, nodes: &[JetStreamHub]) {
    let is_replaced = |node: &JetStreamHub| node.reader_status().replaced > 0;
    Operator::connect(server).await.delete_stream().await;
    wait_until(|| nodes.iter().all(is_replaced), || "no gap").await;
}

/// Nobody leaves because the stream of the members is missing.
#[tokio::test]
async fn list_is_kept_while_log_is_missing() {
    let server = NatsServer::start("");
    // No request creates the stream again during this test.
    let options = presence_options().node_timeout(Duration::from_secs(600));
    let nodes = [
        node_with(&server, options.clone()).await,
        node_with(&server, options).await,
    ];
    let _ada = enter(&nodes[0], "ada", 1);
    expect_members(&nodes, &["ada"]).await;
    let _bob = enter(&nodes[1], "bob", 1);
    expect_members(&nodes, &["ada", "bob"]).await;
    // The second request of the first node says that it knows the other's member.
    let _eve = enter(&nodes[0], "eve", 1);
    expect_members(&nodes, &["ada", "bob", "eve"]).await;
    let operator = Operator::connect(&server).await;
    let delete = format!("STREAM.DELETE.{MEMBERS_STREAM}");
    operator.request(&delete, json!({})).await;
    replace_stream(&server, &nodes[..1]).await;
    assert_eq!(
        nodes[0]
            .reader_status()
            .members_error
            .map(|error| error.to_string()),
        None
    );
    expect_members(&nodes[..1], &["ada", "bob", "eve"]).await;
}

/// A server that has begun to write its members to a new stream has died.
#[tokio::test]
async fn lost_members_come_back_after_incomplete_snapshot() {
    let server = NatsServer::start("");
    let (nodes, _connections) = nodes_with_ada_and_bob(&server).await;
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
    // On a busy machine, both nodes renew their leases within this time.
    let options = presence_options().node_timeout(Duration::from_secs(60));
    let nodes = [
        node_with(&server, options.clone()).await,
        node_with(&server, options).await,
    ];
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

struct Broker {
    server: NatsServer,
    /// Whether the log of members loses messages when something fails.
    loses_messages: bool,
}

impl Broker {
    fn start() -> Self {
        Self {
            server: NatsServer::start(""),
            loses_messages: false,
        }
    }

    /// Removes messages of the log, as an operator does.
    async fn lose_messages(&self, random: &mut Random) {
        // A change that one node alone knows is lost if this node dies, too. So each node reads the log before and after.
        sleep(NODE_TIMEOUT).await;
        let operator = Operator::connect(&self.server).await;
        let request = async |name: &str, request| {
            let name = format!("STREAM.{name}.{MEMBERS_STREAM}");
            operator.try_request(&name, request).await
        };
        // There is no stream before the first member.
        let Ok(info) = request("INFO", json!({})).await else {
            return;
        };
        let number = |name: &str| info["state"][name].as_u64().unwrap();
        let (first, last) = (number("first_seq"), number("last_seq"));
        let any = first + random.below((last + 1 - first.min(last)).max(1));
        // A message can be gone meanwhile.
        let _ = match random.below(5) {
            0 => request("MSG.DELETE", json!({ "seq": last })).await,
            1 => request("MSG.DELETE", json!({ "seq": any })).await,
            2 => request("PURGE", json!({})).await,
            3 => request("PURGE", json!({ "seq": any })).await,
            _ => request("DELETE", json!({})).await,
        };
        sleep(NODE_TIMEOUT).await;
    }
}

impl MembersBroker for Broker {
    type Node = JetStreamHub;

    async fn start_node(&self) -> JetStreamHub {
        node(&self.server).await
    }

    fn hub(node: &JetStreamHub) -> &Hub {
        node.hub()
    }

    fn can_lose_changes(&self) -> bool {
        self.loses_messages
    }

    /// The stream of the hub is never deleted or purged: JetStream would forget the idempotency keys, and a late repetition of a join could follow
    /// the leave.
    async fn fail(&mut self, random: &mut Random) {
        match random.below(if self.loses_messages { 5 } else { 3 }) {
            3 | 4 => self.lose_messages(random).await,
            0 | 1 => {
                self.server.pause();
                sleep(Duration::from_millis(200 + random.below(2000))).await;
                self.server.resume();
            }
            _ => {
                self.server.kill();
                sleep(Duration::from_millis(random.below(1500))).await;
                self.server.start_again();
            }
        }
    }

    async fn published(&self) -> Vec<String> {
        published(&self.server).await
    }
}

impl MembersServer for Broker {
    type Server = NatsServer;

    fn server(&mut self) -> &mut NatsServer {
        &mut self.server
    }

    async fn start_node_with(&self, options: PresenceOptions) -> JetStreamHub {
        node_with(&self.server, options).await
    }

    /// Returns the number of entries. There are none before the first member.
    async fn member_requests(&self) -> u64 {
        let operator = Operator::connect(&self.server).await;
        let info = format!("STREAM.INFO.{MEMBERS_STREAM}");
        let info = operator.try_request(&info, json!({})).await;
        info.map_or(0, |info| info["state"]["last_seq"].as_u64().unwrap())
    }
}

#[tokio::test]
async fn random_members_of_three_servers_are_listed() {
    for seed in seeds(1..=2) {
        run_members_randomly(Broker::start(), seed, false).await;
    }
}

#[tokio::test]
async fn random_members_survive_faults() {
    for seed in seeds(11..=12) {
        run_members_randomly(Broker::start(), seed, true).await;
    }
}

#[tokio::test]
async fn random_members_survive_losses_of_log() {
    for seed in seeds(21..=22) {
        let broker = Broker {
            loses_messages: true,
            ..Broker::start()
        };
        run_members_randomly(broker, seed, true).await;
    }
}

/// The newest message of the log is deleted: a server that starts does not wait for it.
#[tokio::test]
async fn newest_message_of_log_may_be_deleted() {
    let server = NatsServer::start("");
    let (nodes, _connections) = nodes_with_ada_and_bob(&server).await;
    let operator = Operator::connect(&server).await;
    for _ in 0..3 {
        let info = format!("STREAM.INFO.{MEMBERS_STREAM}");
        let info = operator.request(&info, json!({})).await;
        let last = info["state"]["last_seq"].as_u64().unwrap();
        let delete = format!("STREAM.MSG.DELETE.{MEMBERS_STREAM}");
        let _ = operator.try_request(&delete, json!({ "seq": last })).await;
        expect_members(&[node(&server).await], &["ada", "bob"]).await;
    }
    sleep(NODE_TIMEOUT * 2).await;
    expect_members(&nodes, &["ada", "bob"]).await;
}

/// The stream of the log has a limit that is shorter than a snapshot, and later none.
#[tokio::test]
async fn log_with_short_limit_tells_of_pending_members() {
    let server = NatsServer::start("");
    let operator = Operator::connect(&server).await;
    let subject = format!("$MEMBERS.{STREAM}");
    let config = |max_msgs: i64| {
        json!({
            "name": MEMBERS_STREAM,
            "subjects": [subject, format!("{subject}.>")],
            "allow_direct": true,
            "max_msgs": max_msgs,
        })
    };
    let create = format!("STREAM.CREATE.{MEMBERS_STREAM}");
    operator.request(&create, config(1)).await;
    let node = node(&server).await;
    let _ada = enter(&node, "ada", 1);
    sleep(NODE_TIMEOUT).await;
    let _bob = enter(&node, "bob", 1);
    let members_error = || node.reader_status().members_error;
    let is_told = || {
        let error = members_error().is_some_and(|error| error.is_unavailable());
        error && node.hub().counts().pending_members > 0
    };
    wait_until(is_told, || format!("{:?}", members_error())).await;
    let update = format!("STREAM.UPDATE.{MEMBERS_STREAM}");
    operator.request(&update, config(-1)).await;
    expect_members(&[node], &["ada", "bob"]).await;
}

/// The hub gives up a request about members before the request itself does.
#[tokio::test]
async fn request_that_hub_gives_up_is_an_error() {
    let server = NatsServer::start("");
    let builder = builder(&server).request_timeout(NODE_TIMEOUT * 10);
    let hub = Hub::builder().presence(presence_options());
    let node = builder.connect_hub(hub).await.unwrap();
    server.pause();
    let _ada = enter(&node, "ada", 1);
    let error = || node.reader_status().members_error;
    let is_timeout = || error().is_some_and(|error| error.is_unavailable());
    wait_until(is_timeout, || format!("{:?}", error())).await;
    server.resume();
    let is_confirmed = || error().is_none() && node.hub().counts().pending_members == 0;
    wait_until(is_confirmed, || format!("{:?}", error())).await;
}

/// Returns the seeds of a test: `range`, or the one in the environment variable `SEED`.
fn seeds(range: std::ops::RangeInclusive<u64>) -> std::ops::RangeInclusive<u64> {
    match std::env::var("SEED") {
        Ok(seed) => seed.parse().unwrap()..=seed.parse().unwrap(),
        Err(_) => range,
    }
}
