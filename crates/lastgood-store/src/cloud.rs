//! S3, GCS and Azure, through `object_store`.

use std::collections::BTreeMap;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};
use url::Url;

use crate::store::{check_key, check_prefix, too_large};
use crate::{Error, ErrorKind, ObjectMeta, Payload, Put, Result, Store};

/// A bucket or container, or a prefix in one.
///
/// It makes each request once: put a [`RetryStore`](crate::RetryStore) around it.
#[derive(Debug)]
pub struct CloudStore {
    location: String,
    prefix: String,
    store: Box<dyn ObjectStore>,
}

impl CloudStore {
    /// Opens `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`. `options` are the
    /// names that `object_store` knows, such as `aws_endpoint_url`.
    ///
    /// Plain HTTP is allowed to this machine's loopback addresses alone, unless `options` say
    /// `allow_http=true`.
    ///
    /// # Errors
    /// `Invalid` if the URL or an option is wrong, or this build lacks the feature for the scheme.
    pub fn open(url: &str, options: &BTreeMap<String, String>) -> Result<Self> {
        // An error says that the process has a provider already, which serves as well.
        rustls::crypto::ring::default_provider().install_default().ok();
        let parsed = Url::parse(url).map_err(|e| Error::invalid(format!("{url:?}: {e}")))?;
        let mut settings: Vec<(String, String)> =
            options.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let endpoint = options
            .iter()
            .find(|(name, _)| name.ends_with("endpoint") || name.ends_with("endpoint_url"));
        if let Some((_, endpoint)) = endpoint
            && is_loopback(endpoint)
        {
            settings.push(("allow_http".into(), "true".into()));
        }
        for (name, value) in [("connect_timeout", "5 seconds"), ("timeout", "60 seconds")] {
            if !options.contains_key(name) {
                settings.push((name.into(), value.into()));
            }
        }
        let (store, path) = object_store::parse_url_opts(&parsed, settings)
            .map_err(|e| Error::invalid(format!("cannot open {url:?}: {e}")))?;
        let prefix = match path.as_ref() {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        Ok(Self { location: url.to_owned(), prefix, store })
    }

    fn path(&self, key: &str) -> Result<Path> {
        check_key(key)?;
        Ok(Path::from(format!("{}{key}", self.prefix)))
    }

    async fn read(&self, key: &str, range: Option<Range<u64>>, bytes_max: u64) -> Result<Bytes> {
        let path = self.path(key)?;
        let options =
            GetOptions { range: range.clone().map(GetRange::Bounded), ..GetOptions::default() };
        let found = self.store.get_opts(&path, options).await.map_err(|e| error(key, e))?;
        let found_range = found.range.clone();
        let bytes = found_range.end - found_range.start;
        if bytes > bytes_max {
            return Err(too_large(key, bytes, bytes_max));
        }
        if range.as_ref().is_some_and(|range| *range != found_range) {
            return Err(Error::corrupt(format!(
                "asked for bytes {range:?}, the object has {found_range:?}"
            ))
            .with_object(key));
        }
        let body = found.bytes().await.map_err(|e| error(key, e))?;
        if body.len() as u64 != bytes {
            return Err(Error::unavailable(format!(
                "expected {bytes} bytes, the answer ended after {}",
                body.len()
            ))
            .with_object(key));
        }
        Ok(body)
    }
}

fn is_loopback(endpoint: &str) -> bool {
    Url::parse(endpoint).is_ok_and(|url| match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    })
}

fn error(key: &str, error: object_store::Error) -> Error {
    use object_store::Error as E;
    let text = error.to_string();
    let (kind, remedy) = match error {
        E::NotFound { .. } => (ErrorKind::NotFound, None),
        E::InvalidPath { .. } | E::NotSupported { .. } | E::UnknownConfigurationKey { .. } => {
            (ErrorKind::Invalid, None)
        }
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
            (ErrorKind::Denied, Some("check the credentials and their rights to the bucket"))
        }
        _ if text.contains("416") || text.contains("InvalidRange") => (ErrorKind::Corrupt, None),
        _ => (ErrorKind::Unavailable, None),
    };
    let error = Error::new(kind, text).with_object(key);
    match remedy {
        Some(remedy) => error.with_remedy(remedy),
        None => error,
    }
}

#[async_trait]
impl Store for CloudStore {
    fn location(&self) -> String {
        self.location.clone()
    }

    async fn put_if_absent(&self, key: &str, payload: Payload) -> Result<Put> {
        let path = self.path(key)?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let payload: PutPayload = payload.parts().iter().cloned().collect();
        match self.store.put_opts(&path, payload, options).await {
            Ok(_) => Ok(Put::Created),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(Put::Exists),
            Err(e) => Err(error(key, e)),
        }
    }

    async fn get(&self, key: &str, bytes_max: u64) -> Result<Bytes> {
        self.read(key, None, bytes_max).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        if range.start > range.end {
            return Err(Error::invalid(format!("{range:?} is no range")).with_object(key));
        }
        if range.is_empty() {
            let bytes = self.size(key).await?;
            let bytes = bytes.ok_or_else(|| Error::not_found("no such object").with_object(key))?;
            crate::store::cut(key, bytes, &range)?;
            return Ok(Bytes::new());
        }
        let bytes = range.end - range.start;
        self.read(key, Some(range), bytes).await
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        let path = self.path(key)?;
        match self.store.head(&path).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(error(key, e)),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectMeta>> {
        check_prefix(prefix)?;
        // The interface lists whole folders: list the folder and keep what the prefix begins.
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let folder = Path::from(format!("{}{folder}", self.prefix));
        let folder = (!folder.as_ref().is_empty()).then_some(folder);
        let mut found: Vec<ObjectMeta> = self
            .store
            .list(folder.as_ref())
            .map_ok(|meta| (meta.location.to_string(), meta.size))
            .try_collect::<Vec<_>>()
            .await
            .map_err(|e| error(prefix, e))?
            .into_iter()
            .filter_map(|(path, bytes)| {
                let key = path.strip_prefix(&self.prefix)?.to_owned();
                Some(ObjectMeta { key, bytes })
            })
            .filter(|object| object.key.starts_with(prefix))
            .filter(|object| after.is_none_or(|after| object.key.as_str() > after))
            .collect();
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let path = self.path(key)?;
        match self.store.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(error(key, e)),
        }
    }
}
