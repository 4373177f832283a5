//! S3, GCS and Azure, through `object_store`.

mod failure;
mod open;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, GetResult, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};

use crate::store::{check_key, check_prefix, cut, is_key, too_large};
use crate::{Error, ObjectMeta, Payload, Put, Result, Store, Transfers};

/// How long a store may take to answer a request, and to send the next part of an answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// A link that is slower than this many bytes in a second takes too long for any put.
const UPLOAD_RATE_MIN: u64 = 256 << 10;

/// A bucket or container, or a prefix in one.
///
/// It makes each request once, and gives up a request that makes no progress: put a
/// [`RetryStore`](crate::RetryStore) around it. The connections of one store are kept open and used
/// again; they belong to the tokio runtime that made them, so use a store on one runtime.
#[derive(Debug)]
pub struct CloudStore {
    location: String,
    prefix: String,
    store: Box<dyn ObjectStore>,
    /// How long the store may be silent.
    patience: Duration,
}

impl CloudStore {
    /// Opens `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`. `options` are the
    /// names that `object_store` knows, such as `aws_endpoint_url`. No request is made.
    ///
    /// Options whose names begin with `aws_`, `google_` or `azure_` may be meant for other programs, as
    /// variables of the environment are, and are ignored if nothing is known of them.
    ///
    /// Plain HTTP is allowed to this machine's loopback addresses alone, unless `options` say
    /// `allow_http=true`.
    ///
    /// # Errors
    /// `Invalid` if the URL or an option is wrong, or this build lacks the feature for the scheme.
    pub fn open(url: &str, options: &BTreeMap<String, String>) -> Result<Self> {
        let (store, path) = open::open(url, options)?;
        let prefix = match path.as_ref() {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        Ok(Self { location: url.to_owned(), prefix, store, patience: ANSWER_MAX })
    }

    fn path(&self, key: &str) -> Result<Path> {
        check_key(key)?;
        self.path_of(key)
    }

    /// The path of a key or of a folder. It is taken as it is, since the prefix is: `Path::from` would
    /// encode some of its characters once more.
    fn path_of(&self, key: &str) -> Result<Path> {
        Path::parse(format!("{}{key}", self.prefix))
            .map_err(|e| Error::invalid(format!("no path of an object: {e}")).with_object(key))
    }

    /// The beginning of an answer with the bytes `range` of the object, or all of it.
    async fn request(&self, key: &str, range: Option<Range<u64>>) -> Result<GetResult> {
        let path = self.path(key)?;
        let options =
            GetOptions { range: range.clone().map(GetRange::Bounded), ..GetOptions::default() };
        let found = in_time(key, self.patience, self.store.get_opts(&path, options)).await?;
        let found = found.map_err(|e| failure::of(key, "read", &e))?;
        if let Some(range) = range.filter(|range| *range != found.range) {
            return Err(Error::corrupt(format!(
                "bytes {range:?} are expected, the object has {:?} of them",
                found.range
            ))
            .with_object(key));
        }
        Ok(found)
    }

    /// Passes the body of an answer on, part by part; it must have as many bytes as its head says.
    async fn body(
        &self,
        key: &str,
        found: GetResult,
        mut take: impl FnMut(&[u8]) + Send,
    ) -> Result<()> {
        let bytes = found.range.end - found.range.start;
        let mut left = bytes;
        let mut parts = found.into_stream();
        while let Some(part) = in_time(key, self.patience, parts.try_next())
            .await?
            .map_err(|e| failure::of(key, "read", &e))?
        {
            let Some(rest) = left.checked_sub(part.len() as u64) else {
                return Err(Error::unavailable(format!(
                    "the answer is longer than its {bytes} bytes"
                ))
                .with_object(key));
            };
            left = rest;
            take(&part);
        }
        if left > 0 {
            return Err(Error::unavailable(format!(
                "{bytes} bytes are expected, the answer ended after {}",
                bytes - left
            ))
            .with_object(key));
        }
        Ok(())
    }

    async fn whole(&self, key: &str, found: GetResult) -> Result<Bytes> {
        let mut bytes = Vec::with_capacity((found.range.end - found.range.start) as usize);
        self.body(key, found, |part| bytes.extend_from_slice(part)).await?;
        Ok(bytes.into())
    }

    /// True if no request can tell more of `range` than the size of the object does.
    fn is_empty_or_absurd(range: &Range<u64>) -> bool {
        range.is_empty() || range.end > i64::MAX as u64
    }

    async fn cut(&self, key: &str, range: &Range<u64>) -> Result<Range<usize>> {
        let bytes = self.size(key).await?;
        let bytes = bytes.ok_or_else(|| Error::not_found("no such object").with_object(key))?;
        cut(key, bytes, range)
    }
}

/// Waits for an answer, but not for ever.
async fn in_time<T>(key: &str, longest: Duration, call: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(longest, call).await.map_err(|_| {
        Error::unavailable(format!("the store did not answer within {} s", longest.as_secs()))
            .with_object(key)
            .with_remedy("check the network and the endpoint")
    })
}

/// The longest that a put of so many bytes takes on the slowest link that will do.
fn upload_max(bytes: u64) -> Duration {
    Duration::from_secs(bytes / UPLOAD_RATE_MIN)
}

#[async_trait]
impl Store for CloudStore {
    fn location(&self) -> String {
        self.location.clone()
    }

