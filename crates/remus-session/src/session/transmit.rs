//! What leaves: messages under the peer's credit, in the order of the lanes' turns. Spec: core §5, §6.

use std::collections::VecDeque;

use bytes::Bytes;
use remus_wire::{ErrorCode, Flags, FrameType, Message, MessageType, StreamId};

use super::{DATAGRAMS_MAX, Session};
use crate::SHARED_MESSAGE_MAX;
use crate::event::Event;
use crate::lane::{LANE_READY_MAX, LaneId};
use crate::stream::{Stream, queued};

impl Session {
    /// The lanes that may have something to send since the last call, as bits; the driver then polls each.
    pub fn take_dirty_lanes(&mut self) -> u32 {
        core::mem::take(&mut self.dirty)
    }

    /// Moves what may leave on `lane` now to `out`: whole frames, about 64 KiB at most. False when there is nothing.
    ///
    /// What was moved counts as sent. Call it again when `out` has been written.
    pub fn poll_transmit(&mut self, lane: LaneId, out: &mut VecDeque<Bytes>) -> bool {
        if lane == LaneId::ZERO {
            self.write_credits();
        }
        self.fill(lane);
        let Some(entry) = self.lane_mut(lane) else {
            return false;
        };
        let len = entry.ready.len();
        if len == 0 {
            return false;
        }
        entry.ready.take(out);
        self.statistics.bytes_out = self
            .statistics
            .bytes_out
            .saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
        if self.congested && !self.is_congested() {
            self.congested = false;
            self.events.push_back(Event::Uncongested);
            self.wake_senders();
        }
        true
    }

    /// Tells every streaming call that waited for the session's queue.
    fn wake_senders(&mut self) {
        for (index, call) in &mut self.calls {
            if core::mem::take(&mut call.wants_writable)
                && let Ok(index) = u32::try_from(index)
            {
                self.events.push_back(Event::Writable(crate::CallKey {
                    index,
                    serial: call.serial,
                }));
            }
        }
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
        let session_credit = if shared {
            u64::MAX
        } else {
            self.send_window.credit()
        };
        let wide = u64::try_from(len).unwrap_or(u64::MAX);
        let Some(stream) = self.stream_mut(id) else {
            return;
        };
        if stream.send.finished {
            return;
        }
        stream.send.finished = ends;
        let lane_id = stream.lane;
        let direct = stream.send.queue.is_empty()
            && len <= SHARED_MESSAGE_MAX
            && stream.send.credit() >= wide
            && session_credit >= wide;
        let Some(lane) = self.lane_mut(lane_id) else {
            return;
        };
        if direct && lane.turns.is_empty() && lane.ready.len() < LANE_READY_MAX {
            lane.ready.put_message(id, message);
            if !shared {
                self.send_window.offset = self.send_window.offset.saturating_add(wide);
            }
            if let Some(stream) = self.stream_mut(id) {
                stream.send.offset = stream.send.offset.saturating_add(wide);
                stream.send.ended = ends;
            }
            self.dirty |= lane_id.bit();
            if ends {
                self.close_stream_if_done(id);
            }
            return;
        }
        let item = queued(message, ends);
        self.queued_bytes = self.queued_bytes.saturating_add(item.len());
        if let Some(stream) = self.stream_mut(id) {
            stream.send.queued_bytes = stream.send.queued_bytes.saturating_add(item.len());
            stream.send.queue.push_back(item);
        }
        self.schedule(id);
    }

    /// Puts a stream into its lane's turns if it has something to send and may.
    pub(super) fn schedule(&mut self, id: StreamId) {
        let Some(stream) = self.stream_mut(id) else {
            return;
        };
        if stream.send.in_turns || stream.send.queue.is_empty() || stream.send.credit() == 0 {
            return;
        }
        stream.send.in_turns = true;
        let (lane_id, class) = (stream.lane, stream.class);
        if let Some(lane) = self.lane_mut(lane_id) {
            lane.turns.push(class, id);
        }
        self.dirty |= lane_id.bit();
    }

