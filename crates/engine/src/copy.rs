//! COPY … TO a file and COPY … FROM files.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, UInt64Type};
use datafusion::datasource::file_format::{
    FileFormatFactory, arrow::ArrowFormatFactory, csv::CsvFormatFactory, format_as_file_type, json::JsonFormatFactory,
    parquet::ParquetFormatFactory,
};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, cast};
use datafusion::sql::parser::{CopyToSource, CopyToStatement};
use datafusion::sql::sqlparser::ast;
use planner::resolve::RelationName;
use planner::statement::{CopyFrom, StatementKind};

use crate::definition::refuse_same_names;
use crate::files::{self, Format, option_key, option_text};
use crate::{Answer, Error, ErrorKind, Progress, Result, ScalarValue, Session};

impl Session {
    pub(crate) async fn copy_to(&self, copy: &CopyToStatement, parameters: &[ScalarValue]) -> Result<Answer> {
        if !copy.partitioned_by.is_empty() {
            return Err(Error::unsupported("PARTITIONED BY of COPY is not supported; write one COPY per part"));
        }
        let format = match &copy.stored_as {
            Some(name) => Format::parse(name)?,
            None => Format::of_path(&copy.target).ok_or_else(|| {
                Error::invalid(format!("the ending of {} names no format; name it with STORED AS", copy.target))
            })?,
        };
        let factory: Arc<dyn FileFormatFactory> = match format {
            Format::Parquet => Arc::new(ParquetFormatFactory::new()),
            Format::Csv => Arc::new(CsvFormatFactory::new()),
            Format::Json => Arc::new(JsonFormatFactory::new()),
            Format::Arrow => Arc::new(ArrowFormatFactory::new()),
            other => {
                return Err(Error::unsupported(format!(
                    "COPY does not write {} files; it writes parquet, csv, json and arrow",
                    other.name()
                )));
            }
        };
        // A file belongs to no schema: what somebody else keeps under that name would be gone.
        self.require_admin("write files with COPY … TO").await?;
        let target = files::target(self.engine(), &copy.target)?;
        let query = match &copy.source {
            CopyToSource::Query(query) => query.as_ref().clone(),
            CopyToSource::Relation(name) => select_all(name)?,
        };
        let (input, state) = self.plan_query(&query, parameters).await?;
        refuse_same_names(&input, &copy.target)?;
        let input = if format == Format::Csv { lists_as_text(input)? } else { input };
        let mut options = HashMap::new();
        for (key, value) in &copy.options {
            options.insert(format!("format.{}", option_key(key)), option_text(value)?);
        }
        let plan =
            LogicalPlanBuilder::copy_to(input, target, format_as_file_type(factory), options, vec![])?.build()?;
        let physical = state.create_physical_plan(&plan).await?;
        let (counts, _) = crate::run::collected(&state, physical).await?;
        let rows =
            counts.iter().map(|batch| batch.column(0).as_primitive::<UInt64Type>().values().iter().sum::<u64>()).sum();
        Ok(Answer::wrote("COPY", rows))
    }

    pub(crate) async fn copy_from(&self, copy: &CopyFrom) -> Result<Answer> {
        let name = RelationName::of_sql(&copy.table)?;
        let format = copy.format.as_deref().map(Format::parse).transpose()?;
        let options: Vec<(String, String)> =
            copy.options.iter().map(|(key, value)| (option_key(key), value.clone())).collect();
        let state = self.state();
        let source = files::table(self, &state, std::slice::from_ref(&copy.source), format, &options, None).await?;
        let columns: Vec<String> = copy
            .columns
            .iter()
            .map(|ident| if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() })
            .collect();
        let rows = self.append_from(&name, source, &columns, ErrorKind::Invalid, &Progress::default()).await?;
        Ok(Answer::wrote("COPY", rows))
    }
}

/// `SELECT * FROM name`.
fn select_all(name: &ast::ObjectName) -> Result<ast::Query> {
    let mut parsed = planner::statement::parse(&format!("SELECT * FROM {name}"))?;
    match parsed.pop().map(|statement| statement.kind) {
        Some(StatementKind::Sql(sql)) => match *sql {
            ast::Statement::Query(query) => Ok(*query),
            other => Err(Error::invalid(format!("{other} is no query"))),
        },
        _ => Err(Error::invalid(format!("{name} is no name of a table"))),
    }
}

/// CSV has no lists: they are written as texts, which casts read back.
fn lists_as_text(plan: LogicalPlan) -> Result<LogicalPlan> {
    let columns = plan.schema().columns();
    let outputs: Vec<Expr> = columns
        .into_iter()
        .zip(plan.schema().fields().iter())
        .map(|(column, field)| match field.data_type() {
            DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => {
                cast(Expr::Column(column.clone()), DataType::Utf8).alias(column.name)
            }
            _ => Expr::Column(column),
        })
        .collect();
    Ok(LogicalPlanBuilder::from(plan).project(outputs)?.build()?)
}
