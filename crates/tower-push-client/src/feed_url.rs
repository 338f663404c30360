use std::fmt;

use http::Uri;

/// A URL whose `Debug` and `Display` show neither a user nor a query, which can have a password or a token.
#[derive(Clone)]
pub(crate) struct FeedUrl(pub(crate) Uri);

impl fmt::Display for FeedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(uri) = self;
        if let Some(scheme) = uri.scheme() {
            write!(f, "{scheme}://")?;
        }
        f.write_str(uri.host().unwrap_or_default())?;
        if let Some(port) = uri.port() {
            write!(f, ":{port}")?;
        }
        f.write_str(uri.path())
    }
}

impl fmt::Debug for FeedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_query_are_not_shown() {
        for (url, shown) in [
            (
                "http://me:secret@host:80/a/b?token=secret",
                "http://host:80/a/b",
            ),
            ("https://[::1]/", "https://[::1]/"),
            ("/feed?token=secret", "/feed"),
        ] {
            let url = FeedUrl(Uri::from_static(url));
            assert_eq!(format!("{url} {url:?}"), format!("{shown} {shown}"));
        }
    }
}
