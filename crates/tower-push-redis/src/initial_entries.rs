use redis::aio::MultiplexedConnection;
use tower_push::EventId;
use tower_push_proto::read_sizer::ReadSizer;

use crate::{
    connector::Connector,
    entry_id::EntryId,
    error::Error,
    stream_continuity::ReaderPosition,
    stream_cursor::StreamCursor,
    stream_entry::StreamEntry,
    stream_reads::{
        MAX_RESPONSE_ENTRIES, ReadResponse, create_stream, read_backwards, run_sized_read,
    },
};

/// The newest entries of a stream, with which a log begins.
#[derive(Debug)]
pub(crate) struct InitialEntries {
    /// The entries, with the oldest first.
    pub(crate) entries: Vec<StreamEntry>,
    /// The cursor before the first of the entries.
    pub(crate) start: EventId,
    /// The position after the last of the entries.
    pub(crate) position: ReaderPosition,
}

/// The limits of [`InitialEntries`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct InitialEntriesLimits {
    pub(crate) max_entries: usize,
    pub(crate) max_bytes: usize,
}

impl InitialEntries {
    /// Reads the newest entries of a stream, in several responses of a bounded size. Creates the stream if the key does not exist.
    pub(crate) async fn read(
        connector: &Connector,
        connection: &mut MultiplexedConnection,
        limits: InitialEntriesLimits,
        sizer: &ReadSizer,
    ) -> Result<Self, Error> {
        let key = connector.key();
        let mut newest_first: Vec<StreamEntry> = Vec::new();
        let mut bytes = 0;
        let mut info = None;
        let mut sole_removed_id = None;
        let mut is_first_read = true;
        // One entry more than the log holds is read: the id of this entry is the cursor before the log's first entry.
        while newest_first.len() <= limits.max_entries && bytes <= limits.max_bytes {
            let max_entries = limits.max_entries + 1 - newest_first.len();
            let sized = sizer.begin(max_entries.min(MAX_RESPONSE_ENTRIES), usize::MAX);
            let before = newest_first.last().map(|entry| entry.id);
            let read = read_backwards(connection, key, before, sized.max_entries());
            let read = connector.with_timeout(read);
            let snapshot = run_sized_read(sized, connector.timeout(), read).await?;
            let is_missing = std::mem::take(&mut is_first_read) && snapshot.info.is_none();
            if is_missing && create_stream(connector, connection).await? {
                continue;
            }
            if before.is_none() {
                info = snapshot.info;
            }
            sole_removed_id = snapshot.info.and_then(|info| info.sole_removed_id());
            bytes += snapshot.size().1;
            newest_first.extend(snapshot.entries);
            if snapshot.is_complete {
                break;
            }
        }
        let last_id = info.map_or(EntryId::ZERO, |info| info.last_generated_id);
        // If the newest entry was removed, the position is after it.
        let position = match newest_first.first() {
            Some(newest) if newest.id >= last_id => {
                ReaderPosition::after(newest, info.map_or(0, |info| info.entries_added))
            }
            _ => ReaderPosition::at_end_without_entry(info.as_ref()),
        };
        let has_extra = newest_first.len() > limits.max_entries || bytes > limits.max_bytes;
        let extra = match has_extra && newest_first.len() > 1 {
            true => newest_first.pop(),
            false => None,
        };
        let start = match extra {
            Some(extra) => extra.event_id(),
            None if newest_first.is_empty() => {
                StreamCursor::without_entry(position.id).to_event_id()
            }
            // The stream has no entry before the first one.
            None => {
                let first_id = newest_first.last().map(|entry| entry.id);
                let start = sole_removed_id.filter(|id| Some(*id) < first_id);
                StreamCursor::without_entry(start.unwrap_or(EntryId::ZERO)).to_event_id()
            }
        };
        newest_first.reverse();
        Ok(Self {
            entries: newest_first,
            start,
            position,
        })
    }
}
