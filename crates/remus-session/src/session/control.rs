//! The control stream: the lifecycle's records, heartbeats, shutdown. Spec: core §2, §8, §9.

use bytes::{Bytes, BytesMut};
use core::time::Duration;
use remus_wire::{
    Authenticated, AuthenticationRecord, Capabilities, Capability, ErrorCode, ErrorRecord,
    Features, Frame, FrameHeader, FrameType, Handshake, Heartbeat, Limits, MAX_ANSWERS, Message,
    MessageType, Query, QueryAnswer, RequestId, Schema, Shutdown, StreamId, Text, Timestamp,
    Version, VersionRecord,
};

use super::{Closing, Session, fitted, micros};
use crate::config::{IDLE_TIMEOUT_MIN, INITIAL_LIMITS};
use crate::error::{CloseReason, SessionError};
use crate::event::{Event, Grant, Negotiated, Side};
use crate::lane::LaneId;
use crate::state::{Input, State, UnexpectedInput};

impl Session {
    /// Offer, capability, authentication, query and schema offer, all at once. Spec: core §2.
    pub(super) fn send_first_flight(&mut self, now: Timestamp) {
        let offer = self.version_record();
        self.send_handshake(now, &Handshake::Offer(offer));
        self.send_capability(now);
        let authentication = self.config.authentication.clone();
        self.send_authentication(now, authentication);
        let mut payload = BytesMut::new();
        self.config.query.encode(&mut payload);
        self.query_id = Some(1);
        self.send_control(now, MessageType::QUERY, RequestId(1), payload.freeze());
        self.send_schema(now, &Schema::Offer(Vec::new()));
    }

    fn version_record(&self) -> VersionRecord {
        let mut record = VersionRecord::new(self.config.features);
        record.set_idle_timeout(self.config.idle_timeout);
        if self.config.features.contains(Features::RESUMPTION) {
            record.set_resume_window(self.config.resume_window);
        }
        record
    }

    fn send_control(
        &mut self,
        now: Timestamp,
        kind: MessageType,
        request_id: RequestId,
        payload: Bytes,
    ) {
        let mut message = self.stamped(now, kind, payload);
        message.request_id = request_id;
        let (len, limit) = (message.encoded_len(), self.control_max());
        if len > limit {
            // Control messages have no parts. What the application gave is cut to fit where it can be; the rest is a setting that no
            // session with this peer can work with.
            let reason = format!("a control message of {len} bytes, the peer takes {limit}");
            self.abort(ErrorCode::INTERNAL, &reason);
            return;
        }
        self.put_control(&message);
    }

    /// Largest control message that the peer takes: one frame.
    fn control_max(&self) -> usize {
        usize::try_from(self.peer_limits.max_frame).unwrap_or(usize::MAX)
    }

    fn put_control(&mut self, message: &Message) {
        if let Some(lane) = self.lane_mut(LaneId::ZERO) {
            let added = lane.ready.put_message(StreamId(0), message);
            self.ready_bytes = self.ready_bytes.saturating_add(added);
        }
        self.note_output(LaneId::ZERO);
    }

    fn send_handshake(&mut self, now: Timestamp, step: &Handshake) {
        let mut payload = BytesMut::with_capacity(step.encoded_len());
        step.encode(&mut payload);
        self.send_control(now, MessageType::HANDSHAKE, RequestId(0), payload.freeze());
    }

    fn send_authentication(&mut self, now: Timestamp, record: AuthenticationRecord) {
        self.authenticating = true;
        self.send_handshake(now, &Handshake::Authenticate(record));
    }

    /// Refuses the session before it is active, and ends it.
    pub(super) fn refuse_session(&mut self, now: Timestamp, code: ErrorCode, reason: &str) {
        let refused = if code == ErrorCode::OK {
            ErrorCode::SHUTTING_DOWN
        } else {
            code
        };
        let record = ErrorRecord::new(refused, Text::from(reason));
        self.send_handshake(now, &Handshake::Refused(record));
        self.abort(code, reason);
    }

    fn send_capability(&mut self, now: Timestamp) {
        let record = Capability {
            node: self.config.node,
            node_type: self.config.node_type,
            capabilities: Capabilities::default(),
            limits: self.config.limits,
            resources: self.config.resources,
        };
        let mut payload = BytesMut::new();
        record.encode(&mut payload);
        self.send_control(now, MessageType::CAPABILITY, RequestId(0), payload.freeze());
    }

