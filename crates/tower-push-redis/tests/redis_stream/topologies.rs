//! Sentinel, cluster and TLS.

use std::{process::Command, time::Duration};

use testkit::{RedisProgram, RedisServer, RelayClient, TEST_TIMEOUT, wait_until};
use tokio::time::sleep;
use tower_push_redis::{ReaderState, RedisServers, RedisStream};

use crate::nodes::{KEY, publish_numbers, wait_until_read};

#[tokio::test]
async fn sentinel_failover_is_followed() {
    let mut master = RedisServer::start(RedisProgram::Redis, &[]);
    let replica = master.start_replica();
    let sentinel = RedisServer::start_sentinel("feed", master.port());
    let servers = RedisServers::sentinel("feed", [sentinel.url()], "redis://master/").unwrap();
    let node = RedisStream::builder(servers, KEY)
        .publish_retry_time(TEST_TIMEOUT)
        .connect()
        .await
        .unwrap();
    let mut client = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..5).await;
    client.expect_numbers(0..5).await;
    wait_until(
        || replica.command(&["XLEN", KEY]) == "5",
        || "no replication",
    )
    .await;
    let knows_replica = || {
        let replicas = sentinel.command(&["SENTINEL", "REPLICAS", "feed"]);
        replicas.contains(&replica.port().to_string())
    };
    wait_until(knows_replica, || "the Sentinel does not know the replica").await;
    master.kill();
    let is_noticed = || node.reader_status().state == ReaderState::Reconnecting;
    wait_until(is_noticed, || "the reader is connected").await;
    publish_numbers(&node, 5..8).await;
    client.expect_numbers(5..8).await;
    assert_eq!(replica.command(&["XLEN", KEY]), "8");
    assert_eq!(node.relay().counts().gaps, 0);
}

/// Starts a cluster of three masters.
async fn start_cluster() -> [RedisServer; 3] {
    let options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
    let start = || RedisServer::start(RedisProgram::Redis, &options);
    let servers = [start(), start(), start()];
    let address = |server: &RedisServer| format!("127.0.0.1:{}", server.port());
    let created = Command::new("redis-cli")
        .args(["--cluster", "create"])
        .args(servers.iter().map(address))
        .arg("--cluster-yes")
        .output()
        .unwrap();
    assert!(created.status.success(), "{created:?}");
    let is_ready = || {
        let infos = servers
            .iter()
            .map(|server| server.command(&["CLUSTER", "INFO"]));
        infos
            .into_iter()
            .all(|info| info.contains("cluster_state:ok"))
    };
    wait_until(is_ready, || "the cluster does not start").await;
    servers
}

/// The slot of the stream moves to another node of the cluster.
#[tokio::test]
async fn cluster_slot_that_moves_is_followed() {
    let servers = start_cluster().await;
    let seeds = RedisServers::cluster(servers.iter().map(RedisServer::url)).unwrap();
    let node = RedisStream::builder(seeds, KEY)
        .max_log_events(2)
        .publish_retry_time(TEST_TIMEOUT)
        .connect()
        .await
        .unwrap();
    let first = publish_numbers(&node, 0..1).await.unwrap();
    publish_numbers(&node, 1..5).await;
    wait_until_read(&node).await;
    // An upstream resume, over the connection that the later ones share.
    let mut client = RelayClient::resume(node.relay(), &first);
    client.expect_numbers(1..5).await;

    let owner = |server: &&RedisServer| server.try_command(&["XLEN", KEY]).is_ok();
    let from = servers.iter().find(owner).unwrap();
    let to = servers.iter().find(|server| !owner(server)).unwrap();
    let slot = from.command(&["CLUSTER", "KEYSLOT", KEY]);
    let [from_id, to_id] = [from, to].map(|server| server.command(&["CLUSTER", "MYID"]));
    to.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]);
    from.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]);
    let port = to.port().to_string();
    from.command(&["MIGRATE", "127.0.0.1", &port, KEY, "0", "5000"]);
    // Nodes of the cluster redirect to each other now.
    let publisher = node.clone();
    let publish = tokio::spawn(async move { publish_numbers(&publisher, 5..7).await });
    sleep(Duration::from_millis(300)).await;
    for server in [to, from] {
        server.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
    }
    publish.await.unwrap();
    client.expect_numbers(5..7).await;
    assert_eq!(to.command(&["XLEN", KEY]), "7");
    let mut returned = RelayClient::resume(node.relay(), &first);
    returned.expect_numbers(1..7).await;
    assert_eq!(node.relay().counts().gaps, 0);
}

#[tokio::test]
async fn cluster_node_of_stream_is_found() {
    let servers = start_cluster().await;
    // From each seed, the node that has the stream is found.
    for (first, seed) in [0, 10, 20].into_iter().zip(&servers) {
        for key in ["events", "other events", "{tag}:events"] {
            let servers = RedisServers::cluster([seed.url()]).unwrap();
            let node = RedisStream::builder(servers, key).connect().await.unwrap();
            let mut client = RelayClient::connect(node.relay()).await;
            publish_numbers(&node, first..first + 3).await;
            client.expect_numbers(first..first + 3).await;
            let key = format!("{key} {first}");
            node.publish_once(&"7".into(), &key).await.unwrap();
            assert!(
                node.publish_once(&"8".into(), &key)
                    .await
                    .unwrap()
                    .is_duplicate
            );
            client.expect_numbers([7]).await;
            wait_until_read(&node).await;
        }
    }
}

#[cfg(feature = "tls-rustls")]
#[tokio::test]
async fn tls_server_is_authenticated() {
    use testkit::SelfSignedCertificate;
    use tower_push_redis::redis::{self, TlsCertificates};

    // An error means that there is a provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let files = SelfSignedCertificate::new("DNS:localhost");
    let text = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    let (certificate, key) = (text(files.path()), text(files.key_path()));
    let port = testkit::free_port();
    let options = [
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &certificate,
        "--tls-auth-clients",
        "no",
    ];
    let server = RedisServer::start(RedisProgram::Redis, &options);
    let url = format!("rediss://localhost:{port}/");
    let untrusted = RedisStream::builder(RedisServers::single(url.as_str()).unwrap(), KEY);
    assert!(untrusted.connect().await.unwrap_err().is_unavailable());
    let certificates = TlsCertificates {
        client_tls: None,
        root_cert: Some(std::fs::read(&certificate).unwrap()),
    };
    let client = redis::Client::build_with_tls(url, certificates).unwrap();
    let servers = RedisServers::single(client.get_connection_info().clone()).unwrap();
    let node = RedisStream::builder(servers, KEY).connect().await.unwrap();
    let mut subscriber = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..3).await;
    subscriber.expect_numbers(0..3).await;
    assert_eq!(server.command(&["XLEN", KEY]), "3");
}
