//! Topic matchers: exact names and URL patterns, and the URI templates of revision 7.

use std::{fmt, sync::Arc};

use regex::{Regex, RegexBuilder};
use serde_json::Value;
use url::Url;
use urlpattern::{
    RegexSyntax, UrlPattern, UrlPatternInit, UrlPatternMatchInput, UrlPatternOptions,
    regexp::RegExp,
};

use crate::{revision7, topic_name};

/// The maximum length of a matcher, in bytes.
pub(super) const MAX_MATCHER_LEN: usize = 512;

/// The maximum size of the compiled regular expression of a URI template, and of each component of a URL pattern, in bytes.
pub(super) const MAX_REGEX_LEN: usize = 64 * 1024;

/// How the text of a [`Matcher`] is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MatchType {
    Exact,
    UrlPattern,
    /// A URI template of revision 7.
    UriTemplate,
}

impl MatchType {
    /// Returns the type of revision 8 with this name, which is case-sensitive.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name {
            "Exact" => Some(Self::Exact),
            "URLPattern" => Some(Self::UrlPattern),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Exact => "Exact",
            Self::UrlPattern => "URLPattern",
            Self::UriTemplate => "URITemplate",
        }
    }
}

/// An expression that selects topics.
#[derive(Clone)]
pub(super) struct Matcher {
    pub(super) match_type: MatchType,
    pub(super) text: Arc<str>,
    test: MatcherTest,
}

#[derive(Clone)]
enum MatcherTest {
    EveryTopic,
    Exact,
    UrlPattern {
        pattern: Arc<UrlPattern<BoundedRegex>>,
        base: Url,
    },
    UriTemplate(Arc<Regex>),
}

impl Matcher {
    /// Creates a matcher. Relative URL patterns and topics are resolved against `base`, the URL of the hub. Returns `None` if the text is no
    /// matcher of this type, or is too long.
    pub(super) fn new(match_type: MatchType, text: &str, base: &Url) -> Option<Self> {
        if !topic_name::is_valid(text) || text.len() > MAX_MATCHER_LEN {
            return None;
        }
        let test = match match_type {
            _ if text == "*" => MatcherTest::EveryTopic,
            MatchType::Exact => MatcherTest::Exact,
            MatchType::UrlPattern => MatcherTest::UrlPattern {
                pattern: Arc::new(parse_url_pattern(text, base)?),
                base: base.clone(),
            },
            MatchType::UriTemplate => {
                MatcherTest::UriTemplate(Arc::new(revision7::template_regex(text)?))
            }
        };
        let text = text.into();
        Some(Self {
            match_type,
            text,
            test,
        })
    }

    /// Reads a matcher of a token: an object with `match`, and perhaps `matchType`.
    pub(super) fn from_json(value: &Value, base: &Url) -> Option<Self> {
        let object = value.as_object()?;
        let match_type = match object.get("matchType") {
            Some(name) => MatchType::from_name(name.as_str()?)?,
            None => MatchType::Exact,
        };
        Self::new(match_type, object.get("match")?.as_str()?, base)
    }

    /// Returns the topic if the matcher selects one topic only.
    pub(super) fn exact_topic(&self) -> Option<&str> {
        matches!(self.test, MatcherTest::Exact).then_some(&*self.text)
    }

    pub(super) fn matches(&self, topic: &str) -> bool {
        match &self.test {
            MatcherTest::EveryTopic => true,
            MatcherTest::Exact => *self.text == *topic,
            MatcherTest::UrlPattern { pattern, base } => {
                let url = base.join(topic).ok().map(UrlPatternMatchInput::Url);
                url.is_some_and(|url| pattern.test(url).unwrap_or(false))
            }
            MatcherTest::UriTemplate(regex) => *self.text == *topic || regex.is_match(topic),
        }
    }
}

fn parse_url_pattern(text: &str, base: &Url) -> Option<UrlPattern<BoundedRegex>> {
    let init =
        UrlPatternInit::parse_constructor_string::<BoundedRegex>(text, Some(base.clone())).ok()?;
    UrlPattern::parse(init, UrlPatternOptions::default()).ok()
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.match_type.name(), self.text)
    }
}

/// A regular expression of a URL pattern. The crate `regex` matches in time linear in the text, and this type bounds the size of the
/// expression.
#[derive(Debug)]
struct BoundedRegex(Regex);

impl RegExp for BoundedRegex {
    fn syntax() -> RegexSyntax {
        RegexSyntax::Rust
    }

    fn parse(pattern: &str, _flags: &str, _force_eval: bool) -> Result<Self, ()> {
        let regex = RegexBuilder::new(pattern).size_limit(MAX_REGEX_LEN).build();
        regex.map(Self).map_err(|_| ())
    }

    fn matches<'a>(&self, text: &'a str) -> Option<Vec<Option<&'a str>>> {
        RegExp::matches(&self.0, text)
    }

    fn pattern_string(&self) -> &str {
        self.0.as_str()
    }
}
