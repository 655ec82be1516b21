//! JSON as text: checked and laid out without changing what it says.
//!
//! Values are never turned into numbers or maps, so that large integers, the order of fields and repeated names survive.

use bytes::Bytes;
use serde::de::IgnoredAny;

/// Spaces for each level, when laid out for people.
const INDENT: usize = 2;

/// Why a text is no JSON: the line and column, both from 1, and the reason.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Invalid {
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) reason: String,
}

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            line,
            column,
            reason,
        } = self;
        write!(f, "line {line}, column {column}: {reason}")
    }
}

/// A text that is one JSON value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Json<'a>(&'a str);

impl<'a> Json<'a> {
    /// Takes `bytes` if they are one JSON value. No bytes at all count as `null`, as they do on the wire.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Invalid> {
        if bytes.is_empty() {
            return Ok(Self("null"));
        }
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line_start = before
                .iter()
                .rposition(|&byte| byte == b'\n')
                .map_or(0, |at| at + 1);
            Invalid {
                line: 1 + before.iter().filter(|&&byte| byte == b'\n').count(),
                column: 1 + before.len() - line_start,
                reason: "it is not UTF-8".to_owned(),
            }
        })?;
        match serde_json::from_str::<IgnoredAny>(text) {
            Ok(_) => Ok(Self(text)),
            Err(error) => {
                let reason = error.to_string();
                // The position is told in our own words.
                let reason = reason
                    .split_once(" at line ")
                    .map_or(reason.as_str(), |(reason, _)| reason);
                Err(Invalid {
                    line: error.line().max(1),
                    column: error.column().max(1),
                    reason: reason.to_owned(),
                })
            }
        }
    }

    /// On one line.
    pub(crate) fn line(self) -> String {
        self.lay_out(None)
    }

    /// On as many lines as people like.
    pub(crate) fn pretty(self) -> String {
        self.lay_out(Some(INDENT))
    }

    /// Writes the value without white space, or with line breaks and indentation. Control characters that JSON allows in strings,
    /// those above 0x7E, are escaped, since some terminals obey them.
    fn lay_out(self, indent: Option<usize>) -> String {
        let mut out = String::with_capacity(self.0.len());
        let mut depth: usize = 0;
        let mut characters = self.0.chars().peekable();
        let new_line = |out: &mut String, depth: usize| {
            if let Some(indent) = indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent * depth));
            }
        };
        while let Some(character) = characters.next() {
            match character {
                ' ' | '\n' | '\r' | '\t' => {}
                '"' => {
                    out.push('"');
                    while let Some(character) = characters.next() {
                        match character {
                            '\\' => {
                                out.push('\\');
                                out.extend(characters.next());
                            }
                            '"' => break,
                            '\u{7f}'..='\u{9f}' => {
                                out.push_str(&format!("\\u{:04x}", u32::from(character)));
                            }
                            other => out.push(other),
                        }
                    }
                    out.push('"');
                }
                '{' | '[' => {
                    out.push(character);
                    while characters
                        .next_if(|next| next.is_ascii_whitespace())
                        .is_some()
                    {}
                    if let Some(close) = characters.next_if(|next| matches!(next, '}' | ']')) {
                        out.push(close);
                    } else {
                        depth += 1;
                        new_line(&mut out, depth);
                    }
                }
                '}' | ']' => {
                    depth = depth.saturating_sub(1);
                    new_line(&mut out, depth);
                    out.push(character);
                }
                ',' => {
                    out.push(',');
                    new_line(&mut out, depth);
                }
                ':' => out.push_str(if indent.is_some() { ": " } else { ":" }),
                other => out.push(other),
            }
        }
        out
    }
}

/// An answer as it is shown: pretty to people, one line to programs.
pub(crate) fn shown(bytes: &Bytes, pretty: bool) -> Result<String, Invalid> {
    let json = Json::parse(bytes)?;
    let mut text = if pretty { json.pretty() } else { json.line() };
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSY: &str = "{ \"b\" : [ 1 , 2.50, -3e400 ],\n\t\"a\":{}, \"e\": [ ],\"b\":18446744073709551616, \"s\":\"a \\\"{[,: \u{85}\\\\\" }";

    #[test]
    fn one_line_keeps_order_numbers_and_repeated_names() {
        let json = Json::parse(MESSY.as_bytes()).unwrap();
        assert_eq!(
            json.line(),
            r#"{"b":[1,2.50,-3e400],"a":{},"e":[],"b":18446744073709551616,"s":"a \"{[,: \u0085\\"}"#
        );
    }

    #[test]
    fn pretty_is_what_serde_makes_of_it() {
        for text in [
            "null",
            "[]",
            "{\"a\":[],\"b\":{\"c\":[1,[2,{}]]},\"d\":\"x\"}",
            " [ { } , [ ] ] ",
        ] {
            let value: serde_json::Value = serde_json::from_str(text).unwrap();
            assert_eq!(
                Json::parse(text.as_bytes()).unwrap().pretty(),
                serde_json::to_string_pretty(&value).unwrap()
            );
        }
    }

    #[test]
    fn laid_out_or_not_it_says_the_same() {
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        let text = MESSY.replace("-3e400", "-3e40");
        let json = Json::parse(text.as_bytes()).unwrap();
        assert_eq!(value(&json.line()), value(&text));
        assert_eq!(value(&json.pretty()), value(&text));
    }

    #[test]
    fn nothing_is_null() {
        assert_eq!(Json::parse(b"").unwrap().line(), "null");
    }

    #[test]
    fn says_where_it_is_wrong() {
        for (text, line, column) in [
            (&b"{\"a\": }"[..], 1, 7),
            (b"{\n  \"a\": 1,\n}", 3, 1),
            (b"[1] 2", 1, 5),
            (b"  ", 1, 2),
            (b"{\n\"a\xff\"}", 2, 3),
            (b"{'a': 1}", 1, 2),
        ] {
            let invalid = Json::parse(text).unwrap_err();
            assert_eq!((invalid.line, invalid.column), (line, column), "{invalid}");
            assert!(!invalid.reason.contains("line"), "{invalid}");
        }
    }
}
