use std::{fmt, net::Ipv6Addr};

use http::{header::HOST, request::Parts};
use tower_push_proto::header_list::single_value;

/// An origin that a policy can name: the origin of a page with a host, `null`, or `file://`.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum NamedOrigin {
    /// `null`: a page in a sandboxed frame, a `data:` URL or a local file.
    Null,
    /// `file://`: a local file, as Chromium, Electron and the web views of phones name it when they open a WebSocket.
    File,
    Host(Origin),
}

impl NamedOrigin {
    /// Parses the value of an `Origin` header. Returns `None` if the text is not an origin.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "null" => Some(Self::Null),
            "file://" => Some(Self::File),
            _ => Origin::parse(text).map(Self::Host),
        }
    }

    /// Returns whether the host and port are those that the request is for. Always `false` for an origin without a host.
    pub(super) fn matches_request_host(&self, head: &Parts) -> bool {
        matches!(self, Self::Host(origin) if origin.matches_request_host(head))
    }
}

/// An origin with a host: `scheme://host[:port]`, normalized so that two spellings of one origin are equal.
///
/// Normalization converts to lower case, shortens an IPv6 address, and adds the default port of a known scheme.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Origin {
    scheme: String,
    /// A host name, or an IPv6 address in brackets.
    host: String,
    /// `None` if the origin names no port and the scheme has no known default.
    port: Option<u16>,
}

impl Origin {
    /// Parses the serialization of an origin with a host (RFC 6454 §6.2). Returns `None` if the text is anything else.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        Self::from_parts(scheme, authority)
    }

    fn from_parts(scheme: &str, authority: &str) -> Option<Self> {
        if !is_scheme(scheme) {
            return None;
        }
        let (host, port) = split_host_port(authority)?;
        let host = match host.strip_prefix('[') {
            Some(address) => {
                let address: Ipv6Addr = address.strip_suffix(']')?.parse().ok()?;
                format!("[{address}]")
            }
            None if is_host_name(host) => host.to_ascii_lowercase(),
            None => return None,
        };
        let scheme = scheme.to_ascii_lowercase();
        let port = port.or_else(|| default_port(&scheme));
        Some(Self { scheme, host, port })
    }

    /// Returns whether the host and port of this origin are those that the request is for. If the request names no port, the
    /// default port of this origin's scheme is assumed.
    ///
    /// Returns `false` for a scheme without a known default port, such as that of a browser extension, because no server has such
    /// an origin.
    fn matches_request_host(&self, head: &Parts) -> bool {
        let server_origin = || Self::from_parts(&self.scheme, request_authority(head)?);
        default_port(&self.scheme).is_some()
            && server_origin().is_some_and(|origin| origin == *self)
    }
}

impl fmt::Debug for NamedOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::File => f.write_str("file://"),
            Self::Host(origin) => origin.fmt(f),
        }
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scheme, host, port } = self;
        write!(f, "{scheme}://{host}")?;
        port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// Returns the host and port that the request is for.
///
/// The authority of the request target takes precedence over `Host` (RFC 9112 §3.2.2, RFC 9113 §8.3.1). Returns `None` if there is
/// no `Host`, or more than one.
fn request_authority(head: &Parts) -> Option<&str> {
    if let Some(authority) = head.uri.authority() {
        return Some(authority.as_str());
    }
    single_value(&head.headers, HOST)?.to_str().ok()
}

/// Returns whether the request names no host: the request target has no authority, and `Host` is missing or empty.
pub(super) fn has_no_host(head: &Parts) -> bool {
    let mut hosts = head.headers.get_all(HOST).iter();
    head.uri.authority().is_none() && hosts.all(|host| host.as_bytes().trim_ascii().is_empty())
}

/// Splits an authority into the host (an IPv6 address keeps its brackets) and the port. Returns `None` if the port is invalid.
fn split_host_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let host_end = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    let Some(colon) = authority[host_end..].find(':') else {
        return Some((authority, None));
    };
    let (host, port) = authority.split_at(host_end + colon);
    let digits = &port[1..];
    // `u16::from_str` accepts a leading `+`.
    let is_all_digits = digits.bytes().all(|b| b.is_ascii_digit());
    // No page is loaded from port 0.
    let port = digits
        .parse()
        .ok()
        .filter(|port| is_all_digits && *port != 0)?;
    Some((host, Some(port)))
}

/// Returns whether the text is a host name of ASCII letters, digits, `-`, `.` and `_`, or an IPv4 address.
fn is_host_name(host: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    !host.is_empty() && host.bytes().all(allowed)
}

/// Returns whether the text is a scheme by RFC 3986 §3.1.
fn is_scheme(scheme: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
    scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.bytes().all(allowed)
}

/// Returns the default port of a scheme that a web server is reached by.
fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}
