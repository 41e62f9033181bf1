//! Indexes: the statements about them, and their builds, which go on by themselves.
//!
//! An index is an entry in its table's list and segments beside the table. What no segment covers is compared exactly, so a search is right
//! from the moment a row is there, and a build only makes it faster. Builds run one at a time, apart from the statement that asked
//! for them: one that is cancelled or whose process ends has lost nothing but time, and is begun again by whoever next looks.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use datafusion::sql::sqlparser::ast::ObjectName;
use operators::buffers::Needs;
use operators::index_build::{BuildControl, SegmentBuild};
use planner::index_spec::IndexSpec;
use planner::index_statement::{CreateIndex, IndexStatement, Named};
use planner::resolve::RelationName;
use planner::scalar_index::ScalarSpec;
use storage::{IndexDefinition, NewIndex, Relation, Role, ScalarIndex, Snapshot, StorageError, TableEntry, TableName};

use crate::definition::now_us;
use crate::resolver::StatementTables;
use crate::{Answer, Engine, Error, ErrorKind, Result, Session};

/// Rows without a segment from which on one is built for them: fewer are compared in a fraction of a millisecond.
const UNCOVERED_ROWS_MIN: u64 = 4_096;
/// How long after a change a table is looked at: changes come in groups.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// How often tables with indexes are looked for among all.
const LOOK_AROUND_AFTER: Duration = Duration::from_secs(60);
/// How long after the start tables with indexes are looked for: a statement that is all a process does is not held up.
const FIND_AFTER: Duration = Duration::from_secs(3);
/// How often a build starts anew because its files were replaced meanwhile.
const CONFLICTS_MAX: usize = 5;

/// The builds of an engine.
#[derive(Default)]
pub(crate) struct Builds {
    /// One at a time: each takes all threads.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By the identity of the index.
    running: HashMap<String, Arc<BuildControl>>,
    /// Tables that have an index, as far as this process has seen.
    tables: HashSet<TableName>,
    /// Whether somebody looks, or is about to.
    is_looking: bool,
    /// Whether something was changed since somebody looked.
    is_behind: bool,
    /// When tables with indexes were looked for.
    looked_at: Option<Instant>,
}

impl fmt::Debug for Builds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builds").finish_non_exhaustive()
    }
}

impl Builds {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much of a build is done, from 0 to 1; `None` if none runs here.
    pub(crate) fn progress(&self, index: &str) -> Option<f64> {
        self.lock().running.get(index).map(|control| control.progress())
    }

    /// Remembers that a table has an index.
    pub(crate) fn note(&self, table: &TableName) {
        self.lock().tables.insert(table.clone());
    }

    fn cancel(&self, index: &str) {
        if let Some(control) = self.lock().running.get(index) {
            control.cancel();
        }
    }

    /// The turn to build or merge.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// A build of an index begins, and has ended when the second of these is dropped. The first tells how far it is, and cancels it.
    pub(crate) fn begin<'a>(&'a self, index: &'a str) -> (Arc<BuildControl>, Ended<'a>) {
        let control = Arc::new(BuildControl::new(0));
        self.lock().running.insert(index.to_owned(), Arc::clone(&control));
        (control, Ended { builds: self, index })
    }
}

