//! What is on its way: one direction of a flow, and the link that all flows of a direction share. The time is handed in.
//!
//! Invariants: what stands in a line leaves in that order, so `due` never falls from front to back; every datagram that arrived or was
//! doubled is in a line or in exactly one of the counters that say how it ended.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::fate::Fates;
use super::proxy::UdpCounts;
use super::settings::{DELAY_MAX, Udp};

/// Bytes of datagrams that may be on their way in one direction, all flows together: 600 Mbit/s over a second. Beyond it what arrives is
/// dropped, as by a router.
pub const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What a datagram counts beside its payload towards [`WAITING_BYTES_MAX`]: the memory around it, so that empty ones are bounded too.
pub const PACKET_OVERHEAD_BYTES: usize = 256;

/// Longest time that a datagram waits for its turn on a link of limited bandwidth: the queue of a home router. What would wait longer is
/// dropped, and connections are not read.
pub const BACKLOG_MAX: Duration = Duration::from_millis(200);

/// Longest time that a datagram waits to be overtaken. Shorter than any retransmission, so it is late and not lost.
pub const REORDER_HOLD: Duration = Duration::from_millis(20);

/// Datagrams of a line that may wait to be overtaken at a time; beyond it they keep their order.
pub const HELD_MAX: usize = 64;

/// The bandwidth of a link: when what is sent next has left it.
#[derive(Debug, Default)]
pub(super) struct Shaper(Mutex<Option<Instant>>);

impl Shaper {
    /// When so many bytes have left if they are sent now, after all before them; `None` if their turn would come later than `patience`.
    pub(super) fn send(
        &self,
        now: Instant,
        bytes: usize,
        bandwidth: Option<NonZeroU64>,
        patience: Duration,
    ) -> Option<Instant> {
        let mut free_at = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(bandwidth) = bandwidth else {
            *free_at = None;
            return Some(now);
        };
        let begins = free_at.map_or(now, |free_at| free_at.max(now));
        if begins.duration_since(now) > patience {
            return None;
        }
        let nanoseconds = u64::try_from(bytes)
            .unwrap_or(u64::MAX)
            .saturating_mul(1_000_000_000)
            / bandwidth;
        let ends = begins + Duration::from_nanos(nanoseconds);
        *free_at = Some(ends);
        Some(ends)
    }

    /// When no more than [`BACKLOG_MAX`] waits.
    pub(super) fn ready_at(&self, now: Instant) -> Instant {
        let free_at = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free_at
            .and_then(|free_at| free_at.checked_sub(BACKLOG_MAX))
            .map_or(now, |ready_at| ready_at.max(now))
    }
}

/// One direction of the link that carries the datagrams of all flows.
#[derive(Debug, Default)]
pub(super) struct Link {
    shaper: Shaper,
    waiting_bytes: AtomicUsize,
    pub(super) arrived: AtomicU64,
    pub(super) delivered: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) duplicated: AtomicU64,
    pub(super) reordered: AtomicU64,
    pub(super) overflowed: AtomicU64,
    pub(super) swallowed: AtomicU64,
    pub(super) failed: AtomicU64,
}

/// Adds one.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Link {
    /// A datagram that has just arrived, with its place; without one it is counted as overflow.
    pub(super) fn take_in(self: &Arc<Self>, payload: &[u8]) -> Option<Packet> {
        count(&self.arrived);
        self.place(payload.len())
            .map(|place| Packet::new(Bytes::copy_from_slice(payload), place))
    }

    fn place(self: &Arc<Self>, payload_bytes: usize) -> Option<Place> {
        let bytes = payload_bytes + PACKET_OVERHEAD_BYTES;
        let before = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        // Made before it is judged, so that it gives back what it took.
        let place = Place {
            link: Arc::clone(self),
            bytes,
        };
        if before + bytes > WAITING_BYTES_MAX {
            count(&self.overflowed);
            return None;
        }
        Some(place)
    }

    pub(super) fn counts(&self) -> UdpCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        UdpCounts {
            arrived: read(&self.arrived),
            delivered: read(&self.delivered),
            lost: read(&self.lost),
            duplicated: read(&self.duplicated),
            reordered: read(&self.reordered),
            overflowed: read(&self.overflowed),
            swallowed: read(&self.swallowed),
            failed: read(&self.failed),
        }
    }
}

