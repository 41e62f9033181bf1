//! How an S3-compatible store is reached: the user's `--storage-option`s over the usual AWS variables, with defaults,
//! in one set of names for both versions of `object_store`. No request is made here, but for the region of a bucket.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::ClientOptions;
use object_store::aws::AmazonS3ConfigKey;
use object_store_df::aws::{AmazonS3Builder, AmazonS3ConfigKey as DfKey};

use crate::error::{Result, StorageError};

/// The region where none is said and none can be found out.
const REGION: &str = "us-east-1";

/// How long the region of an AWS bucket is looked for.
const REGION_TIMEOUT: Duration = Duration::from_secs(4);

/// Names that Lance understands beside those of `object_store`.
const LANCE_KEYS: [&str; 4] = ["client_max_retries", "client_retry_timeout", "download_retry_count", "block_size"];

/// Options by their canonical names (`aws_endpoint`, `aws_region`, …). Holds secrets: never print it.
#[derive(Clone, Default)]
pub(crate) struct S3Settings {
    values: BTreeMap<String, String>,
}

impl std::fmt::Debug for S3Settings {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_set().entries(self.values.keys()).finish()
    }
}

impl S3Settings {
    /// The AWS variables of the environment, overridden by `options`.
    ///
    /// # Errors
    /// [`StorageError::Invalid`] for an option that nobody would read.
    pub(crate) fn new(options: &[(String, String)]) -> Result<Self> {
        let environment = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(key, value)| key.starts_with("AWS_") && !value.is_empty());
        Self::from_parts(environment, options)
    }

    fn from_parts(environment: impl Iterator<Item = (String, String)>, options: &[(String, String)]) -> Result<Self> {
        let mut settings = Self::default();
        for (key, value) in environment {
            if let Some(name) = canonical(&key) {
                settings.values.insert(name, value);
            }
        }
        settings.with(options)
    }

    /// These settings, overridden by `options`.
    pub(crate) fn with(mut self, options: &[(String, String)]) -> Result<Self> {
        for (key, value) in options {
            let name = canonical(key).ok_or_else(|| {
                StorageError::invalid(format!(
                    "storage option {key} is not known; use for example endpoint, region, access_key_id, \
                     secret_access_key, session_token or allow_http"
                ))
            })?;
            self.values.insert(name, value.clone());
        }
        Ok(self)
    }

    /// Adds what follows from the rest: plain HTTP for an `http://` endpoint, and a region.
    pub(crate) async fn complete(&self, bucket: &str) -> Result<Self> {
        let mut settings = self.clone();
        settings.allow_http();
        let region = AmazonS3ConfigKey::Region.as_ref();
        if !settings.values.contains_key(region) {
            let found = match settings.values.get(AmazonS3ConfigKey::DefaultRegion.as_ref()) {
                Some(default) => default.clone(),
                None if settings.endpoint().is_some() => REGION.to_owned(),
                None => region_of(bucket).await,
            };
            settings.values.insert(region.to_owned(), found);
        }
        Ok(settings)
    }

    /// For Lance's storage options.
    pub(crate) fn to_map(&self) -> HashMap<String, String> {
        self.values.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// A store of `bucket` for DataFusion's readers and writers.
    pub(crate) fn datafusion_store(&self, bucket: &str) -> Result<Arc<dyn object_store_df::ObjectStore>> {
        let mut settings = self.clone();
        settings.allow_http();
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
        if !settings.values.contains_key(AmazonS3ConfigKey::Region.as_ref())
            && !settings.values.contains_key(AmazonS3ConfigKey::DefaultRegion.as_ref())
        {
            builder = builder.with_region(REGION);
        }
        for (key, value) in &settings.values {
            if let Ok(key) = DfKey::from_str(key) {
                builder = builder.with_config(key, value);
            }
        }
        if let Some(endpoint) = settings.endpoint() {
            builder = builder.with_config(DfKey::Endpoint, endpoint);
        }
        let store = builder.build().map_err(|error| {
            StorageError::invalid(format!("cannot use bucket {bucket}: {error}; check the storage options"))
        })?;
        Ok(Arc::new(store))
    }

    /// The server to ask, where it is not AWS.
    pub(crate) fn endpoint(&self) -> Option<&String> {
        self.values
            .get(AmazonS3ConfigKey::S3Endpoint.as_ref())
            .or_else(|| self.values.get(AmazonS3ConfigKey::Endpoint.as_ref()))
    }

    /// An endpoint that says `http://` was meant that way.
    fn allow_http(&mut self) {
        if self.endpoint().is_some_and(|endpoint| endpoint.starts_with("http://")) {
            self.values.entry("allow_http".to_owned()).or_insert_with(|| "true".to_owned());
        }
    }
}

fn canonical(key: &str) -> Option<String> {
    let lower = key.to_ascii_lowercase();
    if LANCE_KEYS.contains(&lower.as_str()) {
        return Some(lower);
    }
    AmazonS3ConfigKey::from_str(&lower).ok().map(|key| key.as_ref().to_owned())
}

async fn region_of(bucket: &str) -> String {
    let options = ClientOptions::new();
    let asked = object_store::aws::resolve_bucket_region(bucket, &options);
    match tokio::time::timeout(REGION_TIMEOUT, asked).await {
        Ok(Ok(region)) => region,
        Ok(Err(_)) | Err(_) => REGION.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[tokio::test]
    async fn options_win_over_the_environment_whatever_their_spelling() {
        let environment =
            pairs(&[("AWS_ENDPOINT_URL", "https://a"), ("AWS_ACCESS_KEY_ID", "k"), ("AWS_PAGER", "less")]);
        let options = pairs(&[("endpoint", "http://b:1")]);
        let settings = S3Settings::from_parts(environment.into_iter(), &options).unwrap();
        let map = settings.complete("bucket").await.unwrap().to_map();
        assert_eq!(map.get("aws_endpoint").map(String::as_str), Some("http://b:1"));
        assert_eq!(map.get("aws_access_key_id").map(String::as_str), Some("k"));
        assert_eq!(map.get("allow_http").map(String::as_str), Some("true"));
        assert_eq!(map.get("aws_region").map(String::as_str), Some("us-east-1"));
        assert_eq!(map.len(), 4);
    }

    #[test]
    fn an_option_that_nobody_reads_is_refused() {
        let error = S3Settings::from_parts(std::iter::empty(), &pairs(&[("endpont", "x")])).unwrap_err();
        assert!(error.to_string().contains("endpont"), "{error}");
    }

    #[test]
    fn secrets_do_not_appear_in_debug_output() {
        let settings = S3Settings::from_parts(std::iter::empty(), &pairs(&[("secret_access_key", "hunter2")])).unwrap();
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
