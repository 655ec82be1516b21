//! Coming in, going away, coming back; and middleware on both sides.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a step that fails is a test that fails"
)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use remus::{
    AuthMethod, AuthenticationRecord, Authenticator, Body, BoxFuture, Client, Error, ErrorCode,
    Grant, Raw, Request, Response, Route, Router, Service,
};
use support::Host;
use tokio::sync::{Notify, mpsc};
use tower_service::Service as _;

fn echo() -> Service {
    Service::new("test.v1.Echo").unary("Echo", Raw, |request: Request<Bytes>| async move {
        Ok(Response::new(request.into_inner()))
    })
}

async fn call(client: &Client) -> Result<Bytes, Error> {
    let answer = client
        .method("test.v1.Echo/Echo")
        .unary::<Bytes, Bytes>(Raw, &Bytes::from_static(b"x"))
        .await?;
    Ok(answer.into_inner())
}

/// Spec: CORE-78, CORE-81
#[tokio::test]
async fn a_stopping_server_finishes_what_it_took_and_refuses_the_rest_as_retryable() {
    let (started, mut running) = mpsc::channel(1);
    let go = Arc::new(Notify::new());
    let finish = Arc::clone(&go);
    let slow = Service::new("test.v1.Slow").unary("Slow", Raw, move |_: Request<Bytes>| {
        let (started, go) = (started.clone(), Arc::clone(&go));
        async move {
            started.send(()).await.unwrap();
            go.notified().await;
            Ok(Response::new(Bytes::from_static(b"done")))
        }
    });
    let mut host = Host::start(Router::new().service(slow).service(echo())).await;
    let client = host.client().await;
    let connection = client.connection().await.unwrap();
    let accepted = tokio::spawn({
        let client = client.clone();
        async move {
            client
                .method("test.v1.Slow/Slow")
                .unary::<Bytes, Bytes>(Raw, &Bytes::new())
                .await
        }
    });
    running.recv().await.unwrap();
    host.stop();
    // The client hears of it while its call is still open.
    let mut status = connection.watch_status();
    status
        .wait_for(|status| matches!(status, remus::ConnectionStatus::Draining(_)))
        .await
        .unwrap();
    let refused = connection
        .call(remus_session::Outgoing::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code, ErrorCode::SHUTTING_DOWN);
    assert!(refused.code.is_retryable());
    finish.notify_one();
    assert_eq!(accepted.await.unwrap().unwrap().into_inner(), "done");
    assert_eq!(connection.closed().await.code, ErrorCode::OK);
    drop((client, connection));
    host.ended().await;
}

#[tokio::test]
async fn a_client_comes_back_when_its_server_does() {
    let mut host = Host::start(Router::new().service(echo())).await;
    let address: SocketAddr = host.url.trim_start_matches("remus://").parse().unwrap();
    let client = Client::builder(&host.url)
        .trust(host.trust.clone())
        .connect_timeout(Duration::from_secs(2))
        .connect()
        .await
        .unwrap();
    call(&client).await.unwrap();
    host.ended().await;
    let error = call(&client).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    let again = host.restart(Router::new().service(echo()), address).await;
    // Bounded by the client's own pauses, the longest of which is 3 s.
    for attempt in 0.. {
        match call(&client).await {
            Ok(answer) => {
                assert_eq!(answer, "x");
                break;
            }
            Err(error) => assert!(error.is_retryable() && attempt < 20, "{error}"),
        }
    }
    drop(again);
}

