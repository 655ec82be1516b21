//! The lifecycle of a session: seven states, one table. Spec: core §2.
//!
//! Records are pipelined, so a state says what this side has *heard*, not what it has sent.

use core::fmt;

/// Where a session stands in its lifecycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Nothing heard yet; the peer's version record comes next.
    VersionNegotiation,
    /// Versions agree; the peer's capability record comes next.
    CapabilityExchange,
    /// Limits are known; who the client is gets decided.
    Authentication,
    /// The client is known; its query, and the answer to it, come next.
    ServiceDiscovery,
    /// The directory is known; the schema offer, and the answer to it, come next.
    SchemaExchange,
    /// Calls flow both ways.
    Active,
    /// One side has said that it goes; accepted calls finish.
    GracefulShutdown,
    /// Over. Nothing moves any more.
    Closed,
}

/// What moves a session from one state to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// The peer's offer was acceptable, or our offer was accepted.
    Version,
    /// The peer's capability record arrived.
    Capability,
    /// A challenge was sent or arrived: authentication takes one more turn.
    Challenge,
    /// The client's identity is settled: granted by us, or granted to us.
    Identity,
    /// The client's query was answered: by us, or to us.
    Directory,
    /// The client's schema offer was answered: by us, or to us.
    Schema,
    /// A token was renewed in place.
    Renewal,
    /// Either side announced a graceful shutdown.
    Shutdown,
    /// The last accepted call has finished, or the grace has passed.
    Drained,
    /// A refusal, a protocol error, silence, or the loss of the carrier.
    Failed,
}

/// The table has no entry for this pair: the peer sent a record out of turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input} is not expected in {state}")]
pub struct UnexpectedInput {
    /// The state in which it came.
    pub state: State,
    /// What came.
    pub input: Input,
}

impl State {
    /// Every state, in lifecycle order.
    pub const ALL: [Self; 8] = [
        Self::VersionNegotiation,
        Self::CapabilityExchange,
        Self::Authentication,
        Self::ServiceDiscovery,
        Self::SchemaExchange,
        Self::Active,
        Self::GracefulShutdown,
        Self::Closed,
    ];

    /// The whole table of core §2: the only place that names a next state.
    ///
    /// # Errors
    ///
    /// [`UnexpectedInput`] where the table is empty; the session then fails with UNEXPECTED_MESSAGE.
    pub fn on(self, input: Input) -> Result<Self, UnexpectedInput> {
        Ok(match (self, input) {
            (Self::VersionNegotiation, Input::Version) => Self::CapabilityExchange,
            (Self::CapabilityExchange, Input::Capability) => Self::Authentication,
            (Self::Authentication, Input::Challenge) => Self::Authentication,
            (Self::Authentication, Input::Identity) => Self::ServiceDiscovery,
            (Self::ServiceDiscovery, Input::Directory) => Self::SchemaExchange,
            (Self::SchemaExchange, Input::Schema) => Self::Active,
            (
                Self::Active | Self::GracefulShutdown,
                Input::Directory | Input::Schema | Input::Renewal | Input::Challenge,
            ) => self,
            (Self::Active | Self::GracefulShutdown, Input::Shutdown) => Self::GracefulShutdown,
            (Self::GracefulShutdown, Input::Drained) => Self::Closed,
            (_, Input::Failed) => Self::Closed,
            (state, input) => return Err(UnexpectedInput { state, input }),
        })
    }

    /// Whether the handshake is behind us and the session is not over.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Active | Self::GracefulShutdown)
    }

    /// Whether the session has ended.
    #[must_use]
    pub fn is_closed(self) -> bool {
        self == Self::Closed
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::VersionNegotiation => "version negotiation",
            Self::CapabilityExchange => "capability exchange",
            Self::Authentication => "authentication",
            Self::ServiceDiscovery => "service discovery",
            Self::SchemaExchange => "schema exchange",
            Self::Active => "active communication",
            Self::GracefulShutdown => "graceful shutdown",
            Self::Closed => "closed",
        })
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "a version record",
            Self::Capability => "a capability record",
            Self::Challenge => "a challenge",
            Self::Identity => "an identity",
            Self::Directory => "a discovery record",
            Self::Schema => "a schema record",
            Self::Renewal => "a token renewal",
            Self::Shutdown => "a shutdown",
            Self::Drained => "the end of the last call",
            Self::Failed => "a failure",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table as the specification prints it (core §2); a change here is a change of the protocol.
    ///
    /// Spec: CORE-1
    #[test]
    fn table_is_the_one_of_the_specification() {
        const INPUTS: [Input; 10] = [
            Input::Version,
            Input::Capability,
            Input::Challenge,
            Input::Identity,
            Input::Directory,
            Input::Schema,
            Input::Renewal,
            Input::Shutdown,
            Input::Drained,
            Input::Failed,
        ];
        // One letter a next state, `-` for an error, in the order of INPUTS.
        let expected = [
            "C--------X",
            "-A-------X",
            "--AS-----X",
            "----D----X",
            "-----V---X",
            "--V-VVVG-X",
            "--G-GGGGXX",
            "---------X",
        ];
        for (state, row) in State::ALL.into_iter().zip(expected) {
            let got: String = INPUTS
                .into_iter()
                .map(|input| match state.on(input) {
                    Ok(State::VersionNegotiation) => 'N',
                    Ok(State::CapabilityExchange) => 'C',
                    Ok(State::Authentication) => 'A',
                    Ok(State::ServiceDiscovery) => 'S',
                    Ok(State::SchemaExchange) => 'D',
                    Ok(State::Active) => 'V',
                    Ok(State::GracefulShutdown) => 'G',
                    Ok(State::Closed) => 'X',
                    Err(_) => '-',
                })
                .collect();
            assert_eq!(got, row, "row of {state}");
        }
    }
}
