use redis::Value;

use crate::{entry_id::EntryId, error::Error};

/// The response of `XINFO STREAM`, which describes a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StreamInfo {
    /// The number of entries.
    pub(crate) length: u64,
    /// The number of entries that were ever added. Trimming and deleting do not change it.
    pub(crate) entries_added: u64,
    /// The highest id that was ever added.
    pub(crate) last_generated_id: EntryId,
    /// The highest id that `XDEL` has removed.
    pub(crate) max_deleted_id: EntryId,
    /// The id of the oldest entry. `None` if there are no entries.
    pub(crate) first_id: Option<EntryId>,
}

impl StreamInfo {
    /// Returns the id of the only entry that was ever removed, if this was done by `XDEL`. If there is such an id, the stream has all other
    /// entries that were ever added.
    pub(crate) fn sole_removed_id(&self) -> Option<EntryId> {
        let removed = self.entries_added.saturating_sub(self.length);
        (removed == 1 && self.max_deleted_id != EntryId::ZERO).then_some(self.max_deleted_id)
    }

    /// Parses the response: a list of names and values (RESP2), or a map (RESP3). Servers before Redis 7.0 do not have all values.
    pub(crate) fn parse(value: Value) -> Result<Self, Error> {
        let pairs: Vec<(String, Value)> = match value {
            Value::Map(pairs) => pairs
                .into_iter()
                .map(|(name, value)| Some((value_text(&name)?, value)))
                .collect::<Option<_>>(),
            Value::Array(list) => {
                let mut list = list.into_iter();
                let next_pair = || Some((value_text(&list.next()?)?, list.next()?));
                Some(std::iter::from_fn(next_pair).collect())
            }
            _ => None,
        }
        .ok_or_else(Error::unsupported)?;
        let find = |name: &str| pairs.iter().find(|pair| pair.0 == name).map(|pair| &pair.1);
        let number = |name| match find(name) {
            Some(Value::Int(number)) => u64::try_from(*number).ok(),
            _ => None,
        };
        let id = |name| value_text(find(name)?)?.parse().ok();
        let first_id = match find("first-entry") {
            Some(Value::Array(entry)) => entry.first().and_then(value_text),
            _ => None,
        };
        let info = || {
            Some(Self {
                length: number("length")?,
                entries_added: number("entries-added")?,
                last_generated_id: id("last-generated-id")?,
                max_deleted_id: id("max-deleted-entry-id")?,
                first_id: first_id.and_then(|id| id.parse().ok()),
            })
        };
        info().ok_or_else(Error::unsupported)
    }
}

fn value_text(value: &Value) -> Option<String> {
    redis::from_redis_value_ref(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_protocols_are_parsed() {
        let bulk = |text: &str| Value::BulkString(text.into());
        let entry = Value::Array(vec![bulk("5-1"), Value::Array(vec![])]);
        let pairs = [
            ("length", Value::Int(1)),
            ("last-generated-id", bulk("6-0")),
            ("max-deleted-entry-id", bulk("0-0")),
            ("entries-added", Value::Int(3)),
            ("first-entry", entry),
        ];
        let expected = StreamInfo {
            length: 1,
            entries_added: 3,
            last_generated_id: EntryId { ms: 6, seq: 0 },
            max_deleted_id: EntryId::ZERO,
            first_id: Some(EntryId { ms: 5, seq: 1 }),
        };
        let map = pairs
            .iter()
            .map(|(name, value)| (bulk(name), value.clone()));
        let map: Vec<_> = map.collect();
        let list = map
            .iter()
            .flat_map(|(name, value)| [name.clone(), value.clone()]);
        assert_eq!(
            StreamInfo::parse(Value::Array(list.collect())).unwrap(),
            expected
        );
        assert_eq!(
            StreamInfo::parse(Value::Map(map.clone())).unwrap(),
            expected
        );
        // Redis 6 does not count the entries that were added.
        let old = map
            .into_iter()
            .filter(|(name, _)| *name != bulk("entries-added"));
        let error = StreamInfo::parse(Value::Map(old.collect())).unwrap_err();
        assert!(error.is_unsupported());
    }
}