struct Token(&'static [u8]);

impl Authenticator for Token {
    fn authenticate(&self, record: AuthenticationRecord) -> BoxFuture<Result<Grant, Error>> {
        let known = record.method == AuthMethod::BEARER_JWT && record.token == self.0;
        Box::pin(async move {
            if known {
                Ok(Grant {
                    authenticated: true,
                    ..Grant::default()
                })
            } else {
                Err(Error::unauthenticated("the token is not known"))
            }
        })
    }
}

#[tokio::test]
async fn who_is_not_known_does_not_come_in() {
    let host = Host::start_with(Router::new().service(echo()), |builder| {
        builder.authenticator(Token(b"open sesame"))
    })
    .await;
    let builder = || Client::builder(&host.url).trust(host.trust.clone());
    let known = builder().bearer("open sesame").connect().await.unwrap();
    assert_eq!(call(&known).await.unwrap(), "x");
    for client in [builder(), builder().bearer("guess")] {
        let client = client.connect().await.unwrap();
        let error = call(&client).await.unwrap_err();
        assert_eq!(
            (error.code(), error.message()),
            (ErrorCode::UNAUTHENTICATED, "the token is not known")
        );
        assert!(!error.is_retryable());
    }
    // And where nobody asks for a token, one is refused rather than ignored.
    let open = Host::start(Router::new().service(echo())).await;
    let client = Client::builder(&open.url)
        .trust(open.trust.clone())
        .bearer("x")
        .connect()
        .await
        .unwrap();
    assert_eq!(
        call(&client).await.unwrap_err().code(),
        ErrorCode::UNAUTHENTICATED
    );
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_refused_for_good() {
    let (host, other) = (
        Host::start(Router::new()).await,
        Host::start(Router::new()).await,
    );
    let error = Client::builder(&host.url)
        .trust(other.trust.clone())
        .connect()
        .await
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::UNAUTHENTICATED, "{error}");
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn silence_is_noticed_within_the_negotiated_time() {
    let host = Host::start(Router::new().service(echo())).await;
    let client = Client::builder(&host.url)
        .trust(host.trust.clone())
        .idle_timeout(Duration::from_secs(5))
        .connect()
        .await
        .unwrap();
    let connection = client.connection().await.unwrap();
    connection.active().await.unwrap();
    assert_eq!(
        connection.negotiated().unwrap().idle_timeout,
        Duration::from_secs(5),
        "the lower of both wins"
    );
    let path = connection.ping().await.unwrap();
    assert!(
        path.clock_offset_us.abs() < 1_000_000,
        "both ends read the same clock: {path:?}"
    );
}

#[derive(Clone)]
struct Counting<S>(S, Arc<AtomicUsize>);

impl<S: tower_service::Service<Request<Body>>> tower_service::Service<Request<Body>>
    for Counting<S>
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.call(request)
    }
}

struct CountingLayer(Arc<AtomicUsize>);

impl tower_layer::Layer<Route> for CountingLayer {
    type Service = Counting<Route>;

    fn layer(&self, inner: Route) -> Counting<Route> {
        Counting(inner, Arc::clone(&self.0))
    }
}

#[tokio::test]
async fn middleware_stands_in_front_of_handlers_and_of_clients() {
    let (served, called) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let host = Host::start(
        Router::new()
            .service(echo())
            .layer(&CountingLayer(Arc::clone(&served))),
    )
    .await;
    let mut client = Counting(host.client().await, Arc::clone(&called));
    for _ in 0..3 {
        let request = Request::new("test.v1.Echo/Echo", Body::Single(Bytes::from_static(b"x")));
        let response = client.call(request).await.unwrap();
        assert_eq!(response.into_inner().into_single().unwrap(), "x");
    }
    assert_eq!(
        (
            served.load(Ordering::Relaxed),
            called.load(Ordering::Relaxed)
        ),
        (3, 3)
    );
}

/// Spec: CORE-43
#[tokio::test]
async fn a_batch_is_answered_in_order_each_member_for_itself() {
    let fail = Service::new("test.v1.Fail").unary("Fail", Raw, |_: Request<Bytes>| async move {
        Err::<Response<Bytes>, _>(Error::aborted("no"))
    });
    let host = Host::start(Router::new().service(echo()).service(fail)).await;
    let client = host.client().await;
    let requests = (0..200)
        .map(|n| {
            Request::new(
                if n % 3 == 0 {
                    "test.v1.Fail/Fail"
                } else {
                    "test.v1.Echo/Echo"
                },
                Bytes::from(n.to_string()),
            )
        })
        .collect();
    let answers = client.batch(requests).await.unwrap();
    assert_eq!(answers.len(), 200);
    for (n, answer) in answers.into_iter().enumerate() {
        match answer {
            Ok(answer) => assert_eq!(answer.into_inner(), n.to_string()),
            Err(error) => assert!(n % 3 == 0 && error.code() == ErrorCode::ABORTED),
        }
    }
    assert_eq!(
        client.batch(Vec::new()).await.unwrap_err().code(),
        ErrorCode::INVALID_ARGUMENT
    );
}

