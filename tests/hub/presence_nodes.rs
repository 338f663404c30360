//! Members of topics that several servers show: random connections on all servers, servers that die, a broker that fails, and clients that keep
//! the list of members.
//!
//! The promises:
//! - The events of a member are a join, updates and a leave in turn, whatever the number of servers.
//! - A member with a connection to a server is in the list. A member without a connection leaves after the grace time, or after the node timeout
//!   if its server has died.
//! - Each client that applies the events after its list has the list of the broker.

use std::{
    collections::{BTreeMap, BTreeSet},
    task::Poll,
    time::Duration,
};

use proptest::prelude::*;
use serde_json::Value;
use testkit::{ObservedMembers, members, poll_next};
use tokio::time::{Instant, sleep};
use tower_push::{
    Hub,
    source::hub::{HubSubscriber, MemberConnection, PresenceOptions},
};

use crate::{
    broker::{Broker, Node},
    paused_clock::block_on_paused,
    presence::{GRACE, subscribe},
    presence_ledger::PresenceLedger,
};

const NODES: usize = 3;
const CONNECTIONS: usize = 6;
const OBSERVERS: usize = 3;
const NODE_TIMEOUT: Duration = Duration::from_secs(30);

/// The time between two signs of life of a node.
const RENEWAL: Duration = Duration::from_secs(10);

/// The time that a request to the broker and a read of the feed take at most.
const DELAY: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
enum Step {
    Connect {
        connection: usize,
        node: usize,
        member: usize,
        value: u8,
    },
    Disconnect(usize),
    /// The server sets the value of a member, which can be on another server.
    Update {
        node: usize,
        member: usize,
        value: u8,
    },
    /// A server dies, and another one starts in its place.
    Kill(usize),
    /// The feed of a server stops, or goes on.
    Lag(usize),
    Wait(u64),
    /// An observer reads this number of items, or all that are ready.
    Read {
        observer: usize,
        items: usize,
    },
    /// An observer subscribes again, on this node: after its cursor, or without one.
    Return {
        observer: usize,
        node: usize,
        has_cursor: bool,
    },
    Fault(Fault),
}

#[derive(Clone, Debug)]
enum Fault {
    /// The next calls of the broker fail.
    Fail(usize),
    /// The next requests about members are applied, and their answers are lost.
    LoseAnswers(usize),
    /// The next requests about members are applied after the requests that follow.
    Delay(usize),
    /// The broker drops its oldest events.
    Trim(usize),
    /// The events are gone, and the members are not.
    Recreate,
    /// The events and the members are gone.
    LoseAll,
    /// The broker is away for this number of seconds.
    Away(u64),
}

fn random_step() -> impl Strategy<Value = Step> {
    let fault = prop_oneof![
        2 => (1_usize..4).prop_map(Fault::Fail),
        2 => (1_usize..3).prop_map(Fault::LoseAnswers),
        2 => (1_usize..3).prop_map(Fault::Delay),
        1 => (1_usize..20).prop_map(Fault::Trim),
        1 => Just(Fault::Recreate),
        1 => Just(Fault::LoseAll),
        1 => (5_u64..80).prop_map(Fault::Away),
    ];
    prop_oneof![
        5 => (0..CONNECTIONS, 0..NODES, 0..3_usize, 0..2_u8)
            .prop_map(|(connection, node, member, value)| Step::Connect { connection, node, member, value }),
        4 => (0..CONNECTIONS).prop_map(Step::Disconnect),
        1 => (0..NODES, 0..3_usize, 0..2_u8)
            .prop_map(|(node, member, value)| Step::Update { node, member, value }),
        1 => (1..NODES).prop_map(Step::Kill),
        2 => (1..NODES).prop_map(Step::Lag),
        4 => (1_u64..15).prop_map(Step::Wait),
        3 => (0..OBSERVERS, prop_oneof![1..4_usize, Just(usize::MAX)])
            .prop_map(|(observer, items)| Step::Read { observer, items }),
        2 => (0..OBSERVERS, 0..NODES, any::<bool>())
            .prop_map(|(observer, node, has_cursor)| Step::Return { observer, node, has_cursor }),
        2 => fault.prop_map(Step::Fault),
    ]
}

#[derive(Default)]
struct Observer {
    subscriber: Option<HubSubscriber>,
    node: usize,
    list: ObservedMembers,
    cursor: Option<String>,
}

