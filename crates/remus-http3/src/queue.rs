//! A bounded queue between a connection's task and the application.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

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

    /// Appends `item`, and takes out the oldest if there is no room; gives `item` back when closed.
    pub(crate) fn push_displacing(&self, item: T) -> Option<T> {
        let mut inner = lock(&self.inner);
        if inner.is_closed {
            return Some(item);
        }
        let displaced = if inner.items.len() >= self.max {
            inner.items.pop_front()
        } else {
            None
        };
        inner.items.push_back(item);
        drop(inner);
        self.ready.notify_one();
        displaced
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_queue_gives_the_item_back_or_displaces_the_oldest() {
        let queue = Queue::new(2);
        assert_eq!(queue.push(1), Ok(()));
        assert_eq!(queue.push(2), Ok(()));
        assert_eq!(queue.push(3), Err(3));
        assert_eq!(queue.push_displacing(4), Some(1));
        assert_eq!(queue.pop().await, Some(2));
        assert_eq!(queue.close(), [4]);
        assert_eq!(queue.push(5), Err(5));
        assert_eq!(queue.push_displacing(6), Some(6));
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
}