impl Engine {
    /// Looks before long whether an index has fallen behind, and builds what is missing. Cheap.
    pub(crate) fn look_after_indexes(&self) {
        {
            let mut state = self.builds().lock();
            state.is_behind = true;
            if std::mem::replace(&mut state.is_looking, true) {
                return;
            }
        }
        let engine = self.downgrade();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_AFTER).await;
                // Whoever closes the database ends this.
                let Some(engine) = engine.upgrade() else { return };
                {
                    let mut state = engine.builds().lock();
                    if !std::mem::take(&mut state.is_behind) {
                        state.is_looking = false;
                        return;
                    }
                }
                engine.catch_up_all().await;
            }
        });
    }

    /// Brings the indexes of all tables up to date that are known to have one.
    async fn catch_up_all(&self) {
        let is_due = {
            let mut state = self.builds().lock();
            let is_due = state.looked_at.is_none_or(|at| at.elapsed() > LOOK_AROUND_AFTER);
            if is_due {
                state.looked_at = Some(Instant::now());
            }
            is_due
        };
        // Other processes make indexes too, and tables change their names.
        if is_due && let Err(error) = self.note_indexed_tables().await {
            tracing::warn!(%error, "indexes were not looked for");
        }
        let tables: Vec<TableName> = self.builds().lock().tables.iter().cloned().collect();
        for table in tables {
            if let Err(error) = self.catch_up(&table).await {
                tracing::warn!(%table, %error, "the indexes of a table were not brought up to date; that is tried after the next change");
            }
        }
    }

    /// Looks for indexes that are behind, a while after the start: builds that an earlier process did not end are gone on with.
    pub(crate) fn find_indexes(&self) {
        let engine = self.downgrade();
        tokio::spawn(async move {
            tokio::time::sleep(FIND_AFTER).await;
            if let Some(engine) = engine.upgrade() {
                engine.look_after_indexes();
            }
        });
    }

    async fn note_indexed_tables(&self) -> Result<()> {
        let catalog = self.database().catalog().await?;
        for (schema, entry) in &catalog.schemas {
            for (table, relation) in &entry.relations {
                let Relation::Table(entry) = relation else { continue };
                // A table that cannot be read keeps no other one from its index.
                let Ok(snapshot) = self.database().snapshot(entry).await else { continue };
                if !snapshot.indexes().await.indexes.is_empty() || !snapshot.scalar_indexes().await?.is_empty() {
                    self.builds().note(&TableName::new(schema, table));
                }
            }
        }
        Ok(())
    }

    /// Builds what the indexes of a table lack, if it is worth it.
    async fn catch_up(&self, table: &TableName) -> Result<()> {
        let catalog = self.database().catalog().await?;
        let Some(Relation::Table(entry)) = catalog.relation(table) else {
            self.builds().lock().tables.remove(table);
            return Ok(());
        };
        let snapshot = self.database().snapshot(entry).await?;
        for index in &snapshot.indexes().await.indexes {
            // The column of an index may be gone, or another program may have made it: the others are built all the same.
            if let Err(error) = self.catch_up_index(table, entry, &snapshot, index).await {
                tracing::warn!(%table, index = index.name, %error, "an index was not brought up to date");
            }
        }
        self.catch_up_scalar(table, entry, &snapshot).await
    }

    async fn catch_up_index(
        &self,
        table: &TableName,
        entry: &TableEntry,
        snapshot: &Snapshot,
        index: &IndexDefinition,
    ) -> Result<()> {
        let coverage = snapshot.index_coverage(&index.name).await?;
        if coverage.uncovered_rows >= UNCOVERED_ROWS_MIN {
            self.build_index(table, entry, index, Asked::InBackground).await?;
        }
        self.merge_segments(table, entry, index, &spec_of(index)?).await
    }

    /// Builds segments until an index covers the rows: one, or as many as memory takes. It goes on while enough are for a segment: others
    /// may write all the time.
    ///
    /// # Errors
    /// The index is gone, its build was cancelled, its files cannot be read or written, or one data file alone takes more memory than
    /// there is.
    async fn build_index(
        &self,
        table: &TableName,
        entry: &TableEntry,
        index: &IndexDefinition,
        asked: Asked,
    ) -> Result<()> {
        let spec = spec_of(index)?;
        let _turn = self.builds().turn().await;
        let mut conflicts = 0;
        let mut rows_min = if asked == Asked::ByStatement { 1 } else { UNCOVERED_ROWS_MIN };
        while let Some(build) = self.next_build(entry, index, &spec, rows_min).await? {
            rows_min = UNCOVERED_ROWS_MIN;
            let needs = Needs::of_bytes(build.bytes());
            let state = self.session().state();
            let _claim = match asked {
                Asked::ByStatement => crate::run::claim(&state, &needs).await?,
                // Whoever searches or writes comes first.
                Asked::InBackground => match crate::run::claim_at_once(&state, &needs)? {
                    Some(claim) => claim,
                    None => {
                        self.look_after_indexes();
                        return Ok(());
                    }
                },
            };
            let (control, _ended) = self.builds().begin(&index.id);
            let segment = build.run(control).await?;
            match self.database().publish_segment(entry, index, segment).await {
                Ok(_) => tracing::info!(%table, index = index.name, "a segment was built"),
                // Somebody else was first, or the files are gone: what is missing now is another question.
                Err(StorageError::Conflict(_)) if conflicts < CONFLICTS_MAX => conflicts += 1,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// What is to be built next: data files that the index does not cover, as many as half of the memory takes; `None` if there is none.
    async fn next_build(
        &self,
        entry: &TableEntry,
        index: &IndexDefinition,
        spec: &IndexSpec,
        rows_min: u64,
    ) -> Result<Option<SegmentBuild>> {
        let snapshot = self.database().snapshot(entry).await?;
        let open = snapshot.open_index(&index.name).await?;
        let coverage = open.coverage;
        // Another index of its name may have taken its place.
        if coverage.index.id != index.id || coverage.uncovered_rows < rows_min {
            return Ok(None);
        }
        let mut build = SegmentBuild {
            column: coverage.column.clone(),
            snapshot,
            spec: spec.clone(),
            units: vec![],
            // The routing of the largest one was learned from the most rows.
            like: open.segments.into_iter().max_by_key(|segment| segment.rows()),
            threads: self.threads(),
            now_us: now_us(),
        };
        for unit in &coverage.units {
            build.units.push(unit.clone());
            if build.units.len() > 1 && build.bytes() > self.memory_bytes() / 2 {
                build.units.pop();
                break;
            }
        }
        Ok((!build.units.is_empty()).then_some(build))
    }
}

/// Who wants a build.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Somebody waits for it.
    ByStatement,
    /// Nobody does.
    InBackground,
}

/// # Errors
/// Options that this program does not know.
fn spec_of(index: &IndexDefinition) -> Result<IndexSpec> {
    IndexSpec::of_text(&index.options).ok_or_else(|| {
        let name = &index.name;
        Error::unsupported(format!("another program made the index {name}; drop it, or use that program"))
    })
}

/// An index, whatever its column holds.
enum Found {
    Vectors(IndexDefinition),
    Scalar(ScalarIndex),
}

impl Found {
    fn name(&self) -> &str {
        match self {
            Self::Vectors(index) => &index.name,
            Self::Scalar(index) => &index.name,
        }
    }
}

/// A build that has ended, however it did.
pub(crate) struct Ended<'a> {
    builds: &'a Builds,
    index: &'a str,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if let Some(control) = self.builds.lock().running.remove(self.index) {
            control.cancel();
        }
    }
}

