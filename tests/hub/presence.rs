//! Members of topics: who is there, what clients are told about it, and the limits.

use std::{collections::BTreeMap, sync::mpsc, task::Poll, time::Duration};

use futures_util::FutureExt;
use proptest::prelude::*;
use serde_json::{Value, json};
use testkit::{ObservedMembers, get_request_head, members, poll_next, read_ready_items};
use tokio::time::{Instant, sleep};
use tower_push::{
    Event, Hub, Item, PushSource,
    event::Topic,
    source::{
        Rejection, Subscription,
        hub::{ClientTopicsSource, HubSubscriber, PresenceOptions, TopicAccess, Topics},
    },
};

use crate::paused_clock::block_on_paused;

pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// Returns a source whose clients are members under the name in the query parameter `as`, with the value `v`, and others get lists of members.
pub(crate) fn source(hub: &Hub) -> ClientTopicsSource {
    hub.subscribe(Topics::from_query("topic")).authorize(
        async |subscription: Subscription, _: Topic| {
            let query = subscription
                .head()
                .uri
                .query()
                .unwrap_or_default()
                .to_owned();
            let parameter = |name: &str| {
                let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
                pairs
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| value.to_owned())
            };
            match parameter("as") {
                Some(key) => TopicAccess::allow().present(key, parameter("v")),
                None => TopicAccess::allow().with_members(),
            }
        },
    )
}

pub(crate) fn subscribe(hub: &Hub, uri: &str) -> Result<HubSubscriber, Rejection> {
    let subscription = Subscription::new(&get_request_head(uri, &[]), "test");
    source(hub)
        .subscribe(subscription)
        .now_or_never()
        .expect("the authorization is ready")
}

fn data(event: &Event) -> Value {
    serde_json::from_slice(event.payload().as_bytes()).unwrap()
}

/// Reads all events that are ready, as their types and data. Asserts that the stream has not ended.
fn read_events(subscriber: &mut HubSubscriber) -> Vec<String> {
    let mut lines = Vec::new();
    while let Poll::Ready(item) = poll_next(subscriber) {
        match item.expect("the stream goes on").unwrap() {
            Item::Event(event) => {
                let event_type = event.event_type().map_or("", |name| name.as_str());
                lines.push(format!("{event_type} {}", data(&event)));
            }
            Item::Gap(gap) => lines.push(format!("gap {}", gap.topic.unwrap())),
            _ => {}
        }
    }
    lines
}

