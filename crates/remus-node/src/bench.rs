//! `remus.v2.Bench`: something to measure against, for `remus bench`.
//!
//! | method | takes | answers |
//! | --- | --- | --- |
//! | `Echo` | bytes, at most 1 MiB | the same bytes |
//! | `Down` | JSON [`DownRequest`] | a stream of elements of the size and number asked for |
//! | `Up` | a stream of elements, each at most 1 MiB | JSON [`Taken`] |
//!
//! Nothing of it is kept: an answer costs the node what the session's windows hold and no more, and a stream goes on only as
//! fast as its reader reads.

use bytes::Bytes;
use futures_util::stream;
use remus::{Error, ErrorCode, Json, Raw, Request, Response, Service, Streaming};
use serde::{Deserialize, Serialize};

/// Full name of the service.
pub const BENCH_SERVICE: &str = "remus.v2.Bench";

/// Bytes of one request of `Echo`, and of one element: a quarter of the longest message, so that headers always fit.
pub const BENCH_SIZE_MAX: usize = 1024 * 1024;

/// Elements of one stream of `Down`: a million a second for a quarter of an hour.
pub const BENCH_ELEMENTS_MAX: u64 = 1_000_000_000;

/// The request of `Down`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DownRequest {
    /// Bytes of one element, at most [`BENCH_SIZE_MAX`].
    pub size: usize,
    /// How many of them, at most [`BENCH_ELEMENTS_MAX`]. The stream ends earlier when its reader drops it.
    pub count: u64,
}

/// The answer of `Up`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Elements that arrived.
    pub elements: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The service.
pub(crate) fn service() -> Service {
    // Shared by all streams, which send parts of it.
    let noise = noise();
    Service::new(BENCH_SERVICE)
        .describe("Something to measure against, for `remus bench`.")
        .unary("Echo", Raw, |request: Request<Bytes>| async move {
            let payload = request.into_inner();
            check(payload.len())?;
            Ok(Response::new(payload))
        })
        .server_stream("Down", (Json, Raw), move |request: Request<DownRequest>| {
            let noise = noise.clone();
            async move {
                let DownRequest { size, count } = request.into_inner();
                check(size)?;
                if count > BENCH_ELEMENTS_MAX {
                    return Err(Error::invalid_argument(format!(
                        "`count` must be at most {BENCH_ELEMENTS_MAX}, not {count}"
                    )));
                }
                let element = noise.slice(..size.min(noise.len()));
                Ok(Response::new(stream::unfold(count, move |left| {
                    let next = left.checked_sub(1).map(|left| (Ok(element.clone()), left));
                    std::future::ready(next)
                })))
            }
        })
        .client_stream(
            "Up",
            (Raw, Json),
            |request: Request<Streaming<Bytes>>| async move {
                let mut elements = request.into_inner();
                let mut taken = Taken::default();
                while let Some(element) = elements.message().await? {
                    check(element.len())?;
                    taken.elements = taken.elements.saturating_add(1);
                    let bytes = u64::try_from(element.len()).unwrap_or(u64::MAX);
                    taken.bytes = taken.bytes.saturating_add(bytes);
                }
                Ok(Response::new(taken))
            },
        )
}

fn check(size: usize) -> Result<(), Error> {
    if size > BENCH_SIZE_MAX {
        return Err(Error::new(
            ErrorCode::MESSAGE_TOO_LARGE,
            format!("{size} bytes are more than the {BENCH_SIZE_MAX} that are measured with"),
        ));
    }
    Ok(())
}

/// Bytes that nothing on the way can compress.
fn noise() -> Bytes {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(BENCH_SIZE_MAX / 8).flatten().collect()
}
