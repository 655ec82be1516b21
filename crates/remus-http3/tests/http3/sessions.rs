//! This crate's client against its server: sessions.

use std::sync::Arc;

use crate::support::{Node, Pair, assert_echoes, guarded, read_all};
use bytes::Bytes;
use remus_http3::{
    ClosedBy, Code, Config, Connection, Error, ReadError, SessionClosed, WriteError,
};

fn closed(code: u32, reason: &str, side: ClosedBy) -> SessionClosed {
    SessionClosed {
        code,
        reason: reason.to_owned(),
        side,
    }
}

#[tokio::test]
async fn streams_and_datagrams_come_back() {
    guarded(async {
        let node = Node::start();
        let connection = node.connect().await;
        let session = connection
            .connect(node.get("/echo"), &["remus.v2", "remus.v1"])
            .await
            .unwrap();
        assert_echoes(&session).await;
        let established = session.established().await.unwrap();
        assert_eq!(established.status, 200);
        assert_eq!(established.protocol.as_deref(), Some("remus.v2"));
        assert_eq!(session.protocol().as_deref(), Some("remus.v2"));

        let mut send = session.open_uni().await.unwrap();
        let mut chunks = [
            Bytes::from_static(b"one "),
            Bytes::new(),
            Bytes::from_static(b"way"),
        ];
        send.write_chunks(&mut chunks).await.unwrap();
        assert!(chunks.iter().all(Bytes::is_empty));
        send.finish().unwrap();
        let mut recv = session.accept_uni().await.unwrap();
        assert_eq!(read_all(&mut recv).await, b"one way");

        assert!(session.max_datagram_len() > 1000);
        session.send_datagram_wait(b"ping").await.unwrap();
        assert_eq!(session.read_datagram().await.unwrap(), &b"ping"[..]);
        let max = session.max_datagram_len();
        session.send_datagram(&vec![7; max]).unwrap();
        assert_eq!(session.read_datagram().await.unwrap().len(), max);
        assert!(session.send_datagram(&vec![7; max + 1]).is_err());
    })
    .await;
}

#[tokio::test]
async fn a_large_stream_passes_unchanged() {
    guarded(async {
        let node = Node::start();
        let session = node.session("/echo").await;
        let (mut send, mut recv) = session.open_bi().await.unwrap();
        let sent: Vec<u8> = (0..4_000_000u32).map(|n| n.to_be_bytes()[3]).collect();
        let expected = sent.clone();
        let (written, got) = tokio::join!(
            async move {
                send.write_all(&sent).await.unwrap();
                send.finish()
            },
            read_all(&mut recv)
        );
        written.unwrap();
        assert!(got == expected, "{} bytes came back", got.len());
    })
    .await;
}

/// Spec: TRANS-47
#[tokio::test]
async fn the_client_closes_with_code_and_reason() {
    guarded(async {
        let mut node = Node::start();
        let session = node.session("/echo").await;
        assert_echoes(&session).await;
        session.close(42, "enough").await;
        let here = session.closed().await.unwrap();
        assert_eq!(here, closed(42, "enough", ClosedBy::Local));
        let there = node.ended.recv().await.unwrap().unwrap();
        assert_eq!(there, closed(42, "enough", ClosedBy::Peer));
        // The connection is as good as before.
        let again = session
            .connection()
            .connect(node.get("/echo"), &[])
            .await
            .unwrap();
        assert_echoes(&again).await;
    })
    .await;
}

#[tokio::test]
async fn the_server_closes_with_code_and_reason() {
    guarded(async {
        let mut node = Node::start();
        let session = node.session("/close").await;
        session.established().await.unwrap();
        session.send_datagram(b"now").unwrap();
        let here = session.closed().await.unwrap();
        assert_eq!(here, closed(7, "the server is done", ClosedBy::Peer));
        let there = node.ended.recv().await.unwrap().unwrap();
        assert_eq!(there, closed(7, "the server is done", ClosedBy::Local));
        let error = session.open_bi().await.unwrap_err();
        assert!(matches!(error, Error::SessionClosed(closed) if closed.code == 7));
    })
    .await;
}

