//! What can go wrong with stored bytes, and how the errors of Lance, the object stores and the file system are
//! sorted into it. Errors of a kind exist only if a caller acts differently. No operation lives here.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;

use datafusion::error::DataFusionError;

use crate::checksums::DAMAGE;

/// The result of every fallible call of this crate.
pub type Result<T, E = StorageError> = std::result::Result<T, E>;

/// Any error, as carried along for the reader who wants the cause.
pub type Source = Box<dyn StdError + Send + Sync + 'static>;

/// What failed and what to do about it (`message`), with the error below it (`source`).
#[derive(Debug)]
pub struct Failure {
    /// What, why and the next step; lower case, no full stop.
    pub message: String,
    /// The error that caused this one, if there is one.
    pub source: Option<Source>,
}

/// An error of the storage layer, by what the caller can do about it.
#[derive(Debug)]
pub enum StorageError {
    /// A schema, table, file or database is not there.
    NotFound(Failure),
    /// The name is taken.
    AlreadyExists(Failure),
    /// Somebody else changed the same thing first; the statement may be run again.
    Conflict(Failure),
    /// A change was planned on a version that is no longer the newest: plan the statement again and commit that.
    Stale(Failure),
    /// A primary key would be there twice. Nothing was changed.
    Duplicate(Failure),
    /// The location holds something that is not a Sagitta database.
    NotADatabase(Failure),
    /// The store does not answer, or refuses: network, bucket, credentials, permissions. Of a change that failed like
    /// this it is not known whether it was made; it was made wholly or not at all.
    Unavailable(Failure),
    /// Bytes are not what was written.
    Corrupt(Failure),
    /// No space is left where the database lives. Nothing was changed.
    Full(Failure),
    /// The format, type or store is not supported.
    Unsupported(Failure),
    /// A location, option, name or row handed to us is wrong.
    Invalid(Failure),
    /// A defect of Sagitta or of Lance.
    Internal(Failure),
    /// The stream of rows that was to be written failed; the inner error belongs to whoever made the stream.
    Input(Box<DataFusionError>),
}

/// The kinds of [`StorageError`] that carry a [`Failure`], for code that picks one from a cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    NotFound,
    AlreadyExists,
    Conflict,
    Unavailable,
    Corrupt,
    Full,
    Unsupported,
    Invalid,
    Internal,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $variant:ident),* $(,)?) => {
        impl StorageError {
            $($(#[$doc])* pub(crate) fn $name(message: impl Into<String>) -> Self {
                Self::$variant(Failure { message: message.into(), source: None })
            })*
        }
    };
}

constructors! {
    not_found => NotFound,
    already_exists => AlreadyExists,
    conflict => Conflict,
    stale => Stale,
    duplicate => Duplicate,
    not_a_database => NotADatabase,
    unavailable => Unavailable,
    corrupt => Corrupt,
    unsupported => Unsupported,
    invalid => Invalid,
    internal => Internal,
}

impl StorageError {
    /// What failed, why, and the next step.
    pub fn message(&self) -> String {
        match self {
            Self::Input(error) => error.to_string(),
            other => other.failure().map(|failure| failure.message.clone()).unwrap_or_default(),
        }
    }

    /// Adds the error below this one.
    pub(crate) fn with_source(mut self, source: impl Into<Source>) -> Self {
        if let Some(failure) = self.failure_mut() {
            failure.source = Some(source.into());
        }
        self
    }

    /// Sorts an error of Lance. `what` says what was being done, as in "cannot read table docs".
    pub(crate) fn from_lance(what: impl fmt::Display, error: lance::Error) -> Self {
        if error.is_commit_status_unknown() {
            // Whatever the cause says of itself ("full", "there already"): the commit may have been made. Taken for a
            // refusal, it would be made a second time.
            return Self::unavailable(format!(
                "{what}: the store did not say whether the change was made; look whether it is there before you run the \
                 statement again"
            ))
            .with_source(error);
        }
        let kind = lance_kind(&error);
        let advice = advice(kind);
        let reason = reason(kind, &error);
        Self::of(kind, format!("{what}: {reason}{advice}")).with_source(error)
    }

    /// The same error where the files of a pinned version are read: if one is gone, with what may have removed it.
    pub(crate) fn while_pinned(mut self) -> Self {
        if let Self::NotFound(failure) = &mut self {
            failure.message.push_str(
                "; a file of the version that is read is gone: VACUUM removes versions beyond the retention of their \
                 table, DROP and REPLACE remove all; run the statement again, CHECK TABLE tells what is missing",
            );
        }
        self
    }