    fn send_schema(&mut self, now: Timestamp, step: &Schema) {
        let mut payload = BytesMut::with_capacity(step.encoded_len());
        step.encode(&mut payload);
        self.send_control(now, MessageType::SCHEMA, RequestId(0), payload.freeze());
    }

    pub(super) fn send_shutdown(&mut self, now: Timestamp, record: &Shutdown) {
        let mut payload = BytesMut::with_capacity(record.encoded_len());
        record.encode(&mut payload);
        self.send_control(now, MessageType::SHUTDOWN, RequestId(0), payload.freeze());
    }

    /// Everything on stream 0, one arm a message type.
    pub(super) fn on_control(
        &mut self,
        now: Timestamp,
        message: Message,
    ) -> Result<(), SessionError> {
        if self.is_held(message.kind) {
            self.held.push_back(message);
            return Ok(());
        }
        if message.kind != MessageType::HEARTBEAT {
            self.clock.observe(now, message.timestamp); // a heartbeat's is no hybrid one (CORE-72)
        }
        match message.kind {
            MessageType::HANDSHAKE => self.on_handshake(now, Handshake::decode(message.payload)?),
            MessageType::CAPABILITY => {
                self.on_capability(now, &Capability::decode(message.payload)?)
            }
            MessageType::HEARTBEAT if self.state.is_open() => {
                self.on_heartbeat(now, &message, false)
            }
            MessageType::SHUTDOWN => self.on_shutdown(now, Shutdown::decode(message.payload)?),
            MessageType::QUERY => self.on_query(message),
            MessageType::RESPONSE if self.query_id == Some(message.request_id.0) => {
                let answer = QueryAnswer::decode(message.payload)?;
                self.query_id = None;
                self.advance(Input::Directory)?;
                if let Some(negotiated) = &mut self.negotiated {
                    negotiated.directory = answer;
                }
                Ok(())
            }
            MessageType::SCHEMA => self.on_schema(now, &Schema::decode(message.payload)?),
            kind => Err(SessionError::MisplacedMessage {
                kind,
                stream: StreamId(0),
            }),
        }
    }

    /// Whether a record belongs to the first flight of a client that has been challenged: it left before the client knew.
    fn is_held(&self, kind: MessageType) -> bool {
        let next = match self.held.len() {
            0 => MessageType::QUERY,
            1 => MessageType::SCHEMA,
            _ => return false,
        };
        self.challenged && self.state == State::Authentication && kind == next
    }

    /// Whether requests may come before the session is active: behind a first flight that is held.
    pub(super) fn holds_flight(&self) -> bool {
        self.held.len() == 2
    }

    /// Takes what was held, as far as the application has decided.
    fn take_held(&mut self, now: Timestamp) {
        while self.asked.is_none()
            && let Some(message) = self.held.pop_front()
        {
            if let Err(error) = self.on_control(now, message) {
                self.fail(&error);
            }
        }
    }

    /// The first query is a step of the lifecycle: it waits for its answer. Later ones may come from either side.
    fn on_query(&mut self, message: Message) -> Result<(), SessionError> {
        let query = Query::decode(message.payload)?;
        let id = message.request_id;
        if self.side == Side::Acceptor && !self.state.is_open() {
            self.state.on(Input::Directory)?;
            self.asked = Some(id);
        } else {
            self.advance(Input::Directory)?;
            if self.side == Side::Client && !self.state.is_open() {
                return Err(SessionError::MisplacedMessage {
                    kind: MessageType::QUERY,
                    stream: StreamId(0),
                });
            }
        }
        self.events.push_back(Event::Query(id, query));
        Ok(())
    }

