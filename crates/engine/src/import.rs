//! Loading files into tables, here or elsewhere: behind `sagitta import`, `COPY … FROM` and the API.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlanBuilder;
use datafusion::sql::sqlparser::ast::ObjectName;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use planner::resolve::{RelationName, Resolved, TableResolver};
use storage::{CreateMode, Relation, Role};

use crate::definition::own_name;
use crate::files::{self, Format};
use crate::insert::{by_name, refuse_unfilled, run_insert, scan_of, to_table};
use crate::resolver::StatementTables;
use crate::vectorize::{FloatLists, with_vectors};
use crate::{Error, ErrorKind, Progress, Result, Session};

/// What is done with the table's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportMode {
    /// The table is made; it is an error if there is one.
    Create,
    /// The rows are added to the table; it is an error if there is none.
    Append,
    /// The table is made, or the rows are added.
    CreateOrAppend,
    /// The table is made, and takes the place of one that was there.
    Replace,
}

/// What to load, and where to.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Files, globs, folders or URLs, all of one format.
    pub sources: Vec<String>,
    /// The table's name as in SQL.
    pub table: String,
    /// The format; told from the sources' names if absent.
    pub format: Option<Format>,
    /// What is done with the table's name.
    pub mode: ImportMode,
}

impl Session {
    /// Loads files into a table: all rows or none. Float lists whose length is constant over the whole input become
    /// vectors in a new table; in an old one, columns are matched by name. Returns the number of rows.
    ///
    /// # Errors
    /// Files that cannot be read, a table that is there or is not, rows that do not fit. Nothing is changed then.
    pub async fn import(&self, options: ImportOptions, progress: Arc<Progress>) -> Result<u64> {
        // Boxed: a caller's own futures would else hold the types of the whole load.
        self.load(options, progress).boxed().await
    }

    async fn load(&self, options: ImportOptions, progress: Arc<Progress>) -> Result<u64> {
        self.refuse_writing_in_past()?;
        let name = planner::relation::parse_name(&options.table)?;
        own_name(&name)?;
        let sources: Vec<String> =
            options.sources.iter().map(|source| files::located(self.engine(), source)).collect::<Result<_>>()?;
        let source = files::table(self, &self.in_order(), &sources, options.format, &[], None).await?;
        if let Some(bytes) = local_bytes(&sources) {
            progress.expect_bytes(bytes);
        }
        self.load_from(&name, options.mode, FloatLists::ToVectors, source, progress).await
    }

    /// Reads files for somebody who writes their rows elsewhere: a server, say. `write` gets the columns and the rows, in the
    /// order of the files, in bounded memory. With `to_vectors`, float lists whose length is constant over the whole input
    /// come as vectors; where a late row shows that it is not, its error ends the rows, and `write` is called again.
    ///
    /// # Errors
    /// Files that cannot be read, and those of `write`, which must have kept nothing of rows that ended in an error.
    pub async fn read_files<'a, T>(
        &self,
        sources: &[String],
        format: Option<Format>,
        to_vectors: bool,
        write: impl Fn(SchemaRef, BoxStream<'static, Result<RecordBatch>>) -> BoxFuture<'a, Result<T>>,
    ) -> Result<T> {
        let state = self.in_order();
        let source = files::table(self, &state, sources, format, &[], None).await?;
        let physical = state.create_physical_plan(&scan_of(source)?).await?;
        let source = || crate::run::written(&state, &physical);
        let float_lists = if to_vectors { FloatLists::ToVectors } else { FloatLists::Keep };
        with_vectors(float_lists, source, |schema, rows| write(schema, rows.map_err(Error::from).boxed())).await
    }

