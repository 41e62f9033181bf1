//! SET, SHOW and RESET of the session's settings, and the SHOW statements that are queries in disguise.

use std::sync::Arc;

use arrow::array::{RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::config::ExtensionOptions;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::sql::sqlparser::ast::{self, Set, ShowStatementFilter, ShowStatementOptions};
use planner::resolve::{RelationName, SCHEMA};
use planner::settings::Settings;

use crate::{Answer, Error, Progress, Result, Rows, ScalarValue, Session};

/// The names of all settings.
pub(crate) fn names() -> Vec<String> {
    Settings::default().entries().into_iter().map(|entry| entry.key).collect()
}

impl Session {
    /// Sets a setting from its text, as SET does; `default` puts it back.
    ///
    /// # Errors
    /// A setting that does not exist, a value that it cannot take.
    pub fn set_setting(&self, name: &str, value: &str) -> Result<()> {
        match value.eq_ignore_ascii_case("default") {
            true => self.reset(name).map(|_| ()),
            false => self.change_settings(|settings| settings.assign(&name.to_lowercase(), value)),
        }
    }

    /// Name, value and description of every setting.
    ///
    /// # Errors
    /// None that a caller can make happen.
    pub fn all_settings(&self) -> Result<Vec<(String, String, &'static str)>> {
        described(&self.settings())
    }

    pub(crate) fn set(&self, set: &Set) -> Result<Answer> {
        let (variable, values) = match set {
            Set::SingleAssignment {
                scope: None | Some(ast::ContextModifier::Session),
                hivevar: false,
                variable,
                values,
            } => (variable, values),
            other => return Err(Error::unsupported(format!("{other} is not supported; write SET setting = value"))),
        };
        let name = variable.to_string().to_lowercase();
        let [value] = values.as_slice() else {
            return Err(Error::invalid(format!("{name} takes one value, not {}", values.len())));
        };
        let text = match value {
            ast::Expr::Identifier(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case("default") => {
                return self.reset(&name);
            }
            ast::Expr::Identifier(word) => word.value.clone(),
            // ON is a word of the grammar and comes as one; everything else is a constant.
            other => match self.constant(other.clone())? {
                ScalarValue::Utf8(Some(text)) => text,
                value if value.data_type().is_temporal() => match value.cast_to(&DataType::Utf8)? {
                    ScalarValue::Utf8(Some(text)) => text,
                    other => other.to_string(),
                },
                value => value.to_string(),
            },
        };
        self.change_settings(|settings| settings.assign(&name, &text))?;
        Ok(Answer::done("SET"))
    }

    pub(crate) fn reset(&self, name: &str) -> Result<Answer> {
        let name = name.to_lowercase();
        let chosen = if name == "all" { names() } else { vec![name] };
        self.change_settings(|settings| chosen.iter().try_for_each(|name| settings.reset(name)))?;
        Ok(Answer::done("RESET"))
    }

    pub(crate) fn show(&self, variable: &[ast::Ident]) -> Result<Answer> {
        let name = variable.iter().map(|part| part.value.to_lowercase()).collect::<Vec<_>>().join(".");
        let settings = self.settings();
        let batch = if name == "all" {
            let rows: Vec<(String, String, &str)> = described(&settings)?;
            table(&[
                ("name", rows.iter().map(|row| row.0.clone()).collect()),
                ("value", rows.iter().map(|row| row.1.clone()).collect()),
                ("description", rows.iter().map(|row| row.2.to_owned()).collect()),
            ])?
        } else {
            table(&[(name.as_str(), vec![settings.value(&name)?])])?
        };
        let schema = batch.schema();
        let stream = RecordBatchStreamAdapter::new(schema, futures::stream::iter([Ok(batch)]));
        Ok(Answer::Rows(Rows::new(Box::pin(stream), Progress::new(), None, None)))
    }
}

/// Name, value and description of every setting.
pub(crate) fn described(settings: &Settings) -> Result<Vec<(String, String, &'static str)>> {
    let entries = settings.entries();
    entries
        .into_iter()
        .map(|entry| Ok((entry.key.clone(), settings.value(&entry.key)?, entry.description.trim())))
        .collect()
}

fn table(columns: &[(&str, Vec<String>)]) -> Result<RecordBatch> {
    let fields: Vec<Field> = columns.iter().map(|(name, _)| Field::new(*name, DataType::Utf8, false)).collect();
    let arrays = columns.iter().map(|(_, values)| Arc::new(StringArray::from(values.clone())) as _).collect();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(datafusion::error::DataFusionError::from)?)
}

/// SHOW TABLES, SHOW COLUMNS, SHOW SCHEMAS and DESCRIBE as queries of `information_schema`.
pub(crate) fn shown_as_query(sql: &ast::Statement) -> Result<String> {
    match sql {
        ast::Statement::ShowTables { show_options, .. } => {
            let (schema, like) = options(show_options, "table_name")?;
            let schema = schema.map_or(String::new(), |schema| format!(" AND table_schema = {}", quoted(&schema)));
            Ok(format!(
                "SELECT table_schema, table_name, table_type FROM information_schema.tables \
                 WHERE table_schema NOT IN ('information_schema', 'system'){schema}{like} ORDER BY table_schema, table_name"
            ))
        }
        ast::Statement::ShowColumns { show_options, .. } => {
            let (Some(table), like) = options(show_options, "column_name")? else {
                return Err(Error::invalid("SHOW COLUMNS names a table: SHOW COLUMNS FROM t"));
            };
            Ok(columns_of(&table, &like))
        }
        ast::Statement::ShowSchemas { .. } => {
            Ok("SELECT schema_name FROM information_schema.schemata ORDER BY schema_name".into())
        }
        ast::Statement::ExplainTable { table_name, .. } => Ok(columns_of(&table_name.to_string(), "")),
        other => Err(Error::unsupported(format!("{other} is not supported"))),
    }
}

fn columns_of(table: &str, like: &str) -> String {
    let name = relation_of(table);
    format!(
        "SELECT column_name, data_type, is_nullable, column_default FROM information_schema.columns \
         WHERE table_schema = {} AND table_name = {}{like} ORDER BY ordinal_position",
        quoted(&name.schema),
        quoted(&name.table),
    )
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn relation_of(table: &str) -> RelationName {
    let name = planner::relation::parse_name(table).and_then(|name| RelationName::of_sql(&name));
    name.unwrap_or(RelationName { schema: SCHEMA.into(), table: table.to_owned() })
}

/// The relation that DESCRIBE or SHOW COLUMNS names.
pub(crate) fn described_relation(sql: &ast::Statement) -> Result<Option<RelationName>> {
    Ok(match sql {
        ast::Statement::ShowColumns { show_options, .. } => {
            options(show_options, "column_name")?.0.map(|table| relation_of(&table))
        }
        ast::Statement::ExplainTable { table_name, .. } => Some(relation_of(&table_name.to_string())),
        _ => None,
    })
}

/// The name behind FROM or IN, and the condition behind LIKE.
fn options(options: &ShowStatementOptions, column: &str) -> Result<(Option<String>, String)> {
    if options.limit.is_some() || options.limit_from.is_some() || options.starts_with.is_some() {
        return Err(Error::unsupported("LIMIT and STARTS WITH after SHOW are not supported; query information_schema"));
    }
    let parent = options.show_in.as_ref().and_then(|show_in| show_in.parent_name.as_ref()).map(ToString::to_string);
    let filter = options.filter_position.as_ref().map(|position| match position {
        ast::ShowStatementFilterPosition::Infix(filter) | ast::ShowStatementFilterPosition::Suffix(filter) => filter,
    });
    let like = match filter {
        None => String::new(),
        Some(ShowStatementFilter::Like(pattern)) => format!(" AND {column} LIKE {}", quoted(pattern)),
        Some(ShowStatementFilter::ILike(pattern)) => format!(" AND {column} ILIKE {}", quoted(pattern)),
        Some(other) => {
            return Err(Error::unsupported(format!("{other} after SHOW is not supported; write LIKE 'pattern'")));
        }
    };
    Ok((parent, like))
}
