//! A session: settings, prepared statements, and the dispatch of each statement to what carries it out.

use std::collections::HashMap;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use datafusion::execution::{SessionState, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execute_stream;
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::sql::sqlparser::ast;
use futures::{FutureExt, StreamExt};
use planner::Planner;
use planner::settings::Settings;
use planner::statement::StatementKind;

use crate::answer::panicked;
use crate::change::Changing;
use crate::deadline::Deadline;
use crate::prepared::Named;
use crate::resolver::StatementTables;
use crate::{Answer, Engine, Error, Prepared, Progress, Result, Rows, ScalarValue};

/// How many batches a query makes before the caller asks for them.
const BATCHES_AHEAD: usize = 2;

/// A user's session. Cheap to clone; clones share settings and prepared statements.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Engine,
    state: RwLock<SessionState>,
    prepared: Mutex<HashMap<String, Named>>,
}

/// A parsed statement.
#[derive(Debug, Clone)]
pub struct Statement {
    pub(crate) kind: StatementKind,
    pub(crate) source: Arc<str>,
    pub(crate) range: Range<usize>,
}

impl Statement {
    /// The statement without its semicolon.
    pub fn text(&self) -> &str {
        &self.source[self.range.clone()]
    }

    /// The error with its place in the text that was parsed.
    pub(crate) fn place(&self, error: Error) -> Error {
        error.placed_in(&self.source, self.range.clone())
    }

    /// Where it stands in the text that was parsed, in bytes. The places of its errors are of that text too.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }
}

/// The words of a database, for completion.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    /// Words of the language.
    pub keywords: Vec<String>,
    /// Tables and views with their columns.
    pub tables: Vec<TableWords>,
    /// Functions.
    pub functions: Vec<String>,
    /// Settings.
    pub settings: Vec<String>,
}

/// The names of one table.
#[derive(Debug, Clone)]
pub struct TableWords {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub table: String,
    /// Its columns in order.
    pub columns: Vec<String>,
}

