//! zenoh over TLS: a router, which also answers queries, between sessions in client mode.
//!
//! zenoh runs on threads of its own and refuses tokio's current-thread runtime.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ::zenoh::handlers::{FifoChannel, FifoChannelHandler};
use ::zenoh::pubsub;
use ::zenoh::qos::CongestionControl;
use ::zenoh::query::{ConsolidationMode, Querier};
use ::zenoh::sample::{Locality, Sample};
use ::zenoh::{Config, Session, Wait as _};
use bytes::Bytes;
use tokio::sync::oneshot;

use super::Target;
use crate::load::{Dial, Echo, Publisher, Subscriber, Topics};
use crate::process::ready;
use crate::tls::{Files, KeyExchange, provider};
use crate::{Failure, Result};

/// Where calls and messages are sent.
const ECHO: &str = "bench/echo";
const TOPIC: &str = "bench/topic";

/// Sessions that the router takes, those that are being opened included. Its defaults are 1,000 and 100.
const SESSIONS_MAX: usize = 1_000_000;

/// Messages that a subscriber's channel holds; at more the session stops reading. Four times what the load lets the publisher be
/// ahead.
const SUBSCRIPTION_MAX: usize = 65_536;

/// A configuration: no scouting, no time stamps, TLS by `tls`.
fn config(mode: &str, tls: &Files, settings: &[(&str, String)]) -> Result<Config> {
    // zenoh takes its key exchange from the process' crypto provider. A second installation is refused, and is the same anyway.
    let _ = rustls::crypto::CryptoProvider::install_default(
        (*provider(KeyExchange::Classical)).clone(),
    );
    let common = [
        ("mode", format!("{mode:?}")),
        ("scouting/multicast/enabled", "false".to_owned()),
        ("scouting/gossip/enabled", "false".to_owned()),
        ("timestamping/enabled", "false".to_owned()),
        ("transport/unicast/max_sessions", SESSIONS_MAX.to_string()),
        ("transport/unicast/accept_pending", SESSIONS_MAX.to_string()),
        ("transport/link/tls/root_ca_certificate", quoted(&tls.ca())),
    ];
    let mut config = Config::default();
    for (key, value) in common.iter().chain(settings) {
        config
            .insert_json5(key, value)
            .map_err(|error| format!("zenoh's setting {key}: {error}"))?;
    }
    Ok(config)
}

fn quoted(path: &std::path::Path) -> String {
    format!("{:?}", path.to_string_lossy())
}

// ---- the server ------------------------------------------------------------------------------------

pub(crate) async fn serve(tls: &Files) -> Result<()> {
    // The router does not tell which port it was given, so a free one is found for it.
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let settings = [
        ("listen/endpoints", format!("[\"tls/{address}\"]")),
        (
            "transport/link/tls/listen_certificate",
            quoted(&tls.certificate()),
        ),
        ("transport/link/tls/listen_private_key", quoted(&tls.key())),
    ];
    let router = ::zenoh::open(config("router", tls, &settings)?).await?;
    let _calls = router
        .declare_queryable(ECHO)
        .callback(|call| {
            let payload = call.payload().cloned().unwrap_or_default();
            if let Err(error) = call.reply(ECHO, payload).wait() {
                eprintln!("zenoh: {error}");
            }
        })
        .await?;
    ready(address);
    std::future::pending().await
}

// ---- the client ------------------------------------------------------------------------------------

pub(crate) struct Dialler {
    config: Config,
}

impl Dialler {
    async fn open(&self) -> Result<Session> {
        ::zenoh::open(self.config.clone()).await
    }
}

/// Parts of a session, which are closed on a thread of its own: closing blocks, and is not what is measured.
struct Held<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Held<T> {
    fn new(parts: T) -> Self {
        Self(Some(parts))
    }

    fn parts(&self) -> Result<&T> {
        self.0
            .as_ref()
            .ok_or_else(|| Failure::from("the session is closed"))
    }
}

