//! The one error of calls: a code that programs act on, a text that people read.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use remus_session::{CloseReason, SendError};
use remus_transport::webtransport::ConnectError;
use remus_wire::{ErrorCode, ErrorRecord, Text};

/// Why a call failed: at this side, at the peer, or between them.
///
/// Codes 0 to 16 are gRPC's; from 0x100 on they are the protocol's own. Spec: message format, error codes.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    // Boxed: results carry it everywhere, and errors are rare.
    record: Box<ErrorRecord>,
}

/// One detail of an [`Error`], for programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorDetail {
    /// The full name of the value's type, such as `acme.shop.v1.OutOfStock`.
    pub kind: String,
    /// The value, in the form that its type has.
    pub value: Bytes,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident = $code:ident;)*) => {
        impl Error {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $name(message: impl Into<String>) -> Self {
                    Self::new(ErrorCode::$code, message)
                }
            )*
        }
    };
}

constructors! {
    /// The caller gave it up.
    cancelled = CANCELLED;
    /// The request makes no sense, whatever the state of the system.
    invalid_argument = INVALID_ARGUMENT;
    /// The time budget was spent.
    deadline_exceeded = DEADLINE_EXCEEDED;
    /// What was asked for is not there.
    not_found = NOT_FOUND;
    /// What was to be made is there already.
    already_exists = ALREADY_EXISTS;
    /// The caller is known and may not.
    permission_denied = PERMISSION_DENIED;
    /// A limit is reached.
    resource_exhausted = RESOURCE_EXHAUSTED;
    /// The system is not in the state that the request needs.
    failed_precondition = FAILED_PRECONDITION;
    /// It was given up because of others; trying again from the start may work.
    aborted = ABORTED;
    /// Past the end of what there is.
    out_of_range = OUT_OF_RANGE;
    /// There is no such method.
    unimplemented = UNIMPLEMENTED;
    /// Something that must hold does not.
    internal = INTERNAL;
    /// It cannot be reached now.
    unavailable = UNAVAILABLE;
    /// What was kept is gone or damaged.
    data_loss = DATA_LOSS;
    /// The caller is not known.
    unauthenticated = UNAUTHENTICATED;
}

impl Error {
    /// An error of this code.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            record: Box::new(ErrorRecord::new(code, Text::from(message.into()))),
        }
    }

    /// Says how long to wait before trying again; whole milliseconds, rounded up.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.record.retry_after = Some(after);
        self
    }

    /// Adds a detail for programs. At most 32 of them can be sent.
    #[must_use]
    pub fn with_detail(mut self, kind: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.record.details.push(remus_wire::ErrorDetail {
            kind: Text::from(kind.into()),
            value: value.into(),
        });
        self
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        self.record.code
    }

    /// What happened, for people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.record.message
    }

    /// How long to wait before trying again, if the peer said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.record.retry_after
    }

    /// What happened, for programs.
    pub fn details(&self) -> impl Iterator<Item = ErrorDetail> + '_ {
        self.record.details.iter().map(|detail| ErrorDetail {
            kind: detail.kind.to_string(),
            value: detail.value.clone(),
        })
    }

    /// Whether the same call may succeed if it is made again, here or elsewhere.
    ///
    /// It says nothing about whether the call ran: only calls that are idempotent may be repeated blindly.
    /// [`Error::was_refused`] says that it did not run.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.record.code.is_retryable()
    }

    /// Whether the peer is known not to have run the call, so that repeating it is always safe.
    #[must_use]
    pub fn was_refused(&self) -> bool {
        self.record.code.is_refusal()
    }

    pub(crate) fn into_record(self) -> ErrorRecord {
        *self.record
    }
}

impl From<ErrorRecord> for Error {
    fn from(record: ErrorRecord) -> Self {
        Self {
            record: Box::new(record),
        }
    }
}

impl From<CloseReason> for Error {
    fn from(reason: CloseReason) -> Self {
        reason.to_record().into()
    }
}

impl From<SendError> for Error {
    fn from(error: SendError) -> Self {
        let code = match &error {
            SendError::Stopped(code) if *code != ErrorCode::OK => *code,
            SendError::MessageTooLarge { .. } => ErrorCode::MESSAGE_TOO_LARGE,
            SendError::Closed => ErrorCode::LOSS_OF_SESSION,
            SendError::Blocked => ErrorCode::QUEUE_FULL,
            _ => ErrorCode::CANCELLED,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ConnectError> for Error {
    fn from(error: ConnectError) -> Self {
        let code = match &error {
            ConnectError::Url { .. } | ConnectError::Config(_) => ErrorCode::INVALID_ARGUMENT,
            ConnectError::Quic { source, .. } if is_certificate(source) => {
                ErrorCode::UNAUTHENTICATED
            }
            ConnectError::Tcp { source, .. } if is_certificate_over_tcp(source) => {
                ErrorCode::UNAUTHENTICATED
            }
            ConnectError::Refused { status, .. } => remus_transport::code_of_status(*status),
            ConnectError::Http3 {
                source: remus_http3::Error::Refused { status, .. },
                ..
            } if status.as_u16() == 403 => ErrorCode::PERMISSION_DENIED,
            _ => ErrorCode::UNAVAILABLE,
        };
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            source = cause.source();
        }
        Self::new(code, text)
    }
}

/// Whether TLS refused the peer's certificate: trying again would not help. RFC 8446 §6 numbers the alerts.
fn is_certificate(error: &quinn::ConnectionError) -> bool {
    const CERTIFICATE_ALERTS: std::ops::RangeInclusive<u64> = 0x100 + 42..=0x100 + 48;
    match error {
        quinn::ConnectionError::TransportError(error) => {
            CERTIFICATE_ALERTS.contains(&u64::from(error.code))
        }
        _ => false,
    }
}

/// As [`is_certificate`], where TLS is on TCP.
fn is_certificate_over_tcp(error: &std::io::Error) -> bool {
    error
        .get_ref()
        .and_then(|error| error.downcast_ref::<rustls::Error>())
        .is_some_and(|error| matches!(error, rustls::Error::InvalidCertificate(_)))
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message().is_empty() {
            write!(f, "{}", self.code())
        } else {
            write!(f, "{}: {}", self.code(), self.message())
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("code", &self.code())
            .field("message", &self.message())
            .finish_non_exhaustive()
    }
}

impl std::error::Error for Error {}
