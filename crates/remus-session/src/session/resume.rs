//! A session between carriers: how it loses one, and goes on with another. Spec: core §3.5.
//!
//! Invariants: bytes count in an epoch exactly if they are frames behind the exchange of steps 7, 8 and 5 that began it; what
//! has left in an epoch is in its lanes' logs until the peer has acknowledged it.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use remus_wire::{
    Authenticated, ErrorCode, Features, Frame, FrameHeader, FrameType, Handshake, LaneOffset,
    Message, MessageType, Resume, ResumeToken, StreamId, Timestamp,
};

use super::{CONTROL_BURST, CONTROL_REFILL_US, Session, micros};
use crate::config::FIRST_RECORD_MAX;
use crate::error::{CloseReason, SessionError};
use crate::event::{Event, Grant, Side};
use crate::lane::{FrameReader, Intake, LANE_READY_MAX, LANES_MAX, LaneId, Ready, Taken};
use crate::log::Log;
use crate::resumption::{
    ACK_EVERY, CarrierInfo, Link, NOBODY, RETAINED_BEYOND, ResumeError, ResumeRequest, Unconfirmed,
    is_same, put_step,
};
use crate::state::State;
use crate::stream::{ANY_LANE, Stream};

/// Length of an ACK frame, in bytes.
const ACK_LEN: usize = Frame::HEADER_LEN + 10;

/// Bytes of a message from which its type can be told.
const KIND_AT: usize = 4;

impl Session {
    /// What the first carrier offers, before anything is sent or taken in. Without it: every lane, and no datagrams.
    pub fn set_carrier(&mut self, carrier: CarrierInfo) {
        self.carrier_has_datagrams = carrier.datagrams;
        self.resumption.carrier = carrier;
    }

    /// The number of the present carrier, or of its absence: it rises whenever a carrier comes or goes.
    ///
    /// A driver notes it for whatever reads and writes a carrier. What was read of a carrier whose number is not this one is dropped,
    /// and nothing is polled for it.
    #[must_use]
    pub fn attachment(&self) -> u32 {
        self.resumption.attachment
    }

