//! `remus.v2.Directory`: what a node serves, and who is connected.
//!
//! | method | takes | answers |
//! | --- | --- | --- |
//! | `List` | `{}` | JSON [`DirectoryListing`] |

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use remus::{
    Broker, Connections, Json, Request, Response, Service, ServiceDescription, TopicDescription,
};
use serde::{Deserialize, Serialize};

/// Full name of the service.
pub const DIRECTORY_SERVICE: &str = "remus.v2.Directory";

/// Topics, and peers, in one answer: about 300 KiB of JSON, within what one message takes.
const LISTED_MAX: usize = 1000;

/// What a node is, serves, and has open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryListing {
    /// The node.
    pub node: NodeDescription,
    /// Its services, with their methods.
    pub services: Vec<ServiceDescription>,
    /// Topics that were published to or are subscribed to, by name; the first 1,000.
    pub topics: Vec<TopicDescription>,
    /// Topics there are, listed or not.
    pub topic_count: usize,
    /// Sessions that are open, by address; the first 1,000.
    pub peers: Vec<Peer>,
    /// Sessions there are, listed or not.
    pub peer_count: usize,
}

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDescription {
    /// Its machine's name.
    pub name: String,
    /// The software's version.
    pub version: String,
    /// Where it listens, on TCP and, unless it is blocked, on UDP.
    pub listen: SocketAddr,
    /// When it started, in s since the Unix epoch.
    pub started: u64,
    /// Threads that serve connections.
    pub shards: usize,
}

/// One session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Where it comes from.
    pub address: SocketAddr,
    /// How it is connected.
    pub carrier: String,
    /// Calls it made.
    pub calls: u64,
    /// Calls of its own that are open now.
    pub open_calls: usize,
    /// Bytes of frames that came from it.
    pub bytes_in: u64,
    /// Bytes of frames that went to it.
    pub bytes_out: u64,
    /// Smoothed round trip, in µs; `None` before it was measured.
    pub rtt_us: Option<u64>,
}

/// The directory of one node. It is a service itself, so what it tells is put in once the rest of the node is there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Directory(Arc<OnceLock<Contents>>);

/// What a directory tells of.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) node: NodeDescription,
    pub(crate) services: Vec<ServiceDescription>,
    pub(crate) broker: Broker,
    pub(crate) shards: Vec<Connections>,
}

impl Directory {
    /// Puts in what to tell of. Only the first time counts.
    pub(crate) fn fill(&self, contents: Contents) {
        // It is called once, by the start of the node.
        let _ = self.0.set(contents);
    }

    /// The service.
    pub(crate) fn service(&self) -> Service {
        let directory = self.clone();
        Service::new(DIRECTORY_SERVICE)
            .describe("What this node serves, and who is connected.")
            .unary("List", Json, move |_: Request<Option<Empty>>| {
                let listing = directory.list();
                async move { listing.map(Response::new) }
            })
    }

    fn list(&self) -> Result<DirectoryListing, remus::Error> {
        let contents = self
            .0
            .get()
            .ok_or_else(|| remus::Error::unavailable("the node is still starting"))?;
        let mut topics = contents.broker.topics();
        let topic_count = topics.len();
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        topics.truncate(LISTED_MAX);
        let mut connections: Vec<_> = contents.shards.iter().flat_map(Connections::list).collect();
        let peer_count = connections.len();
        connections.sort_by_key(remus::Connection::remote_address);
        connections.truncate(LISTED_MAX);
        Ok(DirectoryListing {
            node: contents.node.clone(),
            services: contents.services.clone(),
            topics,
            topic_count,
            peers: connections.iter().map(describe).collect(),
            peer_count,
        })
    }
}

fn describe(connection: &remus::Connection) -> Peer {
    let statistics = connection.statistics();
    let (open_calls, _) = connection.open_calls();
    let micros = |path: remus::PathEstimate| u64::try_from(path.rtt.as_micros()).ok();
    Peer {
        address: connection.remote_address(),
        carrier: connection.carrier().name().to_owned(),
        calls: statistics.requests_in,
        open_calls,
        bytes_in: statistics.bytes_in,
        bytes_out: statistics.bytes_out,
        rtt_us: connection.path().and_then(micros),
    }
}

/// A request that asks for nothing in particular.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}
