//! The one error type of the API: a kind to act on, a message to read, a place in the SQL and a hint.

use std::error::Error as StdError;
use std::fmt;
use std::ops::Range;

use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use planner::resolve::{NameError, nearest};
use planner::tokens;
use storage::StorageError;

/// How DataFusion begins its error for a type that it does not have.
const UNKNOWN_TYPE: &str = "Unsupported SQL type ";

/// What the caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Correct the statement or its values.
    Invalid,
    /// Name something that exists.
    NotFound,
    /// Choose another name or key: it is taken.
    AlreadyExists,
    /// Ask for a right, or for a place of files: the user may not do this.
    Forbidden,
    /// Read again and repeat: something else was faster.
    Conflict,
    /// Try later, or mend the connection: the store does not answer or refuses.
    Unavailable,
    /// Free memory or disk, or ask for less.
    Exhausted,
    /// Restore from a backup: stored bytes are not what was written.
    Corrupt,
    /// Say it in another way: the engine cannot do this.
    Unsupported,
    /// Nothing: somebody cancelled the statement.
    Cancelled,
    /// Give it more time, or let it do less.
    TimedOut,
    /// Report it: this is a mistake of the engine.
    Internal,
}

/// Why a statement failed.
#[derive(Debug)]
pub struct Error {
    /// What the caller can do.
    pub kind: ErrorKind,
    /// What failed, why, and the next step.
    pub message: String,
    /// Where in the text of the statement, in bytes.
    pub place: Option<Range<usize>>,
    /// What was probably meant.
    pub hint: Option<String>,
    /// The error below.
    pub source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error without place and source.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), place: None, hint: None, source: None }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// The same error with its place in `sql`, told from the parser's line and column or, within the statement at
    /// `range`, from the name in question.
    pub(crate) fn placed_in(mut self, sql: &str, range: Range<usize>) -> Self {
        if self.place.is_some() {
            return self;
        }
        if let Some(at) = place_of_location(&self.message, sql) {
            self.place = Some(at);
            self.message = without_location(&self.message);
        } else if let Some(name) = quoted_name(&self.message) {
            let place = place_of_name(&name, &sql[range.clone()]);
            self.place = place.map(|place| place.start + range.start..place.end + range.start);
        }
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Self {
        let kind = match &error {
            StorageError::Input(_) => {
                let StorageError::Input(inner) = error else { return Self::new(ErrorKind::Internal, "lost error") };
                return Self::from(*inner);
            }
            StorageError::NotFound(_) => ErrorKind::NotFound,
            StorageError::AlreadyExists(_) | StorageError::Duplicate(_) => ErrorKind::AlreadyExists,
            StorageError::Conflict(_) | StorageError::Stale(_) => ErrorKind::Conflict,
            StorageError::NotADatabase(_) | StorageError::Invalid(_) => ErrorKind::Invalid,
            StorageError::Unavailable(_) => ErrorKind::Unavailable,
            StorageError::Corrupt(_) => ErrorKind::Corrupt,
            StorageError::Full(_) => ErrorKind::Exhausted,
            StorageError::Unsupported(_) => ErrorKind::Unsupported,
            StorageError::Internal(_) => ErrorKind::Internal,
        };
        Self { message: error.message(), kind, place: None, hint: None, source: Some(Box::new(error)) }
    }
}

impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        match error {
            DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => Self::from(*inner),
            DataFusionError::Collection(mut errors) if !errors.is_empty() => Self::from(errors.remove(0)),
            DataFusionError::Shared(shared) => match shared.as_ref() {
                DataFusionError::External(inner) => {
                    of_external(inner.as_ref()).unwrap_or_else(|| Self::invalid(clean(&shared.to_string())))
                }
                inner => of_text(inner),
            },
            DataFusionError::External(inner) => of_boxed(inner),
            DataFusionError::ArrowError(inner, _) => of_arrow(*inner),
            DataFusionError::SchemaError(inner, _) => of_schema(&inner),
            other => of_text(&other),
        }
    }
}

/// Errors whose kind is told by their variant.
/// What a sort says that has no memory left to merge its files.
const SORT_MEMORY: &str = "Not enough memory to continue external sort";

