//! A session: settings, prepared statements, and the dispatch of each statement to what carries it out.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use arrow::datatypes::DataType;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::sqlparser::ast;
use futures::FutureExt;
use planner::Planner;
use planner::settings::Settings;
use planner::statement::StatementKind;
use storage::Catalog;

use tracing::Instrument;

use crate::answer::panicked;
use crate::change::Changing;
use crate::deadline::Deadline;
use crate::pins::{PinnedRelation, Replay};
use crate::plan::{Plan, Started};
use crate::prepared::Named;
use crate::queries::Running;
use crate::resolver::StatementTables;
use crate::rights::Principal;
use crate::template::TemplateCell;
use crate::{Answer, Engine, Error, Prepared, Result, ScalarValue};

/// A user's session. Cheap to clone; clones share settings and prepared statements.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Engine,
    principal: Principal,
    state: RwLock<SessionState>,
    prepared: Mutex<HashMap<String, Named>>,
    /// The last catalog as the user saw it.
    seen: Mutex<Option<Arc<Catalog>>>,
    /// The one query that the session plans as it was planned elsewhere, if it is made for that.
    replay: Option<Replay>,
}

/// A parsed statement.
#[derive(Clone)]
pub struct Statement {
    pub(crate) kind: StatementKind,
    /// What is shown of it where that is not the text itself.
    pub(crate) shown: Option<Arc<str>>,
    pub(crate) source: Arc<str>,
    pub(crate) range: Range<usize>,
}

/// Not the whole text that was parsed: a statement beside this one may hold a password.
impl fmt::Debug for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Statement").field("text", &self.text()).field("range", &self.range).finish_non_exhaustive()
    }
}

impl Statement {
    /// The statement without its semicolon, and without the password of one about users.
    pub fn text(&self) -> &str {
        self.shown.as_deref().unwrap_or(&self.source[self.range.clone()])
    }

    /// The statement as it was written, a password in it included: not to be shown.
    pub fn written(&self) -> &str {
        &self.source[self.range.clone()]
    }

    /// Whether the statement as it was written may be kept and sent about: others may hold a password or a key.
    pub fn holds_no_secret(&self) -> bool {
        matches!(self.kind, StatementKind::Sql(_) | StatementKind::Substrait(_))
    }

