use std::{cmp::Ordering, sync::Arc};

use tower_push::{
    Event, EventId, Gap, GapReason,
    source::relay::{Page, PageRequest, Upstream, UpstreamError},
};
use tower_push_proto::read_sizer::ReadSizer;

use crate::{
    connector::SharedConnection,
    entry_id::EntryId,
    log_end::LogEnd,
    stream_continuity::StreamSnapshot,
    stream_cursor::StreamCursor,
    stream_entry::StreamEntry,
    stream_reads::{MAX_RESPONSE_ENTRIES, read_sizer, read_snapshot, run_sized_read},
};

/// The [`Upstream`] of a stream: reads the entries after a client's cursor, if the client may resume there.
///
/// | the cursor's entry | result |
/// |---|---|
/// | is in the stream, with the cursor's fingerprint | the entries after it |
/// | is not there, and there has been none after it | no entries: the client has missed nothing, and continues with this process's log |
/// | is the only one that was ever removed, such as the one with which the stream was created | all entries |
/// | is older than the oldest entry | a gap (`expired`), and all entries |
/// | is newer than all entries, was replaced, or is missing in the middle; or the key does not exist | [`UpstreamError::Lost`] (`epoch`) |
///
/// A page costs one transaction, of `XINFO STREAM`, `XRANGE` and `ROLE`. Clones share a connection.
#[derive(Clone, Debug)]
pub struct RedisUpstream {
    connection: Arc<SharedConnection>,
    sizer: Arc<ReadSizer>,
    log_end: Arc<LogEnd>,
}

impl RedisUpstream {
    pub(crate) fn new(connection: Arc<SharedConnection>, log_end: Arc<LogEnd>) -> Self {
        Self {
            log_end,
            connection,
            sizer: Arc::new(read_sizer()),
        }
    }
}

impl RedisUpstream {
    /// Reads the entries after a cursor, and makes the events of a page from them. `to_event` returns `None` for an entry that is not requested.
    pub(crate) async fn read_page_with<E>(
        &self,
        request: &PageRequest,
        to_event: impl Fn(&StreamEntry) -> Option<E>,
    ) -> Result<Page<E>, UpstreamError> {
        let lost = || UpstreamError::Lost(GapReason::Epoch);
        let cursor = StreamCursor::parse(request.after()).ok_or_else(lost)?;
        if cursor.id == EntryId::ZERO {
            // The cursor stands for the beginning of another process's log.
            return Err(lost());
        }
        let connector = self.connection.connector();
        let key = connector.key();
        let mut numbered = self.connection.get_or_connect().await?;
        let max_entries = request.max_events().min(MAX_RESPONSE_ENTRIES);
        let sized = self.sizer.begin(max_entries, request.max_bytes());
        // The cursor's own entry is read, too.
        let max_entries = sized.max_entries() + 1;
        let read = read_snapshot(&mut numbered.connection, key, cursor.id, max_entries);
        let read = self.connection.run_command(numbered.number, read);
        let snapshot = run_sized_read(sized, connector.timeout(), read).await?;
        page_after(cursor, snapshot, &self.log_end, request, to_event)
    }
}

impl Upstream for RedisUpstream {
    async fn read_page(&self, request: PageRequest) -> Result<Page, UpstreamError> {
        let to_event = |entry: &StreamEntry| requested_event(entry, &request);
        self.read_page_with(&request, to_event).await
    }

    fn compare_ids(&self, a: &EventId, b: &EventId) -> Option<Ordering> {
        let (a, b) = (StreamCursor::parse(a)?, StreamCursor::parse(b)?);
        Some(a.id.cmp(&b.id))
    }
}

/// Returns the event of an entry, if it is requested.
fn requested_event(entry: &StreamEntry, request: &PageRequest) -> Option<Event> {
    let event = entry.to_event();
    request.includes(&event).then_some(event)
}

/// Returns the page after a cursor, from a snapshot whose entries begin at the cursor's id.
fn page_after<E>(
    cursor: StreamCursor,
    snapshot: StreamSnapshot,
    log_end: &LogEnd,
    request: &PageRequest,
    to_event: impl Fn(&StreamEntry) -> Option<E>,
) -> Result<Page<E>, UpstreamError> {
    let Some(info) = snapshot.info else {
        return Err(UpstreamError::Lost(GapReason::Epoch));
    };
    match snapshot.entries.split_first() {
        Some((entry, rest)) if entry.cursor() == cursor => {
            return Ok(page_of_entries(rest, request, to_event));
        }
        Some((entry, _)) if entry.id == cursor.id => {
            return Err(UpstreamError::Lost(GapReason::Epoch));
        }
        _ => {}
    }
    if cursor.id == info.last_generated_id {
        // The last entry was removed, so its fingerprint cannot be compared. The log may know the end of the stream by another id, for example
        // because this process has started after the entry was removed. If the reader is not at the end yet, the client waits for it.
        let page = Page::new(Vec::new());
        return Ok(match log_end.cursor_at(cursor.id) {
            Some(end) => page.scanned_to(end),
            None => page,
        });
    }
    match info.sole_removed_id() {
        // The stream has every entry that was added after the entry of the cursor.
        Some(removed_id) if removed_id == cursor.id => {
            return Ok(page_of_entries(&snapshot.entries, request, to_event));
        }
        Some(_) if cursor.id.is_random_start() => {
            return Err(UpstreamError::Lost(GapReason::Epoch));
        }
        _ => {}
    }
    let is_after_all = cursor.id > info.last_generated_id;
    if is_after_all || info.first_id.is_some_and(|first_id| first_id < cursor.id) {
        return Err(UpstreamError::Lost(GapReason::Epoch));
    }
    if snapshot.entries.is_empty() {
        return Err(UpstreamError::Lost(GapReason::Expired));
    }
    let page = page_of_entries(&snapshot.entries, request, to_event);
    Ok(page.after_gap(Gap::new(GapReason::Expired)))
}

