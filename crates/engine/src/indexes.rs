//! Indexes: the statements about them.
//!
//! An index is an entry in its table's list and segments beside the table. What no segment covers is compared exactly, so a search is right
//! from the moment a row is there, and a build (`index_builds.rs`) only makes it faster.

use datafusion::sql::sqlparser::ast::ObjectName;
use operators::buffers::Needs;
use operators::index_build::SegmentBuild;
use planner::index_spec::IndexSpec;
use planner::index_statement::{CreateIndex, IndexStatement, Named};
use planner::resolve::RelationName;
use planner::scalar_index::ScalarSpec;
use storage::{IndexDefinition, NewIndex, Relation, Role, ScalarIndex, StorageError, TableEntry, TableName};

use crate::definition::now_us;
use crate::index_builds::{Asked, spec_of};
use crate::resolver::StatementTables;
use crate::{Answer, Error, ErrorKind, Result, Session};

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
            if let Err(error) = database.take_back_index(&entry, &index).await {
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
