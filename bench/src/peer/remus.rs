//! Remus, as its documentation tells a user to write it: `Client`, `Server`, `Service`, topics through the broker.

use std::sync::Arc;

use bytes::Bytes;
use remus::{
    Carrier, Client, Overflow, Raw, RemoteSubscription, Reply, Request, Response, Router, Server,
    Service, StreamSender, Streaming, SubscribeOptions, Trust,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::Target;
use crate::Result;
use crate::load::{self, Dial, Download, Echo, Upload, check, payload};
use crate::process::ready;
use crate::tls::Files;

const ECHO: &str = "bench.v1.Bench/Echo";
const DOWN: &str = "bench.v1.Bench/Down";
const UP: &str = "bench.v1.Bench/Up";
const TOPIC: &str = "bench/topic";

/// Messages that may wait for a subscriber at the broker: more than a publisher is ahead, so that none is dropped.
const SUBSCRIPTION_CAPACITY: usize = 32_768;

pub(crate) async fn serve(tls: &Files) -> Result<()> {
    let bench = Service::new("bench.v1.Bench")
        .unary("Echo", Raw, |request: Request<Bytes>| async move {
            Ok(Response::new(request.into_inner()))
        })
        .server_stream("Down", Raw, |request: Request<Bytes>| async move {
            let size = request.get_ref().first_chunk();
            let size = size.map_or(0, |size| u32::from_be_bytes(*size) as usize);
            let message = payload(0, size);
            Ok(Response::new(futures_util::stream::repeat_with(
                move || Ok(message.clone()),
            )))
        })
        .client_stream("Up", Raw, |request: Request<Streaming<Bytes>>| async move {
            let mut elements = request.into_inner();
            let mut count = 0_u64;
            while let Some(element) = elements.message().await? {
                count += element.len() as u64;
            }
            Ok(Response::new(Bytes::copy_from_slice(&count.to_be_bytes())))
        });
    let certificate = CertificateDer::from_pem_file(tls.certificate())?;
    let key = PrivateKeyDer::from_pem_file(tls.key())?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?;
    let identity = SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key));
    let server = Server::builder(Router::new().service(bench).topics(&remus::Broker::new()))
        .identity(Arc::new(identity))
        .listen((std::net::Ipv4Addr::LOCALHOST, 0).into())
        .bind()?;
    ready(server.local_address());
    server.serve(std::future::pending()).await;
    Ok(())
}

pub(crate) struct Dialler {
    url: String,
    trust: Trust,
    carrier: Carrier,
}

impl Dial for Dialler {
    type Client = Client;

    fn prepare(target: &Target) -> Result<Self> {
        Ok(Self {
            // By address: looking a name up is a trip to another thread, and the others do not make it.
            url: format!("remus://{}", target.address),
            trust: Trust::from_pem_file(&target.tls.ca())?,
            carrier: target.carrier,
        })
    }

    async fn connect(&self) -> Result<Client> {
        let client = Client::builder(&self.url)
            .trust(self.trust.clone())
            .carriers([self.carrier]);
        Ok(client.connect().await?)
    }
}

impl Echo for Client {
    async fn call(&self, payload: Bytes) -> Result<Bytes> {
        let answer = self
            .method(ECHO)
            .unary::<Bytes, Bytes>(Raw, &payload)
            .await?;
        Ok(answer.into_inner())
    }
}

pub(crate) struct Incoming {
    elements: Streaming<Bytes>,
    message: Bytes,
    _client: Client,
}

pub(crate) async fn download(target: &Target, size: usize) -> Result<Incoming> {
    let client = Dialler::prepare(target)?.connect().await?;
    let request = Bytes::copy_from_slice(&u32::try_from(size)?.to_be_bytes());
    let elements = client
        .method(DOWN)
        .server_stream::<Bytes, Bytes>(Raw, &request)
        .await?
        .into_inner();
    Ok(Incoming {
        elements,
        message: payload(0, size),
        _client: client,
    })
}

impl Download for Incoming {
    async fn next(&mut self) -> Result<usize> {
        let element = self.elements.message().await?.ok_or("the stream ended")?;
        check(&self.message, &element)?;
        Ok(element.len())
    }
}

pub(crate) struct Outgoing {
    sender: StreamSender<Bytes>,
    reply: Reply<Bytes>,
    _client: Client,
}

pub(crate) async fn upload(target: &Target) -> Result<Outgoing> {
    let client = Dialler::prepare(target)?.connect().await?;
    let (sender, reply) = client.method(UP).client_stream::<Bytes, Bytes>(Raw).await?;
    Ok(Outgoing {
        sender,
        reply,
        _client: client,
    })
}

impl Upload for Outgoing {
    async fn send(&mut self, payload: Bytes) -> Result<()> {
        Ok(self.sender.send(&payload).await?)
    }

    async fn finish(mut self) -> Result<u64> {
        self.sender.finish();
        let count = self.reply.response().await?.into_inner();
        let count = count.first_chunk().ok_or("the server told no count")?;
        Ok(u64::from_be_bytes(*count))
    }
}

/// The broker in the server, as its clients see it.
pub(crate) struct Broker(Dialler);

pub(crate) struct Publisher(Client);

pub(crate) struct Subscriber {
    subscription: RemoteSubscription,
    _client: Client,
}

impl load::Topics for Broker {
    type Publisher = Publisher;
    type Subscriber = Subscriber;

    fn prepare(target: &Target) -> Result<Self> {
        Ok(Self(Dialler::prepare(target)?))
    }

    async fn publisher(&self) -> Result<Publisher> {
        Ok(Publisher(self.0.connect().await?))
    }

    async fn subscriber(&self) -> Result<Subscriber> {
        let client = self.0.connect().await?;
        let options = SubscribeOptions {
            overflow: Overflow::End,
            capacity: SUBSCRIPTION_CAPACITY,
            queue_group: None,
        };
        Ok(Subscriber {
            subscription: client.subscribe(TOPIC, options).await?,
            _client: client,
        })
    }
}

impl load::Publisher for Publisher {
    async fn publish(&mut self, payload: Bytes) -> Result<()> {
        Ok(self.0.publish_unacknowledged(TOPIC, payload).await?)
    }
}

impl load::Subscriber for Subscriber {
    async fn next(&mut self) -> Result<Bytes> {
        let next = self
            .subscription
            .next()
            .await
            .ok_or("the subscription ended")?;
        Ok(next?.payload)
    }
}
