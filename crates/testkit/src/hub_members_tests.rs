//! What members of topics on several nodes of a hub do, over any broker.

use std::{
    collections::BTreeMap,
    future::Future,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::time::sleep;
use tower_push::{
    Hub,
    source::hub::{MemberConnection, PresenceOptions},
};

use crate::{
    BrokerServer, MembersBroker, TEST_TIMEOUT, enter, expect_members, hub_members::MemberObserver,
    members, wait_until,
};

/// A broker whose server can be away, and whose requests are counted.
pub trait MembersServer: MembersBroker {
    /// The server.
    type Server: BrokerServer;

    /// Returns the server.
    fn server(&mut self) -> &mut Self::Server;

    /// Starts a node with options.
    fn start_node_with(&self, options: PresenceOptions) -> impl Future<Output = Self::Node>;

    /// Returns the number of requests about members so far.
    fn member_requests(&self) -> impl Future<Output = u64>;
}

/// The shortest node timeout.
pub const NODE_TIMEOUT: Duration = Duration::from_secs(1);

/// The grace time of [`presence_options`].
pub const GRACE: Duration = Duration::from_millis(100);

/// Returns options with short times.
pub fn presence_options() -> PresenceOptions {
    PresenceOptions::new()
        .grace(GRACE)
        .node_timeout(NODE_TIMEOUT)
}

/// Returns the hubs of nodes.
pub fn hubs_of<'a, B: MembersBroker>(nodes: impl IntoIterator<Item = &'a B::Node>) -> Vec<Hub>
where
    B::Node: 'a,
{
    nodes.into_iter().map(|node| B::hub(node).clone()).collect()
}

async fn start_nodes<B: MembersBroker>(broker: &B, count: usize) -> Vec<B::Node> {
    let mut nodes = Vec::new();
    for _ in 0..count {
        nodes.push(broker.start_node().await);
    }
    nodes
}

/// A member of two nodes joins once, and leaves when it has left both.
pub async fn member_of_two_nodes_is_one_member<B: MembersBroker>(broker: &B) {
    let nodes = start_nodes(broker, 2).await;
    let hubs = hubs_of::<B>(&nodes);
    let first = enter(&hubs[0], "user/7 \"ä\"", json!({ "tabs": 1 }));
    expect_members(&hubs, &["user/7 \"ä\""]).await;
    let second = enter(&hubs[1], "user/7 \"ä\"", json!({ "tabs": 2 }));
    let has_value = || members(&hubs[0])["user/7 \"ä\""] == json!({ "tabs": 2 });
    wait_until(has_value, || "no update").await;
    drop(first);
    enter(&hubs[0], "other", 1).leave_now();
    let marker = enter(&hubs[0], "marker", 1);
    expect_members(&hubs, &["marker", "user/7 \"ä\""]).await;
    sleep(GRACE * 3).await;
    expect_members(&hubs, &["marker", "user/7 \"ä\""]).await;
    second.leave_now();
    marker.leave_now();
    expect_members(&hubs, &[]).await;
    let mut events = broker.published().await;
    events.retain(|event| event.contains("user"));
    let expected = ["join", "update", "leave"].map(|change| format!("hub.{change} user/7 \"ä\""));
    assert_eq!(events, expected);
}

