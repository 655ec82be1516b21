//! `remus call`: any method of any shape, without code.

use bytes::Bytes;
use remus::{ErrorCode, MethodCall, MethodKind, Raw, StreamSender, Streaming};
use tokio::sync::mpsc;

use crate::cli::{Call, Connection};
use crate::connect::Node;
use crate::directory::Directory;
use crate::failure::{Failure, Outcome};
use crate::input::{Element, Input};
use crate::json::{self, Json};
use crate::output::{Output, Printer};

use super::{Unsent, exchange, with_node};

pub(crate) async fn run(command: Call, connection: &Connection, output: &Output) -> Outcome {
    check_name(&command.method)?;
    let input = command.input.as_deref().map(Input::parse).transpose()?;
    // What is on the command line is checked before anybody is asked.
    if let (Some(input @ Input::Argument(bytes)), false) = (&input, command.raw) {
        check_json(bytes, || input.name())?;
    }
    let node = Node::of(connection)?;
    with_node(node, output, async |node| {
        let caller = Caller {
            node,
            command: &command,
            output,
        };
        match caller.kind().await? {
            MethodKind::Unary => caller.unary(input).await,
            MethodKind::ServerStream => caller.server_stream(input).await,
            MethodKind::ClientStream => caller.client_stream(input).await,
            MethodKind::TwoWay => caller.two_way(input).await,
        }
    })
    .await
}

fn check_name(method: &str) -> Outcome {
    let well_formed = method.split_once('/').is_some_and(|(service, name)| {
        !service.is_empty() && !name.is_empty() && !name.contains('/')
    });
    if well_formed {
        return Ok(());
    }
    Err(
        Failure::usage(format!("`{method}` is not the full name of a method"))
            .hint("SERVICE/METHOD, such as host.v1.Host/Info; `remus ls methods` lists them")
            .into(),
    )
}

fn check_json(bytes: &Bytes, name: impl FnOnce() -> String) -> Outcome {
    match Json::parse(bytes) {
        Ok(_) => Ok(()),
        Err(invalid) => Err(
            Failure::usage(format!("{} is not JSON: {invalid}", name()))
                .hint("quote the whole of it for the shell, as in '{\"name\": 1}'; --raw sends what is not JSON")
                .into(),
        ),
    }
}

/// One call, being made.
struct Caller<'a> {
    node: &'a Node,
    command: &'a Call,
    output: &'a Output,
}

impl Caller<'_> {
    async fn kind(&self) -> Outcome<MethodKind> {
        if self.command.stream {
            return Ok(MethodKind::ServerStream);
        }
        Ok(match Directory::fetch(self.node).await? {
            Some(directory) => directory.kind_of(&self.command.method)?,
            // A node without a directory may still have the method.
            None => MethodKind::Unary,
        })
    }

    fn method(&self) -> MethodCall<'_> {
        let mut call = self.node.client.method(&self.command.method);
        for (key, value) in &self.command.metadata {
            call = call.metadata(key, value);
        }
        if self.command.idempotent {
            call = call.idempotent();
        }
        match self.node.left() {
            Some(left) => call.timeout(left),
            None => call,
        }
    }

    /// The one request.
    async fn request(&self, input: Option<Input>) -> Outcome<Bytes> {
        let Some(input) = input else {
            return Ok(if self.command.raw {
                Bytes::new()
            } else {
                Bytes::from_static(b"{}")
            });
        };
        let name = input.name();
        let bytes = input.read().await?;
        if !self.command.raw {
            check_json(&bytes, || name)?;
        }
        Ok(bytes)
    }

    /// The requests of a method that takes a stream of them.
    fn requests(&self, input: Option<Input>) -> Outcome<Requests> {
        let input = input.unwrap_or(Input::Standard);
        Ok(Requests {
            name: input.name(),
            checked: !self.command.raw,
            elements: input.elements(!self.command.raw)?,
        })
    }

    /// An answer as it is shown.
    fn shown(&self, answer: &Bytes, pretty: bool) -> Outcome<Vec<u8>> {
        if self.command.raw {
            return Ok(answer.to_vec());
        }
        match json::shown(answer, pretty) {
            Ok(text) => Ok(text.into_bytes()),
            Err(invalid) => Err(Failure::new(
                ErrorCode::UNKNOWN,
                format!("the answer, {} bytes, is not JSON: {invalid}", answer.len()),
            )
            .hint("--raw writes it as it is")
            .into()),
        }
    }

    fn pretty(&self) -> bool {
        self.output.terminal && !self.output.is_json()
    }

    fn print(&self, answer: &Bytes) -> Outcome {
        self.output.data(&self.shown(answer, self.pretty())?)
    }

    async fn print_all(&self, mut answers: Streaming<Bytes>) -> Outcome {
        let mut printer = Printer::new()?;
        let printing = async {
            while let Some(answer) = answers.message().await? {
                printer.write(self.shown(&answer, self.pretty())?).await?;
            }
            Ok(())
        };
        let outcome: Outcome = printing.await;
        // What came before an error is still good.
        let finished = printer.finish().await;
        outcome.and(finished)
    }

    async fn unary(&self, input: Option<Input>) -> Outcome {
        let request = self.request(input).await?;
        let answer = self.method().unary::<Bytes, Bytes>(Raw, &request).await?;
        self.print(answer.get_ref())
    }

    async fn server_stream(&self, input: Option<Input>) -> Outcome {
        let request = self.request(input).await?;
        let answers = self.method().server_stream(Raw, &request).await?;
        self.print_all(answers.into_inner()).await
    }

    async fn client_stream(&self, input: Option<Input>) -> Outcome {
        let mut requests = self.requests(input)?;
        let (mut sender, reply) = self.method().client_stream(Raw).await?;
        let (_, answer) = exchange(requests.send(&mut sender), reply).await?;
        self.print(&answer)
    }

    async fn two_way(&self, input: Option<Input>) -> Outcome {
        let mut requests = self.requests(input)?;
        let (mut sender, answers) = self.method().two_way(Raw).await?;
        let printing = self.print_all(answers);
        tokio::pin!(printing);
        let sending = async {
            match requests.send(&mut sender).await {
                // What the peer says against it comes with the answers.
                Ok(()) | Err(Unsent::ByPeer(_)) => std::future::pending().await,
                Err(Unsent::Here(stop)) => stop,
            }
        };
        tokio::select! {
            outcome = &mut printing => outcome,
            stop = sending => Err(stop),
        }
    }
}

struct Requests {
    name: String,
    checked: bool,
    elements: mpsc::Receiver<Outcome<Element>>,
}

impl Requests {
    /// Sends all, and ends the stream well if there was nothing wrong.
    async fn send(&mut self, sender: &mut StreamSender<Bytes>) -> Result<(), Unsent> {
        while let Some(element) = self.elements.recv().await {
            let Element { number, bytes } = element.map_err(Unsent::Here)?;
            if self.checked {
                let line = || format!("line {number} of {}", self.name);
                check_json(&bytes, line).map_err(Unsent::Here)?;
            }
            sender.send(&bytes).await.map_err(Unsent::ByPeer)?;
        }
        sender.finish();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_named_by_service_and_method() {
        for name in ["a/b", "host.v1.Host/Info"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "/", "a", "a/", "/b", "a/b/c"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
