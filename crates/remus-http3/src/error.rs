//! Errors of connections, requests and sessions. Those of single streams are in `stream`.

use http::{HeaderMap, StatusCode};

use crate::{Code, fault::Fault, head::HeadError, session::SessionClosed};

/// Why an operation on a connection, a request or a session failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The QUIC connection ended: the peer or the network, or this side closed it.
    #[error("connection ended: {0}")]
    Lost(#[from] quinn::ConnectionError),
    /// The peer broke a rule of HTTP/3 or WebTransport and was told so with the code in the fault.
    #[error("peer broke a rule: {0}")]
    Peer(#[from] Fault),
    /// The peer abandoned the stream of this request or session, with an HTTP/3 code.
    #[error("peer reset the stream: {0}")]
    Reset(Code),
    /// The peer wants no more of this message body.
    #[error("peer stopped the body: {0}")]
    Stopped(Code),
    /// The server answered the request for a session with something else than success.
    #[error("session refused with status {status}")]
    Refused {
        /// The status of the answer.
        status: StatusCode,
        /// The fields of the answer.
        headers: Box<HeaderMap>,
    },
    /// The session is closed, by either side.
    #[error("session closed: {0}")]
    SessionClosed(SessionClosed),
    /// The server does not offer what is asked for.
    #[error("server does not offer {0}")]
    NotOffered(&'static str),
    /// The peer announced that it takes no more requests on this connection; another may be tried.
    #[error("peer is going away")]
    GoingAway,
    /// As many sessions are open as this side or the peer allows on one connection.
    #[error("{max} sessions are open, which is the limit")]
    TooManySessions {
        /// The limit that was reached.
        max: usize,
    },
    /// The head that the application made cannot be sent.
    #[error("head cannot be sent: {0}")]
    Head(#[from] HeadError),
    /// A protocol name that the application gave is not printable ASCII.
    #[error("protocol name is not printable ASCII")]
    ProtocolName,
    /// The body was finished, or cut off by an earlier error: a misuse by the application.
    #[error("body is already finished")]
    BodyFinished,
}

impl From<quinn::WriteError> for Error {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::Stopped(code) => Self::Stopped(code.into()),
            quinn::WriteError::ConnectionLost(error) => Self::Lost(error),
            quinn::WriteError::ClosedStream => Self::BodyFinished,
            // Early data that the server refused went with its connection attempt.
            quinn::WriteError::ZeroRttRejected => Self::Lost(quinn::ConnectionError::Reset),
        }
    }
}

impl From<quinn::ReadError> for Error {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::Reset(code) => Self::Reset(code.into()),
            quinn::ReadError::ConnectionLost(error) => Self::Lost(error),
            quinn::ReadError::ClosedStream | quinn::ReadError::IllegalOrderedRead => {
                Self::Reset(Code::H3_REQUEST_CANCELLED)
            }
            quinn::ReadError::ZeroRttRejected => Self::Lost(quinn::ConnectionError::Reset),
        }
    }
}