impl Observer {
    fn subscribe(&mut self, hub: &Hub, node: usize, has_cursor: bool) {
        self.node = node;
        let cursor = self.cursor.take().filter(|_| has_cursor);
        let uri = match &cursor {
            Some(cursor) => format!("/?topic=room&last_event_id={cursor}"),
            None => "/?topic=room".to_owned(),
        };
        if cursor.is_none() {
            self.list = ObservedMembers::default();
        }
        self.cursor = cursor;
        self.subscriber = Some(subscribe(hub, &uri).unwrap());
    }

    /// Reads items. Returns `false` if the stream has ended.
    fn read(&mut self, max_items: usize) -> bool {
        let Some(subscriber) = &mut self.subscriber else {
            return false;
        };
        for _ in 0..max_items {
            let Poll::Ready(item) = poll_next(subscriber) else {
                return true;
            };
            let Some(item) = item else { return false };
            let item = item.unwrap();
            if let Some(cursor) = item.cursor() {
                self.cursor = Some(cursor.to_string());
            }
            self.list.apply(&item);
        }
        true
    }
}

/// The time for which a server keeps a member in the list, as far as the test can know it.
#[derive(Clone, Copy, Debug)]
struct Hold {
    /// The time up to which the member must be in the list. `None` while it has a connection.
    certain_until: Option<Instant>,
    /// The time from which the server must not keep the member any more. `None` while it has a connection.
    possible_until: Option<Instant>,
}

struct Run {
    broker: Broker,
    nodes: Vec<Node>,
    connections: [Option<(String, usize, MemberConnection)>; CONNECTIONS],
    observers: [Observer; OBSERVERS],
    holds: BTreeMap<(String, usize), Vec<Hold>>,
    values: BTreeMap<String, Value>,
    is_lagging: [bool; NODES],
    has_faults: bool,
}

fn start_node(broker: &Broker) -> Node {
    let options = PresenceOptions::new()
        .grace(GRACE)
        .node_timeout(NODE_TIMEOUT);
    broker.node(Hub::builder().presence(options), 8)
}

impl Run {
    fn new(has_faults: bool) -> Self {
        let broker = Broker::default();
        let mut run = Self {
            nodes: (0..NODES).map(|_| start_node(&broker)).collect(),
            broker,
            connections: Default::default(),
            observers: Default::default(),
            holds: BTreeMap::new(),
            values: BTreeMap::new(),
            is_lagging: [false; NODES],
            has_faults,
        };
        for (node, observer) in run.observers.iter_mut().enumerate() {
            observer.subscribe(&run.nodes[node].hub, node, false);
        }
        run
    }

    async fn apply(&mut self, step: Step) {
        match step {
            Step::Connect {
                connection,
                node,
                member,
                value,
            } if self.connections[connection].is_none() => {
                let key = format!("m{member}");
                let value = Value::from(value);
                let room = self.nodes[node].hub.presence("room").unwrap();
                let entered = room.enter(key.as_str(), value.clone()).unwrap();
                self.values.insert(key.clone(), value);
                let holds = self.holds.entry((key.clone(), node)).or_default();
                // The node still keeps the member, unless the grace time of the earlier connection is over.
                holds.retain(|hold| {
                    hold.possible_until
                        .is_some_and(|time| time > Instant::now())
                });
                holds.push(Hold {
                    certain_until: None,
                    possible_until: None,
                });
                self.connections[connection] = Some((key, node, entered));
            }
            Step::Disconnect(connection) => {
                if let Some((key, node, entered)) = self.connections[connection].take() {
                    drop(entered);
                    if !self.has_connection(&key, node) {
                        self.end_holds(&key, node, GRACE, GRACE + DELAY);
                    }
                }
            }
            Step::Update {
                node,
                member,
                value,
            } => {
                let key = format!("m{member}");
                let room = self.nodes[node].hub.presence("room").unwrap();
                let is_member = room.update(key.as_str(), value).unwrap();
                let certain = self.has_certain_hold(&key);
                let is_known = is_member || self.is_lagging[node];
                assert!(self.has_faults || is_known || !certain);
                if is_member && certain {
                    self.values.insert(key, Value::from(value));
                } else if is_member {
                    self.values.remove(&key);
                }
            }
            Step::Kill(node) => self.kill(node),
            Step::Lag(node) => self.is_lagging[node] ^= true,
            Step::Wait(seconds) => self.wait(seconds).await,
            Step::Read { observer, items } => drop(self.observers[observer].read(items)),
            Step::Return {
                observer,
                node,
                has_cursor,
            } => {
                let hub = &self.nodes[node].hub;
                self.observers[observer].subscribe(hub, node, has_cursor);
            }
            Step::Fault(fault) if self.has_faults => self.fault(fault).await,
            Step::Connect { .. } | Step::Fault(_) => {}
        }
        sleep(Duration::from_millis(20)).await;
        self.feed();
        self.check_members();
    }

