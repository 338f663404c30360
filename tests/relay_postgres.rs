//! `examples/relay_postgres.rs` as two servers over one table in a real PostgreSQL: clients return to either of them, and the database fails.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use testkit::{
    ExampleProcess, HttpConnection, HttpVersion, StreamingResponse, TEST_TIMEOUT, free_port,
    records::{ParsedRecord, RecordReader},
};
use tokio::time::sleep;

/// A PostgreSQL server with an empty database, in a temporary directory. Dropping this value stops the server.
struct PostgresCluster {
    directory: PathBuf,
    server: Child,
    port: u16,
}

impl PostgresCluster {
    fn start() -> Self {
        let port = free_port();
        let name = format!("tower-push-postgres-{}-{port}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).unwrap();
        if is_root() {
            let chown = Command::new("chown")
                .arg("postgres")
                .arg(&directory)
                .status();
            assert!(chown.unwrap().success());
        }
        let init = [
            "--username=postgres",
            "--auth=trust",
            "--no-sync",
            "--pgdata",
        ];
        let init = postgres_program("initdb")
            .args(init)
            .arg(&directory)
            .output();
        let init = init.expect("run scripts/setup first");
        assert!(
            init.status.success(),
            "{}",
            String::from_utf8_lossy(&init.stderr)
        );
        let server = postgres_program("postgres")
            .args([
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "unix_socket_directories=",
            ])
            .args(["-c", "fsync=off", "-p", &port.to_string(), "-D"])
            .arg(&directory)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let cluster = Self {
            directory,
            server,
            port,
        };
        let deadline = Instant::now() + TEST_TIMEOUT;
        while cluster.psql("SELECT 1").is_none() {
            assert!(Instant::now() < deadline, "PostgreSQL does not answer");
            thread::sleep(Duration::from_millis(50));
        }
        cluster
    }

    /// Runs a statement. Returns its output, or `None` if it fails.
    fn psql(&self, statement: &str) -> Option<String> {
        let output = Command::new("psql")
            .args(["-h", "127.0.0.1", "-U", "postgres", "-XqAt", "-p"])
            .arg(self.port.to_string())
            .args(["-v", "ON_ERROR_STOP=1", "-c", statement])
            .output()
            .expect("run scripts/setup first");
        let text = String::from_utf8(output.stdout).unwrap();
        output.status.success().then(|| text.trim().to_owned())
    }

    fn start_example(&self) -> (ExampleProcess, String) {
        let database = format!("host=127.0.0.1 port={} user=postgres", self.port);
        let example = ExampleProcess::start("relay_postgres", &[&database]);
        let address = example.next_address();
        let address = address.strip_prefix("http://").unwrap().to_owned();
        (example, address)
    }
}

impl Drop for PostgresCluster {
    fn drop(&mut self) {
        // PostgreSQL's "immediate shutdown": SIGKILL would leave its shared memory.
        let id = self.server.id().to_string();
        let _ = Command::new("kill").args(["-QUIT", &id]).status();
        let _ = self.server.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    id.stdout == b"0\n"
}

/// Returns a command that runs one of Debian's PostgreSQL programs. They refuse to run as root.
fn postgres_program(name: &str) -> Command {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("run scripts/setup first");
    let newest = versions
        .map(|version| version.unwrap().path())
        .max()
        .unwrap();
    let program: &Path = &newest.join("bin").join(name);
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    command.arg(program);
    command
}

/// A client that reads NDJSON records from one server.
struct Follower {
    response: StreamingResponse,
    reader: RecordReader,
    records: Vec<ParsedRecord>,
}

impl Follower {
    /// Requests the events after `cursor`, of the topics that `query` names.
    async fn open(address: &str, cursor: &str, query: &str) -> Self {
        let address = address.parse().unwrap();
        let mut connection = HttpConnection::connect_to(address, HttpVersion::Http1).await;
        let path = format!("/events?transport=ndjson&last_event_id={cursor}{query}");
        let response = connection.get(&path, &[]).await;
        assert_eq!(response.head.status, 200);
        Self {
            response,
            reader: RecordReader::new("application/x-ndjson", Some(cursor.to_owned())),
            records: Vec::new(),
        }
    }

    async fn next_record(&mut self) -> ParsedRecord {
        while self.records.is_empty() {
            let bytes = self.response.next_chunk().await.expect("more records");
            self.records = self.reader.feed(&bytes.expect("the stream is cut"));
        }
        self.records.remove(0)
    }

