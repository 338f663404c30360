//! Topics that clients choose by their requests: where requests name them, who may read them, and how access is revoked.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use http::StatusCode;
use testkit::{body_text, get_request_head, poll_next, read_ready_items};
use tokio::time::Instant;
use tower_push::{
    Hub, Item, Push, PushSource,
    event::Topic,
    source::{
        Rejection, StartPosition, Subscription,
        hub::{TopicAccess, Topics},
    },
    transport::{Sse, Transport},
};

use crate::requests::{subscribe_to, subscribe_with_form, subscribe_with_long_form};

/// Returns the status of the rejection, or the names of the topics that the client gets.
fn topics_of(topics: Topics, uri: &str) -> String {
    let hub = Hub::new();
    let source = hub.subscribe(topics).without_authorization();
    let mut subscriber = match subscribe_to(&source, uri) {
        Ok(subscriber) => subscriber,
        Err(rejection) => return rejection.status().as_u16().to_string(),
    };
    for name in ["a", "b", "user/7", "100%+", "é"] {
        hub.publish(name, name).unwrap();
    }
    read_ready_items(&mut subscriber)[1..].join(" ")
}

#[test]
fn requests_name_topics() {
    let query = || Topics::from_query("topic");
    assert_eq!(
        topics_of(query(), "/?topic=a&topic=user%2F7&x=b"),
        "a user/7"
    );
    assert_eq!(topics_of(query(), "/?topic=a&topic=a"), "a");
    assert_eq!(
        topics_of(query(), "/?topic=100%25%2B&topic=%C3%A9"),
        "100%+ é"
    );
    let path = || Topics::from_path("/topics/");
    assert_eq!(topics_of(path(), "/topics/user/7"), "user/7");
    assert_eq!(topics_of(path(), "/topics/user%2F7"), "user/7");
    assert_eq!(topics_of(path(), "/topics/100%25+"), "100%+");
    assert_eq!(topics_of(path(), "/topics/"), "400");
    assert_eq!(topics_of(path(), "/other"), "400");
    let own = Topics::from_fn(|head| vec![format!("user/{}", head.uri.path().len())]);
    assert_eq!(topics_of(own, "/123456"), "user/7");
}

#[test]
fn bad_topics_are_refused() {
    let query = || Topics::from_query("topic").max_topics(2);
    let long = format!("/?topic={}", "x".repeat(10_000));
    let many = format!("/?{}", "topic=a&".repeat(8_000));
    for uri in [
        "/",
        "/?topic=",
        "/?topic=%0a",
        "/?topic=a%00b",
        "/?topic=%20a",
        "/?topic=a&topic=b&topic=c",
        "/?topic=a&topic=a&topic=a",
        "/?topic=a&fresh=%0a",
        // Not UTF-8: a byte of Latin-1, and an overlong slash.
        "/?topic=%ff",
        "/?topic=a%c0%afb",
        "/?topic=a&fresh=%ff",
        &long,
        &many,
    ] {
        assert_eq!(topics_of(query(), uri), "400", "{uri:.40}");
    }
    let path = Topics::from_path("/topics/");
    assert_eq!(topics_of(path, "/topics/a%c0%afb"), "400");
}

#[test]
fn form_names_topics() {
    let hub = Hub::new();
    let source = hub
        .subscribe(Topics::from_query("topic"))
        .without_authorization();
    let mut subscriber = subscribe_with_form(&source, "/?topic=a", "topic=b&fresh=b").unwrap();
    hub.publish("b", "1").unwrap();
    hub.publish("a", "2").unwrap();
    assert_eq!(read_ready_items(&mut subscriber), ["cursor", "1", "2"]);
}

