//! Errors of the first connect.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use testkit::{NatsServer, RelayClient, SelfSignedCertificate, free_port};
use tower_push_nats::{Error, JetStream, NatsServers, async_nats::ConnectOptions};

use crate::nodes::{Operator, STREAM, builder, publish_numbers};

async fn connect(url: &str) -> Result<JetStream, Error> {
    let servers = NatsServers::new(url).unwrap();
    JetStream::builder(servers, STREAM)
        .subject_prefix("events")
        .connect()
        .await
}

#[tokio::test]
async fn absent_server_is_error_or_waited_for() {
    let port = free_port();
    let url = format!("nats://127.0.0.1:{port}");
    let error = connect(&url).await.unwrap_err();
    assert!(
        error.is_unavailable() && !error.may_be_published(),
        "{error}"
    );
    let waiting = JetStream::builder(NatsServers::new(&url).unwrap(), STREAM)
        .connect_retry_time(testkit::TEST_TIMEOUT)
        .connect();
    let waiting = tokio::spawn(waiting);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    let _server = NatsServer::start_at(port, "");
    let node = waiting.await.unwrap().unwrap();
    let mut client = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..2).await;
    client.expect_numbers(0..2).await;
}

#[tokio::test]
async fn wrong_stream_is_error() {
    let server = NatsServer::start("");
    let operator = Operator::connect(&server).await;
    for settings in [
        json!({ "subjects": ["other.>"] }),
        json!({ "retention": "workqueue" }),
        json!({ "allow_direct": false }),
    ] {
        operator.create_stream(settings.clone()).await;
        let error = connect(&server.url()).await.unwrap_err();
        assert!(error.is_wrong_stream(), "{settings}: {error}");
        operator.delete_stream().await;
    }
    // The subjects are part of another stream.
    let request = json!({ "name": "OTHER", "subjects": ["events.>"] });
    operator.request("STREAM.CREATE.OTHER", request).await;
    let error = connect(&server.url()).await.unwrap_err();
    assert!(error.is_wrong_stream(), "{error}");
    let error = builder(&server)
        .create_stream(false)
        .connect()
        .await
        .unwrap_err();
    assert!(error.is_not_found(), "{error}");
}

#[tokio::test]
async fn server_without_jetstream_is_error() {
    let server = NatsServer::start(
        "no_auth_user: app\naccounts { A: { users: [ { user: app, password: secret } ] } }",
    );
    let error = connect(&server.url()).await.unwrap_err();
    assert!(error.is_unsupported() || error.is_unavailable(), "{error}");
}

pub(crate) const USERS: &str = r#"
authorization {
  users = [
    { user: app, password: secret, permissions: {
        publish: { allow: [
          "$JS.API.STREAM.INFO.EVENTS", "$JS.API.STREAM.MSG.GET.EVENTS", "$JS.API.DIRECT.GET.EVENTS",
          "$JS.API.CONSUMER.CREATE.EVENTS.>", "$JS.API.CONSUMER.MSG.NEXT.EVENTS.>", "$JS.API.STREAM.CREATE.EVENTS",
          "events", "events.>" ] },
        subscribe: "_INBOX.>" } },
    { user: reader, password: secret, permissions: {
        publish: { allow: [
          "$JS.API.STREAM.INFO.EVENTS", "$JS.API.STREAM.MSG.GET.EVENTS", "$JS.API.DIRECT.GET.EVENTS",
          "$JS.API.CONSUMER.CREATE.EVENTS.>", "$JS.API.CONSUMER.MSG.NEXT.EVENTS.>" ] },
        subscribe: "_INBOX.>" } },
    { user: guest, password: secret, permissions: { publish: "other", subscribe: "_INBOX.>" } },
  ]
}"#;