    /// Sorts an error of the object store Lance uses. `what` says what was being done.
    pub(crate) fn from_store(what: impl fmt::Display, error: object_store::Error) -> Self {
        let kind = store_kind(&error);
        let advice = advice(kind);
        let reason = reason(kind, &error);
        Self::of(kind, format!("{what}: {reason}{advice}")).with_source(error)
    }

    /// Sorts an error of the file system. `what` says what was being done.
    pub(crate) fn from_io(what: impl fmt::Display, error: std::io::Error) -> Self {
        let kind = io_kind(&error).unwrap_or(Kind::Unavailable);
        Self::of(kind, format!("{what}: {}{}", reason(kind, &error), advice(kind))).with_source(error)
    }

    /// A panic of Lance, caught at our boundary. Lance panics on some corrupt bytes.
    pub(crate) fn from_panic(what: impl fmt::Display, panic: &(dyn Any + Send)) -> Self {
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        Self::corrupt(format!(
            "{what}: the reader gave up ({text}); the files are probably damaged, restore them from a copy"
        ))
    }

    /// An error of one of our own scans on its way back.
    pub(crate) fn from_scan(error: DataFusionError) -> Self {
        match error {
            DataFusionError::External(inner) => match inner.downcast::<StorageError>() {
                Ok(ours) => *ours,
                Err(other) => Self::internal("a scan failed").with_source(other),
            },
            other => Self::internal("a scan failed").with_source(other),
        }
    }

    /// The same error without its source, for a further caller whom it meets too.
    pub(crate) fn again(&self) -> Self {
        let failure = Failure { message: self.message(), source: None };
        match self {
            Self::NotFound(_) => Self::NotFound(failure),
            Self::AlreadyExists(_) => Self::AlreadyExists(failure),
            Self::Conflict(_) => Self::Conflict(failure),
            Self::Stale(_) => Self::Stale(failure),
            Self::Duplicate(_) => Self::Duplicate(failure),
            Self::NotADatabase(_) => Self::NotADatabase(failure),
            Self::Unavailable(_) => Self::Unavailable(failure),
            Self::Corrupt(_) => Self::Corrupt(failure),
            Self::Full(_) => Self::Full(failure),
            Self::Unsupported(_) => Self::Unsupported(failure),
            Self::Invalid(_) => Self::Invalid(failure),
            Self::Internal(_) | Self::Input(_) => Self::Internal(failure),
        }
    }

    /// True if the store said that the object is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }

    fn of(kind: Kind, message: String) -> Self {
        let failure = Failure { message, source: None };
        match kind {
            Kind::NotFound => Self::NotFound(failure),
            Kind::AlreadyExists => Self::AlreadyExists(failure),
            Kind::Conflict => Self::Conflict(failure),
            Kind::Unavailable => Self::Unavailable(failure),
            Kind::Corrupt => Self::Corrupt(failure),
            Kind::Full => Self::Full(failure),
            Kind::Unsupported => Self::Unsupported(failure),
            Kind::Invalid => Self::Invalid(failure),
            Kind::Internal => Self::Internal(failure),
        }
    }

    fn failure(&self) -> Option<&Failure> {
        match self {
            Self::NotFound(failure)
            | Self::AlreadyExists(failure)
            | Self::Conflict(failure)
            | Self::Stale(failure)
            | Self::Duplicate(failure)
            | Self::NotADatabase(failure)
            | Self::Unavailable(failure)
            | Self::Corrupt(failure)
            | Self::Full(failure)
            | Self::Unsupported(failure)
            | Self::Invalid(failure)
            | Self::Internal(failure) => Some(failure),
            Self::Input(_) => None,
        }
    }

    fn failure_mut(&mut self) -> Option<&mut Failure> {
        match self {
            Self::NotFound(failure)
            | Self::AlreadyExists(failure)
            | Self::Conflict(failure)
            | Self::Stale(failure)
            | Self::Duplicate(failure)
            | Self::NotADatabase(failure)
            | Self::Unavailable(failure)
            | Self::Corrupt(failure)
            | Self::Full(failure)
            | Self::Unsupported(failure)
            | Self::Invalid(failure)
            | Self::Internal(failure) => Some(failure),
            Self::Input(_) => None,
        }
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message())
    }
}

impl StdError for StorageError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Input(error) => Some(error.as_ref()),
            other => other
                .failure()
                .and_then(|failure| failure.source.as_ref().map(|source| source.as_ref() as &(dyn StdError + 'static))),
        }
    }
}

impl From<StorageError> for DataFusionError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Input(inner) => *inner,
            other => DataFusionError::External(Box::new(other)),
        }
    }
}

/// The next step that follows from the kind alone.
fn advice(kind: Kind) -> &'static str {
    match kind {
        Kind::Full => "; free some and run the statement again (nothing was changed)",
        Kind::Unavailable => "; check the location, the network, the credentials and the permissions",
        Kind::Corrupt => "; the file is damaged, restore it from a copy",
        Kind::Conflict => "; run the statement again",
        _ => "",
    }
}

