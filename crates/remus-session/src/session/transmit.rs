//! What leaves: messages under the peer's credit, in the order of the lanes' turns. Spec: core §5, §6.

use std::collections::VecDeque;

use bytes::Bytes;
use remus_wire::{ErrorCode, Flags, FrameType, Message, MessageType, StreamId};

use super::{CONTROL_QUEUED_MAX, DATAGRAMS_MAX, Session};
use crate::SHARED_MESSAGE_MAX;
use crate::call::CallKey;
use crate::event::Event;
use crate::lane::{LANE_READY_MAX, LaneId};
use crate::stream::{Queued, Stream};

/// What a turn of a stream led to.
enum Turn {
    /// It has more to send and may.
    More,
    /// It has nothing to send, or waits for credit.
    Done,
}

impl Session {
    /// The lanes that may have something to send since the last call, as bits; the driver then polls each.
    pub fn take_dirty_lanes(&mut self) -> u32 {
        core::mem::take(&mut self.dirty)
    }

    /// Moves what may leave on `lane` now to `out`: whole frames, about 64 KiB at most. False when there is nothing.
    ///
    /// What was moved counts as sent. Call it again when `out` has been written, until it returns false; and take the events that it
    /// may cause.
    pub fn poll_transmit(&mut self, lane: LaneId, out: &mut VecDeque<Bytes>) -> bool {
        if !self.resumption.is_attached() {
            return self.transmit_request(lane, out);
        }
        let mut began = false;
        if lane == LaneId::ZERO {
            began = self.resumption.preamble.is_some() && self.take_preamble(out);
            self.write_credits();
        }
        self.fill(lane);
        let retains = self.resumption.retains;
        let Some(entry) = self.lane_mut(lane) else {
            return false;
        };
        let len = if retains {
            self.take_and_keep(lane, out)
        } else {
            let len = entry.ready.len();
            if len > 0 {
                entry.ready.take(out);
                if !entry.turns.is_empty() {
                    self.dirty |= lane.bit();
                }
                self.ready_bytes = self.ready_bytes.saturating_sub(len);
            }
            len
        };
        if len == 0 {
            return began;
        }
        self.statistics.bytes_out = self
            .statistics
            .bytes_out
            .saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
        self.note_room();
        self.finish_if_drained();
        true
    }

    /// Moves what stands ready to `out`, and keeps it until the peer has acknowledged it; what has to leave again goes first. Returns how
    /// many bytes it were.
    fn take_and_keep(&mut self, lane: LaneId, out: &mut VecDeque<Bytes>) -> usize {
        let Some(entry) = self.lane_mut(lane) else {
            return 0;
        };
        let more = !entry.turns.is_empty();
        if entry.log.waiting() > 0 {
            let len = entry.log.replay(out, LANE_READY_MAX);
            let more = more || entry.ready.len() > 0 || entry.log.waiting() > 0;
            self.resumption.waiting = self.resumption.waiting.saturating_sub(len);
            if more {
                self.dirty |= lane.bit();
            }
            return len;
        }
        let before = out.len();
        let mut len = entry.ready.len();
        entry.ready.take(out);
        self.ready_bytes = self.ready_bytes.saturating_sub(len);
        if more {
            self.dirty |= lane.bit();
        }
        // Behind what stands ready: an acceptor's last step of the handshake, for example, which opens the session to the peer.
        if lane == LaneId::ZERO
            && self.resumption.acks_due != 0
            && self.state.is_open()
            && let Some(acks) = self.write_acks()
        {
            len = len.saturating_add(acks.len());
            out.push_back(acks);
        }
        if len > 0
            && let Some(entry) = self.lane_mut(lane)
        {
            let cost = entry.log.keep(out.range(before..));
            self.note_retained(cost);
        }
        len
    }

    /// Says that there is room again, and tells every streaming call that waited for it.
    fn note_room(&mut self) {
        if !self.congested || self.is_congested() || self.state.is_closed() {
            return; // nothing follows the end
        }
        self.congested = false;
        self.events.push_back(Event::Uncongested);
        for (index, call) in &mut self.calls {
            if core::mem::take(&mut call.wants_writable)
                && let Ok(index) = u32::try_from(index)
            {
                self.events.push_back(Event::Writable(CallKey {
                    index,
                    serial: call.serial,
                }));
            }
        }
    }

    /// Whether [`Session::poll_datagram`] has something.
    #[must_use]
    pub fn has_datagrams(&self) -> bool {
        !self.datagrams.is_empty()
    }

    /// The next datagram to send, if the carrier has them.
    pub fn poll_datagram(&mut self) -> Option<Bytes> {
        self.datagrams.pop_front()
    }

