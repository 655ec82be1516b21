//! Connections: one to the client, one to the server, and a pump for each direction between them.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::fate::Fates;
use super::line::{Shaper, count};
use super::proxy::{Shared, State, TcpCounts, closing};
use super::settings::{DELAY_MAX, Direction, Protocol, Tcp, Ways};

/// Connections at a time. Each has two sockets and a task; beyond it new ones are reset at once.
pub const CONNECTIONS_MAX: usize = 256;

/// Bytes of one direction of a connection that may be on their way: with 20 ms of delay they make 400 Mbit/s. Beyond it nothing more is
/// read, so the sender waits.
pub const WINDOW_BYTES: usize = 1024 * 1024;

/// Most bytes that are read in one piece, and share a jitter.
pub const CHUNK_BYTES: usize = 16 * 1024;

/// Parts of a second whose bytes make a piece where bandwidth is limited, so that they trickle and do not come in lumps.
const CHUNKS_PER_SECOND: u64 = 100;

/// How long no connection is taken after the kernel has reported an error, such as too many open files.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// What all connections share.
#[derive(Debug, Default)]
pub(super) struct Totals {
    shapers: Ways<Shaper>,
    accepted: AtomicU64,
    ended: AtomicU64,
    refused: AtomicU64,
    unreachable: AtomicU64,
    reset: AtomicU64,
    bytes: Ways<AtomicU64>,
}

impl Totals {
    pub(super) fn counts(&self) -> TcpCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TcpCounts {
            accepted: read(&self.accepted),
            ended: read(&self.ended),
            refused: read(&self.refused),
            unreachable: read(&self.unreachable),
            reset: read(&self.reset),
            bytes: Ways {
                up: read(&self.bytes.up),
                down: read(&self.bytes.down),
            },
        }
    }
}

