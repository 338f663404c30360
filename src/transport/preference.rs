use http::{HeaderMap, header::ACCEPT};
use tower_push_proto::header_list::split_unquoted;

/// How strongly a request asks for a transport. The greatest one answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Preference {
    /// In thousandths.
    quality: u16,
    specificity: Specificity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Specificity {
    Anything,
    Kind,
    Exact,
    Certain,
}

impl Preference {
    /// The request can be meant for nobody else, whatever it accepts: an upgrade, say.
    pub const MAX: Self = Self {
        quality: 1000,
        specificity: Specificity::Certain,
    };

    /// Whether the media type was named, and not only its kind.
    pub(crate) fn is_exact(self) -> bool {
        self.specificity == Specificity::Exact
    }

    /// What the `Accept` headers say of these media types: the most preferred of them, and how much
    /// ([RFC 9110 §12.5.1](https://www.rfc-editor.org/rfc/rfc9110#section-12.5.1)).
    ///
    /// Of the ranges that match a type the most specific one decides; parameters other than `q` are not compared. A range
    /// that cannot be read does not count. Without any range, everything is accepted alike.
    pub fn from_accept<'a>(headers: &HeaderMap, types: &[&'a str]) -> Option<(Self, &'a str)> {
        let ranges: Vec<_> = headers
            .get_all(ACCEPT)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        let ranges: Vec<_> = ranges
            .iter()
            .flat_map(|value| split_unquoted(value, ','))
            .filter_map(Range::parse)
            .collect();
        let any = Range {
            kind: "*",
            subtype: "*",
            quality: 1000,
        };
        let ranges = if ranges.is_empty() { vec![any] } else { ranges };
        let mut best: Option<(Self, &str)> = None;
        for media_type in types {
            let deciding = ranges
                .iter()
                .filter_map(|range| Some((range.specificity(media_type)?, range.quality)))
                .max();
            let Some((specificity, quality)) = deciding else {
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

/// One range of an `Accept` header: `text/*;q=0.5`.
struct Range<'a> {
    kind: &'a str,
    subtype: &'a str,
    quality: u16,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = split_unquoted(text, ';').map(str::trim);
        let (kind, subtype) = parts.next()?.split_once('/')?;
        let is_token = |text: &str| !text.is_empty() && !text.contains(char::is_whitespace);
        if !is_token(kind) || !is_token(subtype) || (kind == "*" && subtype != "*") {
            return None;
        }
        let quality = parts
            .filter_map(|parameter| parameter.split_once('='))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
            .map_or(Some(1000), |(_, value)| quality(value.trim()))?;
        Some(Self {
            kind,
            subtype,
            quality,
        })
    }

    fn specificity(&self, media_type: &str) -> Option<Specificity> {
        let (kind, subtype) = media_type.split_once('/')?;
        if self.kind == "*" {
            Some(Specificity::Anything)
        } else if !self.kind.eq_ignore_ascii_case(kind) {
            None
        } else if self.subtype == "*" {
            Some(Specificity::Kind)
        } else {
            self.subtype
                .eq_ignore_ascii_case(subtype)
                .then_some(Specificity::Exact)
        }
    }
}

/// `0.25` is 250: one digit, and up to three behind a point.
fn quality(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let is_digits = decimals.bytes().all(|b| b.is_ascii_digit());
    if !is_digits || decimals.len() > 3 {
        return None;
    }
    let thousandths: u16 = format!("{decimals:0<3}").parse().ok()?;
    match (whole, thousandths) {
        ("0", _) => Some(thousandths),
        ("1", 0) => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(accept: &[&str], types: &[&'static str]) -> Option<(u16, &'static str)> {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(ACCEPT, value.parse().unwrap());
        }
        Preference::from_accept(&headers, types).map(|(p, media_type)| (p.quality, media_type))
    }

    #[test]
    fn the_most_specific_range_decides() {
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
    fn of_several_types_the_preferred_one_is_taken() {
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
    fn what_cannot_be_read_does_not_count() {
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
            "text/event-stream;q=2",
        ] {
            assert_eq!(accepted(&[garbage], sse).unwrap().0, 1000, "{garbage:?}");
        }
        let quoted = "text/event-stream;x=\"a,b;\\\",q=1\";q=0.1";
        assert_eq!(accepted(&[quoted], sse).unwrap().0, 100);
        let mixed = "text/event-stream;q=nan, text/html";
        assert_eq!(accepted(&[mixed], sse), None);
    }

    #[test]
    fn qualities_have_three_digits() {
        for (text, thousandths) in [
            ("0", 0),
            ("1", 1000),
            ("0.5", 500),
            ("0.001", 1),
            ("1.000", 1000),
            ("0.", 0),
        ] {
            assert_eq!(quality(text), Some(thousandths), "{text}");
        }
        for text in [
            "", "2", "1.001", "0.1234", "-1", "+1", ".5", "0.+1", "1e1", "0.5x",
        ] {
            assert_eq!(quality(text), None, "{text}");
        }
    }
}
