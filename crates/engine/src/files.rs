//! Files as tables: Parquet, CSV, JSON, Arrow, NumPy and Lance, by path, glob, folder or URL.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::arrow::ArrowFormat;
use datafusion::datasource::file_format::csv::CsvFormat;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::file_format::json::JsonFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::execution::SessionState;
use datafusion::sql::sqlparser::ast;
use operators::table::SnapshotTable;
use planner::as_of::AsOf;
use storage::{ExternalTable, Snapshot};

use crate::roots::AllowedRoots;
use crate::{Engine, Error, ErrorKind, Result, Session, npy};

/// How many rows of CSV and JSON are read to tell the types of columns.
const INFER_ROWS: usize = 50_000;

/// A format of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Apache Parquet.
    Parquet,
    /// Comma-separated values; tab-separated for `.tsv`.
    Csv,
    /// One JSON object per line.
    Json,
    /// Arrow IPC, file or stream.
    Arrow,
    /// NumPy's `.npy`: a matrix is a column of vectors.
    Npy,
    /// A Lance dataset.
    Lance,
}

const FORMATS: &str = "parquet, csv, json, arrow, npy and lance";

impl Format {
    /// The format of a name such as `parquet` or `JSONL`.
    ///
    /// # Errors
    /// A name that is no format.
    pub fn parse(name: &str) -> Result<Self> {
        Self::of_name(name)
            .ok_or_else(|| Error::invalid(format!("there is no file format {name}; there are {FORMATS}")))
    }

    fn of_name(name: &str) -> Option<Self> {
        Some(match name.to_lowercase().as_str() {
            "parquet" | "pq" => Self::Parquet,
            "csv" | "tsv" => Self::Csv,
            "json" | "jsonl" | "ndjson" => Self::Json,
            "arrow" | "arrows" | "ipc" | "feather" => Self::Arrow,
            "npy" => Self::Npy,
            "lance" => Self::Lance,
            _ => return None,
        })
    }

    /// The format that a path's ending names, a compression's ending behind it allowed.
    pub fn of_path(path: &str) -> Option<Self> {
        let (path, _) = compression(path);
        let extension = Path::new(path.trim_end_matches('/')).extension()?;
        Self::of_name(extension.to_str()?)
    }

    /// The name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Csv => "csv",
            Self::Json => "json",
            Self::Arrow => "arrow",
            Self::Npy => "npy",
            Self::Lance => "lance",
        }
    }

    fn extensions(self) -> &'static [&'static str] {
        match self {
            Self::Parquet => &["parquet", "pq"],
            Self::Csv => &["csv", "tsv"],
            Self::Json => &["jsonl", "ndjson", "json"],
            Self::Arrow => &["arrow", "arrows", "ipc", "feather"],
            Self::Npy => &["npy"],
            Self::Lance => &["lance"],
        }
    }
}

/// The path without the ending of a compression, and the compression.
fn compression(path: &str) -> (&str, FileCompressionType) {
    let endings = [
        (".gz", FileCompressionType::GZIP),
        (".zst", FileCompressionType::ZSTD),
        (".bz2", FileCompressionType::BZIP2),
        (".xz", FileCompressionType::XZ),
    ];
    let found = endings.into_iter().find_map(|(ending, kind)| path.strip_suffix(ending).map(|rest| (rest, kind)));
    found.unwrap_or((path, FileCompressionType::UNCOMPRESSED))
}

/// True if a name in FROM is that of a file: it has an ending that names a format.
pub(crate) fn is_file_name(name: &str) -> bool {
    Format::of_path(name).is_some()
}

/// What a statement names to read, as it is opened: an absolute path, which may be a pattern, or a URL.
///
/// # Errors
/// A place that is not under the engine's allowed roots.
pub(crate) fn located(engine: &Engine, location: &str) -> Result<String> {
    match engine.roots() {
        Some(roots) => roots.source(location),
        None => absolute(location),
    }
}

/// What a statement names to write to, as it is opened.
///
/// # Errors
/// As [`located`].
pub(crate) fn target(engine: &Engine, location: &str) -> Result<String> {
    match engine.roots() {
        Some(roots) => roots.target(location),
        None => absolute(location),
    }
}