#[tokio::test]
async fn dropping_the_last_clone_closes_with_code_0() {
    guarded(async {
        let mut node = Node::start();
        let session = node.session("/echo").await;
        let clone = session.clone();
        assert_echoes(&session).await;
        drop(session);
        assert_echoes(&clone).await;
        drop(clone);
        let there = node.ended.recv().await.unwrap().unwrap();
        assert_eq!(there, closed(0, "", ClosedBy::Peer));
        // The connection had no other user, so it ends too, in good order.
        let error = node.lost.recv().await.unwrap();
        match error {
            Error::Lost(quinn::ConnectionError::ApplicationClosed(close)) => {
                assert_eq!(Code::from(close.error_code), Code::H3_NO_ERROR);
            }
            other => panic!("{other}"),
        }
    })
    .await;
}

/// Spec: TRANS-50
#[tokio::test]
async fn the_streams_of_a_closed_session_are_reset_even_when_nobody_uses_them() {
    guarded(async {
        let node = Node::start();
        let session = node.session("/echo").await;
        let (mut send, mut recv) = session.open_bi().await.unwrap();
        send.write_all(b"x").await.unwrap();
        assert_eq!(recv.read_chunk(9).await.unwrap().unwrap(), &b"x"[..]);
        let (mut idle_send, mut idle_recv) = session.open_bi().await.unwrap();
        let reading = tokio::spawn(async move { recv.read_chunk(9).await });
        tokio::task::yield_now().await;
        let (stopped, ()) = tokio::join!(send.stopped(), session.close(1, ""));
        assert!(matches!(stopped, Err(WriteError::SessionEnded)));
        assert!(matches!(
            reading.await.unwrap(),
            Err(ReadError::SessionEnded)
        ));
        assert!(matches!(
            idle_send.write(b"x").await,
            Err(WriteError::SessionEnded)
        ));
        assert!(matches!(idle_send.finish(), Err(WriteError::SessionEnded)));
        assert!(matches!(
            idle_recv.read_chunk(9).await,
            Err(ReadError::SessionEnded)
        ));
    })
    .await;
}

/// Spec: TRANS-29, CORE-93
#[tokio::test]
async fn streams_come_in_the_order_in_which_they_were_opened() {
    guarded(async {
        let Pair { client, server, .. } = Pair::new(Config::default()).await;
        let quic = client.quic();
        let mut streams = Vec::new();
        for _ in 0..4 {
            streams.push(quic.open_bi().await.unwrap());
        }
        // The session is 0, so its streams begin with these bytes. The last one opened is the first to say what it is.
        for (n, (send, _)) in (0_u8..4).zip(&mut streams).rev() {
            send.write_all(&[0x40, 0x41, 0, n]).await.unwrap();
            client.send_datagram(&[n]).unwrap();
            assert_eq!(server.read_datagram().await.unwrap(), [n][..]);
        }
        for n in 0_u8..4 {
            let (_send, mut recv) = server.accept_bi().await.unwrap();
            assert_eq!(recv.read_chunk(1).await.unwrap().unwrap(), [n][..]);
        }
        // One that is given up before it has said what it is holds nothing up.
        let (mut given_up, _) = quic.open_bi().await.unwrap();
        let (mut send, _recv) = client.open_bi().await.unwrap();
        send.write_all(b"x").await.unwrap();
        given_up.reset(0_u32.into()).unwrap();
        let (_send, mut recv) = server.accept_bi().await.unwrap();
        assert_eq!(recv.read_chunk(1).await.unwrap().unwrap(), b"x"[..]);
    })
    .await;
}