#[test]
fn fresh_topics_and_sender_are_in_the_query() {
    let hub = Hub::builder().start(StartPosition::Last(1)).build();
    let topics = Topics::from_query("topic").sender_from_query("sender");
    let source = hub.subscribe(topics).without_authorization();
    hub.publish("new", "0").unwrap();
    hub.publish("new", "1").unwrap();
    let cursor = hub.publish("a", "2").unwrap();
    let uri = format!("/?topic=a&topic=new&fresh=new&sender=me&last_event_id={cursor}");
    let mut subscriber = subscribe_to(&source, &uri).unwrap();
    let except = tower_push::source::hub::PublishOptions::new().except("me");
    hub.publish_with("a", "mine", &except).unwrap();
    hub.publish("a", "3").unwrap();
    let mut texts = Vec::new();
    while let Poll::Ready(Some(Ok(item))) = poll_next(&mut subscriber) {
        texts.push(
            item.event()
                .unwrap()
                .payload()
                .as_text()
                .unwrap()
                .to_owned(),
        );
    }
    assert_eq!(texts, ["1", "3"]);
}

#[tokio::test]
async fn each_topic_is_authorized_in_each_request() {
    let hub = Hub::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let source = hub.subscribe(Topics::from_query("topic")).authorize({
        let asked = asked.clone();
        move |subscription: Subscription, topic: Topic| {
            asked.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::task::yield_now().await;
                match topic.as_str() {
                    "secret" => Err(Rejection::new(StatusCode::UNAUTHORIZED)),
                    "own" if subscription.head().uri.path() != "/me" => Ok(TopicAccess::refuse()),
                    "hidden" => Ok(TopicAccess::refuse_topic()),
                    _ => Ok(TopicAccess::allow()),
                }
            }
        }
    });
    let mut statuses = Vec::new();
    for uri in [
        "/?topic=a&topic=b",
        "/?topic=a&topic=secret",
        "/?topic=own",
        "/me?topic=own",
        "/?topic=hidden",
    ] {
        let mut head = get_request_head(uri, &[]);
        let push = Push::new(source.clone());
        statuses.push(Sse::new().respond(&mut head, push).await.status().as_u16());
    }
    assert_eq!(statuses, [200, 401, 403, 200, 403]);
    assert_eq!(asked.load(Ordering::Relaxed), 7);
    let head = get_request_head("/?topic=a&topic=hidden", &[]);
    let mut partly = source
        .subscribe(Subscription::new(&head, "test"))
        .await
        .unwrap();
    hub.publish("hidden", "1").unwrap();
    hub.publish("a", "2").unwrap();
    let mut described = Vec::new();
    while let Poll::Ready(Some(Ok(item))) = poll_next(&mut partly) {
        if let Some(event) = item.event() {
            let event_type = event.event_type().map(|name| name.as_str());
            let topic = event.topic().unwrap().as_str();
            described.push(format!(
                "{topic} {event_type:?} {}",
                event.payload().as_text().unwrap()
            ));
        }
    }
    let refused = r#"hidden Some("hub.refused") {"message":"Forbidden","status":403}"#;
    assert_eq!(described, [refused, "a None 2"]);
}

#[test]
fn history_is_bounded_by_access() {
    let hub = Hub::builder()
        .max_events(3)
        .start(StartPosition::Oldest)
        .build();
    let source = hub
        .subscribe(Topics::from_query("topic"))
        .authorize(async |_, _| TopicAccess::allow().max_history(2));
    let ids: Vec<_> = (0..5)
        .map(|n: u32| hub.publish("a", n.to_string()).unwrap())
        .collect();
    let mut subscriber = subscribe_to(&source, "/?topic=a").unwrap();
    assert_eq!(read_ready_items(&mut subscriber), ["3", "4"]);
    let uri = |id| format!("/?topic=a&last_event_id={id}");
    let mut resumed = subscribe_to(&source, &uri(&ids[1])).unwrap();
    assert_eq!(
        read_ready_items(&mut resumed),
        ["expired Some(1)", "3", "4"]
    );
    let mut resumed = subscribe_to(&source, &uri(&ids[2])).unwrap();
    assert_eq!(read_ready_items(&mut resumed), ["3", "4"]);
}