    /// Whether the session has no carrier, or has not been taken up again on the one that it has.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        !self.resumption.is_attached() && !self.state.is_closed()
    }

    /// When a session without a carrier ends, unless it is resumed before.
    #[must_use]
    pub fn resume_deadline(&self) -> Option<Timestamp> {
        self.resumption.deadline.filter(|_| self.is_suspended())
    }

    /// Whether the session would be kept if it lost its carrier now.
    #[must_use]
    pub fn is_resumable(&self) -> bool {
        self.state == State::Active
            && self.closing.is_none()
            && self.features.contains(Features::RESUMPTION)
            && !self.resumption.token.is_none()
            && self.config.authentication.encoded_len() <= FIRST_RECORD_MAX
    }

    /// What resumes the session next: client, what it will present; acceptor, what it waits for.
    /// [`ResumeToken::NONE`] where nothing does.
    #[must_use]
    pub fn resume_token(&self) -> ResumeToken {
        self.resumption.token
    }

    /// Acceptor: the token with which the present epoch began, as long as it may be presented again, because the client may not have
    /// heard of the answer.
    #[must_use]
    pub fn unconfirmed_token(&self) -> Option<ResumeToken> {
        self.resumption
            .unconfirmed
            .as_ref()
            .map(|epoch| epoch.token)
    }

    /// Bytes that have left and are kept because the peer has not acknowledged them, with what each piece of them costs.
    #[must_use]
    pub fn retained_bytes(&self) -> usize {
        self.resumption.retained
    }

    /// The carrier is gone, or of no use. The session goes on without one for as long as the resume window lasts: calls, deadlines and
    /// streams go on existing, and what is sent waits within the usual limits.
    ///
    /// False where the session is none that [can be resumed](Session::is_resumable): then it has ended, as by
    /// [`Session::carrier_lost`]. Suspending it again, because an attempt to resume it failed, does not prolong the window.
    pub fn suspend(&mut self, now: Timestamp, code: ErrorCode, reason: &str) -> bool {
        if self.state.is_closed() {
            return false;
        }
        if !self.is_resumable() {
            self.carrier_lost(code, reason);
            return false;
        }
        if self.resumption.link == Link::Suspended {
            return true;
        }
        self.detach(now);
        self.resumption.link = Link::Suspended;
        self.events.push_back(Event::Suspended {
            code,
            reason: super::cut(reason).to_owned(),
        });
        true
    }

    /// Client: goes on with the session on another carrier, whether or not it has lost the one before.
    ///
    /// The request bears the record with which the client authenticated itself last, if it did by any method.
    ///
    /// The request leaves by [`Session::poll_transmit`] on lane 0, before anything else; nothing else leaves before the answer, and no
    /// other lane is opened. [`Event::Resumed`] follows, or, where the acceptor refuses, [`Event::Closed`]. Where the carrier fails
    /// before, call [`Session::suspend`] and try another one. Returns the new [`Session::attachment`].
    ///
    /// # Errors
    ///
    /// [`ResumeError::NotResumable`].
    pub fn attach(&mut self, now: Timestamp, carrier: CarrierInfo) -> Result<u32, ResumeError> {
        if self.side != Side::Client || !self.is_resumable() {
            return Err(ResumeError::NotResumable);
        }
        self.detach(now);
        let patience = Timestamp(now.0.saturating_add(micros(self.config.handshake_timeout)));
        self.resumption.link = Link::Asking(patience);
        self.resumption.carrier = carrier;
        let step = Handshake::Resume(Resume {
            token: self.resumption.token,
            lanes: self.taken_in(),
        });
        let mut request = BytesMut::new();
        let at = self.clock.tick(now);
        put_step(&mut request, at, &step, &self.config.authentication);
        self.resumption.preamble = Some(request.freeze());
        self.dirty |= LaneId::ZERO.bit();
        Ok(self.resumption.attachment)
    }

    /// Acceptor: a client asks on a new carrier to go on with this session, as [`peek_resume`](crate::peek_resume) has found. That who
    /// asks ([`ResumeRequest::authentication`]) is whom the session belongs to is the caller's to see to.
    ///
    /// The carrier that the session had is not polled any more; the driver closes it. `next` is 32 bytes from a generator that
    /// nobody can foresee: what resumes the session the next time. Where the client asks again, because it never heard the answer, `next`
    /// is not used. The driver looks up [`Session::resume_token`] and [`Session::unconfirmed_token`] after this, and when
    /// [`Session::unconfirmed_token`] has gone.
    ///
    /// # Errors
    ///
    /// [`ResumeError`]: the session is as it was, and the new carrier is to be [refused](crate::refuse_resume).
    pub fn resume(
        &mut self,
        now: Timestamp,
        request: &ResumeRequest,
        next: ResumeToken,
        carrier: CarrierInfo,
    ) -> Result<u32, ResumeError> {
        if self.side != Side::Acceptor || !self.is_resumable() || next.is_none() {
            return Err(ResumeError::NotResumable);
        }
        if is_same(request.token, self.resumption.token) {
            self.judge_offsets(&request.lanes)?;
            self.detach(now);
            let answered = self.taken_in();
            self.trim_logs(&request.lanes);
            self.resumption.unconfirmed = Some(Unconfirmed {
                token: self.resumption.token,
                claimed: request.lanes.clone(),
                answered,
            });
            self.resumption.token = next;
            self.resumption.carrier = carrier;
            self.begin_epoch(now);
        } else {
            let Some(epoch) = self
                .resumption
                .unconfirmed
                .as_ref()
                .filter(|epoch| is_same(request.token, epoch.token))
            else {
                return Err(ResumeError::WrongToken);
            };
            if !is_same_offsets(&epoch.claimed, &request.lanes) {
                return Err(ResumeError::Differs);
            }
            // Of this epoch the client knows nothing: all of it leaves again, and all of it on lane 0.
            self.detach(now);
            self.resumption.carrier = carrier;
            self.resumption.waiting = 0;
            for lane in &mut self.lanes {
                lane.log.rewind();
                let waiting = lane.log.waiting();
                self.resumption.waiting = self.resumption.waiting.saturating_add(waiting);
            }
            self.go_on(now);
        }
        self.answer_resume(now);
        Ok(self.resumption.attachment)
    }

    /// Steps 8 and 5, which begin an epoch.
    fn answer_resume(&mut self, now: Timestamp) {
        let Some(epoch) = &self.resumption.unconfirmed else {
            return;
        };
        let resumed = Handshake::Resumed(epoch.answered.clone());
        let authenticated = Handshake::Authenticated(Authenticated {
            session: self.grant.session,
            token: self.resumption.token,
            expires: self.grant.expires,
            claims: self.grant.claims.clone(),
        });
        let mut out = BytesMut::new();
        for step in [resumed, authenticated] {
            let at = self.clock.tick(now);
            put_step(&mut out, at, &step, &NOBODY);
        }
        self.resumption.preamble = Some(out.freeze());
        self.dirty |= LaneId::ZERO.bit();
    }

    /// Lets the carrier go. What it brought of a frame that is not whole will come again.
    fn detach(&mut self, now: Timestamp) {
        let resumption = &mut self.resumption;
        resumption.attachment = resumption.attachment.wrapping_add(1);
        resumption.preamble = None;
        resumption.acks_due = 0;
        let until = Timestamp(now.0.saturating_add(resumption.window_us));
        if resumption.is_attached() {
            resumption.deadline = Some(until);
            resumption.silent_since = self.live.last_heard();
            for lane in &mut self.lanes {
                lane.intake.read = lane.taken_in();
                if let Some(cut) = lane.reader.cut() {
                    match resumption
                        .cuts
                        .iter_mut()
                        .find(|(known, _)| known.stream == cut.stream)
                    {
                        // It was cut before, and has not come again as far.
                        Some((known, _)) => known.taken = known.taken.max(cut.taken),
                        None => resumption.cuts.push((cut, 0)),
                    }
                }
            }
            for (_, skipped) in &mut resumption.cuts {
                *skipped = 0;
            }
        }
        for lane in &mut self.lanes {
            lane.reader = FrameReader::default();
        }
        self.datagrams.clear();
    }

    /// How much of each lane was taken in in this epoch.
    fn taken_in(&self) -> Vec<LaneOffset> {
        (0_u16..)
            .zip(&self.lanes)
            .map(|(lane, entry)| LaneOffset {
                lane,
                offset: entry.taken_in(),
            })
            .filter(|entry| entry.offset > 0)
            .collect()
    }

    /// Whether the peer can have taken in that much.
    fn judge_offsets(&self, claimed: &[LaneOffset]) -> Result<(), ResumeError> {
        for lane in 0..LANES_MAX {
            let offset = offset_of(claimed, lane);
            let judged = match self.lanes.get(usize::from(lane)) {
                Some(entry) => entry.log.judge(offset),
                None => Log::default().judge(offset),
            };
            judged.map_err(|wrong| ResumeError::WrongOffset {
                lane,
                offset,
                sent: wrong.sent,
            })?;
        }
        Ok(())
    }

    /// Lets go of what the peer has taken in, by offsets that were judged.
    fn trim_logs(&mut self, claimed: &[LaneOffset]) {
        for (lane, entry) in (0_u16..).zip(&mut self.lanes) {
            let freed = entry.log.acknowledge(offset_of(claimed, lane)).unwrap_or(0);
            self.resumption.retained = self.resumption.retained.saturating_sub(freed);
        }
    }

    /// Both sides know how far the other came: what it did not take in leaves again, on the lanes that there are now.
    fn begin_epoch(&mut self, now: Timestamp) {
        self.resumption.epoch = self.resumption.epoch.saturating_add(1);
        let lanes = self.resumption.carrier.lanes();
        let opens = self.side == Side::Client;
        for (id, stream) in (0_u16..).zip(&mut self.streams) {
            let Some(stream) = stream else {
                continue;
            };
            // The client opens the lanes, so to an acceptor only lane 0 is sure to be there.
            stream.lane = if opens && stream.home.0 < lanes {
                stream.home
            } else {
                LaneId::ZERO
            };
            if !Stream::is_shared(StreamId(id)) {
                stream.recv.lane = ANY_LANE;
            }
        }
        for lane in &mut self.lanes {
            lane.intake = Intake::default();
        }
        self.replay_rest();
        self.statistics.resumptions = self.statistics.resumptions.saturating_add(1);
        self.go_on(now);
    }

    /// The session has a carrier.
    fn go_on(&mut self, now: Timestamp) {
        self.carrier_has_datagrams = self.resumption.carrier.datagrams;
        self.resumption.link = Link::Attached;
        self.resumption.deadline = None;
        // What the peer sends again was paced when it first left, and comes all at once now.
        let silent = now.0.saturating_sub(self.resumption.silent_since.0);
        let saved_up = u32::try_from(silent / CONTROL_REFILL_US).unwrap_or(u32::MAX);
        self.control_tokens = CONTROL_BURST.saturating_add(saved_up);
        self.control_refilled = now;
        self.live.start_path(now);
        if self.resumption.is_full() {
            self.live.hurry();
        }
        self.round_trip_us = u64::MAX;
        for (lane, entry) in (0_u16..).zip(&self.lanes) {
            if entry.log.waiting() > 0 || entry.ready.len() > 0 || !entry.turns.is_empty() {
                self.dirty |= LaneId(lane).bit();
            }
        }
        self.events.push_back(Event::Resumed);
    }

    /// Distributes what was not acknowledged and what stood ready over the lanes that there are now, frame by frame, so that the
    /// frames of each stream stay in order.
    fn replay_rest(&mut self) {
        // Every lane that a stream can be on has an entry.
        let last = self.resumption.carrier.lanes().saturating_sub(1);
        let _ = self.lane_mut(LaneId(last));
        let mut logs: Vec<Gather> = Vec::new();
        logs.resize_with(self.lanes.len(), Gather::default);
        let mut frame = Vec::new();
        for index in 0..self.lanes.len() {
            let Some(lane) = self.lanes.get_mut(index) else {
                continue;
            };
            let mut rest = lane.log.take();
            lane.ready.take(&mut rest);
            lane.turns = crate::lane::Turns::default();
            while let Some(header) = next_frame(&mut rest, &mut frame) {
                if is_of_its_epoch(header, &frame) {
                    continue;
                }
                let target = match self.stream_ref(header.stream) {
                    Some(stream) => stream.lane,
                    None => LaneId::ZERO,
                };
                if let Some(gather) = logs.get_mut(usize::from(target.0)) {
                    gather.put(&frame);
                }
            }
        }
        self.ready_bytes = 0;
        self.resumption.retained = 0;
        self.resumption.waiting = 0;
        for (lane, mut gather) in self.lanes.iter_mut().zip(logs) {
            gather.flush();
            lane.log = gather.log;
            self.resumption.waiting = self.resumption.waiting.saturating_add(lane.log.waiting());
            self.resumption.retained = self.resumption.retained.saturating_add(lane.log.cost());
        }
        let replayed = u64::try_from(self.resumption.waiting).unwrap_or(u64::MAX);
        self.statistics.replayed_bytes = self.statistics.replayed_bytes.saturating_add(replayed);
        // The turns are those of the lanes that there are now.
        let mut waiting = Vec::new();
        for (id, stream) in (0_u16..).zip(&mut self.streams) {
            let Some(stream) = stream else {
                continue;
            };
            for queue in stream.send.queues_mut() {
                queue.in_turns = false;
            }
            if !stream.send.is_idle() {
                waiting.push(StreamId(id));
            }
        }
        for id in waiting {
            self.schedule(id);
        }
    }

    /// What leaves while the session is not attached: a client's request, and nothing else.
    pub(super) fn transmit_request(&mut self, lane: LaneId, out: &mut VecDeque<Bytes>) -> bool {
        let asks = lane == LaneId::ZERO && matches!(self.resumption.link, Link::Asking(_));
        match self.resumption.preamble.take_if(|_| asks) {
            Some(request) => {
                out.push_back(request);
                true
            }
            None => false,
        }
    }

    /// What goes before everything else on lane 0.
    pub(super) fn take_preamble(&mut self, out: &mut VecDeque<Bytes>) -> bool {
        let preamble = self.resumption.preamble.take();
        let is_there = preamble.is_some();
        out.extend(preamble);
        is_there
    }

    /// Client: takes in the answer to its request. What follows the answer stays in `input`.
    pub(super) fn take_answer(
        &mut self,
        now: Timestamp,
        lane: LaneId,
        input: &mut Bytes,
    ) -> Result<(), SessionError> {
        while !self.resumption.is_attached() && !self.state.is_closed() {
            if self.resumption.link == Link::Suspended {
                input.clear(); // of a carrier that was given up
                return Ok(());
            }
            let max_frame = self.config.limits.max_frame;
            let Some(entry) = self.lane_mut(lane) else {
                return Ok(());
            };
            let (stream, body) = match entry.reader.next(input, max_frame)? {
                Some(Taken::Frame(frame)) => (frame.stream, frame.body),
                Some(Taken::Piece { stream, kind, .. }) => {
                    return Err(SessionError::MisplacedFrame { kind, stream });
                }
                None => return Ok(()),
            };
            let kind = body.kind();
            let remus_wire::FrameBody::Message(bytes) = body else {
                return Err(SessionError::MisplacedFrame { kind, stream });
            };
            if lane != LaneId::ZERO || stream != StreamId::CONTROL {
                return Err(SessionError::WrongLane(stream));
            }
            let message = Message::decode(bytes, &self.message_limits())?;
            let misplaced = SessionError::MisplacedMessage {
                kind: message.kind,
                stream,
            };
            if message.kind != MessageType::HANDSHAKE {
                return Err(misplaced);
            }
            self.clock.observe(now, message.timestamp);
            let step = Handshake::decode(message.payload)?;
            match (self.resumption.link.clone(), step) {
                (Link::Asking(_), Handshake::Refused(record)) => self.on_refused(record),
                (Link::Asking(patience), Handshake::Resumed(lanes)) => {
                    self.judge_offsets(&lanes).map_err(|error| match error {
                        ResumeError::WrongOffset { lane, offset, sent } => {
                            SessionError::WrongOffset { lane, offset, sent }
                        }
                        _ => misplaced,
                    })?;
                    self.resumption.link = Link::Answered(patience, lanes);
                }
                (Link::Answered(_, lanes), Handshake::Authenticated(granted)) => {
                    self.trim_logs(&lanes);
                    self.resumption.token = granted.token;
                    self.grant = Grant {
                        session: granted.session,
                        expires: granted.expires,
                        claims: granted.claims,
                        ..self.grant.clone()
                    };
                    if let Some(negotiated) = &mut self.negotiated {
                        negotiated.grant = self.grant.clone();
                    }
                    self.begin_epoch(now);
                    // Tells the acceptor that its answer has come, and measures the new path.
                    self.send_probe(now);
                }
                _ => return Err(misplaced),
            }
        }
        Ok(())
    }

    /// More is kept: at the limit the peer is asked how far it came.
    pub(super) fn note_retained(&mut self, cost: usize) {
        let was_full = self.resumption.is_full();
        self.resumption.retained = self.resumption.retained.saturating_add(cost);
        if self.resumption.is_full() && !was_full {
            self.live.hurry();
        }
        let most = self.resumption.max_retained.saturating_add(RETAINED_BEYOND);
        if self.resumption.retained > most {
            self.overflow = Some(self.resumption.retained);
        }
    }

    /// Bytes of a lane were taken in.
    pub(super) fn note_intake(&mut self, lane: LaneId, bytes: u64) {
        let Some(entry) = self.lane_mut(lane) else {
            return;
        };
        entry.intake.read = entry.intake.read.saturating_add(bytes);
        if entry.taken_in().saturating_sub(entry.intake.told) >= ACK_EVERY {
            self.resumption.acks_due |= lane.bit();
            self.dirty |= LaneId::ZERO.bit();
        }
    }

    /// With a heartbeat the peer is told of every lane on which something came that it should hear of.
    pub(super) fn note_acks(&mut self) {
        if !self.resumption.retains {
            return;
        }
        for (lane, entry) in (0_u16..).zip(&self.lanes) {
            let untold = entry.taken_in().saturating_sub(entry.intake.told);
            if untold > entry.intake.quiet {
                self.resumption.acks_due |= LaneId(lane).bit();
                self.dirty |= LaneId::ZERO.bit();
            }
        }
    }

    /// A frame or message came on lane 0 that need not be acknowledged for its own sake.
    pub(super) fn note_quiet(&mut self, bytes: usize) {
        if let Some(lane) = self.lanes.first_mut() {
            let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
            lane.intake.quiet = lane.intake.quiet.saturating_add(bytes);
        }
    }

    /// The acknowledgements that are due, in one piece.
    pub(super) fn write_acks(&mut self) -> Option<Bytes> {
        let due = core::mem::take(&mut self.resumption.acks_due);
        if due == 0 {
            return None;
        }
        let mut out = BytesMut::with_capacity(ACK_LEN.saturating_mul(self.lanes.len()));
        for (lane, entry) in (0_u16..).zip(&mut self.lanes) {
            let offset = entry.taken_in();
            if due & LaneId(lane).bit() == 0 || offset <= entry.intake.told {
                continue;
            }
            entry.intake.told = offset;
            entry.intake.quiet = 0;
            let header = FrameHeader {
                stream: StreamId::CONTROL,
                kind: FrameType::ACK,
                len: 10,
            };
            out.put_slice(&header.encode());
            out.put_u16(lane);
            out.put_u64(offset);
        }
        (!out.is_empty()).then(|| out.freeze())
    }

    /// The peer has taken in that much of a lane.
    pub(super) fn on_ack(
        &mut self,
        now: Timestamp,
        on: LaneId,
        stream: StreamId,
        (lane, offset): (u16, u64),
    ) -> Result<(), SessionError> {
        if stream != StreamId::CONTROL || on != LaneId::ZERO || !self.state.is_open() {
            let kind = FrameType::ACK;
            return Err(SessionError::MisplacedFrame { kind, stream });
        }
        if !self.features.contains(Features::RESUMPTION) {
            return Err(SessionError::NotOffered("resumption (feature 6)"));
        }
        if !self.resumption.retains {
            return self.charge_control(now);
        }
        self.note_quiet(ACK_LEN);
        let Some(entry) = self.lanes.get_mut(usize::from(lane)) else {
            return Err(SessionError::WrongOffset {
                lane,
                offset,
                sent: 0,
            });
        };
        if offset <= entry.log.acknowledged() {
            return self.charge_control(now); // late or repeated: harmless, but not for free
        }
        let was_full = self.resumption.is_full();
        let waiting = entry.log.waiting();
        match entry.log.acknowledge(offset) {
            Ok(freed) => {
                let spared = waiting.saturating_sub(entry.log.waiting());
                self.resumption.waiting = self.resumption.waiting.saturating_sub(spared);
                self.resumption.retained = self.resumption.retained.saturating_sub(freed);
            }
            Err(wrong) => {
                return Err(SessionError::WrongOffset {
                    lane,
                    offset,
                    sent: wrong.sent,
                });
            }
        }
        if self.resumption.is_full() {
            self.live.hurry(); // the rest may have come meanwhile
        } else if was_full {
            for (lane, entry) in (0_u16..).zip(&self.lanes) {
                if !entry.turns.is_empty() {
                    self.dirty |= LaneId(lane).bit();
                }
            }
        }
        Ok(())
    }

    /// Of a frame that was cut and has come again, or a piece of it: what was not handed on before. `None` where all of it was.
    pub(super) fn skip_known(
        &mut self,
        stream: StreamId,
        kind: FrameType,
        mut bytes: Bytes,
        last: bool,
    ) -> Result<Option<Bytes>, SessionError> {
        let cuts = &mut self.resumption.cuts;
        let Some(at) = cuts.iter().position(|(cut, _)| cut.stream == stream) else {
            return Ok(Some(bytes));
        };
        let Some((cut, skipped)) = cuts.get_mut(at) else {
            return Ok(Some(bytes));
        };
        let skip = cut.taken.saturating_sub(*skipped).min(bytes.len());
        *skipped = skipped.saturating_add(skip);
        let done = *skipped >= cut.taken;
        if cut.kind != kind || (last && !done) {
            return Err(SessionError::WrongReplay(stream));
        }
        bytes.advance(skip);
        if done {
            cuts.swap_remove(at);
        }
        Ok((last || !bytes.is_empty()).then_some(bytes))
    }

    /// Whether a frame of this stream is one that was cut and has to come again.
    pub(super) fn is_cut(&self, stream: StreamId) -> bool {
        let cuts = &self.resumption.cuts;
        !cuts.is_empty() && cuts.iter().any(|(cut, _)| cut.stream == stream)
    }

    /// Without a carrier nothing but the end of the window is due, or of the patience with a carrier that does not answer.
    pub(super) fn resume_timeout(&self) -> Option<Timestamp> {
        let deadline = self.resumption.deadline;
        match self.resumption.link {
            Link::Attached => None,
            Link::Suspended => deadline,
            Link::Asking(patience) | Link::Answered(patience, _) => {
                deadline.map(|deadline| deadline.min(patience))
            }
        }
    }

    /// True when the session has ended.
    pub(super) fn handle_resume_timeout(&mut self, now: Timestamp) -> bool {
        if self.resumption.deadline.is_some_and(|at| now >= at) {
            self.close(
                CloseReason {
                    code: ErrorCode::LOSS_OF_SESSION,
                    reason: format!("not resumed within {} ms", self.resumption.window_us / 1000),
                    by_peer: false,
                    refused: false,
                },
                None,
            );
            return true;
        }
        match self.resumption.link {
            Link::Asking(patience) | Link::Answered(patience, _) if now >= patience => {
                self.suspend(
                    now,
                    ErrorCode::HANDSHAKE_TIMEOUT,
                    "the carrier brought no answer to the request to resume",
                );
            }
            _ => {}
        }
        false
    }

    /// The token of the first epoch. Without one nothing is kept.
    pub(super) fn take_first_token(&mut self, token: ResumeToken) {
        self.resumption.token = token;
        if token.is_none() {
            self.drop_logs();
        }
    }

    /// Lets go of what was kept for a resumption that will not be. What has to leave again still does, before what stands ready, so
    /// that no frame is missing in between.
    pub(super) fn drop_logs(&mut self) {
        let attached = self.resumption.is_attached();
        self.resumption.retained = 0;
        self.resumption.waiting = 0;
        for lane in &mut self.lanes {
            if attached {
                lane.log.forget();
            } else {
                lane.log = Log::default();
            }
            self.resumption.retained = self.resumption.retained.saturating_add(lane.log.cost());
            self.resumption.waiting = self.resumption.waiting.saturating_add(lane.log.waiting());
        }
        self.resumption.retains = self.resumption.waiting > 0;
        self.resumption.acks_due = 0;
        self.resumption.unconfirmed = None;
        self.resumption.cuts = Vec::new();
    }
}

