//! The library and the only API boundary: [`Engine`], [`Session`], answers and errors.
//!
//! ```no_run
//! # async fn run() -> Result<(), engine::Error> {
//! let engine = engine::Engine::open("memory:", engine::EngineOptions::default()).await?;
//! let session = engine.session();
//! session.execute("CREATE TABLE docs (id BIGINT, emb VECTOR(2))").await?;
//! session.execute("INSERT INTO docs VALUES (1, '[1, 0]'), (2, '[0, 1]')").await?;
//! let search = session.prepare("SELECT id FROM docs ORDER BY emb <=> $1 LIMIT 1").await?;
//! let nearest = search.run(&[engine::vector([0.9, 0.1])]).await?.collect().await?;
//! assert_eq!(nearest[0].num_rows(), 1);
//! # Ok(()) }
//! ```

mod alter;
mod answer;
mod catalog_tables;
mod change;
mod check;
mod copy;
mod deadline;
mod definition;
mod describe;
mod engine;
mod error;
mod explain;
mod files;
mod import;
mod index_builds;
mod index_merges;
mod index_tables;
mod indexes;
mod ingest;
mod insert;
mod keys;
mod memory;
mod npy;
mod objects;
mod password;
mod pins;
mod plan;
mod prepared;
mod queries;
mod resolver;
mod rights;
mod roots;
mod run;
mod scalar_indexes;
mod session;
mod session_settings;
pub mod substrait;
mod table_options;
mod template;
pub mod text;
mod time;
mod users;
mod vectorize;

pub use answer::{Answer, Done, Progress, Rows};
pub use arrow;
pub use datafusion::common::ScalarValue;
pub use describe::Description;
pub use engine::{Engine, EngineFigures, EngineOptions};
pub use error::{Error, ErrorKind};
pub use files::Format;
pub use import::{ImportMode, ImportOptions};
pub use ingest::IngestTarget;
pub use memory::Held;
pub use objects::{CATALOG, DEFAULT_SCHEMA, Objects, RelationInfo, RelationKind, sql_type_name};
pub use pins::{PinnedRelation, Pins};
pub use plan::{Plan, Started};
pub use prepared::{Prepared, vector};
pub use queries::QueryReport;
pub use rights::UserIdentity;
pub use session::{Session, Statement, TableWords, Vocabulary};
pub use storage::Secret;

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;
