//! Two sessions, the carrier between them, and two applications that do as they please: a world in virtual time.
//!
//! Every decision is drawn from [`Choices`]: a generator makes a simulation of it, a fuzzer's bytes make an operation sequence.
//! The world knows what each application did, so it can judge whatever a session tells the other: each call ends exactly once, with
//! the payload and in the order in which it was sent, or with an error that something explains.

use std::collections::{HashMap, VecDeque};
use std::ops::{Index, IndexMut};
use std::sync::OnceLock;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use remus_session::{
    Answer, CallError, CallKey, CloseReason, Event, Grant, Incoming, LANES_MAX, LaneId, Outgoing,
    Received, SendError, Session, SessionConfig, Shape,
};
use remus_wire::{
    AuthenticationRecord, Context, ErrorCode, ErrorRecord, Flags, Limits, Message, MethodId,
    Priority, QueryAnswer, RequestId, Routing, ServiceId, Timestamp,
};

use crate::Rng;

/// Where decisions come from.
pub trait Choices {
    /// A number below `bound`; 0 where `bound` is 0.
    fn below(&mut self, bound: u64) -> u64;

    /// Whether nothing is left to decide.
    fn is_exhausted(&self) -> bool {
        false
    }

    /// An index into something of `len` elements.
    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(wide(len))).unwrap_or(0)
    }

    /// True in `hits` of `of` cases.
    fn chance(&mut self, hits: u64, of: u64) -> bool {
        self.below(of) < hits
    }

    /// One of a few values.
    fn pick<T: Copy>(&mut self, from: &[T], otherwise: T) -> T {
        from.get(self.index(from.len()))
            .copied()
            .unwrap_or(otherwise)
    }
}

impl Choices for Rng {
    fn below(&mut self, bound: u64) -> u64 {
        Self::below(self, bound)
    }
}

/// Decisions that are read from bytes, as few as each needs.
#[derive(Debug)]
pub struct ByteChoices<'d>(pub &'d [u8]);

impl Choices for ByteChoices<'_> {
    fn below(&mut self, bound: u64) -> u64 {
        let mut value = 0_u64;
        let mut reach = 1_u64;
        while reach < bound {
            let Some((first, rest)) = self.0.split_first() else {
                break;
            };
            self.0 = rest;
            value = value << 8 | u64::from(*first);
            reach = reach.saturating_mul(256);
        }
        value.checked_rem(bound).unwrap_or(0)
    }

    fn is_exhausted(&self) -> bool {
        self.0.is_empty()
    }
}

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The side that opened the connection.
    Client,
    /// The side that took it.
    Acceptor,
}

impl Who {
    /// Both ends.
    pub const BOTH: [Self; 2] = [Self::Client, Self::Acceptor];

    /// The other end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Acceptor,
            Self::Acceptor => Self::Client,
        }
    }
}

/// One thing for each end.
#[derive(Debug, Default)]
pub struct Pair<T> {
    client: T,
    acceptor: T,
}

impl<T> Index<Who> for Pair<T> {
    type Output = T;

    fn index(&self, who: Who) -> &T {
        match who {
            Who::Client => &self.client,
            Who::Acceptor => &self.acceptor,
        }
    }
}

impl<T> IndexMut<Who> for Pair<T> {
    fn index_mut(&mut self, who: Who) -> &mut T {
        match who {
            Who::Client => &mut self.client,
            Who::Acceptor => &mut self.acceptor,
        }
    }
}

/// One direction of a lane: an ordered pipe of bytes.
#[derive(Debug, Default)]
struct Pipe {
    bytes: VecDeque<Bytes>,
    len: usize,
    /// Its reader has stopped, until the world lets it go on.
    stalled: bool,
    /// Bytes beyond which nothing more is written.
    capacity: usize,
    /// What was read and not taken in.
    pending: Bytes,
}

/// One end with its application.
struct End {
    session: Session,
    /// Bytes on their way from this end, by lane.
    pipes: Vec<Pipe>,
    /// Datagrams on their way from this end.
    datagrams: Vec<Bytes>,
    calls: HashMap<CallKey, usize>,
    handled: HashMap<CallKey, usize>,
    active: bool,
    /// Announced its end, or heard of the other's.
    announced: bool,
    told: bool,
    closed: Option<CloseReason>,
    /// When it was last handed something.
    heard: u64,
    undecided: u32,
    queries: Vec<RequestId>,
    idle: Duration,
    handshake: Duration,
    /// Whether a budget is so small that it can refuse what was sent.
    tight: bool,
    max_message: usize,
}

/// How a call ended for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Good,
    Bad(ErrorCode),
}

/// What the answering application has seen of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handler {
    Unseen,
    Open(CallKey),
    Done,
}

/// How a direction of a call was ended by who sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Well,
    Badly(ErrorCode),
    /// By the answer: its payload's length.
    Reply(usize),
}

/// The elements of one direction.
#[derive(Debug, Default)]
struct Flow {
    sent: Vec<usize>,
    received: usize,
    ending: Option<Ending>,
    end_seen: bool,
}

/// What the applications did about one call.
struct Model {
    caller: Who,
    shape: Shape,
    /// A batch, whose members are models of their own.
    members: Vec<usize>,
    batch: Option<usize>,
    notify: bool,
    key: Option<CallKey>,
    len: usize,
    deadline: Option<u64>,
    requires_auth: bool,
    outcome: Option<Outcome>,
    /// The caller is done with it, or gave it up.
    released: bool,
    handler: Handler,
    /// The handler was told that nobody wants its answer.
    cancelled: bool,
    up: Flow,
    down: Flow,
}

impl Model {
    fn is_batch(&self) -> bool {
        !self.members.is_empty()
    }
}

/// What a world does besides what it always does.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// Ends of sessions in the middle: shutdowns, aborts, lost carriers.
    pub endings: bool,
    /// Deadlines.
    pub deadlines: bool,
}

/// What came of a world.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Calls that were made, members of batches and notifications included.
    pub calls: usize,
    /// Calls that ended well for their caller.
    pub good: usize,
    /// Calls that ended with an error; the rest was given up, or expected no answer.
    pub bad: usize,
    /// Elements of streams that were read.
    pub elements: usize,
}

/// Two sessions, a carrier, two applications.
pub struct World<C> {
    choices: C,
    features: Features,
    now: u64,
    ends: Pair<End>,
    models: Vec<Model>,
    /// Models that are not over, by either side.
    live: Vec<usize>,
}

