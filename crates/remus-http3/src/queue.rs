//! A bounded queue between a connection's task and the application.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::Notify;

/// Locks `mutex`; what a panicking thread left behind is still consistent, as no code here panics
/// between two steps of a change.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
pub(crate) struct Queue<T> {
    inner: Mutex<Inner<T>>,
    ready: Notify,
    max: usize,
}

#[derive(Debug)]
struct Inner<T> {
    items: VecDeque<T>,
    is_closed: bool,
}

impl<T> Queue<T> {
    /// A queue of at most `max` items; memory is taken as they come.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            inner: Mutex::new(Inner {
                items: VecDeque::new(),
                is_closed: false,
            }),
            ready: Notify::new(),
            max,
        }
    }

    /// Appends `item`, or gives it back when the queue is full or closed.
    pub(crate) fn push(&self, item: T) -> Result<(), T> {
        let mut inner = lock(&self.inner);
        if inner.is_closed || inner.items.len() >= self.max {
            return Err(item);
        }
        inner.items.push_back(item);
        drop(inner);
        self.ready.notify_one();
        Ok(())
    }

    /// Waits for the next item; `None` once the queue is closed.
    ///
    /// Cancel safe: an item is only taken by the poll that returns it.
    pub(crate) async fn pop(&self) -> Option<T> {
        loop {
            let ready = self.ready.notified();
            {
                let mut inner = lock(&self.inner);
                if let Some(item) = inner.items.pop_front() {
                    return Some(item);
                }
                if inner.is_closed {
                    return None;
                }
            }
            ready.await;
        }
    }

    /// Closes the queue, wakes whoever waits, and gives out what was left.
    pub(crate) fn close(&self) -> VecDeque<T> {
        let mut inner = lock(&self.inner);
        inner.is_closed = true;
        let left = std::mem::take(&mut inner.items);
        drop(inner);
        self.ready.notify_waiters();
        left
    }
}

/// What each datagram counts beyond its payload, in bytes: its place in the queue, and its allocation.
const DATAGRAM_OVERHEAD_BYTES: usize = 64;

/// Datagrams in the order of arrival, bounded by the memory they take: the oldest make room.
#[derive(Debug)]
pub(crate) struct Datagrams<K> {
    items: VecDeque<(K, Bytes)>,
    used_bytes: usize,
    max_bytes: usize,
}

impl<K: Copy + PartialEq> Datagrams<K> {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self {
            items: VecDeque::new(),
            used_bytes: 0,
            max_bytes,
        }
    }

    /// Appends a datagram; without room, the oldest are lost, and in the end this one.
    pub(crate) fn push(&mut self, key: K, payload: Bytes) {
        let bytes = size(&payload);
        if bytes > self.max_bytes {
            return;
        }
        while self.used_bytes.saturating_add(bytes) > self.max_bytes {
            self.pop();
        }
        self.used_bytes = self.used_bytes.saturating_add(bytes);
        self.items.push_back((key, payload));
    }

    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        let (_, payload) = self.items.pop_front()?;
        self.used_bytes = self.used_bytes.saturating_sub(size(&payload));
        Some(payload)
    }

    /// Takes out those with `key`, in order.
    pub(crate) fn take(&mut self, key: K) -> Vec<Bytes> {
        let (found, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.items)
            .into_iter()
            .partition(|(this, _)| *this == key);
        self.items = rest.into();
        let found: Vec<_> = found.into_iter().map(|(_, payload)| payload).collect();
        let bytes = found.iter().map(size).fold(0, usize::saturating_add);
        self.used_bytes = self.used_bytes.saturating_sub(bytes);
        found
    }

    pub(crate) fn clear(&mut self) {
        self.items.clear();
        self.used_bytes = 0;
    }
}

fn size(payload: &Bytes) -> usize {
    payload.len().saturating_add(DATAGRAM_OVERHEAD_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_queue_gives_the_item_back() {
        let queue = Queue::new(2);
        assert_eq!(queue.push(1), Ok(()));
        assert_eq!(queue.push(2), Ok(()));
        assert_eq!(queue.push(3), Err(3));
        assert_eq!(queue.pop().await, Some(1));
        assert_eq!(queue.close(), [2]);
        assert_eq!(queue.push(5), Err(5));
        assert_eq!(queue.pop().await, None);
    }

    #[tokio::test]
    async fn every_waiter_gets_an_item_or_the_end() {
        let queue = std::sync::Arc::new(Queue::new(8));
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.pop().await })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(queue.push(7), Ok(()));
        assert_eq!(queue.push(7), Ok(()));
        tokio::task::yield_now().await;
        assert!(queue.close().is_empty());
        let mut got = Vec::new();
        for waiter in waiters {
            got.push(waiter.await.unwrap());
        }
        got.sort();
        assert_eq!(got, [None, Some(7), Some(7)]);
    }

    #[test]
    fn datagrams_are_bounded_by_memory_and_the_oldest_make_room() {
        let mut datagrams = Datagrams::new(3 * (10 + DATAGRAM_OVERHEAD_BYTES));
        for n in 0..4u8 {
            datagrams.push(n % 2, vec![n; 10].into());
        }
        datagrams.push(0, vec![9; 1000].into()); // would never fit, and displaces nothing
        assert_eq!(datagrams.take(1), [vec![1; 10], vec![3; 10]]);
        datagrams.push(0, vec![4; 20].into());
        datagrams.push(0, vec![5; 30].into());
        assert_eq!(datagrams.take(0), [vec![4; 20], vec![5; 30]]);
        assert_eq!(datagrams.used_bytes, 0);
        assert_eq!(datagrams.pop(), None);
        datagrams.push(0, Bytes::new());
        datagrams.clear();
        assert_eq!((datagrams.pop(), datagrams.used_bytes), (None, 0));
    }
}