#[tokio::test]
async fn application_codes_pass_both_ways() {
    guarded(async {
        let Pair { client, server, .. } = Pair::new(Config::default()).await;
        let (mut send, mut recv) = client.open_bi().await.unwrap();
        send.write_all(b"x").await.unwrap();
        let (mut their_send, mut their_recv) = server.accept_bi().await.unwrap();
        assert_eq!(their_recv.read_chunk(1).await.unwrap().unwrap(), &b"x"[..]);

        their_recv.stop(11);
        assert!(matches!(
            their_recv.read_chunk(1).await,
            Err(ReadError::Stopped)
        ));
        let stopped = send.stopped().await.unwrap().unwrap();
        assert_eq!(stopped.to_application(), Some(11));
        let error = send.write(b"x").await.unwrap_err();
        assert_eq!(error.application_code(), Some(11));

        their_send.reset(u32::MAX);
        assert!(matches!(
            their_send.write(b"x").await,
            Err(WriteError::Finished)
        ));
        let error = recv.read_chunk(9).await.unwrap_err();
        assert_eq!(error.application_code(), Some(u32::MAX));
        // The error stays: the stream never looks as if it had ended well.
        assert!(matches!(recv.read_chunk(9).await, Err(ReadError::Reset(_))));
    })
    .await;
}

#[tokio::test]
async fn a_stream_dropped_before_its_end_never_looks_whole() {
    guarded(async {
        let Pair { client, server, .. } = Pair::new(Config::default()).await;
        let mut send = client.open_uni().await.unwrap();
        send.write_all(b"half of it").await.unwrap();
        let mut recv = server.accept_uni().await.unwrap();
        assert_eq!(
            recv.read_chunk(99).await.unwrap().unwrap(),
            &b"half of it"[..]
        );
        drop(send);
        let error = recv.read_chunk(99).await.unwrap_err();
        assert_eq!(error.application_code(), Some(0));

        let mut send = client.open_uni().await.unwrap();
        drop(server.accept_uni().await.unwrap());
        let stopped = send.stopped().await.unwrap().unwrap();
        assert_eq!(stopped.to_application(), Some(0));
        assert!(matches!(
            send.write(b"x").await,
            Err(WriteError::Stopped(_))
        ));
    })
    .await;
}

/// Spec: TRANS-25
#[tokio::test]
async fn a_refused_session_says_why_and_leaves_the_connection() {
    guarded(async {
        let node = Node::start();
        let connection = node.connect().await;
        let refused = connection.connect(node.get("/refuse"), &[]).await.unwrap();
        let (mut send, _recv) = refused.open_bi().await.unwrap();
        match refused.established().await {
            Err(Error::Refused { status, .. }) => assert_eq!(status, 403),
            other => panic!("{other:?}"),
        }
        assert!(matches!(refused.closed().await, Err(Error::Refused { .. })));
        assert!(send.write(b"x").await.is_err());
        let accepted = connection.connect(node.get("/echo"), &[]).await.unwrap();
        assert_echoes(&accepted).await;
    })
    .await;
}

/// Spec: TRANS-26
#[tokio::test]
async fn sessions_share_a_connection_up_to_the_limit() {
    guarded(async {
        let config = Config::builder().max_sessions(3).build().unwrap();
        let node = Node::with(config, quinn::TransportConfig::default());
        let connection = node.connect().await;
        let mut sessions = Vec::new();
        for _ in 0..3 {
            let session = connection.connect(node.get("/echo"), &[]).await.unwrap();
            assert_echoes(&session).await;
            sessions.push(session);
        }
        // The server refuses one more; the client's own limit is higher.
        let fourth = connection.connect(node.get("/echo"), &[]).await.unwrap();
        match fourth.established().await {
            Err(Error::Refused { status, .. }) => assert_eq!(status, 429),
            other => panic!("{other:?}"),
        }
        // Datagrams and streams keep to their sessions.
        for (n, session) in sessions.iter().enumerate() {
            session
                .send_datagram(format!("from {n}").as_bytes())
                .unwrap();
        }
        for (n, session) in sessions.iter().enumerate() {
            let got = session.read_datagram().await.unwrap();
            assert_eq!(got, format!("from {n}").as_bytes());
        }
        // Closing one makes room and leaves the others.
        let first = sessions.remove(0);
        first.close(3, "").await;
        assert_echoes(&sessions[0]).await;
        let next = connection.connect(node.get("/echo"), &[]).await.unwrap();
        assert_echoes(&next).await;
    })
    .await;
}