/// Bytes of [`WAITING_BYTES_MAX`] that somebody has.
#[derive(Debug)]
struct Place {
    link: Arc<Link>,
    bytes: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.link
            .waiting_bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A datagram on its way.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) payload: Bytes,
    _place: Place,
}

impl Packet {
    fn new(payload: Bytes, place: Place) -> Self {
        Self {
            payload,
            _place: place,
        }
    }
}

/// One direction of a flow.
#[derive(Debug)]
pub(super) struct Line {
    link: Arc<Link>,
    fates: Fates,
    waiting: VecDeque<(Instant, Packet)>,
    held: VecDeque<Held>,
    last_due: Option<Instant>,
}

/// A datagram that waits to be overtaken.
#[derive(Debug)]
struct Held {
    packet: Packet,
    jitter: Duration,
    until: Instant,
    overtaken: bool,
    /// How many are still to overtake it.
    to_come: u32,
}

impl Line {
    pub(super) fn new(link: Arc<Link>, fates: Fates) -> Self {
        Self {
            link,
            fates,
            waiting: VecDeque::new(),
            held: VecDeque::new(),
            last_due: None,
        }
    }

    /// Sends a datagram on its way, or not, as fate and conditions have it.
    pub(super) fn push(&mut self, now: Instant, packet: Packet, conditions: &Udp) {
        self.release_expired(now, conditions);
        let fate = self.fates.next(conditions);
        if conditions.black_hole {
            count(&self.link.swallowed);
            return;
        }
        if fate.lost {
            count(&self.link.lost);
            return;
        }
        let copy = if fate.duplicated {
            count(&self.link.duplicated);
            self.link
                .place(packet.payload.len())
                .map(|place| Packet::new(packet.payload.clone(), place))
        } else {
            None
        };
        if fate.overtaken_by > 0 && self.held.len() < HELD_MAX {
            self.held.push_back(Held {
                packet,
                jitter: fate.jitter,
                until: now + REORDER_HOLD,
                overtaken: false,
                to_come: fate.overtaken_by,
            });
        } else {
            self.enqueue(now, packet, fate.jitter, conditions);
            self.overtake(now, conditions);
        }
        if let Some(copy) = copy {
            self.enqueue(now, copy, fate.jitter, conditions);
        }
    }

    /// The next datagram whose time has come.
    pub(super) fn pop(&mut self, now: Instant, conditions: &Udp) -> Option<Packet> {
        self.release_expired(now, conditions);
        let (due, _) = self.waiting.front()?;
        if *due > now {
            return None;
        }
        self.waiting.pop_front().map(|(_, packet)| packet)
    }

    /// When [`Line::pop`] has something to do next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let waiting = self.waiting.front().map(|(due, _)| *due);
        let held = self.held.front().map(|held| held.until);
        waiting.into_iter().chain(held).min()
    }

    fn enqueue(&mut self, now: Instant, packet: Packet, jitter: Duration, conditions: &Udp) {
        let sent =
            self.link
                .shaper
                .send(now, packet.payload.len(), conditions.bandwidth, BACKLOG_MAX);
        let Some(sent) = sent else {
            count(&self.link.overflowed);
            return;
        };
        let due = sent + conditions.delay.min(DELAY_MAX) + jitter;
        let due = self.last_due.map_or(due, |last| last.max(due));
        self.last_due = Some(due);
        self.waiting.push_back((due, packet));
    }

    /// One that has just gone overtakes all that are held.
    fn overtake(&mut self, now: Instant, conditions: &Udp) {
        for mut held in std::mem::take(&mut self.held) {
            held.to_come = held.to_come.saturating_sub(1);
            if !held.overtaken {
                held.overtaken = true;
                count(&self.link.reordered);
            }
            if held.to_come == 0 {
                self.enqueue(now, held.packet, held.jitter, conditions);
            } else {
                self.held.push_back(held);
            }
        }
    }

    fn release_expired(&mut self, now: Instant, conditions: &Udp) {
        // All are held equally long, so the first is the first to expire.
        while let Some(held) = self.held.pop_front_if(|held| held.until <= now) {
            // Its way begins when it should have been let go, however late somebody looks.
            self.enqueue(held.until, held.packet, held.jitter, conditions);
        }
    }
}

