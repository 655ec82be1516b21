//! `remus sub`: prints what is published, across restarts of the node.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use remus::{ErrorCode, Publication, SubscribeOptions};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::cli::{Connection, Overflow, Subscribe};
use crate::connect::Node;
use crate::failure::{Failure, Outcome, Stop};
use crate::json::Json;
use crate::output::{Output, Paint, Printer, json_line};

use super::interrupt;

/// Pause before the first attempt to subscribe again; each further one doubles it.
const PAUSE_FIRST: Duration = Duration::from_millis(100);

/// Longest pause: what a person accepts between the return of a node and the next line.
const PAUSE_LONGEST: Duration = Duration::from_secs(5);

/// How long what was received may still be written after Ctrl-C.
const LAST_WRITE: Duration = Duration::from_secs(1);

pub(crate) async fn run(command: Subscribe, connection: &Connection, output: &Output) -> Outcome {
    let node = Node::of(connection)?;
    let mut printer = Printer::new()?;
    let outcome = tokio::select! {
        outcome = node.in_time(follow(&node, &command, output, &mut printer)) => outcome,
        // The way to end it, so it is a good end.
        () = interrupt() => Ok(()),
    };
    let written = tokio::time::timeout(LAST_WRITE, printer.finish()).await;
    node.close().await;
    outcome.and(written.unwrap_or(Ok(())))
}

/// Prints until the count is reached, however often the node goes away.
async fn follow(
    node: &Node,
    command: &Subscribe,
    output: &Output,
    printer: &mut Printer,
) -> Outcome {
    let options = SubscribeOptions {
        overflow: match command.overflow {
            Overflow::Wait => remus::Overflow::Wait,
            Overflow::DropOldest => remus::Overflow::DropOldest,
            Overflow::DropNewest => remus::Overflow::DropNewest,
            Overflow::End => remus::Overflow::End,
        },
        capacity: usize::try_from(command.capacity).unwrap_or(usize::MAX),
        queue_group: command.queue.clone(),
    };
    let mut left = command.count.unwrap_or(u64::MAX);
    let mut backoff = Backoff::default();
    let mut subscribed_before = false;
    loop {
        let lost = match subscribe(node, &command.pattern, &options, output).await {
            Ok(mut subscription) => {
                if subscribed_before {
                    output.note(&format!(
                        "{} is back; what was published meanwhile is missed",
                        node.name()
                    ));
                } else {
                    output.note(&format!(
                        "subscribed to {} at {}",
                        command.pattern,
                        node.name()
                    ));
                }
                subscribed_before = true;
                backoff = Backoff::default();
                loop {
                    match subscription.next().await {
                        Some(Ok(publication)) => {
                            let piece = shown(&publication, command.raw, output)?;
                            printer.write(piece).await?;
                            left = left.saturating_sub(1);
                            if left == 0 {
                                return Ok(());
                            }
                        }
                        Some(Err(error)) => break Failure::from(error),
                        None => {
                            break Failure::new(
                                ErrorCode::UNAVAILABLE,
                                "the node ended the subscription",
                            );
                        }
                    }
                }
            }
            Err(failure) => {
                if !subscribed_before {
                    return Err(failure.into());
                }
                failure
            }
        };
        if !comes_back(lost.code()) {
            return Err(lost.into());
        }
        if backoff.is_fresh() {
            output.note(&format!(
                "{} is gone; waiting for it to come back",
                node.name()
            ));
        }
        tracing::debug!(code = %lost.code(), "not subscribed");
        tokio::time::sleep(backoff.next()).await;
    }
}

async fn subscribe(
    node: &Node,
    pattern: &str,
    options: &SubscribeOptions,
    output: &Output,
) -> Result<remus::RemoteSubscription, Failure> {
    node.connect_and_tell(output).await?;
    Ok(node.client.subscribe(pattern, options.clone()).await?)
}

/// Whether what ended the subscription passes: the node stops, or cannot be reached.
fn comes_back(code: ErrorCode) -> bool {
    code.is_retryable() || matches!(code, ErrorCode::IDLE_TIMEOUT | ErrorCode::HANDSHAKE_TIMEOUT)
}

/// Pauses that double, each by chance between half of it and all of it, so that the subscribers of a node that comes back don't
/// all arrive at once.
#[derive(Default)]
struct Backoff {
    attempts: u32,
}

impl Backoff {
    fn is_fresh(&self) -> bool {
        self.attempts == 0
    }

    fn next(&mut self) -> Duration {
        let factor = 1u32.checked_shl(self.attempts).unwrap_or(u32::MAX);
        let whole = PAUSE_FIRST.saturating_mul(factor).min(PAUSE_LONGEST);
        self.attempts = self.attempts.saturating_add(1).min(16);
        // Its keys are drawn at random for each process, and differ for each value.
        let random = RandomState::new().build_hasher().finish() % 1001;
        let half = whole / 2;
        half + half.saturating_mul(u32::try_from(random).unwrap_or(0)) / 1000
    }
}