    fn on_handshake(&mut self, now: Timestamp, step: Handshake) -> Result<(), SessionError> {
        match (self.side, step) {
            (Side::Acceptor, Handshake::Offer(offer)) => {
                self.advance(Input::Version)?;
                self.on_offer(now, offer)
            }
            (Side::Client, Handshake::Accept(accepted)) => {
                self.advance(Input::Version)?;
                self.on_accept(now, &accepted)
            }
            (Side::Acceptor, Handshake::Authenticate(record)) => {
                let in_turn = self.state == State::Authentication || self.state.is_open();
                if !in_turn || self.deciding {
                    return Err(self.out_of_turn(Input::Renewal));
                }
                self.deciding = true;
                self.events.push_back(Event::Authenticate(record));
                Ok(())
            }
            (Side::Client, Handshake::Challenge(challenge)) => {
                if !self.authenticating {
                    return Err(self.out_of_turn(Input::Challenge));
                }
                self.advance(Input::Challenge)?;
                self.authenticating = false;
                self.events.push_back(Event::Challenge(challenge));
                Ok(())
            }
            (Side::Client, Handshake::Authenticated(granted)) => {
                self.on_authenticated(now, granted)
            }
            (Side::Client, Handshake::Refused(record)) => {
                self.on_refused(record);
                Ok(())
            }
            (Side::Acceptor, Handshake::Resume(_)) if self.state == State::VersionNegotiation => {
                let error = ErrorRecord::new(
                    ErrorCode::LOSS_OF_SESSION,
                    Text::from_static("sessions are not kept after their carrier is lost"),
                );
                self.send_handshake(now, &Handshake::Refused(error));
                Err(SessionError::NotOffered("resumption (feature 6)"))
            }
            (_, _) => Err(SessionError::MisplacedMessage {
                kind: MessageType::HANDSHAKE,
                stream: StreamId(0),
            }),
        }
    }

    /// The session will not be, or will not go on. What was called before it was active did not run.
    pub(super) fn on_refused(&mut self, record: ErrorRecord) {
        let reason = if record.message.is_empty() {
            record.code.to_string()
        } else {
            record.message.to_string()
        };
        let refused = !self.state.is_open();
        let calls = refused.then(|| record.clone());
        let code = record.code;
        self.events.push_back(Event::Refused(Box::new(record)));
        self.close(
            CloseReason {
                code,
                reason,
                by_peer: true,
                refused,
            },
            calls,
        );
    }

    fn out_of_turn(&self, input: Input) -> SessionError {
        SessionError::OutOfTurn(UnexpectedInput {
            state: self.state,
            input,
        })
    }

    fn on_offer(&mut self, now: Timestamp, offer: VersionRecord) -> Result<(), SessionError> {
        let ours = Version::CURRENT;
        if offer.version.major != ours.major {
            let error = SessionError::UnsupportedVersion {
                theirs: offer.version.major,
                ours: ours.major,
            };
            let mut record = ErrorRecord::new(
                ErrorCode::UNSUPPORTED_VERSION,
                Text::from(error.to_string()),
            );
            record.details.push(Version::spoken(&[ours]));
            self.send_handshake(now, &Handshake::Refused(record));
            return Err(error);
        }
        if let Some(extension) = offer.unsupported() {
            let error = SessionError::UnsupportedExtension(extension.0);
            let record = ErrorRecord::new(
                ErrorCode::UNSUPPORTED_EXTENSION,
                Text::from(error.to_string()),
            );
            self.send_handshake(now, &Handshake::Refused(record));
            return Err(error);
        }
        self.version = Version {
            major: ours.major,
            minor: ours.minor.min(offer.version.minor),
        };
        self.features = self.config.features.intersection(offer.features);
        self.settle_idle_timeout(now, &offer);
        self.settle_resumption(&offer);
        let mut accept = self.version_record();
        accept.version = self.version;
        accept.features = self.features;
        self.send_handshake(now, &Handshake::Accept(accept));
        self.offer_taken = Some(Box::new(offer));
        Ok(())
    }

    fn on_accept(&mut self, now: Timestamp, accepted: &VersionRecord) -> Result<(), SessionError> {
        let ours = Version::CURRENT;
        if accepted.version.major != ours.major || accepted.version.minor > ours.minor {
            return Err(SessionError::UnsupportedVersion {
                theirs: accepted.version.major,
                ours: ours.major,
            });
        }
        if let Some(extension) = accepted.unsupported() {
            return Err(SessionError::UnsupportedExtension(extension.0));
        }
        self.version = accepted.version;
        self.features = self.config.features.intersection(accepted.features);
        self.settle_idle_timeout(now, accepted);
        self.settle_resumption(accepted);
        Ok(())
    }

