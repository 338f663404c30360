//! The members of a hub in Redis.

use std::time::Duration;

use redis::{Script, aio::MultiplexedConnection};
use serde_json::Value;
use tower_push::{
    event::Topic,
    source::hub::{MemberAction, MemberChange, MemberSnapshot, PresenceAnswer, PresenceRequest},
};
use tower_push_proto::read_sizer::ReadSizer;

use crate::{
    connector::{Connector, key_beside_stream},
    entry_id::EntryId,
    error::Error,
    redis_publisher::RedisPublisher,
    stream_cursor::StreamCursor,
    stream_info::StreamInfo,
    stream_reads::{ReadResponse, run_sized_read},
};

/// The Lua script that applies a [`PresenceRequest`].
const UPDATE_MEMBERS: &str = include_str!("update_members.lua");

/// The response of `HSCAN`: the cursor of the next response, 0 after the last one, and fields with their values.
type ScanResponse = (u64, Vec<(Vec<u8>, Vec<u8>)>);

/// The approximate number of members that Redis visits at most for one response of `HSCAN`.
const MAX_SCAN_COUNT: usize = 512;

impl ReadResponse for ScanResponse {
    fn size(&self) -> (usize, usize) {
        let (_, members) = self;
        let bytes = members
            .iter()
            .map(|(member, value)| member.len() + value.len());
        (members.len(), bytes.sum())
    }
}

/// Runs the requests by which one node changes the members of a hub.
pub(crate) struct RedisPresence {
    publisher: RedisPublisher,
    keys: PresenceKeys,
    script: Script,
}

/// The keys of the members of a stream's hub. In a cluster, they are on the node of the stream.
struct PresenceKeys {
    /// A sorted set of the names of the nodes. The score is the end of the lease, in milliseconds; 0 if it has ended and members are left.
    nodes: String,
    /// A hash with the number of the last request of each node, the time of the last request in the field `at`, and the time of the first request in
    /// the field `since`.
    numbers: String,
    /// A sorted set of a node's name and a member, for each member that a node holds. All scores are 0.
    holds: String,
    /// A hash with the number of nodes that hold each member, and its value.
    members: String,
    /// A hash with the number of members of each topic.
    topics: String,
}

impl PresenceKeys {
    fn new(stream: &str) -> Self {
        let key = |name: &str| key_beside_stream(stream, &format!("presence:{name}"));
        Self {
            nodes: key("nodes"),
            numbers: key("numbers"),
            holds: key("holds"),
            members: key("members"),
            topics: key("topics"),
        }
    }
}

impl RedisPresence {
    pub(crate) fn new(publisher: RedisPublisher) -> Self {
        Self {
            keys: PresenceKeys::new(publisher.connection().connector().key()),
            publisher,
            script: Script::new(UPDATE_MEMBERS),
        }
    }

    /// Runs a request. The entries of its changes trim the stream like those of other publications.
    pub(crate) async fn run(&self, request: &PresenceRequest) -> Result<PresenceAnswer, Error> {
        let connection = self.publisher.connection();
        let keys = &self.keys;
        let mut call = self.script.prepare_invoke();
        call.key(connection.connector().key());
        for key in [
            &keys.nodes,
            &keys.numbers,
            &keys.holds,
            &keys.members,
            &keys.topics,
        ] {
            call.key(key);
        }
        call.arg(request.node())
            .arg(request.number())
            .arg(request.acknowledged_number())
            .arg(request.node_timeout().as_millis() as u64)
            .arg(request.max_members())
            .arg(request.max_total_members())
            .arg(u8::from(request.topic_suffix().is_some()))
            .arg(request.topic_suffix().unwrap_or_default());
        let trim = self.publisher.trim_arguments();
        call.arg(trim.len()).arg(trim);
        for change in request.changes() {
            call.arg(&arguments_of(change)[..]);
        }
        let mut numbered = connection.get_or_connect().await?;
        let invoked = call.invoke_async(&mut numbered.connection);
        let answer: Vec<usize> = connection.run_command(numbered.number, invoked).await?;
        match answer.as_slice() {
            [0, has_more, refused @ ..] => Ok(PresenceAnswer::Applied {
                refused: refused.to_vec(),
                has_more: *has_more != 0,
            }),
            [1] => Ok(PresenceAnswer::LeaseLost),
            _ => Err(Error::unsupported()),
        }
    }
}

