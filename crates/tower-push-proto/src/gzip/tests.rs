use std::{
    collections::HashMap,
    io::{Read, Write},
};

use flate2::{Compression, write::GzEncoder};
use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZFlush, MZStatus};
use proptest::{collection::vec, prelude::*};

use super::{deflated_block::MAX_STORED_LEN, *};
use crate::{
    Item,
    event::GapReason,
    format::Ndjson,
    sse::{SseConfig, SseEncoder},
};

/// An inflater of another project, which gets a stream piece by piece.
struct Inflater {
    state: Box<InflateState>,
    header: Vec<u8>,
    text: Vec<u8>,
    /// The bytes behind the last block.
    trailer: Vec<u8>,
    is_last_block_read: bool,
}

impl Inflater {
    fn new() -> Self {
        Self {
            state: InflateState::new_boxed(DataFormat::Raw),
            header: Vec::new(),
            text: Vec::new(),
            trailer: Vec::new(),
            is_last_block_read: false,
        }
    }

    fn read(&mut self, mut bytes: &[u8]) {
        let header_len = (HEADER.len() - self.header.len()).min(bytes.len());
        self.header.extend_from_slice(&bytes[..header_len]);
        bytes = &bytes[header_len..];
        let mut chunk = [0; 1000];
        while !self.is_last_block_read {
            let result = inflate(&mut self.state, bytes, &mut chunk, MZFlush::None);
            bytes = &bytes[result.bytes_consumed..];
            self.text.extend_from_slice(&chunk[..result.bytes_written]);
            match result.status {
                Ok(MZStatus::StreamEnd) => self.is_last_block_read = true,
                Ok(_) if result.bytes_written == chunk.len() || !bytes.is_empty() => {}
                Ok(_) => return,
                Err(miniz_oxide::MZError::Buf) => return,
                Err(error) => panic!("{error:?}"),
            }
        }
        self.trailer.extend_from_slice(bytes);
    }
}

/// Two encoders that get the same items: one compresses its output.
struct EncoderPair {
    gzip: GzipEncoder,
    plain: Box<dyn Encoder>,
    inflater: Inflater,
    plain_text: Vec<u8>,
    /// The number of compressed bytes.
    gzip_len: usize,
}

impl EncoderPair {
    fn new(encoder: impl Fn() -> Box<dyn Encoder>) -> Self {
        let mut pair = Self {
            gzip: GzipEncoder::new(encoder()),
            plain: encoder(),
            inflater: Inflater::new(),
            plain_text: Vec::new(),
            gzip_len: 0,
        };
        pair.write(|encoder, out| encoder.open(out));
        pair
    }

    /// Returns the compressed bytes.
    fn write(&mut self, write: impl Fn(&mut dyn Encoder, &mut FrameBuffer)) -> Bytes {
        let mut out = FrameBuffer::default();
        write(&mut *self.plain, &mut out);
        self.plain_text.extend_from_slice(&out.into_bytes());
        let mut out = FrameBuffer::default();
        write(&mut self.gzip, &mut out);
        let compressed = out.into_bytes();
        self.gzip_len += compressed.len();
        self.inflater.read(&compressed);
        compressed
    }

    fn write_run(&mut self, run: &EventRun) -> Bytes {
        self.write(|encoder, out| {
            if !encoder.write_run(run, out) {
                for event in run.events() {
                    encoder.event(event, out).unwrap();
                }
                encoder.flush(out);
            }
        })
    }

    fn write_item(&mut self, item: Item) -> Bytes {
        self.write(|encoder, out| {
            item.clone().write_to(encoder, out).unwrap();
            encoder.flush(out);
        })
    }

    #[track_caller]
    fn assert_equal(&self) {
        let [got, expected] =
            [&self.inflater.text, &self.plain_text].map(|text| String::from_utf8_lossy(text));
        assert_eq!(got, expected);
    }

    #[track_caller]
    fn end(mut self) {
        self.write(|encoder, out| encoder.end(StreamEnd::reconnect(None), out));
        self.assert_equal();
        assert!(self.inflater.is_last_block_read);
        let mut crc = flate2::Crc::new();
        crc.update(&self.plain_text);
        let trailer = [crc.sum().to_le_bytes(), crc.amount().to_le_bytes()].concat();
        assert_eq!(self.inflater.trailer, trailer);
    }
}

fn sse() -> Box<dyn Encoder> {
    Box::new(SseEncoder::new(SseConfig::new().into(), None))
}

fn ndjson() -> Box<dyn Encoder> {
    Box::new(Ndjson::new())
}

/// A log, whose readers at the same position get the same run.
struct Log {
    events: Vec<Event>,
    /// The positions are divided into blocks of this length. A run and its history lie within one block.
    block_len: usize,
    runs: HashMap<usize, EventRun>,
}

