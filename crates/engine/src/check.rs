//! `CHECK TABLE`: what the files of a table are worth, as rows. The reading is done in `storage`.

use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::error::DataFusionError;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::sql::sqlparser::ast::ObjectName;
use planner::resolve::RelationName;
use storage::{CheckReport, Relation, Role, TableName};

use crate::resolver::StatementTables;
use crate::{Answer, Error, Progress, Result, Rows, Session};

/// The status of the last row when every file that Sagitta wrote is what was written.
const SOUND: &str = "ok";

impl Session {
    /// One row for each file that is not verified, worst first, and one for the table.
    pub(crate) async fn check(&self, table: &ObjectName) -> Result<Answer> {
        let name = RelationName::of_sql(table)?;
        let tables = StatementTables::new(self.clone(), self.state());
        let relation = TableName::new(&name.schema, &name.table);
        if let Some(other) = tables.catalog().await?.relation(&relation)
            && !matches!(other, Relation::Table(_))
        {
            return Err(Error::invalid(format!(
                "CHECK TABLE verifies tables of this database, but \"{name}\" is another thing ({})",
                other.kind()
            )));
        }
        let (_, entry) = tables.entry(&name, Role::Read).await?;
        let report = self.engine().database().check(&entry).await?;
        let batch = rows(&name, &report)?;
        let stream = RecordBatchStreamAdapter::new(batch.schema(), futures::stream::iter([Ok(batch)]));
        Ok(Answer::Rows(Rows::new(Box::pin(stream), Progress::new(), None, None)))
    }
}

fn rows(name: &RelationName, report: &CheckReport) -> Result<RecordBatch> {
    let mut files: Vec<String> = report.findings.iter().map(|finding| finding.file.clone()).collect();
    let mut bytes: Vec<i64> = report.findings.iter().map(|finding| signed(finding.bytes)).collect();
    let mut status: Vec<&str> = report.findings.iter().map(|finding| finding.status.name()).collect();
    let mut detail: Vec<String> = report.findings.iter().map(|finding| finding.detail.clone()).collect();
    files.push(name.to_string());
    bytes.push(signed(report.bytes));
    status.push(if report.files_damaged + report.files_missing == 0 { SOUND } else { "damaged" });
    detail.push(summary(report));
    let field = |name: &str, data_type: DataType| Field::new(name, data_type, false);
    let schema = Schema::new(vec![
        field("file", DataType::Utf8),
        field("bytes", DataType::Int64),
        field("status", DataType::Utf8),
        field("detail", DataType::Utf8),
    ]);
    let batch = RecordBatch::try_new(
        Arc::new(schema),
        vec![
            Arc::new(StringArray::from(files)),
            Arc::new(Int64Array::from(bytes)),
            Arc::new(StringArray::from(status)),
            Arc::new(StringArray::from(detail)),
        ],
    );
    Ok(batch.map_err(DataFusionError::from)?)
}

fn summary(report: &CheckReport) -> String {
    let mut parts = vec![format!("{} files verified", report.files_verified)];
    let others =
        [(report.files_unverified, "unverified"), (report.files_damaged, "damaged"), (report.files_missing, "missing")];
    parts.extend(others.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")));
    let shown = report.findings.len() as u64;
    let all = report.files_unverified + report.files_damaged + report.files_missing;
    if all > shown {
        parts.push(format!("{} of them not shown", all - shown));
    }
    format!("{}, in {} versions", parts.join(", "), report.versions)
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