fn of_text(error: &DataFusionError) -> Error {
    let kind = match error {
        DataFusionError::NotImplemented(_) => ErrorKind::Unsupported,
        DataFusionError::ResourcesExhausted(_) => ErrorKind::Exhausted,
        // A sort says so without the kind that is meant for it.
        _ if error.message().contains(SORT_MEMORY) => ErrorKind::Exhausted,
        DataFusionError::Internal(_) | DataFusionError::ExecutionJoin(_) => ErrorKind::Internal,
        DataFusionError::ObjectStore(_) | DataFusionError::IoError(_) => ErrorKind::Unavailable,
        _ => ErrorKind::Invalid,
    };
    let message = clean(&error.strip_backtrace());
    if message.contains(SORT_MEMORY) {
        return Error::new(
            ErrorKind::Exhausted,
            "a sort that spills needs more of memory than is free; try again when fewer statements run, raise --memory-limit, or sort fewer rows",
        );
    }
    if message.contains("OuterReferenceColumn") || message.contains("undecorrelated Subquery") {
        return Error::unsupported(
            "a subquery with ORDER BY and LIMIT that refers to the outer query (KNN join) is not built yet; search for one query vector at a time",
        );
    }
    let message = match error {
        // Our own says what to do.
        DataFusionError::ResourcesExhausted(_)
            if !message.contains("--memory-limit") && !message.contains("limits.") =>
        {
            format!("{message}; raise --memory-limit or let the statement touch fewer rows")
        }
        DataFusionError::NotImplemented(_) if message.starts_with(UNKNOWN_TYPE) => {
            format!("the type {} is not supported", &message[UNKNOWN_TYPE.len()..])
        }
        DataFusionError::NotImplemented(_) if !message.contains("not") => format!("{message} is not supported"),
        _ => message,
    };
    Error { hint: suggestion(&message), ..Error::new(kind, first_line(&message)) }
}

fn of_boxed(inner: Box<dyn StdError + Send + Sync>) -> Error {
    let inner = match inner.downcast::<Error>() {
        Ok(error) => return *error,
        Err(inner) => inner,
    };
    let inner = match inner.downcast::<StorageError>() {
        Ok(error) => return Error::from(*error),
        Err(inner) => inner,
    };
    let inner = match inner.downcast::<DataFusionError>() {
        Ok(error) => return Error::from(*error),
        Err(inner) => inner,
    };
    of_external(inner.as_ref()).unwrap_or_else(|| Error { source: None, ..Error::invalid(clean(&inner.to_string())) })
}

fn of_external(inner: &(dyn StdError + Send + Sync + 'static)) -> Option<Error> {
    if let Some(name) = inner.downcast_ref::<NameError>() {
        let hint = name.meant.as_ref().map(|meant| format!("did you mean \"{meant}\"?"));
        return Some(Error { hint, ..Error::new(ErrorKind::NotFound, name.message.clone()) });
    }
    let storage = inner.downcast_ref::<StorageError>()?;
    let kind = match storage {
        StorageError::NotFound(_) => ErrorKind::NotFound,
        StorageError::Corrupt(_) => ErrorKind::Corrupt,
        StorageError::Full(_) => ErrorKind::Exhausted,
        StorageError::Unavailable(_) => ErrorKind::Unavailable,
        StorageError::AlreadyExists(_) | StorageError::Duplicate(_) => ErrorKind::AlreadyExists,
        StorageError::Conflict(_) | StorageError::Stale(_) => ErrorKind::Conflict,
        StorageError::Unsupported(_) => ErrorKind::Unsupported,
        StorageError::Internal(_) => ErrorKind::Internal,
        StorageError::NotADatabase(_) | StorageError::Invalid(_) | StorageError::Input(_) => ErrorKind::Invalid,
    };
    Some(Error::new(kind, storage.message()))
}

fn of_arrow(error: arrow::error::ArrowError) -> Error {
    match error {
        arrow::error::ArrowError::ExternalError(inner) => of_boxed(inner),
        other => Error::invalid(clean(&other.to_string())),
    }
}

fn of_schema(error: &SchemaError) -> Error {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let names: Vec<&str> = valid_fields.iter().map(|column| column.name.as_str()).collect();
            let hint = nearest(&field.name, names.iter().copied()).map(|meant| format!("did you mean \"{meant}\"?"));
            let message = match (&field.relation, names.is_empty()) {
                (_, true) => format!("there is no column \"{}\": no table is named here", field.name),
                (Some(relation), _) => format!("there is no column \"{}\" in {relation}", field.name),
                (None, _) => format!("there is no column \"{}\"; there are {}", field.name, some_of(&names)),
            };
            Error { hint, ..Error::new(ErrorKind::NotFound, message) }
        }
        other => Error::invalid(clean(&other.to_string())),
    }
}

