//! Numbers in headers and fields: ASCII digits without a sign.

/// Parses a number of ASCII digits. Returns `None` if `text` is empty or contains another byte. A number that exceeds `u64::MAX` counts as
/// `u64::MAX`.
pub fn parse_saturating(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        Some(number.saturating_mul(10).saturating_add(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_a_number() {
        for (text, number) in [
            ("0", 0),
            ("007", 7),
            ("18446744073709551615", u64::MAX),
            ("18446744073709551616", u64::MAX),
            ("18446744073709551700", u64::MAX),
            (&"9".repeat(10_000), u64::MAX),
        ] {
            assert_eq!(parse_saturating(text.as_bytes()), Some(number), "{text}");
        }
    }

    #[test]
    fn other_bytes_are_no_number() {
        for text in [
            "", "-1", "+1", " 1", "1 ", "1.5", "1e3", "0x1", "\u{661}", ":", "/",
        ] {
            assert_eq!(parse_saturating(text.as_bytes()), None, "{text}");
        }
    }
}
