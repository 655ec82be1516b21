//! Topics: publish and subscribe, on one node. Spec: core, topics.
//!
//! [`Broker`] is the table of subscriptions and knows nothing of connections; the service and the client's side put it on the
//! wire.

mod broker;
mod name;
mod table;

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use futures_core::Stream;
use remus_wire::{Reader, Routing};

pub use broker::{
    Broker, Overflow, Publication, SUBSCRIPTION_BYTES_MAX, SUBSCRIPTIONS_MAX, SubscribeOptions,
    Subscription, TopicDescription,
};

use crate::message::{Body, Element, Response};
use crate::router::{MethodKind, Service};
use crate::stream::Elements;
use crate::{Client, Error, names};

/// Name of the built-in service.
pub const TOPICS_SERVICE: &str = "remus.v2.Topics";

const PUBLISH: &str = "remus.v2.Topics/Publish";
const SUBSCRIBE: &str = "remus.v2.Topics/Subscribe";

/// The built-in service in front of a broker.
pub(crate) fn service(broker: &Broker) -> Service {
    let (publisher, subscriber) = (broker.clone(), broker.clone());
    Service::new(TOPICS_SERVICE)
        .describe("publish and subscribe")
        .raw("Publish", MethodKind::Unary, move |request| {
            let broker = publisher.clone();
            async move {
                let answered = request.is_answered();
                let (routing, body) = request.into_parts();
                let topic = routing.topic().ok_or_else(no_topic)?;
                let payload = body.into_single()?;
                if answered {
                    broker.publish(topic, payload).await?;
                } else {
                    // Nobody waits for an answer, so nobody can be made to wait for room.
                    broker.try_publish(topic, payload)?;
                }
                Ok(Response::new(Body::Empty))
            }
        })
        .raw("Subscribe", MethodKind::ServerStream, move |request| {
            let broker = subscriber.clone();
            async move {
                let (routing, body) = request.into_parts();
                let pattern = routing.topic().ok_or_else(no_topic)?;
                let options = decode_options(body.into_single()?)?;
                let subscription = broker.subscribe(pattern, options)?;
                Ok(Response::new(Body::stream(Delivery {
                    subscription,
                    taken: VecDeque::new(),
                    greeted: false,
                })))
            }
        })
}

fn no_topic() -> Error {
    Error::invalid_argument("the request names no topic (routing option 6)")
}

/// Publications that a subscription's stream takes out of its queue at once. They have passed the overflow policy.
const TAKEN_MAX: usize = 64;

/// A subscription as a stream of elements. The first, without a topic, says that the subscription stands.
struct Delivery {
    subscription: Subscription,
    taken: VecDeque<Publication>,
    greeted: bool,
}

impl Stream for Delivery {
    type Item = Result<Element, Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if !this.greeted {
            this.greeted = true;
            return Poll::Ready(Some(Ok(Element::default())));
        }
        if this.taken.is_empty() {
            let taken = &mut this.taken;
            if let Err(error) = std::task::ready!(this.subscription.poll_some(cx, taken, TAKEN_MAX))
            {
                return Poll::Ready(Some(Err(error)));
            }
        }
        Poll::Ready(this.taken.pop_front().map(|publication| {
            Ok(Element {
                payload: publication.payload,
                routing: publication.routing,
                ..Element::default()
            })
        }))
    }
}

/// `u8` overflow policy, `u32` capacity, `text` queue group; or nothing, for the defaults.
fn decode_options(payload: Bytes) -> Result<SubscribeOptions, Error> {
    if payload.is_empty() {
        return Ok(SubscribeOptions::default());
    }
    let wrong = |error: remus_wire::DecodeError| Error::invalid_argument(error.to_string());
    let mut reader = Reader::new("Subscribe", payload);
    let overflow = reader.u8("overflow").map_err(wrong)?;
    let capacity = reader.u32("capacity").map_err(wrong)?;
    let group = reader.text("queue_group").map_err(wrong)?;
    reader.finish().map_err(wrong)?;
    let overflow = match overflow {
        0 => Overflow::Wait,
        1 => Overflow::DropOldest,
        2 => Overflow::DropNewest,
        3 => Overflow::End,
        other => {
            return Err(Error::invalid_argument(format!(
                "overflow policy {other} does not exist; 0 to 3 do"
            )));
        }
    };
    let capacity = match capacity {
        0 => SubscribeOptions::default().capacity,
        capacity => usize::try_from(capacity).unwrap_or(usize::MAX),
    };
    let queue_group = (!group.is_empty()).then(|| group.to_string());
    Ok(SubscribeOptions {
        overflow,
        capacity,
        queue_group,
    })
}

