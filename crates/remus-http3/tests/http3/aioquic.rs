//! Against aioquic, a QUIC, HTTP/3 and WebTransport client in Python.

use std::{path::PathBuf, process::Stdio};

use remus_http3::{ClosedBy, SessionClosed};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::support::{Node, guarded};

/// Spec: TRANS-12, TRANS-13, TRANS-25
#[tokio::test]
async fn its_client_gets_everything_that_a_browser_needs() {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/foreign");
    let python = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/python");
    // Not under the watchdog: the first time, this downloads packages.
    let setup = Command::new(here.join("setup")).arg(&python).status().await;
    assert!(setup.unwrap().success(), "tests/foreign/setup failed");

    guarded(async {
        let mut node = Node::start();
        let mut client = Command::new(python.join("bin/python"))
            .arg("-W")
            .arg("error")
            .arg(here.join("aioquic_client.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let input = format!("{}\n{}", node.address.port(), node.identity.pem());
        let mut stdin = client.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        let output = client.wait_with_output().await.unwrap();
        assert!(output.status.success(), "{}", output.status);
        let lines = String::from_utf8(output.stdout).unwrap();
        let expected = [
            "settings 0x1=0 0x6=65536 0x7=0 0x8=1 0x33=1 0x2b603742=1 0x2c7cf000=1 0xc671706a=1",
            "get 200 GET hello",
            "post True yes",
            "session 200",
            "bi both ways",
            "uni one way",
            "datagram datagram",
            "closed the server ends the CONNECT stream too",
            "close True 7 the server is done",
            "drain True",
            "refused 403",
        ];
        assert_eq!(lines.lines().collect::<Vec<_>>(), expected);
        let closed = node.ended.recv().await.unwrap().unwrap();
        let by_client = SessionClosed {
            code: 42,
            reason: "from aioquic".to_owned(),
            side: ClosedBy::Peer,
        };
        assert_eq!(closed, by_client);
        let closed = node.ended.recv().await.unwrap().unwrap();
        assert_eq!((closed.code, closed.side), (7, ClosedBy::Local));
    })
    .await;
}
