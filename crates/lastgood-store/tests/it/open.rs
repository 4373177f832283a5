//! What a URL opens.

use std::collections::BTreeMap;
use std::sync::Arc;

use lastgood_store::{Env, Error, ErrorKind, Store, SystemEnv, open_url};

fn open(url: &str, options: &[(&str, &str)]) -> Result<Arc<dyn Store>, Error> {
    let env: Arc<dyn Env> = Arc::new(SystemEnv::default());
    let options: BTreeMap<String, String> =
        options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    open_url(url, &options, &env)
}

#[test]
fn folders_and_memory() {
    let here = std::env::current_dir().unwrap();
    let here = here.display();
    for (url, location) in [
        ("/data/x", "file:///data/x".to_owned()),
        ("relative/x", format!("file://{here}/relative/x")),
        ("./x", format!("file://{here}/x")),
        ("file:///data/x", "file:///data/x".to_owned()),
        ("file:///data/with%20space", "file:///data/with space".to_owned()),
        ("memory:", "memory:".to_owned()),
        // One letter is a drive elsewhere, and a folder here.
        ("c:x", format!("file://{here}/c:x")),
    ] {
        assert_eq!(open(url, &[]).unwrap().location(), location, "{url}");
    }
}

#[test]
fn what_is_no_url_of_a_store() {
    for url in ["", "file:", "file:relative", "http://host/x", "ftp://host/x", "hdfs://x", "s4://x"]
    {
        let error = match open(url, &[]) {
            // `file:relative` is made absolute by the rules of URLs.
            Ok(store) => {
                assert!(url.starts_with("file:"), "{url} opened {}", store.location());
                continue;
            }
            Err(error) => error,
        };
        assert_eq!(error.kind(), ErrorKind::Invalid, "{url}: {error}");
    }
}

#[cfg(not(feature = "cloud"))]
#[test]
fn a_build_without_object_stores_says_so() {
    for url in ["s3://bucket/x", "gs://bucket/x", "az://container/x"] {
        let error = open(url, &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.remedy().unwrap().contains("feature"), "{error}");
    }
}

#[cfg(all(feature = "s3", feature = "gcs", feature = "azure"))]
mod object_stores {
    use super::*;

    const AZURE: (&str, &str) = ("azure_storage_account_name", "account");

    #[test]
    fn of_every_kind() {
        for (url, options) in [
            ("s3://bucket", &[][..]),
            ("s3://bucket/a/prefix", &[("aws_region", "eu-central-1")]),
            ("s3://bucket/x", &[("timeout", "5 seconds"), ("AWS_REGION", "us-east-1")]),
            ("gs://bucket", &[("google_skip_signature", "true")]),
            ("gs://bucket/a/prefix", &[("google_skip_signature", "true")]),
            ("az://container", &[AZURE]),
            ("az://container/a/prefix", &[AZURE, ("azure_storage_account_key", "c2VjcmV0")]),
            // Variables of other programs.
            (
                "s3://bucket",
                &[("aws_profile", "x"), ("google_cloud_project", "x"), ("azure_x", "")],
            ),
        ] {
            assert_eq!(open(url, options).unwrap().location(), url, "{options:?}");
        }
    }

    #[test]
    fn wrong_ones_are_told() {
        for (url, options, word) in [
            ("s3:", &[][..], "bucket"),
            ("s3:///prefix", &[], "bucket"),
            ("s3://bucket?versioning=on", &[], "more in it"),
            ("s3://key:secret@bucket/x", &[], "more in it"),
            ("s3://bucket/a//b", &[], "cannot open"),
            ("gs://", &[], "bucket"),
            ("az://container", &[], "ccount"),
            ("s3://bucket", &[("timeout", "soon")], "soon"),
            ("s3://bucket", &[("aws_virtual_hosted_style_request", "perhaps")], "perhaps"),
            ("s3://bucket", &[("aws_checksum_algorithm", "crc1")], "crc1"),
            ("gs://bucket", &[("google_service_account_key", "no json")], "cannot open"),
            (
                "az://container",
                &[AZURE, ("azure_storage_account_key", "no base64!")],
                "cannot open",
            ),
            ("s3://bucket", &[("endpiont", "http://127.0.0.1")], "endpiont"),
            ("gs://bucket", &[("speed", "high")], "speed"),
        ] {
            let error = match open(url, options) {
                Err(error) => error,
                Ok(store) => panic!("{url} with {options:?} opened {}", store.location()),
            };
            assert_eq!(error.kind(), ErrorKind::Invalid, "{url}: {error}");
            assert!(error.to_string().contains(word), "{url} {options:?}: {error}");
        }
    }
}
