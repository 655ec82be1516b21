//! `remus.v2.Sessions`: the sessions of a node, and what carries them.
//!
//! | method | takes | answers |
//! | --- | --- | --- |
//! | `List` | `{}` | JSON [`SessionListing`] |
//! | `Drop` | JSON [`DropRequest`] | JSON [`Dropped`] |
//! | `Switch` | JSON [`MoveRequest`] | JSON [`remus::SwitchAnswer`] |
//!
//! Nothing is lost by a carrier that is dropped or switched: the session goes on over the next one. Who may call the node at all
//! may call this, as everything that a node serves.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use remus::{
    CARRIER_SERVICE, Carrier, Client, Connection, ConnectionStatus, Connections, Error, ErrorCode,
    Json, OpenSession, Request, Response, Service, SwitchAnswer, SwitchRequest,
};
use serde::{Deserialize, Serialize};

/// Full name of the service.
pub const SESSIONS_SERVICE: &str = "remus.v2.Sessions";

/// Sessions in one answer: about 200 KiB of JSON, within what one message takes.
const LISTED_MAX: usize = 1000;

/// How long a client may take to go on over another carrier: longer than it tries to open one, which is 10 s by default.
const SWITCH_MAX: Duration = Duration::from_secs(15);

/// The sessions of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionListing {
    /// Those that are open or suspended, by number; the first 1,000.
    pub sessions: Vec<SessionDescription>,
    /// Sessions there are, listed or not.
    pub session_count: usize,
}

/// One session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionDescription {
    /// What it is called by here; given once.
    pub number: u64,
    /// Where it comes from now, or came from last.
    pub address: SocketAddr,
    /// What carries it, or carried it last.
    pub carrier: String,
    /// When it began, in s since the Unix epoch.
    pub since: u64,
    /// Smoothed round trip, in µs; `None` before it was measured.
    pub rtt_us: Option<u64>,
    /// How often it went on over another carrier, or the same one again.
    pub resumptions: u64,
    /// Whether it waits for a carrier.
    pub suspended: bool,
    /// Whether it is the one that asks.
    pub own: bool,
}

/// The request of `Drop`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DropRequest {
    /// Whose carrier to drop; `None`: that of every session but the one that asks.
    pub session: Option<u64>,
}

/// The answer of `Drop`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Sessions that had a carrier, and have lost it.
    pub dropped: usize,
}

/// The request of `Switch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveRequest {
    /// Whose client is asked.
    pub session: u64,
    /// The carrier that it is to go on over: `webtransport`, `websocket`, `http-poll` or `http-events`.
    pub to: String,
}

/// The service, which knows its shards once they run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions(Arc<OnceLock<Vec<Connections>>>);

impl Sessions {
    /// Puts in the shards. Only the first time counts.
    pub(crate) fn fill(&self, shards: Vec<Connections>) {
        // It is called once, by the start of the node.
        let _ = self.0.set(shards);
    }

    pub(crate) fn service(&self) -> Service {
        let (list, drop, switch) = (self.clone(), self.clone(), self.clone());
        Service::new(SESSIONS_SERVICE)
            .describe("The node's sessions, and what carries them.")
            .unary("List", Json, move |request: Request<Option<Empty>>| {
                let listing = list.list(request.peer());
                async move { listing.await.map(Response::new) }
            })
            .unary("Drop", Json, move |request: Request<DropRequest>| {
                let dropping = drop.drop(request.peer(), request.get_ref().session);
                async move { dropping.await.map(Response::new) }
            })
            .unary("Switch", Json, move |request: Request<MoveRequest>| {
                let sessions = switch.clone();
                async move {
                    sessions
                        .switch(request.into_inner())
                        .await
                        .map(Response::new)
                }
            })
    }

