//! Idempotent producers (§5.2.1): a producer numbers its appends, so that it can repeat one safely. A newer producer with the same id fences the
//! older one off.

use std::{cmp::Ordering, collections::HashMap};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

const PRODUCER_ID: HeaderName = HeaderName::from_static("producer-id");
const PRODUCER_EPOCH: HeaderName = HeaderName::from_static("producer-epoch");
const PRODUCER_SEQ: HeaderName = HeaderName::from_static("producer-seq");
const PRODUCER_EXPECTED_SEQ: HeaderName = HeaderName::from_static("producer-expected-seq");
const PRODUCER_RECEIVED_SEQ: HeaderName = HeaderName::from_static("producer-received-seq");

/// The largest integer that JavaScript represents exactly.
const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// The position of the last append of each producer, by the producer's id.
#[derive(Default)]
pub(crate) struct Producers(HashMap<HeaderValue, ProducerPosition>);

/// The producer of an append and the append's position, as the request claims them.
#[derive(Clone)]
pub(crate) struct AppendClaim {
    id: HeaderValue,
    position: ProducerPosition,
}

/// The epoch of a producer, and the number of an append in the epoch.
#[derive(Clone, Copy, PartialEq, Eq)]
struct ProducerPosition {
    epoch: u64,
    seq: u64,
}

/// The judgement of a claim, with the headers of the response.
pub(crate) enum Verdict {
    /// The append is the next one.
    Next(HeaderMap),
    /// The append was made before.
    Again(HeaderMap),
    /// There is a newer producer with the same id.
    Fenced(HeaderMap),
    /// An append before this one is missing.
    Gap(HeaderMap),
    /// The first append of an epoch must have number 0.
    NoBeginning,
}

impl AppendClaim {
    /// Reads the claim of a request. Returns `None` if the request has no claim.
    ///
    /// # Errors
    /// A text that says what is wrong with the headers.
    pub(crate) fn read(headers: &HeaderMap) -> Result<Option<Self>, &'static str> {
        let [id, epoch, seq] =
            [PRODUCER_ID, PRODUCER_EPOCH, PRODUCER_SEQ].map(|name| headers.get(name));
        if id.is_none() && epoch.is_none() && seq.is_none() {
            return Ok(None);
        }
        let (Some(id), Some(epoch), Some(seq)) = (id, epoch, seq) else {
            return Err("Producer-Id, Producer-Epoch and Producer-Seq go together");
        };
        let (Some(epoch), Some(seq)) = (parse_number(epoch), parse_number(seq)) else {
            return Err("Producer-Epoch and Producer-Seq are numbers");
        };
        if id.is_empty() {
            return Err("Producer-Id is empty");
        }
        let position = ProducerPosition { epoch, seq };
        Ok(Some(Self {
            id: id.clone(),
            position,
        }))
    }
}

impl Producers {
    /// Compares a claim with the producer's last append.
    pub(crate) fn judge(&self, claim: &AppendClaim) -> Verdict {
        let ProducerPosition { epoch, seq } = claim.position;
        let last = self.0.get(&claim.id);
        let expected = match last.map(|last| (last, epoch.cmp(&last.epoch))) {
            Some((last, Ordering::Less)) => {
                return Verdict::Fenced(header_map([(PRODUCER_EPOCH, last.epoch)]));
            }
            Some((_, Ordering::Greater)) if seq > 0 => return Verdict::NoBeginning,
            Some((last, Ordering::Equal)) if seq <= last.seq => {
                return Verdict::Again(header_map([
                    (PRODUCER_EPOCH, epoch),
                    (PRODUCER_SEQ, last.seq),
                ]));
            }
            Some((last, Ordering::Equal)) => last.seq + 1,
            Some((_, Ordering::Greater)) | None => 0,
        };
        if seq != expected {
            return Verdict::Gap(header_map([
                (PRODUCER_EXPECTED_SEQ, expected),
                (PRODUCER_RECEIVED_SEQ, seq),
            ]));
        }
        Verdict::Next(header_map([(PRODUCER_EPOCH, epoch), (PRODUCER_SEQ, seq)]))
    }

    /// Records an append that was [`Next`](Verdict::Next).
    pub(crate) fn accept(&mut self, claim: AppendClaim) {
        self.0.insert(claim.id, claim.position);
    }
}

fn header_map<const N: usize>(numbers: [(HeaderName, u64); N]) -> HeaderMap {
    let headers = numbers.map(|(name, number)| (name, HeaderValue::from(number)));
    headers.into_iter().collect()
}

/// Parses a number that consists of digits only.
fn parse_number(value: &HeaderValue) -> Option<u64> {
    let text = value.to_str().ok()?;
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse().ok()?;
    (digits && number <= MAX_SAFE_INTEGER).then_some(number)
}