    pub(super) fn push_datagram(&mut self, datagram: Bytes) {
        while self.datagrams.len() >= DATAGRAMS_MAX {
            self.datagrams.pop_front();
        }
        self.datagrams.push_back(datagram);
    }

    /// Sends a message on a stream: at once where nothing waits before it and credit allows, else in its turn.
    pub(super) fn emit(&mut self, id: StreamId, message: &Message, ends: bool) {
        let len = message.encoded_len();
        let shared = Stream::is_shared(id);
        let session_credit = self.session_credit(id);
        let wide = u64::try_from(len).unwrap_or(u64::MAX);
        let Some(stream) = self.stream_mut(id) else {
            return;
        };
        if stream.send.finished {
            return;
        }
        stream.send.finished = ends;
        let lane_id = stream.lane;
        // A shared stream has a queue for each class, so that priorities mean something there too.
        let class = if shared {
            message.priority.class()
        } else {
            stream.class
        };
        let full = self.resumption.is_full();
        let Some(stream) = self.stream_mut(id) else {
            return;
        };
        let direct = !full
            && len <= SHARED_MESSAGE_MAX
            && stream.send.is_idle()
            && stream.send.credit() >= wide
            && session_credit >= wide;
        let Some(lane) = self.lane_mut(lane_id) else {
            return;
        };
        if direct && lane.turns.is_empty() && lane.ready.len() < LANE_READY_MAX {
            let added = lane.ready.put_message(id, message);
            self.ready_bytes = self.ready_bytes.saturating_add(added);
            if !shared {
                self.send_window.offset = self.send_window.offset.saturating_add(wide);
            }
            if let Some(stream) = self.stream_mut(id) {
                stream.send.offset = stream.send.offset.saturating_add(wide);
                stream.send.known = true;
                stream.send.ended = ends;
            }
            self.dirty |= lane_id.bit();
            if ends {
                self.close_stream_if_done(id);
            }
            return;
        }
        let item = Queued::new(message.clone(), ends);
        self.queued_bytes = self.queued_bytes.saturating_add(item.len());
        if let Some(stream) = self.stream_mut(id) {
            stream.send.push(class, item);
        }
        self.schedule(id);
    }

    /// What the session's credit leaves to a stream; the shared ones are exempt (decision 0003).
    fn session_credit(&self, id: StreamId) -> u64 {
        if Stream::is_shared(id) {
            u64::MAX
        } else {
            self.send_window.credit()
        }
    }

    /// Puts a stream into its lane's turns if it has something to send and may.
    pub(super) fn schedule(&mut self, id: StreamId) {
        let session_credit = self.session_credit(id);
        let Some(stream) = self.stream_mut(id) else {
            return;
        };
        if stream.send.credit() == 0 || stream.send.is_idle() {
            return;
        }
        if session_credit == 0 {
            if !stream.send.parked {
                stream.send.parked = true;
                self.parked.push_back(id);
            }
            return;
        }
        let lane_id = stream.lane;
        let index = usize::from(lane_id.0);
        let (Some(Some(stream)), Some(lane)) = (
            self.streams.get_mut(usize::from(id.0)),
            self.lanes.get_mut(index),
        ) else {
            return;
        };
        for queue in stream.send.queues_mut() {
            if !queue.in_turns && !queue.items.is_empty() {
                queue.in_turns = true;
                lane.turns.push(queue.class, id);
            }
        }
        self.dirty |= lane_id.bit();
    }

    /// The session has credit again: whoever waited for it may take its turn.
    pub(super) fn unpark(&mut self) {
        for id in core::mem::take(&mut self.parked) {
            if let Some(stream) = self.stream_mut(id) {
                stream.send.parked = false;
            }
            self.schedule(id);
        }
    }

    /// Fills the lane from the streams that wait for their turn.
    fn fill(&mut self, lane_id: LaneId) {
        let full = self.resumption.is_full();
        loop {
            let Some(lane) = self.lane_mut(lane_id) else {
                return;
            };
            if full || lane.ready.len() >= LANE_READY_MAX {
                return;
            }
            let Some((class, id)) = lane.turns.pop() else {
                return;
            };
            self.take_turn(lane_id, class, id);
        }
    }

    /// One turn of a stream: frames of one unit together, so that many small messages get as much as one large.
    fn take_turn(&mut self, lane_id: LaneId, class: u8, id: StreamId) {
        let unit = self.frame_unit(lane_id);
        let mut left = unit;
        let mut turn = Turn::More;
        while left > 0 && matches!(turn, Turn::More) {
            turn = self.send_one(lane_id, class, id, unit, &mut left);
        }
        let Some(stream) = self.stream_mut(id) else {
            return;
        };
        let Some(queue) = stream.send.queue_mut(class) else {
            return;
        };
        let more = matches!(turn, Turn::More) && !queue.items.is_empty();
        queue.in_turns = more;
        if more {
            if let Some(lane) = self.lane_mut(lane_id) {
                lane.turns.push(class, id);
            }
        } else {
            // Parks it where the session's credit is what it lacks.
            self.schedule(id);
        }
    }

