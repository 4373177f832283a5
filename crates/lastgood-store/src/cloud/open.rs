//! Opening a store of `object_store` in the way that lastgood needs it.

use std::collections::BTreeMap;
use std::time::Duration;

use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use crate::{Error, Result};

/// Beginnings of names that programs other than lastgood have options of, too.
const VENDORS: [&str; 3] = ["aws_", "google_", "azure_"];

const CONNECT_MAX: Duration = Duration::from_secs(5);

macro_rules! build {
    ($builder:ty, $url:expr, $settings:expr) => {{
        let mut builder =
            <$builder>::new().with_url($url).with_retry(once()).with_client_options(client());
        for (name, value) in $settings {
            match name.parse() {
                Ok(key) => builder = builder.with_config(key, value),
                Err(_) if VENDORS.iter().any(|vendor| name.starts_with(vendor)) => {}
                Err(_) => return Err(unknown(name)),
            }
        }
        builder.build().map(|store| Box::new(store) as Box<dyn ObjectStore>)
    }};
}

pub(super) fn open(
    url: &str,
    options: &BTreeMap<String, String>,
) -> Result<(Box<dyn ObjectStore>, Path)> {
    // An error says that the process has a provider already, which serves as well.
    rustls::crypto::ring::default_provider().install_default().ok();
    let parsed = Url::parse(url).map_err(|e| wrong(url, &e))?;
    if parsed.host_str().is_none_or(str::is_empty) {
        return Err(wrong(url, &"it names no bucket or container"));
    }
    if parsed.query().is_some() || parsed.fragment().is_some() || parsed.password().is_some() {
        return Err(wrong(url, &"there is more in it than a bucket and a prefix"));
    }
    let path = Path::from_url_path(parsed.path()).map_err(|e| wrong(url, &e))?;
    let settings = settings(parsed.scheme(), options);
    let store = match parsed.scheme() {
        #[cfg(feature = "s3")]
        "s3" => build!(object_store::aws::AmazonS3Builder, url, &settings),
        #[cfg(feature = "gcs")]
        "gs" => build!(object_store::gcp::GoogleCloudStorageBuilder, url, &settings),
        #[cfg(feature = "azure")]
        "az" => build!(object_store::azure::MicrosoftAzureBuilder, url, &settings),
        scheme => {
            return Err(wrong(url, &format!("this build has no store of kind {scheme:?}"))
                .with_remedy("build with the feature s3, gcs or azure"));
        }
    };
    let store = store.map_err(|e| {
        wrong(url, &e).with_remedy("correct the option, or the variable of the environment")
    })?;
    Ok((store, path))
}

fn wrong(url: &str, reason: &dyn std::fmt::Display) -> Error {
    Error::invalid(format!("cannot open {url:?}: {reason}"))
}

fn unknown(name: &str) -> Error {
    Error::invalid(format!("{name:?} is no option of this kind of store"))
        .with_remedy("use the names that object_store documents, such as aws_endpoint_url")
}

/// The names of the options that say where requests go.
fn endpoints(scheme: &str) -> &'static [&'static str] {
    match scheme {
        "s3" => {
            &["aws_endpoint_url", "aws_endpoint", "endpoint_url", "endpoint", "aws_endpoint_url_s3"]
        }
        "gs" => &["google_base_url", "base_url"],
        _ => &["azure_storage_endpoint", "azure_endpoint", "endpoint"],
    }
}

fn settings(scheme: &str, options: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let mut settings: Vec<(String, String)> =
        options.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
    let is_set = |wanted: &str| settings.iter().any(|(name, _)| name.ends_with(wanted));
    let (http, bulk) = (is_set("allow_http"), is_set("disable_bulk_delete"));
    let mut endpoints =
        settings.iter().filter(|(name, _)| endpoints(scheme).contains(&name.as_str())).peekable();
    let is_local = endpoints.peek().is_some() && endpoints.all(|(_, url)| is_loopback(url));
    if is_local && !http {
        settings.push(("allow_http".into(), "true".into()));
    }
    // A request to delete one object says more when it fails than one to delete many.
    if !bulk {
        settings.push(("aws_disable_bulk_delete".into(), "true".into()));
    }
    settings
}

/// One try: a second one inside of this client could meet the object that the first one created, and
/// call it somebody else's.
fn once() -> RetryConfig {
    RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() }
}

/// A client without a limit for whole requests, which would be too long for small ones or too short
/// for large ones.
fn client() -> ClientOptions {
    ClientOptions::new().with_connect_timeout(CONNECT_MAX).with_timeout_disabled()
}

fn is_loopback(endpoint: &str) -> bool {
    Url::parse(endpoint).is_ok_and(|url| match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    })
}

#[cfg(test)]
mod tests;
