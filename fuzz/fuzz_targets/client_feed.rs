//! The client against the server's encoders: whatever the transport, and wherever the connections are cut, the client yields each event once
//! and in order, and each gap with its data.

#![no_main]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use libfuzzer_sys::fuzz_target;
use tower_push_client::{Client, ClientItem, Subscriber, Transport, subscriber::ResponseAction};
use tower_push_proto::{
    BatchEncoder, Encoder, Event, EventId, FrameBuffer, Gap, GapReason, StreamEnd,
    format::{Format, JsonArray, JsonSeq, Multipart, Ndjson},
    sse::{SseConfig, SseEncoder},
    websocket::{FrameEncoder, MessageFormat, handshake::accept_key},
};

fuzz_target!(|input: (u8, Vec<&[u8]>, Vec<[u8; 5]>)| {
    let (transport, texts, steps) = input;
    let transports = [Transport::Sse, Transport::LongPoll, Transport::WebSocket];
    let transport = transports[usize::from(transport) % transports.len()];
    let log: Vec<_> = texts.iter().enumerate().map(|(index, text)| event(index, text)).collect();
    let mut reader = Reader::new(transport, &log);
    for step in steps {
        reader.read_connection(Step::new(step));
    }
    reader.read_to_end();
});

/// Returns the event with the number `index`. The text survives each format.
fn event(index: usize, text: &[u8]) -> Event {
    let text = String::from_utf8_lossy(text).replace('\r', "\n");
    let mut event = Event::text(text).with_id(id(index + 1)).unwrap();
    if index % 3 == 1 {
        event = event.with_type("price").unwrap();
    }
    if index % 4 == 2 {
        event = event.with_topic("a/b").unwrap();
    }
    event
}

/// Returns the cursor after this number of events.
fn id(events: usize) -> EventId {
    EventId::new(format!("e-{events}")).unwrap()
}

/// What happens to one connection.
struct Step {
    format: u8,
    /// The number of events that the server sends.
    events: usize,
    /// The number of events that the server leaves out, and replaces by a gap.
    missed: usize,
    /// The part of the bytes that arrive, in 255ths.
    arrives: usize,
    piece_len: usize,
    is_cut: bool,
}

impl Step {
    fn new([format, events, missed, arrives, piece_len]: [u8; 5]) -> Self {
        Self {
            format,
            events: usize::from(events % 8),
            missed: match missed {
                0..=199 => 0,
                missed => usize::from(missed % 4),
            },
            arrives: arrives.into(),
            piece_len: usize::from(piece_len / 2).max(1),
            is_cut: piece_len % 2 == 0,
        }
    }
}

struct Reader<'a> {
    transport: Transport,
    log: &'a [Event],
    subscriber: Subscriber,
    now: Instant,
    /// The number of events before the client's cursor.
    position: usize,
    is_finished: bool,
}

impl<'a> Reader<'a> {
    fn new(transport: Transport, log: &'a [Event]) -> Self {
        let config = Client::new().transports([transport]).subscriber_config();
        let now = Instant::now();
        let url = "http://host/feed".parse().unwrap();
        Self {
            transport,
            log,
            subscriber: Subscriber::new(config, url, None, now),
            now,
            position: 0,
            is_finished: false,
        }
    }

    /// Sends a request, whose cursor must be that of the events that were read, and answers it.
    fn read_connection(&mut self, step: Step) {
        // Later than any delay.
        self.now += Duration::from_secs(3 * 3600);
        let request = self.subscriber.poll_request(self.now).unwrap();
        let cursor = (self.position > 0).then(|| id(self.position));
        let sent = request.headers().get("last-event-id");
        assert_eq!(sent.map(|id| id.as_bytes()), cursor.as_ref().map(|id| id.as_str().as_bytes()));

        let missed = match cursor {
            Some(_) => step.missed.min(self.log.len() - self.position),
            None => 0,
        };
        let begin = self.position + missed;
        let end = (begin + step.events).min(self.log.len());
        let feed = Feed {
            gap: (missed > 0).then(|| {
                let gap = Gap::new(GapReason::Expired).requested(id(self.position));
                gap.resumed(id(begin)).missed(missed as u64)
            }),
            events: &self.log[begin..end],
            is_last: false,
        };
        let (response, body) = feed.respond(self.transport, &request, step.format, cursor);
        let len = body.len() * step.arrives / 255;
        self.read_response(response, &body[..len], step.piece_len, step.is_cut);
    }

    /// Reads the rest of the log from a connection that is not cut.
    fn read_to_end(mut self) {
        self.now += Duration::from_secs(3 * 3600);
        let request = self.subscriber.poll_request(self.now).unwrap();
        let cursor = (self.position > 0).then(|| id(self.position));
        let feed = Feed {
            gap: None,
            events: &self.log[self.position..],
            is_last: true,
        };
        let (response, body) = feed.respond(self.transport, &request, 0, cursor);
        self.read_response(response, &body, 7, false);
        assert!(self.is_finished);
        assert_eq!(self.position, self.log.len());
    }

