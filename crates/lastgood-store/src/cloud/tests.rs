use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::Instant;

use super::*;
use crate::ErrorKind;

#[test]
fn a_put_has_time_for_its_size() {
    assert_eq!(upload_max(0), Duration::ZERO);
    assert_eq!(upload_max(64 << 20), Duration::from_secs(256));
    assert!(upload_max(u64::MAX) > upload_max(64 << 20));
}

#[test]
fn ranges_that_no_request_can_name() {
    for (range, expected) in [
        (0..0, true),
        (7..7, true),
        (Range { start: 2, end: 1 }, true),
        (0..u64::MAX, true),
        (0..1, false),
        (0..i64::MAX as u64, false),
    ] {
        assert_eq!(CloudStore::is_empty_or_absurd(&range), expected, "{range:?}");
    }
}

/// A store that sends this much of an answer to every request, and then nothing.
fn stalling(answer: &'static str) -> CloudStore {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
            open.push(stream);
        }
    });
    let options = [
        ("aws_endpoint_url", endpoint.as_str()),
        ("aws_access_key_id", "key"),
        ("aws_secret_access_key", "secret"),
    ];
    let options = options.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let store = CloudStore::open("s3://bucket", &options.into()).unwrap();
    CloudStore { patience: Duration::from_millis(200), ..store }
}

#[test]
fn nobody_waits_for_ever() {
    let begin = Instant::now();
    let head = "HTTP/1.1 200 OK\r\netag: \"1\"\r\nlast-modified: Tue, 24 Nov 2026 08:00:00 GMT\r\n\
                content-length: 1000\r\n\r\nsome bytes";
    for answer in ["", "HTTP/1.1 200 OK\r\n", head] {
        let store = stalling(answer);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut errors = vec![store.get("a", 1000).await.unwrap_err()];
            if answer != head {
                errors.push(store.put_if_absent("a", "bytes".into()).await.unwrap_err());
                errors.push(store.size("a").await.unwrap_err());
                errors.push(store.delete("a").await.unwrap_err());
            }
            errors.push(store.list("a", None).await.unwrap_err());
            for error in errors {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{answer:?}: {error}");
                assert!(error.message().contains("within"), "{answer:?}: {error}");
            }
        });
    }
    assert!(begin.elapsed() < Duration::from_secs(20));
}