/// What was told of a lane; what was not told of has brought nothing.
fn offset_of(lanes: &[LaneOffset], lane: u16) -> u64 {
    lanes
        .iter()
        .find(|entry| entry.lane == lane)
        .map_or(0, |entry| entry.offset)
}

fn is_same_offsets(a: &[LaneOffset], b: &[LaneOffset]) -> bool {
    (0..LANES_MAX).all(|lane| offset_of(a, lane) == offset_of(b, lane))
}

/// Frames on their way into a lane's log: small ones are copied together.
#[derive(Default)]
struct Gather {
    ready: Ready,
    len: usize,
    log: Log,
}

impl Gather {
    fn put(&mut self, frame: &[Bytes]) {
        for piece in frame {
            self.ready.put_again(piece);
            self.len = self.len.saturating_add(piece.len());
        }
        if self.len >= LANE_READY_MAX {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let mut pieces = VecDeque::new();
        self.ready.take(&mut pieces);
        self.log.append(pieces);
        self.len = 0;
    }
}

/// Takes the next frame off `rest`, in pieces, its header included. `None` at the end; what is no frame is dropped.
fn next_frame(rest: &mut VecDeque<Bytes>, frame: &mut Vec<Bytes>) -> Option<FrameHeader> {
    frame.clear();
    let header = FrameHeader::decode(front(rest)?);
    let mut missing = Frame::HEADER_LEN.saturating_add(usize::try_from(header.len).ok()?);
    while missing > 0 {
        let piece = rest.front_mut()?;
        let taken = piece.split_to(missing.min(piece.len()));
        if piece.is_empty() {
            rest.pop_front();
        }
        missing = missing.saturating_sub(taken.len());
        if !taken.is_empty() {
            frame.push(taken);
        }
    }
    Some(header)
}

/// The first bytes, wherever they are cut.
fn front<const N: usize>(pieces: &VecDeque<Bytes>) -> Option<[u8; N]> {
    let mut bytes = pieces.iter().flat_map(|piece| piece.iter().copied());
    let mut front = [0; N];
    for byte in &mut front {
        *byte = bytes.next()?;
    }
    Some(front)
}

/// Whether a frame says something about the carrier that was lost: acknowledgements count its bytes, heartbeats measure its path.
fn is_of_its_epoch(header: FrameHeader, frame: &[Bytes]) -> bool {
    if header.stream != StreamId::CONTROL {
        return false;
    }
    let kind = frame
        .iter()
        .flat_map(|piece| piece.iter())
        .nth(Frame::HEADER_LEN.saturating_add(KIND_AT));
    header.kind == FrameType::ACK
        || (header.kind == FrameType::MESSAGE && kind == Some(&MessageType::HEARTBEAT.0))
}
