//! CREATE and DROP of schemas, tables and views. A clause that is not carried out is refused, by comparing the
//! statement with one that has only the clauses that are.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Field, SchemaRef};
use datafusion::common::exec_err;
use datafusion::logical_expr::{ExprSchemable, LogicalPlan};
use datafusion::sql::parser::CreateExternalTable;
use datafusion::sql::sqlparser::ast::helpers::stmt_create_table::CreateTableBuilder;
use datafusion::sql::sqlparser::ast::{
    self, ColumnDef, ColumnOption, ColumnOptionDef, CreateTable, CreateView, ObjectName, ObjectType, SchemaName,
};
use planner::Planner;
use planner::resolve::{RelationName, referenced};
use planner::sql_text::sql_text;
use planner::text_length;
use storage::{CreateMode, DropSchema, ExternalTable, Retention, Role, TableDefinition, TableName, ViewEntry};

use crate::files::{self, Format};
use crate::prepared::simplified;
use crate::resolver::StatementTables;
use crate::vectorize::FloatLists;
use crate::{Answer, Error, ErrorKind, Result, ScalarValue, Session};

const RESERVED_SCHEMAS: &[&str] = &["information_schema", "system"];

/// The moment that a new entry of the catalog carries.
pub(crate) fn now_us() -> i64 {
    chrono::Utc::now().timestamp_micros()
}

/// A name outside of the engine's own schemas.
pub(crate) fn own_name(name: &ObjectName) -> Result<TableName> {
    let name = RelationName::of_sql(name)?;
    refuse_reserved(&name.schema)?;
    Ok(TableName::new(&name.schema, &name.table))
}

/// An answer may have two columns of one name; what is read by name may not.
///
/// # Errors
/// Two columns of one name.
pub(crate) fn refuse_same_names(plan: &LogicalPlan, what: &str) -> Result<()> {
    let mut names = BTreeSet::new();
    match plan.schema().fields().iter().find(|field| !names.insert(field.name())) {
        Some(field) => Err(Error::invalid(format!(
            "two columns of {what} would have the same name \"{0}\"; give one of them another: SELECT … AS {0}_2",
            field.name()
        ))),
        None => Ok(()),
    }
}

fn refuse_reserved(schema: &str) -> Result<()> {
    match RESERVED_SCHEMAS.contains(&schema) {
        true => Err(Error::invalid(format!("the schema {schema} is the engine's own; choose another"))),
        false => Ok(()),
    }
}

/// What happens where the name is taken.
pub(crate) fn mode(or_replace: bool, if_not_exists: bool) -> Result<CreateMode> {
    match (or_replace, if_not_exists) {
        (true, true) => Err(Error::invalid("OR REPLACE and IF NOT EXISTS contradict each other; write one of them")),
        (true, false) => Ok(CreateMode::OrReplace),
        (false, true) => Ok(CreateMode::IfNotExists),
        (false, false) => Ok(CreateMode::ErrorIfExists),
    }
}

impl Session {
    /// A name that the session's user may create.
    async fn new_name(&self, name: &ObjectName) -> Result<TableName> {
        let name = own_name(name)?;
        self.require_now(&name.schema, Role::Admin).await?;
        Ok(name)
    }

