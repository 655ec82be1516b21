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
    Answer, CallError, CallKey, CarrierInfo, CloseReason, Event, Grant, Incoming, LANES_MAX,
    LaneId, Outgoing, Peeked, Received, ResumeError, ResumeRequest, SendError, Session,
    SessionConfig, Shape, peek_resume, refuse_resume,
};
use remus_wire::{
    AuthenticationRecord, Context, ErrorCode, ErrorRecord, Flags, LaneOffset, Limits, Message,
    MethodId, Priority, QueryAnswer, RequestId, ResumeToken, Routing, ServiceId, Timestamp,
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

/// What carries the bytes of a session, or of nobody any more.
#[derive(Default)]
struct Carrier {
    lanes: u16,
    /// Bytes on their way from an end, by lane.
    pipes: Pair<Vec<Pipe>>,
    /// Datagrams on their way from an end.
    datagrams: Pair<Vec<Bytes>>,
    /// The lanes that the client has opened, as bits.
    opened: u32,
    /// Nothing more comes into it. What is on its way may still arrive.
    broken: bool,
    /// The acceptor knows which session it is for.
    routed: bool,
}

fn draw_pipes<C: Choices>(choices: &mut C) -> Vec<Pipe> {
    (0..LANES_MAX)
        .map(|_| Pipe {
            capacity: narrow(choices.pick(&[1 << 20, 64 << 10, 4 << 10], 1 << 20)),
            ..Pipe::default()
        })
        .collect()
}

impl Carrier {
    fn is_empty(&self, who: Who) -> bool {
        self.pipes[who].iter().all(|pipe| pipe.len == 0)
    }

    /// What is on its way from one end is lost.
    fn clear(&mut self, who: Who) {
        for pipe in &mut self.pipes[who] {
            *pipe = Pipe {
                capacity: pipe.capacity,
                ..Pipe::default()
            };
        }
        self.datagrams[who].clear();
    }
}

/// One end with its application.
struct End {
    session: Session,
    /// The carrier that it has, and what the session numbers it.
    on: Option<usize>,
    attachment: u32,
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
    max_retained: usize,
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
    /// Sessions that outlive their carriers: cuts, switches, resumptions that are lost or race, stolen tokens.
    pub carriers: bool,
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
    /// Times that the acceptor's session went on with another carrier.
    pub resumptions: u64,
    /// Requests to resume that were answered again, because the client had not heard of the answer.
    pub repeats: usize,
    /// Requests to resume that were refused.
    pub refusals: usize,
    /// Bytes that left again on another carrier.
    pub replayed: u64,
}

/// Two sessions, a carrier, two applications.
pub struct World<C> {
    choices: C,
    features: Features,
    now: u64,
    ends: Pair<End>,
    /// All carriers that there were, in the order in which the client opened them.
    carriers: Vec<Carrier>,
    /// Tokens that were drawn.
    tokens: u32,
    repeats: usize,
    refusals: usize,
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
            let max_retained = config.max_retained_bytes;
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
            let pipes = draw_pipes(&mut choices);
            let end = End {
                attachment: session.attachment(),
                session,
                on: Some(0),
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
                max_retained,
            };
            (end, pipes)
        };
        let (client, clients) = end(Who::Client, 0);
        let (acceptor, acceptors) = end(Who::Acceptor, 0);
        let carrier = Carrier {
            lanes: LANES_MAX,
            pipes: Pair {
                client: clients,
                acceptor: acceptors,
            },
            opened: 1,
            routed: true,
            ..Carrier::default()
        };
        Self {
            choices,
            features,
            now,
            ends: Pair { client, acceptor },
            carriers: vec![carrier],
            tokens: 0,
            repeats: 0,
            refusals: 0,
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
        self.judge_retained();
        self.end_well();
    }

    fn capacities(&self) -> Vec<usize> {
        let carrier = self.carriers.first();
        let pipes = |who: Who| carrier.map(|carrier| carrier.pipes[who].iter());
        Who::BOTH
            .into_iter()
            .flat_map(|who| pipes(who).into_iter().flatten())
            .map(|pipe| pipe.capacity)
            .collect()
    }

    fn set_capacities(&mut self, capacities: &[usize]) {
        let mut capacities = capacities.iter();
        let Some(carrier) = self.carriers.first_mut() else {
            return;
        };
        for who in Who::BOTH {
            for (pipe, capacity) in carrier.pipes[who].iter_mut().zip(&mut capacities) {
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
            resumptions: self.ends[Who::Acceptor].session.statistics().resumptions,
            repeats: self.repeats,
            refusals: self.refusals,
            replayed: Who::BOTH
                .into_iter()
                .map(|who| self.ends[who].session.statistics().replayed_bytes)
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
            97..100 if self.features.carriers => self.move_between_carriers(who),
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
        let on = self.ends[who].on?;
        self.carriers.get_mut(on)?.pipes[who].get_mut(lane)
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
        let Some(carrier) = end.on.and_then(|on| self.carriers.get_mut(on)) else {
            return false;
        };
        let Some(pipe) = carrier.pipes[who].get_mut(usize::from(lane)) else {
            return false;
        };
        let mut out = VecDeque::new();
        if carrier.broken {
            // Nobody has told the session: what it writes is lost.
            while end.session.poll_transmit(LaneId(lane), &mut out) {
                moved = true;
            }
            return moved;
        }
        while pipe.len < pipe.capacity && end.session.poll_transmit(LaneId(lane), &mut out) {
            moved = true;
            pipe.len += out.iter().map(Bytes::len).sum::<usize>();
            pipe.bytes.append(&mut out);
        }
        if moved && who == Who::Client {
            carrier.opened |= 1 << lane;
        }
        let there = lane < carrier.lanes && carrier.opened & (1 << lane) != 0;
        assert!(
            there || !moved,
            "{who:?} sends on lane {lane}, which is not there"
        );
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
        let on = self.ends[from.other()].on?;
        let pipes = &self.carriers.get(on)?.pipes[from];
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
        let peer = &mut self.ends[from.other()];
        let Some(carrier) = peer.on.and_then(|on| self.carriers.get_mut(on)) else {
            return false;
        };
        let Some(pipe) = carrier.pipes[from].get_mut(usize::from(lane)) else {
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
        let carrier = self.ends[from].on.and_then(|on| self.carriers.get_mut(on));
        let Some(carrier) = carrier.filter(|carrier| !carrier.broken) else {
            return;
        };
        while let Some(datagram) = self.ends[from].session.poll_datagram() {
            carrier.datagrams[from].push(datagram);
        }
        let datagrams = &mut carrier.datagrams[from];
        if datagrams.is_empty() {
            return;
        }
        let at = self.choices.index(datagrams.len());
        // Any of them may come next; one in four is lost, one in eight comes again.
        let again = self.choices.chance(1, 8);
        let lost = self.choices.chance(1, 4);
        let datagram = if again {
            datagrams.get(at).cloned().unwrap_or_default()
        } else {
            datagrams.swap_remove(at)
        };
        if !lost && self.ends[from].on == self.ends[from.other()].on {
            let peer = &mut self.ends[from.other()];
            if !peer.session.state().is_closed() && peer.active && !peer.session.is_suspended() {
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
            self.tokens += 1;
            let grant = Grant {
                session: 7,
                authenticated: true,
                token: token(self.tokens),
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
            for carrier in &mut self.carriers {
                carrier.clear(who);
            }
        }
    }

    // Carriers that come and go.

    fn move_between_carriers(&mut self, who: Who) {
        let client = &self.ends[Who::Client].session;
        let (resumable, suspended) = (client.is_resumable(), client.is_suspended());
        match self.choices.below(8) {
            0 | 1 if resumable && !suspended => self.cut(who),
            2 => self.intrude(),
            // It changes its carrier, or loses its patience with the one on which it has asked.
            3 if resumable => self.reconnect(),
            _ => {
                let unrouted = self.unrouted();
                let at = self.choices.index(unrouted.len());
                if self.notice(who) {
                } else if let Some(on) = unrouted.get(at) {
                    self.route(*on);
                } else if suspended && self.ends[Who::Client].on.is_none() {
                    self.reconnect();
                }
            }
        }
    }

    /// A carrier breaks: some of what is on its way still arrives.
    fn cut(&mut self, who: Who) {
        let Some(on) = self.ends[who].on else {
            return;
        };
        for from in Who::BOTH {
            let Some(carrier) = self.carriers.get_mut(on) else {
                return;
            };
            if self.choices.chance(1, 2) {
                carrier.clear(from);
                continue;
            }
            for pipe in &mut carrier.pipes[from] {
                let mut kept = self.choices.index(pipe.len + 1);
                pipe.len = kept;
                pipe.bytes.retain_mut(|chunk| {
                    chunk.truncate(kept);
                    kept -= chunk.len();
                    !chunk.is_empty()
                });
            }
        }
        if let Some(carrier) = self.carriers.get_mut(on) {
            carrier.broken = true;
        }
        for who in Who::BOTH {
            if self.choices.chance(1, 2) {
                self.notice(who);
            }
        }
    }

    /// An end finds that its carrier is broken. True where it was.
    fn notice(&mut self, who: Who) -> bool {
        let Some(on) = self.ends[who].on else {
            return false;
        };
        if !self.carriers.get(on).is_some_and(|carrier| carrier.broken) {
            return false;
        }
        let now = self.at();
        let end = &mut self.ends[who];
        let resumable = end.session.is_resumable();
        let kept = end.session.suspend(now, ErrorCode::UNAVAILABLE, "cut");
        assert_eq!(kept, resumable, "{who:?}");
        self.let_go(who);
        true
    }

    /// An end closes its carrier. The other may not have noticed.
    fn let_go(&mut self, who: Who) {
        let Some(on) = self.ends[who].on.take() else {
            return;
        };
        if let Some(carrier) = self.carriers.get_mut(on) {
            carrier.broken = true;
            // It reads no more of it.
            carrier.clear(who.other());
            let nobody = Who::BOTH
                .into_iter()
                .all(|end| self.ends[end].on != Some(on));
            if nobody && carrier.routed {
                carrier.clear(who);
            }
        }
    }

    /// The client asks on a new carrier to go on.
    fn reconnect(&mut self) {
        let now = self.at();
        let lanes = self.choices.pick(&[LANES_MAX, 1, 3], 1);
        let carrier = CarrierInfo {
            lanes,
            datagrams: self.choices.chance(1, 3),
        };
        self.let_go(Who::Client);
        let session = &mut self.ends[Who::Client].session;
        let before = session.attachment();
        let attached = session.attach(now, carrier);
        assert!(
            attached.is_ok_and(|attachment| attachment != before),
            "{attached:?}"
        );
        self.ends[Who::Client].attachment = attached.unwrap_or(before);
        let (client, acceptor) = (draw_pipes(&mut self.choices), draw_pipes(&mut self.choices));
        self.ends[Who::Client].on = Some(self.carriers.len());
        self.carriers.push(Carrier {
            lanes,
            pipes: Pair { client, acceptor },
            opened: 1,
            ..Carrier::default()
        });
    }

    /// Carriers on which something has come, and of which the acceptor does not know yet whose they are.
    fn unrouted(&self) -> Vec<usize> {
        let unrouted = |carrier: &Carrier| !carrier.routed && !carrier.is_empty(Who::Client);
        (0..self.carriers.len())
            .filter(|on| self.carriers.get(*on).is_some_and(unrouted))
            .collect()
    }

    /// The acceptor looks at the first bytes of a carrier.
    fn route(&mut self, on: usize) {
        let now = self.at();
        let token = token(self.tokens + 1);
        let Some(carrier) = self.carriers.get_mut(on) else {
            return;
        };
        let Some(pipe) = carrier.pipes[Who::Client].first_mut() else {
            return;
        };
        let front: Vec<u8> = pipe.bytes.iter().flatten().copied().collect();
        let request = match peek_resume(&front) {
            Peeked::Resume(request) => request,
            other => unreachable!("a client that goes on sent {other:?}"),
        };
        pipe.len -= request.len;
        let rest = front.get(request.len..).unwrap_or_default();
        pipe.bytes.clear();
        if !rest.is_empty() {
            pipe.bytes.push_back(Bytes::copy_from_slice(rest));
        }
        carrier.routed = true;
        let info = CarrierInfo {
            lanes: carrier.lanes,
            datagrams: true,
        };
        let session = &mut self.ends[Who::Acceptor].session;
        let repeats = session.unconfirmed_token() == Some(request.token);
        let kept = session.is_resumable();
        match session.resume(now, &request, token, info) {
            Ok(attachment) => {
                assert_eq!(attachment, session.attachment());
                assert!(kept && !session.is_suspended());
                assert_eq!(session.unconfirmed_token(), Some(request.token));
                self.let_go(Who::Acceptor);
                self.ends[Who::Acceptor].on = Some(on);
                self.ends[Who::Acceptor].attachment = attachment;
                if repeats {
                    self.repeats += 1;
                } else {
                    self.tokens += 1;
                }
            }
            Err(error) => {
                // A request that was overtaken by a later one, or one for a session that is over.
                let expected = if kept {
                    ResumeError::WrongToken
                } else {
                    ResumeError::NotResumable
                };
                assert_eq!(error, expected);
                self.refusals += 1;
                let refusal = refuse_resume(now, &error.to_string());
                if let Some(carrier) = self.carriers.get_mut(on)
                    && !carrier.broken
                    && let Some(pipe) = carrier.pipes[Who::Acceptor].first_mut()
                {
                    assert!(!kept, "the client's present request was refused: {error}");
                    pipe.len += refusal.len();
                    pipe.bytes.push_back(refusal);
                    // The session that it asked for goes with its carrier.
                    if let Some(old) = self.ends[Who::Acceptor].on
                        && let Some(old) = self.carriers.get_mut(old)
                    {
                        old.broken = true;
                    }
                }
            }
        }
    }

    /// Somebody presents a token that is not the session's any more, or says something else than its client.
    fn intrude(&mut self) {
        let now = self.at();
        let session = &mut self.ends[Who::Acceptor].session;
        if !session.is_resumable() {
            return;
        }
        let guess =
            token(u32::try_from(self.choices.below(u64::from(self.tokens) + 2)).unwrap_or(0));
        let lie = vec![LaneOffset {
            lane: 0,
            offset: u64::MAX,
        }];
        let request = ResumeRequest {
            token: guess,
            lanes: lie,
            authentication: AuthenticationRecord::default(),
            len: 0,
        };
        let expected = if guess == session.resume_token() {
            None
        } else if Some(guess) == session.unconfirmed_token() {
            Some(ResumeError::Differs)
        } else {
            Some(ResumeError::WrongToken)
        };
        let (attachment, suspended) = (session.attachment(), session.is_suspended());
        let result = session.resume(now, &request, token(u32::MAX), CarrierInfo::ONE_LANE);
        match (result, expected) {
            (Err(ResumeError::WrongOffset { .. }), None) => {}
            (Err(got), Some(expected)) if got == expected => {}
            (got, _) => unreachable!("a token that is not the session's: {got:?}"),
        }
        assert_eq!(attachment, session.attachment());
        assert_eq!(suspended, session.is_suspended());
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
            Event::Suspended { .. } => {
                assert!(self.features.carriers, "{who:?} lost a carrier by itself");
                let end = &self.ends[who];
                if end.session.attachment() != end.attachment {
                    self.let_go(who); // the session has given its carrier up by itself
                }
            }
            Event::Resumed => {
                assert!(
                    self.features.carriers,
                    "{who:?} changed its carrier by itself"
                );
                self.ends[who].heard = self.now;
            }
            Event::Refused(_) => assert!(
                self.ends[Who::Acceptor].announced
                    || self.ends[Who::Acceptor].session.state().is_closed(),
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
            ErrorCode::LOSS_OF_SESSION if !reason.by_peer => {
                let other = &self.ends[who.other()];
                assert!(
                    self.features.carriers
                        && (other.closed.is_some() || other.session.is_suspended()),
                    "{who:?} gave its session up"
                );
            }
            code if reason.by_peer => assert!(
                self.ends[who.other()].session.state().is_closed()
                    || (code == ErrorCode::LOSS_OF_SESSION && self.ends[who.other()].announced),
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
            let end = &self.ends[who];
            if let Err(problem) = end.session.check() {
                unreachable!("{who:?}: {problem}");
            }
            // What stood ready when the limit was reached still leaves: a frame or a turn beyond 64 KiB on each lane.
            let most = end.max_retained + 3 * (1 << 20);
            let retained = end.session.retained_bytes();
            assert!(retained <= most, "{who:?} keeps {retained} bytes");
        }
    }

    /// Moves everything until nothing moves, with applications that do all that they can.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 20_000, "it never comes to rest");
            for carrier in &mut self.carriers {
                for who in Who::BOTH {
                    for pipe in &mut carrier.pipes[who] {
                        pipe.stalled = false;
                        pipe.capacity = 1 << 20;
                    }
                }
            }
            let mut moved = self.find_carriers();
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
                let on = self.ends[who].on;
                let carrier = on.and_then(|on| self.carriers.get(on));
                if let Some(reason) = self.ends[who].closed.clone()
                    && on == self.ends[who.other()].on
                    && carrier.is_some_and(|carrier| carrier.is_empty(who))
                    && self.ends[who.other()].closed.is_none()
                {
                    self.ends[who.other()]
                        .session
                        .carrier_lost(reason.code, &reason.reason);
                    moved = true;
                }
            }
            if !moved && self.waits_for_an_acknowledgement() {
                // What one side keeps is at its limit: it asks the other how far it came, as soon as it may ask again.
                self.now += 8_000;
                self.handle_timeouts();
                continue;
            }
            if !moved && let Some(deadline) = self.waits_in_vain() {
                self.now = self.now.max(deadline);
                self.handle_timeouts();
                continue;
            }
            if !moved {
                // The handshake may wait for its next probe or a deferred renewal; nothing else waits for time.
                break;
            }
        }
        self.check();
    }

    /// Every end finds out about its carrier, the client goes on with another, and the acceptor looks whose the new ones are. True where
    /// something came of it.
    fn find_carriers(&mut self) -> bool {
        let mut moved = false;
        for who in Who::BOTH {
            moved |= self.notice(who);
        }
        for on in self.unrouted() {
            self.route(on);
            moved = true;
        }
        let client = &self.ends[Who::Client];
        if client.on.is_none() && client.session.is_suspended() {
            self.reconnect();
            moved = true;
        }
        moved
    }

    /// When an end gives its session up that the other has ended and will not go on with.
    fn waits_in_vain(&self) -> Option<u64> {
        Who::BOTH
            .into_iter()
            .filter(|who| self.ends[who.other()].closed.is_some())
            .find_map(|who| self.ends[who].session.resume_deadline())
            .map(|deadline| deadline.0)
    }

    fn waits_for_an_acknowledgement(&self) -> bool {
        Who::BOTH.into_iter().any(|who| {
            let end = &self.ends[who];
            let held = end.session.retained_bytes() >= end.max_retained;
            held && end.session.queued_bytes() > 0 && !end.session.state().is_closed()
        })
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

    /// After a heartbeat each way next to nothing is kept: what nobody acknowledges for its own sake.
    fn judge_retained(&mut self) {
        for who in Who::BOTH {
            self.now += 8_000;
            let now = self.at();
            self.ends[who].session.probe(now);
            self.settle();
        }
        for who in Who::BOTH {
            let kept = self.ends[who].session.retained_bytes();
            assert!(
                kept < 8 << 10 || self.ends[who].closed.is_some(),
                "{who:?} keeps {kept} bytes"
            );
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

/// The token of this number.
fn token(number: u32) -> ResumeToken {
    let mut bytes = [0x5a; 32];
    for (to, from) in bytes.iter_mut().zip(number.to_be_bytes()) {
        *to = from;
    }
    ResumeToken(bytes)
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
    if features.carriers {
        config = config.with_resumption(true);
        config.max_retained_bytes = choices.pick(&[8 << 20, 256 << 10], 8 << 20);
    }
    config.idle_timeout = Duration::from_millis(if features.endings {
        choices.pick(&[10_000, 3_000, 500], 10_000)
    } else {
        // No stall of a pipe lasts that long.
        600_000
    });
    config
}
