//! `remus pub`.

use bytes::Bytes;

use crate::cli::{Connection, Publish};
use crate::connect::Node;
use crate::failure::Outcome;
use crate::input::Input;
use crate::output::Output;

use super::{interruptible, with_node, within};

pub(crate) async fn run(command: Publish, connection: &Connection, output: &Output) -> Outcome {
    let payload = match command.payload.as_deref() {
        None => Bytes::new(),
        Some(argument) => {
            let input = Input::parse(argument)?;
            interruptible(within(connection.timeout, input.read())).await?
        }
    };
    let node = Node::of(connection)?;
    with_node(node, output, async |node| {
        let topic = &command.topic;
        let bytes = payload.len();
        node.client.publish(topic, payload).await?;
        if output.is_json() {
            return output.json(&serde_json::json!({ "topic": topic, "bytes": bytes }));
        }
        output.note(&format!("{topic} took {bytes} bytes"));
        Ok(())
    })
    .await
}
