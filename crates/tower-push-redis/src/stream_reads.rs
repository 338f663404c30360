//! The reads of a stream that the reader and the upstream share.

use redis::{Pipeline, RedisResult, Script, Value, aio::MultiplexedConnection};

use crate::{
    connector::Connector, entry_id::EntryId, error::Error, stream_continuity::StreamSnapshot,
    stream_entry::StreamEntry, stream_info::StreamInfo,
};

/// The bytes that one response should have at most, on average.
const RESPONSE_BYTES: usize = 1 << 20;

/// The largest number of entries in one response.
const MAX_RESPONSE_ENTRIES: usize = 512;

/// An estimate of the size of an entry, by which a response has about [`RESPONSE_BYTES`] at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntrySizeEstimate {
    bytes_per_entry: usize,
}

impl EntrySizeEstimate {
    pub(crate) fn new() -> Self {
        // The first response has 64 entries at most.
        Self {
            bytes_per_entry: RESPONSE_BYTES / 64,
        }
    }

    /// Returns the number of entries to request.
    pub(crate) fn max_entries(&self) -> usize {
        (RESPONSE_BYTES / self.bytes_per_entry.max(1)).clamp(1, MAX_RESPONSE_ENTRIES)
    }

    /// Learns from the entries of a response. The estimate rises at once after large entries, and falls little by little after small entries.
    pub(crate) fn add(&mut self, entries: &[StreamEntry]) {
        let bytes: usize = entries.iter().map(StreamEntry::byte_len).sum();
        if let Some(average) = bytes.checked_div(entries.len()) {
            self.bytes_per_entry = average.max(self.bytes_per_entry / 2);
        }
    }
}

/// Reads the entries from `from` on, which is included, and the stream's counts, in one transaction.
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
    pipeline.atomic().ignore_errors();
    let responses: Vec<RedisResult<Value>> = pipeline.query_async(connection).await?;
    let [info, entries] =
        <[_; 2]>::try_from(responses).map_err(|_: Vec<_>| Error::unsupported())?;
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
