//! One stream, from the server or to it.

use super::{Download, Outcome, Upload, Window, float, payload};
use crate::Result;

/// Reads for the length of the window. An operation is `size` bytes: a message, or a write of the sender.
pub(crate) async fn download(
    mut stream: impl Download,
    size: usize,
    window: Window,
) -> Result<Outcome> {
    let (gauge, watch) = window.start();
    let mut bytes = 0_u64;
    while !gauge.is_over() {
        let read = stream.next().await?;
        if gauge.is_measured() {
            bytes += read as u64;
        }
    }
    watch.outcome(float(bytes) / size.max(1) as f64, bytes, None)
}

/// Writes for the length of the window, then compares what the server counted with what was sent.
pub(crate) async fn upload(
    mut stream: impl Upload,
    size: usize,
    window: Window,
) -> Result<Outcome> {
    let sent = payload(0, size);
    let (gauge, watch) = window.start();
    let (mut all, mut measured) = (0_u64, 0_u64);
    while !gauge.is_over() {
        stream.send(sent.clone()).await?;
        all += size as u64;
        if gauge.is_measured() {
            measured += size as u64;
        }
    }
    let counted = stream.finish().await?;
    if counted != all {
        return Err(format!("{all} bytes were sent, and {counted} arrived").into());
    }
    watch.outcome(float(measured) / size.max(1) as f64, measured, None)
}