    fn has_connection(&self, key: &str, node: usize) -> bool {
        let mut connections = self.connections.iter().flatten();
        connections.any(|(other, of_node, _)| other == key && *of_node == node)
    }

    fn has_certain_hold(&self, key: &str) -> bool {
        let now = Instant::now();
        let is_certain = |hold: &Hold| hold.certain_until.is_none_or(|time| time > now);
        let mut holds = self.holds.iter().filter(|((other, _), _)| other == key);
        holds.any(|(_, holds)| holds.iter().any(is_certain))
    }

    fn end_holds(&mut self, key: &str, node: usize, certain: Duration, possible: Duration) {
        let now = Instant::now();
        for hold in self.holds.entry((key.to_owned(), node)).or_default() {
            hold.certain_until.get_or_insert(now + certain);
            hold.possible_until.get_or_insert(now + possible);
        }
    }

    /// Drops all that belongs to a server, so that the broker hears no word of it, and starts another one.
    fn kill(&mut self, node: usize) {
        let keys: Vec<_> = self
            .holds
            .keys()
            .filter(|(_, of_node)| *of_node == node)
            .cloned()
            .collect();
        for (key, _) in keys {
            let possible = NODE_TIMEOUT + RENEWAL + DELAY;
            // A member whose grace time has begun stays for longer, because the dead server cannot tell the broker that the grace time is over.
            for hold in self.holds.get_mut(&(key.clone(), node)).unwrap() {
                let is_over = hold
                    .possible_until
                    .is_some_and(|time| time <= Instant::now());
                if !is_over && hold.possible_until.is_some() {
                    hold.possible_until = Some(Instant::now() + possible);
                }
            }
            self.end_holds(&key, node, NODE_TIMEOUT - RENEWAL - DELAY, possible);
            // From here on, the number of this node is that of the new server. The holds of the dead server get the number `NODES`.
            let old = self.holds.remove(&(key.clone(), node)).unwrap();
            self.holds.entry((key, NODES)).or_default().extend(old);
        }
        for connection in &mut self.connections {
            connection.take_if(|(_, of_node, _)| *of_node == node);
        }
        for observer in self
            .observers
            .iter_mut()
            .filter(|observer| observer.node == node)
        {
            observer.subscriber = None;
        }
        self.nodes[node] = start_node(&self.broker);
        self.is_lagging[node] = false;
        for observer in self
            .observers
            .iter_mut()
            .filter(|observer| observer.node == node)
        {
            observer.subscribe(&self.nodes[node].hub, node, true);
        }
    }

    async fn fault(&mut self, fault: Fault) {
        if let Fault::Away(seconds) = fault {
            self.broker.lock().failures = usize::MAX;
            self.wait(seconds).await;
            self.broker.lock().failures = 0;
            return;
        }
        let mut broker = self.broker.lock();
        match fault {
            Fault::Fail(calls) => broker.failures += calls,
            Fault::LoseAnswers(requests) => broker.lost_answers += requests,
            Fault::Delay(requests) => broker.delays += requests,
            Fault::Trim(events) => broker.trim(events),
            Fault::Recreate => broker.recreate(),
            Fault::LoseAll => {
                broker.recreate();
                broker.presence = PresenceLedger::default();
                broker.presence_log.clear();
            }
            Fault::Away(_) => {}
        }
    }