impl Drop for Line {
    /// What a flow had on its way when it ended is gone.
    fn drop(&mut self) {
        let gone = self.waiting.len() + self.held.len();
        let gone = u64::try_from(gone).unwrap_or(u64::MAX);
        self.link.swallowed.fetch_add(gone, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::{Chance, Direction, Protocol};
    use super::*;
    use crate::for_each_seed;

    const MS: Duration = Duration::from_millis(1);

    fn line(seed: u64) -> (Arc<Link>, Line) {
        let link = Arc::<Link>::default();
        let fates = Fates::new(seed, Protocol::Udp, 0, Direction::Up);
        (Arc::clone(&link), Line::new(link, fates))
    }

    fn push(line: &mut Line, now: Instant, number: u32, conditions: &Udp) {
        if let Some(packet) = line.link.take_in(&number.to_be_bytes()) {
            line.push(now, packet, conditions);
        }
    }

    fn pop_all(line: &mut Line, now: Instant, conditions: &Udp) -> Vec<u32> {
        std::iter::from_fn(|| line.pop(now, conditions))
            .map(|packet| {
                count(&line_link(&packet).delivered);
                u32::from_be_bytes(packet.payload[..].try_into().unwrap())
            })
            .collect()
    }

    fn line_link(packet: &Packet) -> &Link {
        &packet._place.link
    }

    #[test]
    fn a_good_line_passes_everything_on_at_once_and_in_order() {
        let (link, mut line) = line(1);
        let now = Instant::now();
        for number in 0..1000 {
            push(&mut line, now, number, &Udp::default());
        }
        assert!(
            pop_all(&mut line, now, &Udp::default())
                .into_iter()
                .eq(0..1000)
        );
        assert_eq!(line.next_due(), None);
        assert_eq!(link.waiting_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn delay_and_jitter_keep_the_order_and_the_range() {
        let conditions = Udp {
            delay: 20 * MS,
            jitter: 10 * MS,
            ..Udp::default()
        };
        for_each_seed(20, |rng| {
            let (_, mut line) = line(rng.seed());
            let begin = Instant::now();
            let mut pushed = Vec::new();
            let mut number = 0;
            let mut came = Vec::new();
            for step in 0..2000_u32 {
                let now = begin + step * MS / 2;
                for came_now in pop_all(&mut line, now, &conditions) {
                    came.push(came_now);
                    let way = now - pushed[came_now as usize];
                    assert!(way >= 20 * MS, "{way:?}");
                    // The one before it may hold it up, never beyond that one's own latest time.
                    assert!(way <= 31 * MS, "{way:?}");
                }
                if rng.chance(1, 2) {
                    push(&mut line, now, number, &conditions);
                    number += 1;
                    pushed.push(now);
                }
            }
            came.extend(pop_all(&mut line, begin + 2000 * MS, &conditions));
            assert!(came.into_iter().eq(0..number));
        });
    }

    /// Every datagram ends in exactly one way, whatever happens to it, and the fates alone say which.
    #[test]
    fn nothing_is_counted_twice_or_never_and_fates_rule() {
        let conditions = Udp {
            delay: 5 * MS,
            jitter: 3 * MS,
            loss: Chance::percent(10),
            duplicate: Chance::percent(10),
            reorder: Chance::percent(10),
            ..Udp::default()
        };
        for_each_seed(20, |rng| {
            let (link, mut line) = line(rng.seed());
            let mut fates = Fates::new(rng.seed(), Protocol::Udp, 0, Direction::Up);
            let mut now = Instant::now();
            let mut expected = Vec::new();
            let mut came = Vec::new();
            for number in 0..1000 {
                now += Duration::from_micros(rng.below(2000));
                push(&mut line, now, number, &conditions);
                let fate = fates.next(&conditions);
                let copies = if fate.lost {
                    0
                } else {
                    1 + usize::from(fate.duplicated)
                };
                expected.extend(std::iter::repeat_n(number, copies));
                came.extend(pop_all(&mut line, now, &conditions));
            }
            let now = now + Duration::from_secs(1);
            came.extend(pop_all(&mut line, now, &conditions));
            assert!(!came.is_sorted(), "something is reordered");
            came.sort_unstable();
            assert!(came == expected, "what comes is what fates say");
            let counts = link.counts();
            assert_eq!(counts.arrived, 1000);
            assert_eq!(
                counts.arrived + counts.duplicated,
                counts.delivered + counts.lost
            );
            assert_eq!(link.waiting_bytes.load(Ordering::Relaxed), 0);
        });
    }

    #[test]
    fn a_reordered_datagram_is_overtaken_by_as_many_as_its_fate_says() {
        let conditions = Udp {
            reorder: Chance::percent(2),
            ..Udp::default()
        };
        for_each_seed(20, |rng| {
            let (link, mut line) = line(rng.seed());
            let now = Instant::now();
            let mut fates = Fates::new(rng.seed(), Protocol::Udp, 0, Direction::Up);
            let fates: Vec<u32> = (0..1000)
                .map(|_| fates.next(&conditions).overtaken_by)
                .collect();
            for number in 0..1000 {
                push(&mut line, now, number, &conditions);
            }
            let came = pop_all(&mut line, now + REORDER_HOLD, &conditions);
            for (place, &number) in came.iter().enumerate() {
                let overtook = came[..place]
                    .iter()
                    .filter(|&&other| other > number && fates[other as usize] == 0);
                let by = fates[number as usize];
                // Near the end there may be fewer that could.
                assert!(
                    overtook.count() == by as usize || number + by >= 960,
                    "{number} by {by}"
                );
            }
            let reordered = fates.iter().filter(|&&by| by > 0).count() as u64;
            assert!(
                link.counts().reordered <= reordered && link.counts().reordered + 3 >= reordered
            );
        });
    }

    #[test]
    fn the_last_datagram_is_late_and_not_lost_if_none_overtakes_it() {
        let conditions = Udp {
            reorder: Chance::ALWAYS,
            ..Udp::default()
        };
        let (link, mut line) = line(1);
        let now = Instant::now();
        push(&mut line, now, 7, &conditions);
        assert_eq!(pop_all(&mut line, now, &conditions), []);
        let due = line.next_due().unwrap();
        assert_eq!(due, now + REORDER_HOLD);
        assert_eq!(pop_all(&mut line, due, &conditions), [7]);
        assert_eq!(link.counts().reordered, 0);
    }

    #[test]
    fn no_more_than_the_limit_is_held() {
        let conditions = Udp {
            reorder: Chance::ALWAYS,
            ..Udp::default()
        };
        let (_, mut line) = line(1);
        let now = Instant::now();
        for number in 0..u32::try_from(HELD_MAX).unwrap() {
            push(&mut line, now, number, &conditions);
        }
        assert_eq!(line.held.len(), HELD_MAX);
        push(&mut line, now, 1000, &conditions);
        assert_eq!(
            line.pop(now, &conditions).unwrap().payload[..],
            1000_u32.to_be_bytes()
        );
        assert!(line.held.len() <= HELD_MAX);
    }

    #[test]
    fn bandwidth_spaces_datagrams_and_drops_what_would_wait_too_long() {
        // Four bytes take 4 ms, so the 52nd finds a backlog of 204 ms.
        let conditions = Udp {
            bandwidth: NonZeroU64::new(1000),
            ..Udp::default()
        };
        let (link, mut line) = line(1);
        let now = Instant::now();
        for number in 0..100 {
            push(&mut line, now, number, &conditions);
        }
        for number in 0..51 {
            let due = now + (number + 1) * 4 * MS;
            assert_eq!(line.next_due(), Some(due));
            assert_eq!(pop_all(&mut line, due, &conditions), [number]);
        }
        assert_eq!(line.next_due(), None);
        assert_eq!(link.counts().overflowed, 49);
        // An idle link saves nothing up.
        let later = now + 1000 * MS;
        push(&mut line, later, 100, &conditions);
        assert_eq!(line.next_due(), Some(later + 4 * MS));
    }

    #[test]
    fn flows_share_the_bandwidth_of_a_link() {
        let conditions = Udp {
            bandwidth: NonZeroU64::new(1000),
            ..Udp::default()
        };
        let (link, mut first) = line(1);
        let fates = Fates::new(1, Protocol::Udp, 1, Direction::Up);
        let mut second = Line::new(link, fates);
        let now = Instant::now();
        push(&mut first, now, 0, &conditions);
        push(&mut second, now, 0, &conditions);
        assert_eq!(first.next_due(), Some(now + 4 * MS));
        assert_eq!(second.next_due(), Some(now + 8 * MS));
    }

    #[test]
    fn a_black_hole_swallows_and_takes_its_numbers_all_the_same() {
        let hole = Udp {
            black_hole: true,
            loss: Chance::percent(50),
            ..Udp::default()
        };
        let open = Udp {
            black_hole: false,
            ..hole
        };
        let (link, mut line) = line(9);
        let now = Instant::now();
        for number in 0..100 {
            let conditions = if number < 50 { &hole } else { &open };
            push(&mut line, now, number, conditions);
        }
        let mut fates = Fates::new(9, Protocol::Udp, 0, Direction::Up);
        let expected: Vec<u32> = (0..100)
            .filter(|&number| !fates.next(&open).lost && number >= 50)
            .collect();
        assert_eq!(pop_all(&mut line, now, &open), expected);
        assert_eq!(link.counts().swallowed, 50);
    }

    #[test]
    fn what_waits_is_bounded_and_given_back() {
        let conditions = Udp {
            delay: Duration::MAX,
            ..Udp::default()
        };
        let (link, mut line) = line(1);
        let now = Instant::now();
        let payload = vec![0; 65_000];
        let fit = WAITING_BYTES_MAX / (payload.len() + PACKET_OVERHEAD_BYTES);
        for _ in 0..fit + 10 {
            if let Some(packet) = link.take_in(&payload) {
                line.push(now, packet, &conditions);
            }
        }
        assert_eq!(line.waiting.len(), fit);
        assert_eq!(link.counts().overflowed, 10);
        assert_eq!(line.next_due(), Some(now + DELAY_MAX));
        drop(line);
        assert_eq!(link.waiting_bytes.load(Ordering::Relaxed), 0);
        assert_eq!(link.counts().swallowed, fit as u64);
    }

    #[test]
    fn a_connection_is_not_read_while_too_much_waits() {
        let shaper = Shaper::default();
        let now = Instant::now();
        let bandwidth = NonZeroU64::new(1000);
        assert_eq!(shaper.ready_at(now), now);
        let sent = shaper.send(now, 500, bandwidth, BACKLOG_MAX).unwrap();
        assert_eq!(sent, now + 500 * MS);
        assert_eq!(shaper.ready_at(now), now + 300 * MS);
        // Without a limit nothing waits any longer.
        assert_eq!(shaper.send(now, 500, None, BACKLOG_MAX), Some(now));
        assert_eq!(shaper.ready_at(now), now);
    }
}
