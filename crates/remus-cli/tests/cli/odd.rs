//! Servers that are no node: with methods that a node has not, without a directory, and with files that don't fit.

use std::fs;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use remus::{
    Body, Element, Error, Json, LocalCa, MethodKind, Request, Response, Router, Server, Service,
    Streaming,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::support::{Ended, PATIENCE, Running, remus, run};

/// A server in this process.
struct Odd {
    url: String,
    data: TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Odd {
    fn start(router: Router) -> Self {
        let data = tempfile::tempdir().unwrap();
        let ca = LocalCa::load_or_create(data.path(), &["localhost"]).unwrap();
        let (bound, address) = mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let server = Server::builder(router)
                    .identity(ca.live())
                    .listen("127.0.0.1:0".parse().unwrap())
                    .bind()
                    .unwrap();
                bound.send(server.local_address()).unwrap();
                let stopped = async { drop(stopped.await) };
                server
                    .serve_with_grace(stopped, std::time::Duration::ZERO)
                    .await;
            });
        });
        let address = address.recv_timeout(PATIENCE).unwrap();
        Self {
            url: format!("remus://localhost:{}", address.port()),
            data,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = remus(arguments);
        command
            .env("REMUS_URL", &self.url)
            .env("REMUS_DATA", self.data.path());
        command
    }

    fn run(&self, arguments: &[&str], input: &str) -> Ended {
        run(self.command(arguments), input.as_bytes())
    }
}

impl Drop for Odd {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has shown itself already.
            let _ = thread.join();
        }
    }
}

/// Adds a directory of what is there.
fn with_directory(router: Router) -> Router {
    let services = serde_json::to_value(router.services()).unwrap();
    router.service(Service::new("remus.v2.Directory").unary(
        "List",
        Json,
        move |_: Request<Value>| {
            let services = services.clone();
            async move { Ok(Response::new(json!({ "services": services }))) }
        },
    ))
}

fn sums() -> Service {
    Service::new("odd.v1.Sums")
        .client_stream("Sum", Json, |request: Request<Streaming<i64>>| async move {
            let mut numbers = request.into_inner();
            let mut sum = 0;
            while let Some(number) = numbers.message().await? {
                if number == 0 {
                    // Without waiting for the rest.
                    return Err(Error::out_of_range("zero adds nothing"));
                }
                sum += number;
            }
            Ok(Response::new(sum))
        })
        .two_way(
            "Double",
            Json,
            |request: Request<Streaming<i64>>| async move {
                let numbers = request.into_inner();
                Ok(Response::new(
                    numbers.map(|number| number.map(|number| 2 * number)),
                ))
            },
        )
        .unary("Echo", Json, |request: Request<Value>| async move {
            Ok(Response::new(request.into_inner()))
        })
}

#[test]
fn streams_requests_of_every_shape_as_lines() {
    let odd = Odd::start(with_directory(Router::new().service(sums())));
    let sum = odd.run(&["call", "odd.v1.Sums/Sum"], "1\n2\n\n3\n");
    assert_eq!(sum.good(), "6\n");
    assert_eq!(odd.run(&["call", "odd.v1.Sums/Sum", "7"], "").good(), "7\n");
    assert_eq!(odd.run(&["call", "odd.v1.Sums/Sum"], "").good(), "0\n");
    let doubled = odd.run(&["call", "odd.v1.Sums/Double"], "1\n20\n300\n");
    assert_eq!(doubled.good(), "2\n40\n600\n");
    // What came before the error is still good, so there is data here.
    let broken = odd.run(&["call", "odd.v1.Sums/Double"], "1\nnonsense\n");
    assert_eq!(broken.code, Some(2), "{broken:?}");
    assert!(broken.stderr.contains("line 2"), "{broken:?}");
}

