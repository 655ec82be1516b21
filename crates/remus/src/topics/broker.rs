//! The broker: subscriptions, their queues, and what happens when one is full.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use remus_wire::Routing;
use serde::{Deserialize, Serialize};

use super::name::{check_pattern, check_topic, named};
use super::table::Table;
use crate::Error;

/// Subscriptions that one broker takes; further ones are refused with RESOURCE_EXHAUSTED. Some 300 bytes each.
pub const SUBSCRIPTIONS_MAX: usize = 262_144;

/// Bytes that may wait in one subscription, whatever its capacity in messages: 8 MiB.
pub const SUBSCRIPTION_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Messages that may wait in one subscription where it says nothing else.
const CAPACITY_DEFAULT: usize = 1024;

/// The largest capacity in messages.
const CAPACITY_MAX: usize = 65_536;

/// Topics whose counts are kept for listings; of more, those published least recently are forgotten.
const TOPICS_LISTED_MAX: usize = 1024;

/// What happens to a publication when a subscription is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// The publisher waits for room. Publications without acknowledgement cannot wait: for them it is `DropNewest`.
    Wait,
    /// The oldest that waits makes way. The default: readers of measurements want the newest.
    #[default]
    DropOldest,
    /// The new one is dropped.
    DropNewest,
    /// The subscription ends with RESOURCE_EXHAUSTED.
    End,
}

/// Settings of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// What happens when it is full.
    pub overflow: Overflow,
    /// Messages that may wait in it at the broker: 1 to 65,536, 1,024 by default. [`SUBSCRIPTION_BYTES_MAX`] holds as well.
    pub capacity: usize,
    /// Subscriptions of one group share the messages: each goes to one of them.
    pub queue_group: Option<String>,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self {
            overflow: Overflow::default(),
            capacity: CAPACITY_DEFAULT,
            queue_group: None,
        }
    }
}

/// Something that was published. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Publication {
    /// Holds the topic's name as it travels, one for all copies.
    pub(super) routing: Routing,
    /// The bytes.
    pub payload: Bytes,
    /// When the broker took it, in µs since the Unix epoch.
    pub timestamp_us: u64,
}

impl Publication {
    /// The topic it was published to.
    #[must_use]
    pub fn topic(&self) -> &str {
        self.routing.topic().unwrap_or_default()
    }

    fn cost(&self) -> usize {
        self.payload
            .len()
            .saturating_add(self.routing.encoded_len())
    }
}

/// What people and tools are told of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicDescription {
    /// Its name.
    pub name: String,
    /// How often it was published to since the broker started, or since the topic was last forgotten.
    pub published: u64,
    /// When it was last published to, in µs since the Unix epoch.
    pub last_published_us: u64,
    /// How many subscriptions match it now.
    pub subscribers: usize,
}

/// Topics of one node. Cheap to clone.
#[derive(Clone, Default)]
pub struct Broker {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    table: RwLock<Table<Arc<Queue>>>,
    next_id: AtomicU64,
    /// Turns of the queue groups.
    turn: AtomicUsize,
    /// The names come from peers, so their hash is seeded.
    seen: Mutex<HashMap<Box<str>, Seen, foldhash::fast::RandomState>>,
    /// Why it was closed.
    closed: OnceLock<String>,
}

#[derive(Clone)]
struct Seen {
    /// The name as it travels.
    routing: Routing,
    published: u64,
    last_us: u64,
}

/// One subscription's queue.
#[derive(Debug)]
struct Queue {
    overflow: Overflow,
    capacity: usize,
    group: Option<Box<str>>,
    state: Mutex<QueueState>,
}

#[derive(Debug, Default)]
struct QueueState {
    waiting: VecDeque<Publication>,
    bytes: usize,
    dropped: u64,
    /// Why it ends, after what waits has been taken.
    ended: Option<Error>,
    reader: Option<Waker>,
    /// Publishers that wait for room, each its own caller's to bound.
    writers: Vec<Waker>,
}

/// What became of an offer to a queue.
enum Offer {
    Taken,
    Dropped,
    Full,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_full(&self, state: &QueueState, cost: usize) -> bool {
        state.waiting.len() >= self.capacity
            || (!state.waiting.is_empty()
                && state.bytes.saturating_add(cost) > SUBSCRIPTION_BYTES_MAX)
    }