/// A local path made absolute, so that a table does not move with the working directory; a URL as it is.
fn absolute(location: &str) -> Result<String> {
    if location.contains("://") {
        return Ok(location.strip_prefix("file://").unwrap_or(location).to_owned());
    }
    let path =
        std::path::absolute(location).map_err(|error| Error::invalid(format!("{location} is no path: {error}")))?;
    let path = without_parents(&path).map_err(|error| {
        Error::new(ErrorKind::NotFound, format!("{location} cannot be followed to its folder: {error}"))
    })?;
    let mut text = path.to_string_lossy().into_owned();
    if location.ends_with('/') && !text.ends_with('/') {
        text.push('/');
    }
    Ok(text)
}

/// The path without `..`, which object stores do not know. What stands before the last one is a folder that exists, and
/// links in it are followed first, as the system does; behind it there may be a pattern.
fn without_parents(path: &Path) -> std::io::Result<PathBuf> {
    let parts: Vec<Component<'_>> = path.components().collect();
    let Some(last) = parts.iter().rposition(|part| *part == Component::ParentDir) else { return Ok(path.to_owned()) };
    let folder: PathBuf = parts[..=last].iter().collect();
    Ok(std::fs::canonicalize(folder)?.join(parts[last + 1..].iter().collect::<PathBuf>()))
}

/// The key of an option as the formats know it: without the prefix `format.`.
pub(crate) fn option_key(key: &str) -> String {
    let key = key.to_lowercase();
    key.strip_prefix("format.").unwrap_or(&key).to_owned()
}

/// The text of an option's value.
pub(crate) fn option_text(value: &ast::Value) -> Result<String> {
    match value {
        ast::Value::SingleQuotedString(text) => Ok(text.clone()),
        ast::Value::Number(number, _) => Ok(number.clone()),
        ast::Value::Boolean(switch) => Ok(switch.to_string()),
        other => Err(Error::invalid(format!("an option's value is a text, a number or true or false, not {other}"))),
    }
}

/// In which session, and at which moment, files are read.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) session: &'a Session,
    pub(crate) state: &'a SessionState,
    /// The moment of a Lance dataset; its newest version if absent. Other files have no past.
    pub(crate) at: Option<&'a AsOf>,
}

/// The table of an entry made by CREATE EXTERNAL TABLE. `name`: what plans call it.
pub(crate) async fn external_table(
    place: Place<'_>,
    name: &str,
    external: &ExternalTable,
) -> Result<Arc<dyn TableProvider>> {
    let format = Format::parse(&external.format)?;
    if format == Format::Lance {
        return lance_table(place, name, &external.location, &external.options).await;
    }
    refuse_moment(place, name, format)?;
    table(
        place.session,
        place.state,
        std::slice::from_ref(&external.location),
        Some(format),
        &external.options,
        external.schema.clone(),
    )
    .await
}

/// The table of a file's name in FROM.
pub(crate) async fn file_table(place: Place<'_>, name: &str) -> Result<Arc<dyn TableProvider>> {
    if place.at.is_none() {
        return table(place.session, place.state, &[name.to_owned()], None, &[], None).await;
    }
    let engine = place.session.engine();
    let location = located(engine, name)?;
    match format_of_one(&location, engine.roots())? {
        Format::Lance => lance_table(place, &location, &location, &[]).await,
        format => {
            refuse_moment(place, name, format)?;
            table(place.session, place.state, &[name.to_owned()], Some(format), &[], None).await
        }
    }
}

async fn lance_table(
    place: Place<'_>,
    name: &str,
    location: &str,
    options: &[(String, String)],
) -> Result<Arc<dyn TableProvider>> {
    let database = place.session.engine().database();
    let newest = open_lance(place.session.engine(), location, options).await?;
    let snapshot = match place.at {
        Some(at) => database.at(&newest, &crate::time::stored(at), crate::definition::now_us()).await?,
        None => newest,
    };
    check_bases(place.session.engine(), &snapshot, location)?;
    Ok(SnapshotTable::new(name.to_owned(), snapshot, Default::default(), None).into_provider())
}

async fn open_lance(engine: &Engine, location: &str, options: &[(String, String)]) -> Result<Snapshot> {
    let location = match engine.roots() {
        Some(roots) => {
            roots.check_options(options)?;
            roots.source(location)?
        }
        None => location.to_owned(),
    };
    let snapshot = engine.database().open_lance(&location, options).await?;
    check_bases(engine, &snapshot, &location)?;
    Ok(snapshot)
}