fn lance_kind(error: &lance::Error) -> Kind {
    use lance::Error;
    if let Some(kind) = chain_kind(error) {
        return kind;
    }
    match error {
        Error::InvalidInput { .. } | Error::SchemaMismatch { .. } | Error::Schema { .. } => Kind::Invalid,
        Error::DatasetAlreadyExists { .. } => Kind::AlreadyExists,
        Error::DatasetNotFound { .. } | Error::NotFound { .. } => Kind::NotFound,
        // Under wrappers Lance keeps no error of the store that says so.
        wrapped if wrapped.is_not_found() => Kind::NotFound,
        Error::CorruptFile { .. } => Kind::Corrupt,
        Error::NotSupported { .. } | Error::VersionConflict { .. } => Kind::Unsupported,
        Error::CommitConflict { .. }
        | Error::RetryableCommitConflict { .. }
        | Error::IncompatibleTransaction { .. }
        | Error::TooMuchWriteContention { .. } => Kind::Conflict,
        Error::Timeout { .. } | Error::IO { .. } => Kind::Unavailable,
        _ => Kind::Internal,
    }
}

fn store_kind(error: &object_store::Error) -> Kind {
    use object_store::Error;
    match error {
        Error::NotFound { .. } if !names_missing_bucket(error) => Kind::NotFound,
        Error::AlreadyExists { .. } | Error::Precondition { .. } => Kind::AlreadyExists,
        Error::InvalidPath { .. } | Error::UnknownConfigurationKey { .. } => Kind::Invalid,
        Error::NotSupported { .. } | Error::NotImplemented { .. } => Kind::Unsupported,
        other => own_chain_kind(other).unwrap_or(Kind::Unavailable),
    }
}

fn names_missing_bucket(error: &object_store::Error) -> bool {
    error.to_string().contains("NoSuchBucket")
}

/// The kind that some error below `error` decides, if one does.
fn chain_kind(error: &(dyn StdError + 'static)) -> Option<Kind> {
    let mut next = Some(error);
    while let Some(current) = next {
        if let Some(store) = current.downcast_ref::<object_store::Error>() {
            return Some(store_kind(store));
        }
        if let Some(io) = current.downcast_ref::<std::io::Error>() {
            if let Some(inner) = io.get_ref()
                && let Some(kind) = chain_kind(inner)
            {
                return Some(kind);
            }
            return io_kind(io);
        }
        next = current.source();
    }
    let text = error.to_string();
    if text.contains(DAMAGE) {
        return Some(Kind::Corrupt);
    }
    is_full(&text).then_some(Kind::Full)
}

/// As [`chain_kind`], for an error of the object store itself.
fn own_chain_kind(error: &object_store::Error) -> Option<Kind> {
    if is_full(&error.to_string()) {
        return Some(Kind::Full);
    }
    let mut next = StdError::source(error);
    while let Some(current) = next {
        if current.downcast_ref::<lance::Error>().is_some_and(lance::Error::is_not_found) {
            return Some(Kind::NotFound);
        }
        if let Some(io) = current.downcast_ref::<std::io::Error>() {
            return io_kind(io);
        }
        next = current.source();
    }
    None
}

fn io_kind(error: &std::io::Error) -> Option<Kind> {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Some(Kind::Full),
        ErrorKind::NotFound => Some(Kind::NotFound),
        ErrorKind::PermissionDenied
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::ConnectionRefused
        | ErrorKind::ConnectionReset
        | ErrorKind::TimedOut
        | ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable => Some(Kind::Unavailable),
        ErrorKind::UnexpectedEof | ErrorKind::InvalidData => Some(Kind::Corrupt),
        _ if is_full(&error.to_string()) => Some(Kind::Full),
        _ => None,
    }
}

fn is_full(text: &str) -> bool {
    text.contains("No space left on device") || text.contains("Disk quota exceeded")
}

/// Why it failed, in words for a user: what the kind says already is not repeated in the words of a library.
fn reason(kind: Kind, error: &dyn StdError) -> String {
    match kind {
        Kind::Full => "no space is left on the device".to_owned(),
        _ => short_reason(error),
    }
}