    /// One frame of at most `unit` bytes, if what is left of the turn has room for it.
    fn send_one(
        &mut self,
        lane_id: LaneId,
        class: u8,
        id: StreamId,
        unit: usize,
        left: &mut usize,
    ) -> Turn {
        let shared = Stream::is_shared(id);
        let session_credit = self.session_credit(id);
        let Some(stream) = self.stream_mut(id) else {
            return Turn::Done;
        };
        let credit =
            usize::try_from(stream.send.credit().min(session_credit)).unwrap_or(usize::MAX);
        // The rest of a message that has left in part goes first, whatever its class: nothing may come between its parts.
        let cut = stream.send.cut;
        let Some(item) = stream
            .send
            .queue_mut(cut.unwrap_or(class))
            .and_then(|queue| queue.items.pop_front())
        else {
            return Turn::Done;
        };
        let mut item = item;
        let remaining = item.len();
        let want = remaining.min(unit).min(credit);
        // All credit is used, if need be for a short frame: a sender that waited for more would depend on how its peer grants.
        if want == 0 || (want > *left && *left < unit) {
            let turn = if want == 0 { Turn::Done } else { Turn::More };
            if want > 0 {
                *left = 0;
            }
            if let Some(queue) = stream.send.queue_mut(cut.unwrap_or(class)) {
                queue.items.push_front(item);
            }
            return turn;
        }
        *left = left.saturating_sub(want);
        let kind = match (cut.is_some(), want == remaining) {
            (false, true) => FrameType::MESSAGE,
            (true, true) => FrameType::LAST,
            (_, false) => FrameType::PART,
        };
        let wide = u64::try_from(want).unwrap_or(u64::MAX);
        stream.send.offset = stream.send.offset.saturating_add(wide);
        stream.send.queued_bytes = stream.send.queued_bytes.saturating_sub(want);
        stream.send.known = true;
        let room = stream.send.queued_bytes;
        let owner = stream.call;
        self.queued_bytes = self.queued_bytes.saturating_sub(want);
        if !shared {
            self.send_window.offset = self.send_window.offset.saturating_add(wide);
        }
        if let Some(lane) = self.lane_mut(lane_id) {
            let added = if kind == FrameType::MESSAGE {
                lane.ready.put_message(id, &item.message)
            } else {
                let (head, payload) = item.parts();
                lane.ready.put_part(id, kind, head, payload, want)
            };
            lane.turns.charge(class, want);
            self.ready_bytes = self.ready_bytes.saturating_add(added);
        }
        let ended = want == remaining && item.ends;
        if let Some(stream) = self.stream_mut(id) {
            if want < remaining {
                let class = cut.unwrap_or(class);
                stream.send.cut = Some(class);
                if let Some(queue) = stream.send.queue_mut(class) {
                    queue.items.push_front(item);
                }
            } else {
                stream.send.cut = None;
            }
            stream.send.ended |= ended;
        }
        if room < self.config.max_stream_queued_bytes / 2
            && let Some(key) = owner
            && let Some(call) = self.call_mut(key)
            && core::mem::take(&mut call.wants_writable)
        {
            self.events.push_back(Event::Writable(key));
        }
        if ended {
            self.close_stream_if_done(id);
        }
        Turn::More
    }

    /// The largest frame payload on a lane: on lane 0, where others wait, 16 KiB; elsewhere what the peer takes.
    fn frame_unit(&self, lane: LaneId) -> usize {
        let peer = usize::try_from(self.peer_limits.max_frame).unwrap_or(usize::MAX);
        if lane == LaneId::ZERO {
            peer.min(SHARED_MESSAGE_MAX)
        } else {
            peer.min(LANE_READY_MAX)
        }
    }

    /// A frame of fixed fields on a lane.
    pub(super) fn put_small(
        &mut self,
        lane_id: LaneId,
        id: StreamId,
        kind: FrameType,
        fields: &[u8],
    ) {
        if let Some(lane) = self.lane_mut(lane_id) {
            let added = lane.ready.put_small(id, kind, fields);
            self.ready_bytes = self.ready_bytes.saturating_add(added);
        }
        self.note_output(lane_id);
    }

    /// Something was put on a lane that needed no credit: notices when the peer does not read it.
    pub(super) fn note_output(&mut self, lane_id: LaneId) {
        self.dirty |= lane_id.bit();
        let waiting = self.lane_mut(lane_id).map_or(0, |lane| lane.ready.len());
        if waiting > CONTROL_QUEUED_MAX {
            self.overflow = Some(waiting);
        }
    }