    /// The lower of both sides' idle timeouts, but never so low that heartbeats would be a flood.
    fn settle_idle_timeout(&mut self, now: Timestamp, theirs: &VersionRecord) {
        let theirs = theirs
            .idle_timeout()
            .map_or(self.config.idle_timeout, |timeout| {
                timeout.max(IDLE_TIMEOUT_MIN)
            });
        let idle = self.config.idle_timeout.min(theirs);
        self.live
            .set_idle_ms(now, u64::try_from(idle.as_millis()).unwrap_or(u64::MAX));
    }

    /// Whether the session may outlive its carrier, and for how long: the lower of what both sides state.
    fn settle_resumption(&mut self, theirs: &VersionRecord) {
        if !self.features.contains(Features::RESUMPTION) {
            self.drop_logs();
            return;
        }
        let ours = self.config.resume_window;
        self.resumption.window_us = micros(theirs.resume_window().map_or(ours, |w| w.min(ours)));
    }

    fn on_capability(&mut self, now: Timestamp, record: &Capability) -> Result<(), SessionError> {
        self.advance(Input::Capability)?;
        let (l, min) = (&record.limits, INITIAL_LIMITS);
        for (field, value, min) in [
            ("max_frame", l.max_frame, min.max_frame),
            ("max_message", l.max_message, min.max_message),
            ("max_calls", l.max_calls, min.max_calls),
            ("stream_window", l.stream_window, min.stream_window),
            ("session_window", l.session_window, min.session_window),
        ] {
            if value < min {
                return Err(SessionError::LimitTooLow { field, value, min });
            }
        }
        self.take_limits(*l);
        if self.side == Side::Acceptor {
            self.send_capability(now);
        }
        self.negotiated = Some(Box::new(Negotiated {
            version: self.version,
            features: self.features,
            peer_limits: self.peer_limits,
            peer_node: record.node,
            peer_node_type: record.node_type,
            idle_timeout: Duration::from_millis(self.live.idle_ms()),
            grant: Grant::default(),
            directory: QueryAnswer::default(),
        }));
        Ok(())
    }

    /// The peer's real limits replace the initial ones; credits only rise.
    fn take_limits(&mut self, limits: Limits) {
        use crate::config::STREAMS_MAX;
        self.peer_limits = Limits {
            max_streams: limits.max_streams.min(STREAMS_MAX),
            ..limits
        };
        self.send_window.limit = self.send_window.limit.max(limits.session_window.into());
        for id in [StreamId(1), StreamId(2)] {
            if let Some(stream) = self.stream_mut(id) {
                stream.send.limit = stream.send.limit.max(limits.stream_window.into());
            }
            self.schedule(id);
        }
    }

    fn on_authenticated(
        &mut self,
        now: Timestamp,
        granted: Authenticated,
    ) -> Result<(), SessionError> {
        let input = if self.state == State::Authentication {
            Input::Identity
        } else {
            Input::Renewal
        };
        if !self.authenticating {
            return Err(self.out_of_turn(input));
        }
        self.advance(input)?;
        self.authenticating = false;
        if input == Input::Identity && self.features.contains(Features::RESUMPTION) {
            // That of a renewal may be late: it says nothing.
            self.take_first_token(granted.token);
        }
        let grant = Grant {
            session: granted.session,
            expires: granted.expires,
            claims: granted.claims,
            authenticated: true,
            token: self.resumption.token,
            subject: Text::default(),
        };
        if let Some(negotiated) = &mut self.negotiated {
            negotiated.grant = grant.clone();
        }
        self.grant = grant;
        self.renew(now);
        Ok(())
    }

    /// Sends the record that waited for its turn.
    fn renew(&mut self, now: Timestamp) {
        if self.state.is_open()
            && !self.authenticating
            && let Some(record) = self.renewal.take()
        {
            self.send_authentication(now, record);
        }
    }

