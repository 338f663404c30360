use std::{fmt, net::Ipv6Addr, sync::Arc};

use http::{
    HeaderName,
    header::{HOST, ORIGIN, SEC_WEBSOCKET_VERSION},
    request::Parts,
};

use crate::error::Error;

/// From which web pages a request may come, by its `Origin` header ([RFC 6454 §7](https://www.rfc-editor.org/rfc/rfc6454#section-7)).
///
/// A browser sends a user's cookies along with what any page asks for, and says in `Origin` which page it was; no page can
/// change that. So this keeps other people's pages from acting as their visitors. It keeps out nobody else: what is no browser
/// writes what it likes.
///
/// By default a page must be of the [same origin](Self::same_origin). Others are added one by one, or by a rule:
///
/// ```
/// use tower_push::OriginPolicy;
///
/// let policy = OriginPolicy::same_origin()
///     .allow_origin("https://app.example.com")?
///     .allow_origin("http://localhost:5173")?
///     .allow_if(|origin, _head| {
///         let host = origin.strip_prefix("https://");
///         host.is_some_and(|host| host.ends_with(".preview.example.com"))
///     });
/// # Ok::<(), tower_push::Error>(())
/// ```
///
/// # Without an `Origin`
/// A script of another origin that would read an answer, or open a WebSocket, has an `Origin`. A request without one is of the
/// same origin, or of no browser, and passes, unless an origin is [required](Self::require_origin). But for one kind: what a page only
/// shows (`<img>`, `<iframe>`, a link), or asks for without being let read it (`no-cors`), has none either, and browsers say of it
/// in `Sec-Fetch-Site` that it comes from elsewhere. Then it is refused, for no list can name where it comes from.
///
/// # Behind a proxy
/// Which origin is the same is seen from `Host`, which a proxy may replace: nginx does, unless it is told
/// `proxy_set_header Host $http_host;`. Where it cannot be told, name the origins that the pages have outside. No `X-Forwarded-…`
/// header is looked at.
///
/// # On a private address
/// A name that someone else owns can be made to lead to any address, also one behind a firewall or on the user's own machine, and
/// then both `Origin` and `Host` hold that name (DNS rebinding). Where being reachable is a permission, use
/// [`only`](Self::only), which looks at both.
#[derive(Clone)]
pub struct OriginPolicy(Arc<Rules>);

#[derive(Clone)]
struct Rules {
    base: Base,
    listed: Vec<Origin>,
    predicates: Vec<Predicate>,
    is_required: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    Same,
    Listed,
    Any,
}

type Predicate = Arc<dyn Fn(&str, &Parts) -> bool + Send + Sync>;

impl OriginPolicy {
    /// Pages that were loaded from the host and port that the request is for: those of `Host`, or of `:authority` in HTTP/2.
    ///
    /// A missing port is the default one of the page's scheme. Whether a proxy in front speaks TLS is not known here, so `http` and
    /// `https` pages are taken alike where `Host` names no port. Never the same are the origin `null`, several origins, and what is
    /// no origin at all.
    ///
    /// ```
    /// use tower_push::OriginPolicy;
    ///
    /// let allows = |origin: &str| {
    ///     let request = http::Request::get("/").header("host", "example.com").header("origin", origin);
    ///     OriginPolicy::same_origin().allows(&request.body(()).unwrap().into_parts().0)
    /// };
    /// assert!(allows("https://example.com"));
    /// assert!(!allows("https://example.com:8443"));
    /// assert!(!allows("https://example.com.evil.org"));
    /// ```
    pub fn same_origin() -> Self {
        Self::new(Base::Same)
    }

