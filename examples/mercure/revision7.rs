//! What clients of revision 7 of the protocol send: topic selectors, and tokens with the claim `mercure`.
//!
//! A selector is `*`, a topic, or a URI template (RFC 6570), which selects the topics that are expansions of the template. Tokens have neither a
//! type nor an audience, and may be valid for ever: a token for one hub is valid for every hub with the same key. So the program accepts them only if
//! `MERCURE_COMPATIBILITY` is `7`.

use regex::{Regex, RegexBuilder, escape};
use serde::Deserialize;
use serde_json::{Map, Value};
use url::Url;

use crate::matcher::{MAX_REGEX_LEN, MatchType, Matcher};

/// The name of the cookie with the token.
pub(super) const COOKIE: &str = "mercureAuthorization";

/// The name of the query parameter with the token.
pub(super) const TOKEN_PARAMETER: &str = "authorization";

/// The maximum number of selectors for one action of a token.
const MAX_SELECTORS: usize = 64;

/// The characters of a simple expansion: unreserved ones, commas between the values of a list, and escaped bytes.
const SIMPLE: &str = "(?:[-A-Za-z0-9._~,=]|%[0-9A-Fa-f]{2})*";

/// The characters of an expansion with the operators `+` and `#`, which may also be reserved ones.
const RESERVED: &str = "(?:[-A-Za-z0-9._~:/?#\\[\\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2})*";

/// The claims of a token of revision 7.
#[derive(Deserialize)]
pub(super) struct Claims {
    pub(super) exp: Option<f64>,
    pub(super) sub: Option<String>,
    pub(super) mercure: Selectors,
}

/// The claim `mercure`: the selectors of topics for each action.
#[derive(Deserialize)]
pub(super) struct Selectors {
    #[serde(default)]
    pub(super) publish: Option<Vec<String>>,
    #[serde(default)]
    pub(super) subscribe: Option<Vec<String>>,
    pub(super) payload: Option<Map<String, Value>>,
}

/// Reads the selectors of a token. Returns `None` if one of them is malformed, or there are too many.
pub(super) fn read_selectors(selectors: &[String], hub_url: &Url) -> Option<Vec<Matcher>> {
    if selectors.len() > MAX_SELECTORS {
        return None;
    }
    let selectors = selectors.iter();
    let matchers = selectors.map(|text| Matcher::new(selector_type(text), text, hub_url));
    matchers.collect()
}

/// Returns how a selector is read.
pub(super) fn selector_type(text: &str) -> MatchType {
    match text.contains('{') {
        true => MatchType::UriTemplate,
        false => MatchType::Exact,
    }
}

/// Returns an expression for the expansions of a URI template. Returns `None` if the text is no template, or the expression is too large.
pub(super) fn template_regex(template: &str) -> Option<Regex> {
    let mut pattern = String::from("^(?:");
    let mut rest = template;
    while let Some((literal, expression)) = rest.split_once('{') {
        let (expression, after) = expression.split_once('}')?;
        if literal.contains('}') {
            return None;
        }
        pattern.push_str(&escape(literal));
        pattern.push_str(&expression_pattern(expression)?);
        rest = after;
    }
    if rest.contains('}') {
        return None;
    }
    pattern.push_str(&escape(rest));
    pattern.push_str(")$");
    let mut builder = RegexBuilder::new(&pattern);
    builder.size_limit(MAX_REGEX_LEN).build().ok()
}

/// Returns the pattern of the expansions of one expression, which is written without its braces.
fn expression_pattern(expression: &str) -> Option<String> {
    let operator = expression
        .chars()
        .next()
        .filter(|first| "+#./;?&".contains(*first));
    let variables = expression.strip_prefix(|first: char| Some(first) == operator);
    let variables = variables.unwrap_or(expression);
    if !variables.split(',').all(is_variable) {
        return None;
    }
    Some(match operator {
        Some('+') => RESERVED.to_owned(),
        Some('#') => format!("(?:#{RESERVED})?"),
        Some('?') => format!("(?:\\?{SIMPLE}(?:&{SIMPLE})*)?"),
        Some(separator) => {
            let separator = escape(separator.encode_utf8(&mut [0; 4]));
            format!("(?:{separator}{SIMPLE})*")
        }
        None => SIMPLE.to_owned(),
    })
}

/// Returns whether a text is the name of a variable, perhaps with the modifier `*` or `:` and a number.
fn is_variable(text: &str) -> bool {
    let name = text.strip_suffix('*').unwrap_or(text);
    let (name, len) = name.split_once(':').unwrap_or((name, "1"));
    let is_name = |char: char| char.is_ascii_alphanumeric() || "_.%".contains(char);
    !name.is_empty() && name.chars().all(is_name) && len.parse::<u16>().is_ok()
}
