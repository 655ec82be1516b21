//! Why a command stops early, and how that is told: what, why, and what to try.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use remus::ErrorCode;
use serde::Serialize;

use crate::exit::Exit;
use crate::output::Paint;

/// Why a command ended before its work was done.
#[derive(Debug)]
pub(crate) enum Stop {
    /// It failed, and the user has to know.
    Failed(Box<Failure>),
    /// Whoever read the output has had enough, such as `head`: a good end.
    PipeClosed,
    /// Ctrl-C.
    Interrupted,
}

/// The result of a command, or of a step of one.
pub(crate) type Outcome<T = ()> = Result<T, Stop>;

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(Box::new(failure))
    }
}

/// What went wrong, for people and for programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    code: ErrorCode,
    message: String,
    hint: Option<String>,
    retry_after_ms: Option<u64>,
}

impl Failure {
    /// A failure that counts as `code`; `message` says what happened and why.
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
            retry_after_ms: None,
        }
    }

    /// The command line or the input is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::INVALID_ARGUMENT, message)
    }

    /// A file operation failed: "cannot {action} {path}: {why}".
    pub(crate) fn file(action: &str, path: &Path, error: &io::Error) -> Self {
        Self::new(
            code_of(error),
            format!("cannot {action} {}: {}", path.display(), plain(error)),
        )
    }

    /// Adds what the user may try.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what the user may try, unless something is there already.
    pub(crate) fn or_hint(self, hint: impl Into<String>) -> Self {
        if self.hint.is_some() {
            return self;
        }
        self.hint(hint)
    }

    pub(crate) fn code(&self) -> ErrorCode {
        self.code
    }

    pub(crate) fn exit(&self) -> Exit {
        match Exit::of(self.code) {
            // A peer that fails with "no error" has failed all the same.
            Exit::Ok => Exit::Failed,
            exit => exit,
        }
    }

    /// The lines for people, with a line break after the last.
    pub(crate) fn text(&self, paint: &Paint) -> String {
        let mut text = String::new();
        let (error, strong, tip) = (paint.error, paint.strong, paint.tip);
        let _ = writeln!(
            text,
            "{error}error{error:#}{strong}:{strong:#} {}",
            printable(&self.message)
        );
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "  {tip}try:{tip:#} {}", printable(hint));
        }
        text
    }

    /// The line for programs, with a line break at its end.
    pub(crate) fn json(&self) -> String {
        #[derive(Serialize)]
        struct Report<'a> {
            error: Body<'a>,
        }
        #[derive(Serialize)]
        struct Body<'a> {
            code: String,
            exit: u8,
            message: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            hint: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            retry_after_ms: Option<u64>,
        }
        let report = Report {
            error: Body {
                code: self.code.to_string(),
                exit: self.exit().code(),
                message: &self.message,
                hint: self.hint.as_deref(),
                retry_after_ms: self.retry_after_ms,
            },
        };
        let mut line = serde_json::to_string(&report).unwrap_or_default();
        line.push('\n');
        line
    }
}

impl From<remus::Error> for Failure {
    fn from(error: remus::Error) -> Self {
        let message = if error.message().is_empty() {
            error.code().to_string()
        } else {
            format!("{} ({})", error.message(), error.code())
        };
        let retry_after_ms = error
            .retry_after()
            .and_then(|after| u64::try_from(after.as_millis()).ok());
        let mut failure = Self {
            retry_after_ms,
            ..Self::new(error.code(), message)
        };
        if let Some(after) = retry_after_ms {
            failure.hint = Some(format!("the node says: again in {after} ms"));
        } else if error.is_retryable() {
            failure.hint = Some("trying again may help".to_owned());
        }
        failure
    }
}

impl From<remus::Error> for Stop {
    fn from(error: remus::Error) -> Self {
        Failure::from(error).into()
    }
}

/// The error code that fits an error of the operating system.
pub(crate) fn code_of(error: &io::Error) -> ErrorCode {
    match error.kind() {
        io::ErrorKind::NotFound => ErrorCode::NOT_FOUND,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            ErrorCode::PERMISSION_DENIED
        }
        io::ErrorKind::AlreadyExists => ErrorCode::ALREADY_EXISTS,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            ErrorCode::RESOURCE_EXHAUSTED
        }
        io::ErrorKind::IsADirectory
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::InvalidFilename => ErrorCode::INVALID_ARGUMENT,
        _ => ErrorCode::UNKNOWN,
    }
}

/// The text of `error` without the number that Rust appends to it, which says nothing more.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((plain, _)) => plain.to_owned(),
        None => text,
    }
}

/// `text` without what could steer a terminal: control characters, but for the line break, become escapes.
///
/// Errors repeat what peers and files say.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => out.push('\n'),
            character if character.is_control() => out.extend(character.escape_default()),
            character => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn tells_people_what_and_what_to_try_without_passing_control_characters_on() {
        let failure = Failure::usage("bad \u{1b}[2J thing").hint("another");
        assert_eq!(
            failure.text(&Paint::plain()),
            "error: bad \\u{1b}[2J thing\n  try: another\n"
        );
    }

    #[test]
    fn tells_programs_the_same_as_json() {
        let error =
            remus::Error::resource_exhausted("full").with_retry_after(Duration::from_millis(250));
        let line = Failure::from(error).json();
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"error": {
                "code": "RESOURCE_EXHAUSTED",
                "exit": 7,
                "message": "full (RESOURCE_EXHAUSTED)",
                "hint": "the node says: again in 250 ms",
                "retry_after_ms": 250,
            }})
        );
        assert!(line.ends_with("}\n"));
    }

    #[test]
    fn a_failure_is_never_a_success_to_scripts() {
        assert_eq!(Failure::new(ErrorCode::OK, "odd").exit(), Exit::Failed);
    }

    #[test]
    fn errors_of_files_name_the_file_and_keep_their_kind() {
        let error = io::Error::from_raw_os_error(2);
        let failure = Failure::file("read", Path::new("a/b"), &error);
        assert_eq!(failure.exit(), Exit::NotFound);
        assert_eq!(
            failure.message,
            "cannot read a/b: No such file or directory"
        );
    }
}
