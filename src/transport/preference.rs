use http::{HeaderMap, header::ACCEPT};
use tower_push_proto::header_list::split_unquoted;

/// The strength with which a request asks for a transport. A [`Negotiate`](super::Negotiate) chooses the transport with the greatest
/// preference.
///
/// Preferences are ordered by quality (`q`), and then by how exactly the `Accept` header names the media type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Preference {
    /// The `q` of the media range, in thousandths: 0 to 1000.
    quality: u16,
    specificity: Specificity,
}

/// The exactness with which a request names a transport, from the least to the most exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Specificity {
    /// The `Accept` header has `*/*`, or the request has no such header.
    AnyMediaType,
    /// The `Accept` header has a range of subtypes, such as `text/*`.
    AnySubtype,
    /// The `Accept` header has the media type itself.
    MediaType,
    /// The request asks for the transport in a way other than `Accept`, such as an upgrade.
    BeyondAccept,
}

/// The quality of a media range that has no `q`, in thousandths.
const MAX_QUALITY: u16 = 1000;

impl Preference {
    /// The greatest preference: the request, such as an upgrade to WebSocket, can be meant for no other transport, whatever its `Accept`
    /// header says.
    pub const MAX: Self = Self {
        quality: MAX_QUALITY,
        specificity: Specificity::BeyondAccept,
    };

    /// Returns whether the request names the media type itself instead of a range such as `text/*`.
    pub(crate) fn names_media_type(self) -> bool {
        self.specificity == Specificity::MediaType
    }

    /// Returns which of `media_types` the `Accept` headers prefer, and how strongly; `None` if these headers accept none of them
    /// ([RFC 9110 §12.5.1](https://www.rfc-editor.org/rfc/rfc9110#section-12.5.1)).
    ///
    /// If several ranges match a type, the most specific range decides. Parameters other than `q` are not compared. A range that is
    /// malformed is ignored. Without a valid range, every type is accepted with the same quality, and the first one is returned.
    ///
    /// Some clients send ranges that RFC 9110 does not allow. Three forms are read nevertheless: `*` as `*/*`, a quality without a digit
    /// before the point (`.2`), and a quality with more than three decimals (`1.0000`).
    pub fn from_accept<'a>(
        headers: &HeaderMap,
        media_types: &[&'a str],
    ) -> Option<(Self, &'a str)> {
        let values: Vec<_> = headers
            .get_all(ACCEPT)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        let mut ranges: Vec<_> = values
            .iter()
            .flat_map(|value| split_unquoted(value, ','))
            .filter_map(MediaRange::parse)
            .collect();
        if ranges.is_empty() {
            ranges.push(MediaRange::ANY);
        }
        let mut best: Option<(Self, &str)> = None;
        for media_type in media_types {
            let most_specific = ranges
                .iter()
                .filter_map(|range| Some((range.matches(media_type)?, range.quality)))
                .max();
            let Some((specificity, quality)) = most_specific else {
                continue;
            };
            let preference = Self {
                quality,
                specificity,
            };
            if quality > 0 && best.is_none_or(|(best, _)| preference > best) {
                best = Some((preference, media_type));
            }
        }
        best
    }
}

/// One media range of an `Accept` header, such as `text/*;q=0.5`.
struct MediaRange<'a> {
    main_type: &'a str,
    subtype: &'a str,
    /// The parameter `q`, in thousandths.
    quality: u16,
}

impl<'a> MediaRange<'a> {
    const ANY: Self = Self {
        main_type: "*",
        subtype: "*",
        quality: MAX_QUALITY,
    };

    /// Parses one media range. Returns `None` if the range is malformed.
    fn parse(range: &'a str) -> Option<Self> {
        let mut parts = split_unquoted(range, ';').map(str::trim);
        let (main_type, subtype) = match parts.next()? {
            // `HttpURLConnection` of older JDKs sends `*; q=.2`.
            "*" => ("*", "*"),
            media_type => media_type.split_once('/')?,
        };
        let is_token = |text: &str| !text.is_empty() && !text.contains(char::is_whitespace);
        if !is_token(main_type) || !is_token(subtype) || (main_type == "*" && subtype != "*") {
            return None;
        }
        let quality = parts
            .filter_map(|parameter| parameter.split_once('='))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
            .map_or(Some(MAX_QUALITY), |(_, value)| parse_quality(value.trim()))?;
        Some(Self {
            main_type,
            subtype,
            quality,
        })
    }

    /// Returns how exactly the range names `media_type`; `None` if the range does not match this type.
    fn matches(&self, media_type: &str) -> Option<Specificity> {
        let (main_type, subtype) = media_type.split_once('/')?;
        if self.main_type == "*" {
            Some(Specificity::AnyMediaType)
        } else if !self.main_type.eq_ignore_ascii_case(main_type) {
            None
        } else if self.subtype == "*" {
            Some(Specificity::AnySubtype)
        } else {
            self.subtype
                .eq_ignore_ascii_case(subtype)
                .then_some(Specificity::MediaType)
        }
    }
}

