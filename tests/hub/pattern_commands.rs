//! Commands for patterns on an open WebSocket, as `docs/hub-protocol.md` describes them.

use std::{collections::BTreeSet, task::Poll};

use testkit::{CommandingSubscriber, Random, poll_next, read_ready_items};
use tower_push::{
    EventId, Hub, Item,
    source::{
        StartPosition,
        hub::{HubCommands, PublishOptions, TopicAccess, TopicPattern, Topics},
    },
};

use super::commands::Client;

/// Connects a client that may read every topic, and every pattern except those that begin with `secret`. It has at most two patterns.
async fn connect(hub: &Hub, query: &str) -> Client {
    let commands = HubCommands::new().max_rate(u32::MAX);
    let topics = Topics::from_query("topic").max_patterns(2);
    let source = hub
        .subscribe(topics)
        .authorize(async |_, _| TopicAccess::allow())
        .authorize_patterns(async |_, pattern: TopicPattern| {
            match pattern.common_prefix().starts_with("secret") {
                true => TopicAccess::refuse(),
                false => TopicAccess::allow().max_history(2),
            }
        });
    Client::connect_to(source.commands(commands), query).await
}

fn hub() -> Hub {
    Hub::builder().max_patterns(8).build()
}

fn event(id: &EventId, topic: &str) -> String {
    format!(r#"{{"id":"{id}","topic":"{topic}","data":"x"}}"#)
}

fn answer(event_type: &str, data: &str) -> String {
    format!(r#"{{"event":"{event_type}","data":{data}}}"#)
}

#[tokio::test]
async fn client_subscribes_to_pattern_and_unsubscribes() {
    let hub = hub();
    let mut client = connect(&hub, "").await;
    client.next().await; // the cursor
    let pattern = r#"{"pattern":{"prefix":"a/","suffix":"/b"}}"#;
    client
        .send(&format!(r#"{{"subscribe":{pattern},"ref":1}}"#))
        .await;
    let subscribed = r#"{"pattern":{"prefix":"a/","suffix":"/b"},"ref":1}"#;
    client.expect(&answer("hub.subscribed", subscribed)).await;
    hub.publish("a/1", "x").unwrap();
    let id = hub.publish("a/1/b", "x").unwrap();
    client.expect(&event(&id, "a/1/b")).await;
    client.send(&format!(r#"{{"subscribe":{pattern}}}"#)).await;
    client.expect(&answer("hub.subscribed", pattern)).await;
    client
        .send(&format!(r#"{{"unsubscribe":{pattern}}}"#))
        .await;
    client.expect(&answer("hub.unsubscribed", pattern)).await;
    hub.publish("a/1/b", "x").unwrap();
    client.send(r#"{"subscribe":{"topic":"c"}}"#).await;
    client
        .expect(r#"{"topic":"c","event":"hub.subscribed","data":{}}"#)
        .await;
    let id = hub.publish("c", "x").unwrap();
    client.expect(&event(&id, "c")).await;
    assert_eq!(hub.revoke("a/1/b", |_| true).unwrap(), 0);
}

#[tokio::test]
async fn pattern_commands_are_refused_in_band() {
    let hub = hub();
    let mut client = connect(&hub, "pattern_prefix=a/").await;
    client.next().await; // the cursor
    let refused = |prefix: &str, status: u16, message: &str| {
        let data = format!(
            r#"{{"message":"{message}","pattern":{{"prefix":"{prefix}"}},"status":{status}}}"#
        );
        answer("hub.refused", &data)
    };
    let subscribe =
        |prefix: &str| format!(r#"{{"subscribe":{{"pattern":{{"prefix":"{prefix}"}}}}}}"#);
    client.send(&subscribe("secret/")).await;
    client.expect(&refused("secret/", 403, "Forbidden")).await;
    client.send(&subscribe("b/")).await;
    assert!(client.next().await.contains("hub.subscribed"));
    client.send(&subscribe("c/")).await;
    client
        .expect(&refused("c/", 400, "more than 2 patterns"))
        .await;
    client.send(&subscribe(&"x".repeat(10 * 1024))).await;
    let message = "a pattern of topics is longer than 1024 bytes";
    let data = format!(r#"{{"message":"{message}","status":400}}"#);
    client.expect(&answer("hub.refused", &data)).await;
    client
        .send(r#"{"publish":{"pattern":{"prefix":"a/"},"data":1}}"#)
        .await;
    assert!(client.next().await.contains("`topic` is missing"));

    // The source accepts none.
    let topics = hub.subscribe(Topics::from_query("topic"));
    let source = topics.without_authorization().commands(HubCommands::new());
    let mut client = Client::connect_to(source, "topic=a").await;
    client.next().await; // the cursor
    client.send(&subscribe("a/")).await;
    let message = "clients may not subscribe to patterns of topics";
    client.expect(&refused("a/", 501, message)).await;
    hub.publish("a", "still open").unwrap();
    assert!(client.next().await.contains("still open"));
}

/// A client subscribes to a topic with a cursor while it still reads the history of a pattern that matches the topic, from a later cursor.
#[test]
fn topic_goes_back_while_history_of_pattern_is_read() {
    let hub = hub();
    let ids: Vec<_> = (1..=20)
        .map(|number: u32| hub.publish("a/1", number.to_string()).unwrap())
        .collect();
    let source = hub
        .subscribe(Topics::from_query("topic").max_patterns(2))
        .authorize(async |_, _| TopicAccess::allow())
        .authorize_patterns(async |_, _| TopicAccess::allow());
    let mut client = CommandingSubscriber::subscribe(source, "/", None).unwrap();
    read_ready_items(&mut client.items);
    let (earlier, later) = (&ids[1], &ids[9]);
    client.send(&format!(
        r#"{{"subscribe":{{"pattern":{{"prefix":"a/"}},"cursor":"{later}"}}}}"#
    ));
    client.send(&format!(
        r#"{{"subscribe":{{"topic":"a/1","cursor":"{earlier}"}}}}"#
    ));
    let mut read = Vec::new();
    while let Poll::Ready(Some(Ok(item))) = poll_next(&mut client.items) {
        let (Item::Event(event) | Item::EventWithCursor { event, .. }) = item else {
            panic!("{item:?}");
        };
        read.extend(event.id().cloned());
    }
    assert_eq!(read, ids[2..]);
    hub.publish("a/1", "live").unwrap();
    assert_eq!(read_ready_items(&mut client.items), ["live"]);
    drop(client);
    assert_eq!(hub.topic("a/1").unwrap().subscriber_count(), 0);
}

#[tokio::test]
async fn full_hub_refuses_pattern_in_band() {
    let hub = Hub::builder().max_patterns(1).build();
    let _other = connect(&hub, "pattern_prefix=other").await;
    let mut client = connect(&hub, "").await;
    client.next().await; // the cursor
    for _ in 0..2 {
        client
            .send(r#"{"subscribe":{"pattern":{"prefix":"a/"}}}"#)
            .await;
        let refused = client.next().await;
        assert!(
            refused.contains("hub.refused") && refused.contains("503"),
            "{refused}"
        );
    }
    assert_eq!(hub.revoke("a/1", |_| true).unwrap(), 0);
}

#[tokio::test]
async fn further_pattern_catches_up() {
    let hub = Hub::builder()
        .max_patterns(1)
        .start(StartPosition::Last(1))
        .build();
    let publish = |topic: &str| hub.publish(topic, "x").unwrap();
    let ids = ["b/1", "b/1", "b/2", "a", "b/1"].map(publish);
    let query = format!("topic=a&last_event_id={}", ids[3]);
    let mut client = connect(&hub, &query).await;
    let live = publish("a");
    client.expect(&event(&live, "a")).await;
    let pattern = r#""pattern":{"prefix":"b/"}"#;
    client
        .send(&format!(
            r#"{{"subscribe":{{{pattern},"cursor":"{}"}}}}"#,
            ids[1]
        ))
        .await;
    let subscribed = answer("hub.subscribed", &format!("{{{pattern}}}"));
    client.expect(&subscribed).await;
    client.expect(&event(&ids[2], "b/2")).await;
    let caught_up = format!(
        r#"{{"id":"{}","cursor":"{live}","topic":"b/1","data":"x"}}"#,
        ids[4]
    );
    client.expect(&caught_up).await;
    let next = publish("b/3");
    client.expect(&event(&next, "b/3")).await;
    client
        .send(&format!(r#"{{"unsubscribe":{{{pattern}}}}}"#))
        .await;
    client.next().await;
    // Without a cursor, each topic begins where a new client begins.
    client
        .send(&format!(r#"{{"subscribe":{{{pattern}}}}}"#))
        .await;
    client.expect(&subscribed).await;
    client.expect(&event(&ids[2], "b/2")).await;
    client.expect(&event(&ids[4], "b/1")).await;
    let last = format!(r#"{{"id":"{next}","cursor":"{next}","topic":"b/3","data":"x"}}"#);
    client.expect(&last).await;
    // A cursor of another hub.
    client
        .send(&format!(r#"{{"unsubscribe":{{{pattern}}}}}"#))
        .await;
    client.next().await;
    client
        .send(&format!(r#"{{"subscribe":{{{pattern},"cursor":"7"}}}}"#))
        .await;
    client.expect(&subscribed).await;
    let gap = client.next().await;
    assert!(
        gap.contains(r#""reason":"epoch","requested":"7""#) && !gap.contains("topic"),
        "{gap}"
    );
}

#[tokio::test]
async fn revocation_of_a_topic_ends_socket_with_pattern() {
    let hub = hub();
    let mut client = connect(&hub, "").await;
    client.next().await; // the cursor
    client
        .send(r#"{"subscribe":{"pattern":{"prefix":"a/"}}}"#)
        .await;
    client.next().await;
    assert_eq!(hub.revoke("b", |_| true).unwrap(), 0);
    assert_eq!(hub.revoke("a/1", |_| true).unwrap(), 1);
    client.next().await; // the end
    assert_eq!(client.read_close().await, 3005);
}

/// The topics and patterns of the random client, and which topics each selects.
const CHOICES: [(&str, &[&str]); 5] = [
    (r#""topic":"a/1""#, &["a/1"]),
    (r#""topic":"b/1""#, &["b/1"]),
    (r#""pattern":{"prefix":"a/"}"#, &["a/1", "a/2"]),
    (r#""pattern":{"prefix":"","suffix":"/1"}"#, &["a/1", "b/1"]),
    (r#""pattern":{"prefix":""}"#, &["a/1", "a/2", "b/1"]),
];

fn topics_of(subscribed: &BTreeSet<usize>) -> BTreeSet<&'static str> {
    let topics = subscribed.iter().flat_map(|choice| CHOICES[*choice].1);
    topics.copied().collect()
}

/// Returns the message of a random command, and changes `subscribed` as it says. Returns `None` if the client would have too many patterns.
fn random_command(random: &mut Random, subscribed: &mut BTreeSet<usize>) -> Option<String> {
    let choice = random.below(CHOICES.len() as u64) as usize;
    let action = match subscribed.remove(&choice) {
        true => "unsubscribe",
        false => {
            let patterns = subscribed.iter().filter(|choice| **choice >= 2).count();
            if choice >= 2 && patterns == 2 {
                return None;
            }
            subscribed.insert(choice);
            "subscribe"
        }
    };
    Some(format!(r#"{{"{action}":{{{}}}}}"#, CHOICES[choice].0))
}

/// A client subscribes to overlapping topics and patterns, and unsubscribes, while events are published. The client gets each event of what it
/// has all the time once, in order, and no event of what it does not have.
#[tokio::test]
async fn changing_topics_and_patterns_deliver_each_event_once() {
    const ROUNDS: u64 = 300;
    let hub = hub();
    let mut client = connect(&hub, "topic=end").await;
    client.next().await; // the cursor
    let mut random = Random::new(7);
    let mut subscribed = BTreeSet::new();
    let mut number = 0;
    // Each third event has no history.
    let mut publish = |random: &mut Random| {
        let topic = ["a/1", "a/2", "b/1"][random.below(3) as usize];
        number += 1;
        let text = number.to_string();
        let options = match random.below(3) {
            0 => PublishOptions::new().without_history(),
            _ => PublishOptions::new(),
        };
        hub.publish_with(topic, text.clone(), &options).unwrap();
        (topic, text)
    };
    for round in 0..ROUNDS {
        // The topics that the client has all the time, and those that it has for some time.
        let mut always = topics_of(&subscribed);
        let mut ever = always.clone();
        let mut commands = Vec::new();
        for _ in 0..=random.below(3) {
            commands.extend(random_command(&mut random, &mut subscribed));
            let has = topics_of(&subscribed);
            always.retain(|topic| has.contains(topic));
            ever.extend(has);
        }
        let mut published = Vec::new();
        for command in &commands {
            for _ in 0..random.below(12) {
                published.push(publish(&mut random));
            }
            client.send(command).await;
        }
        let mut got = Vec::new();
        for command in &commands {
            let is_end = command.contains("unsubscribe");
            let answer = if is_end {
                "hub.unsubscribed"
            } else {
                "hub.subscribed"
            };
            got.extend(client.event_texts_until(answer).await);
        }
        let unsure: BTreeSet<_> = ever.difference(&always).collect();
        let is_unsure = |(topic, _): &&(&str, String)| unsure.contains(topic);
        let optional: Vec<_> = published.iter().filter(is_unsure).cloned().collect();
        // From now on, the client has exactly the topics that it has subscribed to.
        let has = topics_of(&subscribed);
        let later: Vec<_> = (0..random.below(4)).map(|_| publish(&mut random)).collect();
        hub.publish("end", "x").unwrap();
        got.extend(client.event_texts_until("\"end\"").await);
        let required = published.iter().filter(|(topic, _)| always.contains(topic));
        let required = required.chain(later.iter().filter(|(topic, _)| has.contains(topic)));
        let required: Vec<_> = required.map(|(_, text)| text.clone()).collect();
        let optional: Vec<_> = optional.into_iter().map(|(_, text)| text).collect();
        let unsure_count = got.iter().filter(|text| optional.contains(text)).count();
        assert!(
            unsure_count <= optional.len(),
            "round {round}: an event came twice"
        );
        got.retain(|text| !optional.contains(text));
        assert_eq!(got, required, "round {round}: {commands:?}");
    }
}