impl Session {
    /// `CREATE INDEX`, `DROP INDEX`, `REINDEX`, `PREWARM`.
    pub(crate) async fn change_indexes(&self, statement: &IndexStatement) -> Result<Answer> {
        match statement {
            IndexStatement::Create(create) => self.create_index(create).await,
            IndexStatement::Drop { name, table, if_exists } => self.drop_index(name, table.as_ref(), *if_exists).await,
            IndexStatement::Reindex(named) => self.reindex(named).await,
            IndexStatement::Prewarm(named) => self.prewarm(named).await,
        }
    }

    /// Makes the index and waits until all rows are covered. Whoever does not want to wait any more may stop: it is built on.
    async fn create_index(&self, create: &CreateIndex) -> Result<Answer> {
        let (table, entry) = self.indexed(&create.table).await?;
        let database = self.engine().database();
        let snapshot = database.snapshot(&entry).await?;
        let schema = snapshot.schema();
        let Ok(column) = schema.field_with_name(&create.column) else {
            let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            return Err(Error::invalid(format!(
                "table {table} has no column {}; it has {}",
                create.column,
                columns.join(", ")
            )));
        };
        let method = (create.method.as_deref(), create.operator_class.as_deref());
        if let Some(spec) = ScalarSpec::parse(method.0, method.1, &create.options, column)? {
            return self.create_scalar_index(create, &table, &entry, spec).await;
        }
        let spec =
            IndexSpec::parse(create.method.as_deref(), create.operator_class.as_deref(), &create.options, column)?;
        let name = create.name.clone().unwrap_or_else(|| format!("{}_{}_idx", table.table, create.column));
        let new =
            NewIndex { name: name.clone(), column: create.column.clone(), options: spec.to_text(), now_us: now_us() };
        let index = match database.create_index(&table, &entry, new).await {
            Ok(index) => index,
            Err(StorageError::AlreadyExists(_)) if create.if_not_exists => return Ok(Answer::done("CREATE INDEX")),
            Err(error) => return Err(error.into()),
        };
        self.engine().builds().note(&table);
        if let Err(error) = self.built(table, &entry, &index).await {
            // What could not be built is not there, so that it can be made once the cause is gone.
            if let Err(error) = database.drop_index(&entry, &index.name, true).await {
                tracing::warn!(index = index.name, %error, "an index that was not built could not be dropped");
            }
            return Err(error);
        }
        Ok(Answer::done("CREATE INDEX"))
    }