    /// A request waits for the network, and one connection carries a part of what the network does.
    fn transfers(&self) -> Transfers {
        Transfers { reads: 12, read_bytes: 8 << 20, puts: 4 }
    }

    async fn put_if_absent(&self, key: &str, payload: Payload) -> Result<Put> {
        let path = self.path(key)?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let longest = self.patience + upload_max(payload.len());
        let payload: PutPayload = payload.parts().iter().cloned().collect();
        match in_time(key, longest, self.store.put_opts(&path, payload, options)).await? {
            Ok(_) => Ok(Put::Created),
            Err(e) if failure::says_exists(&e) => Ok(Put::Exists),
            Err(e) => Err(failure::of_put(key, &e)),
        }
    }

    async fn get(&self, key: &str, bytes_max: u64) -> Result<Bytes> {
        let found = self.request(key, None).await?;
        let bytes = found.range.end - found.range.start;
        if bytes > bytes_max {
            return Err(too_large(key, bytes, bytes_max));
        }
        self.whole(key, found).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        if Self::is_empty_or_absurd(&range) {
            self.cut(key, &range).await?;
            return Ok(Bytes::new());
        }
        let found = self.request(key, Some(range)).await?;
        self.whole(key, found).await
    }

    async fn read_into(&self, key: &str, offset: u64, target: &mut [u8]) -> Result<()> {
        let range = offset..offset.saturating_add(target.len() as u64);
        if Self::is_empty_or_absurd(&range) {
            self.cut(key, &range).await?;
            return Ok(());
        }
        let found = self.request(key, Some(range)).await?;
        let mut at = 0;
        self.body(key, found, |part| {
            target[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        })
        .await
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        let path = self.path(key)?;
        match in_time(key, self.patience, self.store.head(&path)).await? {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(failure::of(key, "look at", &e)),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectMeta>> {
        check_prefix(prefix)?;
        // The interface lists whole folders: list the folder and keep what the prefix begins.
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let folder = self.path_of(folder)?;
        let folder = (!folder.as_ref().is_empty()).then_some(folder);
        let mut pages = match after.filter(|after| is_key(after)) {
            Some(after) => self.store.list_with_offset(folder.as_ref(), &self.path_of(after)?),
            None => self.store.list(folder.as_ref()),
        };
        let mut found = Vec::new();
        while let Some(meta) = in_time(prefix, self.patience, pages.try_next())
            .await?
            .map_err(|e| failure::of(prefix, "list", &e))?
        {
            let Some(key) = meta.location.as_ref().strip_prefix(&self.prefix) else { continue };
            let is_after = after.is_none_or(|after| key > after);
            if is_key(key) && key.starts_with(prefix) && is_after {
                found.push(ObjectMeta { key: key.to_owned(), bytes: meta.size });
            }
        }
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let path = self.path(key)?;
        match in_time(key, self.patience, self.store.delete(&path)).await? {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(failure::of(key, "delete", &e)),
        }
    }
}

#[cfg(test)]
#[cfg(feature = "s3")]
mod tests;