/// The members that only a dead node held leave, each with one event.
pub async fn members_of_dead_node_leave_once<B: MembersServer>(broker: &B) {
    // On a busy machine, a node that lives renews its lease within this time.
    let options = presence_options().node_timeout(NODE_TIMEOUT * 3);
    let start_node = || broker.start_node_with(options.clone());
    let nodes = [start_node().await, start_node().await, start_node().await];
    let hubs = hubs_of::<B>(&nodes);
    let dead = start_node().await;
    let _stays = enter(&hubs[0], "stays", 1);
    let _also_elsewhere = enter(&hubs[1], "elsewhere", 1);
    let keys: Vec<_> = (100..250).map(|number| format!("dies {number}")).collect();
    let mut connections: Vec<_> = keys
        .iter()
        .map(|key| enter(B::hub(&dead), key, 1))
        .collect();
    connections.push(enter(B::hub(&dead), "elsewhere", 1));
    let all = keys.iter().map(String::as_str);
    let all = all.chain(["elsewhere", "stays"]);
    expect_members(&hubs, &all.collect::<Vec<_>>()).await;
    // The node is dropped before its connections, so it does not tell the broker of their end.
    drop((dead, connections));
    expect_members(&hubs, &["elsewhere", "stays"]).await;
    let late = start_node().await;
    expect_members(&hubs_of::<B>([&late]), &["elsewhere", "stays"]).await;
    let events = broker.published().await;
    let count = |key: &str| events.iter().filter(|event| event.ends_with(key)).count();
    for key in &keys {
        assert_eq!(count(key), 2, "{key}");
    }
    assert_eq!(count("elsewhere"), 1, "{events:?}");
}

/// While the broker is away, the lists stay, and changes wait.
pub async fn members_stay_while_broker_is_away<B: MembersServer>(broker: &mut B) {
    // After the absence, both nodes connect again within this time.
    let node_timeout = Duration::from_secs(4);
    let options = presence_options().node_timeout(node_timeout);
    let nodes = [
        broker.start_node_with(options.clone()).await,
        broker.start_node_with(options).await,
    ];
    let hubs = hubs_of::<B>(&nodes);
    let _ada = enter(&hubs[0], "ada", 1);
    let bob = enter(&hubs[1], "bob", 1);
    expect_members(&hubs, &["ada", "bob"]).await;
    broker.server().pause();
    sleep(node_timeout * 3 / 2).await;
    let _eve = enter(&hubs[1], "eve", 1);
    bob.leave_now();
    // In this time, the node sends its request, which the paused server answers late.
    sleep(Duration::from_millis(700)).await;
    let _bob = enter(&hubs[1], "bob", 2);
    broker.server().resume();
    expect_members(&hubs, &["ada", "bob", "eve"]).await;
    broker.server().kill();
    sleep(node_timeout * 3 / 2).await;
    let _dan = enter(&hubs[0], "dan", 1);
    broker.server().start_again();
    expect_members(&hubs, &["ada", "bob", "dan", "eve"]).await;
    sleep(node_timeout * 3 / 2).await;
    expect_members(&hubs, &["ada", "bob", "dan", "eve"]).await;
    let events = broker.published().await;
    for key in ["ada", "dan", "eve"] {
        let of_key = events.iter().filter(|event| event.ends_with(key));
        assert_eq!(of_key.count(), 1, "{events:?}");
    }
    assert_eq!(hubs[0].counts().pending_members, 0);
}

/// After the broker has lost the members, each connected client sees the changes that follow, each once, and nobody leaves who is connected. A
/// member whose node has died with the broker's members leaves, too. `lose` deletes what the broker has stored.
pub async fn lists_outlive_loss_of_members<B: MembersServer>(broker: &B, lose: impl AsyncFn(&B)) {
    // On a busy machine, a node that lives renews its lease within this time.
    let node_timeout = NODE_TIMEOUT * 6;
    let options = presence_options().node_timeout(node_timeout);
    // The third node has no members.
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(broker.start_node_with(options.clone()).await);
    }
    let hubs = hubs_of::<B>(&nodes);
    let dead = broker.start_node_with(options).await;
    let _ada = enter(&hubs[0], "ada", 1);
    let bob = enter(&hubs[1], "bob", 1);
    let dan = enter(B::hub(&dead), "dan", 1);
    expect_members(&hubs, &["ada", "bob", "dan"]).await;
    let mut observers = [0, 1, 2].map(|node| MemberObserver::subscribe(&hubs, node, None));
    for observer in &mut observers {
        observer.list.is_exact = false;
        observer.read(&hubs);
        assert_eq!(observer.changes, ["+ada", "+bob", "+dan"]);
        observer.changes.clear();
    }
    // Each node has renewed its lease, and knows all members.
    sleep(node_timeout / 2).await;
    // The node is dropped before its connection, so it does not tell the broker of its end.
    drop((dead, dan));
    lose(broker).await;
    let _eve = enter(&hubs[0], "eve", 1);
    // A client that gets a list after a gap may get the earlier events of its members, too. So nobody leaves before all clients have got their list.
    read_until(&mut observers, &hubs, |members| members.contains_key("eve")).await;
    bob.leave_now();
    let is_right = |members: &BTreeMap<String, Value>| members.keys().eq(["ada", "eve"]);
    read_until(&mut observers, &hubs, is_right).await;
    let ends_at = Instant::now() + node_timeout;
    while Instant::now() < ends_at {
        read_until(&mut observers, &hubs, is_right).await;
    }
    for observer in &mut observers {
        observer.changes.sort();
        let events = broker.published().await;
        assert_eq!(observer.changes, ["+eve", "-bob", "-dan"], "{events:?}");
    }
    let late = broker.start_node().await;
    expect_members(&hubs_of::<B>([&late]), &["ada", "eve"]).await;
}

