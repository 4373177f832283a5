//! A store in memory, for tests and simulation.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::store::{check_key, check_prefix, cut, too_large};
use crate::{Error, ObjectMeta, Payload, Put, Result, Store};

/// A store in memory. Clones share the same objects.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    objects: Arc<Mutex<BTreeMap<String, Bytes>>>,
}

impl MemoryStore {
    /// Changes the bytes of an object behind everybody's back, as a damaged disk would; creates it if
    /// it does not exist.
    pub fn tamper(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut objects = self.lock();
        if !objects.contains_key(key) {
            objects.insert(key.to_owned(), Bytes::new());
        }
        if let Some(object) = objects.get_mut(key) {
            // Copied only if somebody still reads it.
            let mut bytes = Vec::from(std::mem::take(object));
            change(&mut bytes);
            *object = bytes.into();
        }
    }

    /// The keys of all objects, sorted.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// The bytes of an object.
    #[must_use]
    pub fn peek(&self, key: &str) -> Option<Bytes> {
        self.lock().get(key).cloned()
    }

    /// A copy that shares nothing with this store.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { objects: Arc::new(Mutex::new(self.lock().clone())) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, key: &str) -> Result<Bytes> {
        check_key(key)?;
        self.peek(key).ok_or_else(|| Error::not_found("no such object").with_object(key))
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn location(&self) -> String {
        "memory:".into()
    }

    async fn put_if_absent(&self, key: &str, payload: Payload) -> Result<Put> {
        check_key(key)?;
        let mut objects = self.lock();
        if objects.contains_key(key) {
            return Ok(Put::Exists);
        }
        objects.insert(key.to_owned(), payload.to_bytes());
        Ok(Put::Created)
    }

    async fn get(&self, key: &str, bytes_max: u64) -> Result<Bytes> {
        let bytes = self.find(key)?;
        if bytes.len() as u64 > bytes_max {
            return Err(too_large(key, bytes.len() as u64, bytes_max));
        }
        Ok(bytes)
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let bytes = self.find(key)?;
        let range = cut(key, bytes.len() as u64, &range)?;
        Ok(bytes.slice(range))
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        check_key(key)?;
        Ok(self.peek(key).map(|bytes| bytes.len() as u64))
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectMeta>> {
        check_prefix(prefix)?;
        let objects = self.lock();
        Ok(objects
            .iter()
            .filter(|(key, _)| key.starts_with(prefix))
            .filter(|(key, _)| after.is_none_or(|after| key.as_str() > after))
            .map(|(key, bytes)| ObjectMeta { key: key.clone(), bytes: bytes.len() as u64 })
            .collect())
    }

    async fn delete(&self, key: &str) -> Result<()> {
        check_key(key)?;
        self.lock().remove(key);
        Ok(())
    }
}