#[tokio::test(start_paused = true)]
async fn clients_see_members_come_and_go() {
    let hub = Hub::new();
    let mut observer = subscribe(&hub, "/?topic=room").unwrap();
    assert_eq!(
        read_events(&mut observer),
        [r#"hub.members {"members":[]}"#]
    );
    let first = subscribe(&hub, "/?topic=room&as=ada&v=1").unwrap();
    let second = subscribe(&hub, "/?topic=room&as=ada&v=2").unwrap();
    assert_eq!(
        read_events(&mut observer),
        [
            r#"hub.join {"member":"ada","value":"1"}"#,
            r#"hub.update {"member":"ada","value":"2"}"#
        ]
    );
    let mut late = subscribe(&hub, "/?topic=room").unwrap();
    let list = r#"hub.members {"members":[{"member":"ada","value":"2"}]}"#;
    assert_eq!(read_events(&mut late), [list]);
    drop(first);
    sleep(GRACE * 2).await;
    assert_eq!(hub.presence("room").unwrap().len(), 1);
    drop(second);
    sleep(GRACE / 2).await;
    let back = subscribe(&hub, "/?topic=room&as=ada&v=2").unwrap();
    sleep(GRACE * 2).await;
    assert!(
        read_events(&mut observer).is_empty(),
        "a reconnection is no leave"
    );
    drop(back);
    sleep(GRACE + Duration::from_millis(5)).await;
    assert_eq!(
        read_events(&mut observer),
        [r#"hub.leave {"member":"ada"}"#]
    );
    assert_eq!(read_events(&mut late), [r#"hub.leave {"member":"ada"}"#]);
    assert!(hub.presence("room").unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn list_precedes_cursor() {
    let hub = Hub::new();
    let mut observer = subscribe(&hub, "/?topic=room").unwrap();
    assert_eq!(
        read_ready_items(&mut observer),
        [r#"{"members":[]}"#, "cursor"]
    );
}

#[tokio::test(start_paused = true)]
async fn server_enters_and_updates_members() {
    let hub = Hub::new();
    let room = hub.presence("room").unwrap();
    assert!(!room.update("bot", 1).unwrap());
    let bot = room.enter("bot", json!({"is": "idle"})).unwrap();
    let cursor = room.list().cursor;
    assert!(room.update("bot", json!({"is": "busy"})).unwrap());
    // A client that has the list goes on after the list's cursor.
    let uri = format!("/?topic=room&last_event_id={cursor}");
    let mut observer = subscribe(&hub, &uri).unwrap();
    assert_eq!(
        read_events(&mut observer),
        [r#"hub.update {"member":"bot","value":{"is":"busy"}}"#]
    );
    bot.leave_now();
    assert_eq!(
        read_events(&mut observer),
        [r#"hub.leave {"member":"bot"}"#]
    );
}

#[tokio::test(start_paused = true)]
async fn events_of_members_can_have_their_own_topic() {
    let hub = Hub::builder()
        .presence(PresenceOptions::new().topic_suffix("/members"))
        .build();
    let _ada = subscribe(&hub, "/?topic=room&as=ada&v=1").unwrap();
    assert!(hub.topic("room").unwrap().is_empty());
    let mut observer = subscribe(&hub, "/?topic=room/members").unwrap();
    let list = r#"hub.members {"members":[{"member":"ada","value":"1"}]}"#;
    assert_eq!(read_events(&mut observer), [list]);
    let _eve = subscribe(&hub, "/?topic=room&as=eve&v=1").unwrap();
    assert_eq!(
        read_events(&mut observer),
        [r#"hub.join {"member":"eve","value":"1"}"#]
    );
    let long = format!("/?topic={}&as=eve", "x".repeat(1020));
    assert_eq!(subscribe(&hub, &long).unwrap_err().status(), 400);
}

#[tokio::test(start_paused = true)]
async fn members_are_bounded() {
    let hub = Hub::builder()
        .presence(
            PresenceOptions::new()
                .max_members(2)
                .max_total_members(3)
                .max_member_len(20),
        )
        .build();
    let enter = |topic, key: &str| hub.presence(topic).unwrap().enter(key, "v");
    let _kept = [enter("a", "1").unwrap(), enter("a", "2").unwrap()];
    assert_eq!(enter("a", "3").unwrap_err().status(), 503);
    let again = enter("a", "1").unwrap();
    let other = enter("b", "1").unwrap();
    assert_eq!(enter("c", "1").unwrap_err().status(), 503);
    // A member without a connection has its place until it has left.
    drop((again, other));
    assert_eq!(enter("c", "1").unwrap_err().status(), 503);
    sleep(GRACE + Duration::from_millis(5)).await;
    enter("c", "1").unwrap().leave_now();
    let megabyte = "x".repeat(1 << 20);
    assert_eq!(enter("c", &megabyte).unwrap_err().status(), 400);
    let room = hub.presence("c").unwrap();
    assert_eq!(room.enter("1", megabyte).unwrap_err().status(), 400);
    // A key of one byte, and a text with its quotes.
    room.enter("1", "x".repeat(17)).unwrap().leave_now();
    assert_eq!(room.enter("1", "x".repeat(18)).unwrap_err().status(), 400);
    assert_eq!(hub.presence("a").unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn revoked_member_leaves_at_once() {
    let hub = Hub::new();
    let mut ada = subscribe(&hub, "/?topic=room&as=ada&v=1").unwrap();
    assert_eq!(
        hub.revoke("room", |member| member == Some("ada")).unwrap(),
        1
    );
    while let Poll::Ready(Some(_)) = poll_next(&mut ada) {}
    drop(ada);
    assert!(hub.presence("room").unwrap().is_empty());
}

#[test]
fn member_outside_of_a_runtime_leaves_at_once() {
    let hub = Hub::new();
    drop(hub.presence("room").unwrap().enter("ada", 1).unwrap());
    assert!(hub.presence("room").unwrap().is_empty());
}

/// A payload that uses the hub's list of members when it is dropped.
struct PayloadOwner {
    hub: Hub,
    dropped: mpsc::Sender<usize>,
}

impl AsRef<[u8]> for PayloadOwner {
    fn as_ref(&self) -> &[u8] {
        b"x"
    }
}

impl Drop for PayloadOwner {
    fn drop(&mut self) {
        let _ = self.dropped.send(self.hub.presence("room").unwrap().len());
    }
}

/// An event of a member trims an older event, and a list of members evicts a topic. Payloads are dropped outside of the locks.
#[test]
fn dropped_payload_may_use_the_members() {
    let hub = Hub::builder().max_events(1).max_topics(1).build();
    let (dropped, drops) = mpsc::channel();
    let publish = |topic: &str| {
        let owner = PayloadOwner {
            hub: hub.clone(),
            dropped: dropped.clone(),
        };
        hub.publish(topic, bytes::Bytes::from_owner(owner)).unwrap();
    };
    publish("room");
    // In a thread of its own, a deadlock fails the test by the timeout.
    let thread = std::thread::spawn({
        let hub = hub.clone();
        move || drop(hub.presence("room").unwrap().enter("ada", 1).unwrap())
    });
    assert_eq!(drops.recv_timeout(Duration::from_secs(60)), Ok(1));
    thread.join().unwrap();
    publish("old");
    let thread = std::thread::spawn({
        let hub = hub.clone();
        move || drop(subscribe(&hub, "/?topic=room").unwrap())
    });
    assert_eq!(drops.recv_timeout(Duration::from_secs(60)), Ok(0));
    thread.join().unwrap();
}

#[tokio::test(start_paused = true)]
async fn hub_of_last_values_keeps_its_values() {
    let hub = Hub::builder().last_value_only().build();
    hub.publish("room", "1").unwrap();
    let ada = subscribe(&hub, "/?topic=room&as=ada&v=1").unwrap();
    assert_eq!(members(&hub).len(), 1);
    let mut observer = subscribe(&hub, "/?topic=room").unwrap();
    assert_eq!(read_events(&mut observer), [" 1"]);
    drop(ada);
    sleep(GRACE + Duration::from_millis(5)).await;
    assert!(members(&hub).is_empty());
    assert_eq!(hub.topic("room").unwrap().len(), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Connect {
        connection: usize,
        member: usize,
        value: u8,
    },
    Disconnect {
        connection: usize,
    },
    Publish,
    Wait {
        seconds: u64,
    },
    /// Reads this number of items, or all that are ready.
    Read {
        observer: usize,
        items: usize,
    },
    /// Subscribes an observer again: after its cursor, or without one.
    Return {
        observer: usize,
        has_cursor: bool,
    },
}

const CONNECTIONS: usize = 5;
const OBSERVERS: usize = 2;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..CONNECTIONS, 0..3_usize, 0..2_u8)
            .prop_map(|(connection, member, value)| Step::Connect { connection, member, value }),
        4 => (0..CONNECTIONS).prop_map(|connection| Step::Disconnect { connection }),
        1 => Just(Step::Publish),
        // No multiple of 3 s differs from another by the grace time.
        3 => (1..5_u64).prop_map(|steps| Step::Wait { seconds: 3 * steps }),
        3 => (0..OBSERVERS, prop_oneof![1..4_usize, Just(usize::MAX)])
            .prop_map(|(observer, items)| Step::Read { observer, items }),
        2 => (0..OBSERVERS, any::<bool>())
            .prop_map(|(observer, has_cursor)| Step::Return { observer, has_cursor }),
    ]
}

/// A client that keeps the list of members, as a page does.
struct Observer {
    subscriber: HubSubscriber,
    list: ObservedMembers,
    cursor: Option<String>,
}

impl Observer {
    fn subscribe(hub: &Hub) -> Self {
        Self {
            subscriber: subscribe(hub, "/?topic=room").unwrap(),
            list: ObservedMembers::default(),
            cursor: None,
        }
    }

    fn resume(&mut self, hub: &Hub) {
        let Some(cursor) = &self.cursor else {
            *self = Self::subscribe(hub);
            return;
        };
        let uri = format!("/?topic=room&last_event_id={cursor}");
        self.subscriber = subscribe(hub, &uri).unwrap();
    }

    fn read(&mut self, max_items: usize) {
        for _ in 0..max_items {
            let Poll::Ready(item) = poll_next(&mut self.subscriber) else {
                break;
            };
            let item = item.unwrap().unwrap();
            if let Some(cursor) = item.cursor() {
                self.cursor = Some(cursor.to_string());
            }
            self.list.apply(&item);
        }
    }
}

/// What the list of members must be.
#[derive(Default)]
struct Model {
    /// The value of each member, and when the member leaves.
    members: BTreeMap<String, (Value, Option<Instant>)>,
}

impl Model {
    fn members(&mut self) -> BTreeMap<String, Value> {
        let now = Instant::now();
        self.members
            .retain(|_, (_, leaves_at)| leaves_at.is_none_or(|time| time > now));
        let members = self.members.iter();
        members
            .map(|(key, (value, _))| (key.clone(), value.clone()))
            .collect()
    }
}

async fn run(steps: Vec<Step>, max_events: usize) {
    let hub = Hub::builder().max_events(max_events).build();
    let mut model = Model::default();
    let mut connections: [Option<(String, HubSubscriber)>; CONNECTIONS] = Default::default();
    let mut observers: [Observer; OBSERVERS] = std::array::from_fn(|_| Observer::subscribe(&hub));
    for step in steps {
        model.members();
        match step {
            Step::Connect {
                connection,
                member,
                value,
            } if connections[connection].is_none() => {
                let key = format!("m{member}");
                let uri = format!("/?topic=room&as={key}&v={value}");
                connections[connection] = Some((key.clone(), subscribe(&hub, &uri).unwrap()));
                model
                    .members
                    .insert(key, (Value::String(value.to_string()), None));
            }
            Step::Disconnect { connection } => {
                if let Some((key, _)) = connections[connection].take() {
                    let mut others = connections.iter().flatten();
                    if !others.any(|(other, _)| *other == key) {
                        let (_, leaves_at) = model.members.get_mut(&key).unwrap();
                        *leaves_at = Some(Instant::now() + GRACE);
                    }
                }
            }
            Step::Publish => drop(hub.publish("room", "{}").unwrap()),
            Step::Wait { seconds } => sleep(Duration::from_secs(seconds)).await,
            Step::Read { observer, items } => observers[observer].read(items),
            Step::Return {
                observer,
                has_cursor: true,
            } => observers[observer].resume(&hub),
            Step::Return { observer, .. } => observers[observer] = Observer::subscribe(&hub),
            Step::Connect { .. } => {}
        }
        assert_eq!(members(&hub), model.members());
    }
    drop(connections);
    for _ in 0..2 {
        for observer in &mut observers {
            observer.read(usize::MAX);
            assert_eq!(observer.list.members, members(&hub));
        }
        sleep(GRACE * 3).await;
    }
    assert!(members(&hub).is_empty());
    assert!(hub.presence("room").unwrap().is_empty());
}

proptest! {
    #[test]
    fn list_with_later_events_gives_current_members(
        steps in proptest::collection::vec(step(), 1..80),
        max_events in prop_oneof![Just(3_usize), Just(256)],
    ) {
        block_on_paused(run(steps, max_events));
    }
}
