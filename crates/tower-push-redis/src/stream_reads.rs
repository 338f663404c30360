//! The reads of a stream that the reader and the upstream share.

use std::time::Duration;

use redis::{Pipeline, RedisResult, Script, Value, aio::MultiplexedConnection};
use tokio::time::Instant;
use tower_push_proto::read_sizer::{ReadSizer, SizedRead};

use crate::{
    connector::{Connector, is_master},
    entry_id::EntryId,
    error::Error,
    stream_continuity::StreamSnapshot,
    stream_entry::StreamEntry,
    stream_info::StreamInfo,
};

/// The bytes that one response should have at most, on average.
const RESPONSE_BYTES: usize = 1 << 20;

/// The largest number of entries in one response.
pub(crate) const MAX_RESPONSE_ENTRIES: usize = 512;

/// The largest number of entries in the first response, whose size is not known. An entry can be as large as the server allows, and a read has no
/// limit in bytes.
const FIRST_ENTRIES: usize = 4;

/// Returns the sizer of reads over one link.
pub(crate) fn read_sizer() -> ReadSizer {
    ReadSizer::new(RESPONSE_BYTES).with_first_entries(FIRST_ENTRIES)
}

/// The response of a read, by which a [`ReadSizer`] sizes the next reads.
pub(crate) trait ReadResponse {
    /// Returns the number of entries, and their bytes.
    fn size(&self) -> (usize, usize);
}

impl ReadResponse for StreamSnapshot {
    fn size(&self) -> (usize, usize) {
        size_of_entries(&self.entries)
    }
}

pub(crate) fn size_of_entries(entries: &[StreamEntry]) -> (usize, usize) {
    let bytes = entries.iter().map(StreamEntry::byte_len).sum();
    (entries.len(), bytes)
}

/// Runs a read that has a size. `response` fails after the time `limit`.
pub(crate) async fn run_sized_read<T: ReadResponse>(
    read: SizedRead<'_>,
    limit: Duration,
    response: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let began_at = Instant::now();
    let response = response.await;
    match &response {
        Ok(response) => {
            let (entries, bytes) = response.size();
            read.finish(entries, bytes, began_at.elapsed(), limit);
        }
        Err(error) if error.is_timeout() => read.timed_out(0, 0),
        Err(_) => drop(read),
    }
    response
}

/// Reads the entries from `from` on, which is included, and the stream's counts, in one transaction. Fails if the server is not a master any more:
/// a replica may have lost entries, or not have them yet.
pub(crate) async fn read_snapshot(
    connection: &mut MultiplexedConnection,
    key: &str,
    from: EntryId,
    max_entries: usize,
) -> Result<StreamSnapshot, Error> {
    let mut pipeline = redis::pipe();
    pipeline.cmd("XINFO").arg("STREAM").arg(key);
    let range = pipeline.cmd("XRANGE").arg(key).arg(from.to_string());
    range.arg("+").arg("COUNT").arg(max_entries);
    read_transaction(connection, &mut pipeline, max_entries).await
}

/// Reads the newest entries before `before`, which is not included, newest first, and the stream's counts, in one transaction. `None` stands for
/// the end of the stream.
pub(crate) async fn read_backwards(
    connection: &mut MultiplexedConnection,
    key: &str,
    before: Option<EntryId>,
    max_entries: usize,
) -> Result<StreamSnapshot, Error> {
    let before = before.map_or("+".to_owned(), |id| format!("({id}"));
    let mut pipeline = redis::pipe();
    pipeline.cmd("XINFO").arg("STREAM").arg(key);
    let range = pipeline.cmd("XREVRANGE").arg(key).arg(before).arg("-");
    range.arg("COUNT").arg(max_entries);
    read_transaction(connection, &mut pipeline, max_entries).await
}

/// Creates a stream whose only entry is removed at once, unless the key exists.
const CREATE_STREAM: &str = r"
if redis.call('TYPE', KEYS[1]).ok == 'none' then
    redis.call('XADD', KEYS[1], ARGV[1], 'created', '')
    redis.call('XDEL', KEYS[1], ARGV[1])
end";

/// Creates an empty stream unless the key exists. The stream remembers a [random id](EntryId::random_start), by which all processes know its
/// beginning. Returns whether the stream exists now: the server can refuse to create it, for example because the user may not write.
pub(crate) async fn create_stream(
    connector: &Connector,
    connection: &mut MultiplexedConnection,
) -> Result<bool, Error> {
    let script = Script::new(CREATE_STREAM);
    let mut call = script.prepare_invoke();
    call.key(connector.key())
        .arg(EntryId::random_start().to_string());
    let create = call.invoke_async::<()>(connection);
    match connector.with_timeout(create).await {
        Ok(()) => Ok(true),
        Err(error) if error.is_unavailable() => Err(error),
        Err(_) => Ok(false),
    }
}

async fn read_transaction(
    connection: &mut MultiplexedConnection,
    pipeline: &mut Pipeline,
    max_entries: usize,
) -> Result<StreamSnapshot, Error> {
    pipeline.cmd("ROLE");
    pipeline.atomic().ignore_errors();
    let responses: Vec<RedisResult<Value>> = pipeline.query_async(connection).await?;
    let [info, entries, role] =
        <[_; 3]>::try_from(responses).map_err(|_: Vec<_>| Error::unsupported())?;
    if !is_master(&role?) {
        return Err(Error::not_master());
    }
    let info = match info.map_err(Error::from) {
        Ok(info) => Some(StreamInfo::parse(info)?),
        Err(error) if error.is_no_such_key() => None,
        Err(error) => return Err(error),
    };
    let entries = StreamEntry::parse_list(entries?)?;
    Ok(StreamSnapshot {
        info,
        is_complete: entries.len() < max_entries,
        entries,
    })
}

#[cfg(test)]
mod tests {
    use testkit::{RedisProgram, RedisServer};

    use super::*;

    #[tokio::test]
    async fn snapshot_of_replica_is_error() {
        let master = RedisServer::start(RedisProgram::Redis, &[]);
        let replica = master.start_replica();
        for (server, is_master) in [(&master, true), (&replica, false)] {
            let client = redis::Client::open(server.url()).unwrap();
            let mut connection = client.get_multiplexed_async_connection().await.unwrap();
            let snapshots = [
                read_snapshot(&mut connection, "events", EntryId::ZERO, 1).await,
                read_backwards(&mut connection, "events", None, 1).await,
            ];
            for snapshot in snapshots {
                assert_eq!(snapshot.is_ok(), is_master);
                assert!(snapshot.is_ok_and(|snapshot| snapshot.info.is_none()) || !is_master);
            }
        }
    }
}
