//! Which session a stream or datagram belongs to, and what waits for a session to come.
//! Spec: draft-ietf-webtrans-http3 §4.5 and §4.6.
//!
//! Invariant: on a server, the ID of every client-initiated bidirectional stream is either below
//! `next_bi` (it was taken from QUIC) or not yet seen; the undecided ones among the former are in
//! `undecided`.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{queue::Datagrams, reader::Reader, session::SessionShared};

/// Where a stream or datagram goes.
pub(crate) enum Route {
    /// To this session.
    Session(Arc<SessionShared>),
    /// Nowhere yet: its CONNECT request may still come.
    Early,
    /// Nowhere: its session ended, or its stream is no session.
    Gone,
}

/// A stream whose session is not known yet.
#[derive(Debug)]
pub(crate) struct EarlyStream {
    pub(crate) session_id: u64,
    pub(crate) send: Option<quinn::SendStream>,
    pub(crate) reader: Reader,
    pub(crate) deadline: Instant,
}

/// The tables of one connection.
#[derive(Debug)]
pub(crate) struct Routing {
    is_server: bool,
    sessions: HashMap<u64, Arc<SessionShared>>,
    next_bi: u64,
    undecided: BTreeSet<u64>,
    early_streams: VecDeque<EarlyStream>,
    early_datagrams: Datagrams<u64>,
    max_early_streams: usize,
}

impl Routing {
    pub(crate) fn new(
        is_server: bool,
        max_early_streams: usize,
        max_early_datagram_bytes: usize,
    ) -> Self {
        Self {
            is_server,
            sessions: HashMap::new(),
            next_bi: 0,
            undecided: BTreeSet::new(),
            early_streams: VecDeque::new(),
            early_datagrams: Datagrams::new(max_early_datagram_bytes),
            max_early_streams,
        }
    }

    /// Notes that request stream `id` was taken from QUIC, and is not decided.
    pub(crate) fn taken(&mut self, id: u64) {
        self.next_bi = self.next_bi.max(id.saturating_add(4));
        self.undecided.insert(id);
    }

    /// ID of the first request stream that was not taken from QUIC.
    pub(crate) fn next_request(&self) -> u64 {
        self.next_bi
    }

    /// Notes that stream `id` is no session; what waited for it.
    pub(crate) fn decided(&mut self, id: u64) -> Vec<EarlyStream> {
        self.undecided.remove(&id);
        drop(self.early_datagrams.take(id));
        self.take_early_streams(id)
    }

    /// Adds a session; what waited for it.
    pub(crate) fn add(&mut self, session: &Arc<SessionShared>) -> (Vec<EarlyStream>, Vec<Bytes>) {
        let id = session.id;
        self.undecided.remove(&id);
        self.sessions.insert(id, session.clone());
        (self.take_early_streams(id), self.early_datagrams.take(id))
    }

    fn take_early_streams(&mut self, id: u64) -> Vec<EarlyStream> {
        let (found, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.early_streams)
            .into_iter()
            .partition(|early| early.session_id == id);
        self.early_streams = rest.into();
        found
    }

    /// Removes a session that is done with.
    pub(crate) fn remove(&mut self, id: u64) {
        self.sessions.remove(&id);
    }

    /// How many sessions there are, those included that are being closed.
    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// All sessions.
    pub(crate) fn sessions(&self) -> Vec<Arc<SessionShared>> {
        self.sessions.values().cloned().collect()
    }

    /// Where something for session `id` goes.
    pub(crate) fn route(&self, id: u64) -> Route {
        match self.sessions.get(&id) {
            Some(session) if session.has_ended() => Route::Gone,
            Some(session) => Route::Session(session.clone()),
            None if self.is_server && (id >= self.next_bi || self.undecided.contains(&id)) => {
                Route::Early
            }
            None => Route::Gone,
        }
    }

    /// Keeps a stream until its session comes, or gives it back for want of room.
    pub(crate) fn keep_stream(&mut self, early: EarlyStream) -> Result<(), EarlyStream> {
        if self.early_streams.len() >= self.max_early_streams {
            return Err(early);
        }
        self.early_streams.push_back(early);
        Ok(())
    }

    /// Keeps a datagram until its session comes; without room, the oldest is lost.
    pub(crate) fn keep_datagram(&mut self, id: u64, payload: Bytes) {
        self.early_datagrams.push(id, payload);
    }

    /// When the oldest early stream has waited long enough.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        // All wait equally long, so the oldest is in front.
        self.early_streams.front().map(|early| early.deadline)
    }

    /// The early streams that have waited long enough.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<EarlyStream> {
        let mut expired = Vec::new();
        while self.next_deadline().is_some_and(|deadline| deadline <= now) {
            expired.extend(self.early_streams.pop_front());
        }
        expired
    }
}
