//! A real S3 gateway. `cargo xtask test` starts one; alone, with the line that `scripts/ceph-rgw up`
//! prints, joined by commas:
//!
//! ```sh
//! LASTGOOD_TEST_S3="$(scripts/ceph-rgw up /tmp/rgw | tr ' ' ,)" \
//!   cargo nextest run -p lastgood-store --features s3 --ignore-default-filter
//! ```
//!
//! Without it they are skipped (`default-filter` in `.config/nextest.toml`), and fail if they are run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lastgood_store::conformance::{self, Options};
use lastgood_store::fault::{Fault, FaultPlan, Faults, Operation};
use lastgood_store::{
    CloudStore, Env, ErrorKind, FaultStore, Put, RetryPolicy, RetryStore, Store, SystemEnv,
    open_url,
};

use crate::clock::block_on;

/// Where the gateway is.
struct Gateway {
    options: BTreeMap<String, String>,
    bucket: String,
}

impl Gateway {
    fn of_the_environment() -> Self {
        #[expect(clippy::disallowed_methods, reason = "the test command says where the gateway is")]
        let address = std::env::var("LASTGOOD_TEST_S3").unwrap_or_default();
        let parts: Vec<&str> = address.split(',').collect();
        let [endpoint, key, secret, bucket] = parts[..] else {
            panic!(
                "LASTGOOD_TEST_S3 is {address:?}, which is not `endpoint,key,secret,bucket`: these tests \
                 need a gateway; run `cargo xtask test --only tests`, or see scripts/ceph-rgw"
            );
        };
        let options = [
            ("aws_endpoint_url", endpoint),
            ("aws_access_key_id", key),
            ("aws_secret_access_key", secret),
            ("aws_region", "us-east-1"),
        ];
        let options = options.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self { options: options.into(), bucket: bucket.to_owned() }
    }

    /// A URL that no other test and no other run uses.
    fn url(&self, test: &str) -> String {
        format!("s3://{}/{test}-{:08x}", self.bucket, SystemEnv::default().random() as u32)
    }

    fn open(&self, url: &str) -> CloudStore {
        CloudStore::open(url, &self.options).unwrap()
    }
}

fn env() -> Arc<dyn Env> {
    Arc::new(SystemEnv::default())
}

#[test]
fn conformance() {
    let gateway = Gateway::of_the_environment();
    let url = gateway.url("conformance");
    let options = Options { race_rounds: 50, ..Options::default() };
    let open = || Ok(Arc::new(gateway.open(&url)) as Arc<dyn Store>);
    let report = block_on(conformance::run(&open, &SystemEnv::default(), &options));
    println!("{report}");
    assert!(report.passed(), "{report}");
}

/// As a user opens it: with retries.
#[test]
fn conformance_of_what_a_url_opens() {
    let gateway = Gateway::of_the_environment();
    let url = gateway.url("by-url");
    let options = Options {
        race_rounds: 10,
        large_bytes: 1 << 20,
        objects_listed: 20,
        repeats_puts: true,
        ..Options::default()
    };
    let open = || open_url(&url, &gateway.options, &env());
    let report = block_on(conformance::run(&open, &SystemEnv::default(), &options));
    assert!(report.passed(), "{report}");
}

fn kind<T: std::fmt::Debug>(result: lastgood_store::Result<T>) -> ErrorKind {
    let error = result.unwrap_err();
    assert!(error.remedy().is_some(), "{error}");
    error.kind()
}

#[test]
fn wrong_credentials_are_denied() {
    for (name, value) in [("aws_access_key_id", "nobody"), ("aws_secret_access_key", "wrong")] {
        let mut gateway = Gateway::of_the_environment();
        gateway.options.insert(name.into(), value.into());
        let store = gateway.open(&gateway.url("denied"));
        let mut target = [0; 1];
        block_on(async {
            assert_eq!(kind(store.put_if_absent("a", "x".into()).await), ErrorKind::Denied);
            assert_eq!(kind(store.get("a", 9).await), ErrorKind::Denied);
            assert_eq!(kind(store.read_into("a", 0, &mut target).await), ErrorKind::Denied);
            assert_eq!(kind(store.size("a").await), ErrorKind::Denied);
            assert_eq!(kind(store.list("", None).await), ErrorKind::Denied);
            assert_eq!(kind(store.delete("a").await), ErrorKind::Denied);
        });
    }
}

