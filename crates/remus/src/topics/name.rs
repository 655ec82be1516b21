//! Names of topics and patterns. Spec: core, topics.

use remus_wire::Routing;

use crate::Error;

/// Longest topic name or pattern, in bytes.
pub(crate) const NAME_MAX: usize = 255;

/// Most tokens of a topic name or pattern: bounds the depth of the table.
pub(crate) const TOKENS_MAX: usize = 32;

/// Checks a topic name: dot-separated, non-empty tokens of printable characters, no `*` and no `>`.
///
/// # Errors
///
/// INVALID_ARGUMENT, saying what is wrong.
pub(crate) fn check_topic(topic: &str) -> Result<(), Error> {
    check(topic, "topic", |token, _| !token.contains(['*', '>']))
}

/// Checks a pattern: as a topic name, but a whole token may be `*`, and the last one `>`.
///
/// # Errors
///
/// INVALID_ARGUMENT, saying what is wrong.
pub(crate) fn check_pattern(pattern: &str) -> Result<(), Error> {
    check(pattern, "pattern", |token, last| {
        token == "*" || (token == ">" && last) || !token.contains(['*', '>'])
    })
}

fn check(name: &str, what: &str, allowed: impl Fn(&str, bool) -> bool) -> Result<(), Error> {
    let wrong = |why: &str| {
        Err(Error::invalid_argument(format!(
            "`{name}` is not a {what}: {why}"
        )))
    };
    if name.is_empty() {
        return wrong("it is empty");
    }
    if name.len() > NAME_MAX {
        return wrong("it is longer than 255 bytes");
    }
    if name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return wrong("it holds a space or a control character");
    }
    let count = name.split('.').count();
    if count > TOKENS_MAX {
        return wrong("it has more than 32 tokens");
    }
    for (number, token) in (1..).zip(name.split('.')) {
        if token.is_empty() {
            return wrong("a token between its dots is empty");
        }
        if !allowed(token, number == count) {
            return wrong(
                "`*` stands for a whole token and `>` for the last ones of a pattern; a topic has neither",
            );
        }
    }
    Ok(())
}

/// `routing` with the topic's name (option 6).
pub(super) fn named(mut routing: Routing, topic: &str) -> Result<Routing, Error> {
    routing
        .set_topic(topic)
        .map_err(|_| Error::invalid_argument("the topic name is too long"))?;
    Ok(routing)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spec: CORE-86
    #[test]
    fn names_and_patterns_are_judged() {
        for good in ["a", "a.b", "host.my-box.cpu", "größe.x"] {
            check_topic(good).unwrap();
            check_pattern(good).unwrap();
        }
        for pattern in ["*", ">", "a.*", "a.>", "*.b.>"] {
            check_pattern(pattern).unwrap();
            assert!(check_topic(pattern).is_err(), "{pattern}");
        }
        let long = "x".repeat(NAME_MAX + 1);
        let deep = vec!["x"; TOKENS_MAX + 1].join(".");
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "a b",
            "a\n",
            "a*",
            "a.>.b",
            ">>",
            long.as_str(),
            deep.as_str(),
        ] {
            assert!(check_topic(bad).is_err(), "{bad}");
            assert!(check_pattern(bad).is_err(), "{bad}");
        }
    }
}