    /// Fills the lane from the streams that wait for their turn.
    fn fill(&mut self, lane_id: LaneId) {
        loop {
            let Some(lane) = self.lane_mut(lane_id) else {
                return;
            };
            if lane.ready.len() >= LANE_READY_MAX {
                return;
            }
            let Some((class, id)) = lane.turns.pop() else {
                return;
            };
            if !self.send_one(lane_id, class, id) {
                return;
            }
        }
    }

    /// One frame of one stream. False when the session as a whole is out of credit.
    fn send_one(&mut self, lane_id: LaneId, class: u8, id: StreamId) -> bool {
        let shared = Stream::is_shared(id);
        let session_credit = if shared {
            u64::MAX
        } else {
            self.send_window.credit()
        };
        let unit = self.frame_unit(lane_id);
        let Some(stream) = self.stream_mut(id) else {
            return true;
        };
        let Some(item) = stream.send.queue.front() else {
            stream.send.in_turns = false;
            return true;
        };
        let remaining = item.len();
        let want = remaining.min(unit);
        let wide = u64::try_from(want).unwrap_or(u64::MAX);
        // Wait for credit for the whole frame: the receiver grants by half windows, which are larger than any frame.
        if stream.send.credit() < wide {
            stream.send.in_turns = false;
            return true;
        }
        if session_credit < wide {
            if let Some(lane) = self.lane_mut(lane_id) {
                lane.turns.push(class, id);
            }
            return false;
        }
        let whole = !item.started && want == remaining;
        let kind = match (whole, want == remaining) {
            (true, _) => FrameType::MESSAGE,
            (false, true) => FrameType::LAST,
            (false, false) => FrameType::PART,
        };
        let Some(mut item) = stream.send.queue.pop_front() else {
            return true;
        };
        stream.send.offset = stream.send.offset.saturating_add(wide);
        stream.send.queued_bytes = stream.send.queued_bytes.saturating_sub(want);
        let room = stream.send.queued_bytes;
        self.queued_bytes = self.queued_bytes.saturating_sub(want);
        if !shared {
            self.send_window.offset = self.send_window.offset.saturating_add(wide);
        }
        if let Some(lane) = self.lane_mut(lane_id) {
            lane.ready
                .put_part(id, kind, &mut item.head, &mut item.payload, want);
            lane.turns.charge(class, want);
        }
        let max_queued = self.config.max_stream_queued_bytes;
        let Some(stream) = self.stream_mut(id) else {
            return true;
        };
        let ended = want == remaining && item.ends;
        if want < remaining {
            item.started = true;
            stream.send.queue.push_front(item);
        }
        if ended {
            stream.send.ended = true;
        }
        let more = !stream.send.queue.is_empty();
        stream.send.in_turns = more;
        let owner = stream.call;
        if more && let Some(lane) = self.lane_mut(lane_id) {
            lane.turns.push(class, id);
        }
        if room < max_queued / 2
            && let Some(key) = owner
            && let Some(call) = self.call_mut(key)
            && core::mem::take(&mut call.wants_writable)
        {
            self.events.push_back(Event::Writable(key));
        }
        if ended {
            self.close_stream_if_done(id);
        }
        true
    }

    /// The largest frame payload on a lane: on lane 0, where others wait, 16 KiB; elsewhere what the peer takes.
    fn frame_unit(&self, lane: LaneId) -> usize {
        let peer = usize::try_from(
            self.peer_limits
                .max_frame
                .min(self.peer_limits.stream_window / 2),
        )
        .unwrap_or(usize::MAX);
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
            lane.ready.put_small(id, kind, fields);
        }
        self.dirty |= lane_id.bit();
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
                let window = self.config.limits.stream_window;
                let Some(stream) = self.stream_mut(id) else {
                    continue;
                };
                stream.recv.grant(window)
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
        let dropped = stream.send.queued_bytes;
        stream.send.queue.clear();
        stream.send.queued_bytes = 0;
        stream.send.finished = true;
        stream.send.ended = true;
        let lane = stream.lane;
        self.queued_bytes = self.queued_bytes.saturating_sub(dropped);
        self.put_small(lane, id, FrameType::RESET, &code.0.to_be_bytes());
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
        stream.recv.lane = None;
        let lane = stream.lane;
        self.open_streams = self.open_streams.saturating_sub(1);
        if let Some(lane) = self.lane_mut(lane) {
            lane.open_streams = lane.open_streams.saturating_sub(1);
        }
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
