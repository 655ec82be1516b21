//! What a peer did wrong, with the code that it is told. Spec: RFC 9114 §8.

use crate::Code;

/// How much a [`Fault`] ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The whole connection: the peers no longer agree on its state.
    Connection,
    /// One stream; everything else goes on.
    Stream,
}

/// A rule of HTTP/3, QPACK or WebTransport that the peer broke. Never a local bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail} ({code})")]
pub struct Fault {
    /// The code sent to the peer.
    pub code: Code,
    /// What the fault ends.
    pub scope: Scope,
    /// The rule, as a fragment of text; also sent to the peer when the connection ends by it.
    pub detail: &'static str,
}

impl Fault {
    /// A fault that ends the connection.
    pub(crate) const fn connection(code: Code, detail: &'static str) -> Self {
        Self {
            code,
            scope: Scope::Connection,
            detail,
        }
    }

    /// A fault that ends one stream.
    pub(crate) const fn stream(code: Code, detail: &'static str) -> Self {
        Self {
            code,
            scope: Scope::Stream,
            detail,
        }
    }
}
