//! Negotiation of the application protocol inside a session: `wt-available-protocols` and
//! `wt-protocol`. Spec: draft-ietf-webtrans-http3 §3.3, RFC 8941 §3.1 and §3.3.3.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The protocols a client offers, best first.
pub(crate) const AVAILABLE: HeaderName = HeaderName::from_static("wt-available-protocols");

/// The protocol a server chose.
pub(crate) const CHOSEN: HeaderName = HeaderName::from_static("wt-protocol");

/// Protocols that are read from an offer; more are ignored.
///
/// A client offers the versions it speaks, which are a handful.
pub(crate) const MAX_OFFERED: usize = 32;

/// The protocols that `headers` offer, best first, at most 32.
///
/// A field that is not a list of strings counts as absent, as the draft demands.
#[must_use]
pub fn offered(headers: &HeaderMap) -> Vec<String> {
    let mut out = Vec::new();
    for value in headers.get_all(AVAILABLE) {
        let Some(mut strings) = value.to_str().ok().and_then(parse_list) else {
            return Vec::new();
        };
        out.append(&mut strings);
    }
    out.truncate(MAX_OFFERED);
    out
}

/// The protocol that `headers` choose.
#[must_use]
pub fn chosen(headers: &HeaderMap) -> Option<String> {
    let mut strings = headers.get(CHOSEN)?.to_str().ok().and_then(parse_list)?;
    match strings.len() {
        1 => strings.pop(),
        _ => None,
    }
}

/// `protocols` as the value of a field; `None` if one of them is not printable ASCII.
#[must_use]
pub fn to_value(protocols: &[&str]) -> Option<HeaderValue> {
    let mut out = String::new();
    for protocol in protocols {
        if !out.is_empty() {
            out.push_str(", ");
        }
        out.push('"');
        for char in protocol.chars() {
            match char {
                '"' | '\\' => out.extend(['\\', char]),
                ' '..='~' => out.push(char),
                _ => return None,
            }
        }
        out.push('"');
    }
    HeaderValue::try_from(out).ok()
}

/// A list of strings, whose parameters are dropped.
fn parse_list(text: &str) -> Option<Vec<String>> {
    let mut out = Vec::new();
    let mut rest = text.trim_matches([' ', '\t']);
    if rest.is_empty() {
        return Some(out);
    }
    loop {
        let (string, after) = parse_string(rest)?;
        out.push(string);
        rest = skip_parameters(after)?.trim_start_matches([' ', '\t']);
        if rest.is_empty() {
            return Some(out);
        }
        // A comma must be followed by another member.
        rest = rest.strip_prefix(',')?.trim_start_matches([' ', '\t']);
    }
}

/// The string at the front of `text`, and what follows it.
fn parse_string(text: &str) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut chars = text.strip_prefix('"')?.chars();
    loop {
        match chars.next()? {
            '"' => return Some((out, chars.as_str())),
            '\\' => match chars.next()? {
                char @ ('"' | '\\') => out.push(char),
                _ => return None,
            },
            char @ ' '..='~' => out.push(char),
            _ => return None,
        }
    }
}

/// Skips `;key=value` as often as it is there; a value is a string, or anything up to a delimiter.
fn skip_parameters(mut text: &str) -> Option<&str> {
    while let Some(after) = text.strip_prefix(';') {
        let after = after.trim_start_matches(' ');
        let key_len = after
            .find(['=', ';', ',', ' ', '\t', '"'])
            .unwrap_or(after.len());
        if key_len == 0 {
            return None;
        }
        text = after.get(key_len..)?;
        if let Some(value) = text.strip_prefix('=') {
            text = if value.starts_with('"') {
                parse_string(value)?.1
            } else {
                let len = value.find([';', ',', ' ', '\t']).unwrap_or(value.len());
                value.get(len..)?
            };
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(values: &[&'static str]) -> HeaderMap {
        let pair = |value: &&'static str| (AVAILABLE, HeaderValue::from_static(value));
        values.iter().map(pair).collect()
    }

    #[test]
    fn reads_what_chromium_sends() {
        assert_eq!(
            offered(&headers(&["\"remus.1\", \"remus.0\""])),
            ["remus.1", "remus.0"]
        );
        assert_eq!(
            offered(&headers(&["\"a\"", "\"b\";q=1;s=\"x,\\\"y\",\"c\""])),
            ["a", "b", "c"]
        );
        assert_eq!(offered(&headers(&[""])), [""; 0]);
    }

    /// Spec: TRANS-23
    #[test]
    fn a_field_that_is_no_list_of_strings_is_ignored() {
        for value in [
            "a",
            "\"a",
            "\"a\",",
            "\"a\" \"b\"",
            "1",
            "\"a\\b\"",
            "(\"a\")",
            "\"a\";",
            "\"a\", b",
        ] {
            assert_eq!(offered(&headers(&[value])), [""; 0], "{value}");
        }
        let mut chosen_two = HeaderMap::new();
        chosen_two.insert(CHOSEN, HeaderValue::from_static("\"a\", \"b\""));
        assert_eq!(chosen(&chosen_two), None);
    }

    #[test]
    fn protocols_that_are_not_ascii_cannot_be_sent() {
        assert_eq!(to_value(&["é"]), None);
        assert_eq!(to_value(&["a\n"]), None);
    }

    proptest! {
        #[test]
        fn round_trips(protocols in prop::collection::vec("[ -~]{0,12}", 0..8)) {
            let borrowed: Vec<&str> = protocols.iter().map(String::as_str).collect();
            let mut headers = HeaderMap::new();
            headers.insert(AVAILABLE, to_value(&borrowed).unwrap());
            prop_assert_eq!(offered(&headers), protocols);
        }

        #[test]
        fn never_panics(text in "[ -~\t]{0,60}") {
            let _ = parse_list(&text);
        }
    }
}