impl<C> std::fmt::Debug for World<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World")
            .field("now", &self.now)
            .field("calls", &self.models.len())
            .finish_non_exhaustive()
    }
}

/// Bytes that payloads are cut from.
const POOL: usize = 1 << 20;

/// Longest payload of a call or an element, in bytes.
const LONGEST: usize = 300 * 1024;

fn pool() -> &'static Bytes {
    static CELL: OnceLock<Bytes> = OnceLock::new();
    CELL.get_or_init(|| Rng::new(0x0072_656d_7573).bytes(POOL).into())
}

/// The payload of element `seq` of call `n`; 0 is the request, and the answer has the number after the last element.
fn piece(n: usize, up: bool, seq: usize, len: usize) -> Bytes {
    let mixed = n
        .wrapping_mul(7919)
        .wrapping_add(seq.wrapping_mul(104_729))
        .wrapping_add(usize::from(up));
    let start = mixed.checked_rem(POOL.saturating_sub(len)).unwrap_or(0);
    pool().slice(start..start.saturating_add(len))
}

fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

fn narrow(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl<C: Choices> World<C> {
    /// Two ends whose limits are drawn, with nothing sent yet.
    ///
    /// # Panics
    ///
    /// If a configuration is refused: they are drawn from their ranges.
    pub fn new(mut choices: C, features: Features) -> Self {
        let now = 1_700_000_000_000_000;
        let mut end = |who: Who, skew: u64| {
            let config = draw_config(&mut choices, who, features);
            let tight = config.max_assembly_bytes < 64 << 20 || config.max_answer_bytes < 64 << 20;
            let (idle, handshake) = (config.idle_timeout, config.handshake_timeout);
            let max_message = usize::try_from(config.limits.max_message).unwrap_or(usize::MAX);
            let at = Timestamp(now + skew);
            let session = match who {
                Who::Client => Session::client(config, at),
                Who::Acceptor => Session::acceptor(config, at),
            };
            let Ok(mut session) = session else {
                unreachable!("configurations are drawn from their ranges")
            };
            session.set_datagrams(choices.chance(1, 2));
            let pipes = (0..LANES_MAX)
                .map(|_| Pipe {
                    capacity: narrow(choices.pick(&[1 << 20, 64 << 10, 4 << 10], 1 << 20)),
                    ..Pipe::default()
                })
                .collect();
            End {
                session,
                pipes,
                datagrams: Vec::new(),
                calls: HashMap::new(),
                handled: HashMap::new(),
                active: false,
                announced: false,
                told: false,
                closed: None,
                heard: now,
                undecided: 0,
                queries: Vec::new(),
                idle,
                handshake,
                tight,
                max_message,
            }
        };
        let (client, acceptor) = (end(Who::Client, 0), end(Who::Acceptor, 0));
        Self {
            choices,
            features,
            now,
            ends: Pair { client, acceptor },
            models: Vec::new(),
            live: Vec::new(),
        }
    }

    /// Does up to `steps` things, lets everything come to its end, and judges what is left.
    ///
    /// # Panics
    ///
    /// If anything does not hold.
    pub fn run(&mut self, steps: usize) {
        if self.choices.chance(3, 4) {
            // Most of what there is to see comes after the handshake.
            let capacities = self.capacities();
            self.settle();
            self.set_capacities(&capacities);
        }
        for step in 0..steps {
            if self.choices.is_exhausted() {
                break;
            }
            self.step();
            if step % 4 == 0 {
                self.check();
            }
        }
        self.settle();
        self.judge_quiet();
        self.end_well();
    }

    fn capacities(&self) -> Vec<usize> {
        let pipes = |who: Who| self.ends[who].pipes.iter().map(|pipe| pipe.capacity);
        Who::BOTH.into_iter().flat_map(pipes).collect()
    }

    fn set_capacities(&mut self, capacities: &[usize]) {
        let mut capacities = capacities.iter();
        for who in Who::BOTH {
            for (pipe, capacity) in self.ends[who].pipes.iter_mut().zip(&mut capacities) {
                pipe.capacity = *capacity;
            }
        }
    }

    /// What came of it.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let count =
            |wanted: fn(&Model) -> bool| self.models.iter().filter(|model| wanted(model)).count();
        Figures {
            calls: self.models.len(),
            good: count(|model| model.outcome == Some(Outcome::Good)),
            bad: count(|model| matches!(model.outcome, Some(Outcome::Bad(_)))),
            elements: self
                .models
                .iter()
                .map(|model| model.up.received + model.down.received)
                .sum(),
        }
    }

    fn at(&self) -> Timestamp {
        Timestamp(self.now)
    }

    fn who(&mut self) -> Who {
        if self.choices.chance(1, 2) {
            Who::Client
        } else {
            Who::Acceptor
        }
    }

    fn step(&mut self) {
        let who = self.who();
        match self.choices.below(100) {
            0..24 => self.deliver_some(who),
            24..40 => self.transmit_some(who),
            40..52 => self.take_events(who, false),
            52..60 => self.make_call(who),
            60..70 => self.work_on_one(who),
            70..83 => self.use_one(who),
            83 => self.give_up_one(),
            84..90 => self.let_time_pass(),
            90..92 => self.move_datagrams(who),
            92..94 => self.make_batch_or_notify(who),
            94 => self.decide(),
            95 => {
                if let Some(pipe) = self.some_pipe(who) {
                    pipe.stalled = !pipe.stalled;
                }
            }
            96 => self.renew_or_probe(who),
            97 if self.features.endings => self.end_somehow(who),
            _ => {
                self.take_events(who, false);
                self.transmit_some(who);
                self.deliver_some(who);
            }
        }
    }

    fn some_pipe(&mut self, who: Who) -> Option<&mut Pipe> {
        let lane = self.choices.index(usize::from(LANES_MAX));
        // The first lanes are the busy ones.
        let lane = if self.choices.chance(1, 2) {
            lane % 3
        } else {
            lane
        };
        self.ends[who].pipes.get_mut(lane)
    }

    /// Moves what may leave on some lane into its pipe.
    fn transmit_some(&mut self, who: Who) {
        let dirty = self.ends[who].session.take_dirty_lanes();
        let skip = if dirty != 0 && self.choices.chance(1, 3) {
            self.choices.index(32)
        } else {
            32
        };
        for lane in 0..LANES_MAX {
            if dirty & (1 << lane) != 0 && usize::from(lane) != skip {
                self.transmit(who, lane);
            }
        }
        if skip < 32 && dirty & (1 << skip) != 0 {
            self.transmit(who, u16::try_from(skip).unwrap_or(0));
        }
    }

    /// True when something left.
    fn transmit(&mut self, who: Who, lane: u16) -> bool {
        let end = &mut self.ends[who];
        let mut moved = false;
        let Some(pipe) = end.pipes.get_mut(usize::from(lane)) else {
            return false;
        };
        let mut out = VecDeque::new();
        while pipe.len < pipe.capacity && end.session.poll_transmit(LaneId(lane), &mut out) {
            moved = true;
            pipe.len += out.iter().map(Bytes::len).sum::<usize>();
            pipe.bytes.append(&mut out);
        }
        moved
    }

    /// Hands some bytes of some lane to the other end, cut anywhere.
    fn deliver_some(&mut self, from: Who) {
        let Some(lane) = self.choose_busy_lane(from) else {
            return;
        };
        let amount = match self.choices.below(6) {
            0 => 1,
            1 => 1 + self.choices.index(64),
            2 | 3 => 1 + self.choices.index(8 << 10),
            _ => usize::MAX,
        };
        self.deliver(from, lane, amount);
    }

    fn choose_busy_lane(&mut self, from: Who) -> Option<u16> {
        let start = self.choices.index(usize::from(LANES_MAX));
        let pipes = &self.ends[from].pipes;
        (0..pipes.len())
            .map(|n| (start + n) % pipes.len())
            .find(|lane| {
                pipes
                    .get(*lane)
                    .is_some_and(|pipe| !pipe.stalled && (pipe.len > 0 || !pipe.pending.is_empty()))
            })
            .and_then(|lane| u16::try_from(lane).ok())
    }

    /// True when the other end took something in.
    fn deliver(&mut self, from: Who, lane: u16, amount: usize) -> bool {
        let now = self.at();
        let (end, peer) = match from {
            Who::Client => (&mut self.ends.client, &mut self.ends.acceptor),
            Who::Acceptor => (&mut self.ends.acceptor, &mut self.ends.client),
        };
        let Some(pipe) = end.pipes.get_mut(usize::from(lane)) else {
            return false;
        };
        if peer.closed.is_some() {
            // Nobody is there any more.
            pipe.bytes.clear();
            pipe.len = 0;
            pipe.pending = Bytes::new();
            return false;
        }
        let mut input = if pipe.pending.is_empty() {
            let mut input = BytesMut::new();
            let mut first = None;
            while input.len() < amount.min(1 << 20)
                && let Some(chunk) = pipe.bytes.front_mut()
            {
                let take = chunk.len().min(amount.saturating_sub(input.len()));
                let cut = chunk.split_to(take);
                if chunk.is_empty() {
                    pipe.bytes.pop_front();
                }
                pipe.len -= cut.len();
                if amount == usize::MAX {
                    // Whole chunks go as they are, without a copy.
                    first = Some(cut);
                    break;
                }
                input.extend_from_slice(&cut);
            }
            first.unwrap_or_else(|| input.freeze())
        } else {
            std::mem::take(&mut pipe.pending)
        };
        if input.is_empty() {
            return false;
        }
        let before = input.len();
        let open = !peer.session.state().is_closed();
        if let Err(error) = peer.session.handle_input(now, LaneId(lane), &mut input) {
            unreachable!("{from:?} was accused on lane {lane}: {error}");
        }
        let taken = before - input.len();
        if taken > 0 && open {
            peer.heard = self.now;
        }
        pipe.pending = input;
        taken > 0
    }

    fn move_datagrams(&mut self, from: Who) {
        let now = self.at();
        while let Some(datagram) = self.ends[from].session.poll_datagram() {
            self.ends[from].datagrams.push(datagram);
        }
        if self.ends[from].datagrams.is_empty() {
            return;
        }
        let at = self.choices.index(self.ends[from].datagrams.len());
        // Any of them may come next; one in four is lost, one in eight comes again.
        let again = self.choices.chance(1, 8);
        let lost = self.choices.chance(1, 4);
        let datagram = if again {
            self.ends[from]
                .datagrams
                .get(at)
                .cloned()
                .unwrap_or_default()
        } else {
            self.ends[from].datagrams.swap_remove(at)
        };
        if !lost {
            let peer = &mut self.ends[from.other()];
            if !peer.session.state().is_closed() && peer.active {
                peer.heard = self.now;
            }
            peer.session.handle_datagram(now, datagram);
        }
    }

    fn let_time_pass(&mut self) {
        let step = match self.choices.below(8) {
            0 => 1,
            1..5 => 1 + self.choices.below(1_000),
            5 | 6 => 1 + self.choices.below(20_000),
            _ => {
                // To the next thing that is due.
                let next = Who::BOTH
                    .into_iter()
                    .filter_map(|who| self.ends[who].session.poll_timeout())
                    .min();
                next.map_or(1, |at| at.0.saturating_sub(self.now))
                    .min(400_000)
            }
        };
        self.now += step;
        self.handle_timeouts();
    }

    fn handle_timeouts(&mut self) {
        for who in Who::BOTH {
            let now = self.at();
            if self.ends[who]
                .session
                .poll_timeout()
                .is_some_and(|at| at <= now)
            {
                self.ends[who].session.handle_timeout(now);
                assert!(
                    self.ends[who]
                        .session
                        .poll_timeout()
                        .is_none_or(|at| at > now),
                    "{who:?}: what was due is still due"
                );
            }
        }
    }

    fn decide(&mut self) {
        let now = self.at();
        let end = &mut self.ends[Who::Acceptor];
        if end.undecided > 0 {
            end.undecided -= 1;
            let grant = Grant {
                session: 7,
                authenticated: true,
                ..Grant::default()
            };
            end.session.grant(now, grant);
        }
        for who in Who::BOTH {
            for id in std::mem::take(&mut self.ends[who].queries) {
                self.ends[who]
                    .session
                    .answer_query(now, id, &QueryAnswer::default());
            }
        }
    }

    fn renew_or_probe(&mut self, who: Who) {
        let now = self.at();
        if who == Who::Client && self.choices.chance(1, 2) {
            let record = AuthenticationRecord {
                token: Bytes::from_static(b"newer"),
                ..AuthenticationRecord::default()
            };
            self.ends[who].session.authenticate(now, record);
        } else {
            self.ends[who].session.probe(now);
        }
    }

    fn end_somehow(&mut self, who: Who) {
        // Endings are rare: one in ten of their turns.
        if !self.choices.chance(1, 10) {
            return;
        }
        let now = self.at();
        match self.choices.below(4) {
            0 | 1 => {
                let grace = Duration::from_millis(self.choices.below(2_000));
                self.ends[who].announced = true;
                self.ends[who]
                    .session
                    .shut_down(now, ErrorCode::OK, "maintenance", "", grace);
            }
            2 => self.ends[who].session.abort(ErrorCode::INTERNAL, "a bug"),
            _ => self.lose_carrier(ErrorCode::UNAVAILABLE, "cut"),
        }
    }

    fn lose_carrier(&mut self, code: ErrorCode, reason: &str) {
        for who in Who::BOTH {
            self.ends[who].session.carrier_lost(code, reason);
            for pipe in &mut self.ends[who].pipes {
                *pipe = Pipe {
                    capacity: pipe.capacity,
                    ..Pipe::default()
                };
            }
            self.ends[who].datagrams.clear();
        }
    }

    // What the applications do.

    fn draw_len(&mut self) -> usize {
        match self.choices.below(16) {
            0..5 => self.choices.index(64),
            5..11 => self.choices.index(2_000),
            11..14 => self.choices.index(20_000),
            14 => 16_000 + self.choices.index(60_000),
            _ => self.choices.index(LONGEST),
        }
    }

    fn draw_outgoing(&mut self, n: usize, len: usize) -> Outgoing {
        let class = u8::try_from(self.choices.below(8)).unwrap_or(0);
        let timeout = if self.features.deadlines && self.choices.chance(1, 5) {
            Some(Duration::from_millis(1 + self.choices.below(60)))
        } else {
            None
        };
        let number = u32::try_from(n).unwrap_or(0);
        Outgoing {
            routing: Routing::to(ServiceId(1), MethodId(number)),
            context: Context::new(),
            flags: if self.choices.chance(1, 9) {
                Flags::REQUIRES_AUTH
            } else {
                Flags::IDEMPOTENT
            },
            priority: Priority::new(class, 0),
            timeout,
            payload: piece(n, true, 0, len),
        }
    }

    fn model(&self, caller: Who, shape: Shape, len: usize, outgoing: &Outgoing) -> Model {
        Model {
            caller,
            shape,
            members: Vec::new(),
            batch: None,
            notify: false,
            key: None,
            len,
            deadline: outgoing.timeout.map(|timeout| self.now + micros(timeout)),
            requires_auth: outgoing.flags.contains(Flags::REQUIRES_AUTH),
            outcome: None,
            released: false,
            handler: Handler::Unseen,
            cancelled: false,
            up: Flow::default(),
            down: Flow::default(),
        }
    }

    fn make_call(&mut self, who: Who) {
        let shape = self.choices.pick(
            &[
                Shape::Unary,
                Shape::Unary,
                Shape::ServerStream,
                Shape::ClientStream,
                Shape::TwoWay,
            ],
            Shape::Unary,
        );
        let len = if shape.request_streams() {
            0
        } else {
            self.draw_len()
        };
        let n = self.models.len();
        let outgoing = self.draw_outgoing(n, len);
        let model = self.model(who, shape, len, &outgoing);
        let now = self.at();
        match self.ends[who].session.call(now, outgoing, shape) {
            Ok(key) => {
                self.ends[who].calls.insert(key, n);
                self.models.push(Model {
                    key: Some(key),
                    ..model
                });
                self.live.push(n);
            }
            Err(error) => self.judge_refusal(who, &error),
        }
    }

    fn make_batch_or_notify(&mut self, who: Who) {
        let now = self.at();
        let n = self.models.len();
        if self.choices.chance(1, 2) {
            let len = self.choices.index(4_000);
            let outgoing = self.draw_outgoing(n, len);
            let model = Model {
                notify: true,
                ..self.model(who, Shape::Unary, len, &outgoing)
            };
            match self.ends[who].session.notify(now, outgoing) {
                Ok(()) => self.models.push(model),
                Err(error) => self.judge_refusal(who, &error),
            }
            return;
        }
        let count = 1 + self.choices.index(6);
        let mut requests = Vec::new();
        let mut members = Vec::new();
        for position in 0..count {
            let len = self.choices.index(6_000);
            let member = n + 1 + position;
            let outgoing = self.draw_outgoing(member, len);
            members.push(Model {
                batch: Some(n),
                ..self.model(who, Shape::Unary, len, &outgoing)
            });
            requests.push(outgoing);
        }
        let timeout = (self.features.deadlines && self.choices.chance(1, 4))
            .then(|| Duration::from_millis(1 + self.choices.below(60)));
        let outer = Outgoing {
            timeout,
            ..Outgoing::default()
        };
        let model = self.model(who, Shape::Unary, 0, &outer);
        match self.ends[who].session.call_batch(now, requests, timeout) {
            Ok(key) => {
                self.ends[who].calls.insert(key, n);
                let members_at = (n + 1..=n + count).collect();
                self.models.push(Model {
                    key: Some(key),
                    members: members_at,
                    ..model
                });
                for member in &mut members {
                    member.deadline = match (member.deadline, model_deadline(&self.models, n)) {
                        (Some(own), Some(outer)) => Some(own.min(outer)),
                        (own, outer) => own.or(outer),
                    };
                }
                self.models.append(&mut members);
                self.live.extend(n..=n + count);
            }
            Err(error) => self.judge_refusal(who, &error),
        }
    }

    /// A call that could not be made: for a reason that this world gave.
    fn judge_refusal(&self, who: Who, error: &CallError) {
        let end = &self.ends[who];
        let explained = match error {
            CallError::NotOpen | CallError::NotOffered(_) => !end.active,
            CallError::ShuttingDown => end.announced || self.ends[who.other()].announced,
            CallError::Closed => end.session.state().is_closed(),
            CallError::MessageTooLarge { len, limit } => len > limit,
            CallError::TooManyCalls { limit } => {
                wide(end.session.open_local_calls()) >= u64::from(*limit)
            }
            CallError::TooManyStreams { .. } => true,
            CallError::QueueFull { queued, limit } => queued >= limit,
            _ => false,
        };
        assert!(explained, "{who:?}: {error}");
    }

    /// A model of this kind that is still alive.
    fn choose(&mut self, wanted: impl Fn(&Model) -> bool) -> Option<usize> {
        let start = self.choices.index(self.live.len());
        let len = self.live.len();
        (0..len)
            .filter_map(|n| self.live.get((start + n) % len).copied())
            .find(|n| self.models.get(*n).is_some_and(&wanted))
    }

    /// The application of one end does something about a request that it was handed.
    fn work_on_one(&mut self, who: Who) {
        if let Some(n) =
            self.choose(|model| model.caller != who && matches!(model.handler, Handler::Open(_)))
        {
            let streams = self
                .models
                .get(n)
                .is_some_and(|model| model.shape != Shape::Unary);
            for _ in 0..=self.choices.below(4) {
                let finishing = self.choices.chance(1, if streams { 8 } else { 2 });
                self.work_on(who, n, finishing);
            }
        }
    }

    fn work_on(&mut self, who: Who, n: usize, finishing: bool) {
        let now = self.at();
        let Some(model) = self.models.get(n) else {
            return;
        };
        let Handler::Open(key) = model.handler else {
            return;
        };
        let (streams_down, seq) = (
            matches!(model.shape, Shape::ServerStream | Shape::TwoWay),
            model.down.sent.len(),
        );
        if model.shape != Shape::Unary && self.choices.chance(1, 2) {
            self.read(who, n, key, false);
        }
        if !finishing {
            if streams_down {
                self.send_element(who, n, key, seq, false);
            }
            return;
        }
        let len = self.draw_len();
        let (answer, ending) = match self.choices.below(if streams_down { 8 } else { 6 }) {
            0 => {
                let code = ErrorCode::FAILED_PRECONDITION;
                (
                    Some(Answer::Error(ErrorRecord::new(code, "as drawn"))),
                    Ending::Badly(code),
                )
            }
            1 if model_batch(&self.models, n).is_none() => {
                self.ends[who].session.release(now, key);
                (None, Ending::Badly(ErrorCode::INTERNAL))
            }
            6 => {
                self.ends[who].session.finish(now, key, None);
                (None, Ending::Well)
            }
            7 => {
                let code = ErrorCode::OUT_OF_RANGE;
                self.ends[who]
                    .session
                    .finish(now, key, Some(ErrorRecord::new(code, "as drawn")));
                (None, Ending::Badly(code))
            }
            _ => {
                let reply = Answer::Reply {
                    payload: piece(n, false, seq, len),
                    context: Context::new(),
                    flags: Flags::NONE,
                };
                (Some(reply), Ending::Reply(len))
            }
        };
        if let Some(answer) = answer {
            self.ends[who].session.respond(now, key, answer);
        }
        self.ends[who].handled.remove(&key);
        if let Some(model) = self.models.get_mut(n) {
            model.handler = Handler::Done;
            model.down.ending = Some(ending);
        }
        assert!(
            !self.ends[who].session.has_call(key),
            "an answered call is still there"
        );
    }

    /// The application of one end uses a streaming call that it made.
    fn use_one(&mut self, who: Who) {
        let Some(n) = self
            .choose(|model| model.caller == who && !model.released && model.shape != Shape::Unary)
        else {
            return;
        };
        for _ in 0..=self.choices.below(4) {
            self.use_call(who, n);
        }
    }

    fn use_call(&mut self, who: Who, n: usize) {
        let Some(model) = self.models.get(n) else {
            return;
        };
        let Some(key) = model.key.filter(|_| !model.released) else {
            return;
        };
        let (streams_up, ended, seq) = (
            model.shape.request_streams(),
            model.up.ending.is_some(),
            model.up.sent.len(),
        );
        let now = self.at();
        match self.choices.below(10) {
            0..5 => self.read(who, n, key, false),
            5..9 if streams_up && !ended => self.send_element(who, n, key, seq + 1, true),
            9 if streams_up && !ended => {
                let ending = if self.choices.chance(1, 4) {
                    Ending::Badly(ErrorCode::ABORTED)
                } else {
                    Ending::Well
                };
                let error = match ending {
                    Ending::Badly(code) => Some(ErrorRecord::new(code, "as drawn")),
                    _ => None,
                };
                self.ends[who].session.finish(now, key, error);
                if let Some(model) = self.models.get_mut(n) {
                    model.up.ending = Some(ending);
                }
            }
            _ => {}
        }
    }

    fn send_element(&mut self, who: Who, n: usize, key: CallKey, seq: usize, up: bool) {
        let len = self.draw_len();
        let now = self.at();
        let element = Outgoing {
            payload: piece(n, up, seq, len),
            ..Outgoing::default()
        };
        match self.ends[who].session.send(now, key, element) {
            Ok(()) => {
                if let Some(model) = self.models.get_mut(n) {
                    let flow = if up { &mut model.up } else { &mut model.down };
                    flow.sent.push(len);
                }
            }
            Err(SendError::Blocked | SendError::MessageTooLarge { .. }) => {}
            Err(SendError::Stopped(_)) if up => {}
            Err(SendError::Closed) if self.ends[who].session.state().is_closed() => {}
            Err(SendError::Closed) if !up => {} // cancelled, and the event is on its way
            Err(error) => unreachable!("{who:?} could not send on call {n}: {error}"),
        }
    }

    /// Reads what a streaming call has received: one thing, or all.
    fn read(&mut self, who: Who, n: usize, key: CallKey, all: bool) {
        loop {
            let Some(received) = self.ends[who].session.recv(key) else {
                return;
            };
            let Some(model) = self.models.get_mut(n) else {
                return;
            };
            let up = model.caller != who;
            let flow = if up { &mut model.up } else { &mut model.down };
            assert!(!flow.end_seen, "call {n}: something after the end");
            match received {
                Received::Element(message) if message.kind == remus_wire::MessageType::STREAM => {
                    let seq = flow.received;
                    let Some(len) = flow.sent.get(seq).copied() else {
                        unreachable!("call {n}: element {seq} was never sent")
                    };
                    flow.received += 1;
                    let expected = piece(n, up, if up { seq + 1 } else { seq }, len);
                    assert!(
                        message.payload == expected,
                        "call {n}: element {seq} is another"
                    );
                }
                Received::Element(message) => {
                    let Some(Ending::Reply(len)) = flow.ending else {
                        unreachable!("call {n}: an answer that nobody gave")
                    };
                    assert_eq!(
                        flow.received,
                        flow.sent.len(),
                        "call {n}: the answer came before an element"
                    );
                    assert!(
                        message.payload == piece(n, up, flow.received, len),
                        "call {n}: another answer"
                    );
                }
                Received::End(error) => {
                    flow.end_seen = true;
                    let whole = flow.received == flow.sent.len();
                    let outcome = error.map_or(Outcome::Good, |error| Outcome::Bad(error.code));
                    let as_sent = whole
                        && match (flow.ending, outcome) {
                            (Some(Ending::Well | Ending::Reply(_)), Outcome::Good) => true,
                            (Some(Ending::Badly(sent)), Outcome::Bad(got)) => sent == got,
                            _ => false,
                        };
                    if up {
                        assert!(
                            as_sent,
                            "call {n}: the handler saw {outcome:?} after {:?}",
                            model.up
                        );
                    } else {
                        assert!(model.outcome.is_none(), "call {n} ended twice");
                        model.outcome = Some(outcome);
                        if !as_sent {
                            match outcome {
                                Outcome::Good => {
                                    unreachable!("call {n} ended well: {:?}", model.down)
                                }
                                Outcome::Bad(code) => self.explain(n, code),
                            }
                        }
                        self.ends[who].calls.remove(&key);
                        let now = self.at();
                        self.ends[who].session.release(now, key);
                        if let Some(model) = self.models.get_mut(n) {
                            model.released = true;
                        }
                        return;
                    }
                }
            }
            if !all {
                return;
            }
        }
    }

    /// The caller loses interest.
    fn give_up_one(&mut self) {
        let Some(n) = self.choose(|model| model.key.is_some() && !model.released) else {
            return;
        };
        let Some((who, key)) = self
            .models
            .get(n)
            .and_then(|model| Some((model.caller, model.key?)))
        else {
            return;
        };
        let now = self.at();
        self.ends[who]
            .session
            .cancel(now, key, ErrorCode::CANCELLED);
        self.ends[who].calls.remove(&key);
        if let Some(model) = self.models.get_mut(n) {
            model.released = true;
        }
        assert!(
            !self.ends[who].session.has_call(key),
            "a call that was given up is still there"
        );
    }

    // What the sessions tell.

    /// Takes all events of one end; `cooperate`: and does at once what they ask for.
    fn take_events(&mut self, who: Who, cooperate: bool) {
        loop {
            let now = self.at();
            let Some(event) = self.ends[who].session.poll_event(now) else {
                break;
            };
            assert!(
                self.ends[who].closed.is_none(),
                "{who:?}: {event:?} after the end"
            );
            self.on_event(who, event);
            if cooperate {
                self.decide();
            }
        }
        let models = &self.models;
        if self.live.len() > 64 {
            self.live
                .retain(|n| models.get(*n).is_some_and(|model| !is_over(model)));
        }
    }

    fn on_event(&mut self, who: Who, event: Event) {
        match event {
            Event::Authenticate(_) => self.ends[who].undecided += 1,
            Event::Query(id, _) => self.ends[who].queries.push(id),
            Event::Active(_) => {
                assert!(!self.ends[who].active, "{who:?} became active twice");
                self.ends[who].active = true;
            }
            Event::Request(incoming) => self.on_request(who, &incoming),
            Event::Answer(key, result) => {
                let n = self.ended(who, key);
                match result {
                    Ok(message) => self.on_reply(n, &message),
                    Err(error) => self.on_error(n, error.code),
                }
            }
            Event::BatchAnswer(key, answers) => {
                let n = self.ended(who, key);
                let members = self
                    .models
                    .get(n)
                    .map(|model| model.members.clone())
                    .unwrap_or_default();
                assert_eq!(answers.len(), members.len(), "one answer a member");
                for (member, answer) in members.into_iter().zip(answers) {
                    match answer {
                        Ok(message) => self.on_reply(member, &message),
                        Err(error) => self.on_error(member, error.code),
                    }
                }
                if let Some(model) = self.models.get_mut(n) {
                    model.outcome = Some(Outcome::Good);
                }
            }
            Event::Readable(key) => {
                let end = &self.ends[who];
                assert!(
                    end.calls.contains_key(&key) || end.handled.contains_key(&key),
                    "{who:?}: readable, and unknown"
                );
            }
            Event::Writable(key) => {
                let end = &self.ends[who];
                assert!(
                    end.calls.contains_key(&key) || end.handled.contains_key(&key),
                    "{who:?}: writable, and unknown"
                );
            }
            Event::Cancelled(key, code) => self.on_cancelled(who, key, code),
            Event::ShuttingDown(_) => {
                assert!(
                    self.ends[who.other()].announced,
                    "an end that nobody announced"
                );
                self.ends[who].told = true;
            }
            Event::Closed(reason) => self.on_closed(who, reason),
            Event::Refused(_) => assert!(
                self.ends[Who::Acceptor].announced,
                "a refusal without a reason"
            ),
            Event::Uncongested | Event::PathMeasured | Event::Offered(_) => {}
            other => unreachable!("{who:?}: {other:?}"),
        }
    }

    /// The model of a call of ours that is over now.
    fn ended(&mut self, who: Who, key: CallKey) -> usize {
        let Some(n) = self.ends[who].calls.remove(&key) else {
            unreachable!(
                "{who:?}: an answer to a call that was never made, is over, or was given up"
            )
        };
        if let Some(model) = self.models.get_mut(n) {
            assert!(
                model.outcome.is_none() && !model.released,
                "call {n} ended twice"
            );
            assert!(model.shape == Shape::Unary, "call {n} streams");
            model.released = true;
        }
        n
    }

    fn on_reply(&mut self, n: usize, message: &Message) {
        let Some(model) = self.models.get_mut(n) else {
            return;
        };
        let Some(Ending::Reply(len)) = model.down.ending else {
            unreachable!("call {n}: an answer that nobody gave")
        };
        assert!(model.outcome.is_none(), "call {n} ended twice");
        model.outcome = Some(Outcome::Good);
        assert!(
            message.payload == piece(n, false, 0, len),
            "call {n}: another answer"
        );
    }

    fn on_error(&mut self, n: usize, code: ErrorCode) {
        let Some(model) = self.models.get_mut(n) else {
            return;
        };
        assert!(model.outcome.is_none(), "call {n} ended twice");
        model.outcome = Some(Outcome::Bad(code));
        if model.down.ending != Some(Ending::Badly(code)) {
            self.explain(n, code);
        }
        let members = self
            .models
            .get(n)
            .map(|model| model.members.clone())
            .unwrap_or_default();
        for member in members {
            if let Some(model) = self.models.get_mut(member) {
                model.outcome = Some(Outcome::Bad(code));
            }
        }
    }

    /// Holds an error that no application gave against what happened.
    fn explain(&self, n: usize, code: ErrorCode) {
        let Some(model) = self.models.get(n) else {
            return;
        };
        let (caller, answerer) = (&self.ends[model.caller], &self.ends[model.caller.other()]);
        let unseen = model.handler == Handler::Unseen
            && model.members.iter().all(|member| {
                self.models
                    .get(*member)
                    .is_some_and(|model| model.handler == Handler::Unseen)
            });
        let over = caller.session.state().is_closed() || caller.closed.is_some();
        let explained = match code {
            ErrorCode::DEADLINE_EXCEEDED => {
                model.deadline.is_some_and(|deadline| self.now >= deadline)
            }
            ErrorCode::SHUTTING_DOWN => unseen && (answerer.announced || caller.announced),
            ErrorCode::TOO_MANY_CALLS => unseen,
            ErrorCode::QUEUE_FULL => unseen && answerer.tight,
            ErrorCode::RESOURCE_EXHAUSTED => caller.tight || answerer.tight,
            ErrorCode::MESSAGE_TOO_LARGE => {
                let reply = |model: &Model| matches!(model.down.ending, Some(Ending::Reply(len)) if len + 512 > caller.max_message);
                let siblings = model
                    .batch
                    .and_then(|batch| self.models.get(batch))
                    .map(|batch| batch.members.as_slice())
                    .unwrap_or_default();
                let total: usize = siblings
                    .iter()
                    .filter_map(|member| match self.models.get(*member)?.down.ending {
                        Some(Ending::Reply(len)) => Some(len + 64),
                        _ => Some(128),
                    })
                    .sum();
                reply(model) || total + 64 > caller.max_message
            }
            ErrorCode::UNAUTHENTICATED => unseen && model.requires_auth,
            ErrorCode::LOSS_OF_SESSION | ErrorCode::INTERNAL => over,
            _ => false,
        };
        assert!(
            explained,
            "call {n} of {:?} failed with {code}: {:?}, down {:?}",
            model.caller, model.handler, model.down
        );
    }

    fn on_request(&mut self, who: Who, incoming: &Incoming) {
        let n = usize::try_from(incoming.message.routing.method.0).unwrap_or(usize::MAX);
        let Some(model) = self.models.get_mut(n) else {
            unreachable!("a request that nobody sent")
        };
        assert!(model.caller != who, "a request came back to its caller");
        assert_eq!(model.handler, Handler::Unseen, "request {n} came twice");
        assert!(
            incoming.message.payload == piece(n, true, 0, model.len),
            "request {n} is another"
        );
        assert_eq!(incoming.answered, !model.notify, "request {n}");
        assert_eq!(
            incoming.ended,
            !model.shape.request_streams(),
            "request {n}: whole or not"
        );
        assert!(
            model.shape == Shape::Unary || incoming.owns_stream,
            "request {n} streams on a shared stream"
        );
        if let Some(Outcome::Bad(code)) = model.outcome {
            assert!(
                !code.is_refusal(),
                "request {n} was refused with {code} and runs"
            );
        }
        model.handler = Handler::Open(incoming.call);
        if model.notify || !self.live.contains(&n) {
            self.live.push(n);
        }
        self.ends[who].handled.insert(incoming.call, n);
    }

    fn on_cancelled(&mut self, who: Who, key: CallKey, code: ErrorCode) {
        let Some(n) = self.ends[who].handled.remove(&key) else {
            // It was answered while the event waited.
            return;
        };
        let over = self.ends[who].session.state().is_closed();
        let Some(model) = self.models.get_mut(n) else {
            return;
        };
        assert_eq!(
            model.handler,
            Handler::Open(key),
            "call {n} was cancelled and not open"
        );
        model.handler = Handler::Done;
        model.cancelled = true;
        if model.down.ending.is_none() && code == ErrorCode::DEADLINE_EXCEEDED {
            model.down.ending = Some(Ending::Badly(code));
        }
        let batch = model.batch.and_then(|batch| self.models.get(batch));
        let Some(model) = self.models.get(n) else {
            return;
        };
        let given_up = |model: &Model| model.released || model.outcome.is_some();
        let explained = over
            || given_up(model)
            || batch.is_some_and(given_up)
            || model.deadline.is_some_and(|deadline| self.now >= deadline)
            || (code == ErrorCode::RESOURCE_EXHAUSTED
                && Who::BOTH.into_iter().any(|who| self.ends[who].tight))
            || self.ends[who.other()].session.state().is_closed();
        assert!(
            explained,
            "call {n} was cancelled with {code} for no reason"
        );
    }

    fn on_closed(&mut self, who: Who, reason: CloseReason) {
        let end = &self.ends[who];
        match reason.code {
            ErrorCode::IDLE_TIMEOUT if !reason.by_peer => {
                let idle = end.idle.min(self.ends[who.other()].idle);
                let silent = self.now - end.heard;
                assert!(
                    silent >= micros(idle),
                    "{who:?} gave up after {silent} µs of {idle:?}"
                );
            }
            ErrorCode::HANDSHAKE_TIMEOUT if !reason.by_peer => {
                assert!(
                    !end.active && micros(end.handshake) <= self.now,
                    "{who:?} gave up too soon"
                );
            }
            ErrorCode::OK
            | ErrorCode::INTERNAL
            | ErrorCode::UNAVAILABLE
            | ErrorCode::SHUTTING_DOWN => {}
            code if reason.by_peer => assert!(
                self.ends[who.other()].session.state().is_closed(),
                "{who:?} heard of {code}, and the other goes on"
            ),
            code => unreachable!("{who:?} closed with {code}: {}", reason.reason),
        }
        self.ends[who].closed = Some(reason);
        self.ends[who].handled.clear();
    }

    // How it ends.

    fn check(&self) {
        for who in Who::BOTH {
            if let Err(problem) = self.ends[who].session.check() {
                unreachable!("{who:?}: {problem}");
            }
        }
    }

    /// Moves everything until nothing moves, with applications that do all that they can.
    fn settle(&mut self) {
        for who in Who::BOTH {
            for pipe in &mut self.ends[who].pipes {
                pipe.stalled = false;
                pipe.capacity = 1 << 20;
            }
        }
        for round in 0.. {
            assert!(round < 20_000, "it never comes to rest");
            let mut moved = false;
            for who in Who::BOTH {
                self.take_events(who, true);
                self.decide();
                moved |= self.finish_everything(who);
                for lane in 0..LANES_MAX {
                    moved |= self.transmit(who, lane);
                }
                let _ = self.ends[who].session.take_dirty_lanes();
                for lane in 0..LANES_MAX {
                    while self.deliver(who, lane, usize::MAX) {
                        moved = true;
                        self.take_events(who.other(), true);
                    }
                }
                while self.ends[who].session.poll_datagram().is_some() {}
                moved |= self.ends[who].session.has_events();
            }
            // A session that has ended closes the carrier once all that it wrote has arrived.
            for who in Who::BOTH {
                if let Some(reason) = self.ends[who].closed.clone()
                    && self.ends[who].pipes.iter().all(|pipe| pipe.len == 0)
                    && self.ends[who.other()].closed.is_none()
                {
                    self.ends[who.other()]
                        .session
                        .carrier_lost(reason.code, &reason.reason);
                    moved = true;
                }
            }
            if !moved {
                // The handshake may wait for its next probe or a deferred renewal; nothing else waits for time.
                break;
            }
        }
        self.check();
    }

    /// Answers, reads, ends whatever there is. True when something was there.
    fn finish_everything(&mut self, who: Who) -> bool {
        let mut moved = false;
        for n in self.live.clone() {
            let Some(model) = self.models.get(n) else {
                continue;
            };
            if model.caller != who {
                if let Handler::Open(key) = model.handler {
                    moved = true;
                    self.read(who, n, key, true);
                    self.work_on(who, n, true);
                }
                continue;
            }
            let Some(key) = model
                .key
                .filter(|_| !model.released && model.shape != Shape::Unary)
            else {
                continue;
            };
            if model.shape.request_streams() && model.up.ending.is_none() {
                moved = true;
                let now = self.at();
                self.ends[who].session.finish(now, key, None);
                if let Some(model) = self.models.get_mut(n) {
                    model.up.ending = Some(Ending::Well);
                }
            }
            self.read(who, n, key, true);
        }
        moved
    }

    /// Everything has come to rest: every call has ended, and nothing is held.
    fn judge_quiet(&mut self) {
        for (n, model) in self.models.iter().enumerate() {
            let answered =
                model.notify || model.batch.is_some() || model.released || model.outcome.is_some();
            assert!(
                answered,
                "call {n} of {:?} never ended: {:?}, up {:?}, down {:?}",
                model.caller, model.handler, model.up, model.down
            );
            assert!(
                !matches!(model.handler, Handler::Open(_))
                    || self.ends[model.caller.other()].closed.is_some(),
                "the handler of call {n} still works"
            );
        }
        let closed = |who: Who| self.ends[who].closed.is_some();
        assert_eq!(
            closed(Who::Client),
            closed(Who::Acceptor),
            "one side is closed and the other is not"
        );
        for who in Who::BOTH {
            let held = self.ends[who].session.occupancy();
            if closed(who) {
                assert_eq!(
                    (held.calls, held.batches, held.requests, held.peer_ids),
                    (0, 0, 0, 0),
                    "{who:?}: {held:?}"
                );
            } else {
                assert_eq!(held, remus_session::Occupancy::default(), "{who:?}");
            }
        }
        if !closed(Who::Client) {
            for who in Who::BOTH {
                let (sent, received) = (
                    self.ends[who].session.credits_taken(),
                    self.ends[who.other()].session.credits_given(),
                );
                for (id, taken) in sent {
                    let given = received
                        .iter()
                        .find(|(other, _)| *other == id)
                        .map(|(_, given)| *given);
                    assert!(
                        given.is_none_or(|given| given == taken),
                        "{who:?}, stream {id}: {taken:?} is held for {given:?}"
                    );
                }
            }
        }
    }

    /// A graceful end of what is still open leaves both sides closed without an error.
    fn end_well(&mut self) {
        if self.ends[Who::Client].closed.is_none() {
            let who = self.who();
            let now = self.at();
            self.ends[who].announced = true;
            self.ends[who].session.shut_down(
                now,
                ErrorCode::OK,
                "done",
                "",
                Duration::from_secs(1),
            );
            self.settle();
        }
        for who in Who::BOTH {
            let Some(reason) = &self.ends[who].closed else {
                unreachable!(
                    "{who:?} did not end: {:?}",
                    self.ends[who].session.occupancy()
                )
            };
            assert!(!reason.reason.is_empty());
        }
    }
}