#[tokio::test]
async fn the_clients_own_limit_is_a_misuse() {
    guarded(async {
        let node = Node::start();
        let config = Config::builder().max_sessions(1).build().unwrap();
        let quic = node.quic().await;
        let connection = Connection::client(quic, Arc::new(config)).await.unwrap();
        let session = connection.connect(node.get("/echo"), &[]).await.unwrap();
        let error = connection
            .connect(node.get("/echo"), &[])
            .await
            .unwrap_err();
        assert!(matches!(error, Error::TooManySessions { max: 1 }));
        assert_echoes(&session).await;
    })
    .await;
}

/// Spec: TRANS-51
#[tokio::test]
async fn drain_and_goaway_are_seen_and_stop_nothing() {
    guarded(async {
        let node = Node::start();
        let draining = node.session("/drain").await;
        draining.draining().await.unwrap();
        assert_echoes(&draining).await;

        let pair = Pair::new(Config::default()).await;
        pair.server_connection.goaway();
        pair.client.draining().await.unwrap();
        let connection = pair.client.connection().clone();
        connection.going_away().await.unwrap();
        let request = || http::Request::get(&pair.url).body(()).unwrap();
        let error = connection.connect(request(), &[]).await.unwrap_err();
        assert!(matches!(error, Error::GoingAway));
        let error = connection.request(request()).await.unwrap_err();
        assert!(matches!(error, Error::GoingAway));
        pair.client.close(5, "moved").await;
        let there = pair.server.closed().await.unwrap();
        assert_eq!(there, closed(5, "moved", ClosedBy::Peer));
    })
    .await;
}

#[tokio::test]
async fn the_loss_of_the_connection_ends_everything_on_it() {
    guarded(async {
        let mut node = Node::start();
        let session = node.session("/echo").await;
        let (mut send, mut recv) = session.open_bi().await.unwrap();
        send.write_all(b"x").await.unwrap();
        recv.read_chunk(9).await.unwrap();
        let reading = tokio::spawn(async move { recv.read_chunk(9).await });
        let closing = session.clone();
        session.connection().close(Code::H3_NO_ERROR, "bye");
        assert!(matches!(closing.closed().await, Err(Error::Lost(_))));
        closing.close(1, "too late").await;
        assert!(matches!(closing.accept_bi().await, Err(Error::Lost(_))));
        assert!(matches!(closing.read_datagram().await, Err(Error::Lost(_))));
        assert!(reading.await.unwrap().is_err());
        assert!(send.write(b"x").await.is_err());
        assert!(matches!(
            node.ended.recv().await.unwrap(),
            Err(Error::Lost(_))
        ));
    })
    .await;
}

#[tokio::test]
async fn streams_nobody_accepts_are_refused_above_the_limit() {
    guarded(async {
        let config = Config::builder().max_session_streams(2).build().unwrap();
        let Pair { client, server, .. } = Pair::new(config).await;
        let mut streams = Vec::new();
        for _ in 0..3 {
            streams.push(client.open_uni().await.unwrap());
        }
        let refused = streams[2].stopped().await.unwrap();
        assert_eq!(refused, Some(Code::WT_BUFFERED_STREAM_REJECTED));
        streams[0].write_all(b"still taken").await.unwrap();
        streams[0].finish().unwrap();
        let mut recv = server.accept_uni().await.unwrap();
        assert_eq!(read_all(&mut recv).await, b"still taken");
    })
    .await;
}