/// Returns the action, the topic, the key and the value of a change.
fn arguments_of(change: &MemberChange) -> [String; 4] {
    let (action, value) = match &change.action {
        MemberAction::Enter(value) => ("enter", value.to_string()),
        MemberAction::Keep(value) => ("keep", value.to_string()),
        MemberAction::Update(value) => ("update", value.to_string()),
        MemberAction::Leave => ("leave", String::new()),
    };
    let (topic, key) = (change.topic.to_string(), change.key.to_string());
    [action.to_owned(), topic, key, value]
}

/// Reads the members of all topics, in several responses. The snapshot can have changes of events after its id, because members may change between
/// the responses.
pub(crate) async fn read_members(
    connector: &Connector,
    connection: &mut MultiplexedConnection,
    sizer: &ReadSizer,
) -> Result<MemberSnapshot, Error> {
    let stream = connector.key();
    let mut info = redis::cmd("XINFO");
    info.arg("STREAM").arg(stream);
    let last_id = match connector.with_timeout(info.query_async(connection)).await {
        Ok(info) => StreamInfo::parse(info)?.last_generated_id,
        Err(error) if error.is_no_such_key() => EntryId::ZERO,
        Err(error) => return Err(error),
    };
    let keys = PresenceKeys::new(stream);
    let last_id = StreamCursor::without_entry(last_id).to_event_id();
    let mut snapshot = MemberSnapshot::new(last_id);
    let mut cursor = 0;
    loop {
        let sized = sizer.begin(MAX_SCAN_COUNT, usize::MAX);
        let mut scan = redis::cmd("HSCAN");
        let scan = scan.arg(&keys.members).arg(cursor);
        scan.arg("COUNT").arg(sized.max_entries());
        let read = connector.with_timeout(scan.query_async(connection));
        let (next, found): ScanResponse = run_sized_read(sized, connector.timeout(), read).await?;
        let members = found
            .iter()
            .filter_map(|(member, record)| parse_member(member, record));
        members.for_each(|(topic, key, value)| snapshot.insert(topic, key, value));
        if next == 0 {
            // The age is read after the members, so that a loss during the scan makes the snapshot incomplete.
            let age = read_storage_age(connector, connection, &keys).await?;
            return Ok(snapshot.storage_age(age));
        }
        cursor = next;
    }
}

/// Returns how long Redis has stored the members without losing any. Returns zero if it has stored nothing, or has lost a key of the members.
async fn read_storage_age(
    connector: &Connector,
    connection: &mut MultiplexedConnection,
    keys: &PresenceKeys,
) -> Result<Duration, Error> {
    let mut pipeline = redis::pipe();
    pipeline.cmd("TIME");
    pipeline.cmd("HGET").arg(&keys.numbers).arg("since");
    pipeline.cmd("TYPE").arg(&keys.holds);
    pipeline.cmd("TYPE").arg(&keys.members);
    let read = connector.with_timeout(pipeline.query_async(connection));
    let (time, since, holds, members): ((u64, u64), Option<String>, String, String) = read.await?;
    let (seconds, microseconds) = time;
    let now = Duration::from_secs(seconds) + Duration::from_micros(microseconds);
    // A value of another program counts as 0.
    let since = since.map(|since| since.parse().unwrap_or(0));
    Ok(match (since, holds.as_str(), members.as_str()) {
        (None, ..) | (_, "zset", "none") => Duration::ZERO,
        (Some(since), ..) => now.saturating_sub(Duration::from_millis(since)),
    })
}

/// Returns the topic, the key and the value of a member. Returns `None` if another program has written the field or its value.
fn parse_member<'a>(member: &'a [u8], record: &[u8]) -> Option<(Topic, &'a str, Value)> {
    let (topic, key) = std::str::from_utf8(member).ok()?.split_once('\n')?;
    let (_count, value) = std::str::from_utf8(record).ok()?.split_once(' ')?;
    Some((
        Topic::new(topic).ok()?,
        key,
        serde_json::from_str(value).ok()?,
    ))
}