#[test]
fn hears_a_refusal_while_the_input_is_still_open() {
    let odd = Odd::start(with_directory(Router::new().service(sums())));
    let mut calling = Running::start(odd.command(&["call", "odd.v1.Sums/Sum"]));
    let mut input = calling.child.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, b"0\n").unwrap();
    assert_eq!(calling.wait(), Some(2));
    let error = calling.stderr.until("zero adds nothing");
    assert!(error.contains("OUT_OF_RANGE"), "{error}");
    drop(input);
}

#[test]
fn a_server_without_a_directory_can_be_called_all_the_same() {
    let odd = Odd::start(Router::new().service(sums()));
    let echo = odd.run(&["call", "odd.v1.Sums/Echo", r#"{"b": 1, "a": 1e400}"#], "");
    // It is the server that cannot hold the number, and says so.
    assert!(echo.bad(2).contains("INVALID_ARGUMENT"));
    let echo = odd.run(&["call", "odd.v1.Sums/Echo", r#"{"a": [1, 2]}"#], "");
    assert_eq!(echo.good(), "{\"a\":[1,2]}\n");
    let error = odd.run(&["ls"], "").bad(4);
    assert!(error.contains("has no directory"), "{error}");
    let error = odd.run(&["call", "odd.v1.Nothing/Here"], "").bad(4);
    assert!(error.contains("UNIMPLEMENTED"), "{error}");
    assert!(
        odd.run(&["ping", "-n", "1"], "")
            .good()
            .contains("without a name")
    );
}

/// A file service whose every download is one chunk, and then what `rest` says.
fn files(rest: fn() -> stream::BoxStream<'static, Result<Element, Error>>) -> Router {
    Router::new().service(Service::new("file.v1.Files").raw(
        "Get",
        MethodKind::ServerStream,
        move |_: Request<Body>| async move {
            let mut first = Element {
                payload: Bytes::from_static(b"content"),
                ..Element::default()
            };
            first.metadata.insert("size", "7")?;
            let first = stream::iter([Ok(first)]);
            Ok(Response::new(Body::stream(first.chain(rest()))))
        },
    ))
}

fn names(directory: &TempDir) -> Vec<std::ffi::OsString> {
    let entries = fs::read_dir(directory.path()).unwrap();
    entries.map(|entry| entry.unwrap().file_name()).collect()
}

#[test]
fn a_download_that_does_not_fit_leaves_nothing() {
    let wrong_digest = files(|| {
        let mut last = Element::default();
        last.metadata.insert("sha256", "00".repeat(32)).unwrap();
        stream::iter([Ok(last)]).boxed()
    });
    let no_digest = files(|| stream::empty().boxed());
    let broken = files(|| stream::iter([Err(Error::data_loss("the disk is gone"))]).boxed());
    for (router, said) in [
        (wrong_digest, "the copy differs"),
        (no_digest, "sent no SHA-256"),
        (broken, "the disk is gone"),
    ] {
        let odd = Odd::start(router);
        let here = tempfile::tempdir().unwrap();
        let target = here.path().join("file");
        let from = format!("{}/file", odd.url);
        let error = odd.run(&["cp", &from, target.to_str().unwrap()], "").bad(1);
        assert!(error.contains(said), "{error}");
        assert!(names(&here).is_empty(), "{said}: {:?}", names(&here));
    }
}

#[cfg(unix)]
#[test]
fn a_download_that_is_interrupted_leaves_nothing() {
    let odd = Odd::start(files(|| stream::pending().boxed()));
    let here = tempfile::tempdir().unwrap();
    let target = here.path().join("file");
    let from = format!("{}/file", odd.url);
    let mut copying = Running::start(odd.command(&["cp", &from, target.to_str().unwrap()]));
    let until = std::time::Instant::now() + PATIENCE;
    while names(&here).is_empty() {
        assert!(std::time::Instant::now() < until, "no download began");
        thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(!target.exists(), "not under its name before it is whole");
    copying.signal("INT");
    assert_eq!(copying.wait(), Some(130));
    assert!(names(&here).is_empty(), "{:?}", names(&here));
}