/// Lets the observers read until this is true of their lists and of those of the nodes.
async fn read_until(
    observers: &mut [MemberObserver],
    hubs: &[Hub],
    is_right: impl Fn(&BTreeMap<String, Value>) -> bool,
) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        sleep(Duration::from_millis(5)).await;
        observers
            .iter_mut()
            .for_each(|observer| observer.read(hubs));
        let lists = observers.iter().map(|observer| &observer.list.members);
        if lists.clone().all(&is_right) && hubs.iter().all(|hub| is_right(&members(hub))) {
            return;
        }
        let lists: Vec<_> = lists.collect();
        assert!(Instant::now() < deadline, "{lists:?}");
    }
}

/// The limits are those of all nodes together.
pub async fn members_of_all_nodes_are_bounded<B: MembersServer>(broker: &B) {
    let limited = presence_options().max_members(2);
    let nodes = [
        broker.start_node_with(limited.clone()).await,
        broker.start_node_with(limited).await,
    ];
    let hubs = hubs_of::<B>(&nodes);
    // Each node admits two members before it hears of the other's.
    let first = ["a", "b"].map(|key| enter(&hubs[0], key, 1));
    let _second = ["c", "d"].map(|key| enter(&hubs[1], key, 1));
    let has_two = || hubs.iter().all(|hub| members(hub).len() == 2);
    wait_until(has_two, || "not two members").await;
    let refused = hubs[0].presence("room").unwrap().enter("e", 1);
    assert_eq!(refused.unwrap_err().status(), 503);
    first.into_iter().for_each(MemberConnection::leave_now);
    // Those that were refused are tried again.
    expect_members(&hubs, &["c", "d"]).await;
}

/// The idle cost: a node with members makes three requests within the node timeout, and others none. `late_requests` is the number of requests
/// that may follow when a member is in the list.
pub async fn idle_nodes_make_few_requests<B: MembersServer>(broker: &B, late_requests: u64) {
    let nodes = start_nodes(broker, 2).await;
    let hubs = hubs_of::<B>(&nodes);
    let before = broker.member_requests().await;
    sleep(NODE_TIMEOUT).await;
    assert_eq!(broker.member_requests().await, before);
    let ada = enter(&hubs[0], "ada", 1);
    expect_members(&hubs, &["ada"]).await;
    let before = (broker.member_requests().await, Instant::now());
    sleep(NODE_TIMEOUT * 3).await;
    let requests = broker.member_requests().await - before.0;
    let periods = before.1.elapsed().as_secs_f64() / NODE_TIMEOUT.as_secs_f64();
    let limit = 2.0 * (3.0 * periods + 1.0) + late_requests as f64;
    assert!(requests as f64 <= limit, "{requests} requests");
    ada.leave_now();
    expect_members(&hubs, &[]).await;
    sleep(NODE_TIMEOUT).await;
    let before = broker.member_requests().await;
    sleep(NODE_TIMEOUT).await;
    assert_eq!(broker.member_requests().await, before);
}
