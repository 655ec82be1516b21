//! Calls: closed loops of so many in flight, and an open loop of so many a second.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::task::{JoinSet, LocalSet};

use super::{
    Dial, Echo, Gauge, Latencies, LocalEcho, Outcome, Taken, Window, check, float, payload,
};
use crate::Result;
use crate::case::Case;
use crate::peer::Target;

/// One loop of one call after the other. In two forms, for futures that may change threads and for those that may not.
macro_rules! one_after_the_other {
    ($name:ident, $client:path, $call:ident) => {
        async fn $name<C: $client>(
            client: C,
            number: u64,
            size: usize,
            gauge: Gauge,
        ) -> Result<Taken> {
            let sent = payload(number, size);
            let mut taken = Taken::default();
            let mut start = Instant::now();
            while !gauge.is_over() {
                let answer = client.$call(sent.clone()).await?;
                let now = Instant::now();
                check(&sent, &answer)?;
                if gauge.is_measured() {
                    taken.record(now - start);
                }
                start = now;
            }
            Ok(taken)
        }
    };
}

one_after_the_other!(closed_loop, Echo, call);
one_after_the_other!(local_closed_loop, LocalEcho, call_local);

/// Calls on one connection, as the case says.
pub(crate) async fn unary<P>(case: &Case, target: &Target, window: Window) -> Result<Outcome>
where
    P: Dial,
    P::Client: Echo,
{
    let client = P::prepare(target)?.connect().await?;
    if let Some(rate) = case.rate {
        return open_loop(client, rate, case.size, window).await;
    }
    let (gauge, watch) = window.start();
    let mut loops = JoinSet::new();
    for number in 0..case.in_flight as u64 {
        loops.spawn(closed_loop(
            client.clone(),
            number,
            case.size,
            gauge.clone(),
        ));
    }
    let latencies = gather(loops).await?;
    let calls = latencies.count();
    watch.outcome(float(calls), calls * case.size as u64, Some(&latencies))
}

/// The same for a peer whose clients cannot leave their thread.
pub(crate) async fn unary_local<P: Dial>(
    case: &Case,
    target: &Target,
    window: Window,
) -> Result<Outcome> {
    if case.rate.is_some() {
        return Err("the open loop needs a client that can leave its thread".into());
    }
    let local = LocalSet::new();
    local
        .run_until(async {
            let client = P::prepare(target)?.connect().await?;
            let (gauge, watch) = window.start();
            let mut loops = JoinSet::new();
            for number in 0..case.in_flight as u64 {
                let client = client.clone();
                loops.spawn_local(local_closed_loop(client, number, case.size, gauge.clone()));
            }
            let latencies = gather(loops).await?;
            let calls = latencies.count();
            watch.outcome(float(calls), calls * case.size as u64, Some(&latencies))
        })
        .await
}

async fn gather(mut loops: JoinSet<Result<Taken>>) -> Result<Latencies> {
    let mut latencies = Latencies::new()?;
    while let Some(taken) = loops.join_next().await {
        taken??.pour_into(&mut latencies);
    }
    Ok(latencies)
}

/// Calls of an open loop that may be under way. More means that the peer does not keep up, which is then the result.
const UNDER_WAY_MAX: usize = 65_536;

/// The shortest interval between two looks at what is due: at a higher rate several calls start together.
const TICK_MIN: Duration = Duration::from_micros(50);

/// Starts calls at a given rate, whatever the answers do. Latency counts from when a call should have started, so a peer that
/// stalls is charged for the calls it kept from starting.
async fn open_loop<C: Echo>(client: C, rate: u64, size: usize, window: Window) -> Result<Outcome> {
    if rate == 0 {
        return Err("a rate of 0 calls per second measures nothing".into());
    }
    let sent = payload(0, size);
    let latencies = Arc::new(Mutex::new(Latencies::new()?));
    let failure = Arc::new(Mutex::new(None));
    let under_way = Arc::new(AtomicUsize::new(0));
    let interval = Duration::from_secs_f64(1.0 / float(rate));
    let ticks = Ticks::every(interval.max(TICK_MIN))?;

    let (gauge, watch) = window.start();
    let start = Instant::now();
    let mut started = 0_u64;
    while !gauge.is_over() {
        ticks.next().await?;
        let elapsed = start.elapsed();
        loop {
            let due = Duration::from_secs_f64(float(started) / float(rate));
            if due > elapsed {
                break;
            }
            if under_way.fetch_add(1, Ordering::Relaxed) == UNDER_WAY_MAX {
                return Err(format!("it does not keep up: {UNDER_WAY_MAX} calls wait").into());
            }
            started += 1;
            let call = (client.clone(), sent.clone(), gauge.clone());
            let (latencies, failure, under_way) =
                (latencies.clone(), failure.clone(), under_way.clone());
            tokio::spawn(async move {
                let (client, sent, gauge) = call;
                let counts = gauge.is_measured();
                let answer = client.call(sent.clone()).await;
                let latency = start.elapsed().saturating_sub(due);
                match answer.and_then(|answer| check(&sent, &answer)) {
                    Ok(()) if counts => latencies
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .record(latency),
                    Ok(()) => {}
                    Err(error) => {
                        failure
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .get_or_insert(error);
                    }
                }
                under_way.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
    // Those that were started in the window count, however late they come.
    while under_way.load(Ordering::Relaxed) > 0 {
        ticks.next().await?;
    }
    if let Some(error) = failure
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
    {
        return Err(error);
    }
    let latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
    let calls = latencies.count();
    watch.outcome(float(calls), calls * size as u64, Some(&latencies))
}

/// A timer of the kernel: tokio's has a resolution of a millisecond, which is longer than what is measured.
struct Ticks(AsyncFd<OwnedFd>);

impl Ticks {
    fn every(interval: Duration) -> Result<Self> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        let spec = Timespec {
            tv_sec: i64::try_from(interval.as_secs())?,
            tv_nsec: i64::from(interval.subsec_nanos()),
        };
        let spec = Itimerspec {
            it_interval: spec,
            it_value: spec,
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &spec)?;
        #[expect(
            deprecated,
            reason = "its replacement is unsafe; an `OwnedFd` keeps the promise that it asks for"
        )]
        Ok(Self(AsyncFd::new(timer)?))
    }

    async fn next(&self) -> Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let read = ready.try_io(|timer| {
                let mut expirations = [0; 8];
                Ok(rustix::io::read(timer, &mut expirations)?)
            });
            if let Ok(read) = read {
                read?;
                return Ok(());
            }
        }
    }
}
