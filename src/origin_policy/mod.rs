mod origin;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use http::{
    HeaderName,
    header::{ORIGIN, SEC_WEBSOCKET_VERSION},
    request::Parts,
};

use self::origin::{NamedOrigin, has_no_host};
use crate::Error;

/// The web pages that may send requests, identified by the `Origin` header ([RFC 6454 §7](https://www.rfc-editor.org/rfc/rfc6454#section-7)).
///
/// A browser sends a user's cookies with the requests of any page, and names the page's origin in `Origin`. Pages cannot change
/// that header. With an origin policy, a page of another site therefore cannot use the cookies of a user who visits that page.
/// An origin policy does not protect against other clients: programs that are not browsers can send any `Origin`.
///
/// The default is [`same_origin`](Self::same_origin). Further origins can be allowed one by one, or by a predicate:
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
/// # Requests without `Origin`
/// Browsers send an `Origin` if a script of another origin wants to read the response, or opens a WebSocket. A request without `Origin`
/// therefore comes from the same origin, or not from a browser. A request without `Origin` passes, unless the policy [requires an
/// origin](Self::require_origin).
///
/// A request without `Origin` is refused if its `Sec-Fetch-Site` is `cross-site` or `same-site`. Browsers send these values if a page of
/// another origin embeds the response (`<img>`, `<iframe>`, a link), or requests it in the mode `no-cors`. In these cases the page's origin
/// is unknown, and cannot be compared with a list.
///
/// # Behind a proxy
/// The same origin is determined from `Host`, and a proxy may replace `Host`. nginx replaces `Host`, unless it is configured with
/// `proxy_set_header Host $http_host;`. If the proxy cannot be configured, list the public origins of the pages. `X-Forwarded-…`
/// headers are ignored.
///
/// # On a private address
/// The owner of a domain can let its name resolve to any address, also to one behind a firewall or on the user's own machine (DNS
/// rebinding). After DNS rebinding, `Origin` and `Host` both contain the owner's name, and the policy takes the attacker's page for one of
/// the same origin. If a service trusts every client that can reach it, use [`only`](Self::only), which checks `Origin` and `Host` against
/// a list.
#[must_use]
#[derive(Clone)]
pub struct OriginPolicy(Arc<PolicyRules>);

#[derive(Clone)]
struct PolicyRules {
    base: BaseRule,
    /// Origins that are allowed in addition to the base rule.
    listed: Vec<NamedOrigin>,
    /// Predicates that are called if neither the base rule nor the list allows an origin.
    predicates: Vec<OriginPredicate>,
    is_origin_required: bool,
    is_missing_host_allowed: bool,
}

/// The rule that applies before the list and the predicates of a policy. Each constructor of [`OriginPolicy`] sets a different one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BaseRule {
    SameOrigin,
    ListedOnly,
    AnyOrigin,
}

type OriginPredicate = Arc<dyn Fn(&str, &Parts) -> bool + Send + Sync>;