impl Session {
    pub(crate) fn new(engine: Engine, state: SessionState) -> Self {
        Self { inner: Arc::new(Inner { engine, state: RwLock::new(state), prepared: Mutex::default() }) }
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    /// Splits a text into statements and parses them.
    ///
    /// # Errors
    /// The first mistake of syntax, with its place.
    pub fn parse(&self, sql: &str) -> Result<Vec<Statement>> {
        let statements =
            planner::statement::parse(sql).map_err(|error| Error::from(error).placed_in(sql, 0..sql.len()))?;
        let source: Arc<str> = sql.into();
        let statement = |parsed: planner::statement::Statement| Statement {
            kind: parsed.kind,
            source: Arc::clone(&source),
            range: parsed.range,
        };
        Ok(statements.into_iter().map(statement).collect())
    }

    /// Runs one statement of a text.
    ///
    /// # Errors
    /// Whatever is wrong with it; a statement that fails has changed nothing.
    pub async fn execute(&self, sql: &str) -> Result<Answer> {
        let mut statements = self.parse(sql)?;
        match (statements.pop(), statements.len()) {
            (Some(statement), 0) => self.run(&statement).await,
            (None, _) => Err(Error::invalid("the text holds no statement")),
            (_, more) => Err(Error::invalid(format!(
                "the text holds {} statements, and execute takes one; parse it and run each",
                more + 1
            ))),
        }
    }

    /// Runs a parsed statement.
    ///
    /// # Errors
    /// Whatever is wrong with it; a statement that fails has changed nothing.
    pub async fn run(&self, statement: &Statement) -> Result<Answer> {
        self.run_with(statement, &[]).await
    }

    pub(crate) async fn run_with(&self, statement: &Statement, parameters: &[ScalarValue]) -> Result<Answer> {
        let deadline = Deadline::of(&self.settings(), &statement.kind);
        // Boxed: a caller's own futures would else hold the types of all statements.
        let work =
            AssertUnwindSafe(self.dispatch(&statement.kind, statement, parameters, deadline).boxed()).catch_unwind();
        let result = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline.at, work).await.map_err(|_| deadline.error())?,
            None => work.await,
        };
        let result = result.unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
        result.map_err(|error| statement.place(error))
    }

    /// Parses a statement that is run several times, with values for `$1`, `$2`, ….
    ///
    /// # Errors
    /// A mistake of syntax, or a name that does not exist.
    pub async fn prepare(&self, sql: &str) -> Result<Prepared> {
        let mut statements = self.parse(sql)?;
        match (statements.pop(), statements.len()) {
            (Some(statement), 0) => {
                Prepared::new(self.clone(), statement).boxed().await.map_err(|error| error.placed_in(sql, 0..sql.len()))
            }
            _ => Err(Error::invalid("prepare takes one statement")),
        }
    }

    /// The words for completion: one look at the catalog and at the columns of each table.
    ///
    /// # Errors
    /// A catalog that cannot be read.
    pub async fn vocabulary(&self) -> Result<Vocabulary> {
        let state = self.state();
        let tables = StatementTables::new(self.clone(), state.clone());
        let mut functions: Vec<String> = state
            .scalar_functions()
            .keys()
            .chain(state.aggregate_functions().keys())
            .chain(state.window_functions().keys())
            .cloned()
            .collect();
        let ours = [planner::relation::VECTOR_SEARCH, planner::pin::TABLE_HISTORY, planner::pin::TABLE_CHANGES];
        functions.extend(ours.map(str::to_owned));
        functions.retain(|name| name.chars().all(|c| c.is_alphanumeric() || c == '_'));
        functions.sort();
        functions.dedup();
        Ok(Vocabulary {
            keywords: planner::tokens::KEYWORDS.iter().map(|word| (*word).to_owned()).collect(),
            tables: tables.words().boxed().await?,
            functions,
            settings: crate::session_settings::names(),
        })
    }

    /// A copy of the session's state for one statement: the moment of `now()` is set.
    pub(crate) fn state(&self) -> Arc<SessionState> {
        let mut state = self.inner.state.read().unwrap_or_else(PoisonError::into_inner).clone();
        state.mark_start_execution();
        Arc::new(state)
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings::of(self.inner.state.read().unwrap_or_else(PoisonError::into_inner).config_options())
    }

    pub(crate) fn change_settings(
        &self,
        change: impl FnOnce(&mut Settings) -> datafusion::error::Result<()>,
    ) -> Result<()> {
        let mut state = self.inner.state.write().unwrap_or_else(PoisonError::into_inner);
        let options = state.config_mut().options_mut();
        let Some(settings) = options.extensions.get_mut::<Settings>() else {
            return Err(Error::new(crate::ErrorKind::Internal, "the session has no settings"));
        };
        Ok(change(settings)?)
    }

    pub(crate) fn with_prepared<T>(&self, work: impl FnOnce(&mut HashMap<String, Named>) -> T) -> T {
        work(&mut self.inner.prepared.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn dispatch(
        &self,
        kind: &StatementKind,
        statement: &Statement,
        parameters: &[ScalarValue],
        deadline: Option<Deadline>,
    ) -> Result<Answer> {
        self.refuse_in_past(kind)?;
        self.refuse_to_ignore_key(kind)?;
        match kind {
            StatementKind::Sql(sql) => self.dispatch_sql(sql, statement, parameters, deadline).await,
            StatementKind::CreateExternal(create) => self.create_external(create).await,
            StatementKind::CopyTo(copy) => self.copy_to(copy, parameters).await,
            StatementKind::CopyFrom(copy) => self.copy_from(copy).await,
            StatementKind::Explain(explain) => self.explain(explain, statement, parameters, deadline).boxed().await,
            StatementKind::Reset(name) => self.reset(name),
            StatementKind::Time(time) => self.time(time, parameters).boxed().await,
            StatementKind::Check(table) => self.check(table).boxed().await,
        }
    }

    async fn dispatch_sql(
        &self,
        sql: &ast::Statement,
        statement: &Statement,
        parameters: &[ScalarValue],
        deadline: Option<Deadline>,
    ) -> Result<Answer> {
        use ast::Statement as Sql;
        match sql {
            Sql::Query(query) => {
                let (plan, state) = self.plan_query(query, parameters).await?;
                self.rows(&plan, &state, statement, deadline).await
            }
            Sql::Insert(insert) => self.insert(insert, parameters, statement, deadline).boxed().await,
            Sql::Update(update) => {
                self.change(&Changing::Update(update), parameters, statement, deadline).boxed().await
            }
            Sql::Delete(delete) => {
                self.change(&Changing::Delete(delete), parameters, statement, deadline).boxed().await
            }
            Sql::Merge(merge) => self.change(&Changing::Merge(merge), parameters, statement, deadline).boxed().await,
            Sql::Truncate(truncate) => self.truncate(truncate).boxed().await,
            Sql::AlterTable(alter) => self.alter_table(alter).boxed().await,
            Sql::CreateTable(create) => self.create_table(create, parameters).await,
            Sql::CreateView(create) => self.create_view(create).await,
            Sql::CreateSchema { .. } => self.create_schema(sql).await,
            Sql::Drop { .. } => self.drop_relations(sql).await,
            Sql::Set(set) => self.set(set),
            Sql::ShowVariable { variable } => self.show(variable),
            Sql::ShowTables { .. } | Sql::ShowColumns { .. } | Sql::ShowSchemas { .. } | Sql::ExplainTable { .. } => {
                if let Some(name) = crate::session_settings::described_relation(sql)? {
                    StatementTables::new(self.clone(), self.state()).check_exists(&name).boxed().await?;
                }
                let query = crate::session_settings::shown_as_query(sql)?;
                Box::pin(self.run_text(&query, deadline)).await
            }
            Sql::Prepare { .. } | Sql::Execute { .. } | Sql::Deallocate { .. } => {
                Box::pin(self.named_statement(sql, statement, deadline)).await
            }
            _ => {
                let words: Vec<&str> = statement.text().split_whitespace().take(2).collect();
                Err(Error::unsupported(format!("the statement {} … is not supported", words.join(" ").to_uppercase())))
            }
        }
    }

    async fn run_text(&self, sql: &str, deadline: Option<Deadline>) -> Result<Answer> {
        let mut statements = self.parse(sql)?;
        let Some(statement) = statements.pop() else { return Err(Error::invalid("the text holds no statement")) };
        self.dispatch(&statement.kind, &statement, &[], deadline).await
    }

    /// Runs a statement that was stored by PREPARE.
    pub(crate) async fn run_stored(
        &self,
        stored: &Statement,
        parameters: &[ScalarValue],
        deadline: Option<Deadline>,
    ) -> Result<Answer> {
        Box::pin(self.dispatch(&stored.kind, stored, parameters, deadline)).await
    }

    /// The logical plan of a query, on one snapshot of each table, with the state it was planned in.
    pub(crate) async fn plan_query(
        &self,
        query: &ast::Query,
        parameters: &[ScalarValue],
    ) -> Result<(LogicalPlan, Arc<SessionState>)> {
        let state = self.state();
        let tables = StatementTables::new(self.clone(), state.clone());
        let planner = Planner { state: &state, resolver: &tables };
        let plan = planner.query(query.clone(), parameters).await?;
        if let Some(name) = plan.get_parameter_names()?.into_iter().min() {
            return Err(Error::invalid(format!(
                "parameter {name} has no value; run the statement with PREPARE and EXECUTE, or through prepare"
            )));
        }
        Ok((plan, state))
    }

    /// Plans physically and starts.
    pub(crate) async fn rows(
        &self,
        plan: &LogicalPlan,
        state: &SessionState,
        statement: &Statement,
        deadline: Option<Deadline>,
    ) -> Result<Answer> {
        let physical = state.create_physical_plan(plan).await?;
        let mut stream = execute_stream(Arc::clone(&physical), task_context(state))?;
        // In a task of its own: however long one step of the plan takes, the caller can stop waiting for it.
        let mut receiver = RecordBatchReceiverStream::builder(stream.schema(), BATCHES_AHEAD);
        let sender = receiver.tx();
        receiver.spawn(async move {
            while let Some(batch) = stream.next().await {
                if sender.send(batch).await.is_err() {
                    break;
                }
            }
            Ok(())
        });
        let stream = receiver.build();
        Ok(Answer::Rows(Rows::new(stream, Progress::of_plan(physical), Some(statement.clone()), deadline)))
    }
}

/// What a plan runs in. Functions are found while planning; a copy of their hundreds of names for each statement would
/// cost more than many a plan.
pub(crate) fn task_context(state: &SessionState) -> Arc<TaskContext> {
    Arc::new(TaskContext::new(
        None,
        state.session_id().to_owned(),
        state.config().clone(),
        HashMap::new(),
        HashMap::new(),
        HashMap::new(),
        HashMap::new(),
        Arc::clone(state.runtime_env()),
    ))
}
