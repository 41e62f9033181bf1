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
mod engine;
mod error;
mod explain;
mod files;
mod import;
mod insert;
mod keys;
mod npy;
mod prepared;
mod resolver;
mod session;
mod session_settings;
mod table_options;
pub mod text;
mod time;
mod vectorize;

pub use answer::{Answer, Done, Progress, Rows};
pub use arrow;
pub use datafusion::common::ScalarValue;
pub use engine::{Engine, EngineOptions};
pub use error::{Error, ErrorKind};
pub use files::Format;
pub use import::{ImportMode, ImportOptions};
pub use prepared::{Prepared, vector};
pub use session::{Session, Statement, TableWords, Vocabulary};

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;
