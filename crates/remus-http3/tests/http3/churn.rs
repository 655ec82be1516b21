//! Sessions and streams that come and go at random, on several threads.

use remus_http3::{Connection, Error, Session};

use crate::support::{Node, assert_echoes, guarded};

/// Random numbers that are the same in every run (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

const CONNECTIONS: u64 = 4;
const SESSIONS: u64 = 30;
const STEPS: u64 = 20;

/// Uses a session at random until it is closed; errors are expected, hanging and panicking is not.
async fn use_session(session: Session, mut random: Random) {
    let mut kept = Vec::new();
    for _ in 0..STEPS {
        match random.below(8) {
            0 => assert_echoes(&session).await,
            1 => {
                let (mut send, recv) = session.open_bi().await.unwrap();
                let _ = send.write_all(&[7; 5000]).await;
                kept.push((send, Some(recv)));
            }
            2 => kept.push((session.open_uni().await.unwrap(), None)),
            3 => drop(kept.pop()),
            4 => {
                if let Some((send, _)) = kept.last_mut() {
                    send.reset(3);
                }
            }
            5 => {
                if let Some((send, Some(recv))) = kept.last_mut() {
                    recv.stop(4);
                    let _ = send.finish();
                }
            }
            6 => session.send_datagram(b"echo").unwrap(),
            _ => tokio::select! {
                biased;
                datagram = session.read_datagram() => assert_eq!(datagram.unwrap(), &b"echo"[..]),
                () = std::future::ready(()) => {}
            },
        }
        // Streams are limited by QUIC; whoever keeps too many waits for itself.
        if kept.len() > 5 {
            kept.clear();
        }
    }
    match random.below(3) {
        0 => session.close(1, "done").await,
        1 => drop(session),
        _ => {
            let closing = session.clone();
            drop(session);
            let (mut send, mut recv) = closing.open_bi().await.unwrap();
            let (written, read, ()) = tokio::join!(
                send.write_all(&[0; 100_000]),
                recv.read_chunk(10),
                closing.close(2, "in the middle"),
            );
            let _ = (written, read);
        }
    }
}

async fn use_connection(connection: Connection, request: http::Request<()>, seed: u64) {
    let mut random = Random(seed);
    let mut sessions = tokio::task::JoinSet::new();
    for n in 0..SESSIONS {
        if sessions.len() > 6 {
            sessions.join_next().await.unwrap().unwrap();
        }
        let session = loop {
            let session = connection.connect(request.clone(), &[]).await;
            match session {
                Ok(session) => break session,
                // Sessions count until the peer knows that they are closed.
                Err(Error::TooManySessions { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        };
        sessions.spawn(use_session(
            session,
            Random(seed + n + random.below(1 << 32)),
        ));
    }
    while let Some(session) = sessions.join_next().await {
        session.unwrap();
    }
    let last = connection.connect(request, &[]).await.unwrap();
    assert_echoes(&last).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_hangs_and_every_session_ends_once() {
    guarded(async {
        let mut node = Node::start();
        let mut connections = tokio::task::JoinSet::new();
        for n in 0..CONNECTIONS {
            let connection = node.connect().await;
            connections.spawn(use_connection(connection, node.get("/echo"), n << 40));
        }
        let mut ended = 0;
        while ended < CONNECTIONS * (SESSIONS + 1) {
            match node.ended.recv().await.unwrap() {
                // The second when the client closed before the server had answered.
                Ok(_) | Err(Error::SessionClosed(_)) => {}
                Err(error) => panic!("{error}"),
            }
            ended += 1;
        }
        while let Some(connection) = connections.join_next().await {
            connection.unwrap();
        }
        node.assert_serves().await;
    })
    .await;
}