impl<T: Send + 'static> Drop for Held<T> {
    fn drop(&mut self) {
        /// The thread ends with the process, and so do the sessions that it did not come to.
        static CLOSER: OnceLock<Sender<Box<dyn Send>>> = OnceLock::new();
        let closer = CLOSER.get_or_init(|| {
            let (sender, parts) = channel();
            std::thread::spawn(move || parts.into_iter().for_each(drop));
            sender
        });
        if let Some(parts) = self.0.take() {
            // The thread takes them as long as the process lives.
            let _ = closer.send(Box::new(parts));
        }
    }
}

#[derive(Clone)]
pub(crate) struct Client {
    held: Arc<Held<(Querier<'static>, Session)>>,
}

impl Dial for Dialler {
    type Client = Client;

    fn prepare(target: &Target) -> Result<Self> {
        let endpoint = format!("[\"tls/{}\"]", target.address);
        Ok(Self {
            config: config("client", &target.tls, &[("connect/endpoints", endpoint)])?,
        })
    }

    async fn connect(&self) -> Result<Client> {
        let session = self.open().await?;
        // Answers are passed on as they come, and nothing in this process could give one.
        let calls = session
            .declare_querier(ECHO)
            .congestion_control(CongestionControl::Block)
            .consolidation(ConsolidationMode::None)
            .allowed_destination(Locality::Remote)
            .await?;
        Ok(Client {
            held: Arc::new(Held::new((calls, session))),
        })
    }
}

impl Echo for Client {
    async fn call(&self, payload: Bytes) -> Result<Bytes> {
        let (answer, answered) = oneshot::channel();
        let answer = Mutex::new(Some(answer));
        let (calls, _) = self.held.parts()?;
        calls
            .get()
            .payload(payload)
            .callback(move |reply| {
                let answer = answer.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(answer) = answer {
                    // The caller may have gone.
                    let _ = answer.send(reply);
                }
            })
            .await?;
        let reply = answered
            .await
            .map_err(|_| "a query ended without an answer")?;
        match reply.result() {
            Ok(sample) => Ok(Bytes::copy_from_slice(&sample.payload().to_bytes())),
            Err(error) => Err(String::from_utf8_lossy(&error.payload().to_bytes()).into()),
        }
    }
}

impl Topics for Dialler {
    type Publisher = TopicPublisher;
    type Subscriber = TopicSubscriber;

    fn prepare(target: &Target) -> Result<Self> {
        <Self as Dial>::prepare(target)
    }

    async fn publisher(&self) -> Result<TopicPublisher> {
        let session = self.open().await?;
        let publisher = session
            .declare_publisher(TOPIC)
            .congestion_control(CongestionControl::Block)
            .await?;
        // Before it knows of a subscriber it sends nothing.
        let matching = publisher.matching_listener().await?;
        if !publisher.matching_status().await?.matching() {
            while !matching.recv_async().await?.matching() {}
        }
        Ok(TopicPublisher(Held::new((publisher, session))))
    }

    async fn subscriber(&self) -> Result<TopicSubscriber> {
        let session = self.open().await?;
        let messages = session
            .declare_subscriber(TOPIC)
            .with(FifoChannel::new(SUBSCRIPTION_MAX))
            .await?;
        // An answer comes behind the declaration, which nothing else confirms.
        session.get(ECHO).await?.recv_async().await?;
        Ok(TopicSubscriber(Held::new((messages, session))))
    }
}

pub(crate) struct TopicPublisher(Held<(pubsub::Publisher<'static>, Session)>);

impl Publisher for TopicPublisher {
    async fn publish(&mut self, payload: Bytes) -> Result<()> {
        let (publisher, _) = self.0.parts()?;
        publisher.put(payload).await
    }
}

type Messages = pubsub::Subscriber<FifoChannelHandler<Sample>>;

pub(crate) struct TopicSubscriber(Held<(Messages, Session)>);

impl Subscriber for TopicSubscriber {
    async fn next(&mut self) -> Result<Bytes> {
        let (messages, _) = self.0.parts()?;
        let sample = messages.recv_async().await?;
        Ok(Bytes::copy_from_slice(&sample.payload().to_bytes()))
    }
}