impl Log {
    fn new(events: Vec<Event>, block_len: usize) -> Self {
        let runs = HashMap::new();
        Self {
            events,
            block_len,
            runs,
        }
    }

    /// Returns the run after `position`. The first reader at the position decides its length.
    fn run_after(&mut self, position: usize, len: usize) -> EventRun {
        let block = position / self.block_len * self.block_len;
        let end = (position + len)
            .min(block + self.block_len)
            .min(self.events.len());
        let events = &self.events;
        let run = self.runs.entry(position).or_insert_with(|| {
            let history = events[block..position].iter().cloned();
            EventRun::new(
                position as u64 + 1,
                history,
                events[position..end].iter().cloned(),
            )
        });
        run.clone()
    }
}

fn trade(number: usize) -> Event {
    let price = 100.0 + (number * 7919 % 1000) as f64 / 100.0;
    let side = if number % 3 == 0 { "buy" } else { "sell" };
    let json = format!(
        r#"{{"channel":"trades","symbol":"BTC-USD","sequence":{},"time":"2026-11-28T12:{:02}:{:02}.{:03}Z","price":"{price:.2}","size":"0.{:04}","side":"{side}","trade_id":{}}}"#,
        9_000_000 + number,
        number / 60 % 60,
        number % 60,
        number * 37 % 1000,
        number * 271 % 10_000,
        71_000_000 + number * 3,
    );
    Event::text(json).with_id(number as u64).unwrap()
}

#[test]
fn each_event_is_readable_at_once() {
    let mut log = Log::new((1..=200).map(trade).collect(), 64);
    let mut pair = EncoderPair::new(sse);
    pair.assert_equal();
    for position in 0..200 {
        pair.write_run(&log.run_after(position, 1));
        pair.assert_equal();
    }
    pair.end();
}

/// Compares with an encoder for one client, which keeps its window from event to event.
#[test]
fn shared_bytes_are_nearly_as_short_as_private_ones() {
    let mut log = Log::new((1..=640).map(trade).collect(), 64);
    let mut pair = EncoderPair::new(ndjson);
    let mut private = GzEncoder::new(Vec::new(), Compression::new(6));
    for position in 0..640 {
        let plain_before = pair.plain_text.len();
        pair.write_run(&log.run_after(position, 1));
        private.write_all(&pair.plain_text[plain_before..]).unwrap();
        private.flush().unwrap();
    }
    let private_len = private.finish().unwrap().len();
    let ratio = |len| pair.plain_text.len() as f64 / len as f64;
    println!(
        "shared {:.2}, private {:.2}",
        ratio(pair.gzip_len),
        ratio(private_len)
    );
    assert!(ratio(pair.gzip_len) > ratio(private_len) * 0.8);
    pair.end();
}

#[test]
fn clients_at_one_position_share_bytes() {
    let mut log = Log::new((1..=9).map(trade).collect(), 8);
    let mut pairs = [EncoderPair::new(sse), EncoderPair::new(sse)];
    let [first, second] = &mut pairs;
    first.write_run(&log.run_after(0, 1));
    let run = log.run_after(1, 2);
    let with_history = first.write_run(&run);
    // The second client has joined after the first event.
    let alone = second.write_run(&run);
    assert!(with_history.len() < alone.len());
    let [first_bytes, second_bytes] =
        [&mut *first, &mut *second].map(|pair| pair.write_run(&log.run_after(3, 5)));
    assert_ne!(first_bytes, second_bytes);
    // A new block of the log begins.
    let [first_bytes, second_bytes] =
        [first, second].map(|pair| pair.write_run(&log.run_after(8, 1)));
    assert_eq!(first_bytes.as_ptr(), second_bytes.as_ptr());
    pairs.into_iter().for_each(EncoderPair::end);
}

#[test]
fn heartbeat_separates_run_from_history() {
    let mut log = Log::new((1..=3).map(trade).collect(), 64);
    let mut pair = EncoderPair::new(sse);
    pair.write_run(&log.run_after(0, 1));
    let heartbeat = pair.write(|encoder, out| encoder.heartbeat(out));
    assert_eq!(&heartbeat[..], b"\x00\x02\x00\xfd\xff:\n");
    pair.write_run(&log.run_after(1, 1));
    pair.end();
}

#[test]
fn runs_of_other_log_have_no_common_history() {
    let mut logs = [0, 1000].map(|first| Log::new((first..first + 4).map(trade).collect(), 64));
    let mut pair = EncoderPair::new(ndjson);
    pair.write_run(&logs[0].run_after(0, 2));
    pair.write_run(&logs[1].run_after(2, 2));
    pair.end();
}