    fn on_schema(&mut self, now: Timestamp, step: &Schema) -> Result<(), SessionError> {
        // The first offer is the client's and the first answer the acceptor's; later both may offer.
        let in_turn = match (self.side, step) {
            _ if self.state.is_open() => true,
            (Side::Acceptor, Schema::Offer(_)) | (Side::Client, Schema::Want(_)) => true,
            _ => false,
        };
        if !in_turn {
            return Err(SessionError::MisplacedMessage {
                kind: MessageType::SCHEMA,
                stream: StreamId(0),
            });
        }
        match step {
            Schema::Offer(_) => {
                // Descriptors come with the schema chapter; until then nothing that is offered is wanted.
                self.advance(Input::Schema)?;
                self.send_schema(now, &Schema::Want(Vec::new()));
            }
            Schema::Want(wanted) if wanted.is_empty() => self.advance(Input::Schema)?,
            Schema::Want(_) => {
                return Err(SessionError::NotOffered("a schema that was not offered"));
            }
            Schema::Give(_) => {
                return Err(SessionError::NotOffered("a schema that was not asked for"));
            }
        }
        self.become_active(now);
        Ok(())
    }

    fn become_active(&mut self, now: Timestamp) {
        if self.state != State::Active || self.peer_known {
            return;
        }
        self.peer_known = true;
        self.live.start(now);
        if let Some(offer) = self.offer_taken.take() {
            self.events.push_back(Event::Offered(offer));
        }
        if let Some(negotiated) = &self.negotiated {
            self.events.push_back(Event::Active(negotiated.clone()));
        }
        if self.closing.is_some() {
            self.announce_end(now);
        } else {
            self.renew(now);
        }
    }

    fn advance(&mut self, input: Input) -> Result<(), SessionError> {
        self.state = self.state.on(input)?;
        Ok(())
    }

    /// Acceptor: the client is who it says, or may stay anonymous. Answers [`Event::Authenticate`].
    pub fn grant(&mut self, now: Timestamp, grant: Grant) {
        if !self.deciding || self.state.is_closed() {
            return;
        }
        self.deciding = false;
        let input = if self.state == State::Authentication {
            Input::Identity
        } else {
            Input::Renewal
        };
        if self.advance(input).is_err() {
            return;
        }
        if input == Input::Identity && self.features.contains(Features::RESUMPTION) {
            self.take_first_token(grant.token);
        }
        let record = Authenticated {
            session: grant.session,
            token: self.resumption.token,
            expires: grant.expires,
            claims: grant.claims.clone(),
        };
        self.send_handshake(now, &Handshake::Authenticated(record));
        self.grant = grant;
        self.take_held(now);
    }

    /// Acceptor: the client may not come in, or its renewal is not accepted. Answers [`Event::Authenticate`]; the session ends.
    pub fn refuse(&mut self, now: Timestamp, error: ErrorRecord) {
        if !self.deciding || self.state.is_closed() {
            return;
        }
        self.deciding = false;
        let error = fitted(error, self.control_max() / 2);
        let (code, reason) = (error.code, error.message.to_string());
        self.send_handshake(now, &Handshake::Refused(error));
        self.abort(code, &reason);
    }

    /// Acceptor: the client has to sign this first. Answers [`Event::Authenticate`].
    pub fn challenge(&mut self, now: Timestamp, challenge: Bytes) {
        if self.deciding && self.advance(Input::Challenge).is_ok() {
            self.deciding = false;
            self.challenged = true;
            self.send_handshake(now, &Handshake::Challenge(challenge));
        }
    }

    /// Client: answers [`Event::Challenge`], or renews its token in place.
    ///
    /// A renewal waits until the session is active and the one before it is answered; of several that wait the latest is sent.
    pub fn authenticate(&mut self, now: Timestamp, record: AuthenticationRecord) {
        if self.side != Side::Client || self.state.is_closed() {
            return;
        }
        // By the latest the client is known on its next carrier too.
        self.config.authentication = record.clone();
        let in_turn = self.state == State::Authentication || self.state.is_open();
        if in_turn && !self.authenticating {
            self.send_authentication(now, record);
        } else {
            self.renewal = Some(record);
        }
    }

