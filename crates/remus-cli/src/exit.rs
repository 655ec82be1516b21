//! Exit codes: the one map from what failed to what a script sees.

use std::fmt::Write as _;

use remus::ErrorCode;

/// How the command ended, as the process tells whoever started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Ok = 0,
    /// Failed, and none of the others fits.
    Failed = 1,
    /// The command line, the input or the request is wrong: the same again fails again.
    Usage = 2,
    /// Not trusted, not known, or not allowed.
    Auth = 3,
    /// What was named is not there.
    NotFound = 4,
    /// Nobody answers, or not in time: trying again later may help.
    Unavailable = 5,
    /// The state there, or somebody else, stands in the way.
    Conflict = 6,
    /// A limit is reached.
    Limit = 7,
    /// Interrupted from the keyboard; 128 + SIGINT, as shells count.
    Interrupted = 130,
}

impl Exit {
    /// All of them, with what they mean for people.
    const ALL: [(Self, &'static str); 9] = [
        (Self::Ok, "done"),
        (Self::Failed, "failed, and none of the codes below fits"),
        (
            Self::Usage,
            "the command line, the input or the request is wrong: the same again fails again",
        ),
        (
            Self::Auth,
            "the node is not trusted, or the caller is not known or not allowed",
        ),
        (
            Self::NotFound,
            "a service, method, file or other thing that was named is not there",
        ),
        (
            Self::Unavailable,
            "nobody answers, or not in time: trying again may help",
        ),
        (
            Self::Conflict,
            "the state there, or somebody else, stands in the way: a port or a name is taken",
        ),
        (Self::Limit, "a limit is reached, of size, number or rate"),
        (Self::Interrupted, "interrupted by Ctrl-C"),
    ];

    /// The number.
    pub(crate) fn code(self) -> u8 {
        // The discriminants are the numbers; see the attribute above.
        self as u8
    }

    /// The exit code for an error of a call. Codes that the specification does not name count as UNKNOWN.
    pub(crate) fn of(code: ErrorCode) -> Self {
        match code {
            ErrorCode::OK => Self::Ok,
            ErrorCode::INVALID_ARGUMENT | ErrorCode::OUT_OF_RANGE => Self::Usage,
            ErrorCode::UNAUTHENTICATED | ErrorCode::PERMISSION_DENIED | ErrorCode::WRONG_REGION => {
                Self::Auth
            }
            ErrorCode::NOT_FOUND | ErrorCode::UNIMPLEMENTED => Self::NotFound,
            ErrorCode::UNAVAILABLE
            | ErrorCode::DEADLINE_EXCEEDED
            | ErrorCode::LOSS_OF_SESSION
            | ErrorCode::SHUTTING_DOWN
            | ErrorCode::IDLE_TIMEOUT
            | ErrorCode::HANDSHAKE_TIMEOUT => Self::Unavailable,
            ErrorCode::ALREADY_EXISTS
            | ErrorCode::FAILED_PRECONDITION
            | ErrorCode::ABORTED
            | ErrorCode::DUPLICATE_REQUEST => Self::Conflict,
            ErrorCode::RESOURCE_EXHAUSTED
            | ErrorCode::MESSAGE_TOO_LARGE
            | ErrorCode::FRAME_TOO_LARGE
            | ErrorCode::CONTEXT_TOO_LARGE
            | ErrorCode::ROUTING_TOO_LARGE
            | ErrorCode::TOO_MANY_CALLS
            | ErrorCode::TOO_MANY_STREAMS
            | ErrorCode::QUEUE_FULL
            | ErrorCode::CONTROL_FLOOD => Self::Limit,
            _ => Self::Failed,
        }
    }
}

/// The codes that have a name are below this.
const CODES_END: u32 = 0x200;

/// What `remus help exit-codes` prints.
pub(crate) fn help() -> String {
    let mut text = String::from(
        "Exit codes of all commands, with the error codes that lead to them (`error.code` under `-o json`):\n",
    );
    for (exit, meaning) in Exit::ALL {
        let _ = write!(text, "\n{:>5}  {meaning}\n", exit.code());
        let mut line = String::new();
        for name in (0..CODES_END)
            .map(ErrorCode)
            .filter(|code| Exit::of(*code) == exit)
            .filter_map(ErrorCode::name)
        {
            if line.len() + name.len() > 80 {
                let _ = writeln!(text, "       {line}");
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(name);
        }
        if !line.is_empty() {
            let _ = writeln!(text, "       {line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each error code with the exit code that scripts rely on.
    const EXPECTED: [(&str, u8); 39] = [
        ("OK", 0),
        ("CANCELLED", 1),
        ("UNKNOWN", 1),
        ("INVALID_ARGUMENT", 2),
        ("DEADLINE_EXCEEDED", 5),
        ("NOT_FOUND", 4),
        ("ALREADY_EXISTS", 6),
        ("PERMISSION_DENIED", 3),
        ("RESOURCE_EXHAUSTED", 7),
        ("FAILED_PRECONDITION", 6),
        ("ABORTED", 6),
        ("OUT_OF_RANGE", 2),
        ("UNIMPLEMENTED", 4),
        ("INTERNAL", 1),
        ("UNAVAILABLE", 5),
        ("DATA_LOSS", 1),
        ("UNAUTHENTICATED", 3),
        ("MALFORMED", 1),
        ("UNSUPPORTED_VERSION", 1),
        ("FLOW_CONTROL", 1),
        ("MESSAGE_TOO_LARGE", 7),
        ("LOOP_DETECTED", 1),
        ("WRONG_REGION", 3),
        ("LOSS_OF_SESSION", 5),
        ("FRAME_TOO_LARGE", 7),
        ("UNKNOWN_FRAME", 1),
        ("STREAM_STATE", 1),
        ("TOO_MANY_CALLS", 7),
        ("TOO_MANY_STREAMS", 7),
        ("CONTEXT_TOO_LARGE", 7),
        ("ROUTING_TOO_LARGE", 7),
        ("QUEUE_FULL", 7),
        ("UNEXPECTED_MESSAGE", 1),
        ("SHUTTING_DOWN", 5),
        ("CONTROL_FLOOD", 7),
        ("IDLE_TIMEOUT", 5),
        ("HANDSHAKE_TIMEOUT", 5),
        ("UNSUPPORTED_EXTENSION", 1),
        ("DUPLICATE_REQUEST", 6),
    ];

    #[test]
    fn every_named_error_code_has_the_exit_code_that_is_documented() {
        let named: Vec<(&str, u8)> = (0..0x1_0000)
            .map(ErrorCode)
            .filter_map(|code| Some((code.name()?, Exit::of(code).code())))
            .collect();
        // A new error code fails here until somebody decides what scripts see.
        assert_eq!(named, EXPECTED);
        assert_eq!(Exit::of(ErrorCode(0x9999)), Exit::Failed);
    }

    #[test]
    fn the_help_names_every_error_code_once() {
        let help = help();
        for (name, _) in EXPECTED {
            let times = help.split_whitespace().filter(|word| *word == name).count();
            assert_eq!(times, 1, "{name} in\n{help}");
        }
    }

    #[test]
    fn the_guide_says_the_same_as_the_help() {
        let guide = include_str!("../../../docs/guide/cli.md");
        assert!(guide.contains(&help()), "docs/guide/cli.md, exit codes");
    }
}
