//! Where statements may read and write files: the allowed roots, and the one spelling of a path or URL in which it is
//! compared with them. What is checked here is what is opened: callers go on with the spelling that comes back.
//!
//! Nothing here tells whether a file outside of the roots exists. `..` is taken away before any link is followed.

use std::ffi::OsStr;
use std::io::ErrorKind as IoErrorKind;
use std::path::{Component, Path, PathBuf};

use url::Url;

use crate::files::has_glob;
use crate::{Error, ErrorKind, Result};

/// Options of a foreign dataset's store that choose no other server and name no file.
const STORE_OPTIONS: &[&str] =
    &["access_key_id", "secret_access_key", "session_token", "token", "region", "default_region", "skip_signature"];

/// The folders and URLs under which statements may read and write files.
#[derive(Debug)]
pub(crate) struct AllowedRoots {
    roots: Vec<Place>,
    /// The database itself, which no statement reads or writes as files.
    own: Option<Place>,
}

/// What somebody wrote, told apart.
enum Written {
    /// An absolute path without `.` and `..`.
    Path(PathBuf),
    Url(Url),
}

/// Where files are, in the one spelling of it.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// A path whose links are resolved.
    Local(PathBuf),
    /// A prefix in an object store: the decoded parts of its path.
    Remote { scheme: String, host: String, parts: Vec<String> },
}

impl AllowedRoots {
    /// # Errors
    /// A root that is no folder and no URL.
    pub(crate) fn new(roots: &[String]) -> Result<Self> {
        let root = |text: &String| {
            let place = if text.trim().is_empty() { None } else { place_of(text) };
            place.ok_or_else(|| {
                Error::invalid(format!(
                    "the allowed root \"{text}\" is no folder and no URL such as s3://bucket/prefix"
                ))
            })
        };
        Ok(Self { roots: roots.iter().map(root).collect::<Result<_>>()?, own: None })
    }

    /// The same roots without the place of the database.
    ///
    /// # Errors
    /// A location that is none.
    pub(crate) fn without(mut self, database: &str) -> Result<Self> {
        if database != "memory:" {
            let failed = || Error::new(ErrorKind::Internal, format!("{database} cannot be kept from statements"));
            self.own = Some(place_of(database).ok_or_else(failed)?);
        }
        Ok(self)
    }

    /// What a statement names to read, in the one spelling: a path, which may be a pattern, or a URL.
    ///
    /// # Errors
    /// [`ErrorKind::Forbidden`] if it is not under a root.
    pub(crate) fn source(&self, text: &str) -> Result<String> {
        let spelled = match written(text) {
            Some(Written::Path(path)) => self.pattern(&path),
            Some(Written::Url(url)) => self.url(&url),
            None => None,
        };
        spelled.map(|spelled| with_slash_of(text, spelled)).ok_or_else(|| self.forbid(text))
    }

    /// What a statement names to write to, as a URL.
    ///
    /// # Errors
    /// [`ErrorKind::Forbidden`] if it is not under a root.
    pub(crate) fn target(&self, text: &str) -> Result<String> {
        let spelled = match written(text) {
            Some(Written::Path(path)) => self.path(&path).and_then(|path| {
                let is_folder = text.ends_with('/') || path.is_dir();
                let url = if is_folder { Url::from_directory_path(path) } else { Url::from_file_path(path) };
                url.ok().map(String::from)
            }),
            Some(Written::Url(url)) => self.url(&url).map(|spelled| with_slash_of(text, spelled)),
            None => None,
        };
        spelled.ok_or_else(|| self.forbid(text))
    }

    /// The error for what is not under a root, or leads out of it.
    pub(crate) fn forbid(&self, text: &str) -> Error {
        Error::new(
            ErrorKind::Forbidden,
            format!(
                "\"{text}\" is neither read nor written here: it is not under a folder or URL that the option allowed_roots \
                 of the server names, leads out of them, or is in the database itself"
            ),
        )
    }

    /// # Errors
    /// [`ErrorKind::Forbidden`] if a file that was found in a folder or by a pattern is not under a root: links may lead
    /// out of it.
    pub(crate) fn check_found(&self, path: &Path) -> Result<()> {
        match self.path(path) {
            Some(_) => Ok(()),
            None => Err(self.forbid(&path.to_string_lossy())),
        }
    }

    /// # Errors
    /// [`ErrorKind::Forbidden`] for an option that leads to another server, or makes this one read a file or ask somebody
    /// for credentials.
    pub(crate) fn check_options(&self, options: &[(String, String)]) -> Result<()> {
        for (key, value) in options {
            let key = key.to_lowercase();
            let name = key.strip_prefix("aws_").unwrap_or(&key);
            // The name of a region becomes a part of the name of a server.
            let is_plain = value.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-');
            if !STORE_OPTIONS.contains(&name) || (name.ends_with("region") && !is_plain) {
                return Err(Error::new(
                    ErrorKind::Forbidden,
                    format!(
                        "the option {key} is not taken from statements here, where allowed_roots limits what they read; \
                         there are {}",
                        STORE_OPTIONS.join(", ")
                    ),
                ));
            }
        }
        Ok(())
    }