#[tokio::test]
async fn refused_user_is_error() {
    let server = NatsServer::start(USERS);
    let url = |user: &str| format!("nats://{user}@127.0.0.1:{}", server.port());
    for user in ["app:wrong", "guest:secret"] {
        let error = connect(&url(user)).await.unwrap_err();
        assert!(error.is_unauthorized(), "{user}: {error}");
    }
    // The documented permissions suffice.
    let node = connect(&url("app:secret")).await.unwrap();
    let first = publish_numbers(&node, 0..5).await.unwrap();
    let servers = NatsServers::new(&url("reader:secret")).unwrap();
    let reader = JetStream::builder(servers, STREAM)
        .subject_prefix("events")
        .max_log_events(1);
    let reader = reader.connect().await.unwrap();
    publish_numbers(&node, 5..8).await;
    node.publish_once(&"8".into(), "key").await.unwrap();
    let mut client = RelayClient::resume(reader.relay(), &first);
    client.expect_numbers(5..9).await;
    // The server refuses all of these requests at once, none of which says what it is for.
    let text = "x".into();
    let refused = (0..20).map(|_| reader.publish(&text));
    for refused in join_all(refused).await {
        let error = refused.unwrap_err();
        assert!(
            error.is_unauthorized() && !error.may_be_published(),
            "{error}"
        );
    }
}

#[tokio::test]
async fn token_is_accepted() {
    let server = NatsServer::start("authorization { token: secret }");
    let url = |token: &str| format!("nats://{token}127.0.0.1:{}", server.port());
    assert!(connect(&url("")).await.unwrap_err().is_unauthorized());
    assert!(connect(&url("wrong@")).await.unwrap_err().is_unauthorized());
    let node = connect(&url("secret@")).await.unwrap();
    publish_numbers(&node, 0..1).await;
}

/// The password is changed while a node runs, and is right again later.
#[tokio::test]
async fn node_that_is_refused_later_comes_back() {
    let mut server = NatsServer::start(USERS);
    let url = format!("nats://app:secret@127.0.0.1:{}", server.port());
    let node = connect(&url).await.unwrap();
    let mut client = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..1).await;
    client.expect_numbers(0..1).await;
    server.kill();
    server.set_config("authorization { token: another }");
    server.start_again();
    let state = tower_push_nats::ReaderState::Reconnecting;
    crate::nodes::wait_for_state(&node, state).await;
    assert!(
        node.publish(&"x".into())
            .await
            .unwrap_err()
            .is_unavailable()
    );
    server.kill();
    server.set_config(USERS);
    server.start_again();
    let following = tower_push_nats::ReaderState::Following;
    crate::nodes::wait_for_state(&node, following).await;
    publish_numbers(&node, 1..2).await;
    client.expect_numbers(1..2).await;
}

#[tokio::test]
async fn tls_is_used() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let certificate = SelfSignedCertificate::new("IP:127.0.0.1");
    let (path, key) = (certificate.path(), certificate.key_path());
    let config = format!("tls {{ cert_file: {path:?}, key_file: {key:?} }}");
    let server = NatsServer::start(&config);
    let url = format!("tls://127.0.0.1:{}", server.port());
    // The certificate is unknown.
    let error = connect(&url).await.unwrap_err();
    assert!(!error.is_unauthorized(), "{error}");
    let options = ConnectOptions::new().add_root_certificates(path);
    let servers = NatsServers::new(&url).unwrap().options(options);
    let node = JetStream::builder(servers, STREAM).connect().await.unwrap();
    let mut client = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..2).await;
    client.expect_numbers(0..2).await;
}

#[cfg(feature = "nkeys")]
#[tokio::test]
async fn nkey_is_accepted() {
    // A pair that was made for this test.
    let seed = "SUAFEASQACN2NHCSA3TR3GUHLPNASKDUGDYGVTYCUTZQCPP74EXTOUW4MU";
    let public = "UDWOMVRNEAJ5K6SZ5NFREQHGCVEB5AB6WBRZ2UQGWHZCEDFHSENDHEQZ";
    let config = format!("authorization {{ users = [ {{ nkey: {public} }} ] }}");
    let server = NatsServer::start(&config);
    assert!(connect(&server.url()).await.unwrap_err().is_unauthorized());
    let options = ConnectOptions::with_nkey(seed.to_owned());
    let servers = NatsServers::new(&server.url()).unwrap().options(options);
    let node = JetStream::builder(servers, STREAM).connect().await.unwrap();
    publish_numbers(&node, 0..1).await;
}