#[test]
fn encodings_have_no_common_history() {
    let mut log = Log::new((1..=4).map(trade).collect(), 64);
    let mut pair = EncoderPair::new(sse);
    pair.write_run(&log.run_after(0, 2));
    pair.gzip.encoder = ndjson();
    pair.plain = ndjson();
    pair.write_run(&log.run_after(2, 2));
    pair.end();
}

/// The bytes of the history exceed the window of DEFLATE.
#[test]
fn long_history_is_cut_to_the_window() {
    let text = |number: usize| {
        (0..20_000).map(move |i| char::from(b'a' + (i * i * (number + 3) / 7 % 23) as u8))
    };
    let events = (0..12).map(|number| Event::text(text(number).collect::<String>()));
    let mut log = Log::new(events.collect(), 64);
    let mut pair = EncoderPair::new(ndjson);
    for position in 0..12 {
        pair.write_run(&log.run_after(position, 1));
        pair.assert_equal();
    }
    pair.end();
}

#[test]
fn items_that_are_ready_together_become_one_block() {
    let mut encoder = GzipEncoder::new(ndjson());
    let mut out = FrameBuffer::default();
    for number in 0..10 {
        encoder.event(&trade(number), &mut out).unwrap();
    }
    assert!(out.is_empty());
    encoder.flush(&mut out);
    assert!((1..800).contains(&out.len()), "{}", out.len());
    // A full frame does not wait for the flush.
    for number in 0..200 {
        encoder.event(&trade(number), &mut out).unwrap();
    }
    assert!(encoder.uncompressed.len() < 16 * 1024 + 300 && !out.is_empty());
}

#[test]
fn opening_is_readable_by_other_decoder() {
    let mut encoder = GzipEncoder::new(sse());
    let mut out = FrameBuffer::default();
    encoder.open(&mut out);
    let bytes = out.into_bytes();
    let mut text = [0; 2];
    flate2::read::GzDecoder::new(&bytes[..])
        .read_exact(&mut text)
        .unwrap();
    assert_eq!(&text, b":\n");
}

#[test]
fn stored_lengths_are_read() {
    for len in 1..MAX_STORED_LEN + 3 {
        let mut pair = EncoderPair::new(|| Box::new(Ndjson::data_only()));
        pair.write_item(Event::text("x".repeat(len)).into());
        pair.end();
    }
}

#[derive(Clone, Debug)]
enum ClientStep {
    /// Reads a run of at most this many events.
    Run(usize),
    /// Reads an event that is no part of a run.
    Event,
    Gap,
    Cursor,
    Heartbeat,
    /// Skips this many events.
    Skip(usize),
}

fn client_step() -> impl Strategy<Value = ClientStep> {
    prop_oneof![
        6 => (1..6_usize).prop_map(ClientStep::Run),
        1 => Just(ClientStep::Event),
        1 => Just(ClientStep::Gap),
        1 => Just(ClientStep::Cursor),
        1 => Just(ClientStep::Heartbeat),
        1 => (1..4_usize).prop_map(ClientStep::Skip),
    ]
}

proptest! {
    /// Three clients read one log, with gaps, jumps and heartbeats of their own. Two of them may be cut at any time.
    #[test]
    fn inflated_stream_equals_uncompressed_stream(
        payloads in vec(prop_oneof!["[a-z{}\", \n]{0,80}", Just("the same text each time".to_owned())], 1..60),
        block_len in 1..20_usize,
        is_sse in any::<bool>(),
        joins in vec(0..20_usize, 3),
        steps in vec((0..3_usize, client_step()), 0..120),
    ) {
        let events = (1_u64..).zip(payloads).map(|(id, text)| Event::text(text).with_id(id).unwrap());
        let mut log = Log::new(events.collect(), block_len);
        let last = log.events.len();
        let mut clients: Vec<_> = joins
            .iter()
            .map(|position| (EncoderPair::new(if is_sse { sse } else { ndjson }), *position))
            .collect();
        for (client, step) in steps {
            let (pair, position) = &mut clients[client];
            match step {
                ClientStep::Run(_) | ClientStep::Event if *position >= last => {}
                ClientStep::Run(len) => {
                    let run = log.run_after(*position, len);
                    pair.write_run(&run);
                    *position = run.last_position() as usize;
                }
                ClientStep::Event => {
                    pair.write_item(log.events[*position].clone().into());
                    *position += 1;
                }
                ClientStep::Gap => drop(pair.write_item(Gap::new(GapReason::Lagged).into())),
                ClientStep::Cursor => drop(pair.write_item(Item::Cursor(EventId::from(*position as u64)))),
                ClientStep::Heartbeat => drop(pair.write(|encoder, out| encoder.heartbeat(out))),
                ClientStep::Skip(count) => *position += count,
            }
            pair.assert_equal();
        }
        for (pair, _) in clients {
            pair.end();
        }
    }
}