    /// A name that the session's user may drop; `None` if there is nothing to be seen and `if_exists`.
    async fn old_name(&self, name: &ObjectName, kind: &str, if_exists: bool) -> Result<Option<TableName>> {
        let name = own_name(name)?;
        match self.require_now(&name.schema, Role::Admin).await {
            Ok(()) => Ok(Some(name)),
            Err(error) if error.kind == ErrorKind::NotFound && if_exists => Ok(None),
            Err(error) if error.kind == ErrorKind::NotFound => {
                let message = format!("{kind} {name} does not exist; SHOW TABLES lists what there is");
                Err(Error::new(ErrorKind::NotFound, message))
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn create_schema(&self, sql: &ast::Statement) -> Result<Answer> {
        let ast::Statement::CreateSchema {
            schema_name: SchemaName::Simple(name),
            if_not_exists,
            with: None,
            options: None,
            default_collate_spec: None,
            clone: None,
        } = sql
        else {
            return Err(Error::unsupported(format!(
                "{sql} has clauses that are not supported; write CREATE SCHEMA [IF NOT EXISTS] name"
            )));
        };
        let name = RelationName::of_sql(name)?.table;
        refuse_reserved(&name)?;
        self.require_admin("create schemas").await?;
        self.engine().database().create_schema(&name, *if_not_exists).await?;
        Ok(Answer::done("CREATE SCHEMA"))
    }

    pub(crate) async fn drop_relations(&self, sql: &ast::Statement) -> Result<Answer> {
        let ast::Statement::Drop {
            object_type,
            if_exists,
            names,
            cascade,
            restrict: _,
            purge: false,
            temporary: false,
            table: None,
        } = sql
        else {
            return Err(Error::unsupported(format!(
                "{sql} has clauses that are not supported; write DROP TABLE|VIEW|SCHEMA [IF EXISTS] name"
            )));
        };
        let [name] = names.as_slice() else {
            return Err(Error::unsupported("DROP takes one name: each statement is its own transaction"));
        };
        let database = self.engine().database();
        match object_type {
            ObjectType::Schema => {
                let name = RelationName::of_sql(name)?.table;
                refuse_reserved(&name)?;
                self.require_admin("drop schemas").await?;
                database.drop_schema(&name, DropSchema { if_exists: *if_exists, cascade: *cascade }).await?;
                Ok(Answer::done("DROP SCHEMA"))
            }
            ObjectType::Table | ObjectType::View if *cascade => Err(Error::unsupported(
                "CASCADE on a table or view is not supported; drop the views that read it by their names",
            )),
            ObjectType::Table => {
                if let Some(name) = self.old_name(name, "table", *if_exists).await? {
                    database.drop_table(&name, *if_exists).await?;
                }
                Ok(Answer::done("DROP TABLE"))
            }
            ObjectType::View => {
                if let Some(name) = self.old_name(name, "view", *if_exists).await? {
                    database.drop_view(&name, *if_exists).await?;
                }
                Ok(Answer::done("DROP VIEW"))
            }
            other => Err(Error::unsupported(format!(
                "DROP {other} is not supported; there are DROP TABLE, DROP VIEW and DROP SCHEMA"
            ))),
        }
    }

    pub(crate) async fn create_table(&self, create: &CreateTable, parameters: &[ScalarValue]) -> Result<Answer> {
        refuse_other_clauses(create)?;
        let name = self.new_name(&create.name).await?;
        let mode = mode(create.or_replace, create.if_not_exists)?;
        let retention = self.retention_of(&create.table_options)?;
        if let Some(query) = &create.query {
            if !create.columns.is_empty() {
                return Err(Error::unsupported(
                    "a list of columns before AS is not supported; name and cast the columns in the SELECT",
                ));
            }
            return self.create_table_as(&name, mode, retention, query, parameters).await;
        }
        if create.columns.is_empty() {
            return Err(Error::invalid(format!(
                "table \"{name}\" needs columns: CREATE TABLE {name} (id BIGINT, emb VECTOR(384))"
            )));
        }
        let definition = TableDefinition { retention, ..self.definition(create)? };
        self.engine().database().create_table(&name, definition, mode).await?;
        Ok(Answer::done("CREATE TABLE"))
    }

    /// Schema, defaults and primary key from the columns and constraints of a CREATE TABLE; the retention is the default.
    fn definition(&self, create: &CreateTable) -> Result<TableDefinition> {
        let columns = &create.columns;
        let state = self.state();
        let tables = StatementTables::new(self.clone(), state.clone());
        let planner = Planner { state: &state, resolver: &tables };
        columns.iter().try_for_each(check_options)?;
        let schema = planner.columns(columns)?;
        let primary_key = crate::keys::primary_key(create, &schema)?;
        let schema = crate::keys::with_key_not_null(&schema, &primary_key);
        let mut defaults = BTreeMap::new();
        for (column, field) in columns.iter().zip(schema.fields()) {
            let Some(default) = default_of(column) else { continue };
            self.default_value(default, &column.data_type.to_string(), field)?;
            defaults.insert(field.name().clone(), sql_text(default));
        }
        let schema = storage::storable_schema(&schema)?;
        Ok(TableDefinition { schema, defaults, primary_key, retention: None, now_us: now_us() })
    }

    /// The value of a DEFAULT, evaluated once: one that fails would make every INSERT fail.
    ///
    /// # Errors
    /// A default that does not fit the type of its column, or that names columns.
    pub(crate) fn default_value(&self, default: &ast::Expr, sql_type: &str, field: &Field) -> Result<ScalarValue> {
        let state = self.state();
        let tables = StatementTables::new(self.clone(), state.clone());
        let planned = Planner { state: &state, resolver: &tables }.expression(default.clone())?;
        let empty = datafusion::common::DFSchema::empty();
        let data_type = planned.get_type(&empty)?;
        let value = planner::convert_to(planned, &data_type, field)
            .and_then(|value| simplified(value, &state))
            .and_then(|value| state.create_physical_expr(value, &empty))
            .and_then(|value| value.evaluate(&one_row()?)?.into_array(1))
            .and_then(|value| {
                let length = text_length::of_field(field);
                match length.and_then(|length| text_length::first_longer(&value, length)) {
                    Some((_, characters)) => exec_err!("it has {characters} characters"),
                    None => Ok(value),
                }
            })
            .and_then(|value| ScalarValue::try_from_array(&value, 0));
        value.map_err(|error| {
            let message = Error::from(error).message;
            Error::invalid(format!(
                "the default {default} of column {} does not fit its type {sql_type}: {message}",
                field.name()
            ))
        })
    }

    async fn create_table_as(
        &self,
        name: &TableName,
        mode: CreateMode,
        retention: Option<Retention>,
        query: &ast::Query,
        parameters: &[ScalarValue],
    ) -> Result<Answer> {
        if mode == CreateMode::IfNotExists && self.catalog().await?.relation(name).is_some() {
            return Ok(Answer::done("CREATE TABLE"));
        }
        let (plan, state) = self.plan_query(query, parameters).await?;
        refuse_same_names(&plan, &format!("table \"{name}\""))?;
        let physical = state.create_physical_plan(&plan).await?;
        let source = || crate::run::written(&state, &physical);
        let written = self.create_from(name, mode, retention, FloatLists::ToVectors, source, None).await?;
        Ok(written.map_or_else(|| Answer::done("CREATE TABLE"), |rows| Answer::wrote("CREATE TABLE", rows)))
    }

    pub(crate) async fn create_view(&self, create: &CreateView) -> Result<Answer> {
        let named = [
            (create.materialized, "MATERIALIZED"),
            (create.temporary, "TEMPORARY"),
            (create.options != ast::CreateTableOptions::None, "WITH (…)"),
        ];
        if let Some((_, clause)) = named.iter().find(|(given, _)| *given) {
            return Err(Error::unsupported(format!(
                "{clause} of CREATE VIEW is not supported; write CREATE VIEW {} AS SELECT …",
                create.name
            )));
        }
        if create.materialized
            || create.temporary
            || create.secure
            || create.or_alter
            || !create.cluster_by.is_empty()
            || create.comment.is_some()
            || create.with_no_schema_binding
            || create.copy_grants
            || create.to.is_some()
            || create.params.is_some()
            || create.options != ast::CreateTableOptions::None
        {
            return Err(Error::unsupported(
                "the clauses of this view are not supported; write CREATE [OR REPLACE] VIEW [IF NOT EXISTS] name [(columns)] AS SELECT …",
            ));
        }
        let name = self.new_name(&create.name).await?;
        let columns: Vec<String> = create.columns.iter().map(|column| column.name.to_string()).collect();
        let query = planner::pin::text_of(&create.query);
        let sql = match columns.is_empty() {
            true => query,
            false => format!("SELECT * FROM ({query}) AS v ({})", columns.join(", ")),
        };
        let itself = |other: &ObjectName| {
            RelationName::of_sql(other).is_ok_and(|other| other.schema == name.schema && other.table == name.table)
        };
        if referenced(create.query.as_ref()).iter().any(itself) {
            return Err(Error::invalid(format!("view \"{name}\" names itself")));
        }
        // Planned now, so that a view that cannot be read is not made.
        refuse_same_names(&self.execute_plan_only(&sql).await?, &format!("view \"{name}\""))?;
        let view = ViewEntry { sql, created_at_us: now_us() };
        self.engine().database().create_view(&name, view, mode(create.or_replace, create.if_not_exists)?).await?;
        Ok(Answer::done("CREATE VIEW"))
    }

    async fn execute_plan_only(&self, sql: &str) -> Result<LogicalPlan> {
        let mut statements = planner::statement::parse(sql)?;
        match statements.pop().map(|statement| statement.kind) {
            Some(planner::statement::StatementKind::Sql(statement)) => match *statement {
                ast::Statement::Query(query) => self.plan_query(&query, &[]).await.map(|(plan, _)| plan),
                other => Err(Error::invalid(format!("{other} is no query"))),
            },
            _ => Err(Error::invalid(format!("{sql} is no query"))),
        }
    }

    pub(crate) async fn create_external(&self, create: &CreateExternalTable) -> Result<Answer> {
        if create.temporary
            || create.unbounded
            || !create.constraints.is_empty()
            || !create.order_exprs.is_empty()
            || !create.table_partition_cols.is_empty()
        {
            return Err(Error::unsupported(
                "TEMPORARY, UNBOUNDED, constraints, WITH ORDER and PARTITIONED BY of external tables are not supported; write CREATE EXTERNAL TABLE name STORED AS format LOCATION '…'",
            ));
        }
        let name = self.new_name(&create.name).await?;
        let mode = mode(create.or_replace, create.if_not_exists)?;
        let format = Format::parse(&create.file_type)?;
        let options: Vec<(String, String)> = create
            .options
            .iter()
            .map(|(key, value)| Ok((files::option_key(key), files::option_text(value)?)))
            .collect::<Result<_>>()?;
        let state = self.state();
        let location = files::located(self.engine(), &create.location)?;
        let given = self.given_schema(create)?;
        // Opened once now: a location that cannot be read is an error of this statement.
        let table = files::table(self, &state, std::slice::from_ref(&location), Some(format), &options, given).await?;
        let schema = (format != Format::Lance).then(|| table.schema());
        let external =
            ExternalTable { format: format.name().to_owned(), location, options, schema, created_at_us: now_us() };
        self.engine().database().create_external(&name, external, mode).await?;
        Ok(Answer::done("CREATE EXTERNAL TABLE"))
    }

    fn given_schema(&self, create: &CreateExternalTable) -> Result<Option<SchemaRef>> {
        if create.columns.is_empty() {
            return Ok(None);
        }
        for column in &create.columns {
            if let Some(option) = column
                .options
                .iter()
                .find(|option| !matches!(option.option, ColumnOption::Null | ColumnOption::NotNull))
            {
                return Err(Error::unsupported(format!("{option} on a column of an external table is not supported")));
            }
        }
        let state = self.state();
        let tables = StatementTables::new(self.clone(), state.clone());
        let schema = Planner { state: &state, resolver: &tables }.columns(&create.columns)?;
        if let Some(field) = schema.fields().iter().find(|field| text_length::of_field(field).is_some()) {
            return Err(Error::unsupported(format!(
                "the length of column {} is not supported: nobody checks what is in the files of an external table; write TEXT",
                field.name()
            )));
        }
        Ok(Some(std::sync::Arc::new(schema)))
    }
}

/// A batch without columns and with one row, for expressions that read none.
fn one_row() -> datafusion::error::Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(1));
    Ok(RecordBatch::try_new_with_options(std::sync::Arc::new(arrow::datatypes::Schema::empty()), vec![], &options)?)
}

/// The expression behind DEFAULT.
pub(crate) fn default_of(column: &ColumnDef) -> Option<&ast::Expr> {
    column.options.iter().find_map(|option| match &option.option {
        ColumnOption::Default(expr) => Some(expr),
        _ => None,
    })
}

/// # Errors
/// An option that is not carried out, or that contradicts another.
fn check_options(column: &ColumnDef) -> Result<()> {
    column.options.iter().try_for_each(|option| check_option(column, option))?;
    let count = |is_it: fn(&ColumnOption) -> bool| column.options.iter().filter(|option| is_it(&option.option)).count();
    if count(|option| matches!(option, ColumnOption::Default(_))) > 1 {
        return Err(Error::invalid(format!("column {} has two DEFAULTs; write one", column.name)));
    }
    let (null, not_null) = (
        |option: &_| matches!(option, ColumnOption::Null),
        |option: &_| matches!(option, ColumnOption::NotNull | ColumnOption::PrimaryKey(_)),
    );
    if count(null) > 0 && count(not_null) > 0 {
        return Err(Error::invalid(format!(
            "column {} is said to be NULL and not to be; write one of them",
            column.name
        )));
    }
    Ok(())
}

/// # Errors
/// An option that is not carried out, or a name of one that has none.
fn check_option(column: &ColumnDef, option: &ColumnOptionDef) -> Result<()> {
    let ColumnOptionDef { name, option } = option;
    if let (Some(name), false) = (name, matches!(option, ColumnOption::PrimaryKey(_))) {
        return Err(Error::unsupported(format!(
            "CONSTRAINT {name} {option} on column {} is not supported; leave the name out",
            column.name
        )));
    }
    match option {
        ColumnOption::Null | ColumnOption::NotNull | ColumnOption::Default(_) | ColumnOption::PrimaryKey(_) => Ok(()),
        other => Err(Error::unsupported(format!(
            "{other} on column {} is not supported; a column has NOT NULL, DEFAULT and PRIMARY KEY",
            column.name
        ))),
    }
}

/// # Errors
/// Any clause beyond `CREATE [OR REPLACE] TABLE [IF NOT EXISTS] name (columns)`, `AS SELECT` and options, which
/// `table_options.rs` looks at.
fn refuse_other_clauses(create: &CreateTable) -> Result<()> {
    let is_key = |constraint: &&ast::TableConstraint| matches!(constraint, ast::TableConstraint::PrimaryKey(_));
    if let Some(constraint) = create.constraints.iter().find(|constraint| !is_key(constraint)) {
        return Err(Error::unsupported(format!(
            "the constraint {constraint} is not supported; a column has NOT NULL and DEFAULT, a table a PRIMARY KEY"
        )));
    }
    let files = create.hive_formats.as_ref();
    let named = [
        (create.temporary, "TEMPORARY"),
        (create.global.is_some(), "GLOBAL"),
        (create.partition_by.is_some() || create.partition_of.is_some(), "PARTITION BY"),
        (create.inherits.is_some(), "INHERITS"),
        (create.like.is_some(), "LIKE"),
        (create.clone.is_some(), "CLONE"),
        (create.comment.is_some(), "COMMENT"),
        (create.on_commit.is_some(), "ON COMMIT"),
        (files.is_some_and(|files| files.location.is_some()), "LOCATION (see CREATE EXTERNAL TABLE)"),
        (files.is_some_and(|files| files.storage.is_some()), "STORED AS (see CREATE EXTERNAL TABLE)"),
        (create.order_by.is_some(), "ORDER BY"),
        (create.cluster_by.is_some() || create.clustered_by.is_some(), "CLUSTER BY"),
    ];
    if let Some((_, clause)) = named.iter().find(|(given, _)| *given) {
        return Err(Error::unsupported(format!(
            "{clause} of CREATE TABLE is not supported; write CREATE TABLE {} (column type, …)",
            create.name
        )));
    }
    let plain = CreateTableBuilder::new(create.name.clone())
        .or_replace(create.or_replace)
        .if_not_exists(create.if_not_exists)
        .columns(create.columns.clone())
        .constraints(create.constraints.clone())
        .table_options(create.table_options.clone())
        .query(create.query.clone())
        .build();
    let (given, plain) = (create.to_string(), plain.to_string());
    if given != plain {
        return Err(Error::unsupported(format!(
            "a clause of this CREATE TABLE is not supported; write CREATE [OR REPLACE] TABLE [IF NOT EXISTS] {} (column type [NOT NULL] [DEFAULT value], …) [WITH (retention = '7 days')] or AS SELECT …",
            create.name
        )));
    }
    Ok(())
}
