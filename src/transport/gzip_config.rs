use http::{
    HeaderMap, HeaderValue,
    header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, COOKIE, PROXY_AUTHORIZATION, VARY},
};
use tower_push_proto::{Encoder, gzip::GzipEncoder, header_list::split_unquoted};

use super::preference::parse_quality;

/// The rule for which requests get their stream in the content coding gzip: those that accept gzip ([RFC 9110
/// §12.5.3](https://www.rfc-editor.org/rfc/rfc9110#section-12.5.3)) and carry no credentials.
///
/// The events of a [`Channel`](crate::Channel) or a [`Relay`](crate::Relay) are compressed once for all clients, each together with the
/// events before it. No stream has a compressor of its own. Each event can be decompressed as soon as it arrives. The items of other sources
/// are compressed for each client, those together that are ready together.
///
/// A request carries credentials if it has a header `Authorization`, `Proxy-Authorization` or `Cookie`. The length of compressed bytes can
/// reveal a secret in them (BREACH):
/// [docs/security.md](https://github.com/tower-push/tower-push/blob/main/docs/security.md#compression) describes the attack.
///
/// ```
/// use tower_push::{ChunkedLayer, SseLayer, transport::{Chunked, GzipConfig, Sse}};
///
/// let prices = SseLayer::with(Sse::new().gzip(GzipConfig::new()));
/// // The cookies of this site protect nothing that is in the stream.
/// let news = ChunkedLayer::with(Chunked::default().gzip(GzipConfig::new().with_credentials(true)));
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct GzipConfig {
    allows_credentials: bool,
}

impl GzipConfig {
    /// Compresses the streams of requests that carry no credentials.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether the streams of requests that carry credentials are compressed too: `false` by default. Set this only for streams in which no
    /// client gets secrets.
    pub fn with_credentials(mut self, are_allowed: bool) -> Self {
        self.allows_credentials = are_allowed;
        self
    }

    /// Adds `Vary: Accept-Encoding` to the response. If the request gets gzip, also adds `Content-Encoding: gzip`, and returns an encoder that
    /// compresses the output of `encoder`.
    pub(super) fn encode(
        self,
        request: &HeaderMap,
        response: &mut HeaderMap,
        encoder: Box<dyn Encoder>,
    ) -> Box<dyn Encoder> {
        response.append(VARY, HeaderValue::from_static("Accept-Encoding"));
        if !prefers_gzip(request) || (has_credentials(request) && !self.allows_credentials) {
            return encoder;
        }
        response.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        Box::new(GzipEncoder::new(encoder))
    }
}

fn has_credentials(headers: &HeaderMap) -> bool {
    [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE]
        .iter()
        .any(|name| headers.contains_key(name))
}

/// Returns whether the `Accept-Encoding` headers accept gzip, and do not prefer a response without a content coding.
///
/// Elements that are malformed are ignored. `identity` without a quality of its own is less preferred than gzip.
fn prefers_gzip(headers: &HeaderMap) -> bool {
    let (mut gzip, mut identity, mut any) = (None, None, None);
    for value in headers.get_all(ACCEPT_ENCODING) {
        let value = String::from_utf8_lossy(value.as_bytes());
        for (coding, quality) in split_unquoted(&value, ',').filter_map(parse_coding) {
            let named = match coding.to_ascii_lowercase().as_str() {
                "gzip" | "x-gzip" => &mut gzip,
                "identity" => &mut identity,
                "*" => &mut any,
                _ => continue,
            };
            *named = Some(quality);
        }
    }
    let gzip = gzip.or(any).unwrap_or(0);
    gzip > 0 && gzip >= identity.unwrap_or(0)
}

/// Parses one element of an `Accept-Encoding` header into the coding and its quality in thousandths. Returns `None` if the element is malformed.
fn parse_coding(element: &str) -> Option<(&str, u16)> {
    let (coding, parameter) = match element.split_once(';') {
        Some((coding, parameter)) => (coding, Some(parameter)),
        None => (element, None),
    };
    let quality = match parameter.map(|parameter| parameter.split_once('=')) {
        None => 1000,
        Some(Some((name, value))) if name.trim().eq_ignore_ascii_case("q") => {
            parse_quality(value.trim())?
        }
        Some(_) => return None,
    };
    Some((coding.trim(), quality))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        let lines = lines.iter().map(|line| line.parse().unwrap());
        lines.map(|line| (ACCEPT_ENCODING, line)).collect()
    }

    #[test]
    fn gzip_is_preferred_by_quality() {
        for (lines, expected) in [
            (&[][..], false),
            (&[""], false),
            (&["gzip"], true),
            (&["gzip, deflate, br, zstd"], true),
            (&["br", "X-GZIP"], true),
            (&["br;q=1.0, GZip ; Q=0.5, *;q=0"], true),
            (&["br"], false),
            (&["*"], true),
            (&["*;q=0"], false),
            (&["gzip;q=0, *"], false),
            (&["gzip;q=0.001, *;q=0"], true),
            (&["gzip;q=0.0"], false),
            (&["identity;q=0, gzip;q=0.2"], true),
            (&["identity;q=0"], false),
            (&["identity;q=0, *;q=0.2"], true),
            (&["identity, gzip"], true),
            (&["identity, gzip;q=0.9"], false),
            (&["gzip;q=0.5, identity;q=0.5"], true),
            (&["gzip;q=x"], false),
            (&["gzip;level=9"], false),
            (&["gzip;q=x", "gzip"], true),
            (&["gzipped"], false),
        ] {
            assert_eq!(prefers_gzip(&headers(lines)), expected, "{lines:?}");
        }
    }

    #[test]
    fn credentials_are_recognized() {
        for name in ["authorization", "cookie", "proxy-authorization"] {
            let mut headers = HeaderMap::new();
            assert!(!has_credentials(&headers));
            headers.insert(name, HeaderValue::from_static(""));
            assert!(has_credentials(&headers), "{name}");
        }
    }
}
