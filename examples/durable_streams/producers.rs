//! Idempotent producers: a writer that numbers what it appends may repeat itself, and a newer one of its name shuts it out (§5.2.1).

use std::{cmp::Ordering, collections::HashMap};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

const ID: HeaderName = HeaderName::from_static("producer-id");
const EPOCH: HeaderName = HeaderName::from_static("producer-epoch");
const SEQ: HeaderName = HeaderName::from_static("producer-seq");
const EXPECTED: HeaderName = HeaderName::from_static("producer-expected-seq");
const RECEIVED: HeaderName = HeaderName::from_static("producer-received-seq");

/// What JavaScript can count.
const GREATEST: u64 = (1 << 53) - 1;

/// What a stream's producers have appended last, by their ids.
#[derive(Default)]
pub(crate) struct Producers(HashMap<HeaderValue, Place>);

/// Who says that it appends, and what number of its own that has.
#[derive(Clone)]
pub(crate) struct Claim {
    id: HeaderValue,
    place: Place,
}

/// In the order in which they come.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    epoch: u64,
    seq: u64,
}

/// What a claim is worth, and the headers that say so.
pub(crate) enum Verdict {
    Next(HeaderMap),
    /// It is there already.
    Again(HeaderMap),
    /// There is a newer producer of that id.
    Fenced(HeaderMap),
    /// Something before it has not come.
    Gap(HeaderMap),
    /// An epoch begins at 0.
    NoBeginning,
}

impl Claim {
    /// # Errors
    /// What is wrong with the headers.
    pub(crate) fn read(headers: &HeaderMap) -> Result<Option<Self>, &'static str> {
        let [id, epoch, seq] = [ID, EPOCH, SEQ].map(|name| headers.get(name));
        if id.is_none() && epoch.is_none() && seq.is_none() {
            return Ok(None);
        }
        let (Some(id), Some(epoch), Some(seq)) = (id, epoch, seq) else {
            return Err("Producer-Id, Producer-Epoch and Producer-Seq go together");
        };
        let (Some(epoch), Some(seq)) = (number(epoch), number(seq)) else {
            return Err("Producer-Epoch and Producer-Seq are numbers");
        };
        if id.is_empty() {
            return Err("Producer-Id is empty");
        }
        let place = Place { epoch, seq };
        Ok(Some(Self {
            id: id.clone(),
            place,
        }))
    }
}

impl Producers {
    pub(crate) fn judge(&self, claim: &Claim) -> Verdict {
        let Place { epoch, seq } = claim.place;
        let last = self.0.get(&claim.id);
        let expected = match last.map(|last| (last, epoch.cmp(&last.epoch))) {
            Some((last, Ordering::Less)) => return Verdict::Fenced(told([(EPOCH, last.epoch)])),
            Some((_, Ordering::Greater)) if seq > 0 => return Verdict::NoBeginning,
            Some((last, Ordering::Equal)) if seq <= last.seq => {
                return Verdict::Again(told([(EPOCH, epoch), (SEQ, last.seq)]));
            }
            Some((last, Ordering::Equal)) => last.seq + 1,
            Some((_, Ordering::Greater)) | None => 0,
        };
        if seq != expected {
            return Verdict::Gap(told([(EXPECTED, expected), (RECEIVED, seq)]));
        }
        Verdict::Next(told([(EPOCH, epoch), (SEQ, seq)]))
    }

    /// What was [`Next`](Verdict::Next) is appended.
    pub(crate) fn accept(&mut self, claim: Claim) {
        self.0.insert(claim.id, claim.place);
    }
}

fn told<const N: usize>(numbers: [(HeaderName, u64); N]) -> HeaderMap {
    let headers = numbers.map(|(name, number)| (name, HeaderValue::from(number)));
    headers.into_iter().collect()
}

/// Digits and nothing else.
fn number(value: &HeaderValue) -> Option<u64> {
    let text = value.to_str().ok()?;
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse().ok()?;
    (digits && number <= GREATEST).then_some(number)
}