fn encode_options(options: &SubscribeOptions) -> Result<Bytes, Error> {
    let too_long = || Error::invalid_argument("a subscription's numbers must fit 32 bits");
    let group = options.queue_group.as_deref().unwrap_or_default();
    let mut out = BytesMut::new();
    out.put_u8(match options.overflow {
        Overflow::Wait => 0,
        Overflow::DropOldest => 1,
        Overflow::DropNewest => 2,
        Overflow::End => 3,
    });
    out.put_u32(u32::try_from(options.capacity).map_err(|_| too_long())?);
    out.put_u32(u32::try_from(group.len()).map_err(|_| too_long())?);
    out.put_slice(group.as_bytes());
    Ok(out.freeze())
}

pub(crate) async fn publish(client: &Client, topic: &str, payload: Bytes) -> Result<(), Error> {
    name::check_topic(topic)?;
    client
        .method(PUBLISH)
        .topic(topic)?
        .unary::<Bytes, Bytes>(crate::Raw, &payload)
        .await?;
    Ok(())
}

pub(crate) async fn publish_unacknowledged(
    client: &Client,
    topic: &str,
    payload: Bytes,
) -> Result<(), Error> {
    let routing = names::publication(topic, || {
        name::check_topic(topic)?;
        let (service, method) = names::ids_of(PUBLISH);
        name::named(Routing::to(service, method), topic)
    })?;
    client.notify(routing, payload).await
}

pub(crate) async fn subscribe(
    client: &Client,
    pattern: &str,
    options: SubscribeOptions,
) -> Result<RemoteSubscription, Error> {
    name::check_pattern(pattern)?;
    let payload = encode_options(&options)?;
    let mut elements = client
        .method(SUBSCRIBE)
        .topic(pattern)?
        .elements(payload)
        .await?;
    // The first element says that the subscription stands; an error says why not.
    match std::future::poll_fn(|cx| Pin::new(&mut elements).poll_next(cx)).await {
        Some(Ok(_)) => Ok(RemoteSubscription { elements }),
        Some(Err(error)) => Err(error),
        None => Err(Error::internal("the subscription ended before it began")),
    }
}

/// A subscription at a peer: a [`Stream`] of what is published there. Dropping it ends the subscription.
///
/// It ends with a retryable error when the peer shuts down or is lost; what is published until the next subscription is missed.
#[must_use = "a subscription that is dropped ends at once"]
pub struct RemoteSubscription {
    elements: Elements,
}

impl RemoteSubscription {
    /// The next publication; `None` never comes before an error.
    ///
    /// # Errors
    ///
    /// What ended the subscription: RESOURCE_EXHAUSTED where it overflowed under [`Overflow::End`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Publication, Error>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for RemoteSubscription {
    type Item = Result<Publication, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = std::task::ready!(Pin::new(&mut self.elements).poll_next(cx));
        Poll::Ready(next.map(|element| {
            element.map(|element| Publication {
                routing: element.routing,
                payload: element.payload,
                timestamp_us: element.timestamp_us,
            })
        }))
    }
}

impl std::fmt::Debug for RemoteSubscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RemoteSubscription(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spec: CORE topics, the options of a subscription.
    #[test]
    fn options_survive_the_wire_and_wrong_ones_are_refused() {
        for overflow in [
            Overflow::Wait,
            Overflow::DropOldest,
            Overflow::DropNewest,
            Overflow::End,
        ] {
            for queue_group in [None, Some("workers".to_owned())] {
                let options = SubscribeOptions {
                    overflow,
                    capacity: 77,
                    queue_group,
                };
                assert_eq!(
                    decode_options(encode_options(&options).unwrap()).unwrap(),
                    options
                );
            }
        }
        assert_eq!(
            decode_options(Bytes::new()).unwrap(),
            SubscribeOptions::default()
        );
        assert!(decode_options(Bytes::from_static(&[9, 0, 0, 0, 0, 0, 0, 0, 0])).is_err());
        assert!(decode_options(Bytes::from_static(&[0, 0])).is_err());
    }
}