    fn has_room(&self, cost: usize) -> bool {
        let state = self.lock();
        state.ended.is_none() && !self.is_full(&state, cost)
    }

    fn offer(&self, publication: Publication) -> Offer {
        let mut state = self.lock();
        if state.ended.is_some() {
            return Offer::Dropped;
        }
        let cost = publication.cost();
        while self.is_full(&state, cost) {
            match self.overflow {
                Overflow::Wait => return Offer::Full,
                Overflow::DropOldest => {
                    if let Some(oldest) = state.waiting.pop_front() {
                        state.bytes = state.bytes.saturating_sub(oldest.cost());
                        state.dropped = state.dropped.saturating_add(1);
                    }
                }
                Overflow::DropNewest => {
                    state.dropped = state.dropped.saturating_add(1);
                    return Offer::Dropped;
                }
                Overflow::End => {
                    let text = format!(
                        "the subscription overflowed its {} messages or {SUBSCRIPTION_BYTES_MAX} bytes",
                        self.capacity
                    );
                    state.ended = Some(Error::resource_exhausted(text));
                    if let Some(reader) = state.reader.take() {
                        reader.wake();
                    }
                    return Offer::Dropped;
                }
            }
        }
        state.bytes = state.bytes.saturating_add(cost);
        state.waiting.push_back(publication);
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        Offer::Taken
    }