    /// All sessions, by number. Each shard counts its own, so the numbers of several are interleaved.
    fn all(&self) -> Result<Vec<(u64, OpenSession)>, Error> {
        let shards = self
            .0
            .get()
            .ok_or_else(|| Error::unavailable("the node is still starting"))?;
        let count = u64::try_from(shards.len()).unwrap_or(u64::MAX);
        let mut all: Vec<_> = (1_u64..)
            .zip(shards)
            .flat_map(|(first, shard)| {
                let number = move |session: &OpenSession| {
                    u64::from(session.number)
                        .saturating_mul(count)
                        .saturating_add(first)
                };
                let sessions = shard.sessions().into_iter();
                sessions.map(move |session| (number(&session), session))
            })
            .collect();
        all.sort_by_key(|(number, _)| *number);
        Ok(all)
    }

    fn find(&self, number: u64) -> Result<Connection, Error> {
        let mut all = self.all()?.into_iter();
        all.find(|(one, _)| *one == number)
            .map(|(_, session)| session.connection)
            .ok_or_else(|| Error::not_found(format!("there is no session {number}")))
    }

    fn list(
        &self,
        caller: Option<&Client>,
    ) -> impl Future<Output = Result<SessionListing, Error>> + Send + use<> {
        let (all, caller) = (self.all(), caller.cloned());
        async move {
            let (mut all, caller) = (all?, place(caller).await);
            let session_count = all.len();
            all.truncate(LISTED_MAX);
            let describe = |(number, session): &(u64, OpenSession)| {
                let connection = &session.connection;
                let micros = |path: remus::PathEstimate| u64::try_from(path.rtt.as_micros()).ok();
                let since = session.opened.duration_since(UNIX_EPOCH);
                SessionDescription {
                    number: *number,
                    address: connection.remote_address(),
                    carrier: connection.carrier().name().to_owned(),
                    since: since.unwrap_or_default().as_secs(),
                    rtt_us: connection.path().and_then(micros),
                    resumptions: connection.statistics().resumptions,
                    suspended: is_suspended(connection),
                    own: Some(at(connection)) == caller,
                }
            };
            Ok(SessionListing {
                sessions: all.iter().map(describe).collect(),
                session_count,
            })
        }
    }

    fn drop(
        &self,
        caller: Option<&Client>,
        number: Option<u64>,
    ) -> impl Future<Output = Result<Dropped, Error>> + Send + use<> {
        let chosen = match number {
            Some(number) => self.find(number).map(|connection| vec![connection]),
            None => self.all().map(|all| {
                let connections = all.into_iter().map(|(_, session)| session.connection);
                connections.collect()
            }),
        };
        let caller = caller.filter(|_| number.is_none()).cloned();
        async move {
            let (chosen, caller) = (chosen?, place(caller).await);
            let mut dropped: usize = 0;
            for connection in chosen {
                if Some(at(&connection)) != caller && !is_suspended(&connection) {
                    connection.drop_carrier();
                    dropped = dropped.saturating_add(1);
                }
            }
            Ok(Dropped { dropped })
        }
    }

    async fn switch(&self, request: MoveRequest) -> Result<SwitchAnswer, Error> {
        let MoveRequest { session, to } = request;
        if Carrier::from_name(&to).is_none() {
            return Err(Error::invalid_argument(format!(
                "there is no carrier {to:?}"
            )));
        }
        let client = Client::from(self.find(session)?);
        let answer = client
            .method(&format!("{CARRIER_SERVICE}/Switch"))
            .timeout(SWITCH_MAX)
            .unary::<SwitchRequest, SwitchAnswer>(Json, &SwitchRequest { to })
            .await;
        match answer {
            Ok(answer) => Ok(answer.into_inner()),
            Err(error) if error.code() == ErrorCode::UNIMPLEMENTED => {
                Err(Error::failed_precondition(format!(
                    "the client of session {session} cannot be asked to switch"
                )))
            }
            Err(error) => Err(error),
        }
    }
}

fn is_suspended(connection: &Connection) -> bool {
    matches!(connection.status(), ConnectionStatus::Suspended { .. })
}

/// What tells a session from others while it has a carrier; sessions over HTTP requests may share a connection, and then count
/// as one.
fn at(connection: &Connection) -> (SocketAddr, Carrier) {
    (connection.remote_address(), connection.carrier())
}

async fn place(caller: Option<Client>) -> Option<(SocketAddr, Carrier)> {
    let connection = caller?.connection().await.ok()?;
    Some(at(&connection))
}

/// A request that asks for nothing in particular.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}