/// The text of an error without what means nothing to a user: source positions of Lance, repeated wrappers.
fn short_reason(error: &dyn StdError) -> String {
    const WRAPPERS: [&str; 6] = [
        "LanceError(IO): ",
        "LanceError(Arrow): ",
        "LanceError(Schema): ",
        "Invalid user input: ",
        "External error: ",
        "Execution error: ",
    ];
    let mut text = error.to_string();
    if let Some(reason) = server_reason(&text) {
        return reason;
    }
    if text.contains("Failed to get AWS credentials") {
        return "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the storage options \
                access_key_id and secret_access_key"
            .to_owned();
    }
    if text.contains("error sending request") {
        return format!("no connection ({})", deepest(error));
    }
    while let Some(rest) = WRAPPERS.iter().find_map(|wrapper| text.strip_prefix(wrapper)) {
        text = rest.to_owned();
    }
    if let Some(at) = text.find(DAMAGE) {
        text = text.split_off(at);
    }
    // Lance ends its messages with ", <path of a source file>:line:column".
    if let Some(at) = text.rfind(", ")
        && text[at..].contains(".rs:")
    {
        text.truncate(at);
    }
    text.trim_end_matches('.').to_owned()
}

/// What an S3 server says in the XML of its answer, in place of the whole exchange.
fn server_reason(text: &str) -> Option<String> {
    let part = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(part, _)| part)
    };
    let code = part("Code")?;
    let reason = match (code, part("BucketName").or_else(|| part("Resource"))) {
        ("NoSuchBucket", Some(bucket)) => format!("bucket {} does not exist", bucket.trim_matches('/')),
        ("NoSuchBucket", None) => "the bucket does not exist".to_owned(),
        ("InvalidAccessKeyId" | "SignatureDoesNotMatch" | "AccessDenied" | "ExpiredToken" | "InvalidToken", _) => {
            format!("the store refuses the credentials ({code})")
        }
        _ => format!("the store answered {code}: {}", part("Message").unwrap_or_default().trim_end_matches('.')),
    };
    Some(reason)
}

/// The text of the error at the end of the chain: what really happened.
fn deepest(error: &dyn StdError) -> String {
    let mut last = error.to_string();
    let mut next = error.source();
    while let Some(current) = next {
        last = current.to_string();
        next = current.source();
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(io: std::io::Error) -> object_store::Error {
        object_store::Error::Generic { store: "test", source: Box::new(io) }
    }

    #[test]
    fn a_full_disk_is_recognised_below_wrappers() {
        let io = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert!(matches!(StorageError::from_store("x", generic(io())), StorageError::Full(_)));
        let lance = lance::Error::from(generic(io()));
        assert!(matches!(StorageError::from_lance("x", lance), StorageError::Full(_)));
        let nested = std::io::Error::other(generic(io()));
        assert!(matches!(StorageError::from_lance("x", lance::Error::from(nested)), StorageError::Full(_)));
    }

    #[test]
    fn a_commit_of_unknown_outcome_is_never_taken_for_a_refusal() {
        let full = generic(std::io::Error::from(std::io::ErrorKind::StorageFull));
        let exists = object_store::Error::AlreadyExists { path: "p".into(), source: "412".into() };
        let causes: [Source; 3] = [full.into(), exists.into(), "no cause".into()];
        for cause in causes {
            let unknown = lance::Error::commit_status_unknown_source(7, cause);
            let error = StorageError::from_lance("cannot commit", unknown);
            assert!(matches!(error, StorageError::Unavailable(_)), "{error:?}");
            assert!(error.to_string().contains("look whether it is there"), "{error}");
        }
    }

    #[test]
    fn a_missing_bucket_is_unavailable_and_a_missing_object_is_not_found() {
        let missing = |text: &str| object_store::Error::NotFound { path: "p".into(), source: text.into() };
        assert!(matches!(StorageError::from_store("x", missing("NoSuchBucket")), StorageError::Unavailable(_)));
        assert!(matches!(StorageError::from_store("x", missing("NoSuchKey")), StorageError::NotFound(_)));
    }

    #[test]
    fn the_answer_of_an_s3_server_is_told_in_a_sentence() {
        let check = |body: &str, expected: &str| {
            let source = format!("status 4xx: <Error>{body}</Error>").into();
            let error = object_store::Error::Generic { store: "S3", source };
            let shown = StorageError::from_store("cannot open s3://b", error).to_string();
            assert!(shown.starts_with(&format!("cannot open s3://b: {expected}; check")), "{shown}");
        };
        check("<Code>NoSuchBucket</Code><BucketName>b</BucketName>", "bucket b does not exist");
        check(
            "<Code>SignatureDoesNotMatch</Code><Message>long</Message>",
            "the store refuses the credentials (SignatureDoesNotMatch)",
        );
        check("<Code>SlowDown</Code><Message>Wait.</Message>", "the store answered SlowDown: Wait");
    }

    #[test]
    fn the_text_loses_source_positions_and_keeps_the_cause() {
        let error = lance::Error::invalid_input("bad thing");
        let shown = StorageError::from_lance("cannot do it", error).to_string();
        assert_eq!(shown, "cannot do it: bad thing");
    }
}