    /// Whether it reads or changes what belongs to the session alone: settings, prepared statements.
    pub fn is_of_session(&self) -> bool {
        use ast::Statement as Sql;
        match &self.kind {
            StatementKind::Reset(_) => true,
            StatementKind::Sql(sql) => {
                matches!(sql.as_ref(), Sql::Set(_) | Sql::Prepare { .. } | Sql::Execute { .. } | Sql::Deallocate { .. })
            }
            _ => false,
        }
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

/// What a statement comes to.
pub(crate) enum Dispatched {
    /// A query: its logical plan, the state that it was planned in, and what it reads, if that can be told.
    Planned(LogicalPlan, Arc<SessionState>, Option<Vec<PinnedRelation>>),
    /// Everything else is carried out.
    Answered(Answer),
}

impl Session {
    pub(crate) fn new(engine: Engine, state: SessionState, principal: Principal) -> Self {
        let (state, prepared, seen) = (RwLock::new(state), Mutex::default(), Mutex::default());
        Self { inner: Arc::new(Inner { engine, principal, state, prepared, seen, replay: None }) }
    }

    /// A session of the same user that plans one query again.
    pub(crate) fn with_replay(&self, state: SessionState, replay: Replay) -> Self {
        let Inner { engine, principal, .. } = self.inner.as_ref();
        let (engine, principal, replay) = (engine.clone(), principal.clone(), Some(replay));
        let (state, prepared, seen) = (RwLock::new(state), Mutex::default(), Mutex::default());
        Self { inner: Arc::new(Inner { engine, principal, state, prepared, seen, replay }) }
    }

    /// The session itself, or one that plans as it would without the query that is planned again.
    pub(crate) fn without_replay(&self) -> Self {
        match &self.inner.replay {
            None => self.clone(),
            Some(_) => Self::new(self.engine().clone(), self.state().as_ref().clone(), self.inner.principal.clone()),
        }
    }

    pub(crate) fn replay_of(&self) -> Option<&Replay> {
        self.inner.replay.as_ref()
    }

    pub(crate) fn principal(&self) -> &Principal {
        &self.inner.principal
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
            shown: (parsed.text != sql[parsed.range.clone()]).then(|| parsed.text.into()),
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
        self.start(statement, parameters).await?.answer().map_err(|error| statement.place(error))
    }

    /// Plans a query, and carries out any other statement. `parameters`: the values of `$1`, `$2`, ….
    ///
    /// # Errors
    /// Whatever is wrong with it; a statement that fails has changed nothing.
    pub async fn start(&self, statement: &Statement, parameters: &[ScalarValue]) -> Result<Started> {
        self.start_as(statement, parameters, None).await
    }

    /// As [`Session::start`]. `prepared`: the template of the statement, if it is a prepared one, and the types of its
    /// parameters.
    pub(crate) async fn start_as(
        &self,
        statement: &Statement,
        parameters: &[ScalarValue],
        prepared: Option<(&TemplateCell, &[Option<DataType>])>,
    ) -> Result<Started> {
        let elapsed = self.replay_of().map(|replay| replay.elapsed).unwrap_or_default();
        let deadline = Deadline::of(&self.settings(), &statement.kind).map(|deadline| deadline.sooner_by(elapsed));
        let running = self.engine().queries().begin(&statement.kind, statement.text(), self.user());
        // Boxed: a caller's own futures would else hold the types of all statements.
        let work = self.carry_out(statement, parameters, deadline, &running, prepared);
        let span = tracing::info_span!("statement", query_id = running.id(), user = self.user());
        let work = AssertUnwindSafe(work.instrument(span).boxed()).catch_unwind();
        let work = async {
            tokio::select! {
                biased;
                () = running.cancellation().cancelled() => Ok(Err(running.cancelled_error())),
                result = work => result,
            }
        };
        running.enter_run();
        let result = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline.at, work).await.map_err(|_| deadline.error()),
            None => Ok(work.await),
        };
        running.leave_run();
        let result = result?.unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
        if result.is_ok() && !crate::time::is_reading(&statement.kind) {
            self.engine().look_after_indexes();
        }
        result.map_err(|error| statement.place(error))
    }

    async fn carry_out(
        &self,
        statement: &Statement,
        parameters: &[ScalarValue],
        deadline: Option<Deadline>,
        running: &Arc<Running>,
        prepared: Option<(&TemplateCell, &[Option<DataType>])>,
    ) -> Result<Started> {
        if let Some((template, types)) = prepared {
            if let Some((physical, state, reads)) = template.bound(self, parameters).await? {
                return Ok(Started::Query(
                    Plan::of_physical(physical, &state, statement, deadline, running).reading(reads),
                ));
            }
            template.learn(self, statement, parameters, types).await;
        }
        Ok(match self.dispatch(&statement.kind, statement, parameters, deadline).await? {
            Dispatched::Planned(plan, state, reads) => {
                Started::Query(Plan::new(&plan, &state, statement, deadline, running).await?.reading(reads))
            }
            Dispatched::Answered(Answer::Rows(rows)) => {
                Started::Answered(Answer::Rows(rows.of_running(Arc::clone(running))))
            }
            Dispatched::Answered(answer) => Started::Answered(answer),
        })
    }

    /// Parses a statement that is run several times, with values for `$1`, `$2`, ….
    ///
    /// # Errors
    /// A mistake of syntax, or a name that does not exist.
    pub async fn prepare(&self, sql: &str) -> Result<Prepared> {
        let mut statements = self.parse(sql)?;
        match (statements.pop(), statements.len()) {
            (Some(statement), 0) => self.prepare_parsed(statement).await,
            _ => Err(Error::invalid("prepare takes one statement")),
        }
    }