#[tokio::test]
async fn revocation_ends_open_streams() {
    let hub = Hub::new();
    let is_allowed = Arc::new(AtomicBool::new(true));
    let source = hub.subscribe(Topics::from_query("topic")).authorize({
        let is_allowed = is_allowed.clone();
        move |subscription: Subscription, _| {
            let is_allowed = is_allowed.load(Ordering::Relaxed);
            let member = subscription.head().uri.path().to_owned();
            async move {
                match is_allowed || member != "/mallory" {
                    true => TopicAccess::allow().member(member),
                    false => TopicAccess::refuse(),
                }
            }
        }
    });
    let mut mallory = subscribe_to(&source, "/mallory?topic=room&topic=news").unwrap();
    let mut alice = subscribe_to(&source, "/alice?topic=room").unwrap();
    assert_eq!(read_ready_items(&mut mallory), ["cursor"]);
    // Events that were read ahead are not sent, either.
    hub.publish("room", "1").unwrap();
    hub.publish("room", "2").unwrap();
    let Poll::Ready(Some(Ok(Item::Event(_)))) = poll_next(&mut mallory) else {
        panic!("no event")
    };
    is_allowed.store(false, Ordering::Relaxed);
    let is_mallory = |member: Option<&str>| member == Some("/mallory");
    assert_eq!(hub.revoke("other", is_mallory).unwrap(), 0);
    assert_eq!(hub.revoke("room", is_mallory).unwrap(), 1);
    hub.publish("room", "3").unwrap();
    assert!(matches!(
        poll_next(&mut mallory),
        Poll::Ready(Some(Ok(Item::Expired)))
    ));
    assert!(matches!(poll_next(&mut mallory), Poll::Ready(None)));
    drop(mallory);
    assert_eq!(
        subscribe_to(&source, "/mallory?topic=room")
            .unwrap_err()
            .status(),
        403
    );
    assert_eq!(read_ready_items(&mut alice), ["cursor", "1", "2", "3"]);
    assert_eq!(hub.revoke("room", |_| true).unwrap(), 1);
    assert!(hub.revoke("two\nlines", |_| true).is_err());
}

#[tokio::test]
async fn revocation_wakes_idle_stream() {
    let hub = Hub::new();
    let source = hub
        .subscribe(Topics::from_query("topic"))
        .without_authorization();
    let mut head = get_request_head("/?topic=room", &[]);
    let response = Sse::new().respond(&mut head, Push::new(source)).await;
    let body = tokio::spawn(body_text(response.into_body()));
    tokio::task::yield_now().await;
    assert_eq!(hub.revoke("room", |member| member.is_none()).unwrap(), 1);
    assert!(body.await.unwrap().ends_with("\n\n"));
}

/// Access is revoked between the decision and the beginning of the stream.
#[tokio::test]
async fn access_is_decided_anew_after_revocation() {
    let hub = Hub::new();
    let is_allowed = Arc::new(AtomicBool::new(true));
    let source = hub.subscribe(Topics::from_query("topic")).authorize({
        let (hub, is_allowed) = (hub.clone(), is_allowed);
        move |_, _| {
            let (hub, is_allowed) = (hub.clone(), is_allowed.clone());
            async move {
                let decision = is_allowed.load(Ordering::Relaxed);
                is_allowed.store(false, Ordering::Relaxed);
                hub.revoke("room", |_| true).unwrap();
                decision
            }
        }
    });
    let head = get_request_head("/?topic=room", &[]);
    let refused = source
        .clone()
        .subscribe(Subscription::new(&head, "test"))
        .await;
    assert_eq!(refused.unwrap_err().status(), 403);
    assert_eq!(hub.counts().topics, 0);
}