    async fn next_text(&mut self) -> String {
        let record = self.next_record().await;
        record.data.clone().unwrap_or_else(|| panic!("{record:?}"))
    }

    /// Reads until the client has these texts. All records that have arrived must be among them.
    async fn expect_texts(&mut self, texts: impl IntoIterator<Item = u64>) {
        for text in texts {
            assert_eq!(self.next_text().await, text.to_string());
        }
        assert!(self.records.is_empty());
    }

    /// Reads until the client has this cursor. No records come before it.
    async fn expect_cursor(&mut self, cursor: &str) {
        while self.cursor() != cursor {
            assert_eq!(self.records, []);
            let bytes = self.response.next_chunk().await.expect("a cursor");
            self.records = self.reader.feed(&bytes.expect("the stream is cut"));
        }
        assert_eq!(self.records, []);
    }

    fn cursor(&self) -> String {
        self.reader.cursor.clone().unwrap()
    }
}

/// Publishes a text at a server. Returns the id of the event, or `None` if the server cannot publish now.
async fn publish(address: &str, text: &str, query: &str) -> Option<String> {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://{address}/events?{query}");
    let response = client.post(url).body(text.to_owned()).send().await.unwrap();
    match response.status().as_u16() {
        200 => Some(response.text().await.unwrap()),
        503 => None,
        other => panic!("{other}"),
    }
}

async fn publish_numbers(addresses: [&str; 2], numbers: std::ops::Range<u64>) {
    for number in numbers {
        let address = addresses[number as usize % 2];
        publish(address, &number.to_string(), "").await.unwrap();
    }
}

/// The texts of the table, in the order of their numbers.
fn texts_in_table(cluster: &PostgresCluster) -> Vec<String> {
    let texts = cluster
        .psql("SELECT payload FROM events ORDER BY number")
        .unwrap();
    texts.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_share_one_feed() {
    let cluster = PostgresCluster::start();
    let (_first_process, first) = cluster.start_example();
    let (_second_process, second) = cluster.start_example();
    let servers = [first.as_str(), second.as_str()];

    client_moves_between_servers(servers).await;
    concurrent_publishers_leave_no_hole(&cluster, servers).await;
    topics_are_selected(servers).await;
    broken_connections_lose_nothing(&cluster, servers).await;
    old_cursor_reads_the_table(&cluster, servers).await;
    quiet_topic_catches_up(&cluster, servers).await;
    deleted_rows_are_no_loss(&cluster, servers).await;
    missing_rows_are_counted(&cluster, servers).await;
    lost_rows_restart_the_log(&cluster, servers).await;
    new_table_is_a_gap(&cluster, servers).await;
}

/// A transaction that publishes and is rolled back uses no number, so that the beginning stays a cursor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolled_back_publication_is_no_loss() {
    let cluster = PostgresCluster::start();
    let (_process, address) = cluster.start_example();
    let rolled_back = cluster.psql("BEGIN; SELECT publish(NULL, 'rolled back'); ROLLBACK");
    assert!(rolled_back.is_some());
    let mut follower = Follower::open(&address, "0-start", "").await;
    publish(&address, "0", "").await.unwrap();
    follower.expect_texts([0]).await;
    let mut returned = Follower::open(&address, "0-start", "").await;
    returned.expect_texts([0]).await;
}

async fn client_moves_between_servers(servers: [&str; 2]) {
    let (mut cursor, mut expected) = ("0-start".to_owned(), 0);
    for turn in 0..10_usize {
        publish_numbers(servers, 3 * turn as u64..3 * turn as u64 + 3).await;
        let mut follower = Follower::open(servers[turn % 2], &cursor, "").await;
        // The last numbers are left to the other server, unless they have arrived already.
        while expected < 3 * turn + 2 || !follower.records.is_empty() {
            assert_eq!(follower.next_text().await, expected.to_string());
            expected += 1;
        }
        cursor = follower.cursor();
    }
}

async fn concurrent_publishers_leave_no_hole(cluster: &PostgresCluster, servers: [&str; 2]) {
    let last = publish(servers[0], "last", "").await.unwrap();
    let mut followers = [
        Follower::open(servers[0], &last, "").await,
        Follower::open(servers[1], &last, "").await,
    ];
    let published = (0..100).map(async |number: usize| {
        publish(servers[number % 2], &format!("concurrent {number}"), "")
            .await
            .unwrap()
    });
    join_all(published).await;
    let in_table = texts_in_table(cluster);
    let expected = &in_table[in_table.len() - 100..];
    for follower in &mut followers {
        for text in expected {
            assert_eq!(follower.next_text().await, *text);
        }
    }
}

async fn topics_are_selected(servers: [&str; 2]) {
    let start = publish(servers[0], "start", "").await.unwrap();
    for number in 0..20 {
        let topic = format!("topic=topic%20{}", number % 4);
        publish(servers[number % 2], &number.to_string(), &topic)
            .await
            .unwrap();
    }
    let mut follower = Follower::open(servers[1], &start, "&topic=topic%203").await;
    follower.expect_texts([3, 7, 11, 15, 19]).await;
}

async fn broken_connections_lose_nothing(cluster: &PostgresCluster, servers: [&str; 2]) {
    let start = publish(servers[0], "start", "").await.unwrap();
    let mut followers = [
        Follower::open(servers[0], &start, "").await,
        Follower::open(servers[1], &start, "").await,
    ];
    for number in 0..5 {
        let terminated = cluster.psql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
        );
        assert!(terminated.is_some());
        let deadline = Instant::now() + TEST_TIMEOUT;
        while publish(servers[number % 2], &number.to_string(), "")
            .await
            .is_none()
        {
            assert!(
                Instant::now() < deadline,
                "the server does not connect again"
            );
        }
        for follower in &mut followers {
            assert_eq!(follower.next_text().await, number.to_string());
        }
    }
}

async fn old_cursor_reads_the_table(cluster: &PostgresCluster, servers: [&str; 2]) {
    // More rows than a server keeps in memory.
    let filled = cluster.psql("SELECT publish(NULL, n::text) FROM generate_series(1, 3000) AS n");
    let first = filled.unwrap().lines().next().unwrap().to_owned();
    let mut follower = Follower::open(servers[0], &first, "").await;
    for number in 2..=3000 {
        assert_eq!(follower.next_text().await, number.to_string());
    }
    assert_eq!(
        cluster.psql("DELETE FROM events WHERE number <= (SELECT max(number) FROM events) - 2000"),
        Some(String::new())
    );
    let mut follower = Follower::open(servers[1], &first, "").await;
    let record = follower.next_record().await;
    assert_eq!(
        record.gap.as_ref().unwrap()["reason"],
        "expired",
        "{record:?}"
    );
    for number in 1001..=3000 {
        assert_eq!(follower.next_text().await, number.to_string());
    }
}

/// How long a server waits for a notification before it looks at the table anyway.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// How long a relay sends a page of the table again, without reading the table.
const PAGE_REUSE_TIME: Duration = Duration::from_secs(30);

/// The cursor of a client whose topic has no new row moves to the last row, so that the client gets its next event from the log.
async fn quiet_topic_catches_up(cluster: &PostgresCluster, servers: [&str; 2]) {
    let quiet = "topic=quiet";
    let first = publish(servers[0], "first", quiet).await.unwrap();
    let fill = "SELECT publish(NULL, n::text) FROM generate_series(1, 1500) AS n";
    for is_deleted in [false, true] {
        let filled = cluster.psql(fill).unwrap();
        let filled = filled.lines().last().unwrap();
        let last = publish(servers[0], "last", "").await.unwrap();
        for server in servers {
            // When this server sends the last row, its log has mostly moved past the first one. A busy server reads this page of the table before
            // its log does.
            let mut follower = Follower::open(server, filled, "").await;
            assert_eq!(follower.next_text().await, "last");
        }
        if is_deleted {
            let delete = "DELETE FROM events WHERE topic = 'quiet'
                          OR number < (SELECT max(number) FROM events) - 1200";
            assert!(cluster.psql(delete).is_some());
        }
        let mut follower = Follower::open(servers[0], &first, "&topic=quiet").await;
        if is_deleted {
            let deadline = Instant::now() + PAGE_REUSE_TIME + TEST_TIMEOUT;
            let gap = loop {
                let record = follower.next_record().await;
                if let Some(gap) = record.gap {
                    break gap;
                }
                // The server still has the deleted row: in its log, because it has not read all new rows, or in a page that it read lately.
                assert_eq!(record.data.as_deref(), Some("next false"));
                assert!(Instant::now() < deadline, "the row does not go");
                sleep(Duration::from_millis(100)).await;
                follower = Follower::open(servers[0], &first, "&topic=quiet").await;
            };
            assert_eq!(gap["reason"], "expired");
        }
        follower.expect_cursor(&last).await;
        let next = format!("next {is_deleted}");
        publish(servers[1], &next, quiet).await.unwrap();
        assert_eq!(follower.next_text().await, next);
    }
}

/// Rows that a client has got are deleted: the newest one, and then all.
async fn deleted_rows_are_no_loss(cluster: &PostgresCluster, servers: [&str; 2]) {
    for deleted in ["payload = 'newest'", "true"] {
        let last = publish(servers[0], "newest", "").await.unwrap();
        let mut connected = Vec::new();
        for server in servers {
            let mut follower = Follower::open(server, &last, "").await;
            publish(servers[0], "before", "").await.unwrap();
            assert_eq!(follower.next_text().await, "before");
            connected.push(follower);
        }
        let newest = publish(servers[1], "newest", "").await.unwrap();
        for follower in &mut connected {
            while follower.next_text().await != "newest" {}
            assert_eq!(follower.cursor(), newest);
        }
        let delete = format!("DELETE FROM events WHERE {deleted}");
        assert!(cluster.psql(&delete).is_some());
        // The readers look at the table with and without a newer row.
        sleep(POLL_INTERVAL).await;
        let (_process, new_server) = cluster.start_example();
        connected.push(Follower::open(&new_server, &newest, "").await);
        publish_numbers(servers, 0..2).await;
        connected.push(Follower::open(&new_server, &newest, "").await);
        for follower in &mut connected {
            follower.expect_texts(0..2).await;
        }
    }
}

/// Rows that a client has not got are deleted, up to the newest one.
async fn missing_rows_are_counted(cluster: &PostgresCluster, servers: [&str; 2]) {
    let first = publish(servers[0], "first", "").await.unwrap();
    publish_numbers(servers, 0..5).await;
    assert!(cluster.psql("DELETE FROM events").is_some());
    let (_process, new_server) = cluster.start_example();
    let mut follower = Follower::open(&new_server, &first, "").await;
    let gap = follower.next_record().await.gap.unwrap();
    assert_eq!(
        (&gap["reason"], &gap["missed"]),
        (&"expired".into(), &5.into())
    );
    // The gap is not repeated.
    let cursor = follower.cursor();
    let mut returned = Follower::open(&new_server, &cursor, "").await;
    publish_numbers(servers, 5..7).await;
    follower.expect_texts(5..7).await;
    returned.expect_texts(5..7).await;
}

/// A failover loses the newest row. The log of a server begins anew with the last rows, and not with the first.
async fn lost_rows_restart_the_log(cluster: &PostgresCluster, servers: [&str; 2]) {
    let fill = "SELECT publish(NULL, n::text) FROM generate_series(1, 1500) AS n";
    assert!(cluster.psql(fill).is_some());
    let lost = publish(servers[0], "lost", "").await.unwrap();
    let mut follower = Follower::open(servers[0], &lost, "").await;
    publish(servers[0], "also lost", "").await.unwrap();
    assert_eq!(follower.next_text().await, "also lost");
    let lose = "DELETE FROM events WHERE payload LIKE '%lost';
                UPDATE events_tail SET (number, token) =
                    (SELECT number, token FROM events ORDER BY number DESC LIMIT 1)";
    assert!(cluster.psql(lose).is_some());
    let record = follower.next_record().await;
    assert_eq!(record.gap.unwrap()["reason"], "epoch");
    follower.expect_texts(501..=1500).await;
}

async fn new_table_is_a_gap(cluster: &PostgresCluster, servers: [&str; 2]) {
    let last = publish(servers[0], "last", "").await.unwrap();
    let mut connected = Follower::open(servers[1], &last, "").await;
    let recreate = "TRUNCATE events; UPDATE events_tail SET number = 0, token = 'start'";
    assert!(cluster.psql(recreate).is_some());
    publish_numbers(servers, 0..3).await;
    let mut returned = Follower::open(servers[0], &last, "").await;
    for follower in [&mut connected, &mut returned] {
        let record = follower.next_record().await;
        assert_eq!(
            record.gap.as_ref().unwrap()["reason"],
            "epoch",
            "{record:?}"
        );
        for number in 0..3 {
            assert_eq!(follower.next_text().await, number.to_string());
        }
    }
}