/// Takes connections and serves them, until the proxy ends.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let totals = &shared.tcp;
    let mut state = shared.state.subscribe();
    let mut connections = JoinSet::new();
    let mut begun = 0_u64;
    loop {
        tokio::select! {
            () = closing(&mut state) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else {
                    sleep(ERROR_PAUSE).await;
                    continue;
                };
                count(&totals.accepted);
                let number = begun;
                begun += 1;
                let now = *shared.state.borrow();
                if now.settings.refuse_tcp || connections.len() >= CONNECTIONS_MAX {
                    reset(client);
                    count(&totals.refused);
                    count(&totals.ended);
                    continue;
                }
                let connection = serve_one(client, number, now.tcp_resets, Arc::clone(&shared));
                connections.spawn(connection);
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Ends a connection without the politeness of TCP.
fn reset(stream: TcpStream) {
    // Without it the connection ends all the same, only politely.
    let _ = stream.set_zero_linger();
}

/// Why a connection is over.
enum End {
    /// Both ends have said all.
    Finished,
    /// One of them broke off.
    Broken,
    /// [`Handle::reset_tcp`](super::Handle::reset_tcp).
    Reset,
    /// The proxy ends.
    Closing,
}

async fn serve_one(mut client: TcpStream, number: u64, resets: u64, shared: Arc<Shared>) {
    let totals = &shared.tcp;
    let state = shared.state.subscribe();
    let mut server = None;
    let end = {
        let ended = ended_from_outside(state.clone(), resets);
        tokio::pin!(ended);
        tokio::select! {
            end = &mut ended => end,
            end = async {
                server = dial(&shared, state.clone()).await.ok();
                match &mut server {
                    Some(server) => join(&mut client, server, number, &shared, &state).await,
                    None => {
                        count(&totals.unreachable);
                        End::Broken
                    }
                }
            } => end,
        }
    };
    match end {
        End::Finished | End::Closing => {}
        End::Broken | End::Reset => {
            reset(client);
            if let Some(server) = server {
                reset(server);
            }
        }
    }
    if matches!(end, End::Reset) {
        count(&totals.reset);
    }
    count(&totals.ended);
}

/// Waits for what ends a connection whatever it does; so many resets were before it.
async fn ended_from_outside(mut state: watch::Receiver<State>, resets: u64) -> End {
    match state
        .wait_for(|state| state.closing || state.tcp_resets != resets)
        .await
    {
        Ok(state) if !state.closing => End::Reset,
        _ => End::Closing,
    }
}

/// Reaches the server, once no black hole is in the way.
async fn dial(shared: &Shared, mut state: watch::Receiver<State>) -> io::Result<TcpStream> {
    let _ = state
        .wait_for(|state| !state.settings.tcp.up.black_hole)
        .await;
    let socket = match shared.server {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // The server may have taken it before we know: if a reset comes in between, dropping it has to be one.
    SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    let server = socket.connect(shared.server).await?;
    SockRef::from(&server).set_linger(None)?;
    Ok(server)
}

/// Passes on what either says until both are done.
async fn join(
    client: &mut TcpStream,
    server: &mut TcpStream,
    number: u64,
    shared: &Shared,
    state: &watch::Receiver<State>,
) -> End {
    // The proxy adds the delays it is told to, and no others.
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let pump = |direction| {
        let fates = Fates::new(shared.seed, Protocol::Tcp, number, direction);
        Pump::new(direction, &shared.tcp, fates, state.clone())
    };
    let ended = tokio::try_join!(
        pump(Direction::Up).run(from_client, to_server),
        pump(Direction::Down).run(from_server, to_client)
    );
    match ended {
        Ok((Said::All, Said::All)) => End::Finished,
        _ => End::Broken,
    }
}

/// How one direction ended, while the other may go on.
enum Said {
    /// All that there was, and its end was passed on.
    All,
    /// Its reader is gone. What that one has said before may still be on its way, so the other direction finds its own end.
    ToNobody,
}

/// Its writer broke off, and everything before that has been passed on.
struct BrokenOff;

/// Something on its way.
enum Item {
    Bytes(Bytes),
    End,
    BreakOff,
}

/// One direction of a connection.
struct Pump<'s> {
    direction: Direction,
    totals: &'s Totals,
    fates: Fates,
    state: watch::Receiver<State>,
    waiting: VecDeque<(Instant, Item)>,
    waiting_bytes: usize,
    last_due: Option<Instant>,
}

impl<'s> Pump<'s> {
    fn new(
        direction: Direction,
        totals: &'s Totals,
        fates: Fates,
        state: watch::Receiver<State>,
    ) -> Self {
        Self {
            direction,
            totals,
            fates,
            state,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            last_due: None,
        }
    }

    async fn run(
        mut self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) -> Result<Said, BrokenOff> {
        let shaper = self.totals.shapers.way(self.direction);
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut reads = true;
        loop {
            let tcp = *self
                .state
                .borrow_and_update()
                .settings
                .tcp
                .way(self.direction);
            let ready_at = match tcp.bandwidth {
                Some(_) => shaper.ready_at(Instant::now()),
                None => Instant::now(),
            };
            let chunk = buffer.get_mut(..chunk_bytes(&tcp)).unwrap_or_default();
            tokio::select! {
                changed = self.state.changed() => if changed.is_err() { return Err(BrokenOff) },
                read = read_from(ready_at, &mut from, &mut *chunk),
                    if reads && !tcp.black_hole && self.waiting_bytes < WINDOW_BYTES =>
                {
                    let item = match read {
                        Ok(0) => Item::End,
                        Ok(len) => Item::Bytes(Bytes::copy_from_slice(chunk.get(..len).unwrap_or_default())),
                        Err(_) => Item::BreakOff,
                    };
                    reads = matches!(item, Item::Bytes(_));
                    self.push(shaper, item, &tcp);
                }
                written = write_to(&mut to, self.waiting.front()), if !tcp.black_hole && !self.waiting.is_empty() => {
                    match written {
                        Written::Bytes(len) => self.pop(len),
                        Written::End => return Ok(Said::All),
                        Written::BreakOff => return Err(BrokenOff),
                        Written::Nobody => return Ok(Said::ToNobody),
                    }
                }
            }
        }
    }

    fn push(&mut self, shaper: &Shaper, item: Item, tcp: &Tcp) {
        let bytes = match &item {
            Item::Bytes(bytes) => bytes.len(),
            Item::End | Item::BreakOff => 0,
        };
        let now = Instant::now();
        // What was read is never dropped; reading waits for the backlog instead.
        let sent = shaper
            .send(now, bytes, tcp.bandwidth, Duration::MAX)
            .unwrap_or(now);
        let due = sent + tcp.delay.min(DELAY_MAX) + self.fates.jitter(tcp.jitter);
        let due = self.last_due.map_or(due, |last| last.max(due));
        self.last_due = Some(due);
        self.waiting_bytes += bytes;
        self.waiting.push_back((due, item));
    }

    /// So many bytes of the first piece are gone.
    fn pop(&mut self, len: usize) {
        self.waiting_bytes -= len;
        let counter = self.totals.bytes.way(self.direction);
        counter.fetch_add(u64::try_from(len).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Some((_, Item::Bytes(bytes))) = self.waiting.front_mut() {
            bytes.advance(len);
            if bytes.is_empty() {
                self.waiting.pop_front();
            }
        }
    }
}

fn chunk_bytes(tcp: &Tcp) -> usize {
    tcp.bandwidth.map_or(CHUNK_BYTES, |bandwidth| {
        usize::try_from(bandwidth.get() / CHUNKS_PER_SECOND)
            .unwrap_or(CHUNK_BYTES)
            .clamp(1, CHUNK_BYTES)
    })
}

/// Cancel safe: the time is absolute, and a read that is dropped has read nothing.
async fn read_from(
    at: Instant,
    from: &mut (impl AsyncRead + Unpin),
    chunk: &mut [u8],
) -> io::Result<usize> {
    if at > Instant::now() {
        sleep_until(at).await;
    }
    from.read(chunk).await
}

/// What became of the first thing on its way.
enum Written {
    Bytes(usize),
    End,
    BreakOff,
    Nobody,
}

/// Waits until the first thing is due, and passes it on. Cancel safe, as a write that is dropped has written nothing.
async fn write_to(to: &mut (impl AsyncWrite + Unpin), first: Option<&(Instant, Item)>) -> Written {
    let Some((due, item)) = first else {
        return std::future::pending().await;
    };
    if *due > Instant::now() {
        sleep_until(*due).await;
    }
    match item {
        Item::Bytes(bytes) => match to.write(bytes).await {
            Ok(len) if len > 0 => Written::Bytes(len),
            _ => Written::Nobody,
        },
        Item::End => match to.shutdown().await {
            Ok(()) => Written::End,
            Err(_) => Written::Nobody,
        },
        Item::BreakOff => Written::BreakOff,
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use tokio::io::{DuplexStream, duplex};
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    use super::*;

    /// Bytes between a pump and its peers here; little, so that what waits waits in the pump.
    const PIPE_BYTES: usize = 1024;

    /// A pump upward with what feeds it and what it feeds. The clock moves only when everything waits.
    struct World {
        state: watch::Sender<State>,
        client: DuplexStream,
        server: DuplexStream,
        pump: JoinHandle<Result<Said, BrokenOff>>,
        start: Instant,
    }

    fn world(tcp: Tcp) -> World {
        let mut state = State::default();
        state.settings.tcp.up = tcp;
        let state = watch::Sender::new(state);
        let (client, from) = duplex(PIPE_BYTES);
        let (to, server) = duplex(PIPE_BYTES);
        let watched = state.subscribe();
        let pump = tokio::spawn(async move {
            let totals = Totals::default();
            let fates = Fates::new(1, Protocol::Tcp, 0, Direction::Up);
            let pump = Pump::new(Direction::Up, &totals, fates, watched);
            pump.run(from, to).await
        });
        World {
            state,
            client,
            server,
            pump,
            start: Instant::now(),
        }
    }

    impl World {
        async fn read(&mut self, len: usize) -> Duration {
            self.server.read_exact(&mut vec![0; len]).await.unwrap();
            self.start.elapsed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_and_the_end_of_a_connection_are_delayed() {
        let mut world = world(Tcp {
            delay: Duration::from_millis(100),
            ..Tcp::default()
        });
        world.client.write_all(&[7; 500]).await.unwrap();
        assert_eq!(world.read(500).await.as_millis(), 100);
        world.client.shutdown().await.unwrap();
        assert_eq!(world.server.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(world.start.elapsed().as_millis(), 200);
        assert!(matches!(world.pump.await.unwrap(), Ok(Said::All)));
    }

    #[tokio::test(start_paused = true)]
    async fn bandwidth_lets_bytes_trickle() {
        let World {
            mut client,
            mut server,
            start,
            state: _told,
            pump: _,
        } = world(Tcp {
            bandwidth: NonZeroU64::new(100_000),
            ..Tcp::default()
        });
        let write = async { client.write_all(&[7; 100_000]).await.unwrap() };
        let read = async {
            // Never earlier, and never later than the piece that the last of them came in, to the tick of the timer.
            for hundredth in 1..=100 {
                server.read_exact(&mut [0; 1000]).await.unwrap();
                let (due, came) = (10 * hundredth, start.elapsed().as_millis());
                assert!((due..=due + 11).contains(&came), "{came} ms, not {due}");
            }
        };
        tokio::join!(write, read);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_the_window_is_taken_in() {
        let mut world = world(Tcp {
            delay: DELAY_MAX,
            ..Tcp::default()
        });
        let chunk = vec![7; PIPE_BYTES];
        let mut written = 0;
        // A second in which nothing moves is one in which nothing will.
        while let Ok(len) = timeout(Duration::from_secs(1), world.client.write(&chunk)).await {
            written += len.unwrap();
        }
        assert!((WINDOW_BYTES..=WINDOW_BYTES + CHUNK_BYTES + PIPE_BYTES).contains(&written));
        // When the first has arrived there is room again.
        assert_eq!(world.read(CHUNK_BYTES).await.as_secs(), 60);
        world.client.write_all(&chunk).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stops_stops_the_writer() {
        let mut world = world(Tcp::default());
        let chunk = vec![7; PIPE_BYTES];
        let mut written = 0;
        while let Ok(len) = timeout(Duration::from_secs(1), world.client.write(&chunk)).await {
            written += len.unwrap();
        }
        assert!(written <= WINDOW_BYTES + CHUNK_BYTES + 2 * PIPE_BYTES);
        world.read(written).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_black_hole_keeps_what_is_on_its_way() {
        let mut world = world(Tcp {
            delay: Duration::from_millis(100),
            ..Tcp::default()
        });
        world.client.write_all(&[7; 500]).await.unwrap();
        sleep(Duration::from_millis(50)).await;
        let hole =
            |black_hole| move |state: &mut State| state.settings.tcp.up.black_hole = black_hole;
        world.state.send_modify(hole(true));
        world.client.shutdown().await.unwrap();
        let nothing = timeout(DELAY_MAX, world.server.read(&mut [0])).await;
        nothing.unwrap_err();
        world.state.send_modify(hole(false));
        world.read(500).await;
        assert_eq!(world.server.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_no_more_ends_the_direction_and_not_the_connection() {
        let mut world = world(Tcp::default());
        drop(world.server);
        world.client.write_all(&[7; 500]).await.unwrap();
        assert!(matches!(world.pump.await.unwrap(), Ok(Said::ToNobody)));
    }
}