/// Permission is revoked while the client is away. The client does not even get the events of the topic that it has missed before.
#[tokio::test]
async fn client_revoked_while_away_gets_no_more_events() {
    let hub = Hub::builder().start(StartPosition::Oldest).build();
    let is_allowed = Arc::new(AtomicBool::new(true));
    let source = |refusal: fn() -> TopicAccess| {
        let is_allowed = is_allowed.clone();
        let topics = hub.subscribe(Topics::from_query("topic"));
        topics.authorize(move |_, topic: Topic| {
            let is_allowed = is_allowed.load(Ordering::Relaxed) || topic.as_str() != "room";
            std::future::ready(match is_allowed {
                true => TopicAccess::allow(),
                false => refusal(),
            })
        })
    };
    let cursor = hub.publish("room", "seen").unwrap();
    let uri = format!("/?topic=room&topic=news&last_event_id={cursor}");
    let mut first = subscribe_to(&source(TopicAccess::refuse), &uri).unwrap();
    hub.publish("room", "missed").unwrap();
    hub.publish(["room", "news"], "in both").unwrap();
    assert_eq!(read_ready_items(&mut first), ["missed", "in both"]);
    drop(first);
    is_allowed.store(false, Ordering::Relaxed);
    hub.publish("room", "later").unwrap();
    let refused = subscribe_to(&source(TopicAccess::refuse), &uri);
    assert_eq!(refused.unwrap_err().status(), 403);
    // A client that is refused one of its topics gets only the events of its other topic.
    let partly = source(TopicAccess::refuse_topic);
    for uri in [
        &*uri,
        "/?topic=room&topic=news",
        "/?topic=news&topic=room&fresh=room",
    ] {
        let mut second = subscribe_to(&partly, uri).unwrap();
        hub.publish("room", "live").unwrap();
        let mut topics = Vec::new();
        while let Poll::Ready(Some(Ok(item))) = poll_next(&mut second) {
            let event = item.event().cloned();
            topics.extend(event.map(|event| {
                let text = event.payload().as_text().unwrap().to_owned();
                (event.topic().unwrap().to_string(), text)
            }));
        }
        let refused = r#"{"message":"Forbidden","status":403}"#;
        let expected = [("room", refused), ("news", "in both")];
        let expected = expected.map(|(topic, text)| (topic.to_owned(), text.to_owned()));
        assert_eq!(topics, expected, "{uri}");
    }
}

/// A token expires while its stream is open. The stream ends, and the client is refused when it returns with the same token.
#[tokio::test(start_paused = true)]
async fn expired_token_ends_stream_and_is_refused() {
    const LIFETIME: Duration = Duration::from_secs(60);
    let hub = Hub::new();
    let expires_at = Instant::now() + LIFETIME;
    let topics = hub.subscribe(Topics::from_query("topic"));
    let source = topics.authorize(move |subscription: Subscription, _| {
        subscription.expire_by(expires_at);
        std::future::ready(match Instant::now() < expires_at {
            true => TopicAccess::allow(),
            false => TopicAccess::refuse_with(StatusCode::UNAUTHORIZED),
        })
    });
    let open = async || {
        let mut head = get_request_head("/?topic=a&topic=b", &[]);
        Sse::new()
            .respond(&mut head, Push::new(source.clone()))
            .await
    };
    let response = open().await;
    let body = tokio::spawn(body_text(response.into_body()));
    tokio::time::sleep(LIFETIME / 2).await;
    hub.publish("a", "before").unwrap();
    tokio::time::sleep(LIFETIME).await;
    hub.publish("a", "after").unwrap();
    let text = body.await.unwrap();
    assert!(
        text.contains("data: before\n") && !text.contains("after"),
        "{text}"
    );
    assert_eq!(open().await.status(), 401);
    assert_eq!(hub.topic("a").unwrap().subscriber_count(), 0);
}

#[test]
fn many_topics_in_a_query_are_refused_without_cost() {
    let hub = Hub::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let topics = hub.subscribe(Topics::from_query("topic"));
    let counted = asked.clone();
    let source = topics.authorize(move |_, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        std::future::ready(true)
    });
    // The longest target that the `http` crate accepts has 64 KiB.
    for names in [
        (0..5_000)
            .map(|number| format!("topic={number}"))
            .collect::<Vec<_>>(),
        vec!["topic=%61".to_owned(); 6_000],
        vec!["topic=".to_owned(); 8_000],
        vec!["topic=%25252E%2e%2e%2F".to_owned(); 2_000],
    ] {
        let refused = subscribe_to(&source, &format!("/?{}", names.join("&")));
        assert_eq!(refused.unwrap_err().status(), 400);
    }
    // `QUERY` requests name their topics in a form, which may be longer.
    let refused = subscribe_with_long_form(&source, "topic");
    assert_eq!(refused.unwrap_err().status(), 400);
    assert_eq!((asked.load(Ordering::Relaxed), hub.counts().topics), (0, 0));
    // A name is decoded once.
    assert_eq!(topics_of(Topics::from_query("topic"), "/?topic=%2561"), "");
}