/// # Errors
/// A dataset whose files lie elsewhere: where that is its manifest says, which anybody may have written.
fn check_bases(engine: &Engine, snapshot: &Snapshot, location: &str) -> Result<()> {
    match engine.roots() {
        Some(roots) if snapshot.reads_elsewhere() => Err(roots.forbid(location)),
        _ => Ok(()),
    }
}

/// # Errors
/// A moment is asked of files that have no versions.
fn refuse_moment(place: Place<'_>, name: &str, format: Format) -> Result<()> {
    let Some(at) = place.at else { return Ok(()) };
    let way_out = match place.session.settings().moment() {
        Some(_) => "RESET as_of to read it, or load it with CREATE TABLE … AS SELECT",
        None => "read it without AS OF, or load it with CREATE TABLE … AS SELECT",
    };
    Err(Error::unsupported(format!(
        "\"{name}\" is a {} file, which has no versions, and cannot be read as of {at}; {way_out}",
        format.name()
    )))
}

/// A table over files. `schema`: told from the files if absent.
///
/// # Errors
/// No file of these names, files of no known or of different formats, files that cannot be read.
pub(crate) async fn table(
    session: &Session,
    state: &SessionState,
    sources: &[String],
    format: Option<Format>,
    options: &[(String, String)],
    schema: Option<SchemaRef>,
) -> Result<Arc<dyn TableProvider>> {
    let (engine, roots) = (session.engine(), session.engine().roots());
    let sources: Vec<String> = sources.iter().map(|source| located(engine, source)).collect::<Result<_>>()?;
    let format = match format {
        Some(format) => format,
        None => format_of(&sources, roots)?,
    };
    match format {
        Format::Lance => {
            let [location] = sources.as_slice() else {
                return Err(Error::invalid("one Lance dataset is read at a time"));
            };
            let snapshot = open_lance(engine, location, options).await?;
            Ok(SnapshotTable::new(location.clone(), snapshot, Default::default(), None).into_provider())
        }
        Format::Npy => npy::table(&expand(&sources, Format::Npy, roots)?),
        _ => listing(state, roots, &sources, format, options, schema).await,
    }
}

/// The one format of all sources.
fn format_of(sources: &[String], roots: Option<&AllowedRoots>) -> Result<Format> {
    let mut formats = vec![];
    for source in sources {
        formats.push(format_of_one(source, roots)?);
    }
    match formats.split_first() {
        Some((first, rest)) if rest.iter().all(|format| format == first) => Ok(*first),
        Some(_) => Err(Error::invalid("the sources have different formats; read those of one format at a time")),
        None => Err(Error::invalid("no source is named")),
    }
}

fn format_of_one(source: &str, roots: Option<&AllowedRoots>) -> Result<Format> {
    if let Some(format) = Format::of_path(source) {
        return Ok(format);
    }
    let path = Path::new(source);
    if path.join("_versions").is_dir() {
        return Ok(Format::Lance);
    }
    if path.is_dir() {
        let mut found: Vec<Format> = walk(path, roots)?.iter().filter_map(|file| Format::of_path(file)).collect();
        found.sort_unstable_by_key(|format| format.name());
        found.dedup();
        return match found.as_slice() {
            [format] => Ok(*format),
            [] => Err(Error::new(
                ErrorKind::NotFound,
                format!("the folder {source} holds no file of a known format; there are {FORMATS}"),
            )),
            _ => Err(Error::invalid(format!(
                "the folder {source} holds files of several formats; name one with STORED AS or --format-in"
            ))),
        };
    }
    if !source.contains("://") && !path.exists() && !has_glob(source) {
        return Err(no_file(source));
    }
    Err(Error::invalid(format!(
        "the ending of {source} names no format; name it with STORED AS or --format-in: {FORMATS}"
    )))
}

pub(crate) fn has_glob(source: &str) -> bool {
    source.contains(['*', '?', '['])
}

fn no_file(source: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no file or folder {source}"))
}

fn unreadable(source: &str, error: &std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{source} cannot be read: {error}"))
}

