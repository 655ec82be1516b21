//! Calls of every shape over a real connection.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a step that fails is a test that fails"
)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use remus::{Client, ErrorCode, Json, Raw, Request, Response, Router, Service, Streaming};
use support::Host;
use tokio::sync::{mpsc, oneshot};

fn echo() -> Service {
    Service::new("test.v1.Echo")
        .unary("Echo", Raw, |request: Request<Bytes>| async move {
            let mut response = Response::new(request.get_ref().clone());
            if let Some(value) = request.metadata().get("mark") {
                response.metadata_mut().insert("mark", value)?;
            }
            Ok(response)
        })
        .unary("Fail", Raw, |_: Request<Bytes>| async move {
            Err::<Response<Bytes>, _>(
                remus::Error::not_found("no such thing").with_detail("test.v1.What", "x"),
            )
        })
        .server_stream("Count", Json, |request: Request<u32>| async move {
            Ok(Response::new(stream::iter(0..request.into_inner()).map(Ok)))
        })
        .client_stream("Sum", Json, |request: Request<Streaming<u64>>| async move {
            let mut numbers = request.into_inner();
            let mut sum = 0;
            while let Some(number) = numbers.message().await? {
                sum += number;
            }
            Ok(Response::new(sum))
        })
        .two_way(
            "Shout",
            Json,
            |request: Request<Streaming<String>>| async move {
                Ok(Response::new(
                    request
                        .into_inner()
                        .map(|text| text.map(|text| text.to_uppercase())),
                ))
            },
        )
}

#[tokio::test]
async fn all_four_shapes() {
    let host = Host::start(Router::new().service(echo())).await;
    let client = host.client().await;

    let answer = client
        .method("test.v1.Echo/Echo")
        .metadata("mark", "7")
        .unary::<Bytes, Bytes>(Raw, &"hi".into())
        .await
        .unwrap();
    assert_eq!(answer.metadata().get("mark"), Some(&b"7"[..]));
    assert_eq!(answer.into_inner(), "hi");

    let counted = client
        .method("test.v1.Echo/Count")
        .server_stream::<u32, u32>(Json, &5000)
        .await
        .unwrap()
        .into_inner();
    let counted: Vec<u32> = counted.map(Result::unwrap).collect().await;
    assert!(counted.into_iter().eq(0..5000));

    let (mut numbers, sum) = client
        .method("test.v1.Echo/Sum")
        .client_stream::<u64, u64>(Json)
        .await
        .unwrap();
    for number in 1..=1000 {
        numbers.send(&number).await.unwrap();
    }
    numbers.finish();
    assert_eq!(sum.response().await.unwrap().into_inner(), 500_500);

    let (mut texts, mut shouts) = client
        .method("test.v1.Echo/Shout")
        .two_way::<String, String>(Json)
        .await
        .unwrap();
    for text in ["a", "b", "c"] {
        texts.send(&text.to_owned()).await.unwrap();
        assert_eq!(
            shouts.message().await.unwrap().unwrap(),
            text.to_uppercase()
        );
    }
    texts.finish();
    assert_eq!(shouts.message().await.unwrap(), None);
}

/// Spec: CORE-32, CORE-34
#[tokio::test]
async fn payloads_of_every_size_come_back() {
    let host = Host::start(Router::new().service(echo())).await;
    let client = host.client().await;
    for len in [
        0,
        1,
        63,
        64,
        1200,
        16_000,
        16_349,
        16_350,
        20_000,
        65_536,
        300_000,
        2_000_000,
        4 * 1024 * 1024 - 100,
    ] {
        let payload = Bytes::from((0..len).map(|n| (n % 251) as u8).collect::<Vec<_>>());
        let answer = client
            .method("test.v1.Echo/Echo")
            .unary::<Bytes, Bytes>(Raw, &payload)
            .await
            .unwrap();
        assert!(answer.into_inner() == payload, "{len} bytes");
    }
    let error = client
        .method("test.v1.Echo/Echo")
        .unary::<Bytes, Bytes>(Raw, &vec![0; 4 * 1024 * 1024].into())
        .await
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::MESSAGE_TOO_LARGE);
    assert!(error.message().contains("4194304"), "{error}");
}

