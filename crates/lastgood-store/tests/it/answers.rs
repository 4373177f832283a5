//! What every answer of an object store, and none, means.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lastgood_store::ErrorKind::{Corrupt, Denied, Invalid, NotFound, Overloaded, Unavailable};
use lastgood_store::{CloudStore, Error, Payload, Put, RetryPolicy, RetryStore, Store, SystemEnv};

use crate::clock::block_on;
use crate::server::{Reply, Request, Server};

fn options(server: &Server, more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let s3 = [
        ("aws_endpoint_url", server.endpoint.as_str()),
        ("aws_access_key_id", "key"),
        ("aws_secret_access_key", "secret"),
    ];
    s3.iter().chain(more).map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

fn open(server: &Server) -> CloudStore {
    CloudStore::open("s3://bucket/prefix", &options(server, &[])).unwrap()
}

/// A server with one answer to everything.
fn always(reply: Reply) -> (Server, CloudStore) {
    let server = Server::new(move |_| reply.clone());
    let store = open(&server);
    (server, store)
}

fn put(store: &dyn Store) -> Result<Put, Error> {
    block_on(store.put_if_absent("a/b", "bytes".into()))
}

/// An error says which object, what happened, and, where one can do something, what.
fn check_text(error: &Error, word: &str, case: &str) {
    assert_eq!(error.object(), Some("a/b"), "{case}");
    assert!(error.to_string().contains(word), "{case}: {error} does not say {word:?}");
    assert!(!error.to_string().contains('<'), "{case}: {error} shows XML");
    if !matches!(error.kind(), NotFound | Corrupt | Unavailable) {
        assert!(error.remedy().is_some(), "{case}: {error} has no remedy");
    }
}

#[test]
fn answers_to_puts() {
    for (status, code, told, word) in [
        (200, "", Ok(Put::Created), ""),
        (412, "PreconditionFailed", Ok(Put::Exists), ""),
        (412, "", Ok(Put::Exists), ""),
        (409, "BlobAlreadyExists", Ok(Put::Exists), ""),
        // Another put of this key is on its way, and may yet fail.
        (409, "ConditionalRequestConflict", Err(Unavailable), "ConditionalRequestConflict"),
        (409, "OperationAborted", Err(Unavailable), "409"),
        (409, "", Err(Unavailable), "409"),
        (404, "NoSuchBucket", Err(Invalid), "create the bucket"),
        (404, "", Err(Invalid), "create the bucket"),
        (403, "AccessDenied", Err(Denied), "credentials"),
        (403, "InvalidAccessKeyId", Err(Denied), "the words of the store"),
        (403, "SignatureDoesNotMatch", Err(Denied), "SignatureDoesNotMatch"),
        (403, "RequestTimeTooSkewed", Err(Denied), "clock"),
        (403, "QuotaExceeded", Err(Overloaded), "quota"),
        (401, "", Err(Denied), "credentials"),
        (400, "ExpiredToken", Err(Denied), "new credentials"),
        (400, "AuthorizationHeaderMalformed", Err(Invalid), "region"),
        (400, "EntityTooLarge", Err(Invalid), "EntityTooLarge"),
        (400, "RequestTimeout", Err(Unavailable), "network"),
        (400, "XAmzContentSHA256Mismatch", Err(Unavailable), "network"),
        (301, "PermanentRedirect", Err(Invalid), "region"),
        (408, "", Err(Unavailable), "408"),
        (429, "", Err(Overloaded), "fewer requests"),
        (500, "InternalError", Err(Unavailable), "InternalError"),
        (501, "NotImplemented", Err(Invalid), "If-None-Match"),
        (502, "", Err(Unavailable), "502"),
        (503, "", Err(Unavailable), "503"),
        (503, "SlowDown", Err(Overloaded), "fewer requests"),
        (504, "", Err(Unavailable), "504"),
        (507, "", Err(Overloaded), "free some space"),
    ] {
        let case = format!("{status} {code}");
        let reply = match (status, code) {
            (200, _) => Reply::object(b""),
            (_, "") => Reply::status(status),
            _ => Reply::error(status, code),
        };
        let (server, store) = always(reply);
        let answer = put(&store);
        if let Err(error) = &answer {
            check_text(error, word, &case);
        }
        assert_eq!(answer.map_err(|error| error.kind()), told, "{case}");
        let [request] = &server.requests()[..] else { panic!("{case}: not one request") };
        assert_eq!((request.method.as_str(), request.path.as_str()), ("PUT", "/bucket/prefix/a/b"));
        assert_eq!(request.header("if-none-match"), Some("*"));
        assert_eq!(request.body, b"bytes");
    }
}

#[test]
fn answers_to_reads() {
    for (status, code, told, word) in [
        (404, "NoSuchKey", NotFound, "NoSuchKey"),
        (404, "", NotFound, "404"),
        // To say that the object is not there would be to say too much.
        (404, "NoSuchBucket", Invalid, "create the bucket"),
        (403, "AccessDenied", Denied, "rights"),
        (416, "InvalidRange", Corrupt, "InvalidRange"),
        (429, "TooManyRequests", Overloaded, "fewer requests"),
        (500, "", Unavailable, "500"),
        (503, "SlowDown", Overloaded, "fewer requests"),
        (503, "", Unavailable, "503"),
    ] {
        let case = format!("{status} {code}");
        let reply =
            if code.is_empty() { Reply::status(status) } else { Reply::error(status, code) };
        let (server, store) = always(reply);
        let mut target = [0; 9];
        for error in [
            block_on(store.get("a/b", 100)).unwrap_err(),
            block_on(store.get_range("a/b", 1..10)).unwrap_err(),
            block_on(store.read_into("a/b", 1, &mut target)).unwrap_err(),
        ] {
            assert_eq!(error.kind(), told, "{case}: {error}");
            check_text(&error, word, &case);
        }
        assert_eq!(server.requests().len(), 3, "{case}: each request is made once");
    }
}

#[test]
fn answers_to_the_others() {
    for (status, size, deleted, listed) in [
        (404, Ok(None), Ok(()), Err(NotFound)),
        (403, Err(Denied), Err(Denied), Err(Denied)),
        (503, Err(Unavailable), Err(Unavailable), Err(Unavailable)),
        (429, Err(Overloaded), Err(Overloaded), Err(Overloaded)),
    ] {
        let (server, store) = always(Reply::status(status));
        let kind = |error: Error| error.kind();
        assert_eq!(block_on(store.size("a/b")).map_err(kind), size, "{status}");
        assert_eq!(block_on(store.delete("a/b")).map_err(kind), deleted, "{status}");
        assert_eq!(block_on(store.list("a/", None)).map(|_| ()).map_err(kind), listed, "{status}");
        assert_eq!(server.requests().len(), 3, "{status}: each request is made once");
    }
    let (_, store) = always(Reply::error(404, "NoSuchBucket"));
    assert_eq!(block_on(store.list("a/", None)).unwrap_err().kind(), Invalid);
    assert_eq!(block_on(store.delete("a/b")).map_err(|error| error.kind()), Ok(()));
}

/// Whatever comes of a body that is not what its head says, it is no object.
#[test]
fn bodies_that_lie() {
    for (case, reply, of_get, of_range) in [
        ("cut", Reply::Cut(200, 100, vec![1; 50]), Unavailable, Unavailable),
        ("empty", Reply::Cut(200, 100, vec![]), Unavailable, Unavailable),
        ("larger than expected", Reply::Cut(200, 1 << 30, vec![1; 99]), Corrupt, Unavailable),
    ] {
        let (_server, store) = always(reply);
        let mut error = None;
        let counted = allocation_counter::measure(|| {
            error = Some(block_on(store.get("a/b", 1000)).unwrap_err());
        });
        let error = error.unwrap();
        assert_eq!(error.kind(), of_get, "{case}: {error}");
        assert!(counted.bytes_max < 4 << 20, "{case}: {counted:?}");
        let error = block_on(store.get_range("a/b", 0..9)).unwrap_err();
        assert_eq!(error.kind(), of_range, "{case}: {error}");
    }
    for (case, reply, told) in [
        ("another range", Reply::range(5, &[1; 9], 100), None),
        ("a shorter range", Reply::range(1, &[1; 5], 6), Some(Corrupt)),
        ("everything", Reply::object(&[1; 100]), Some(Unavailable)),
    ] {
        let (_server, store) = always(reply);
        let mut target = [0; 9];
        for error in [
            block_on(store.get_range("a/b", 1..10)).unwrap_err(),
            block_on(store.read_into("a/b", 1, &mut target)).unwrap_err(),
        ] {
            let expected = told.is_none_or(|told| told == error.kind());
            assert!(expected, "{case}: {error:?}");
        }
        assert_eq!(target, [0; 9], "{case}: unverified bytes were handed out");
    }
    let (_server, store) = always(Reply::range(1, b"123456789", 100));
    assert_eq!(block_on(store.get_range("a/b", 1..10)).unwrap(), "123456789");
    let mut target = [0; 9];
    block_on(store.read_into("a/b", 1, &mut target)).unwrap();
    assert_eq!(&target, b"123456789");
}

/// What no answer comes to is Unavailable, and nobody waits for ever.
#[test]
fn silence_ends() {
    let begin = Instant::now();
    for (case, reply, word) in
        [("silence", Reply::Silence, "in time"), ("lost", Reply::Lost, "connection was lost")]
    {
        let server = Server::new(move |_| reply.clone());
        let options = options(&server, &[("timeout", "300ms")]);
        let store = CloudStore::open("s3://bucket/prefix", &options).unwrap();
        let mut target = [0; 9];
        for error in [
            put(&store).unwrap_err(),
            block_on(store.get("a/b", 9)).unwrap_err(),
            block_on(store.read_into("a/b", 0, &mut target)).unwrap_err(),
            block_on(store.size("a/b")).unwrap_err(),
            block_on(store.delete("a/b")).unwrap_err(),
        ] {
            assert_eq!(error.kind(), Unavailable, "{case}: {error}");
            check_text(&error, word, case);
        }
        assert_eq!(server.requests().len(), 5, "{case}: each request is made once");
    }
    // A port that nobody listens on.
    let options = BTreeMap::from([
        ("aws_endpoint_url".into(), "http://127.0.0.1:9".into()),
        ("aws_access_key_id".into(), "key".into()),
        ("aws_secret_access_key".into(), "secret".into()),
    ]);
    let store = CloudStore::open("s3://bucket/prefix", &options).unwrap();
    let error = put(&store).unwrap_err();
    assert_eq!(error.kind(), Unavailable, "{error}");
    check_text(&error, "cannot be reached", "refused");
    assert!(begin.elapsed() < Duration::from_secs(20));
}

fn list_reply(names: &[&str], next: Option<&str>) -> Reply {
    let contents: String = names
        .iter()
        .map(|name| {
            format!(
                "<Contents><Key>{name}</Key><LastModified>2026-11-24T08:00:00.000Z</LastModified>\
                 <ETag>\"1\"</ETag><Size>7</Size></Contents>"
            )
        })
        .collect();
    let token = next.map(|next| format!("<NextContinuationToken>{next}</NextContinuationToken>"));
    let body = format!(
        "<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>{}</IsTruncated>{}{contents}\
         </ListBucketResult>",
        next.is_some(),
        token.unwrap_or_default()
    );
    Reply::Answer(200, Vec::new(), body.into())
}

#[test]
fn listings_have_pages() {
    let server =
        Server::new(|request: &Request| match request.path.contains("continuation-token=second") {
            false => list_reply(&["prefix/a/2", "prefix/a/no key", "prefix/a/1"], Some("second")),
            true => list_reply(&["prefix/a/3", "other/a/4"], None),
        });
    let store = open(&server);
    let found = block_on(store.list("a/", None)).unwrap();
    let found: Vec<&str> = found.iter().map(|object| object.key.as_str()).collect();
    assert_eq!(found, ["a/1", "a/2", "a/3"]);
    let found = block_on(store.list("a/", Some("a/1"))).unwrap();
    assert_eq!(found.len(), 2);
    let last = server.requests().pop().unwrap();
    assert!(last.path.contains("start-after=prefix%2Fa%2F1"), "{}", last.path);
}

/// A page that does not come is an error: a part of a listing is no listing.
#[test]
fn a_missing_page_is_told() {
    for reply in [Reply::status(503), Reply::Lost, Reply::Cut(200, 1000, b"<?xml".to_vec())] {
        let server = Server::new(move |request: &Request| {
            match request.path.contains("continuation-token=second") {
                false => list_reply(&["prefix/a/1"], Some("second")),
                true => reply.clone(),
            }
        });
        let error = block_on(open(&server).list("a/", None)).unwrap_err();
        assert_eq!(error.kind(), Unavailable, "{error}");
    }
}

/// A store that has the object after the first put, and says nothing of it.
fn forgetful(stored: &'static [u8]) -> Server {
    let puts = AtomicUsize::new(0);
    Server::new(move |request: &Request| match request.method.as_str() {
        "PUT" if puts.fetch_add(1, Ordering::Relaxed) == 0 => Reply::Lost,
        "PUT" => Reply::error(412, "PreconditionFailed"),
        _ => Reply::object(stored),
    })
}

#[test]
fn a_lost_answer_is_settled_for_its_writer_and_nobody_else() {
    let policy = RetryPolicy { backoff_first: Duration::from_millis(1), ..RetryPolicy::default() };
    for (stored, told) in
        [(&b"bytes"[..], Put::Created), (b"other", Put::Exists), (b"longer bytes", Put::Exists)]
    {
        let server = forgetful(stored);
        // The client below must not try again by itself: it would call its own object another's.
        assert_eq!(put(&open(&server)).unwrap_err().kind(), Unavailable);
        assert_eq!(server.requests().len(), 1);

        let server = forgetful(stored);
        let store = RetryStore::with_policy(open(&server), Arc::new(SystemEnv::default()), policy);
        assert_eq!(put(&store).unwrap(), told, "{stored:?}");
    }
}

#[test]
fn connections_are_used_again() {
    let server = Server::new(|request: &Request| match request.method.as_str() {
        "GET" => Reply::object(b"bytes"),
        _ => Reply::object(b""),
    });
    let store = open(&server);
    block_on(async {
        for _ in 0..20 {
            store.get("a/b", 9).await.unwrap();
            let payload = Payload::from_parts(vec!["by".into(), "tes".into()]);
            store.put_if_absent("a/b", payload).await.unwrap();
        }
    });
    assert_eq!((server.requests().len(), server.connections()), (40, 1));
}

#[cfg(all(feature = "gcs", feature = "azure"))]
mod other_clouds {
    use super::*;

    fn open(url: &str, options: &[(&str, &str)]) -> CloudStore {
        let options = options.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        CloudStore::open(url, &options.collect()).unwrap()
    }

    fn gcs(server: &Server) -> CloudStore {
        open(
            "gs://bucket/prefix",
            &[("google_base_url", &server.endpoint), ("google_bearer_token", "token")],
        )
    }

    fn azure(server: &Server) -> CloudStore {
        open(
            "az://container/prefix",
            &[
                ("azure_storage_account_name", "account"),
                ("azure_storage_account_key", "c2VjcmV0"),
                ("azure_storage_endpoint", &server.endpoint),
            ],
        )
    }

    /// What each of them is asked for, and what it says if the object exists.
    #[test]
    fn put_if_absent() {
        type Open = fn(&Server) -> CloudStore;
        let kinds: [(&str, Open, &str, &str, u16, &str); 2] = [
            ("gs", gcs, "x-goog-if-generation-match", "0", 412, "PreconditionFailed"),
            ("az", azure, "if-none-match", "*", 409, "BlobAlreadyExists"),
        ];
        for (kind, open, header, value, status, code) in kinds {
            for (reply, told) in [
                (Reply::object(b""), Ok(Put::Created)),
                (Reply::error(status, code), Ok(Put::Exists)),
                (Reply::error(409, "ContainerBeingDeleted"), Err(Unavailable)),
                (Reply::error(404, "ContainerNotFound"), Err(Invalid)),
                (Reply::error(403, "AuthenticationFailed"), Err(Denied)),
                (Reply::error(503, "ServerBusy"), Err(Overloaded)),
                (Reply::Lost, Err(Unavailable)),
            ] {
                let case = format!("{kind}: {reply:?}");
                let server = Server::new(move |_| reply.clone());
                let answer = put(&open(&server)).map_err(|error| error.kind());
                assert_eq!(answer, told, "{case}");
                let requests = server.requests();
                assert_eq!(requests.len(), 1, "{case}: each request is made once");
                assert_eq!(requests[0].header(header), Some(value), "{case}: {requests:?}");
                let path = requests[0].path.replace("%2F", "/");
                assert!(path.ends_with("/prefix/a/b"), "{case}: {path}");
            }
        }
    }

    #[test]
    fn reads() {
        for open in [gcs, azure] {
            let server = Server::new(|_| Reply::object(b"bytes"));
            assert_eq!(block_on(open(&server).get("a/b", 9)).unwrap(), "bytes");
            let server = Server::new(|_| Reply::error(404, "BlobNotFound"));
            let kind = |error: Error| error.kind();
            assert_eq!(block_on(open(&server).get("a/b", 9)).map_err(kind), Err(NotFound));
            assert_eq!(block_on(open(&server).size("a/b")).map_err(kind), Ok(None));
        }
    }
}