#[test]
fn a_missing_bucket_is_invalid() {
    let gateway = Gateway::of_the_environment();
    let store = gateway.open("s3://no-such-bucket/x");
    block_on(async {
        assert_eq!(kind(store.put_if_absent("a", "x".into()).await), ErrorKind::Invalid);
        assert_eq!(kind(store.get("a", 9).await), ErrorKind::Invalid);
        assert_eq!(kind(store.list("", None).await), ErrorKind::Invalid);
    });
}

/// Nothing listens there: with all retries, an end comes within the deadline.
#[test]
fn an_endpoint_that_cannot_be_reached_is_unavailable() {
    let mut gateway = Gateway::of_the_environment();
    gateway.options.insert("aws_endpoint_url".into(), "http://127.0.0.1:9".into());
    let policy = RetryPolicy { deadline: Duration::from_secs(3), ..RetryPolicy::default() };
    let store = RetryStore::with_policy(gateway.open("s3://bucket/x"), env(), policy);
    let begin = Instant::now();
    block_on(async {
        assert_eq!(kind(store.put_if_absent("a", "x".into()).await), ErrorKind::Unavailable);
        assert_eq!(kind(store.get("a", 9).await), ErrorKind::Unavailable);
    });
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}

/// The answer to a put is lost on its way from the gateway: its writer learns that it was the one, and
/// everybody else that they were not.
#[test]
fn a_lost_answer_is_settled() {
    let gateway = Gateway::of_the_environment();
    let url = gateway.url("lost");
    let open = |plan| {
        let faults = Faults::new(plan);
        let store = FaultStore::new(gateway.open(&url), &faults, env());
        RetryStore::new(store, env())
    };
    block_on(async {
        for tries in 1..=3 {
            let key = format!("key-{tries}");
            let plan = (1..=tries).fold(FaultPlan::default(), |plan, number| {
                plan.at(Operation::Put, "", number, Fault::LostAnswer)
            });
            let (writer, other) = (open(plan.clone()), open(plan));
            let put = writer.put_if_absent(&key, "the writer's".into()).await.unwrap();
            assert_eq!(put, Put::Created);
            let put = other.put_if_absent(&key, "another's".into()).await.unwrap();
            assert_eq!(put, Put::Exists);
            assert_eq!(other.get(&key, 99).await.unwrap(), "the writer's");
        }
    });
}

/// What others keep in the bucket is no object of ours, whatever its name.
#[test]
fn prefixes_do_not_meet() {
    let gateway = Gateway::of_the_environment();
    let url = gateway.url("prefix");
    let stores = [url.clone(), format!("{url}2"), format!("{url}/inner")];
    let stores = stores.map(|url| gateway.open(&url));
    block_on(async {
        for (i, store) in stores.iter().enumerate() {
            let put = store.put_if_absent("a/b", format!("{i}").into()).await.unwrap();
            assert_eq!(put, Put::Created, "{}", store.location());
        }
        let [outer, beside, inner] = &stores;
        for (store, expected) in
            [(outer, vec!["a/b", "inner/a/b"]), (beside, vec!["a/b"]), (inner, vec!["a/b"])]
        {
            let found = store.list("", None).await.unwrap();
            let found: Vec<&str> = found.iter().map(|object| object.key.as_str()).collect();
            assert_eq!(found, expected, "{}", store.location());
        }
    });
}

/// A prefix may have characters that no key has.
#[test]
fn prefixes_may_be_odd() {
    let gateway = Gateway::of_the_environment();
    for prefix in ["team=ml", "my%20run", "a~b", "100%25", "%C3%BC", "a+b", "a%5Eb/c"] {
        let store = gateway.open(&format!("{}/{prefix}", gateway.url("odd")));
        block_on(async {
            let put = store.put_if_absent("a/b", "bytes".into()).await.unwrap();
            assert_eq!(put, Put::Created, "{prefix}");
            assert_eq!(store.get("a/b", 9).await.unwrap(), "bytes", "{prefix}");
            for (after, count) in [(None, 1), (Some("a"), 1), (Some("a/b"), 0)] {
                let found = store.list("a/", after).await.unwrap();
                assert_eq!(found.len(), count, "{prefix}, after {after:?}");
            }
        });
    }
}
