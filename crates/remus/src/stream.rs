//! Typed streams over calls.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;
use remus_session::Outgoing;
use remus_transport::{CallReceiver, CallSender};
use remus_wire::{ErrorCode, ErrorRecord, Message, Text};

use crate::message::{Element, ElementStream, Metadata};
use crate::{Codec, Error};

type Encode<T> = Arc<dyn Fn(&T) -> Result<Bytes, Error> + Send + Sync>;
type Decode<T> = Arc<dyn Fn(Bytes) -> Result<T, Error> + Send + Sync>;

/// Values that arrive one by one. A [`Stream`] of `Result<T, Error>`.
///
/// Values that are not taken hold their sender back: at most the stream's window waits here, 64 KiB at first and more where the path needs it. Dropping it
/// before the end tells the sender to stop.
pub struct Streaming<T> {
    elements: ElementStream,
    decode: Decode<T>,
    metadata: Metadata,
}

impl<T> Streaming<T> {
    pub(crate) fn new(elements: ElementStream, codec: impl Codec<T>) -> Self {
        Self {
            elements,
            decode: Arc::new(move |bytes| codec.decode(bytes)),
            metadata: Metadata::default(),
        }
    }

    /// The next value; `None` after a good end.
    ///
    /// # Errors
    ///
    /// What ended the stream; nothing follows. A value that cannot be decoded is INVALID_ARGUMENT.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropped before it completes, nothing was taken.
    pub async fn message(&mut self) -> Result<Option<T>, Error> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx))
            .await
            .transpose()
    }

    /// What travelled beside the newest element that had anything with it.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

impl<T> Stream for Streaming<T> {
    type Item = Result<T, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(element) = std::task::ready!(self.elements.as_mut().poll_next(cx)) else {
            return Poll::Ready(None);
        };
        Poll::Ready(Some(element.and_then(|element| {
            if !element.metadata.context().is_empty() {
                self.metadata = element.metadata;
            }
            (self.decode)(element.payload)
        })))
    }
}

impl<T> std::fmt::Debug for Streaming<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streaming")
            .field("metadata", &self.metadata)
            .finish_non_exhaustive()
    }
}

/// Sends values one by one.
///
/// Dropping it without [`finish`](StreamSender::finish) tells the peer that the stream was given up, so that a part is never
/// taken for the whole.
pub struct StreamSender<T> {
    sender: CallSender,
    encode: Encode<T>,
    finished: bool,
}

impl<T> StreamSender<T> {
    pub(crate) fn new(sender: CallSender, codec: impl Codec<T>) -> Self {
        Self {
            sender,
            encode: Arc::new(move |value| codec.encode(value)),
            finished: false,
        }
    }

    /// Sends one value, waiting while the receiver does not read.
    ///
    /// # Errors
    ///
    /// INTERNAL where the value cannot be encoded, the peer's code where it stopped the stream, LOSS_OF_SESSION.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropped before it completes, nothing was sent.
    pub async fn send(&mut self, value: &T) -> Result<(), Error> {
        let payload = (self.encode)(value)?;
        Ok(self
            .sender
            .send(Outgoing {
                payload,
                ..Outgoing::default()
            })
            .await?)
    }

    /// Ends the stream well. Nothing may follow.
    pub fn finish(&mut self) {
        self.finished = true;
        self.sender.finish(None);
    }
}

impl<T> Drop for StreamSender<T> {
    fn drop(&mut self) {
        if !self.finished {
            self.sender.finish(Some(ErrorRecord::new(
                ErrorCode::CANCELLED,
                Text::from_static("the sender gave the stream up"),
            )));
        }
    }
}

impl<T> std::fmt::Debug for StreamSender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamSender")
            .field("finished", &self.finished)
            .finish_non_exhaustive()
    }
}

/// The one answer to a call that streams its request. Dropping it gives the call up once the sender is dropped, too.
pub struct Reply<T> {
    elements: Streaming<T>,
}

impl<T> Reply<T> {
    pub(crate) fn new(receiver: CallReceiver, codec: impl Codec<T>) -> Self {
        Self {
            elements: Streaming::new(Box::pin(Elements(receiver)), codec),
        }
    }

    /// Waits for the answer.
    ///
    /// # Errors
    ///
    /// The peer's error, or the session's.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the answer up.
    pub async fn response(mut self) -> Result<crate::Response<T>, Error> {
        let value = self.elements.message().await?;
        let value = value.ok_or_else(|| Error::internal("the call ended without an answer"))?;
        let mut response = crate::Response::new(value);
        response.metadata = std::mem::take(&mut self.elements.metadata);
        Ok(response)
    }
}

impl<T> std::fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reply(..)")
    }
}

/// What a call receives, as a stream of elements.
pub(crate) struct Elements(pub(crate) CallReceiver);

impl Stream for Elements {
    type Item = Result<Element, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0
            .poll_recv(cx)
            .map(|next| next.map(|result| result.map(Element::from).map_err(Error::from)))
    }
}

impl From<Message> for Element {
    fn from(message: Message) -> Self {
        Self {
            payload: message.payload,
            routing: message.routing,
            metadata: message.context.into(),
            timestamp_us: message.timestamp.0,
        }
    }
}

/// Elements that are made before they are sent together.
const TOGETHER_MAX: usize = 64;

/// Sends all of `elements` and ends the call. How well it ended is the peer's to know.
pub(crate) async fn pump(
    mut elements: ElementStream,
    mut metadata: Metadata,
    sender: &mut CallSender,
) {
    let mut made = VecDeque::new();
    loop {
        // Wait for room first: an element that cannot be sent should not have been made.
        let room = match poll_fn(|cx| sender.poll_ready(cx)).await {
            Ok(room) => room,
            Err(error) => {
                tracing::debug!(%error, "stream not taken to its end");
                return;
            }
        };
        // Those that are there already go together, as far as there is room for them.
        let end = poll_fn(|cx| {
            let mut bytes = 0_usize;
            while made.len() < TOGETHER_MAX && bytes < room {
                match elements.as_mut().poll_next(cx) {
                    Poll::Ready(Some(Ok(element))) => {
                        bytes = bytes.saturating_add(element.payload.len());
                        made.push_back(outgoing(element, &mut metadata));
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Some(error))),
                    Poll::Ready(None) => return Poll::Ready(Some(None)),
                    Poll::Pending if made.is_empty() => return Poll::Pending,
                    Poll::Pending => break,
                }
            }
            Poll::Ready(None)
        })
        .await;
        loop {
            if let Err(error) = sender.send_all(&mut made) {
                return sender.finish(Some(Error::from(error).into_record()));
            }
            if made.is_empty() {
                break;
            }
            if poll_fn(|cx| sender.poll_ready(cx)).await.is_err() {
                return;
            }
        }
        if let Some(error) = end {
            return sender.finish(error.map(Error::into_record));
        }
        // Elements that are always there must not keep everybody else from their turn.
        tokio::task::coop::consume_budget().await;
    }
}

/// An element on its way; the first one takes the metadata of the answer along.
fn outgoing(element: Element, metadata: &mut Metadata) -> Outgoing {
    let context = if metadata.context().is_empty() {
        element.metadata
    } else {
        std::mem::take(metadata)
    };
    Outgoing {
        payload: element.payload,
        routing: element.routing,
        context: context.into_context(),
        ..Outgoing::default()
    }
}