    async fn drop_index(&self, name: &ObjectName, table: Option<&ObjectName>, if_exists: bool) -> Result<Answer> {
        let database = self.engine().database();
        for (table, entry, index) in self.find_index(name, table, if_exists).await? {
            match index {
                Found::Vectors(index) => {
                    self.engine().builds().cancel(&index.id);
                    database.drop_index(&entry, &index.name, if_exists).await?;
                }
                Found::Scalar(index) => {
                    database.drop_scalar_index(&table, &entry, &index.name).await?;
                }
            }
        }
        Ok(Answer::done("DROP INDEX"))
    }

    /// Builds indexes anew, in one segment each where memory takes it. A damaged list of indexes is replaced before.
    async fn reindex(&self, named: &Named) -> Result<Answer> {
        let all = self.named(named).await?;
        for (_, _, index) in &all {
            if let Found::Vectors(index) = index {
                spec_of(index)?;
            }
        }
        for (table, entry, index) in all {
            let index = match index {
                Found::Vectors(index) => index,
                Found::Scalar(index) => {
                    self.rebuild_scalar_index(&table, &entry, &index.name, &index.column).await?;
                    continue;
                }
            };
            self.engine().builds().note(&table);
            if !self.rebuilt(&entry, &index).await? {
                let index = self.engine().database().clear_index(&entry, &index.name).await?;
                self.built(table, &entry, &index).await?;
            }
        }
        Ok(Answer::done("REINDEX"))
    }

    /// Reads indexes and the vectors that they are of, as far as caches hold them, so that the next search finds them in memory.
    async fn prewarm(&self, named: &Named) -> Result<Answer> {
        for (_, entry, index) in self.named(named).await? {
            // What is in the files of an index on other columns, Lance keeps as it is read.
            let Found::Vectors(index) = index else { continue };
            let snapshot = self.engine().database().snapshot(&entry).await?;
            let open = snapshot.open_index(&index.name).await?;
            for segment in &open.segments {
                segment.verify().await?;
            }
            let column = &open.coverage.column;
            if snapshot.can_keep_vectors(column)? {
                for chunk in snapshot.vector_chunks(column)? {
                    snapshot.load_vectors(&chunk).await?;
                }
            }
        }
        Ok(Answer::done("PREWARM"))
    }

    /// The indexes that a statement names; where it names a table, a damaged list of indexes is replaced before.
    async fn named(&self, named: &Named) -> Result<Vec<(TableName, TableEntry, Found)>> {
        match (&named.name, &named.table) {
            (Some(name), table) => self.find_index(name, table.as_ref(), false).await,
            (None, Some(table)) => {
                let (table, entry) = self.indexed(table).await?;
                self.mend_list(&table, &entry).await?;
                let indexes = self.indexes_of(&table, &entry).await?.into_iter();
                Ok(indexes.map(|index| (table.clone(), entry.clone(), index)).collect())
            }
            (None, None) => Ok(vec![]),
        }
    }