/// Parses a `q` value into thousandths: `0.25` is 250. Returns `None` if the value is not a decimal number.
///
/// The number may have any number of digits before and after the point, or none on one side. A number above 1 counts as 1. A number
/// between 0 and one thousandth counts as one thousandth, because only 0 means that the media type is not accepted.
pub(super) fn parse_quality(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit());
    let is_zero = |digits: &str| digits.bytes().all(|b| b == b'0');
    if !is_number(whole) || !is_number(decimals) || (whole.is_empty() && decimals.is_empty()) {
        return None;
    }
    if !is_zero(whole) {
        return Some(MAX_QUALITY);
    }
    let (thousandths, rest) = decimals.split_at(decimals.len().min(3));
    let thousandths: u16 = format!("{thousandths:0<3}").parse().ok()?;
    Some(thousandths.max(u16::from(!is_zero(rest))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(accept: &[&str], media_types: &[&'static str]) -> Option<(u16, &'static str)> {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(ACCEPT, value.parse().unwrap());
        }
        Preference::from_accept(&headers, media_types)
            .map(|(preference, media_type)| (preference.quality, media_type))
    }

    #[test]
    fn most_specific_range_decides() {
        let sse = &["text/event-stream"];
        let exact = Some((1000, "text/event-stream"));
        assert_eq!(accepted(&[], sse), exact);
        assert_eq!(accepted(&["*/*"], sse), exact);
        assert_eq!(accepted(&["TEXT/Event-Stream"], sse), exact);
        assert_eq!(accepted(&["text/event-stream; charset=utf-8"], sse), exact);
        assert_eq!(accepted(&["text/*;q=0.25, */*"], sse).unwrap().0, 250);
        assert_eq!(accepted(&["text/event-stream;q=0, */*"], sse), None);
        assert_eq!(accepted(&["text/html"], sse), None);
        assert_eq!(accepted(&["text/html", "*/*;q=0.8"], sse).unwrap().0, 800);
        assert_eq!(
            accepted(&["text/html,,text/event-stream;Q=0.5"], sse)
                .unwrap()
                .0,
            500
        );
    }

    #[test]
    fn preferred_media_type_is_returned() {
        let json = &["application/x-ndjson", "application/jsonl"];
        assert_eq!(accepted(&["*/*"], json).unwrap().1, "application/x-ndjson");
        assert_eq!(
            accepted(&["application/jsonl"], json).unwrap().1,
            "application/jsonl"
        );
        let both = "application/x-ndjson;q=0.1, application/jsonl;q=0.2";
        assert_eq!(accepted(&[both], json).unwrap(), (200, "application/jsonl"));
    }

    #[test]
    fn malformed_ranges_are_ignored() {
        let sse = &["text/event-stream"];
        for garbage in [
            "",
            ",",
            "garbage",
            "*/plain",
            "/",
            "text/",
            "a b/c",
            ";q=1",
            "text/event-stream;q=one",
        ] {
            assert_eq!(accepted(&[garbage], sse).unwrap().0, 1000, "{garbage:?}");
        }
        let quoted = "text/event-stream;x=\"a,b;\\\",q=1\";q=0.1";
        assert_eq!(accepted(&[quoted], sse).unwrap().0, 100);
        let mixed = "text/event-stream;q=nan, text/html";
        assert_eq!(accepted(&[mixed], sse), None);
    }

    #[test]
    fn irregular_ranges_are_read() {
        let sse = &["text/event-stream"];
        // `HttpURLConnection` of older JDKs.
        let jdk = "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2";
        assert_eq!(accepted(&[jdk], sse).unwrap().0, 200);
        assert_eq!(accepted(&["text/html, *;q=.2"], sse).unwrap().0, 200);
        assert_eq!(accepted(&["*"], sse).unwrap().0, 1000);
        let four_decimals = "text/html, text/event-stream;q=1.0000";
        assert_eq!(accepted(&[four_decimals], sse).unwrap().0, 1000);
        assert_eq!(accepted(&["text/html, */*;q=0.0000"], sse), None);
    }

    #[test]
    fn quality_is_any_decimal_number() {
        let long = format!("0.{}", "9".repeat(10 * 1024));
        for (text, thousandths) in [
            ("0", 0),
            ("1", 1000),
            ("0.5", 500),
            ("0.001", 1),
            ("1.000", 1000),
            ("0.", 0),
            (".5", 500),
            ("0.1234", 123),
            ("0.0001", 1),
            ("0.0000", 0),
            ("1.001", 1000),
            ("2", 1000),
            (&long, 999),
        ] {
            assert_eq!(parse_quality(text), Some(thousandths), "{text}");
        }
        for text in ["", ".", "-1", "+1", "0.+1", "1e1", "0.5x", "1.0.0"] {
            assert_eq!(parse_quality(text), None, "{text}");
        }
    }
}
