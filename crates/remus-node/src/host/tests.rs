use std::sync::mpsc::channel;

use remus::ErrorCode;

use super::*;

#[test]
fn a_host_name_becomes_one_valid_token() {
    for (name, expected) in [
        ("alpha", "alpha"),
        ("Alpha-7_b", "alpha-7_b"),
        ("alpha.example.org", "alpha-example-org"),
        ("my box", "my-box"),
        ("*", "-"),
        (">", "-"),
        ("é", "-"),
        ("", "localhost"),
    ] {
        assert_eq!(topic_token(name), expected);
    }
    assert_eq!(topic_token(&"x".repeat(300)).len(), TOKEN_MAX);
}

#[test]
fn rates_are_over_the_time_that_passed() {
    assert_eq!(sampler::rate(1500, Duration::from_millis(1500)), 1000);
    assert_eq!(sampler::rate(1, Duration::from_secs(2)), 0);
    assert_eq!(sampler::rate(7, Duration::ZERO), 0);
    assert_eq!(sampler::rate(u64::MAX, Duration::from_nanos(1)), u64::MAX);
}

#[test]
fn shares_have_one_digit_and_are_always_numbers() {
    assert!((sampler::tenths(12.34) - 12.3).abs() < 1e-9);
    assert!(sampler::tenths(f32::NAN).abs() < f64::EPSILON);
}

fn process(pid: u32, cpu_percent: f64, memory_bytes: u64) -> ProcessInfo {
    ProcessInfo {
        list: 0,
        pid,
        name: String::new(),
        cpu_percent,
        memory_bytes,
        started: 0,
        user: None,
    }
}

#[test]
fn processes_are_sorted_by_what_was_asked_for_and_cut() {
    let all = [
        process(3, 1.0, 10),
        process(2, 5.0, 20),
        process(1, 1.0, 30),
        process(4, 1.0, 30),
    ];
    let pids = |sort, limit| top(&all, sort, limit).map(|p| p.pid).collect::<Vec<_>>();
    assert_eq!(pids(ProcessSort::Cpu, 4), [2, 1, 4, 3]);
    assert_eq!(pids(ProcessSort::Memory, 3), [1, 4, 2]);
}

#[test]
fn all_four_topics_are_published_and_the_thread_ends() {
    let (sender, samples) = channel();
    let (host, thread) = Host::start(move |topic: &str, json| {
        let _ = sender.send((topic.to_owned(), json));
    })
    .unwrap();
    let read = |what: &str| {
        let (topic, json) = samples.recv().unwrap();
        assert_eq!(topic, format!("host.{}.{what}", topic_token(host.name())));
        json
    };
    let cpu: CpuSample = serde_json::from_slice(&read("cpu")).unwrap();
    assert!(cpu.elapsed_ms > 0);
    assert!((0.0..=100.0).contains(&cpu.usage_percent), "{cpu:?}");
    assert!(!cpu.cores_percent.is_empty());
    let memory: MemorySample = serde_json::from_slice(&read("memory")).unwrap();
    assert!(
        memory.total_bytes >= memory.used_bytes && memory.used_bytes > 0,
        "{memory:?}"
    );
    let disk: DiskSample = serde_json::from_slice(&read("disk")).unwrap();
    assert_eq!(disk.elapsed_ms, cpu.elapsed_ms);
    let net: NetSample = serde_json::from_slice(&read("net")).unwrap();
    assert!(
        !net.networks.is_empty(),
        "there is at least the loopback interface"
    );
    thread.stop();
    while samples.recv().is_ok() {}
}

#[tokio::test]
async fn the_host_is_described() {
    let (host, _thread) = Host::start(|_, _| {}).unwrap();
    let info = host.ask(Command::Info).await.unwrap();
    assert!(
        !info.name.is_empty() && !info.os.is_empty() && !info.kernel.is_empty(),
        "{info:?}"
    );
    assert_eq!(info.architecture, std::env::consts::ARCH);
    assert!(info.cores > 0 && info.boot_time > 0, "{info:?}");
    assert!(info.memory.total_bytes > 0);
}

#[tokio::test]
async fn processes_are_listed_with_this_one_among_them() {
    use futures_util::TryStreamExt as _;
    let (host, _thread) = Host::start(|_, _| {}).unwrap();
    let wanted = ProcessesRequest {
        limit: Some(PROCESSES_MAX),
        ..ProcessesRequest::default()
    };
    let all: Vec<_> = host.processes(wanted).unwrap().try_collect().await.unwrap();
    let this = all
        .iter()
        .find(|process| process.pid == std::process::id())
        .unwrap();
    assert!(
        this.memory_bytes > 0 && this.started > 0 && this.user.is_some(),
        "{this:?}"
    );
    assert!(all.iter().all(|process| process.list == 1));
}

#[tokio::test]
async fn a_watched_list_comes_again() {
    use futures_util::{StreamExt as _, TryStreamExt as _};
    let (host, _thread) = Host::start(|_, _| {}).unwrap();
    let wanted = ProcessesRequest {
        limit: Some(2),
        watch: true,
        interval_ms: Some(250),
        ..ProcessesRequest::default()
    };
    let stream = host.processes(wanted).unwrap();
    let some: Vec<_> = stream.take(5).try_collect().await.unwrap();
    let lists: Vec<_> = some.iter().map(|process| process.list).collect();
    assert_eq!(lists, [1, 1, 2, 2, 3]);
}

#[tokio::test]
async fn requests_out_of_range_are_refused_and_questions_after_the_end_are_retryable() {
    let (host, thread) = Host::start(|_, _| {}).unwrap();
    for (limit, interval_ms) in [(Some(0), None), (Some(10_001), None), (None, Some(249))] {
        let wanted = ProcessesRequest {
            limit,
            interval_ms,
            ..ProcessesRequest::default()
        };
        let error = host.clone().processes(wanted).err().unwrap();
        assert_eq!(error.code(), ErrorCode::INVALID_ARGUMENT);
    }
    thread.stop();
    let error = host.ask(Command::Info).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
}
