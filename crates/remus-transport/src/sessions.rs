//! Where an acceptor finds a session again whose client comes back on another carrier. Spec: core §3.5.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use remus_session::Grant;
use remus_wire::{AuthMethod, AuthenticationRecord, ResumeToken, Text};
use rustls::crypto::SecureRandom;

use crate::connection::{Core, Inner};

/// Sessions that wait for another carrier at a time. One more ends with its carrier, as if it could not be resumed.
///
/// Each holds what it has sent and nobody acknowledged (8 MiB at most, as a rule some KiB) for a minute by default.
pub const SUSPENDED_MAX: usize = 4096;

/// The sessions of an acceptor that can be resumed, by the tokens that resume them.
#[derive(Default)]
pub struct Sessions {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// The table's own hash has a secret, so nobody learns a token by how long a wrong one takes.
    by_token: HashMap<[u8; 32], Weak<Inner>>,
    parked: usize,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sessions that wait for another carrier now.
    #[must_use]
    pub fn suspended(&self) -> usize {
        self.lock().parked
    }

    /// Tokens by which a session can be found now.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.lock().by_token.len()
    }

    pub(crate) fn find(&self, token: ResumeToken) -> Option<Arc<Inner>> {
        self.lock().by_token.get(&token.0)?.upgrade()
    }

    /// Brings the table up to what the session can be resumed by now: nothing, once it has ended.
    pub(crate) fn update(&self, inner: &Arc<Inner>, core: &mut Core) {
        let over = core.closed.is_some() || core.session.state().is_closed();
        let mut tokens = Vec::new();
        if !over {
            tokens.push(core.session.resume_token());
            tokens.extend(core.session.unconfirmed_token());
            tokens.retain(|token| !token.is_none());
        }
        let parks = core.session.is_suspended();
        if core.known_by == tokens && core.is_parked == parks {
            return;
        }
        let mut table = self.lock();
        for token in core.known_by.drain(..) {
            if !tokens.contains(&token) {
                table.by_token.remove(&token.0);
            }
        }
        for token in &tokens {
            table.by_token.insert(token.0, Arc::downgrade(inner));
        }
        core.known_by = tokens;
        match (core.is_parked, parks) {
            (false, true) => table.parked = table.parked.saturating_add(1),
            (true, false) => table.parked = table.parked.saturating_sub(1),
            _ => {}
        }
        core.is_parked = parks;
    }

    /// The session is gone without having ended, because its runtime stopped.
    pub(crate) fn forget(&self, core: &mut Core) {
        let mut table = self.lock();
        for token in core.known_by.drain(..) {
            table.by_token.remove(&token.0);
        }
        if std::mem::take(&mut core.is_parked) {
            table.parked = table.parked.saturating_sub(1);
        }
    }
}

/// Whom a session belongs to, as its acceptor has been convinced. Two are the same where nobody else can have made the acceptor say it.
///
/// The default is a client that said nothing about itself: all of them are the same, and it is the token alone that tells theirs apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    authenticated: bool,
    known: Option<Box<Known>>,
}

/// By what a client is told from others.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    /// The acceptor names it.
    Subject(Text),
    /// The acceptor grants it these claims.
    Claims(Text),
    /// The acceptor says nothing about who it is, so nobody else is who does not present the same.
    Record(AuthenticationRecord),
}

impl Identity {
    /// Who was granted `grant` for `record`.
    pub(crate) fn of(record: &AuthenticationRecord, grant: &Grant) -> Self {
        let known = if !grant.subject.is_empty() {
            Some(Known::Subject(grant.subject.clone()))
        } else if !grant.claims.is_empty() {
            Some(Known::Claims(grant.claims.clone()))
        } else if record.method != AuthMethod::NONE {
            Some(Known::Record(AuthenticationRecord {
                method: record.method,
                // Copied, so that it holds no buffer of the carrier's.
                token: Bytes::copy_from_slice(&record.token),
                claims: Text::from(record.claims.as_str()),
            }))
        } else {
            None
        };
        Self {
            authenticated: grant.authenticated,
            known: known.map(Box::new),
        }
    }
}

impl std::fmt::Debug for Sessions {
    /// Without the tokens, which are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions")
            .field("suspended", &self.suspended())
            .finish_non_exhaustive()
    }
}

/// A token that nobody can foresee; [`ResumeToken::NONE`], with which nothing is resumed, where the system gives no randomness.
pub(crate) fn new_token() -> ResumeToken {
    let mut token = [0; 32];
    let random: &dyn SecureRandom = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    match random.fill(&mut token) {
        Ok(()) => ResumeToken(token),
        Err(_) => ResumeToken::NONE,
    }
}