    /// Replaces a damaged list of indexes by the newest that can be read.
    ///
    /// # Errors
    /// None of the lists can be read: there are no indexes any more.
    async fn mend_list(&self, table: &TableName, entry: &TableEntry) -> Result<()> {
        let database = self.engine().database();
        match database.indexes(entry).await {
            Err(StorageError::Corrupt(_)) => {}
            other => return other.map(|_| ()).map_err(Error::from),
        }
        if database.repair_indexes(entry).await? == 0 {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "the list of indexes of {table} was damaged and no earlier one can be read: {table} has no index on vectors now; \
                     CREATE INDEX makes them anew"
                ),
            ));
        }
        Ok(())
    }

    /// Puts one new segment in the place of all of an index, which are used until then. `false` if that takes more memory than half of
    /// all, or if somebody else changed the segments meanwhile.
    async fn rebuilt(&self, entry: &TableEntry, index: &IndexDefinition) -> Result<bool> {
        let (engine, entry, index) = (self.engine().clone(), entry.clone(), index.clone());
        // It goes on if nobody waits for it.
        let work = tokio::spawn(async move {
            let _turn = engine.builds().turn().await;
            let known = engine.database().indexes(&entry).await?;
            let ids: Vec<String> = known.segments_of(&index).map(|segment| segment.id.clone()).collect();
            let snapshot = engine.database().snapshot(&entry).await?;
            let column = snapshot.index_coverage(&index.name).await?.column.clone();
            let units = snapshot.units_without(&index.name, &ids).await?.units;
            let (spec, threads) = (spec_of(&index)?, engine.threads());
            let build = SegmentBuild { snapshot, column, spec, units, like: None, threads, now_us: now_us() };
            if build.units.is_empty() || build.bytes() > engine.memory_bytes() / 2 {
                return Ok(false);
            }
            let _claim = crate::run::claim(&engine.session().state(), &Needs::of_bytes(build.bytes())).await?;
            let (control, _ended) = engine.builds().begin(&index.id);
            let segment = build.run(control).await?;
            match engine.database().replace_segments(&entry, &index, &ids, segment).await {
                Ok(_) => Ok(true),
                Err(StorageError::Conflict(_)) => Ok(false),
                Err(error) => Err(error.into()),
            }
        });
        work.await.map_err(|error| Error::new(ErrorKind::Internal, format!("the build ended early: {error}")))?
    }

    /// Waits for a build that goes on if nobody waits for it.
    async fn built(&self, table: TableName, entry: &TableEntry, index: &IndexDefinition) -> Result<()> {
        let (engine, entry, index) = (self.engine().clone(), entry.clone(), index.clone());
        let build = tokio::spawn(async move { engine.build_index(&table, &entry, &index, Asked::ByStatement).await });
        build.await.map_err(|error| Error::new(ErrorKind::Internal, format!("the build ended early: {error}")))?
    }

    /// A table whose indexes are changed.
    async fn indexed(&self, table: &ObjectName) -> Result<(TableName, TableEntry)> {
        let tables = StatementTables::new(self.clone(), self.state());
        tables.versioned(&RelationName::of_sql(table)?, Role::Write).await
    }

    /// All indexes of a table.
    async fn indexes_of(&self, table: &TableName, entry: &TableEntry) -> Result<Vec<Found>> {
        let database = self.engine().database();
        let known = database.indexes(entry).await.map_err(|error| {
            let is_damaged = matches!(error, StorageError::Corrupt(_));
            let hint = is_damaged.then(|| format!("REINDEX TABLE {table} goes on from the last list that can be read"));
            let error = Error::from(error);
            Error { hint: hint.or_else(|| error.hint.clone()), ..error }
        })?;
        let scalar = database.snapshot(entry).await?.scalar_indexes().await?;
        let vectors = known.indexes.iter().cloned().map(Found::Vectors);
        Ok(vectors.chain(scalar.into_iter().map(Found::Scalar)).collect())
    }

    /// An index by its name, in its table or in all tables of its schema. Two of a table are one: whoever restored a version
    /// may have brought back an index whose name was given to another one since.
    ///
    /// # Errors
    /// There is none and there must be one; there are several.
    async fn find_index(
        &self,
        name: &ObjectName,
        table: Option<&ObjectName>,
        if_exists: bool,
    ) -> Result<Vec<(TableName, TableEntry, Found)>> {
        let is_qualified = name.0.len() > 1;
        let RelationName { schema, table: name } = RelationName::of_sql(name)?;
        let mut found = vec![];
        for (table, entry) in self.tables_of(&schema, table).await? {
            if is_qualified && table.schema != schema {
                return Err(Error::invalid(format!(
                    "the index {name} is in the schema of its table, {}, not in {schema}; leave {schema} out",
                    table.schema
                )));
            }
            let named = self.indexes_of(&table, &entry).await?.into_iter().filter(|index| index.name() == name);
            found.extend(named.map(|index| (table.clone(), entry.clone(), index)));
        }
        match (found.first(), found.last()) {
            (Some((one, ..)), Some((other, ..))) if one == other => Ok(found),
            (Some((one, ..)), Some((other, ..))) => Err(Error::invalid(format!(
                "there are indexes {name} on {one} and on {other}; name the table: {name} ON {}",
                one.table
            ))),
            _ if if_exists => Ok(vec![]),
            _ => Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no index {name}; SELECT index_name, table_name FROM system.indexes lists them"),
            )),
        }
    }

    async fn tables_of(&self, schema: &str, table: Option<&ObjectName>) -> Result<Vec<(TableName, TableEntry)>> {
        if let Some(table) = table {
            return Ok(vec![self.indexed(table).await?]);
        }
        let tables = StatementTables::new(self.clone(), self.state());
        let catalog = tables.catalog().await?;
        let names = catalog.schemas.get(schema).into_iter().flat_map(|entry| &entry.relations);
        let names = names.filter(|(_, relation)| matches!(relation, Relation::Table(_)));
        let names: Vec<RelationName> =
            names.map(|(table, _)| RelationName { schema: schema.to_owned(), table: table.clone() }).collect();
        let mut all = vec![];
        for name in names {
            all.push(tables.versioned(&name, Role::Write).await?);
        }
        Ok(all)
    }
}