/// Returns the page of entries, of the topics that are requested.
fn page_of_entries<E>(
    entries: &[StreamEntry],
    request: &PageRequest,
    to_event: impl Fn(&StreamEntry) -> Option<E>,
) -> Page<E> {
    let mut bytes = 0;
    let mut is_in_page = |entry: &&StreamEntry| {
        let fits = bytes < request.max_bytes();
        bytes += entry.byte_len();
        fits
    };
    // The first entry is in the page, however large it is.
    let count = entries.iter().take_while(&mut is_in_page).count();
    let entries = &entries[..count.max(1).min(entries.len())];
    let page = Page::new(entries.iter().filter_map(to_event).collect());
    match entries.last() {
        Some(last) => page.scanned_to(last.event_id()),
        None => page,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream_info::StreamInfo;

    fn entry(ms: u64) -> StreamEntry {
        let fields = vec![(b"data".to_vec(), vec![b'x'; ms as usize])];
        StreamEntry::new(EntryId { ms, seq: 0 }, fields)
    }

    /// A stream that had the entries 1 to 9, from which all but these were removed.
    fn snapshot(left: &[u64], from: u64) -> StreamSnapshot {
        StreamSnapshot {
            info: Some(StreamInfo {
                length: left.len() as u64,
                entries_added: 9,
                last_generated_id: EntryId { ms: 9, seq: 0 },
                max_deleted_id: EntryId::ZERO,
                first_id: left.first().map(|ms| EntryId { ms: *ms, seq: 0 }),
            }),
            entries: left
                .iter()
                .filter(|ms| **ms >= from)
                .map(|ms| entry(*ms))
                .collect(),
            is_complete: true,
        }
    }

    fn page(cursor: StreamCursor, left: &[u64]) -> String {
        let request = PageRequest::new(cursor.to_event_id());
        let to_event = |entry: &StreamEntry| requested_event(entry, &request);
        let log_end = LogEnd::default();
        let snapshot = snapshot(left, cursor.id.ms);
        match page_after(cursor, snapshot, &log_end, &request, to_event) {
            Ok(page) => {
                let (gap, events) = page.into_parts();
                let gap = gap.map(|gap| gap.reason.name()).unwrap_or_default();
                let lengths = events.iter().map(|event| event.payload().as_bytes().len());
                format!("{gap}{:?}", lengths.collect::<Vec<_>>())
            }
            Err(UpstreamError::Lost(reason)) => format!("lost {}", reason.name()),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn cursor_rule_holds() {
        let at = |ms| entry(ms).cursor();
        assert_eq!(page(at(7), &[5, 6, 7, 8, 9]), "[8, 9]");
        assert_eq!(page(at(9), &[5, 6, 7, 8, 9]), "[]");
        assert_eq!(page(at(9), &[]), "[]");
        assert_eq!(page(at(9), &[8]), "[]");
        assert_eq!(page(at(4), &[5, 6]), "expired[5, 6]");
        assert_eq!(page(at(4), &[]), "lost expired");
        assert_eq!(page(at(10), &[5, 6, 9]), "lost epoch");
        assert_eq!(page(at(7), &[5, 6, 8]), "lost epoch");
        let other = StreamCursor {
            fingerprint: at(3).fingerprint,
            ..at(7)
        };
        assert_eq!(page(other, &[5, 6, 7, 8]), "lost epoch");
        let unknown = StreamCursor {
            fingerprint: None,
            ..at(7)
        };
        assert_eq!(page(unknown, &[5, 6, 7, 8]), "lost epoch");
        assert_eq!(
            page(
                StreamCursor {
                    fingerprint: None,
                    ..at(9)
                },
                &[]
            ),
            "[]"
        );
    }

    #[test]
    fn beginning_of_stream_is_cursor() {
        let start = EntryId { ms: 0, seq: 7 };
        let page = |cursor: EntryId, removed: u64, max_deleted_id| {
            let cursor = StreamCursor::without_entry(cursor);
            let mut snapshot = snapshot(&[1, 2], cursor.id.ms);
            let info = snapshot.info.as_mut().unwrap();
            info.entries_added = info.length + removed;
            info.max_deleted_id = max_deleted_id;
            let request = PageRequest::new(cursor.to_event_id());
            let to_event = |entry: &StreamEntry| requested_event(entry, &request);
            match page_after(cursor, snapshot, &LogEnd::default(), &request, to_event) {
                Ok(page) => {
                    let (gap, events) = page.into_parts();
                    format!("{:?} {}", gap.map(|gap| gap.reason.name()), events.len())
                }
                Err(error) => error.to_string(),
            }
        };
        assert_eq!(page(start, 1, start), "None 2");
        assert_eq!(page(start, 3, start), r#"Some("expired") 2"#);
        let other = EntryId { ms: 0, seq: 8 };
        assert!(page(start, 1, other).contains("epoch"));
    }

    #[test]
    fn page_ends_after_max_bytes() {
        let entries: Vec<_> = (1..=9).map(entry).collect();
        let count = |max_bytes| {
            let request = PageRequest::new(0.into()).with_max_bytes(max_bytes);
            let to_event = |entry: &StreamEntry| requested_event(entry, &request);
            page_of_entries(&entries, &request, to_event)
                .into_parts()
                .1
                .len()
        };
        assert_eq!((count(0), count(1), count(10), count(1000)), (1, 1, 2, 9));
    }
}