    fn feed(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.push(usize::MAX));
    }

    async fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds {
            sleep(Duration::from_secs(1)).await;
            self.feed();
            self.check_members();
        }
    }

    fn broker_members(&self) -> BTreeMap<String, Value> {
        let broker = self.broker.lock();
        let members = broker.presence.members.iter();
        members
            .map(|((_, key), (value, _))| (key.to_string(), Value::clone(value)))
            .collect()
    }

    /// Compares the members in the broker with the connections, and the lists of all servers with the broker.
    fn check_members(&self) {
        let listed = self.broker_members();
        for (node, is_lagging) in self.nodes.iter().zip(self.is_lagging) {
            assert!(is_lagging || members(&node.hub) == listed);
        }
        if self.has_faults {
            return;
        }
        let now = Instant::now();
        for key in ["m0", "m1", "m2"] {
            let holds = self.holds.iter().filter(|((other, _), _)| other == key);
            let mut holds = holds.flat_map(|(_, holds)| holds);
            let is_possible = holds.any(|hold| hold.possible_until.is_none_or(|time| time > now));
            let is_listed = listed.contains_key(key);
            assert!(!self.has_certain_hold(key) || is_listed, "{key} has left");
            assert!(is_possible || !is_listed, "{key} has not left");
        }
    }

    /// Checks that each event of a member changes the list.
    fn check_events(&self) {
        let mut list = ObservedMembers::default();
        let broker = self.broker.lock();
        for event in &broker.presence_log {
            assert_eq!(
                event.members_topic().map(|topic| topic.as_str()),
                Some("room")
            );
            list.apply_event(event.event());
        }
        drop(broker);
        assert_eq!(list.members, self.broker_members());
    }

    /// Ends all faults, and waits until nothing changes any more.
    async fn settle(&mut self) {
        self.is_lagging = [false; NODES];
        {
            let mut broker = self.broker.lock();
            (broker.failures, broker.lost_answers, broker.delays) = (0, 0, 0);
        }
        let seconds = (3 * NODE_TIMEOUT + GRACE + 2 * RENEWAL).as_secs();
        self.wait(seconds).await;
        let connected = self.connections.iter().flatten();
        let connected: BTreeSet<_> = connected.map(|(key, ..)| key.clone()).collect();
        let listed = self.broker_members();
        assert_eq!(listed.keys().cloned().collect::<BTreeSet<_>>(), connected);
        if !self.has_faults {
            for key in &connected {
                assert!(
                    self.values
                        .get(key)
                        .is_none_or(|value| *value == listed[key])
                );
            }
        }
        self.check_events();
        for index in 0..OBSERVERS {
            for _ in 0..100 {
                sleep(Duration::from_secs(1)).await;
                let observer = &mut self.observers[index];
                if !observer.read(usize::MAX) {
                    let node = observer.node;
                    observer.subscribe(&self.nodes[node].hub, node, true);
                } else if observer.list.members == listed {
                    break;
                }
            }
            assert_eq!(
                self.observers[index].list.members, listed,
                "observer {index}"
            );
        }
    }
}

async fn run(steps: Vec<Step>, has_faults: bool) {
    let mut run = Run::new(has_faults);
    for step in steps {
        run.apply(step).await;
    }
    run.settle().await;
    for connection in 0..CONNECTIONS {
        run.apply(Step::Disconnect(connection)).await;
    }
    run.settle().await;
    assert!(run.broker_members().is_empty());
    // Without members, the nodes make no requests.
    let requests = run.broker.lock().presence_requests;
    run.wait(100).await;
    assert_eq!(run.broker.lock().presence_requests, requests);
}

#[tokio::test(start_paused = true)]
async fn many_members_leave_at_once() {
    let broker = Broker::default();
    let mut node = start_node(&broker);
    let room = node.hub.presence("room").unwrap();
    let enter = |member: u32| room.enter(format!("m{member}"), member).unwrap();
    let connections: Vec<_> = (0..500).map(enter).collect();
    sleep(Duration::from_secs(1)).await;
    node.push(usize::MAX);
    assert_eq!(room.len(), 500);
    drop(connections);
    sleep(GRACE / 2).await;
    node.push(usize::MAX);
    assert_eq!(room.len(), 500);
    sleep(GRACE).await;
    node.push(usize::MAX);
    assert!(room.is_empty());
}

/// A run takes many steps, so there are fewer runs than in other tests.
fn fewer_runs() -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig {
        cases: config.cases / 8,
        ..config
    }
}

proptest! {
    #![proptest_config(fewer_runs())]

    #[test]
    fn members_of_all_nodes_are_listed(steps in proptest::collection::vec(random_step(), 1..60)) {
        block_on_paused(run(steps, false));
    }

    #[test]
    fn members_survive_faults_of_broker(steps in proptest::collection::vec(random_step(), 1..60)) {
        block_on_paused(run(steps, true));
    }
}