    fn allows(&self, place: &Place) -> bool {
        let is_own = self.own.as_ref().is_some_and(|own| match (own, place) {
            // A folder around the database is read file by file; a prefix around it would be read with it.
            (Place::Remote { .. }, Place::Remote { .. }) => own.holds(place) || place.holds(own),
            _ => own.holds(place),
        });
        !is_own && self.roots.iter().any(|root| root.holds(place))
    }

    fn path(&self, path: &Path) -> Option<PathBuf> {
        let place = Place::Local(resolved(path)?);
        match (self.allows(&place), place) {
            (true, Place::Local(real)) => Some(real),
            _ => None,
        }
    }

    /// A path whose last parts may be a pattern: those before must be under a root. What it matches is checked by itself.
    fn pattern(&self, path: &Path) -> Option<String> {
        // A file may be called like a pattern.
        let is_pattern = |part: &Component<'_>| part.as_os_str().to_str().is_none_or(has_glob);
        let first = path.components().position(|part| is_pattern(&part)).filter(|_| path.symlink_metadata().is_err());
        let fixed: PathBuf = path.components().take(first.unwrap_or(usize::MAX)).collect();
        let rest: PathBuf = path.components().skip(first.unwrap_or(usize::MAX)).collect();
        let real = self.path(&fixed)?;
        let real = if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        real.to_str().map(str::to_owned)
    }

    fn url(&self, url: &Url) -> Option<String> {
        let place = remote(url)?;
        if !self.allows(&place) {
            return None;
        }
        let parts: Vec<&str> = url.path().split('/').filter(|part| !part.is_empty()).collect();
        Some(format!("{}://{}/{}", url.scheme(), url.host_str()?, parts.join("/")))
    }
}

impl Place {
    /// True if the other is the same place or below it.
    fn holds(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Local(own), Self::Local(other)) => other.starts_with(own),
            (
                Self::Remote { scheme, host, parts },
                Self::Remote { scheme: other_scheme, host: other_host, parts: other_parts },
            ) => (scheme, host) == (other_scheme, other_host) && other_parts.starts_with(parts),
            _ => false,
        }
    }
}

fn place_of(text: &str) -> Option<Place> {
    match written(text)? {
        Written::Path(path) => resolved(&path).map(Place::Local),
        Written::Url(url) => remote(&url),
    }
}

/// Tells paths from URLs as strictly as the most generous of those who open them: `FILE://` and ` file://` are files.
fn written(text: &str) -> Option<Written> {
    let trimmed = text.trim();
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|letter: char| letter.is_ascii_alphabetic())
            && scheme.chars().all(|letter| letter.is_ascii_alphanumeric() || "+-.".contains(letter))
    };
    let Some((scheme, _)) = trimmed.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) else {
        return std::path::absolute(text).ok().map(|path| Written::Path(without_dots(&path)));
    };
    let url = Url::parse(trimmed).ok()?;
    if url.query().is_some() || url.fragment().is_some() {
        return None;
    }
    if !scheme.eq_ignore_ascii_case("file") {
        return Some(Written::Url(url));
    }
    url.to_file_path().ok().map(|path| Written::Path(without_dots(&path)))
}

/// The path without `.` and `..`, each of which takes away the part before it, be that a link or not.
fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

/// The path with its links resolved; as far as it exists, the rest as it is.
fn resolved(path: &Path) -> Option<PathBuf> {
    let mut missing: Vec<&OsStr> = vec![];
    let mut existing = path;
    loop {
        match existing.canonicalize() {
            Ok(mut real) => {
                real.extend(missing.iter().rev());
                return Some(real);
            }
            // A link to what does not exist would lead there once it does.
            Err(error) if error.kind() == IoErrorKind::NotFound && existing.symlink_metadata().is_err() => {
                missing.push(existing.file_name()?);
                existing = existing.parent()?;
            }
            Err(_) => return None,
        }
    }
}

fn remote(url: &Url) -> Option<Place> {
    if !url.username().is_empty() || url.password().is_some() || url.port().is_some() {
        return None;
    }
    let host = url.host_str().filter(|host| !host.is_empty())?.to_owned();
    let mut parts = vec![];
    for part in url.path().split('/').filter(|part| !part.is_empty()) {
        let part = decoded(part)?;
        if part == "." || part == ".." || part.chars().any(|letter| "/\\".contains(letter) || letter.is_control()) {
            return None;
        }
        parts.push(part);
    }
    Some(Place::Remote { scheme: url.scheme().to_owned(), host, parts })
}

/// The text with `%41` and its like decoded, once.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = vec![];
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let (byte, behind) = match (first, behind) {
            (b'%', [high, low, behind @ ..]) => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                (u8::try_from(digit(high)? * 16 + digit(low)?).ok()?, behind)
            }
            (b'%', _) => return None,
            (byte, behind) => (*byte, behind),
        };
        bytes.push(byte);
        rest = behind;
    }
    String::from_utf8(bytes).ok()
}

/// A slash at the end says that a folder is meant.
fn with_slash_of(text: &str, spelled: String) -> String {
    match text.trim_end().ends_with('/') && !spelled.ends_with('/') {
        true => spelled + "/",
        false => spelled,
    }
}

#[cfg(test)]
mod tests;
