//! Opening a store by its URL.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use url::Url;

use crate::{Env, Error, LocalStore, MemoryStore, Result, Store};

/// Opens the store that `url` names: an absolute or relative path, `file:///…`, `memory:`,
/// `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
///
/// `options` are the store's settings by name, such as `aws_access_key_id`; this crate reads no
/// environment.
///
/// # Errors
/// `Invalid` if the URL is none of these, or this build lacks its feature; those of opening the store.
pub fn open_url(
    url: &str,
    options: &BTreeMap<String, String>,
    env: &Arc<dyn Env>,
) -> Result<Arc<dyn Store>> {
    let Some((scheme, rest)) = url.split_once(':').filter(|(scheme, _)| is_scheme(scheme)) else {
        return Ok(Arc::new(LocalStore::open(absolute(url)?)?));
    };
    match scheme {
        "memory" => Ok(Arc::new(MemoryStore::default())),
        "file" => {
            let path = Url::parse(url).ok().and_then(|url| url.to_file_path().ok());
            let path = path.ok_or_else(|| {
                Error::invalid(format!("{url:?} is no file URL"))
                    .with_remedy("write file:///absolute/path, or the path alone")
            })?;
            Ok(Arc::new(LocalStore::open(path)?))
        }
        "s3" | "gs" | "az" => remote(url, options, env),
        _ => Err(Error::invalid(format!("{url:?}: there is no store of kind {scheme:?} ({rest})"))
            .with_remedy("use a path, file:, s3:, gs:, az: or memory:")),
    }
}

fn is_scheme(text: &str) -> bool {
    text.len() > 1 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

fn absolute(path: &str) -> Result<PathBuf> {
    if path.is_empty() {
        return Err(Error::invalid("the store's path is empty"));
    }
    std::path::absolute(path).map_err(|e| Error::invalid(format!("{path:?} is no path: {e}")))
}

#[cfg(feature = "cloud")]
fn remote(
    url: &str,
    options: &BTreeMap<String, String>,
    env: &Arc<dyn Env>,
) -> Result<Arc<dyn Store>> {
    let store = crate::cloud::CloudStore::open(url, options)?;
    let store = crate::hedge::HedgedStore::new(store, Arc::clone(env));
    Ok(Arc::new(crate::retry::RetryStore::new(store, Arc::clone(env))))
}

#[cfg(not(feature = "cloud"))]
fn remote(url: &str, _: &BTreeMap<String, String>, _: &Arc<dyn Env>) -> Result<Arc<dyn Store>> {
    Err(Error::invalid(format!("{url:?}: this build has no object stores"))
        .with_remedy("build with the feature s3, gcs or azure"))
}
