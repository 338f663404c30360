//! A client of one response, which reads the records of any format.

use http::Response;
use http_body_util::BodyExt;
use tokio::time::timeout;
use tower_push::{
    Push, PushBody,
    transport::{Sse, Transport},
};

use crate::{
    TEST_TIMEOUT, get_request_head,
    records::{ParsedRecord, RecordReader},
};

/// A client that reads one response. Every read panics after [`TEST_TIMEOUT`].
#[derive(Debug)]
pub struct RecordClient {
    body: PushBody,
    reader: RecordReader,
    /// Records that have arrived, and have not been returned.
    unread: Vec<ParsedRecord>,
}

impl RecordClient {
    /// Reads this response, whose status must be 200.
    pub fn new(response: Response<PushBody>) -> Self {
        assert_eq!(response.status(), 200);
        let content_type = response.headers()["content-type"].to_str().unwrap();
        let reader = RecordReader::new(content_type, None);
        let body = response.into_body();
        Self {
            body,
            reader,
            unread: Vec::new(),
        }
    }

    /// Opens a stream of Server-Sent Events, with `cursor` as `Last-Event-ID`.
    pub async fn open(push: Push, cursor: Option<&str>) -> Self {
        let headers: Vec<_> = cursor.map(|id| ("last-event-id", id)).into_iter().collect();
        let mut head = get_request_head("/", &headers);
        Self::new(Sse::new().respond(&mut head, push).await)
    }

    /// Returns the next record, described as its data, as `gap REASON MISSED`, or as `end JSON`. Returns `None` if the body has ended, and
    /// `error` if it has failed.
    pub async fn next(&mut self) -> Option<String> {
        while self.unread.is_empty() {
            let frame = timeout(TEST_TIMEOUT, self.body.frame());
            match frame.await.expect("no bytes arrived in time")? {
                Ok(frame) => self.unread = self.reader.feed(frame.data_ref()?),
                Err(_) => return Some("error".to_owned()),
            }
        }
        let record = self.unread.remove(0);
        Some(match (record.data, record.gap, record.end) {
            (Some(data), _, _) => data,
            (_, Some(gap), _) => {
                format!("gap {} {}", gap["reason"], gap["missed"]).replace('"', "")
            }
            (_, _, end) => format!("end {}", end.unwrap_or_default()),
        })
    }

    /// Reads until the body ends, and returns the records, described as [`next`](Self::next) does.
    pub async fn read_to_end(mut self) -> Vec<String> {
        let mut records = Vec::new();
        while let Some(record) = self.next().await {
            records.push(record);
        }
        records
    }

    /// Asserts that the next records are these, described as [`next`](Self::next) does.
    pub async fn expect(&mut self, records: &[&str]) {
        for record in records {
            assert_eq!(self.next().await.as_deref(), Some(*record));
        }
    }

    /// Asserts that the body ends without an error, after at most an end record.
    pub async fn expect_end(mut self) {
        let last = self.next().await;
        let is_end = last.as_ref().is_some_and(|last| last.starts_with("end "));
        let after = if is_end { self.next().await } else { last };
        assert_eq!(after, None);
    }

    /// Reads until the client has a cursor. Panics if a record arrives before the cursor.
    pub async fn wait_for_cursor(&mut self) {
        while self.reader.cursor.is_none() {
            let frame = timeout(TEST_TIMEOUT, self.body.frame());
            let frame = frame.await.expect("no bytes arrived in time");
            let frame = frame.expect("the body has ended").unwrap();
            assert_eq!(self.reader.feed(frame.data_ref().unwrap()), []);
        }
    }

    /// Returns the cursor with which the client would resume.
    pub fn cursor(&self) -> Option<&str> {
        self.reader.cursor.as_deref()
    }
}