    fn read_response(&mut self, response: Response<()>, body: &[u8], piece_len: usize, is_cut: bool) {
        let head = response.into_parts().0;
        let action = self.subscriber.handle_response(&head, self.now);
        assert_ne!(action, ResponseAction::Drop);
        for piece in body.chunks(piece_len) {
            self.subscriber.handle_input(Bytes::copy_from_slice(piece), self.now);
            self.take_items();
        }
        let end = match is_cut {
            true => Err("cut".into()),
            false => Ok(()),
        };
        self.subscriber.handle_end(end, self.now);
        self.take_items();
    }

    fn take_items(&mut self) {
        while let Some(item) = self.subscriber.poll_item(|| self.now) {
            match item.unwrap() {
                ClientItem::Event { event, .. } => {
                    let expected = &self.log[self.position];
                    assert_eq!(event.payload(), expected.payload());
                    assert_eq!(event.id(), expected.id());
                    assert_eq!(event.event_type(), expected.event_type());
                    assert_eq!(event.topic(), expected.topic());
                    self.position += 1;
                }
                ClientItem::Gap(gap) => {
                    assert_eq!(gap.requested, Some(id(self.position)));
                    self.position += gap.missed.unwrap() as usize;
                    assert_eq!(gap.resumed, Some(id(self.position)));
                }
                ClientItem::Finished => self.is_finished = true,
                ClientItem::Cursor(cursor) => assert_eq!(cursor, id(self.position)),
                _ => {}
            }
            let cursor = (self.position > 0).then(|| id(self.position));
            assert_eq!(self.subscriber.cursor(), cursor.as_ref());
        }
        while !self.subscriber.poll_transmit().is_empty() {
            let len = self.subscriber.poll_transmit().len();
            self.subscriber.handle_written(len);
        }
    }
}

/// What a server sends to one request.
struct Feed<'a> {
    gap: Option<Gap>,
    events: &'a [Event],
    /// Whether the source has finished after the events.
    is_last: bool,
}

impl Feed<'_> {
    /// Returns the head and the body of the response.
    fn respond(
        &self,
        transport: Transport,
        request: &Request<()>,
        format: u8,
        cursor: Option<EventId>,
    ) -> (Response<()>, Bytes) {
        let response = Response::builder();
        let (content_type, body) = match transport {
            Transport::WebSocket => {
                let key = request.headers()["sec-websocket-key"].as_bytes();
                let response = response
                    .status(StatusCode::SWITCHING_PROTOCOLS)
                    .header("connection", "upgrade")
                    .header("upgrade", "websocket")
                    .header("sec-websocket-protocol", "json.tower-push")
                    .header("sec-websocket-accept", accept_key(key).unwrap());
                let mut encoder = FrameEncoder::new(MessageFormat::Json);
                return (response.body(()).unwrap(), self.stream(&mut encoder));
            }
            Transport::LongPoll => {
                let (content_type, mut encoder) = JsonArray::new().batch_encoder("application/json");
                (content_type, self.batch(&mut *encoder))
            }
            _ => self.stream_in(format, cursor),
        };
        let response = response.header("content-type", content_type);
        (response.body(()).unwrap(), body)
    }

    /// Encodes a stream in one of the formats, whatever the client has asked for.
    fn stream_in(&self, format: u8, cursor: Option<EventId>) -> (HeaderValue, Bytes) {
        let format: Box<dyn Format> = match format % 5 {
            0 => {
                let mut encoder = SseEncoder::new(Arc::new(SseConfig::new()), cursor);
                let content_type = HeaderValue::from_static("text/event-stream");
                return (content_type, self.stream(&mut encoder));
            }
            1 => Box::new(Ndjson::new()),
            2 => Box::new(JsonSeq::new()),
            3 => Box::new(Multipart::mixed()),
            _ => Box::new(Multipart::replace()),
        };
        let (content_type, mut encoder) = format.encoder(format.media_types()[0]);
        (content_type, self.stream(&mut *encoder))
    }

    fn stream(&self, encoder: &mut dyn Encoder) -> Bytes {
        let mut out = FrameBuffer::default();
        encoder.open(&mut out);
        self.write_items(encoder, &mut out);
        if self.is_last {
            encoder.end(StreamEnd::FINISHED, &mut out);
        }
        out.into_bytes()
    }

    fn batch(&self, encoder: &mut dyn BatchEncoder) -> Bytes {
        let mut out = FrameBuffer::default();
        encoder.begin_batch(&mut out);
        if let Some(gap) = &self.gap {
            encoder.gap(gap, &mut out).unwrap();
        }
        for event in self.events {
            encoder.event(event, &mut out).unwrap();
        }
        encoder.end_batch(self.is_last.then_some(StreamEnd::FINISHED), &mut out);
        out.into_bytes()
    }

    fn write_items(&self, encoder: &mut dyn Encoder, out: &mut FrameBuffer) {
        if let Some(gap) = &self.gap {
            encoder.gap(gap, out).unwrap();
        }
        for (index, event) in self.events.iter().enumerate() {
            if index % 2 == 1 {
                encoder.heartbeat(out);
            }
            encoder.event(event, out).unwrap();
        }
        encoder.flush(out);
        encoder.heartbeat(out);
    }
}
