//! Which carrier a client takes: the ladder is a preference, not a queue. Spec: carriers §11, core §3.5.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use remus_session::SessionConfig;
use tracing::debug;

use crate::connection::Connection;
use crate::dial::{self, Dialer};
use crate::driver::{self, Dial, Handler, pause};
use crate::link::{Carrier, Link};
use crate::webtransport::{ConnectError, Target};

/// Head start of each carrier over the next one: longer than a handshake on nearly every path, shorter than what people notice.
pub const HEAD_START: Duration = Duration::from_millis(400);

/// The pause before a client on a lower carrier tries those above it: at first, and at most. It doubles.
const CLIMB_FIRST: Duration = Duration::from_secs(5);
const CLIMB_LONGEST: Duration = Duration::from_secs(300);

/// Carriers to one acceptor, raced in an order of preference.
pub struct Ladder {
    dialer: Dialer,
    target: Target,
    /// The preferred one first.
    carriers: Vec<Carrier>,
    head_start: Duration,
    patience: Duration,
    /// What won the last race: it is the first of the next one. The client's own network may have changed, and then it loses.
    winner: Mutex<Option<Carrier>>,
}

impl Ladder {
    /// Races `carriers` to `target`, the preferred one first; each has a head start of `head_start` over the next, and an attempt takes
    /// `patience` at most.
    #[must_use]
    pub fn new(
        dialer: Dialer,
        target: Target,
        carriers: Vec<Carrier>,
        head_start: Duration,
        patience: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            dialer,
            target,
            carriers,
            head_start,
            patience,
            winner: Mutex::new(None),
        })
    }

    /// What is dialled with.
    #[must_use]
    pub fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// Where to.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Connects by whichever carrier is there first, and starts a client's session on it, which outlives the carrier where the acceptor
    /// agrees.
    ///
    /// Returns as soon as the session's first flight can leave, which may be before the peer has answered.
    /// [`Connection::active`] waits for its answer.
    ///
    /// # Errors
    ///
    /// [`ConnectError`]: that of the most preferred carrier, if all fail.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropped before it completes, it leaves no connection behind.
    pub async fn connect(
        self: &Arc<Self>,
        config: SessionConfig,
        handler: Arc<dyn Handler>,
    ) -> Result<Connection, ConnectError> {
        let link = self.race(self.order()).await?;
        let dialler = Arc::clone(self) as Arc<dyn Dial>;
        Ok(driver::client(link, config, handler, Some(dialler))?)
    }

    /// The order of the next race: the last winner, then the others by preference.
    fn order(&self) -> Vec<Carrier> {
        let winner = *self.winner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut order = self.carriers.clone();
        let at = order.iter().position(|carrier| Some(*carrier) == winner);
        if let Some(front) = at.and_then(|at| order.get_mut(..=at)) {
            front.rotate_right(1);
        }
        order
    }

    /// The first link that is there. Each carrier joins when the one before has failed, or had its head start.
    async fn race(&self, order: Vec<Carrier>) -> Result<Link, ConnectError> {
        let mut waiting = order.into_iter();
        let mut running = FuturesUnordered::new();
        let mut failed: Option<(usize, ConnectError)> = None;
        loop {
            running.extend(waiting.next().map(|carrier| self.attempt(carrier)));
            loop {
                let more = waiting.len() > 0;
                let next = running.next();
                let outcome = if more {
                    let Ok(outcome) = tokio::time::timeout(self.head_start, next).await else {
                        break;
                    };
                    outcome
                } else {
                    next.await
                };
                match outcome {
                    Some((carrier, Ok(link))) => {
                        debug!(%carrier, "connected");
                        *self.winner.lock().unwrap_or_else(PoisonError::into_inner) = Some(carrier);
                        return Ok(link);
                    }
                    Some((carrier, Err(error))) => {
                        debug!(%carrier, %error, "not connected");
                        let rank = self.rank(carrier);
                        if failed.as_ref().is_none_or(|(before, _)| rank < *before) {
                            failed = Some((rank, error));
                        }
                        if more {
                            break;
                        }
                    }
                    None => {
                        let nothing = || self.timed_out();
                        return Err(failed.map_or_else(nothing, |(_, error)| error));
                    }
                }
            }
        }
    }

    async fn attempt(&self, carrier: Carrier) -> (Carrier, Result<Link, ConnectError>) {
        let opening = dial::open(&self.dialer, carrier, &self.target);
        let outcome = tokio::time::timeout(self.patience, opening).await;
        (carrier, outcome.unwrap_or_else(|_| Err(self.timed_out())))
    }

    fn timed_out(&self) -> ConnectError {
        ConnectError::Timeout {
            authority: self.target.authority(),
            after: self.patience,
        }
    }

    fn rank(&self, carrier: Carrier) -> usize {
        let at = self.carriers.iter().position(|one| *one == carrier);
        at.unwrap_or(usize::MAX)
    }
}

impl Dial for Ladder {
    fn dial(self: Arc<Self>) -> Pin<Box<dyn Future<Output = Link> + Send>> {
        Box::pin(async move {
            let mut failed = 0_u32;
            loop {
                match self.race(self.order()).await {
                    Ok(link) => return link,
                    Err(error) => debug!(%error, "no carrier for the session"),
                }
                tokio::time::sleep(pause(failed)).await;
                failed = failed.saturating_add(1);
            }
        })
    }

    fn open(
        self: Arc<Self>,
        carrier: Carrier,
    ) -> Pin<Box<dyn Future<Output = Result<Link, ConnectError>> + Send>> {
        Box::pin(async move { self.attempt(carrier).await.1 })
    }

    fn climb(self: Arc<Self>, from: Carrier) -> Option<Pin<Box<dyn Future<Output = Link> + Send>>> {
        let above: Vec<Carrier> = self
            .carriers
            .iter()
            .copied()
            .take_while(|carrier| *carrier != from)
            .collect();
        if above.is_empty() {
            return None;
        }
        Some(Box::pin(async move {
            let mut wait = CLIMB_FIRST;
            loop {
                tokio::time::sleep(wait).await;
                match self.race(above.clone()).await {
                    Ok(link) => return link,
                    Err(error) => debug!(%error, "still no carrier that is preferred"),
                }
                wait = wait.saturating_mul(2).min(CLIMB_LONGEST);
            }
        }))
    }
}

impl std::fmt::Debug for Ladder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ladder")
            .field("target", &self.target)
            .field("carriers", &self.carriers)
            .finish_non_exhaustive()
    }
}