    fn write_credits(&mut self) {
        while let Some(id) = self.credit_due.pop_front() {
            let limit = if id.0 == 0 {
                let assembling = u64::try_from(self.assembling).unwrap_or(u64::MAX);
                let window = &mut self.recv_window;
                window.due = false;
                let target = window
                    .consumed
                    .saturating_add(self.config.limits.session_window.into())
                    .saturating_add(assembling);
                window.granted = window.granted.max(target);
                window.granted
            } else {
                let (now, max) = (self.live.last_heard(), self.config.max_stream_window);
                let round_trip_us = self.round_trip_us;
                let Some(stream) = self.stream_mut(id) else {
                    continue;
                };
                stream.recv.grant(now, round_trip_us, max)
            };
            // On lane 0 whatever lane the data takes: credits are absolute, so their order does not matter.
            self.put_small(LaneId::ZERO, id, FrameType::CREDIT, &limit.to_be_bytes());
        }
    }

    /// Abandons our direction of a stream: what waits is dropped, the peer is told.
    pub(super) fn reset_sending(&mut self, id: StreamId, code: ErrorCode) {
        let Some(stream) = self
            .stream_mut(id)
            .filter(|stream| stream.open && !stream.send.ended)
        else {
            return;
        };
        let dropped = stream.send.clear();
        stream.send.finished = true;
        stream.send.ended = true;
        let lane = stream.lane;

        self.queued_bytes = self.queued_bytes.saturating_sub(dropped);
        self.put_small(lane, id, FrameType::RESET, &code.0.to_be_bytes());
        self.note_room();
    }

    /// Asks the peer to stop its direction, and drops what still comes.
    ///
    /// On a stream that the peer opened this is only said before our own direction ends: once both have ended the peer may use
    /// the ID again, and a late STOP would hit the wrong call (core §5).
    pub(super) fn stop_receiving(&mut self, id: StreamId, code: ErrorCode) {
        let Some(stream) = self
            .stream_mut(id)
            .filter(|stream| stream.open && !stream.recv.ended && stream.recv.discard.is_none())
        else {
            return;
        };
        stream.recv.discard = Some(crate::assembly::Discard::within(
            stream.recv.assembly.as_ref(),
        ));
        let may_be_late = stream.send.finished;
        let lane = stream.lane;
        self.drop_assembly(id);
        if !(may_be_late && self.is_peers(id)) {
            self.put_small(lane, id, FrameType::STOP, &code.0.to_be_bytes());
        }
    }

    /// Gives up both directions of a stream.
    pub(super) fn abandon(&mut self, id: StreamId, code: ErrorCode) {
        let Some(stream) = self.stream_mut(id).filter(|stream| stream.open) else {
            return;
        };
        if !stream.send.known && !self.is_peers(id) {
            // The peer has never heard of it, and would not answer: it ends here.
            let Some(stream) = self.stream_mut(id) else {
                return;
            };
            let dropped = stream.send.clear();
            stream.send.finished = true;
            stream.send.ended = true;
            stream.recv.ended = true;
            self.queued_bytes = self.queued_bytes.saturating_sub(dropped);
            self.note_room();
        } else {
            self.stop_receiving(id, code);
            self.reset_sending(id, code);
        }
        self.close_stream_if_done(id);
    }

    /// Frees the stream ID when both directions have ended.
    pub(super) fn close_stream_if_done(&mut self, id: StreamId) {
        if Stream::is_shared(id) {
            return;
        }
        let Some(stream) = self.stream_mut(id).filter(|stream| stream.is_done()) else {
            return;
        };
        stream.open = false;
        stream.call = None;
        self.open_streams = self.open_streams.saturating_sub(1);
        if !self.is_peers(id) {
            self.free_from = self.free_from.min(self.stream_number(id));
        }
    }

    /// A stream's number among those of its side, from 0; the shared ones do not count.
    pub(super) fn stream_number(&self, id: StreamId) -> u32 {
        u32::from(id.0.saturating_sub(3) / 2)
    }

    /// A message of ours, stamped.
    pub(super) fn stamped(
        &mut self,
        now: remus_wire::Timestamp,
        kind: MessageType,
        payload: Bytes,
    ) -> Message {
        Message {
            timestamp: self.clock.tick(now),
            ..Message::new(kind, payload)
        }
    }

    /// Flags that the session keeps to itself; the application cannot set them.
    pub(super) fn own_flags(flags: Flags) -> Flags {
        flags.difference(
            Flags::STREAM_END | Flags::BATCH_REQUEST | Flags::COMPRESSED | Flags::STATE_DELTA,
        )
    }
}
