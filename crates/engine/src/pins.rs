//! What a planned query reads, told so that another server of the database can plan it again on the same versions, and the
//! session that does so.
//!
//! Tables are told by their versions, views and external tables by when they were made: if one of them is another by then,
//! the query is refused, not answered otherwise. External tables and files have no versions: they are read as they are.
//! So is `information_schema`. `system` tells of the server that is asked, so a query of it is not told at all; nor is what
//! lists versions.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::DateTime;
use datafusion::common::config::ExtensionOptions;
use datafusion::execution::SessionState;
use datafusion::sql::sqlparser::ast;
use planner::as_of::AsOf;
use planner::resolve::RelationName;
use planner::settings::Settings;
use planner::statement::StatementKind;

use crate::{Error, ErrorKind, Plan, Result, ScalarValue, Session, Started, Statement};

/// The most partitions that a plan may be asked for.
const PARTITIONS_MAX: usize = 1_024;

/// How a query was planned, and on what.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pins {
    /// The moment of `now()`, nanoseconds since the epoch.
    pub moment_ns: i64,
    /// The session's settings that were not the default, by name.
    pub settings: Vec<(String, String)>,
    /// Into how many partitions the plan was to be divided.
    pub partitions: usize,
    /// In how many parts its rows can be fetched.
    pub part_count: usize,
    /// What it reads.
    pub relations: Vec<PinnedRelation>,
}

/// A relation that a query reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinnedRelation {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// The moment that the statement names; empty if it names none.
    pub at: String,
    /// What tells it from others of its name.
    pub id: String,
    /// The version that was read, of what has versions.
    pub version: Option<u64>,
}

/// Notes what a statement reads.
#[derive(Default)]
pub(crate) struct Reads {
    /// `None` once the statement has read what only this server can tell.
    relations: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    relations: Vec<PinnedRelation>,
    is_local: bool,
}

impl Reads {
    pub(crate) fn note(&self, relation: PinnedRelation) {
        let mut noted = self.relations.lock().unwrap_or_else(PoisonError::into_inner);
        if !noted.relations.contains(&relation) {
            noted.relations.push(relation);
        }
    }

    /// The statement reads what only this server can tell.
    pub(crate) fn note_local(&self) {
        self.relations.lock().unwrap_or_else(PoisonError::into_inner).is_local = true;
    }

    /// What was read, if it can be told.
    pub(crate) fn told(&self) -> Option<Vec<PinnedRelation>> {
        let noted = self.relations.lock().unwrap_or_else(PoisonError::into_inner);
        (!noted.is_local).then(|| noted.relations.clone())
    }
}

/// The moment that a statement names, as it is told.
pub(crate) fn told(at: Option<&AsOf>) -> String {
    match at {
        None => String::new(),
        Some(AsOf::Version(version)) => format!("version {version}"),
        Some(AsOf::Tag(tag)) => format!("tag {tag}"),
        Some(AsOf::Timestamp(micros)) => format!("time {micros}"),
    }
}

/// A query that is planned again.
pub(crate) struct Replay {
    pins: Pins,
    /// How long ago it was planned first: its time runs from then.
    pub(crate) elapsed: Duration,
}

impl Replay {
    /// What the relation was when the query was planned first. `id`: what it is now.
    ///
    /// # Errors
    /// It is another one.
    pub(crate) fn pinned(&self, name: &RelationName, at: Option<&AsOf>, id: &str) -> Result<&PinnedRelation> {
        let at = told(at);
        let is_same = |relation: &&PinnedRelation| {
            relation.schema == name.schema && relation.name == name.table && relation.at == at && relation.id == id
        };
        self.pins.relations.iter().find(is_same).ok_or_else(|| {
            let message = format!("\"{name}\" was replaced since the statement was planned; run the statement again");
            Error::new(ErrorKind::Conflict, message)
        })
    }

    /// Sets the moment of `now()`.
    pub(crate) fn set_moment(&self, state: &mut SessionState) {
        state.execution_props_mut().query_execution_start_time =
            Some(DateTime::from_timestamp_nanos(self.pins.moment_ns));
    }
}

impl Pins {
    /// How a plan was made. `relations`: what it reads.
    pub(crate) fn of(state: &SessionState, relations: Vec<PinnedRelation>, part_count: usize) -> Option<Self> {
        let moment_ns = state.execution_props().query_execution_start_time?.timestamp_nanos_opt()?;
        let (own, defaults) = (Settings::of(state.config_options()).entries(), Settings::default().entries());
        let changed = own.into_iter().zip(defaults).filter(|(own, default)| own.value != default.value);
        // A query applies nothing, so the name of a change does not matter to it.
        let changed = changed.filter(|(own, _)| own.key != "idempotency_key");
        let settings = changed.map(|(own, _)| (own.key, own.value.unwrap_or_default())).collect();
        Some(Self { moment_ns, settings, partitions: state.config().target_partitions(), part_count, relations })
    }
}

impl Statement {
    /// Whether it reads, and can be planned again from its text or plan alone.
    pub(crate) fn is_replayable(&self) -> bool {
        use ast::Statement as Sql;
        match &self.kind {
            StatementKind::Sql(sql) => match sql.as_ref() {
                Sql::Query(_) => crate::time::is_reading(&self.kind),
                Sql::ShowTables { .. }
                | Sql::ShowColumns { .. }
                | Sql::ShowSchemas { .. }
                | Sql::ExplainTable { .. } => true,
                _ => false,
            },
            StatementKind::Substrait(_) => true,
            _ => false,
        }
    }
}

impl Session {
    /// Plans a query as another server of the database has planned it, with the rights of this session.
    /// `elapsed`: how long ago that was; the time that the statement has runs from then.
    ///
    /// # Errors
    /// A statement that is no such query, a relation that is another by now, a version that is gone.
    pub async fn replay(
        &self,
        statement: &Statement,
        parameters: &[ScalarValue],
        pins: Pins,
        elapsed: Duration,
    ) -> Result<Plan> {
        if !statement.is_replayable() {
            return Err(Error::new(ErrorKind::Internal, "the statement is no query that can be planned again"));
        }
        let part_count = pins.part_count;
        match self.replaying(pins, elapsed)?.start(statement, parameters).await? {
            Started::Query(plan) if plan.part_count() == part_count => Ok(plan),
            _ => Err(Error::new(
                ErrorKind::Conflict,
                "the statement was planned otherwise by the server that was asked first; run it again",
            )),
        }
    }

    fn replaying(&self, pins: Pins, elapsed: Duration) -> Result<Self> {
        let mut state = self.state().as_ref().clone();
        let mut settings = Settings::default();
        for (name, value) in &pins.settings {
            settings.assign(name, value)?;
        }
        let options = state.config_mut().options_mut();
        options.extensions.insert(settings);
        options.execution.target_partitions = pins.partitions.clamp(1, PARTITIONS_MAX);
        Ok(self.with_replay(state, Replay { pins, elapsed }))
    }
}
