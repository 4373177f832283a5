//! A real S3 gateway, as in the module of this name in the tests of `lastgood-store`.

use std::collections::BTreeMap;
use std::sync::Arc;

use lastgood_store::{Env, Store, SystemEnv, open_url};

/// The gateway of `LASTGOOD_TEST_S3`, under a prefix that no other test and no other run uses.
fn gateway(test: &str) -> Arc<dyn Store> {
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
    let options: BTreeMap<String, String> =
        options.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let env: Arc<dyn Env> = Arc::new(SystemEnv::default());
    let url = format!("s3://{bucket}/{test}-{:08x}", env.random() as u32);
    open_url(&url, &options, &env).unwrap()
}

#[test]
fn the_ledger_and_commits() {
    crate::ledger::check_on(gateway("ledger"));
}