    /// Pages of this origin, whatever `Host` says; [more](Self::allow_origin) can be added. A request without `Origin` that is
    /// no WebSocket's must be for the host and port of one of them, by its `Host`: list the server's own origin too, if it is another.
    ///
    /// ```
    /// use tower_push::OriginPolicy;
    ///
    /// let policy = OriginPolicy::only("http://localhost:3000")?.allow_origin("http://127.0.0.1:3000")?;
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`allow_origin`](Self::allow_origin).
    pub fn only(origin: &str) -> Result<Self, Error> {
        Self::new(Base::Listed).allow_origin(origin)
    }

    /// All pages, whatever their `Origin` says: for what everyone may see, for which neither a cookie nor a network is needed.
    pub fn any() -> Self {
        Self::new(Base::Any)
    }

    fn new(base: Base) -> Self {
        Self(Arc::new(Rules {
            base,
            listed: Vec::new(),
            predicates: Vec::new(),
            is_required: false,
        }))
    }

    /// Also pages of this origin: a scheme, a host, and a port if it is not the scheme's default one. Nothing else, neither a `/`
    /// behind it nor a `*` in it; a name with other than ASCII characters in its `xn--` form.
    ///
    /// ```
    /// use tower_push::OriginPolicy;
    ///
    /// let policy = OriginPolicy::same_origin().allow_origin("chrome-extension://aapbdbdomjkkjkaonfhkkikfgjllcleb")?;
    /// for wrong in ["example.com", "https://example.com/", "https://*.example.com", "*", "null"] {
    ///     assert!(OriginPolicy::same_origin().allow_origin(wrong).unwrap_err().is_invalid_origin());
    /// }
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::is_invalid_origin`] for anything else.
    pub fn allow_origin(mut self, origin: &str) -> Result<Self, Error> {
        let origin = Origin::parse(origin).ok_or_else(Error::invalid_origin)?;
        self.rules().listed.push(origin);
        Ok(self)
    }

    /// Also pages for which this says so, given the origin as the browser wrote it, and the request. It is asked for one origin, or
    /// for `null`, never for what is neither.
    ///
    /// Compare whole hosts, or suffixes with their dot: `evil-example.com` ends like `example.com`. Pages of the origin `null` can be
    /// anyone's.
    #[must_use]
    pub fn allow_if(
        mut self,
        predicate: impl Fn(&str, &Parts) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.rules().predicates.push(Arc::new(predicate));
        self
    }

    /// Refuses a request without an `Origin`: what is no browser, mostly; but browsers, too, leave it out of a plain `GET` to the
    /// same origin.
    #[must_use]
    pub fn require_origin(mut self) -> Self {
        self.rules().is_required = true;
        self
    }

    /// Whether the request may be answered.
    pub fn allows(&self, head: &Parts) -> bool {
        let mut origins = head.headers.get_all(ORIGIN).iter();
        match (origins.next(), origins.next()) {
            (None, _) if self.0.is_required => false,
            _ if self.0.base == Base::Any => true,
            (None, _) => self.0.allow_unnamed(head),
            (Some(_), Some(_)) => false,
            (Some(origin), None) => origin
                .to_str()
                .is_ok_and(|origin| self.0.allow(origin, head)),
        }
    }

    fn rules(&mut self) -> &mut Rules {
        Arc::make_mut(&mut self.0)
    }
}

/// What a browser says of a request to a server that it trusts the way to ([Fetch Metadata](https://www.w3.org/TR/fetch-metadata/)).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

impl Rules {
    /// A request that names no page.
    fn allow_unnamed(&self, head: &Parts) -> bool {
        // A page can set this for a WebSocket alone, and then there is an `Origin`.
        if head.headers.contains_key(SEC_WEBSOCKET_VERSION) {
            return true;
        }
        let mut sites = head.headers.get_all(SEC_FETCH_SITE).iter();
        let is_from_elsewhere = sites.any(|site| site == "cross-site" || site == "same-site");
        // Of a rebound name's own page, too, a browser says nothing.
        let is_for_listed = || self.listed.iter().any(|origin| origin.is_of_server(head));
        !is_from_elsewhere && (self.base == Base::Same || is_for_listed())
    }

    fn allow(&self, text: &str, head: &Parts) -> bool {
        let origin = Origin::parse(text);
        if origin.is_none() && text != "null" {
            return false;
        }
        let is_known = |origin: &Origin| {
            self.base == Base::Same && origin.is_of_server(head) || self.listed.contains(origin)
        };
        origin.as_ref().is_some_and(is_known)
            || self.predicates.iter().any(|allows| allows(text, head))
    }
}

/// [`OriginPolicy::same_origin`].
impl Default for OriginPolicy {
    fn default() -> Self {
        Self::same_origin()
    }
}

impl fmt::Debug for OriginPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OriginPolicy")
            .field("base", &self.0.base)
            .field("listed", &self.0.listed)
            .field("predicates", &self.0.predicates.len())
            .field("is_required", &self.0.is_required)
            .finish()
    }
}

/// `scheme://host[:port]`, in lower case, an IPv6 address in its shortest form, and a known scheme's default port filled in: so
/// that equal origins are equal.
#[derive(Clone, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origin {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        Self::new(scheme, authority)
    }

    fn new(scheme: &str, authority: &str) -> Option<Self> {
        if !is_scheme(scheme) {
            return None;
        }
        let (host, port) = split_port(authority)?;
        let host = match host.strip_prefix('[') {
            Some(address) => {
                let address: Ipv6Addr = address.strip_suffix(']')?.parse().ok()?;
                format!("[{address}]")
            }
            None if is_name(host) => host.to_ascii_lowercase(),
            None => return None,
        };
        let scheme = scheme.to_ascii_lowercase();
        let port = port.or_else(|| default_port(&scheme));
        Some(Self { scheme, host, port })
    }

    /// Whether it would be the server's own, had the server been reached by this scheme. One without a default port is no
    /// server's.
    fn is_of_server(&self, head: &Parts) -> bool {
        let server = || Self::new(&self.scheme, authority(head)?);
        default_port(&self.scheme).is_some() && server().is_some_and(|server| server == *self)
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scheme, host, port } = self;
        write!(f, "{scheme}://{host}")?;
        port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// The host and port that the request is for. A target that names them goes before `Host`: RFC 9112 §3.2.2, RFC 9113 §8.3.1.
