//! The limit on arrays and objects inside each other in what clients publish.

/// The maximum depth of arrays and objects inside each other in the JSON that a client publishes. Deeper JSON cannot be read by some of
/// the subscribers: serde_json stops at 128 levels, with the envelope around the payload, and Python's `json` at about 1000.
pub(crate) const MAX_JSON_DEPTH: usize = 120;

/// Returns whether a JSON text has more than [`MAX_JSON_DEPTH`] arrays and objects inside each other.
pub(crate) fn is_too_deep(json: &str) -> bool {
    let (mut depth, mut is_in_string) = (0_usize, false);
    let mut bytes = json.bytes();
    while let Some(byte) = bytes.next() {
        match (byte, is_in_string) {
            (b'"', _) => is_in_string = !is_in_string,
            (b'\\', true) => drop(bytes.next()),
            (b'[' | b'{', false) => depth += 1,
            (b']' | b'}', false) => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_JSON_DEPTH {
            return true;
        }
    }
    false
}

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use super::*;

    #[test]
    fn depth_is_limited() {
        let nested = |depth: usize| {
            let (open, close) = (r#"{"a\"[":["#.repeat(depth / 2), "]}".repeat(depth / 2));
            format!("{open}{close}")
        };
        assert!(!is_too_deep(&nested(MAX_JSON_DEPTH)));
        assert!(is_too_deep(&nested(MAX_JSON_DEPTH + 2)));
        assert!(!is_too_deep(&format!("[{}1]", "[],{},".repeat(1000))));
        assert!(!is_too_deep(&format!("\"\\\\\\\"{}\"", "[".repeat(1000))));
    }
}