    /// As [`Session::prepare`], of a statement that is parsed already.
    ///
    /// # Errors
    /// A name that does not exist.
    pub async fn prepare_parsed(&self, statement: Statement) -> Result<Prepared> {
        let prepared = Prepared::new(self.clone(), statement.clone()).boxed().await;
        prepared.map_err(|error| error.placed_in(&statement.source, 0..statement.source.len()))
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
        let ours = [planner::pin::TABLE_HISTORY, planner::pin::TABLE_CHANGES];
        functions.extend(ours.into_iter().chain(planner::relation::SEARCHES).map(str::to_owned));
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
        if let Some(replay) = self.replay_of() {
            replay.set_moment(&mut state);
        }
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

    pub(crate) fn with_seen<T>(&self, work: impl FnOnce(&mut Option<Arc<Catalog>>) -> T) -> T {
        work(&mut self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn dispatch(
        &self,
        kind: &StatementKind,
        statement: &Statement,
        parameters: &[ScalarValue],
        deadline: Option<Deadline>,
    ) -> Result<Dispatched> {
        self.refuse_in_past(kind)?;
        self.refuse_to_ignore_key(kind)?;
        let answer = match kind {
            StatementKind::Sql(sql) => return self.dispatch_sql(sql, statement, parameters, deadline).await,
            StatementKind::Explain(explain) => return self.explain(explain, parameters).boxed().await,
            StatementKind::CreateExternal(create) => self.create_external(create).await,
            StatementKind::CopyTo(copy) => self.copy_to(copy, parameters).await,
            StatementKind::CopyFrom(copy) => self.copy_from(copy).await,
            StatementKind::Reset(name) => self.reset(name),
            StatementKind::Time(time) => self.time(time, parameters).boxed().await,
            StatementKind::Index(index) => self.change_indexes(index).boxed().await,
            StatementKind::Check(table) => self.check(table).boxed().await,
            StatementKind::Kill(id) => self.kill_query(id).await,
            StatementKind::User(user) => self.change_users(user).boxed().await,
            StatementKind::Substrait(plan) => return self.plan_substrait(plan, parameters).boxed().await,
        };
        answer.map(Dispatched::Answered)
    }

    async fn dispatch_sql(
        &self,
        sql: &ast::Statement,
        statement: &Statement,
        parameters: &[ScalarValue],
        deadline: Option<Deadline>,
    ) -> Result<Dispatched> {
        use ast::Statement as Sql;
        let answer = match sql {
            Sql::Query(query) => {
                let (plan, state, reads) = self.plan_reading(query, parameters).await?;
                return Ok(Dispatched::Planned(plan, state, reads));
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
                return Box::pin(self.run_text(&query, deadline)).await;
            }
            Sql::Prepare { .. } | Sql::Execute { .. } | Sql::Deallocate { .. } => {
                return Box::pin(self.named_statement(sql, statement, deadline)).await;
            }
            _ => {
                let words: Vec<&str> = statement.text().split_whitespace().take(2).collect();
                Err(Error::unsupported(format!("the statement {} … is not supported", words.join(" ").to_uppercase())))
            }
        };
        answer.map(Dispatched::Answered)
    }

    async fn run_text(&self, sql: &str, deadline: Option<Deadline>) -> Result<Dispatched> {
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
    ) -> Result<Dispatched> {
        Box::pin(self.dispatch(&stored.kind, stored, parameters, deadline)).await
    }

    /// The logical plan of a query, on one snapshot of each table, with the state it was planned in.
    pub(crate) async fn plan_query(
        &self,
        query: &ast::Query,
        parameters: &[ScalarValue],
    ) -> Result<(LogicalPlan, Arc<SessionState>)> {
        let (plan, state, _) = self.plan_reading(query, parameters).await?;
        Ok((plan, state))
    }

    /// As [`Session::plan_query`], and what the query reads, if that can be told.
    async fn plan_reading(
        &self,
        query: &ast::Query,
        parameters: &[ScalarValue],
    ) -> Result<(LogicalPlan, Arc<SessionState>, Option<Vec<PinnedRelation>>)> {
        let state = self.state();
        let tables = StatementTables::new(self.clone(), state.clone());
        let planner = Planner { state: &state, resolver: &tables };
        let plan = planner.query(query.clone(), parameters).await?;
        if let Some(name) = plan.get_parameter_names()?.into_iter().min() {
            return Err(Error::invalid(format!(
                "parameter {name} has no value; run the statement with PREPARE and EXECUTE, or through prepare"
            )));
        }
        Ok((plan, state, tables.reads()))
    }
}