/// A large request has no room in the first flight, and waits until there is a session. Spec: CORE-5
#[tokio::test]
async fn large_calls_wait_until_the_session_is_open() {
    let host = Host::start(Router::new().service(echo())).await;
    for len in [16_000, 20_000, 300_000] {
        let client = host.client().await;
        let connection = client.connection().await.unwrap();
        let payload = Bytes::from(vec![7; len]);
        let method = client.method("test.v1.Echo/Echo");
        let answering = method.unary::<Bytes, Bytes>(Raw, &payload);
        assert!(connection.negotiated().is_none(), "it has only begun");
        assert!(answering.await.unwrap().into_inner() == payload, "{len}");
    }
}

#[tokio::test]
async fn errors_keep_code_text_and_details_and_unknown_methods_are_named() {
    let host = Host::start(Router::new().service(echo())).await;
    let client = host.client().await;
    let error = client
        .method("test.v1.Echo/Fail")
        .unary::<Bytes, Bytes>(Raw, &Bytes::new())
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (ErrorCode::NOT_FOUND, "no such thing")
    );
    assert_eq!(error.details().next().unwrap().kind, "test.v1.What");
    assert!(!error.is_retryable());
    let error = client
        .method("test.v1.Echo/Nope")
        .unary::<Bytes, Bytes>(Raw, &Bytes::new())
        .await
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::UNIMPLEMENTED);
    assert!(error.message().contains("test.v1.Echo"), "{error}");
    let error = client
        .method("test.v1.Other/Nope")
        .unary::<Bytes, Bytes>(Raw, &Bytes::new())
        .await
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::UNIMPLEMENTED);
    let error = client
        .method("test.v1.Echo/Count")
        .unary::<u32, u32>(Json, &3)
        .await
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::FAILED_PRECONDITION);
    let mut wrong = client
        .method("test.v1.Echo/Count")
        .server_stream::<String, u32>(Json, &"x".into())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        wrong.message().await.unwrap_err().code(),
        ErrorCode::INVALID_ARGUMENT
    );
}

/// Says through a channel when it is dropped.
struct OnDrop(Option<oneshot::Sender<()>>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            let _ = sender.send(());
        }
    }
}

fn hanging(started: mpsc::Sender<oneshot::Receiver<()>>) -> Service {
    let streams = started.clone();
    Service::new("test.v1.Hang")
        .unary("Hang", Raw, move |_: Request<Bytes>| {
            let started = started.clone();
            async move {
                let (sender, dropped) = oneshot::channel();
                let _guard = OnDrop(Some(sender));
                started.send(dropped).await.unwrap();
                std::future::pending::<Result<Response<Bytes>, remus::Error>>().await
            }
        })
        .server_stream("Stream", Raw, move |_: Request<Bytes>| {
            let started = streams.clone();
            async move {
                let (sender, dropped) = oneshot::channel();
                started.send(dropped).await.unwrap();
                let guard = OnDrop(Some(sender));
                Ok(Response::new(
                    stream::pending::<Result<Bytes, remus::Error>>().map(move |item| {
                        let _ = &guard;
                        item
                    }),
                ))
            }
        })
}

/// Spec: CORE-37, CORE-38
#[tokio::test]
async fn dropping_a_call_drops_its_handler() {
    let (started, mut handlers) = mpsc::channel(8);
    let host = Host::start(Router::new().service(hanging(started))).await;
    let client = host.client().await;
    let call = tokio::spawn({
        let client = client.clone();
        async move {
            client
                .method("test.v1.Hang/Hang")
                .unary::<Bytes, Bytes>(Raw, &Bytes::new())
                .await
        }
    });
    let dropped = handlers.recv().await.unwrap();
    call.abort();
    dropped.await.expect("the handler was dropped");

    let streaming = client
        .method("test.v1.Hang/Stream")
        .server_stream::<Bytes, Bytes>(Raw, &Bytes::new())
        .await
        .unwrap();
    let dropped = handlers.recv().await.unwrap();
    drop(streaming);
    dropped.await.expect("the stream's handler was dropped");
    // The connection is none the worse for it.
    assert_eq!(host.connections.list().len(), 1);
}