fn model_deadline(models: &[Model], n: usize) -> Option<u64> {
    models.get(n).and_then(|model| model.deadline)
}

fn model_batch(models: &[Model], n: usize) -> Option<usize> {
    models.get(n).and_then(|model| model.batch)
}

/// Whether neither application can do anything about a call any more.
fn is_over(model: &Model) -> bool {
    let caller = model.notify || model.batch.is_some() || model.released || model.is_batch();
    let handler = matches!(model.handler, Handler::Done)
        || (model.handler == Handler::Unseen && model.outcome.is_some());
    caller && handler
}

fn draw_config<C: Choices>(choices: &mut C, who: Who, features: Features) -> SessionConfig {
    let mut config = match who {
        Who::Client => SessionConfig::client(),
        Who::Acceptor => SessionConfig::acceptor(),
    };
    let kib = |n: u32| n * 1024;
    let window = choices.pick(&[kib(64), 100_000, kib(256), kib(1024)], kib(64));
    config.limits = Limits {
        max_frame: choices.pick(&[16 * 1024 + 64, kib(32), kib(64), kib(1024)], kib(64)),
        max_message: choices.pick(&[kib(64), kib(512), kib(4096)], kib(4096)),
        max_streams: choices.pick(&[64, 8, 3, 1, 0], 64),
        max_calls: choices.pick(&[1024, 64], 64),
        stream_window: window,
        session_window: window * choices.pick(&[4, 2, 1], 4),
    };
    config.max_queued_bytes = choices.pick(&[4 << 20, 256 << 10, 64 << 10], 4 << 20);
    config.max_stream_queued_bytes = choices.pick(&[256 << 10, 64 << 10, 1 << 10], 256 << 10);
    if choices.chance(1, 5) {
        config.max_answer_bytes = config.max_queued_bytes;
    }
    if choices.chance(1, 4) {
        config.max_assembly_bytes =
            usize::try_from(config.limits.max_message).unwrap_or(usize::MAX);
    }
    config.extra_lanes = choices.pick(&[2, 0, 1, 15], 2);
    config.idle_timeout = Duration::from_millis(if features.endings {
        choices.pick(&[10_000, 3_000, 500], 10_000)
    } else {
        // No stall of a pipe lasts that long.
        600_000
    });
    config
}