#[tokio::test]
async fn each_ping_comes_back_by_itself() {
    let host = Host::start(Router::new().service(echo())).await;
    let client = host.client().await;
    let connection = client.connection().await.unwrap();
    connection.active().await.unwrap();
    // Nothing else moves on this connection: an echo that waited for the next timer would show the timer's 3 s.
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    for _ in 0..20 {
        connection.ping().await.unwrap();
    }
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}: echoes waited for a timer",
        start.elapsed()
    );
}

#[tokio::test]
async fn who_comes_while_the_server_stops_is_told_to_try_again() {
    let (started, mut running) = mpsc::channel(1);
    let slow = Service::new("test.v1.Slow").unary("Slow", Raw, move |_: Request<Bytes>| {
        let started = started.clone();
        async move {
            started.send(()).await.unwrap();
            std::future::pending::<Result<Response<Bytes>, Error>>().await
        }
    });
    let mut host = Host::start(Router::new().service(slow).service(echo())).await;
    let client = host.client().await;
    let connection = client.connection().await.unwrap();
    let holding = tokio::spawn(async move {
        client
            .method("test.v1.Slow/Slow")
            .unary::<Bytes, Bytes>(Raw, &Bytes::new())
            .await
    });
    running.recv().await.unwrap();
    host.stop();
    let mut status = connection.watch_status();
    status
        .wait_for(|status| matches!(status, remus::ConnectionStatus::Draining(_)))
        .await
        .unwrap();
    let late = Client::builder(&host.url)
        .trust(host.trust.clone())
        .connect()
        .await;
    let error = match late {
        Ok(late) => call(&late).await.unwrap_err(),
        Err(error) => error,
    };
    // Not the loss of a session: there was none, and nothing ran.
    assert_eq!(error.code(), ErrorCode::UNAVAILABLE, "{error}");
    assert!(error.is_retryable(), "{error}");
    assert!(error.message().contains("503"), "{error}");
    holding.abort();
    drop(connection);
    host.ended().await;
}

/// The runtime of a connection keeps its deadlines; where it stops, nobody may wait for an answer that cannot come.
#[tokio::test]
async fn calls_end_when_the_runtime_of_their_connection_stops() {
    let (started, mut running) = mpsc::channel(1);
    let never = Service::new("test.v1.Never").unary("Never", Raw, move |_: Request<Bytes>| {
        let started = started.clone();
        async move {
            started.send(()).await.unwrap();
            std::future::pending::<Result<Response<Bytes>, Error>>().await
        }
    });
    let host = Host::start(Router::new().service(never)).await;
    let (hand, given) = tokio::sync::oneshot::channel();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let builder = Client::builder(&host.url).trust(host.trust.clone());
    let elsewhere = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let client = builder.connect().await.unwrap();
            client.connection().await.unwrap().active().await.unwrap();
            hand.send(client).unwrap();
            // It keeps driving the connection until the call has begun.
            while stopped.try_recv().is_err() {
                tokio::task::yield_now().await;
            }
        });
    });
    let client = given.await.unwrap();
    let waiting = tokio::spawn(async move {
        client
            .method("test.v1.Never/Never")
            .timeout(Duration::from_secs(3600))
            .unary::<Bytes, Bytes>(Raw, &Bytes::new())
            .await
    });
    running.recv().await.unwrap();
    stop.send(()).unwrap();
    let error = waiting.await.unwrap().unwrap_err();
    assert!(error.is_retryable(), "{error}");
    elsewhere.join().unwrap();
}
