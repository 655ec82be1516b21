//! `remus.v2.Carrier`: a client lets its server ask it to go on over another carrier.
//!
//! | method | takes | answers |
//! | --- | --- | --- |
//! | `Switch` | JSON [`SwitchRequest`] | JSON [`SwitchAnswer`], from the new carrier |
//!
//! Only a client can open a carrier, so whoever watches over the server asks by a call. What the client was told not to use, it
//! does not use for this either.

use std::sync::Arc;

use remus_transport::{Carrier, Connection, SwitchError};
use serde::{Deserialize, Serialize};

use crate::{Client, Error, Json, Request, Response, Service};

/// Full name of the service that every [`Client`] made by its builder serves to its server.
pub const CARRIER_SERVICE: &str = "remus.v2.Carrier";

/// The request of `Switch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchRequest {
    /// The [name](Carrier::name) of the carrier to go on over.
    pub to: String,
}

/// The answer of `Switch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchAnswer {
    /// The name of the carrier in use now.
    pub carrier: String,
}

/// The service of a client that uses `allowed`.
pub(crate) fn service(allowed: &[Carrier]) -> Service {
    let allowed: Arc<[Carrier]> = allowed.into();
    Service::new(CARRIER_SERVICE)
        .describe("Goes on over another carrier.")
        .unary("Switch", Json, move |request: Request<SwitchRequest>| {
            let allowed = Arc::clone(&allowed);
            async move {
                let peer = request.peer().cloned();
                let to = request.into_inner().to;
                let carrier = Carrier::from_name(&to).ok_or_else(|| {
                    Error::invalid_argument(format!("there is no carrier {to:?}"))
                })?;
                if !allowed.contains(&carrier) {
                    return Err(Error::failed_precondition(format!(
                        "this client was told not to use {carrier}"
                    )));
                }
                let peer = peer.ok_or_else(|| Error::internal("the request came from nowhere"))?;
                let connection = peer.connection().await?;
                switch(&connection, carrier).await?;
                let carrier = connection.carrier().name().to_owned();
                Ok(Response::new(SwitchAnswer { carrier }))
            }
        })
}

async fn switch(connection: &Connection, carrier: Carrier) -> Result<(), Error> {
    if connection.carrier() == carrier {
        return Ok(());
    }
    connection
        .switch_carrier(carrier)
        .await
        .map_err(|error| match error {
            SwitchError::Connect(error) => error.into(),
            error => Error::failed_precondition(error.to_string()),
        })
}

/// A client of one connection that somebody else looks after: it does not connect again.
impl From<Connection> for Client {
    fn from(connection: Connection) -> Self {
        Self::fixed(connection)
    }
}