/// A publication as it is printed, with a line break at its end.
fn shown(publication: &Publication, raw: bool, output: &Output) -> Result<Vec<u8>, Stop> {
    let payload = &publication.payload;
    if raw {
        let mut bytes = payload.to_vec();
        bytes.push(b'\n');
        return Ok(bytes);
    }
    let mut line = if output.is_json() {
        json_line(&Published::of(publication))?
    } else {
        text(publication.topic(), payload, &output.paint)
    };
    line.push('\n');
    Ok(line.into_bytes())
}

/// A publication for programs. Exactly one of `json`, `text` and `base64` is there.
#[derive(Serialize)]
struct Published<'a> {
    topic: &'a str,
    timestamp_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    json: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

impl<'a> Published<'a> {
    fn of(publication: &'a Publication) -> Self {
        let (json, text, base64) = content(&publication.payload);
        Self {
            topic: publication.topic(),
            timestamp_us: publication.timestamp_us,
            json,
            text,
            base64,
        }
    }
}

type Content<'a> = (Option<Box<RawValue>>, Option<&'a str>, Option<String>);

/// A payload as JSON if it is that, else as text if it is that, else in base64.
fn content(payload: &Bytes) -> Content<'_> {
    let Ok(text) = std::str::from_utf8(payload) else {
        return (None, None, Some(STANDARD.encode(payload)));
    };
    // An empty payload is an empty text here: nobody published a `null`.
    let json = if text.is_empty() {
        None
    } else {
        Json::parse(payload).ok().map(Json::line)
    };
    match json.and_then(|line| RawValue::from_string(line).ok()) {
        Some(json) => (Some(json), None, None),
        None => (None, Some(text), None),
    }
}

/// A line for people: control characters, line breaks among them, and bytes that are no UTF-8 become escapes, so that a message is a
/// line and cannot steer the terminal.
fn text(topic: &str, payload: &[u8], paint: &Paint) -> String {
    let strong = paint.strong;
    let mut line = format!("{strong}");
    escape(topic.as_bytes(), &mut line);
    line.push_str(&format!("{strong:#} "));
    escape(payload, &mut line);
    line
}

fn escape(bytes: &[u8], line: &mut String) {
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() {
                line.extend(character.escape_default());
            } else {
                line.push(character);
            }
        }
        for byte in chunk.invalid() {
            line.push_str(&format!("\\x{byte:02x}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_a_line_and_cannot_steer_the_terminal() {
        let line = text("a.b", b"x\ty\n\x1b[2J\xff \xc3\xbc\\", &Paint::plain());
        assert_eq!(line, "a.b x\\ty\\n\\u{1b}[2J\\xff ü\\");
    }

    #[test]
    fn programs_are_told_what_kind_of_payload_it_is() {
        let told = |payload: &'static [u8]| {
            let payload = Bytes::from_static(payload);
            let (json, text, base64) = content(&payload);
            (
                json.map(|json| json.get().to_owned()),
                text.map(str::to_owned),
                base64,
            )
        };
        assert_eq!(
            told(b"{\"a\": [1,\n2]}"),
            (Some("{\"a\":[1,2]}".into()), None, None)
        );
        assert_eq!(told(b"hello"), (None, Some("hello".into()), None));
        assert_eq!(told(b""), (None, Some(String::new()), None));
        assert_eq!(told(b"\xff\x00"), (None, None, Some("/wA=".into())));
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_vary() {
        let mut backoff = Backoff::default();
        let mut whole = PAUSE_FIRST;
        for _ in 0..40 {
            let pause = backoff.next();
            assert!(
                pause >= whole / 2 && pause <= whole,
                "{pause:?} of {whole:?}"
            );
            whole = (whole * 2).min(PAUSE_LONGEST);
        }
        let pauses: std::collections::HashSet<_> = (0..20).map(|_| backoff.next()).collect();
        assert!(pauses.len() > 1);
    }

    #[test]
    fn only_what_passes_is_waited_for() {
        for code in [
            ErrorCode::UNAVAILABLE,
            ErrorCode::SHUTTING_DOWN,
            ErrorCode::LOSS_OF_SESSION,
            ErrorCode::IDLE_TIMEOUT,
        ] {
            assert!(comes_back(code), "{code}");
        }
        for code in [
            ErrorCode::RESOURCE_EXHAUSTED,
            ErrorCode::INVALID_ARGUMENT,
            ErrorCode::UNAUTHENTICATED,
        ] {
            assert!(!comes_back(code), "{code}");
        }
    }
}