    /// Answers [`Event::Query`]. Of more records than fit one frame of the peer's the first are sent.
    pub fn answer_query(&mut self, now: Timestamp, id: RequestId, answer: &QueryAnswer) {
        if self.state.is_closed() {
            return;
        }
        let room = self.control_max().saturating_sub(Message::HEADER_LEN);
        let mut left = room.saturating_sub(4);
        let fitting = answer
            .records
            .iter()
            .take(MAX_ANSWERS as usize)
            .take_while(|record| match left.checked_sub(record.encoded_len()) {
                Some(rest) => {
                    left = rest;
                    true
                }
                None => false,
            })
            .cloned()
            .collect();
        let answer = QueryAnswer { records: fitting };
        let mut payload = BytesMut::with_capacity(answer.encoded_len());
        answer.encode(&mut payload);
        self.send_control(now, MessageType::RESPONSE, id, payload.freeze());
        if self.asked == Some(id) {
            self.asked = None;
            // The table was asked when the query came.
            let _ = self.advance(Input::Directory);
            self.take_held(now);
        }
    }

    /// Asks the peer for a heartbeat now, or as soon as 8 ms have passed since the last; [`Session::path`] tells what it measured.
    pub fn probe(&mut self, now: Timestamp) {
        if self.state.is_open() && self.resumption.is_attached() && self.live.may_probe(now) {
            self.send_probe(now);
        }
    }

    pub(super) fn send_probe(&mut self, now: Timestamp) {
        // A sender that waits for an acknowledgement asks for it by the way that loses nothing.
        let suspicious = self.live.is_suspicious(now) || self.resumption.is_full();
        let (id, heartbeat) = self.live.probe(now, self.load);
        self.send_heartbeat(now, RequestId(id), &heartbeat, !suspicious);
    }

    /// A heartbeat carries the sender's own clock, not the hybrid one: a clock that follows the peer's cannot be compared
    /// with it (decision 0004).
    fn send_heartbeat(
        &mut self,
        now: Timestamp,
        id: RequestId,
        heartbeat: &Heartbeat,
        may_be_lost: bool,
    ) {
        self.note_acks();
        let mut payload = BytesMut::with_capacity(Heartbeat::LEN);
        heartbeat.encode(&mut payload);
        let message = Message {
            request_id: id,
            timestamp: now,
            ..Message::new(MessageType::HEARTBEAT, payload.freeze())
        };
        if may_be_lost && self.features.contains(Features::DATAGRAMS) && self.carrier_has_datagrams
        {
            let mut datagram = BytesMut::with_capacity(Frame::HEADER_LEN + message.encoded_len());
            let header = FrameHeader {
                stream: StreamId(0),
                kind: FrameType::MESSAGE,
                len: u32::try_from(message.encoded_len()).unwrap_or(u32::MAX),
            };
            datagram.extend_from_slice(&header.encode());
            message.encode(&mut datagram);
            self.push_datagram(datagram.freeze());
            self.dirty |= LaneId::ZERO.bit();
            return;
        }
        self.put_control(&message);
    }

    /// `datagram`: whether it came in one. The answer goes by the way the probe came: if datagrams get lost, the probes that are
    /// sent reliably for that reason must not be answered by a datagram.
    pub(super) fn on_heartbeat(
        &mut self,
        now: Timestamp,
        message: &Message,
        datagram: bool,
    ) -> Result<(), SessionError> {
        let heartbeat = Heartbeat::decode(message.payload.clone())?;
        if !datagram {
            self.note_quiet(Frame::HEADER_LEN.saturating_add(message.encoded_len()));
        }
        if self.live.on_heartbeat(now, message.timestamp, &heartbeat) {
            self.events.push_back(Event::PathMeasured);
        }
        if message.request_id.0 != 0 {
            let answer = self.live.heartbeat(self.load);
            self.send_heartbeat(now, RequestId(0), &answer, datagram);
        }
        Ok(())
    }

    fn on_shutdown(&mut self, now: Timestamp, record: Shutdown) -> Result<(), SessionError> {
        self.advance(Input::Shutdown)?;
        let deadline = Timestamp(now.0.saturating_add(micros(record.grace)));
        if self.closing.is_none() {
            self.closing = Some(Closing {
                by_us: false,
                deadline,
                code: record.code,
                reason: record.reason.to_string(),
                redirect: String::new(),
            });
        }
        self.fail_calls_after(record.last_request);
        self.events.push_back(Event::ShuttingDown(Box::new(record)));
        Ok(())
    }
}
