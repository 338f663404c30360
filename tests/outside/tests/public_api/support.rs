//! Clients and guards for the tests of this crate.

use testkit::{HttpConnection, HttpVersion, StreamingResponse, TestServer, records, wait_until};
use tower_push::{BoxError, Guard, guard::CloseReason};
use tower_push_outside_tests::{Record, RecordDecoder, RecordKind};

/// Waits until `condition` holds for the counts of `guard`.
pub(crate) async fn wait_for(guard: &Guard, condition: impl Fn(&Guard) -> bool) {
    wait_until(|| condition(guard), || format!("{:?}", guard.counts())).await;
}

/// Waits until `guard` has closed one stream, and none is open, and checks why it has closed it.
pub(crate) async fn expect_close(guard: &Guard, reason: CloseReason) {
    wait_for(guard, |guard| {
        guard.counts().opened == 1 && guard.counts().open() == 0
    })
    .await;
    let counts = guard.counts();
    for other in CloseReason::ALL {
        let expected = u64::from(other == reason);
        assert_eq!(counts.closed(other), expected, "{reason:?}: {counts:?}");
    }
}

/// A response whose records are read as they arrive.
pub(crate) struct LengthDelimitedReader<D> {
    response: StreamingResponse,
    decoder: D,
}

impl LengthDelimitedReader<RecordDecoder> {
    /// Requests records of the transport `LengthDelimited`.
    pub(crate) async fn get(server: &TestServer, version: HttpVersion, path: &str) -> Self {
        let mut client = HttpConnection::connect(server, version).await;
        Self::new(client.get(path, &[]).await)
    }

    pub(crate) fn new(response: StreamingResponse) -> Self {
        assert_eq!(response.head.status, 200);
        Self {
            response,
            decoder: RecordDecoder::default(),
        }
    }

    /// Reads the next record, or the end of the response. Fails if the server has aborted the response.
    pub(crate) async fn next(&mut self) -> Result<Option<Record>, BoxError> {
        loop {
            if let Some(record) = self.decoder.take_record() {
                return Ok(Some(record));
            }
            match self.response.next_chunk().await {
                Some(bytes) => self.decoder.feed(&bytes?),
                None => return Ok(None),
            }
        }
    }

    /// Reads the next record, which must be there.
    pub(crate) async fn expect(&mut self) -> Record {
        self.next().await.expect("not aborted").expect("a record")
    }

    /// Reads the payload of the next event.
    pub(crate) async fn expect_event(&mut self) -> String {
        let record = self.expect().await;
        assert_eq!(record.kind, RecordKind::Event, "{record:?}");
        record.text().to_owned()
    }

    /// Reads the next record, which must be of this kind, and returns its payload. If the record is the end, the response must end
    /// after the record.
    pub(crate) async fn expect_kind(&mut self, kind: RecordKind) -> String {
        let record = self.expect().await;
        assert_eq!(record.kind, kind, "{record:?}");
        if kind == RecordKind::End {
            assert_eq!(self.next().await.unwrap(), None);
        }
        record.text().to_owned()
    }

    /// Reads until the server aborts the response.
    pub(crate) async fn expect_abort(&mut self) {
        while let Ok(record) = self.next().await {
            assert!(record.is_some(), "the response has ended");
        }
    }
}

/// The records of one of tower-push's own transports, each as one line.
pub(crate) struct LineReader {
    response: StreamingResponse,
    reader: records::RecordReader,
    lines: Vec<String>,
}

impl LineReader {
    pub(crate) fn new(response: StreamingResponse) -> Self {
        let content_type = response.header("content-type").unwrap().to_owned();
        Self {
            response,
            reader: records::RecordReader::new(&content_type, None),
            lines: Vec::new(),
        }
    }

    pub(crate) fn cursor(&self) -> Option<&str> {
        self.reader.cursor.as_deref()
    }

    /// Reads lines until there are `count`, and returns them.
    pub(crate) async fn expect(&mut self, count: usize) -> Vec<String> {
        while self.lines.len() < count {
            let bytes = self.response.next_chunk().await.expect("more to come");
            self.feed(&bytes.expect("not aborted"));
        }
        self.lines.drain(..count).collect()
    }

    /// Reads at least one line. Returns all lines that have arrived, and the cursor after these lines.
    pub(crate) async fn read_some(&mut self) -> (Vec<String>, String) {
        while self.lines.is_empty() {
            let bytes = self.response.next_chunk().await.expect("more to come");
            self.feed(&bytes.expect("not aborted"));
        }
        let lines = std::mem::take(&mut self.lines);
        (lines, self.cursor().expect("a cursor").to_owned())
    }

    /// Reads to the end of the response. Fails if the server has aborted it.
    pub(crate) async fn rest(&mut self) -> Result<Vec<String>, BoxError> {
        while let Some(bytes) = self.response.next_chunk().await {
            self.feed(&bytes?);
        }
        Ok(std::mem::take(&mut self.lines))
    }

    fn feed(&mut self, bytes: &[u8]) {
        for record in self.reader.feed(bytes) {
            self.lines.push(match record {
                records::ParsedRecord {
                    data: Some(data), ..
                } => data,
                records::ParsedRecord { gap: Some(gap), .. } => {
                    format!("gap {} {}", gap["reason"].as_str().unwrap(), gap["missed"])
                }
                records::ParsedRecord { end, .. } => format!("end {}", end.unwrap()["finished"]),
            });
        }
    }
}