    /// Loads the rows of a source into a table.
    pub(crate) async fn load_from(
        &self,
        name: &ObjectName,
        mode: ImportMode,
        float_lists: FloatLists,
        source: Arc<dyn TableProvider>,
        progress: Arc<Progress>,
    ) -> Result<u64> {
        self.refuse_writing_in_past()?;
        let target = own_name(name)?;
        let relation = RelationName::of_sql(name)?;
        let state = self.in_order();
        let exists = matches!(self.catalog().await?.relation(&target), Some(Relation::Table(_)));
        let mode = match (mode, exists) {
            (ImportMode::Append, _) => {
                return self.append_from(&relation, source, &[], ErrorKind::Invalid, &progress).await;
            }
            // The table that could be made is there already, and is another one.
            (ImportMode::CreateOrAppend, true) => {
                return self.append_from(&relation, source, &[], ErrorKind::AlreadyExists, &progress).await;
            }
            (ImportMode::Create | ImportMode::CreateOrAppend, _) => CreateMode::ErrorIfExists,
            (ImportMode::Replace, _) => CreateMode::OrReplace,
        };
        self.require_now(&target.schema, Role::Admin).await?;
        let plan = scan_of(source)?;
        let physical = state.create_physical_plan(&plan).await?;
        let source = || crate::run::written(&state, &physical);
        let report: storage::Progress = Arc::new(move |written| progress.report(written.rows, written.bytes));
        let rows = self.create_from(&target, mode, None, float_lists, source, Some(report)).await?;
        rows.ok_or_else(|| Error::new(ErrorKind::AlreadyExists, format!("table \"{relation}\" is there already")))
    }

    /// A state whose plans have one partition: rows are stored in the order of the files.
    pub(crate) fn in_order(&self) -> Arc<SessionState> {
        let mut state = self.state();
        Arc::make_mut(&mut state).config_mut().options_mut().execution.target_partitions = 1;
        state
    }

    /// Adds the rows of files to a table. `columns`: the table's columns that the files' columns go to, in order;
    /// by name if empty. `misfit`: the kind of the error if the columns are not those of the table.
    pub(crate) async fn append_from(
        &self,
        name: &RelationName,
        source: Arc<dyn TableProvider>,
        columns: &[String],
        misfit: ErrorKind,
        progress: &Progress,
    ) -> Result<u64> {
        let state = self.in_order();
        let tables = StatementTables::new(self.clone(), state.clone());
        let (_, entry) = tables.entry(name, Role::Write).await?;
        let Some(Resolved::Table(table)) = tables.resolve(name, None).await? else {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no table \"{name}\"")));
        };
        let fields = table.schema().fields().to_vec();
        let plan = scan_of(source)?;
        let own: Vec<String> = plan.schema().fields().iter().map(|field| field.name().clone()).collect();
        let vector_columns: Vec<usize> =
            (0..fields.len()).filter(|at| planner::vector_type::VectorType::of_field(&fields[*at]).is_some()).collect();
        let misfits = |error: Error| Error { kind: misfit, ..error };
        let targets = match (columns.is_empty(), own.as_slice(), vector_columns.as_slice()) {
            // A matrix has no names: it is the vector column.
            (true, [_], [at]) if own[0] == "vector" && by_name(&own, name, &fields).is_err() => vec![*at],
            (true, ..) => by_name(&own, name, &fields).map_err(misfits)?,
            (false, ..) => by_name(columns, name, &fields).map_err(misfits)?,
        };
        refuse_unfilled(&targets, name, &fields, &entry).map_err(misfits)?;
        let input = to_table(plan, &targets, &fields, &entry, &tables)?;
        let target = datafusion::datasource::provider_as_source(table);
        let reference = datafusion::common::TableReference::partial(name.schema.clone(), name.table.clone());
        let plan =
            LogicalPlanBuilder::insert_into(input, reference, target, datafusion::logical_expr::dml::InsertOp::Append)?
                .build()?;
        let rows = run_insert(&plan, &state).await?;
        progress.report(rows, 0);
        self.engine().look_after_indexes();
        Ok(rows)
    }
}

/// The bytes of local sources; `None` if some are elsewhere.
fn local_bytes(sources: &[String]) -> Option<u64> {
    let mut bytes = 0;
    for source in sources {
        let format = Format::of_path(source).unwrap_or(Format::Parquet);
        for file in files::expand(std::slice::from_ref(source), format, None).ok()? {
            bytes += std::fs::metadata(file).ok()?.len();
        }
    }
    Some(bytes)
}