/// Spec: CORE-70
#[tokio::test]
async fn a_deadline_ends_the_call_on_both_sides() {
    let (started, mut handlers) = mpsc::channel(8);
    let host = Host::start(Router::new().service(hanging(started))).await;
    let client = host.client().await;
    let nothing = Bytes::new();
    let call = client
        .method("test.v1.Hang/Hang")
        .timeout(Duration::from_secs(1)) // the request must reach its handler before, however busy the machine is
        .unary::<Bytes, Bytes>(Raw, &nothing);
    let (result, dropped) = tokio::join!(call, handlers.recv());
    assert_eq!(result.unwrap_err().code(), ErrorCode::DEADLINE_EXCEEDED);
    dropped.unwrap().await.expect("the handler was dropped");
}

#[tokio::test]
async fn a_handler_that_panics_answers_internal_and_the_connection_goes_on() {
    let panics = Service::new("test.v1.Panic")
        .unary(
            "Now",
            Raw,
            |_: Request<Bytes>| -> std::future::Ready<Result<Response<Bytes>, remus::Error>> {
                panic!("on purpose")
            },
        )
        .unary("Later", Raw, |_: Request<Bytes>| async move {
            tokio::task::yield_now().await;
            if true {
                panic!("on purpose");
            }
            Ok(Response::new(Bytes::new()))
        });
    let host = Host::start(Router::new().service(panics).service(echo())).await;
    let client = host.client().await;
    for method in ["test.v1.Panic/Now", "test.v1.Panic/Later"] {
        let error = client
            .method(method)
            .unary::<Bytes, Bytes>(Raw, &Bytes::new())
            .await
            .unwrap_err();
        assert_eq!(error.code(), ErrorCode::INTERNAL, "{method}");
    }
    client
        .method("test.v1.Echo/Echo")
        .unary::<Bytes, Bytes>(Raw, &Bytes::new())
        .await
        .unwrap();
}

#[tokio::test]
async fn the_server_calls_the_client_back() {
    let caller =
        Service::new("test.v1.Caller").unary("Ask", Json, |request: Request<String>| async move {
            let client: Client = request.peer().unwrap().clone();
            let name = request.into_inner();
            let answer = client
                .method("test.v1.Callee/Answer")
                .unary::<String, String>(Json, &name)
                .await?;
            Ok(Response::new(answer.into_inner()))
        });
    let callee = Service::new("test.v1.Callee").unary(
        "Answer",
        Json,
        |request: Request<String>| async move {
            Ok(Response::new(format!("{}!", request.into_inner())))
        },
    );
    let host = Host::start(Router::new().service(caller)).await;
    let client = Client::builder(&host.url)
        .trust(host.trust.clone())
        .router(Router::new().service(callee))
        .connect()
        .await
        .unwrap();
    let answer = client
        .method("test.v1.Caller/Ask")
        .unary::<String, String>(Json, &"Ada".into())
        .await
        .unwrap();
    assert_eq!(answer.into_inner(), "Ada!");
}

/// Spec: CORE-26
#[tokio::test]
async fn many_calls_at_once_are_each_answered_once() {
    let host = Host::start(Router::new().service(echo())).await;
    let client = host.client().await;
    let calls = (0..5000_u32).map(|n| {
        let client = client.clone();
        async move {
            let payload = Bytes::copy_from_slice(&n.to_be_bytes());
            let answer = client
                .method("test.v1.Echo/Echo")
                .unary::<Bytes, Bytes>(Raw, &payload)
                .await
                .unwrap();
            assert_eq!(answer.into_inner(), payload);
        }
    });
    futures_util::future::join_all(calls).await;
    assert_eq!(host.connections.list()[0].open_calls(), (0, 0));
}
