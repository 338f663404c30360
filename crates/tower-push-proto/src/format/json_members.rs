//! Reading the members of JSON objects without copies.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Deserializer, de::Visitor};
use serde_json::value::RawValue;

use crate::{base64, error::Error, event::Event};

/// Makes the event of the members `data` and `data_base64`. A `data` that is a JSON string becomes a text payload, and any other value a
/// JSON payload. Returns `None` if both members are absent.
pub(super) fn event_from_members(
    data: Option<&RawValue>,
    data_base64: Option<&str>,
) -> Result<Option<Event>, Error> {
    Ok(Some(match (data, data_base64) {
        (Some(data), _) if data.get().starts_with('"') => {
            let text: String = serde_json::from_str(data.get()).map_err(Error::json)?;
            Event::text(text)
        }
        (Some(data), _) => Event::from_valid_json(data.get()),
        (None, Some(base64)) => Event::binary(decode_payload(base64)?),
        (None, None) => return Ok(None),
    }))
}

/// Decodes the payload of a binary event.
pub(super) fn decode_payload(base64: &str) -> Result<Vec<u8>, Error> {
    base64::decode(base64.as_bytes()).ok_or_else(|| Error::malformed("the data is not base64"))
}

/// The decoded text of a JSON string: borrowed from the input if the string has no escapes, and otherwise a copy. serde's implementation for
/// `Cow` always copies.
pub(super) struct CowStr<'a>(pub(super) Cow<'a, str>);

impl<'de> Deserialize<'de> for CowStr<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CowStrVisitor;

        impl<'de> Visitor<'de> for CowStrVisitor {
            type Value = CowStr<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(CowStr(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(CowStr(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(CowStrVisitor)
    }
}

/// Implements `Deserialize` for a struct that has a default. Each line of the macro's input describes a member: its key, its type, and the
/// field that it sets.
macro_rules! deserialize_members {
    ($type:ident $(<$lifetime:lifetime>)?, $expected:literal, $($key:literal: $member:ty => |$this:ident, $value:ident| $set:expr;)*) => {
        impl<'de> serde::Deserialize<'de> for $type $(<$lifetime>)? {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct MembersVisitor;

                impl<'de> serde::de::Visitor<'de> for MembersVisitor {
                    type Value = $type $(<$lifetime>)?;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_map<M: serde::de::MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                        let mut members = Self::Value::default();
                        while let Some($crate::format::json_members::CowStr(key)) = map.next_key()? {
                            match &*key {
                                $($key => {
                                    let ($this, $value) = (&mut members, map.next_value::<$member>()?);
                                    $set;
                                })*
                                _ => drop(map.next_value::<serde::de::IgnoredAny>()?),
                            }
                        }
                        Ok(members)
                    }
                }

                deserializer.deserialize_map(MembersVisitor)
            }
        }
    };
}

pub(super) type OptionalCowStr<'a> = Option<CowStr<'a>>;

pub(super) use deserialize_members;
