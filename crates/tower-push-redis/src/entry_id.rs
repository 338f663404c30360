use std::{fmt, str::FromStr};

use tower_push_proto::random;

/// The id of an entry in a Redis stream: the server's time in milliseconds, and a number for entries of the same millisecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct EntryId {
    pub(crate) ms: u64,
    pub(crate) seq: u64,
}

impl EntryId {
    /// The id before the first entry of any stream.
    pub(crate) const ZERO: Self = Self { ms: 0, seq: 0 };

    /// Returns an id for the beginning of a new stream: lower than the ids that servers make, and different from that of any other stream.
    pub(crate) fn random_start() -> Self {
        Self {
            ms: 0,
            seq: random::bits().max(1),
        }
    }

    /// Returns whether this is an id of [`random_start`](Self::random_start). [`ZERO`](Self::ZERO) is not one.
    pub(crate) fn is_random_start(&self) -> bool {
        self.ms == 0 && self.seq > 0
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// The error of a text that is not an entry id as Redis writes it.
#[derive(Debug)]
pub(crate) struct InvalidEntryId;

impl FromStr for EntryId {
    type Err = InvalidEntryId;

    fn from_str(text: &str) -> Result<Self, InvalidEntryId> {
        let (ms, seq) = text.split_once('-').ok_or(InvalidEntryId)?;
        Ok(Self {
            ms: parse_decimal(ms)?,
            seq: parse_decimal(seq)?,
        })
    }
}

/// Parses a number without a sign and without leading zeros, so that each id has one text.
fn parse_decimal(text: &str) -> Result<u64, InvalidEntryId> {
    let is_canonical = text == "0" || text.starts_with(|first: char| ('1'..='9').contains(&first));
    let number = text.parse().map_err(|_| InvalidEntryId)?;
    is_canonical.then_some(number).ok_or(InvalidEntryId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_has_one_text() {
        let id: EntryId = "1716-18446744073709551615".parse().unwrap();
        assert_eq!((id.ms, id.seq), (1716, u64::MAX));
        assert_eq!(id.to_string(), "1716-18446744073709551615");
        for invalid in [
            "",
            "1",
            "-",
            "1-",
            "-1",
            "+1-0",
            "01-0",
            "1-00",
            "1-0-0",
            "1-18446744073709551616",
            "1- 0",
        ] {
            assert!(invalid.parse::<EntryId>().is_err(), "{invalid}");
        }
    }
}