impl OriginPolicy {
    /// Allows pages that were loaded from the host and port of the request: its `Host`, or its `:authority` in HTTP/2.
    ///
    /// If `Host` has no port, the default port of the page's scheme is assumed. `http` and `https` pages are then both allowed,
    /// because a server behind a proxy does not know which of the two the proxy accepts. The origins `null` and `file://`, several
    /// `Origin` headers, and values that are not an origin are never the same origin.
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
        Self::new(BaseRule::SameOrigin)
    }

    /// Allows pages of this origin only, regardless of the request's `Host`. [`allow_origin`](Self::allow_origin) adds more.
    ///
    /// A request without `Origin` passes if its `Host` is the host and port of a listed origin, or if the request opens a
    /// WebSocket. If the server's own origin is not that of the pages, list the server's origin, too.
    ///
    /// ```
    /// use tower_push::OriginPolicy;
    ///
    /// let policy = OriginPolicy::only("http://localhost:3000")?.allow_origin("http://127.0.0.1:3000")?;
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::is_invalid_origin`], as for [`allow_origin`](Self::allow_origin).
    pub fn only(origin: &str) -> Result<Self, Error> {
        Self::new(BaseRule::ListedOnly).allow_origin(origin)
    }

    /// Allows all pages, regardless of their `Origin`. Use this policy for public data, which requires neither a cookie nor
    /// access to a private network.
    pub fn any() -> Self {
        Self::new(BaseRule::AnyOrigin)
    }

    fn new(base: BaseRule) -> Self {
        Self(Arc::new(PolicyRules {
            base,
            listed: Vec::new(),
            predicates: Vec::new(),
            is_origin_required: false,
            is_missing_host_allowed: false,
        }))
    }

    /// Allows pages of this origin, in addition to those that the policy allows already.
    ///
    /// An origin is a scheme, a host, and a port if it differs from the scheme's default. A path, even `/`, and wildcards are
    /// not allowed. A host name with non-ASCII characters must be in its `xn--` form.
    ///
    /// Pages without a host have the origin `null` or `file://`, depending on the browser. Name each of the two that you want to allow,
    /// because neither includes the other. `file://` is any local file, as Cordova, Electron and web views send it. `null` is any page that
    /// puts itself into a sandboxed frame, also on a hostile site: name `null` only for data that every page may read.
    ///
    /// ```
    /// use tower_push::OriginPolicy;
    ///
    /// let policy = OriginPolicy::same_origin()
    ///     .allow_origin("chrome-extension://aapbdbdomjkkjkaonfhkkikfgjllcleb")?
    ///     .allow_origin("file://")?;
    /// for invalid in ["example.com", "https://example.com/", "https://*.example.com", "https://example.com:0", "*"] {
    ///     assert!(OriginPolicy::same_origin().allow_origin(invalid).unwrap_err().is_invalid_origin());
    /// }
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::is_invalid_origin`] if the text is not an origin.
    pub fn allow_origin(mut self, origin: &str) -> Result<Self, Error> {
        let origin = NamedOrigin::parse(origin).ok_or_else(Error::invalid_origin)?;
        self.rules_mut().listed.push(origin);
        Ok(self)
    }

    /// Allows pages for which the predicate returns `true`, in addition to those that the policy allows already.
    ///
    /// The predicate receives the value of `Origin` as the browser sent it, and the head of the request. The predicate is called
    /// only if the value is one valid origin, `null` or `file://`.
    ///
    /// Compare whole hosts, or suffixes that begin with a dot: `evil-example.com` ends with `example.com` too. Any page can
    /// have the origin `null`.
    pub fn allow_if(
        mut self,
        predicate: impl Fn(&str, &Parts) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.rules_mut().predicates.push(Arc::new(predicate));
        self
    }

    /// Refuses requests without `Origin`. By default, such requests pass.
    ///
    /// Most requests without `Origin` do not come from browsers. But browsers also send no `Origin` with a plain `GET` to the page's own
    /// origin.
    pub fn require_origin(mut self) -> Self {
        self.rules_mut().is_origin_required = true;
        self
    }

    /// Allows requests whose `Host` is missing or empty, with any `Origin` or none. By default, such a request passes only if it has
    /// no `Origin`, or if its origin is listed.
    ///
    /// Some WebSocket clients of embedded devices send an empty `Host`, and an `Origin` of their own invention. Browsers always send the
    /// host of the URL. Do not use this setting behind a proxy that empties `Host`, because the proxy removes the host from browsers'
    /// requests, too.
    pub fn allow_missing_host(mut self) -> Self {
        self.rules_mut().is_missing_host_allowed = true;
        self
    }

    /// Returns whether the policy allows a request.
    pub fn allows(&self, head: &Parts) -> bool {
        let rules = &*self.0;
        let mut origins = head.headers.get_all(ORIGIN).iter();
        match (origins.next(), origins.next()) {
            (None, _) if rules.is_origin_required => false,
            _ if rules.base == BaseRule::AnyOrigin => true,
            _ if rules.is_missing_host_allowed && has_no_host(head) => true,
            (None, _) => rules.allows_missing_origin(head),
            (Some(_), Some(_)) => false,
            (Some(origin), None) => origin
                .to_str()
                .is_ok_and(|origin| rules.allows_origin(origin, head)),
        }
    }

    fn rules_mut(&mut self) -> &mut PolicyRules {
        Arc::make_mut(&mut self.0)
    }
}

/// The header that says how the page's site relates to the requested site ([Fetch
/// Metadata](https://www.w3.org/TR/fetch-metadata/)). Browsers send the header only over TLS and to `localhost`.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

impl PolicyRules {
    /// Returns whether a request without `Origin` passes.
    fn allows_missing_origin(&self, head: &Parts) -> bool {
        // A page sends `Sec-WebSocket-Version` only when it opens a WebSocket, and then the browser adds an `Origin`.
        if head.headers.contains_key(SEC_WEBSOCKET_VERSION) {
            return true;
        }
        let mut sites = head.headers.get_all(SEC_FETCH_SITE).iter();
        let is_cross_origin = sites.any(|site| site == "cross-site" || site == "same-site");
        // After DNS rebinding, the requests of the attacker's page are same-origin, and a `GET` of that page has no `Origin`.
        let is_for_listed_host = || {
            self.listed
                .iter()
                .any(|origin| origin.matches_request_host(head))
        };
        !is_cross_origin && (self.base == BaseRule::SameOrigin || is_for_listed_host())
    }

    /// Returns whether a request with this `Origin` passes.
    fn allows_origin(&self, origin_header: &str, head: &Parts) -> bool {
        let Some(origin) = NamedOrigin::parse(origin_header) else {
            return false;
        };
        (self.base == BaseRule::SameOrigin && origin.matches_request_host(head))
            || self.listed.contains(&origin)
            || self
                .predicates
                .iter()
                .any(|predicate| predicate(origin_header, head))
    }
}

/// Returns [`OriginPolicy::same_origin`].
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
            .field("is_origin_required", &self.0.is_origin_required)
            .field("is_missing_host_allowed", &self.0.is_missing_host_allowed)
            .finish()
    }
}