/// The local files of paths, folders and globs of one format, sorted.
///
/// # Errors
/// A path, folder or glob without a file of the format; a file that is not under the roots.
pub(crate) fn expand(sources: &[String], format: Format, roots: Option<&AllowedRoots>) -> Result<Vec<String>> {
    let mut files = vec![];
    for source in sources {
        let path = Path::new(source);
        let found = if path.is_file() {
            vec![source.clone()]
        } else if path.is_dir() {
            walk(path, roots)?.into_iter().filter(|file| Format::of_path(file) == Some(format)).collect()
        } else {
            globbed(source, roots)?
        };
        if found.is_empty() {
            return Err(no_file(source));
        }
        files.extend(found);
    }
    Ok(files)
}

/// The files that a glob matches, sorted.
fn globbed(pattern: &str, roots: Option<&AllowedRoots>) -> Result<Vec<String>> {
    let paths = glob::glob(pattern).map_err(|error| Error::invalid(format!("{pattern} is no glob: {error}")))?;
    let files: Vec<String> =
        paths.flatten().filter(|path| path.is_file()).map(|path| path.to_string_lossy().into_owned()).collect();
    if let Some(roots) = roots {
        files.iter().try_for_each(|file| roots.check_found(Path::new(file)))?;
    }
    if files.is_empty() {
        let message = if has_glob(pattern) {
            format!("no file matches {pattern}")
        } else {
            format!("there is no file or folder {pattern}")
        };
        return Err(Error::new(ErrorKind::NotFound, message));
    }
    Ok(files)
}

/// All files in a folder and in the folders below it, sorted.
fn walk(folder: &Path, roots: Option<&AllowedRoots>) -> Result<Vec<String>> {
    let mut files = vec![];
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).map_err(|error| unreadable(&folder.to_string_lossy(), &error))?;
        for entry in entries.flatten() {
            let path = entry.path();
            if let Some(roots) = roots {
                roots.check_found(&path)?;
            }
            if path.is_dir() { folders.push(path) } else { files.push(path.to_string_lossy().into_owned()) }
        }
    }
    files.sort();
    Ok(files)
}

async fn listing(
    state: &SessionState,
    roots: Option<&AllowedRoots>,
    sources: &[String],
    format: Format,
    options: &[(String, String)],
    schema: Option<SchemaRef>,
) -> Result<Arc<dyn TableProvider>> {
    let first = &sources[0];
    let mut urls = vec![];
    let mut extension = "";
    for source in sources {
        let local = !source.contains("://");
        let is_folder = if local { Path::new(source).is_dir() } else { source.ends_with('/') };
        if local && (!is_folder || roots.is_some()) {
            // Each file by its own URL: a listing's glob would go into folders, and take a `[` in a name for a pattern.
            // And a listing would follow links out of the roots.
            for file in expand(std::slice::from_ref(source), format, roots)? {
                let url = url::Url::from_file_path(&file)
                    .map_err(|()| Error::invalid(format!("{file} is no absolute path")))?;
                urls.push(ListingTableUrl::try_new(url, None)?);
            }
            continue;
        }
        let source = if is_folder && !source.ends_with('/') { format!("{source}/") } else { source.clone() };
        if is_folder {
            extension = folder_extension(&source, format)?;
        }
        urls.push(ListingTableUrl::parse(&source)?);
    }
    let file_format = file_format(format, first, options)?;
    let listing = ListingOptions::new(file_format)
        .with_file_extension(extension)
        .with_collect_stat(true)
        .with_target_partitions(state.config().target_partitions());
    let schema = match schema {
        Some(schema) => schema,
        None => {
            let mut merged = vec![];
            for url in &urls {
                let inferred =
                    listing.infer_schema(state, url).await.map_err(|error| unreadable_as(url, format, error))?;
                merged.push(inferred.as_ref().clone());
            }
            Arc::new(
                arrow::datatypes::Schema::try_merge(merged)
                    .map_err(|error| Error::invalid(format!("the files differ in their columns: {error}")))?,
            )
        }
    };
    if schema.fields().is_empty() {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("no {} file with columns is found at {first}", format.name()),
        ));
    }
    let config = ListingTableConfig::new_with_multi_paths(urls).with_listing_options(listing).with_schema(schema);
    Ok(Arc::new(ListingTable::try_new(config)?))
}

fn unreadable_as(url: &ListingTableUrl, format: Format, error: datafusion::error::DataFusionError) -> Error {
    let error = Error::from(error);
    let text = url.to_string();
    let source = text.strip_prefix("file://").unwrap_or(&text);
    Error { message: format!("{source} cannot be read as {}: {}", format.name(), error.message), ..error }
}