    fn poll_offer(&self, cx: &mut Context<'_>, publication: &Publication) -> Poll<()> {
        match self.offer(publication.clone()) {
            Offer::Taken | Offer::Dropped => Poll::Ready(()),
            Offer::Full => {
                let mut state = self.lock();
                if !self.is_full(&state, publication.cost()) {
                    drop(state);
                    cx.waker().wake_by_ref(); // room came between the two locks
                    return Poll::Pending;
                }
                state.writers.push(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Publication, Error>>> {
        let mut state = self.lock();
        if let Some(publication) = state.waiting.pop_front() {
            state.bytes = state.bytes.saturating_sub(publication.cost());
            for writer in state.writers.drain(..) {
                writer.wake();
            }
            return Poll::Ready(Some(Ok(publication)));
        }
        if let Some(error) = state.ended.clone() {
            return Poll::Ready(Some(Err(error)));
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// As [`Queue::poll_take`], but up to `max` publications in one go, into `taken`.
    fn poll_take_some(
        &self,
        cx: &mut Context<'_>,
        taken: &mut VecDeque<Publication>,
        max: usize,
    ) -> Poll<Result<(), Error>> {
        let mut state = self.lock();
        let count = state.waiting.len().min(max);
        if count > 0 {
            let bytes: usize = state
                .waiting
                .iter()
                .take(count)
                .map(Publication::cost)
                .sum();
            state.bytes = state.bytes.saturating_sub(bytes);
            taken.extend(state.waiting.drain(..count));
            for writer in state.writers.drain(..) {
                writer.wake();
            }
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = state.ended.clone() {
            return Poll::Ready(Err(error));
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn end(&self, error: Option<Error>) {
        let mut state = self.lock();
        state.ended = state
            .ended
            .take()
            .or(error)
            .or_else(|| Some(Error::cancelled("the subscription was dropped")));
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        for writer in state.writers.drain(..) {
            writer.wake();
        }
    }
}

impl Broker {
    /// A broker without subscriptions.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Publishes, waiting for every full subscription that makes publishers wait ([`Overflow::Wait`]).
    ///
    /// # Errors
    ///
    /// INVALID_ARGUMENT for a wrong topic name, SHUTTING_DOWN after [`Broker::close`].
    ///
    /// # Cancel safety
    ///
    /// Dropped while it waits: subscriptions with room have it, those that it waited for have not.
    pub async fn publish(&self, topic: &str, payload: Bytes) -> Result<(), Error> {
        let (publication, full) = self.offer_all(topic, payload)?;
        for queue in full {
            poll_fn(|cx| queue.poll_offer(cx, &publication)).await;
        }
        Ok(())
    }

    /// Publishes without waiting; a full subscription that makes publishers wait misses it.
    ///
    /// # Errors
    ///
    /// As [`Broker::publish`].
    pub fn try_publish(&self, topic: &str, payload: Bytes) -> Result<(), Error> {
        let (_, full) = self.offer_all(topic, payload)?;
        for queue in full {
            let mut state = queue.lock();
            state.dropped = state.dropped.saturating_add(1);
        }
        Ok(())
    }

    /// Offers to every match; the queues to wait for.
    fn offer_all(
        &self,
        topic: &str,
        payload: Bytes,
    ) -> Result<(Publication, Vec<Arc<Queue>>), Error> {
        if let Some(reason) = self.shared.closed.get() {
            return Err(closed(reason));
        }
        let now = now_us();
        let publication = Publication {
            routing: self.note(topic, now)?,
            payload,
            timestamp_us: now,
        };
        let mut full = Vec::new();
        // Members of queue groups: each group gets one copy.
        let mut grouped: Vec<&Arc<Queue>> = Vec::new();
        let table = self
            .shared
            .table
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let mut deliver = |queue: &Arc<Queue>| {
            if let Offer::Full = queue.offer(publication.clone()) {
                full.push(Arc::clone(queue));
            }
        };
        table.for_each_match(topic, |queue| match &queue.group {
            None => deliver(queue),
            Some(_) => grouped.push(queue),
        });
        if !grouped.is_empty() {
            grouped.sort_by(|a, b| a.group.cmp(&b.group));
            let turn = self.shared.turn.fetch_add(1, Ordering::Relaxed);
            for members in grouped.chunk_by(|a, b| a.group == b.group) {
                // In turn, but one that has room before one that has none.
                let at = |offset: usize| members.get(turn.wrapping_add(offset) % members.len());
                let chosen = (0..members.len())
                    .filter_map(at)
                    .find(|queue| queue.has_room(publication.cost()))
                    .or_else(|| at(0));
                if let Some(queue) = chosen {
                    deliver(queue);
                }
            }
        }
        drop(table);
        Ok((publication, full))
    }

    /// Subscribes to what is published from now on.
    ///
    /// # Errors
    ///
    /// INVALID_ARGUMENT for a wrong pattern or capacity, RESOURCE_EXHAUSTED beyond [`SUBSCRIPTIONS_MAX`], SHUTTING_DOWN after
    /// [`Broker::close`].
    pub fn subscribe(
        &self,
        pattern: &str,
        options: SubscribeOptions,
    ) -> Result<Subscription, Error> {
        check_pattern(pattern)?;
        if !(1..=CAPACITY_MAX).contains(&options.capacity) {
            return Err(Error::invalid_argument(format!(
                "a capacity of {} is outside 1 to {CAPACITY_MAX} messages",
                options.capacity
            )));
        }
        let queue = Arc::new(Queue {
            overflow: options.overflow,
            capacity: options.capacity,
            group: options.queue_group.map(String::into_boxed_str),
            state: Mutex::default(),
        });
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        {
            let mut table = self
                .shared
                .table
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            if table.len() >= SUBSCRIPTIONS_MAX {
                return Err(Error::resource_exhausted(format!(
                    "{SUBSCRIPTIONS_MAX} subscriptions are open, as many as the broker takes"
                )));
            }
            // Under the table's lock, so that a closing broker ends this one too or is seen here.
            if let Some(reason) = self.shared.closed.get() {
                return Err(closed(reason));
            }
            table.insert(pattern, id, Arc::clone(&queue));
        }
        Ok(Subscription {
            broker: self.clone(),
            pattern: pattern.into(),
            id,
            queue,
        })
    }

    /// Topics published to, by name, with the subscriptions that match each.
    #[must_use]
    pub fn topics(&self) -> Vec<TopicDescription> {
        let seen: Vec<(Box<str>, Seen)> = {
            let seen = self
                .shared
                .seen
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            seen.iter()
                .map(|(name, seen)| (name.clone(), seen.clone()))
                .collect()
        };
        let table = self
            .shared
            .table
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let mut topics: Vec<TopicDescription> = seen
            .into_iter()
            .map(|(name, seen)| {
                let mut subscribers = 0;
                table.for_each_match(&name, |_| subscribers += 1);
                TopicDescription {
                    name: name.to_string(),
                    published: seen.published,
                    last_published_us: seen.last_us,
                    subscribers,
                }
            })
            .collect();
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        topics
    }

    /// How many subscriptions are open.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.shared
            .table
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Ends every subscription with UNAVAILABLE and refuses new ones with SHUTTING_DOWN.
    pub fn close(&self, reason: &str) {
        // Closed before: the first reason stands.
        let _ = self.shared.closed.set(reason.to_owned());
        let table = self
            .shared
            .table
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        // Not SHUTTING_DOWN, which promises that nothing ran (WIRE-65).
        let ended = Error::unavailable(reason).with_retry_after(Duration::ZERO);
        table.for_each(|queue| queue.end(Some(ended.clone())));
    }

    /// Counts a publication; the topic's one shared name, as it travels. The name is checked when it is new.
    fn note(&self, topic: &str, now_us: u64) -> Result<Routing, Error> {
        let mut seen = self
            .shared
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = seen.get_mut(topic) {
            entry.published = entry.published.saturating_add(1);
            entry.last_us = now_us;
            return Ok(entry.routing.clone());
        }
        check_topic(topic)?;
        let routing = named(Routing::new(), topic)?;
        if seen.len() >= TOPICS_LISTED_MAX {
            // Half at once, so that a flood of new names costs little each.
            let mut ages: Vec<u64> = seen.values().map(|entry| entry.last_us).collect();
            ages.sort_unstable();
            let cut = ages.get(TOPICS_LISTED_MAX / 2).copied().unwrap_or(u64::MAX);
            seen.retain(|_, entry| entry.last_us > cut);
        }
        seen.insert(
            topic.into(),
            Seen {
                routing: routing.clone(),
                published: 1,
                last_us: now_us,
            },
        );
        Ok(routing)
    }
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker")
            .field("subscriptions", &self.subscriptions())
            .finish_non_exhaustive()
    }
}

fn closed(reason: &str) -> Error {
    Error::new(remus_wire::ErrorCode::SHUTTING_DOWN, reason)
}

fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
        })
}

/// A subscription in this process. Dropping it ends it.
#[must_use = "a subscription that is dropped ends at once"]
pub struct Subscription {
    broker: Broker,
    pattern: Box<str>,
    id: u64,
    queue: Arc<Queue>,
}

impl Subscription {
    /// The next publication. After an error the same error follows.
    ///
    /// # Errors
    ///
    /// RESOURCE_EXHAUSTED after an overflow under [`Overflow::End`], UNAVAILABLE after [`Broker::close`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropped before it completes, nothing was taken.
    pub async fn next(&mut self) -> Result<Publication, Error> {
        poll_fn(|cx| self.queue.poll_take(cx))
            .await
            .unwrap_or_else(|| Err(Error::cancelled("the subscription was dropped")))
    }

    /// How many publications this subscription has missed because it was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.queue.lock().dropped
    }

    /// Takes up to `max` publications at once; ready when there is one, or with the subscription's end.
    pub(super) fn poll_some(
        &mut self,
        cx: &mut Context<'_>,
        taken: &mut VecDeque<Publication>,
        max: usize,
    ) -> Poll<Result<(), Error>> {
        self.queue.poll_take_some(cx, taken, max)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.broker
            .shared
            .table
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.pattern, self.id);
        self.queue.end(None);
    }
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription")
            .field("pattern", &self.pattern)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
        let mut future = std::pin::pin!(future);
        match future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    fn drain(subscription: &mut Subscription) -> Vec<String> {
        let mut out = Vec::new();
        while let Some(Ok(publication)) = ready(subscription.next()) {
            out.push(String::from_utf8_lossy(&publication.payload).into_owned());
        }
        out
    }

    fn options(overflow: Overflow, capacity: usize) -> SubscribeOptions {
        SubscribeOptions {
            overflow,
            capacity,
            queue_group: None,
        }
    }

    /// Spec: CORE-89
    #[test]
    fn each_overflow_policy_does_what_it_says() {
        let broker = Broker::new();
        let mut oldest = broker
            .subscribe("t", options(Overflow::DropOldest, 2))
            .unwrap();
        let mut newest = broker
            .subscribe("t", options(Overflow::DropNewest, 2))
            .unwrap();
        let mut end = broker.subscribe("t", options(Overflow::End, 2)).unwrap();
        for text in ["1", "2", "3"] {
            ready(broker.publish("t", Bytes::from_static(text.as_bytes())))
                .unwrap()
                .unwrap();
        }
        assert_eq!(drain(&mut oldest), ["2", "3"]);
        assert_eq!(oldest.dropped(), 1);
        assert_eq!(drain(&mut newest), ["1", "2"]);
        assert_eq!(
            drain(&mut end),
            ["1", "2"],
            "what waited is still delivered"
        );
        assert_eq!(
            ready(end.next()).unwrap().unwrap_err().code(),
            remus_wire::ErrorCode::RESOURCE_EXHAUSTED
        );
    }

    #[test]
    fn waiting_holds_the_publisher_until_there_is_room() {
        let broker = Broker::new();
        let mut slow = broker.subscribe("t", options(Overflow::Wait, 1)).unwrap();
        ready(broker.publish("t", Bytes::from_static(b"1")))
            .unwrap()
            .unwrap();
        let mut second = std::pin::pin!(broker.publish("t", Bytes::from_static(b"2")));
        assert!(
            ready(second.as_mut()).is_none(),
            "full: the publisher waits"
        );
        broker
            .try_publish("t", Bytes::from_static(b"lost"))
            .unwrap();
        assert_eq!(slow.dropped(), 1, "who cannot wait loses it");
        assert_eq!(ready(slow.next()).unwrap().unwrap().payload, "1");
        ready(second).expect("there is room now").unwrap();
        assert_eq!(drain(&mut slow), ["2"]);
        let third = broker.subscribe("t", options(Overflow::Wait, 1)).unwrap();
        ready(broker.publish("t", Bytes::new())).unwrap().unwrap();
        drain(&mut slow);
        let mut waiting = std::pin::pin!(broker.publish("t", Bytes::new()));
        assert!(ready(waiting.as_mut()).is_none());
        drop(third);
        ready(waiting)
            .expect("a subscription that is gone holds nobody")
            .unwrap();
    }

    #[test]
    fn a_queue_group_shares_and_prefers_room() {
        let broker = Broker::new();
        let group = |capacity| SubscribeOptions {
            overflow: Overflow::DropNewest,
            capacity,
            queue_group: Some("g".into()),
        };
        let mut a = broker.subscribe("t.*", group(100)).unwrap();
        let mut b = broker.subscribe("t.>", group(3)).unwrap();
        let mut all = broker.subscribe(">", SubscribeOptions::default()).unwrap();
        for n in 0..20 {
            broker
                .try_publish("t.x", Bytes::from(n.to_string()))
                .unwrap();
        }
        let (a, b) = (drain(&mut a), drain(&mut b));
        assert_eq!(a.len() + b.len(), 20, "each message went to one member");
        assert_eq!(b.len(), 3, "the full member is passed over");
        assert_eq!(drain(&mut all).len(), 20);
    }

    #[test]
    fn bytes_are_bounded_too_and_one_large_message_still_passes() {
        let broker = Broker::new();
        let mut subscription = broker
            .subscribe("t", options(Overflow::DropNewest, 1000))
            .unwrap();
        let half = Bytes::from(vec![0; SUBSCRIPTION_BYTES_MAX / 2 + 1]);
        broker.try_publish("t", half.clone()).unwrap();
        broker.try_publish("t", half).unwrap();
        assert_eq!(subscription.dropped(), 1);
        assert_eq!(drain(&mut subscription).len(), 1);
        broker
            .try_publish("t", Bytes::from(vec![0; SUBSCRIPTION_BYTES_MAX + 1]))
            .unwrap();
        assert_eq!(drain(&mut subscription).len(), 1);
    }

    #[test]
    fn closing_ends_subscriptions_as_retryable_and_refuses_new_ones() {
        let broker = Broker::new();
        let mut subscription = broker.subscribe("t", SubscribeOptions::default()).unwrap();
        broker.close("the end");
        assert!(
            ready(subscription.next())
                .unwrap()
                .unwrap_err()
                .is_retryable()
        );
        assert!(
            broker
                .subscribe("t", SubscribeOptions::default())
                .unwrap_err()
                .is_retryable()
        );
        assert!(
            broker
                .try_publish("t", Bytes::new())
                .unwrap_err()
                .is_retryable()
        );
    }

    #[test]
    fn the_list_of_topics_is_bounded_and_keeps_the_newest() {
        let broker = Broker::new();
        for n in 0..3000 {
            broker.note(&format!("t.{n}"), n).unwrap();
        }
        let topics = broker.topics();
        assert!(topics.len() <= TOPICS_LISTED_MAX);
        assert!(topics.iter().any(|topic| topic.name == "t.2999"));
    }
}
