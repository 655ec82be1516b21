//! How much may be in flight: quinn's CUBIC, and a limit where there is no path to fill.
//!
//! CUBIC looks for the rate at which packets are lost. Between processes of one host, or hosts of one rack, none are lost until a
//! socket's buffer overflows, so it would fill that buffer: a standing queue of some ms in front of every small call.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// The longest of the smallest round trips of a path that is short: one host, or the hosts of a rack.
const SHORT_PATH: Duration = Duration::from_micros(250);

/// Bytes that may be in flight on a short path: 25 Gbit/s at 63 µs, 6 Gbit/s at 250.
///
/// What is in flight stands in front of small calls, whose p99 should rise less than five times beside a bulk stream; the figures are
/// in docs/decisions/0006.
const SHORT_PATH_IN_FLIGHT: u64 = 192 * 1024;

/// Makes a [`ShortPathLimit`] for each connection.
#[derive(Debug, Default)]
pub(crate) struct Congestion {
    cubic: Arc<CubicConfig>,
}

impl ControllerFactory for Congestion {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(ShortPathLimit {
            cubic: Arc::clone(&self.cubic).build(now, mtu),
            limit: u64::MAX,
        })
    }
}

/// CUBIC, and no more than [`SHORT_PATH_IN_FLIGHT`] once the path has shown that it is short.
struct ShortPathLimit {
    cubic: Box<dyn Controller>,
    limit: u64,
}

impl Controller for ShortPathLimit {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.limit = limit(rtt.min());
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.cubic
            .on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.cubic
            .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.cubic.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.cubic.window().min(self.limit)
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.cubic.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            cubic: self.cubic.clone_box(),
            limit: self.limit,
        })
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window().min(self.limit)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// The limit of a path with this smallest round trip. The smallest, since the latest contains the queue that is to be limited.
fn limit(round_trip: Duration) -> u64 {
    if round_trip < SHORT_PATH {
        SHORT_PATH_IN_FLIGHT
    } else {
        u64::MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_has_shown_to_be_short_is_limited() {
        let cubic = || CubicConfig::default().initial_window(8 << 20).clone();
        let factory = Arc::new(Congestion {
            cubic: Arc::new(cubic()),
        });
        let controller = factory.build(Instant::now(), 1200);
        assert_eq!(controller.window(), 8 << 20, "nothing is known yet");
        let mut controller = controller.into_any().downcast::<ShortPathLimit>().unwrap();
        controller.limit = limit(SHORT_PATH);
        assert_eq!(controller.window(), 8 << 20, "CUBIC alone decides");
        controller.limit = limit(SHORT_PATH - Duration::from_nanos(1));
        assert_eq!(controller.window(), SHORT_PATH_IN_FLIGHT);
        assert_eq!(controller.metrics().congestion_window, SHORT_PATH_IN_FLIGHT);
        assert_eq!(controller.clone_box().window(), SHORT_PATH_IN_FLIGHT);
        controller.on_congestion_event(Instant::now(), Instant::now(), true, 8 << 20);
        assert!(controller.window() < SHORT_PATH_IN_FLIGHT, "loss counts");
    }
}
