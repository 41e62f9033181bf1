//! The object stores of DataFusion's own readers and writers (COPY, external tables), which use another version of
//! `object_store` than Lance. Only schemes that Sagitta supports are served; everything else is an error.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::common::exec_datafusion_err;
use datafusion::error::{DataFusionError, Result as DfResult};
use datafusion::execution::object_store::ObjectStoreRegistry;
use object_store_df::ObjectStore;
use object_store_df::local::LocalFileSystem;
use url::Url;

use crate::error::StorageError;
use crate::s3::S3Settings;

/// Builds `s3://bucket` stores when they are first asked for, with the database's own credentials, and keeps them.
#[derive(Debug)]
pub(crate) struct Registry {
    s3: S3Settings,
    local: Arc<dyn ObjectStore>,
    stores: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
}

impl Registry {
    pub(crate) fn new(s3: S3Settings) -> Self {
        Self { s3, local: Arc::new(LocalFileSystem::new()), stores: Mutex::new(HashMap::new()) }
    }
}

impl ObjectStoreRegistry for Registry {
    fn register_store(&self, url: &Url, store: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        stores.insert(key(url), store)
    }

    fn deregister_store(&self, url: &Url) -> DfResult<Arc<dyn ObjectStore>> {
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        stores.remove(&key(url)).ok_or_else(|| exec_datafusion_err!("no object store is registered for {url}"))
    }

    fn get_store(&self, url: &Url) -> DfResult<Arc<dyn ObjectStore>> {
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = stores.get(&key(url)) {
            return Ok(store.clone());
        }
        match (url.scheme(), url.host_str()) {
            ("file", _) => Ok(self.local.clone()),
            ("s3", Some(bucket)) => {
                let store = self.s3.datafusion_store(bucket)?;
                stores.insert(key(url), store.clone());
                Ok(store)
            }
            (scheme, _) => Err(DataFusionError::from(StorageError::unsupported(format!(
                "files cannot be read from or written to {scheme}://; use a path or s3://bucket/…"
            )))),
        }
    }
}

fn key(url: &Url) -> String {
    format!("{}://{}", url.scheme(), url.authority())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_files_and_buckets_are_served_and_other_schemes_are_named_in_the_error() {
        let options = [("region".to_owned(), "us-east-1".to_owned())];
        let registry = Registry::new(S3Settings::default().with(&options).unwrap());
        let get = |text: &str| registry.get_store(&Url::parse(text).unwrap());
        assert!(get("file:///tmp/x").is_ok());
        assert!(get("s3://bucket/x").is_ok());
        assert!(Arc::ptr_eq(&get("s3://bucket/x").unwrap(), &get("s3://bucket/y").unwrap()));
        let error = get("http://example.com/x").unwrap_err().to_string();
        assert!(error.contains("http://"), "{error}");
    }
}
