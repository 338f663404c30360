use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use self::sealed::Sealed;
use crate::{
    source::Push,
    transport::{NeverBody, PushBody},
};

/// A response type of a service inside a [`TransportLayer`](super::TransportLayer): [`Push`] or [`Response`].
///
/// A `Response` may be a carrier: a response that `Response::<String>::from(push)` has created, and that holds the push in its
/// extensions. The trait is sealed.
#[diagnostic::on_unimplemented(
    message = "a service inside a tower-push layer must return a `Push` or a `Response`, not `{Self}`",
    note = "for a service that returns a stream, add `.map_response(Push::new)`"
)]
pub trait IntoPushOrResponse: Sealed {
    /// The body type of responses that carry no push.
    type Body;

    /// Takes the push out of the response, if the response carries one.
    #[doc(hidden)]
    fn into_push_or_response(self) -> PushOrResponse<Self::Body>;
}

mod sealed {
    #[allow(
        unnameable_types,
        reason = "a sealed trait must not be nameable outside of this crate"
    )]
    pub trait Sealed {}
}

impl Sealed for Push {}
impl<B> Sealed for Response<B> {}

/// The response of a service inside a [`TransportLayer`](super::TransportLayer).
#[doc(hidden)]
#[derive(Debug)]
pub enum PushOrResponse<B> {
    /// A push, and what the push response keeps of the response that carried the push.
    Push(Push, KeptResponseParts),
    /// A response without a push.
    Response(Response<B>),
}

/// The headers and extensions of a carrier that the response of its push keeps.
///
/// A carrier is a response that holds a push in its extensions. Services between the handler and the layer may have added headers
/// to the carrier. Headers that describe the carrier's own content, such as `Content-Type`, are left out.
#[doc(hidden)]
#[derive(Debug, Default)]
pub struct KeptResponseParts {
    headers: HeaderMap,
    extensions: Extensions,
}

impl IntoPushOrResponse for Push {
    type Body = NeverBody;

    fn into_push_or_response(self) -> PushOrResponse<NeverBody> {
        PushOrResponse::Push(self, KeptResponseParts::default())
    }
}

impl<B> IntoPushOrResponse for Response<B> {
    type Body = B;

    fn into_push_or_response(mut self) -> PushOrResponse<B> {
        let extension = self.extensions_mut().remove::<PushExtension>();
        let Some(push) = extension.and_then(PushExtension::take) else {
            return PushOrResponse::Response(self);
        };
        let (mut carrier, _) = self.into_parts();
        for name in CONTENT_HEADERS {
            carrier.headers.remove(name);
        }
        let kept = KeptResponseParts {
            headers: carrier.headers,
            extensions: carrier.extensions,
        };
        PushOrResponse::Push(push, kept)
    }
}

/// The headers that describe a response's own content. These headers of a carrier are dropped, because they do not describe
/// the push response that replaces the carrier.
const CONTENT_HEADERS: [HeaderName; 11] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::CONTENT_RANGE,
    header::TRANSFER_ENCODING,
    header::ACCEPT_RANGES,
    header::ETAG,
    header::LAST_MODIFIED,
    header::EXPIRES,
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
];

impl KeptResponseParts {
    /// Adds the carrier's headers and extensions to the response of the push.
    ///
    /// A header of the push replaces the carrier's, with three exceptions: `Vary` and `Set-Cookie` keep the values of both, and
    /// the carrier's `Cache-Control` stays if [`keeps_cache_control`](Self::keeps_cache_control) is true.
    pub(super) fn merge_into<B>(self, response: Response<PushBody>) -> Response<PushBody<B>> {
        let mut response = response.map(PushBody::with_inner_type);
        let keeps_cache_control = self.keeps_cache_control(response.headers());
        let mut merged = self.headers;
        for name in response.headers().keys() {
            let is_kept = match *name {
                header::VARY | header::SET_COOKIE => true,
                header::CACHE_CONTROL => keeps_cache_control,
                _ => false,
            };
            if !is_kept {
                merged.remove(name);
            }
        }
        for (name, value) in response.headers() {
            if name != header::CACHE_CONTROL || !keeps_cache_control {
                merged.append(name, value.clone());
            }
        }
        *response.headers_mut() = merged;
        response.extensions_mut().extend(self.extensions);
        response
    }

    /// Returns whether the carrier's `Cache-Control` replaces the push response's: the carrier's contains `no-store` or `private`, and
    /// is at least as strict.
    ///
    /// A stricter `Cache-Control` of the carrier is kept, because the application may depend on it.
    fn keeps_cache_control(&self, push_headers: &HeaderMap) -> bool {
        let directives = CacheControlDirectives::from_headers(&self.headers);
        (directives.no_store || directives.private)
            && directives >= CacheControlDirectives::from_headers(push_headers)
    }
}

/// The directives of a response's `Cache-Control` headers that restrict caches. The greater value in the order of `Ord` restricts caches more.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct CacheControlDirectives {
    no_store: bool,
    private: bool,
    no_cache: bool,
}

impl CacheControlDirectives {
    fn from_headers(headers: &HeaderMap) -> Self {
        let contains = |directive| {
            let mut values = headers.get_all(header::CACHE_CONTROL).iter();
            values.any(|value| {
                let value = String::from_utf8_lossy(value.as_bytes());
                value.to_ascii_lowercase().contains(directive)
            })
        };
        Self {
            no_store: contains("no-store"),
            private: contains("private"),
            no_cache: contains("no-cache"),
        }
    }
}

/// The response extension that holds a push.
///
/// Extensions must be `Clone` and `Sync`, which a push is not: hence the `Arc` and the `Mutex`.
#[derive(Clone)]
struct PushExtension(Arc<Mutex<Option<Push>>>);

impl PushExtension {
    /// Takes the push out of the extension. Returns `None` if a clone of the extension has taken it before.
    fn take(self) -> Option<Push> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for PushExtension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PushExtension")
    }
}

/// Creates a carrier: a response that holds a push for the [layer](super::TransportLayer) around the service.
///
/// Without a layer, the client receives the carrier itself. The carrier has the status 500, and its text says that the layer is
/// missing.
impl From<Push> for Response<String> {
    fn from(push: Push) -> Self {
        let mut response = Response::new(MISSING_LAYER_MESSAGE.to_owned());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type);
        let extension = PushExtension(Arc::new(Mutex::new(Some(push))));
        response.extensions_mut().insert(extension);
        response
    }
}

const MISSING_LAYER_MESSAGE: &str = "This response carries a tower_push::Push that no layer turned into a push response: \
    add .layer(tower_push::PushLayer::new()) around the service.\n";
