//! Where a database or a foreign table lives: a folder of this machine, a prefix of an S3-compatible store, or this
//! process's memory, and how each is spelt for users and for Lance. Nothing is opened here.

use std::path::{Component, Path, PathBuf};

use url::Url;
use uuid::Uuid;

use crate::error::{Result, StorageError};

/// The spelling of a fresh in-memory database.
const MEMORY: &str = "memory:";

/// A parsed location. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// An absolute folder, symbolic links resolved as far as it exists.
    Local(PathBuf),
    /// `s3://bucket/prefix`, without a slash at the end.
    S3 { bucket: String, prefix: String },
    /// A database that lives and dies with its handle.
    Memory(Uuid),
}

impl Location {
    /// Parses what a user gives: a path, `file://…`, `s3://bucket/prefix` or `memory:`.
    ///
    /// # Errors
    /// [`StorageError::Invalid`] for an unknown scheme or a malformed URL.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.is_empty() {
            return Err(StorageError::invalid("the location is empty; give a folder, s3://bucket/prefix or memory:"));
        }
        if text == MEMORY || text == "memory://" || text == ":memory:" {
            return Ok(Self::Memory(Uuid::new_v4()));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::Local(absolute(Path::new(text))?));
        };
        match scheme.to_ascii_lowercase().as_str() {
            "file" => {
                let url = Url::parse(text)
                    .map_err(|error| StorageError::invalid(format!("location {text} is no valid URL: {error}")))?;
                let path = url.to_file_path().map_err(|()| {
                    StorageError::invalid(format!("location {text} names another machine; use file:///absolute/path"))
                })?;
                Ok(Self::Local(absolute(&path)?))
            }
            "s3" => parse_s3(text, rest),
            other => Err(StorageError::invalid(format!(
                "location {text} has the unknown scheme {other}; use a folder, s3://bucket/prefix or memory:"
            ))),
        }
    }

    /// The location as shown to users.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Local(path) => path.display().to_string(),
            Self::S3 { bucket, prefix } if prefix.is_empty() => format!("s3://{bucket}"),
            Self::S3 { bucket, prefix } => format!("s3://{bucket}/{prefix}"),
            Self::Memory(_) => MEMORY.to_owned(),
        }
    }

    /// The URI under which Lance opens `relative` (parts joined by `/`, may be empty) below this location.
    ///
    /// Local folders get the scheme that sends every byte through the object-store interface: under `file://` Lance
    /// writes past it and never syncs.
    pub(crate) fn lance_uri(&self, relative: &str) -> Result<String> {
        match self {
            Self::Local(path) => {
                let full = if relative.is_empty() { path.clone() } else { path.join(relative) };
                let url = Url::from_file_path(&full)
                    .map_err(|()| StorageError::invalid(format!("{} is no absolute path", full.display())))?;
                Ok(url.as_str().replacen("file://", "file-object-store://", 1))
            }
            Self::S3 { bucket, prefix } => Ok(join_url(&format!("s3://{bucket}"), prefix, relative)),
            Self::Memory(id) => Ok(join_url(&format!("shared-memory://{}", id.simple()), "", relative)),
        }
    }
}

fn parse_s3(text: &str, rest: &str) -> Result<Location> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() || bucket.contains(['?', '#', '@', ':', ' ']) {
        return Err(StorageError::invalid(format!("location {text} names no bucket; write s3://bucket/prefix")));
    }
    let parts: Vec<&str> = prefix.split('/').filter(|part| !part.is_empty()).collect();
    let is_plain = |part: &&str| {
        *part != "."
            && *part != ".."
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.=+".contains(&byte))
    };
    if !parts.iter().all(is_plain) {
        return Err(StorageError::invalid(format!(
            "location {text} has a prefix with special characters; use letters, digits and - _ . = + only"
        )));
    }
    Ok(Location::S3 { bucket: bucket.to_owned(), prefix: parts.join("/") })
}

fn join_url(root: &str, prefix: &str, relative: &str) -> String {
    [root, prefix, relative].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
}

/// Makes a path absolute and resolves links and `..` as far as it exists; the rest must be plain names.
fn absolute(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path)
        .map_err(|error| StorageError::from_io(format!("cannot use the path {}", path.display()), error))?;
    let mut existing = path.as_path();
    let mut missing: Vec<&std::ffi::OsStr> = Vec::new();
    loop {
        match existing.canonicalize() {
            Ok(mut resolved) => {
                resolved.extend(missing.iter().rev());
                return Ok(resolved);
            }
            Err(error) => {
                let last = existing.components().next_back();
                match (last, existing.parent()) {
                    (Some(Component::Normal(name)), Some(parent)) if error.kind() == std::io::ErrorKind::NotFound => {
                        missing.push(name);
                        existing = parent;
                    }
                    _ => {
                        return Err(StorageError::from_io(format!("cannot use the path {}", path.display()), error));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_recognised_by_their_form() {
        let shown = |text: &str| Location::parse(text).map(|location| location.shown()).map_err(|e| e.to_string());
        let check = |text: &str, expected: &str| assert_eq!(shown(text).as_deref(), Ok(expected), "{text}");
        check("s3://b", "s3://b");
        check("s3://b/", "s3://b");
        check("s3://b/a//c/", "s3://b/a/c");
        check("memory:", "memory:");
        check("file:///no-such-folder/x%20y", "/no-such-folder/x y");
        check("/no-such-folder/x/", "/no-such-folder/x");
        for bad in ["", "s3://", "s3:///x", "http://x/y", "s3://b/a b", "s3://b/../c"] {
            assert!(shown(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lance_gets_a_scheme_that_cannot_bypass_the_store() {
        let uri = |text: &str, relative: &str| Location::parse(text).and_then(|l| l.lance_uri(relative)).ok();
        assert_eq!(
            uri("/no-such-folder/a b", "public/t.lance").as_deref(),
            Some("file-object-store:///no-such-folder/a%20b/public/t.lance")
        );
        assert_eq!(uri("s3://b/p", "public/t.lance").as_deref(), Some("s3://b/p/public/t.lance"));
        assert_eq!(uri("s3://b", "").as_deref(), Some("s3://b"));
    }
}