/// The ending that the files of a folder have, as a listing takes one ending only.
fn folder_extension(folder: &str, format: Format) -> Result<&'static str> {
    if folder.contains("://") {
        return Ok(format.extensions()[0]);
    }
    let names = walk(Path::new(folder), None)?;
    let present: Vec<&str> = format
        .extensions()
        .iter()
        .copied()
        .filter(|extension| names.iter().any(|name| compression(name).0.ends_with(&format!(".{extension}"))))
        .collect();
    match present.as_slice() {
        [] => Err(Error::new(ErrorKind::NotFound, format!("the folder {folder} holds no {} file", format.name()))),
        [one] => Ok(one),
        several => Err(Error::invalid(format!(
            "the folder {folder} holds files ending in {}; name one kind with a glob",
            several.join(" and ")
        ))),
    }
}

fn file_format(format: Format, path: &str, options: &[(String, String)]) -> Result<Arc<dyn FileFormat>> {
    let (_, compressed) = compression(path);
    let mut csv = CsvFormat::default()
        .with_has_header(true)
        .with_schema_infer_max_rec(INFER_ROWS)
        .with_newlines_in_values(true)
        .with_file_compression_type(compressed);
    if compression(path).0.ends_with(".tsv") {
        csv = csv.with_delimiter(b'\t');
    }
    for (key, value) in options {
        csv = match (format, key.as_str()) {
            (Format::Csv, "header" | "has_header") => csv.with_has_header(truth(key, value)?),
            (Format::Csv, "delimiter" | "delim") => csv.with_delimiter(one_byte(key, value)?),
            (Format::Csv, "quote") => csv.with_quote(one_byte(key, value)?),
            (Format::Csv, "escape") => csv.with_escape(Some(one_byte(key, value)?)),
            (Format::Csv, "null" | "null_value") => csv.with_null_regex(Some(format!("^{}$", escaped(value)))),
            _ => {
                return Err(Error::unsupported(format!(
                    "{} files have no option {key}; CSV has header, delimiter, quote, escape and null",
                    format.name()
                )));
            }
        };
    }
    Ok(match format {
        Format::Parquet => Arc::new(ParquetFormat::default()),
        Format::Csv => Arc::new(csv),
        Format::Json => {
            Arc::new(JsonFormat::default().with_schema_infer_max_rec(INFER_ROWS).with_file_compression_type(compressed))
        }
        _ => Arc::new(ArrowFormat),
    })
}

fn truth(key: &str, value: &str) -> Result<bool> {
    match value.to_lowercase().as_str() {
        "true" | "on" | "1" | "yes" => Ok(true),
        "false" | "off" | "0" | "no" => Ok(false),
        _ => Err(Error::invalid(format!("{key} is true or false, not {value}"))),
    }
}

fn one_byte(key: &str, value: &str) -> Result<u8> {
    match value.as_bytes() {
        [byte] => Ok(*byte),
        b"\\t" => Ok(b'\t'),
        _ => Err(Error::invalid(format!("{key} is one character, not '{value}'"))),
    }
}

/// The text with every character that regular expressions know taken literally.
fn escaped(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_alphanumeric() { vec![c] } else { vec!['\\', c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_name_formats() {
        for (path, format) in [
            ("a/b.parquet", Some(Format::Parquet)),
            ("b.csv.gz", Some(Format::Csv)),
            ("x.NDJSON", Some(Format::Json)),
            ("s3://bucket/t.lance/", Some(Format::Lance)),
            ("docs", None),
        ] {
            assert_eq!(Format::of_path(path), format, "{path}");
        }
    }

    #[test]
    fn a_path_may_lead_through_parents_and_links() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().canonicalize().unwrap();
        std::fs::create_dir_all(top.join("a/b")).unwrap();
        std::os::unix::fs::symlink(top.join("a/b"), top.join("link")).unwrap();
        let text = |path: &str| top.join(path).display().to_string();
        for (given, expected) in [
            ("a/b/../../x.csv", "x.csv"),
            ("a/../a/*.csv", "a/*.csv"),
            ("link/../x.csv", "a/x.csv"),
            ("a/./x.csv", "a/x.csv"),
        ] {
            assert_eq!(absolute(&text(given)).unwrap(), text(expected), "{given}");
        }
        assert_eq!(absolute(&text("none/../x.csv")).unwrap_err().kind, ErrorKind::NotFound);
    }
}
