#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a step that fails is a test that fails"
)]

use std::collections::HashSet;
use std::future::poll_fn;
use std::net::UdpSocket;
use std::sync::atomic::AtomicUsize;
use std::task::Wake;

use quinn::Runtime as _;

use super::connection_id::{CONNECTION_ID_BYTES, Id};
use super::*;

/// A datagram with a short header and as many bytes as said.
fn short(id: Id, number: u8, bytes: usize) -> Vec<u8> {
    let mut datagram = vec![number; bytes];
    datagram[0] = 0x40;
    datagram[1..9].copy_from_slice(&id);
    datagram
}

fn ids(group: &ShardGroup, shard: u8, count: usize) -> Vec<Id> {
    let mut generator = group.generator(shard);
    (0..count).map(|_| generator.next()).collect()
}

/// A shard's socket on a port of its own, since the kernel's choice is not what is tested here.
fn socket(group: &ShardGroup, number: usize) -> (ShardSocket, SocketAddr) {
    let socket = crate::quic::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
    let address = socket.local_addr().unwrap();
    let socket = quinn::TokioRuntime.wrap_udp_socket(socket).unwrap();
    (group.open(number, socket).unwrap(), address)
}

/// The datagrams of the next buffers that have any.
async fn receive(socket: &ShardSocket) -> Vec<Vec<u8>> {
    let mut space = vec![0; 4 * 65_536];
    let mut metas = [RecvMeta::default(); 4];
    loop {
        let mut buffers: Vec<_> = space.chunks_mut(65_536).map(IoSliceMut::new).collect();
        let count = poll_fn(|cx| socket.poll_recv(cx, &mut buffers, &mut metas))
            .await
            .unwrap();
        let mut datagrams = Vec::new();
        for (meta, buffer) in metas.iter().zip(&buffers).take(count) {
            if meta.len > 0 {
                let parts = buffer[..meta.len].chunks(meta.stride);
                datagrams.extend(parts.map(<[u8]>::to_vec));
            }
        }
        if !datagrams.is_empty() {
            return datagrams;
        }
    }
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn ids_name_their_shard_to_their_group_alone() {
    for count in [1, 2, 3, SHARDS_MAX] {
        let group = ShardGroup::new(count).unwrap();
        for shard in (0..count).map(|shard| shard as u8) {
            for id in ids(&group, shard, 50) {
                assert_eq!(group.0.ids.shard(id), Some(shard));
            }
        }
    }
    let (ours, other) = (ShardGroup::new(2).unwrap(), ShardGroup::new(2).unwrap());
    let taken = ids(&other, 1, 65_536)
        .into_iter()
        .filter(|id| ours.0.ids.shard(*id).is_some())
        .count();
    // 2 in expectation: one check in 256, and 2 of 256 numbers. 40 has a chance below 1 in 10^30.
    assert!(taken < 40, "{taken}");
}

#[test]
fn ids_of_one_shard_have_nothing_in_common() {
    let group = ShardGroup::new(2).unwrap();
    let ids = ids(&group, 1, 4096);
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
    for position in 0..CONNECTION_ID_BYTES {
        let mut counts = [0; 256];
        for id in &ids {
            counts[usize::from(id[position])] += 1;
        }
        // 16 in expectation; random bytes leave 0..=60 with a chance far below 1 in 10^15.
        let most = counts.iter().max().unwrap();
        assert!(*most < 60, "byte {position}: {most}");
    }
}

#[test]
fn the_destination_is_found_in_both_kinds_of_headers() {
    let id: Id = *b"\x01\x02\x03\x04\x05\x06\x07\x08";
    assert_eq!(destination(&short(id, 0, 9)), Some(id));
    assert_eq!(destination(&short(id, 0, 100)), Some(id));
    let long = |length: u8, rest: &[u8]| [&[0xC0, 0, 0, 0, 1, length], rest].concat();
    assert_eq!(destination(&long(8, &id)), Some(id));
    assert_eq!(destination(&long(20, &[1; 40])), None);
    assert_eq!(destination(&long(0, &[1; 40])), None);
    for cut in 0..9 {
        assert_eq!(destination(&short(id, 0, 9)[..cut]), None);
    }
    for cut in 0..14 {
        assert_eq!(destination(&long(8, &id)[..cut]), None);
    }
}

#[tokio::test]
async fn what_came_to_another_socket_arrives_and_the_rest_stays() {
    let group = ShardGroup::new(2).unwrap();
    let (zero, to_zero) = socket(&group, 0);
    let (one, _) = socket(&group, 1);
    let (id_zero, id_one) = (ids(&group, 0, 1)[0], ids(&group, 1, 1)[0]);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let foreign = short(id_one, 1, 1200);
    let unknown = [&[0xC0, 0, 0, 0, 1, 20][..], &[9; 1194]].concat();
    let own = short(id_zero, 2, 1200);
    for datagram in [&foreign, &unknown, &own] {
        client.send_to(datagram, to_zero).unwrap();
    }
    let mut stayed = Vec::new();
    while stayed.len() < 2 {
        stayed.extend(receive(&zero).await);
    }
    assert_eq!(stayed, [unknown, own]);
    assert_eq!(receive(&one).await, [foreign]);
    let moved = ShardStatistics {
        handed_on: 1,
        dropped: 0,
    };
    assert_eq!(group.statistics(), moved);
}

#[tokio::test]
async fn a_shard_that_sleeps_is_woken() {
    let group = ShardGroup::new(2).unwrap();
    let (zero, to_zero) = socket(&group, 0);
    let (one, _) = socket(&group, 1);
    let foreign = short(ids(&group, 1, 1)[0], 1, 100);
    let waiting = tokio::spawn(async move { receive(&one).await });
    // It has nothing, and has said so, when this task runs again.
    tokio::task::yield_now().await;
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(&foreign, to_zero).unwrap();
    let receiving = tokio::spawn(async move { receive(&zero).await });
    assert_eq!(waiting.await.unwrap(), [foreign]);
    receiving.abort();
}

#[test]
fn batches_are_taken_apart_only_where_they_are_mixed() {
    let group = ShardGroup::new(3).unwrap();
    let own: Vec<_> = ids(&group, 0, 2);
    let one = ids(&group, 1, 1)[0];
    let two = ids(&group, 2, 1)[0];
    for inbox in &group.0.inboxes {
        inbox.lock().is_open = true;
    }
    // A batch of 100-byte datagrams, of which the last is shorter, as the shard 0 receives it; and what is left of it.
    let sort = |batch: &[Id]| {
        let last = batch.len() - 1;
        let datagram =
            |(at, id): (usize, &Id)| short(*id, at as u8, if at == last { 40 } else { 100 });
        let mut buffer: Vec<u8> = batch.iter().enumerate().flat_map(datagram).collect();
        let mut meta = RecvMeta {
            len: buffer.len(),
            stride: 100,
            ..RecvMeta::default()
        };
        group.0.sort(0, &mut meta, &mut buffer);
        let left: Vec<_> = buffer[..meta.len]
            .chunks(100)
            .map(|datagram| (datagram[20], datagram.len()))
            .collect();
        left
    };
    // What waits for a shard: number of the first datagram, bytes, stride.
    let moved = |shard: usize| {
        let mut waiting = group.0.inboxes[shard].lock();
        let buffers = std::mem::take(&mut waiting.buffers);
        buffers
            .iter()
            .map(|buffer| (buffer.content[20], buffer.meta.len, buffer.meta.stride))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        sort(&[own[0], own[1], own[0]]),
        [(0, 100), (1, 100), (2, 40)]
    );
    assert_eq!(sort(&[one, one, one]), []);
    assert_eq!(moved(1), [(0, 240, 100)], "as one");
    assert_eq!(
        sort(&[own[0], one, two, own[1]]),
        [(0, 100), (3, 40)],
        "what is kept closes up"
    );
    assert_eq!(moved(1), [(1, 100, 100)]);
    assert_eq!(moved(2), [(2, 100, 100)]);
    assert_eq!(sort(&[one, own[0], two]), [(1, 100)]);
    assert_eq!(
        (moved(1), moved(2)),
        (vec![(0, 100, 100)], vec![(2, 40, 40)])
    );
    assert_eq!(sort(&[one]), []);
    assert_eq!(moved(1), [(0, 40, 100)]);
    assert_eq!(moved(0), []);
}

#[test]
fn what_waits_is_bounded_in_number_and_in_bytes() {
    let group = ShardGroup::new(2).unwrap();
    let inbox = &group.0.inboxes[1];
    let fill = |bytes: usize| {
        let mut datagram = short(ids(&group, 1, 1)[0], 0, bytes);
        for _ in 0..100_000 {
            let mut meta = RecvMeta {
                len: bytes,
                stride: bytes,
                ..RecvMeta::default()
            };
            group.0.sort(0, &mut meta, &mut datagram);
            assert_eq!(
                meta.len, 0,
                "it is nobody else's, whether there is room or not"
            );
        }
        let waiting = inbox.lock();
        (waiting.buffers.len(), waiting.bytes)
    };
    assert_eq!(fill(100), (0, 0), "nobody is there to take it");
    assert_eq!(group.statistics().dropped, 100_000);
    inbox.lock().is_open = true;
    assert_eq!(fill(9), (WAITING_BUFFERS_MAX, 9 * WAITING_BUFFERS_MAX));
    inbox.close();
    inbox.lock().is_open = true;
    let (count, bytes) = fill(60_000);
    assert_eq!((count, bytes), (17, 17 * 60_000));
    assert!(bytes <= WAITING_BYTES_MAX);
    inbox.close();
    assert_eq!(inbox.lock().bytes, 0);
}

#[test]
fn an_inbox_wakes_once_and_has_room_again_when_emptied() {
    let inbox = Inbox::default();
    inbox.lock().is_open = true;
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let mut space = [0; 64];
    let take = |space: &mut [u8]| {
        let mut metas = [RecvMeta::default(); 2];
        let mut buffers: Vec<_> = space.chunks_mut(32).map(IoSliceMut::new).collect();
        let filled = inbox.take(&waker, &mut buffers, &mut metas);
        (filled, metas[0].len)
    };
    assert_eq!(take(&mut space), (0, 0));
    let meta = RecvMeta {
        len: 3,
        stride: 3,
        ..RecvMeta::default()
    };
    for _ in 0..5 {
        assert!(inbox.put(meta, b"abc"));
    }
    assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
    assert_eq!(take(&mut space), (2, 3));
    assert_eq!(&space[..3], b"abc");
    assert_eq!(take(&mut space), (2, 3));
    assert!(inbox.is_filled.load(Ordering::SeqCst));
    assert_eq!(take(&mut space), (1, 3));
    assert!(!inbox.is_filled.load(Ordering::SeqCst));
    assert_eq!(inbox.lock().bytes, 0);
}

#[tokio::test]
async fn a_shard_has_one_endpoint_at_a_time() {
    assert!(matches!(
        ShardGroup::new(0),
        Err(ShardError::Count { count: 0 })
    ));
    assert!(matches!(
        ShardGroup::new(SHARDS_MAX + 1),
        Err(ShardError::Count { count: 257 })
    ));
    let group = ShardGroup::new(2).unwrap();
    let (first, _) = socket(&group, 1);
    let spare = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        quinn::TokioRuntime.wrap_udp_socket(socket).unwrap()
    };
    assert!(matches!(
        group.open(1, spare()),
        Err(ShardError::Taken { number: 1 })
    ));
    assert!(matches!(
        group.open(2, spare()),
        Err(ShardError::Number {
            number: 2,
            count: 2
        })
    ));
    drop(first);
    group.open(1, spare()).unwrap();
}
