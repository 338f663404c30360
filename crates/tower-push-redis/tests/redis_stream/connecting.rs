//! Errors of the first connect.

use std::time::Duration;

use testkit::{RedisProgram, RedisServer, RelayClient, free_port};
use tower_push_redis::{Error, RedisServers, RedisStream};

use crate::nodes::{KEY, builder, publish_numbers};

async fn connect(url: &str) -> Result<RedisStream, Error> {
    let builder = RedisStream::builder(RedisServers::single(url).unwrap(), KEY);
    builder.connect().await
}

#[tokio::test]
async fn absent_server_is_error_or_waited_for() {
    let port = free_port();
    let url = format!("redis://127.0.0.1:{port}/");
    let error = connect(&url).await.unwrap_err();
    assert!(
        error.is_unavailable() && !error.may_be_published(),
        "{error}"
    );
    let waiting = RedisStream::builder(RedisServers::single(url).unwrap(), KEY)
        .connect_retry_time(testkit::TEST_TIMEOUT)
        .connect();
    let waiting = tokio::spawn(waiting);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    let _server = RedisServer::start_at(RedisProgram::Redis, port, &[]);
    let node = waiting.await.unwrap().unwrap();
    let mut client = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..2).await;
    client.expect_numbers(0..2).await;
}

#[tokio::test]
async fn other_type_is_error() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    server.command(&["SET", KEY, "text"]);
    let error = connect(&server.url()).await.unwrap_err();
    assert!(error.is_wrong_type(), "{error}");
    // The key changes its type later.
    server.command(&["DEL", KEY]);
    let node = builder(&server)
        .publish_retry_time(Duration::ZERO)
        .connect()
        .await
        .unwrap();
    let mut client = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..1).await;
    client.expect_numbers(0..1).await;
    server.command(&["SET", KEY, "text"]);
    let error = node.publish(&"x".into()).await.unwrap_err();
    assert!(error.is_wrong_type(), "{error}");
    testkit::wait_until(
        || {
            node.reader_status()
                .error
                .is_some_and(|error| error.is_wrong_type())
        },
        || format!("{:?}", node.reader_status()),
    )
    .await;
    // The reader tries again, but not without a pause.
    let connections = || {
        let stats = server.command(&["INFO", "stats"]);
        let count = stats
            .lines()
            .find_map(|line| line.strip_prefix("total_connections_received:"));
        count.unwrap().trim().parse::<u64>().unwrap()
    };
    let before = connections();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(connections() - before < 50);
    server.command(&["DEL", KEY]);
    client.expect(&["epoch None"]).await;
}

#[tokio::test]
async fn refused_user_is_error() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let rules = "on >secret ~events ~{events}:once:* +xread +xrange +xrevrange +xinfo|stream +type +role +multi +exec +xadd \
                 +xdel +evalsha +script|load +get +set";
    let mut set_user = vec!["ACL", "SETUSER", "app"];
    set_user.extend(rules.split_whitespace());
    server.command(&set_user);
    let url = |user: &str| format!("redis://{user}@127.0.0.1:{}/", server.port());
    let error = connect(&url("app:wrong")).await.unwrap_err();
    assert!(error.is_unauthorized(), "{error}");
    // The documented permissions suffice.
    let node = connect(&url("app:secret")).await.unwrap();
    let mut client = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..2).await;
    client.expect_numbers(0..2).await;
    node.publish_once(&"2".into(), "key").await.unwrap();
    client.expect_numbers([2]).await;
    assert!(node.lag().await.unwrap() <= 3);
    server.command(&["ACL", "SETUSER", "app", "-role"]);
    let error = connect(&url("app:secret")).await.unwrap_err();
    assert!(error.is_unauthorized(), "{error}");
}

/// Each of the documented permissions is missing in turn.
#[tokio::test]
async fn missing_permission_is_unauthorized() {
    const COMMANDS: &str = "+xread +xrange +xrevrange +xinfo|stream +type +role +multi +exec +xadd \
                            +evalsha +script|load +get +set";
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    server.command(&["XADD", KEY, "1-1", "data", "0"]);
    let url = format!("redis://app:secret@127.0.0.1:{}/", server.port());
    for missing in COMMANDS.split_whitespace() {
        let mut set_user = vec!["ACL", "SETUSER", "app", "reset", "on", ">secret"];
        set_user.extend(["~events", "~{events}:once:*"]);
        let allowed = COMMANDS.split_whitespace();
        set_user.extend(allowed.filter(|command| *command != missing));
        server.command(&set_user);
        // Redis forgets the scripts, so that they are loaded again.
        server.command(&["SCRIPT", "FLUSH"]);
        let error = match connect(&url).await {
            Err(error) => error,
            Ok(node) => {
                let published = node.publish(&"1".into()).await;
                let once = node.publish_once(&"2".into(), missing).await;
                match published.err().or(once.err()) {
                    Some(error) => error,
                    None => {
                        let reader_error = || node.reader_status().error;
                        let has_failed = || reader_error().is_some();
                        testkit::wait_until(has_failed, || format!("{missing} is not needed"))
                            .await;
                        reader_error().unwrap()
                    }
                }
            }
        };
        assert!(error.is_unauthorized(), "{missing}: {error}");
    }
}

/// The user may not create the stream: the first publication creates it.
#[tokio::test]
async fn user_without_scripts_gets_empty_stream() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let rules =
        "on >secret ~events +xread +xrange +xrevrange +xinfo|stream +type +role +multi +exec +xadd";
    let mut set_user = vec!["ACL", "SETUSER", "app"];
    set_user.extend(rules.split_whitespace());
    server.command(&set_user);
    let url = format!("redis://app:secret@127.0.0.1:{}/", server.port());
    let node = connect(&url).await.unwrap();
    assert_eq!(server.command(&["EXISTS", KEY]), "0");
    let mut client = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..2).await;
    client.expect_numbers(0..2).await;
}

#[tokio::test]
async fn replica_is_error() {
    let master = RedisServer::start(RedisProgram::Redis, &[]);
    let replica = master.start_replica();
    let error = connect(&replica.url()).await.unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    assert!(error.to_string().contains("replica"), "{error}");
}
