//! A client behind a NAT that forgets it: its packets come from another port from one moment to the next.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::{Ipv4Addr, SocketAddr};

use remus::{Client, Json};
use serde_json::{Value, json};
use support::start;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

/// Ports that the client comes from, one after the other. Each is on either of two sockets, so that all of them are on one with a
/// chance of 1 in 2^31.
const PORTS: usize = 32;

/// Passes datagrams on to `node` and back, from another port whenever it is told to.
async fn nat(front: UdpSocket, node: SocketAddr, mut forget: mpsc::Receiver<()>) {
    let (mut inward, mut outward) = (vec![0; 65_536], vec![0; 65_536]);
    let mut back = outside(node).await;
    let mut client = None;
    loop {
        tokio::select! {
            received = front.recv_from(&mut outward) => {
                let (length, from) = received.unwrap();
                client = Some(from);
                // What does not get through is lost, as on any path.
                let _ = back.send(outward.get(..length).unwrap()).await;
            }
            received = back.recv(&mut inward) => {
                if let (Ok(length), Some(client)) = (received, client) {
                    let _ = front.send_to(inward.get(..length).unwrap(), client).await;
                }
            }
            told = forget.recv() => match told {
                Some(()) => back = outside(node).await,
                None => return,
            },
        }
    }
}

async fn outside(node: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(node).await.unwrap();
    socket
}

#[tokio::test]
async fn a_session_outlives_the_port_that_it_came_from() {
    let running = start();
    let front = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("remus://127.0.0.1:{}", front.local_addr().unwrap().port());
    let (forget, told) = mpsc::channel(1);
    let passing = tokio::spawn(nat(front, running.node.address(), told));
    let client = Client::builder(&url)
        .trust(running.trust())
        .connect()
        .await
        .unwrap();
    let first = client.connection().await.unwrap();
    first.active().await.unwrap();
    for calls in 1..=PORTS {
        forget.send(()).await.unwrap();
        let listing = client
            .method("remus.v2.Directory/List")
            .unary::<Value, Value>(Json, &json!({}))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(listing["peer_count"], 1, "{listing}");
        assert_eq!(listing["peers"][0]["calls"], calls, "{listing}");
    }
    assert_eq!(
        first.statistics(),
        client.connection().await.unwrap().statistics()
    );
    drop((client, first, forget));
    passing.await.unwrap();
}
