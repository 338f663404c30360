//! Members of topics on several nodes of a hub over a real broker: random connections, and clients that keep the list of members.

use std::{
    collections::BTreeMap,
    future::Future,
    task::Poll,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use serde_json::Value;
use tokio::time::sleep;
use tower_push::{
    Hub, PushSource,
    event::Topic,
    source::{
        Subscription,
        hub::{HubSubscriber, MemberConnection, TopicAccess, Topics},
    },
};

use crate::{ObservedMembers, Random, TEST_TIMEOUT, get_request_head, poll_next, wait_until};

/// Connects a member to the topic `room`.
pub fn enter(node: &Hub, key: &str, value: impl Into<Value>) -> MemberConnection {
    node.presence("room").unwrap().enter(key, value).unwrap()
}

/// Returns the members of the topic `room`, with their values.
pub fn members(node: &Hub) -> BTreeMap<String, Value> {
    let list = node.presence("room").unwrap().list();
    let members = list.members.into_iter();
    members.map(|member| (member.key, member.value)).collect()
}

/// Waits until all nodes list these members of the topic `room`.
pub async fn expect_members(nodes: &[Hub], keys: &[&str]) {
    for node in nodes {
        let is_listed = || members(node).keys().eq(keys);
        let describe = || format!("{:?} instead of {keys:?}", members(node));
        wait_until(is_listed, describe).await;
    }
}

/// A broker for a random run: starts the nodes of the run, and lets something fail.
pub trait MembersBroker {
    /// What one process of a fleet has.
    type Node;

    /// Starts a node.
    fn start_node(&self) -> impl Future<Output = Self::Node>;

    /// Returns the hub of a node.
    fn hub(node: &Self::Node) -> &Hub;

    /// Returns whether a failure can lose changes that clients have got. Then clients get other changes twice, or list a change that is none.
    fn can_lose_changes(&self) -> bool {
        false
    }

    /// Lets something fail, and ends the failure.
    fn fail(&mut self, random: &mut Random) -> impl Future<Output = ()>;

    /// Returns the types and the members of all events of members.
    fn published(&self) -> impl Future<Output = Vec<String>>;
}

/// The number of nodes, each with an observer.
const NODES: usize = 3;

/// A client that keeps the list of members, as a page does.
pub(crate) struct MemberObserver {
    subscriber: HubSubscriber,
    node: usize,
    pub(crate) list: ObservedMembers,
    cursor: Option<String>,
    /// The keys that were added to the list, with a `+`, and removed from it, with a `-`.
    pub(crate) changes: Vec<String>,
}

impl MemberObserver {
    pub(crate) fn subscribe(nodes: &[Hub], node: usize, cursor: Option<String>) -> Self {
        let cursor_parameter = cursor
            .iter()
            .map(|cursor| format!("&last_event_id={cursor}"));
        let uri = format!("/?topic=room{}", cursor_parameter.collect::<String>());
        let access =
            |_: Subscription, _: Topic| std::future::ready(TopicAccess::allow().with_members());
        let source = nodes[node]
            .subscribe(Topics::from_query("topic"))
            .authorize(access);
        let subscription = Subscription::new(&get_request_head(&uri, &[]), "test");
        let subscriber = source
            .subscribe(subscription)
            .now_or_never()
            .expect("the access is ready");
        Self {
            subscriber: subscriber.unwrap(),
            node,
            list: ObservedMembers::default(),
            cursor,
            changes: Vec::new(),
        }
    }

    /// Subscribes again after the cursor.
    fn move_to(&mut self, nodes: &[Hub], node: usize) {
        let new = Self::subscribe(nodes, node, self.cursor.clone());
        let old = std::mem::replace(self, new);
        self.list.is_exact = old.list.is_exact;
        self.changes = old.changes;
        if self.cursor.is_some() {
            self.list = old.list;
            // The list of a client whose cursor the server does not know can be newer than the next events.
            self.list.is_exact = false;
        }
    }

    /// Reads all items that are ready. Subscribes again after the end.
    pub(crate) fn read(&mut self, nodes: &[Hub]) {
        while let Poll::Ready(item) = poll_next(&mut self.subscriber) {
            let Some(item) = item else {
                self.move_to(nodes, self.node);
                return;
            };
            let item = item.unwrap();
            if let Some(cursor) = item.cursor() {
                self.cursor = Some(cursor.to_string());
            }
            let before = self.list.members.clone();
            self.list.apply(&item);
            let after = &self.list.members;
            let removed = before.keys().filter(|key| !after.contains_key(*key));
            let added = after.keys().filter(|key| !before.contains_key(*key));
            let removed = removed.map(|key| format!("-{key}"));
            self.changes
                .extend(removed.chain(added.map(|key| format!("+{key}"))));
        }
    }
}

struct RandomRun<B: MembersBroker> {
    broker: B,
    nodes: Vec<B::Node>,
    hubs: Vec<Hub>,
    connections: Vec<Option<(String, usize, MemberConnection)>>,
    observers: Vec<MemberObserver>,
    random: Random,
}

impl<B: MembersBroker> RandomRun<B> {
    async fn step(&mut self, has_faults: bool) {
        let node = self.random.below(3) as usize;
        match self.random.below(if has_faults { 15 } else { 13 }) {
            0..=4 => {
                let index = self.random.below(self.connections.len() as u64) as usize;
                let key = format!("m{}", self.random.below(4));
                let value = self.random.below(2);
                if self.connections[index].is_none() {
                    let entered = enter(&self.hubs[node], &key, value);
                    self.connections[index] = Some((key, node, entered));
                }
            }
            5..=8 => {
                let index = self.random.below(self.connections.len() as u64) as usize;
                self.connections[index] = None;
            }
            9 => {
                let room = self.hubs[node].presence("room").unwrap();
                let key = format!("m{}", self.random.below(4));
                let _ = room.update(key.as_str(), self.random.below(2)).unwrap();
            }
            10 => self.observers[node].move_to(&self.hubs, self.random.below(3) as usize),
            11 => sleep(Duration::from_millis(self.random.below(300))).await,
            // The first server stays, with an observer that gets each event once.
            12 if node > 0 => self.replace_node(node).await,
            13 | 14 => self.broker.fail(&mut self.random).await,
            _ => {}
        }
        sleep(Duration::from_millis(self.random.below(20))).await;
        for observer in &mut self.observers {
            observer.read(&self.hubs);
        }
    }

    /// Drops all that belongs to a server, so that the broker hears no word of it, and starts another one.
    async fn replace_node(&mut self, node: usize) {
        for connection in &mut self.connections {
            connection.take_if(|(_, of_node, _)| *of_node == node);
        }
        let new = self.broker.start_node().await;
        self.hubs[node] = B::hub(&new).clone();
        self.nodes[node] = new;
        for observer in &mut self.observers {
            if observer.node == node {
                observer.move_to(&self.hubs, node);
            }
        }
    }

    /// Waits until all lists are those of the connections.
    async fn settle(&mut self) {
        let connected = self.connections.iter().flatten();
        let mut keys: Vec<_> = connected.map(|(key, ..)| key.clone()).collect();
        keys.sort();
        keys.dedup();
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            for observer in &mut self.observers {
                observer.read(&self.hubs);
            }
            let listed = members(&self.hubs[0]);
            let is_listed = listed.keys().eq(&keys)
                && self.hubs.iter().all(|node| members(node) == listed)
                && self
                    .observers
                    .iter()
                    .all(|observer| observer.list.members == listed);
            if is_listed {
                return;
            }
            let nodes: Vec<_> = self.hubs.iter().map(members).collect();
            let observers: Vec<_> = self
                .observers
                .iter()
                .map(|observer| &observer.list.members)
                .collect();
            assert!(
                Instant::now() < deadline,
                "{keys:?}: {nodes:?}, {observers:?}"
            );
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Connects members at random to three nodes that are replaced at random, and checks the lists of the nodes and of the clients that keep them.
/// Without faults, each member's events must be a join, updates and a leave in turn.
pub async fn run_members_randomly<B: MembersBroker>(broker: B, seed: u64, has_faults: bool) {
    println!("seed {seed}");
    let mut nodes = Vec::new();
    for _ in 0..NODES {
        nodes.push(broker.start_node().await);
    }
    let hubs: Vec<_> = nodes.iter().map(|node| B::hub(node).clone()).collect();
    let observers = (0..NODES).map(|node| {
        let mut observer = MemberObserver::subscribe(&hubs, node, None);
        observer.list.is_exact = !(has_faults && broker.can_lose_changes());
        observer
    });
    let mut run = RandomRun {
        observers: observers.collect(),
        broker,
        nodes,
        hubs,
        connections: (0..8).map(|_| None).collect(),
        random: Random::new(seed),
    };
    for _ in 0..3 {
        for _ in 0..40 {
            run.step(has_faults).await;
        }
        run.settle().await;
    }
    run.connections.clear();
    run.settle().await;
    if !has_faults {
        let mut listed = BTreeMap::new();
        for event in run.broker.published().await {
            let (event_type, key) = event.split_once(' ').unwrap();
            let was_listed = match event_type {
                "hub.leave" => listed.remove(key).is_some(),
                _ => listed.insert(key.to_owned(), ()).is_some(),
            };
            assert_eq!(was_listed, event_type != "hub.join", "seed {seed}: {event}");
        }
        assert!(listed.is_empty());
    }
}