fn authority(head: &Parts) -> Option<&str> {
    if let Some(authority) = head.uri.authority() {
        return Some(authority.as_str());
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next()?.to_str().ok()?;
    hosts.next().is_none().then_some(host)
}

/// The host, with its brackets if it is an IPv6 address, and the port.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let host_end = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    let Some(colon) = authority[host_end..].find(':') else {
        return Some((authority, None));
    };
    let (host, port) = authority.split_at(host_end + colon);
    let digits = &port[1..];
    // Numbers may be parsed with a sign, ports may not.
    let is_number = digits.bytes().all(|b| b.is_ascii_digit());
    let port = digits.parse().ok().filter(|_| is_number)?;
    Some((host, Some(port)))
}

fn is_name(host: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    !host.is_empty() && host.bytes().all(allowed)
}

/// RFC 3986 §3.1.
fn is_scheme(scheme: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
    scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.bytes().all(allowed)
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue, Request, Uri, Version};
    use proptest::prelude::*;

    use super::*;

    fn head(version: Version, host: &str) -> Parts {
        let mut head = Request::new(()).into_parts().0;
        head.version = version;
        if version == Version::HTTP_2 {
            let uri = Uri::builder().scheme("https").authority(host);
            head.uri = uri.path_and_query("/").build().unwrap();
        } else {
            head.headers.insert(HOST, host.parse().unwrap());
        }
        head
    }

    fn with(mut head: Parts, name: HeaderName, value: &[u8]) -> Parts {
        let value = HeaderValue::from_bytes(value).unwrap();
        head.headers.append(name, value);
        head
    }

    /// The same in both versions.
    fn allows(policy: &OriginPolicy, host: &str, origin: &[u8]) -> bool {
        let [one, two] = [Version::HTTP_11, Version::HTTP_2]
            .map(|version| policy.allows(&with(head(version, host), ORIGIN, origin)));
        assert_eq!(one, two, "{host} {origin:?}");
        one
    }

    #[track_caller]
    fn same(host: &str, origin: &str, expected: bool) {
        let policy = OriginPolicy::default();
        assert_eq!(
            allows(&policy, host, origin.as_bytes()),
            expected,
            "{host} {origin}"
        );
    }

    #[test]
    fn a_page_of_the_same_host_and_port_is_of_the_same_origin() {
        for (host, origin) in [
            ("example.com", "https://example.com"),
            ("example.com", "http://example.com"),
            ("example.com", "wss://example.com"),
            ("example.com", "https://example.com:443"),
            ("example.com", "http://example.com:80"),
            ("example.com:443", "https://example.com"),
            ("example.com:80", "http://example.com"),
            ("example.com:80", "ws://example.com"),
            ("example.com:8443", "https://example.com:8443"),
            ("example.com:8443", "http://example.com:8443"),
            ("Example.COM", "HTTPS://eXample.com"),
            ("example.com.", "https://example.com."),
            ("my_app:3000", "http://my_app:3000"),
            ("127.0.0.1:3000", "http://127.0.0.1:3000"),
            ("[::1]", "https://[::1]"),
            ("[::1]:3000", "http://[::1]:3000"),
            ("[2001:DB8::1]:443", "https://[2001:db8:0::1]"),
        ] {
            same(host, origin, true);
        }
    }

    #[test]
    fn every_other_page_is_not() {
        for (host, origin) in [
            ("example.com", "null"),
            ("example.com", ""),
            ("example.com", "*"),
            ("example.com", "example.com"),
            ("example.com", "//example.com"),
            ("example.com", "://example.com"),
            ("example.com", "https:example.com"),
            ("example.com", "https://"),
            ("example.com", "https://example.com:8443"),
            ("example.com", "https://example.com:80"),
            ("example.com", "http://example.com:443"),
            ("example.com:443", "http://example.com"),
            ("example.com:80", "https://example.com"),
            ("example.com:8443", "https://example.com"),
            ("example.com", "https://example.com.evil.org"),
            ("example.com", "https://evil-example.com"),
            ("example.com", "https://evilexample.com"),
            ("example.com", "https://app.example.com"),
            ("app.example.com", "https://example.com"),
            ("example.com", "https://example.co"),
            ("example.com", "https://example.com."),
            ("example.com.", "https://example.com"),
            ("example.com", "https://example.com/"),
            ("example.com", "https://example.com/path"),
            ("example.com", "https://example.com?query"),
            ("example.com", "https://example.com#fragment"),
            ("example.com", "https://example.com@evil.org"),
            ("example.com", "https://evil.org@example.com"),
            ("example.com", "https://user:pass@example.com"),
            ("example.com", "https://example.com\\@evil.org"),
            ("example.com", "https://example%2ecom"),
            ("example.com", "https://example.com:"),
            ("example.com", "https://example.com:+443"),
            ("example.com", "https://example.com:443:443"),
            ("example.com", "https://example.com:65979"),
            ("example.com", "https://example.com https://evil.org"),
            ("example.com", "https://evil.org https://example.com"),
            ("example.com", "https://example.com,https://evil.org"),
            ("example.com", "chrome-extension://example.com"),
            ("example.com:80", "app://example.com:80"),
            ("example.com", "1https://example.com"),
            ("[::1]", "https://[::2]"),
            ("[::1]:3000", "http://[::1]"),
            ("[::1]", "https://::1"),
            ("[::1]", "https://[::1"),
            ("[::1]", "https://[::1]evil.org"),
            ("[::1]", "https://[::1].evil.org:443"),
            ("[::1]", "https://[[::1]]"),
            ("[::1]", "https://[::1%251]"),
        ] {
            same(host, origin, false);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        let policy = OriginPolicy::same_origin().allow_if(|_, _| true);
        assert!(!allows(&policy, "example.com", b"https://example.com\xff"));
        assert!(!allows(
            &policy,
            "example.com",
            "https://exämple.com".as_bytes()
        ));
    }

    #[test]
    fn two_origins_are_refused_also_if_both_would_do() {
        let policy = OriginPolicy::same_origin().allow_if(|_, _| true);
        let one = with(
            head(Version::HTTP_11, "example.com"),
            ORIGIN,
            b"https://example.com",
        );
        assert!(policy.allows(&one));
        assert!(!policy.allows(&with(one, ORIGIN, b"https://example.com")));
    }

    #[test]
    fn a_request_for_no_one_host_has_no_same_origin() {
        let policy = OriginPolicy::same_origin();
        let origin = |head| with(head, ORIGIN, b"https://example.com");
        let nowhere = Request::new(()).into_parts().0;
        assert!(!policy.allows(&origin(nowhere)));
        let twice = with(head(Version::HTTP_11, "example.com"), HOST, b"example.com");
        assert!(!policy.allows(&origin(twice)));
        for host in ["user@example.com", "example.com/", "example.com:", ""] {
            assert!(
                !policy.allows(&origin(head(Version::HTTP_11, host))),
                "{host}"
            );
        }
    }

    #[test]
    fn the_target_goes_before_the_host() {
        let policy = OriginPolicy::same_origin();
        let both = with(head(Version::HTTP_2, "example.com"), HOST, b"evil.org");
        let allows = |origin| policy.allows(&with(both.clone(), ORIGIN, origin));
        assert!(allows(b"https://example.com"));
        assert!(!allows(b"https://evil.org"));
    }

    #[test]
    fn a_request_without_origin_passes_unless_one_is_required() {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let head = head(version, "example.com");
            for policy in [
                OriginPolicy::same_origin(),
                OriginPolicy::any(),
                OriginPolicy::only("https://example.com").unwrap(),
                OriginPolicy::same_origin().allow_if(|_, _| false),
            ] {
                assert!(policy.allows(&head), "{policy:?}");
                assert!(!policy.require_origin().allows(&head));
            }
        }
    }

    #[test]
    fn where_only_listed_origins_are_allowed_a_request_without_one_is_for_their_host() {
        let policy = OriginPolicy::only("http://localhost:3000").unwrap();
        let policy = policy.allow_origin("tauri://localhost").unwrap();
        for version in [Version::HTTP_11, Version::HTTP_2] {
            for (host, expected) in [
                ("localhost:3000", true),
                ("LOCALHOST:3000", true),
                ("localhost", false),
                ("localhost:3001", false),
                ("rebound.evil.org:3000", false),
                ("localhost.evil.org:3000", false),
            ] {
                assert_eq!(policy.allows(&head(version, host)), expected, "{host}");
            }
        }
        let nowhere = Request::new(()).into_parts().0;
        assert!(!policy.allows(&nowhere));
        // No browser asks for a WebSocket without an origin.
        let websocket = with(nowhere, SEC_WEBSOCKET_VERSION, b"13");
        assert!(policy.allows(&websocket));
        assert!(!policy.require_origin().allows(&websocket));
    }

    #[test]
    fn a_request_from_elsewhere_that_names_no_page_is_refused() {
        let listed = OriginPolicy::only("https://example.com").unwrap();
        let same = OriginPolicy::same_origin().allow_if(|_, _| true);
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let site = |site: &[u8]| with(head(version, "example.com"), SEC_FETCH_SITE, site);
            for policy in [&listed, &same] {
                for fine in ["same-origin", "none", "", "new-word"] {
                    assert!(policy.allows(&site(fine.as_bytes())), "{fine}");
                }
                for elsewhere in ["cross-site", "same-site"] {
                    let elsewhere = site(elsewhere.as_bytes());
                    assert!(!policy.allows(&elsewhere), "{elsewhere:?}");
                    assert!(OriginPolicy::any().allows(&elsewhere));
                    // A name that is allowed says more.
                    let named = with(elsewhere, ORIGIN, b"https://example.com");
                    assert!(policy.allows(&named));
                }
                let twice = with(site(b"same-origin"), SEC_FETCH_SITE, b"cross-site");
                assert!(!policy.allows(&twice));
            }
        }
    }

    #[test]
    fn listed_origins_are_allowed_beside_the_same_one() {
        let policy = OriginPolicy::same_origin()
            .allow_origin("https://App.example.com:443")
            .unwrap()
            .allow_origin("tauri://localhost")
            .unwrap()
            .require_origin();
        for (origin, expected) in [
            ("https://app.example.com", true),
            ("http://app.example.com", false),
            ("https://app.example.com:8443", false),
            ("https://app.example.com.evil.org", false),
            ("tauri://localhost", true),
            ("tauri://localhost:1", false),
            ("https://localhost", false),
            ("https://internal", true),
        ] {
            assert_eq!(
                allows(&policy, "internal", origin.as_bytes()),
                expected,
                "{origin}"
            );
        }
    }

    #[test]
    fn only_the_listed_origins_are_allowed_where_it_says_so() {
        let policy = OriginPolicy::only("http://localhost:3000").unwrap();
        assert!(allows(
            &policy,
            "rebound.evil.org:3000",
            b"http://localhost:3000"
        ));
        assert!(!allows(
            &policy,
            "rebound.evil.org:3000",
            b"http://rebound.evil.org:3000"
        ));
        assert!(OriginPolicy::only("localhost:3000").is_err());
    }

    #[test]
    fn any_origin_is_any() {
        for origin in ["https://evil.org", "null", "", "\\"] {
            let allowed = allows(&OriginPolicy::any(), "example.com", origin.as_bytes());
            assert!(allowed, "{origin}");
        }
    }

    #[test]
    fn predicates_are_asked_for_origins_and_null_alone() {
        let policy = OriginPolicy::same_origin()
            .allow_if(|origin, _| origin.ends_with(".example.org"))
            .allow_if(|origin, head| origin == "null" && head.uri.path() == "/");
        for (origin, expected) in [
            ("https://a.example.org", true),
            ("https://evil.net/.example.org", false),
            ("https://evil.net#.example.org", false),
            ("null", true),
            ("Null", false),
            ("https://evil.net", false),
        ] {
            assert_eq!(
                allows(&policy, "example.com", origin.as_bytes()),
                expected,
                "{origin}"
            );
        }
    }

    #[test]
    fn a_clone_is_not_changed_by_what_is_added_later() {
        let policy = OriginPolicy::same_origin();
        let more = policy.clone().allow_origin("https://a.org").unwrap();
        assert!(allows(&more, "example.com", b"https://a.org"));
        assert!(!allows(&policy, "example.com", b"https://a.org"));
    }

    #[test]
    fn a_policy_shows_what_it_allows() {
        let policy = OriginPolicy::same_origin()
            .allow_origin("https://a.org")
            .unwrap();
        assert_eq!(
            format!("{policy:?}"),
            "OriginPolicy { base: Same, listed: [https://a.org:443], predicates: 0, is_required: false }"
        );
    }

    /// All that may be allowed of what the pieces below can make.
    fn same_origins(host: &str) -> Vec<String> {
        let (name, port) = match host.strip_prefix("[::1]") {
            Some(port) => ("[::1]", port),
            None => host.split_at(host.find(':').unwrap_or(host.len())),
        };
        let schemes = [
            ("http", ":80"),
            ("https", ":443"),
            ("ws", ":80"),
            ("wss", ":443"),
        ];
        let of = |(scheme, default): (&str, &str)| match port {
            "" => vec![
                format!("{scheme}://{name}"),
                format!("{scheme}://{name}{default}"),
            ],
            _ if port == default => vec![
                format!("{scheme}://{name}"),
                format!("{scheme}://{name}{default}"),
            ],
            _ => vec![format!("{scheme}://{name}{port}")],
        };
        schemes.into_iter().flat_map(of).collect()
    }

    const PIECES: [&str; 22] = [
        "http://",
        "https://",
        "wss://",
        "http",
        "s",
        "://",
        "/",
        "example.com",
        "EXAMPLE.com",
        "evil",
        ".",
        "@",
        ":",
        ":80",
        ":443",
        ":8080",
        "[::1]",
        "[",
        "]",
        "null",
        " ",
        "%",
    ];

    proptest! {
        #[test]
        fn an_origin_is_the_same_only_if_it_is_written_like_it(
            host in proptest::sample::select(vec![
                "example.com", "example.com:80", "example.com:443", "example.com:8080", "[::1]", "[::1]:8080",
            ]),
            pieces in proptest::collection::vec(proptest::sample::select(&PIECES[..]), 0..5),
        ) {
            let origin = pieces.concat();
            let expected = same_origins(host).contains(&origin.to_ascii_lowercase());
            prop_assert_eq!(allows(&OriginPolicy::default(), host, origin.as_bytes()), expected);
        }

        #[test]
        fn no_bytes_are_the_same_origin_by_accident(host: Vec<u8>, origin: Vec<u8>) {
            let mut head = Request::new(()).into_parts().0;
            let origin = [&b"https://"[..], &origin].concat();
            for (name, value) in [(HOST, host), (ORIGIN, origin)] {
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    head.headers.insert(name, value);
                }
            }
            let value = |name| head.headers.get(name).map(|v| v.as_bytes().to_ascii_lowercase());
            let is_written_alike = value(ORIGIN)
                .is_none_or(|origin| value(HOST).is_some_and(|host| origin.ends_with(&host)));
            prop_assert!(is_written_alike || !OriginPolicy::same_origin().allows(&head));
        }
    }
}
