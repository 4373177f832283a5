use super::*;

/// Plain HTTP is for this machine: keys and checkpoints of a user do not cross a network in the clear.
#[test]
fn plain_http_is_for_loopback() {
    let local = "http://127.0.0.1:9";
    for (scheme, options, allowed) in [
        ("s3", &[][..], false),
        ("s3", &[("aws_endpoint_url", local)], true),
        ("s3", &[("AWS_ENDPOINT_URL", "http://localhost:9000")], true),
        ("s3", &[("aws_endpoint_url_s3", "http://[::1]:9000")], true),
        ("s3", &[("aws_endpoint_url", "http://10.0.0.1")], false),
        ("s3", &[("aws_endpoint_url", "http://127.0.0.1.example.org")], false),
        ("s3", &[("aws_endpoint_url", "no url")], false),
        // One of two that is local is not enough.
        ("s3", &[("aws_endpoint_url", local), ("aws_endpoint_url_s3", "http://10.0.0.1")], false),
        // Nor is one of another store, or of something that hands out credentials.
        ("s3", &[("azure_storage_endpoint", local)], false),
        ("s3", &[("aws_metadata_endpoint", local)], false),
        ("s3", &[("aws_endpoint_url", local), ("aws_allow_http", "false")], false),
        ("gs", &[("google_base_url", local)], true),
        ("gs", &[("aws_endpoint_url", local)], false),
        ("az", &[("azure_storage_endpoint", local)], true),
        ("az", &[("azure_msi_endpoint", local)], false),
    ] {
        let options = options.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        let settings = settings(scheme, &options.collect());
        let allow = ("allow_http".to_owned(), "true".to_owned());
        assert_eq!(settings.contains(&allow), allowed, "{scheme}: {settings:?}");
    }
}