fn some_of(names: &[&str]) -> String {
    const SHOWN: usize = 12;
    let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

/// Takes away the names of libraries and error types in front of a message.
fn clean(message: &str) -> String {
    const PREFIXES: &[&str] = &[
        "External error: ",
        "Error during planning: ",
        "Execution error: ",
        "Optimizer rule ",
        "This feature is not implemented: ",
        "SQL error: ",
        "ParserError(\"",
        "TokenizerError(\"",
        "Schema error: ",
        "Arrow error: ",
        "Invalid argument error: ",
        "Resources exhausted: ",
        "Parquet error: ",
        "Parser error: ",
        "sql parser error: ",
        "Object Store error: ",
        "Internal error: ",
        "type_coercion\ncaused by\n",
        "Cast error: ",
        "Compute error: ",
        "Csv error: ",
        "Json error: ",
        "IO error: ",
    ];
    let mut rest = message.trim();
    while let Some(shorter) = PREFIXES.iter().find_map(|prefix| rest.strip_prefix(prefix)) {
        rest = shorter;
    }
    rest.trim_end_matches("\")").to_owned()
}

fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().trim_end_matches('.').to_owned()
}

/// DataFusion's own suggestion for a function that does not exist.
fn suggestion(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("Did you mean '")?;
    let (meant, _) = rest.split_once('\'')?;
    Some(format!("did you mean \"{meant}\"?"))
}

/// The byte range that `Line: 2, Column: 7` in a parser's message points at.
fn place_of_location(message: &str, sql: &str) -> Option<Range<usize>> {
    let (_, rest) = message.rsplit_once("Line: ")?;
    let (line, rest) = rest.split_once(", Column: ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let location = datafusion::sql::sqlparser::tokenizer::Location {
        line: line.trim().parse().ok()?,
        column: digits.parse().ok()?,
    };
    let start = tokens::byte_at(sql, location);
    let token = tokens::classify(sql).into_iter().find(|(range, _)| range.start == start);
    Some(token.map_or(start..sql[start..].chars().next().map_or(start, |c| start + c.len_utf8()), |(range, _)| range))
}

fn without_location(message: &str) -> String {
    match message.rsplit_once("Line: ") {
        Some((before, _)) => before.trim_end().trim_end_matches(" at").trim_end().to_owned(),
        None => message.to_owned(),
    }
}

/// The name in quotes that a message is about.
fn quoted_name(message: &str) -> Option<String> {
    let quote = message.find(['"', '\''])?;
    let mark = message[quote..].chars().next()?;
    let rest = &message[quote + 1..];
    rest.split(mark).next().map(str::to_owned)
}

/// Where a name stands in the text: the first token that says it.
fn place_of_name(name: &str, sql: &str) -> Option<Range<usize>> {
    let last = name.rsplit('.').next().unwrap_or(name);
    let says = |range: &Range<usize>| {
        let token = sql[range.clone()].trim_matches(['"', '\'']);
        token.eq_ignore_ascii_case(name) || token.eq_ignore_ascii_case(last)
    };
    tokens::classify(sql).into_iter().map(|(range, _)| range).find(says)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_points_at_its_name() {
        let sql = "SELECT id\nFROM docz";
        let error = Error::new(ErrorKind::NotFound, "there is no table \"docz\"").placed_in(sql, 0..sql.len());
        assert_eq!(error.place.map(|range| &sql[range]), Some("docz"));
    }

    #[test]
    fn a_mistake_of_syntax_points_at_its_token() {
        let sql = "SELECT 1\n  FORM t";
        let error = Error::invalid("Expected: end of statement, found: FORM at Line: 2, Column: 3")
            .placed_in(sql, 0..sql.len());
        assert_eq!(error.place.map(|range| &sql[range]), Some("FORM"));
        assert!(!error.message.contains("Line"), "{}", error.message);
    }
}
