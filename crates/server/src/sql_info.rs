//! What the server says of itself: every code that Flight SQL defines, truthfully.
//!
//! Drivers fail on a code that is missing, so none is. Types of the values: `FlightSql.proto`, `SqlInfo`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use arrow::array::RecordBatch;
use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder};
use arrow_flight::sql::{SqlInfo, SqlNullOrdering, SqlSupportedCaseSensitivity, SqlSupportedTransaction};
use tonic::Status;

use crate::status::malformed;

/// Bits of a mask: one for each value of an enumeration.
fn mask(bits: &[i32]) -> i32 {
    bits.iter().fold(0, |mask, bit| mask | 1 << bit)
}

static INFO: LazyLock<Result<SqlInfoData, String>> = LazyLock::new(|| {
    let mut info = SqlInfoDataBuilder::new();
    server(&mut info);
    syntax(&mut info);
    grammar(&mut info);
    bounds(&mut info);
    transactions(&mut info);
    info.build().map_err(|error| error.to_string())
});

/// The codes that are asked for, or all of them.
pub(crate) fn sql_info(codes: &[u32]) -> Result<RecordBatch, Status> {
    let info = INFO.as_ref().map_err(|error| Status::internal(format!("the SQL info cannot be built: {error}")))?;
    info.record_batch(codes.iter().copied()).map_err(|error| malformed("the list of SQL info codes", error))
}

fn server(info: &mut SqlInfoDataBuilder) {
    info.append(SqlInfo::FlightSqlServerName, "Sagitta");
    info.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    info.append(SqlInfo::FlightSqlServerArrowVersion, arrow::ARROW_VERSION);
    info.append(SqlInfo::FlightSqlServerReadOnly, false);
    info.append(SqlInfo::FlightSqlServerSql, true);
    info.append(SqlInfo::FlightSqlServerSubstrait, true);
    let version = |(major, minor, patch): (u32, u32, u32)| format!("{major}.{minor}.{patch}");
    info.append(SqlInfo::FlightSqlServerSubstraitMinVersion, version(engine::substrait::VERSION_MIN).as_str());
    info.append(SqlInfo::FlightSqlServerSubstraitMaxVersion, version(engine::substrait::VERSION_MAX).as_str());
    info.append(SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::None as i32);
    info.append(SqlInfo::FlightSqlServerCancel, true);
    info.append(SqlInfo::FlightSqlServerBulkIngestion, true);
    info.append(SqlInfo::FlightSqlServerIngestTransactionsSupported, false);
    info.append(SqlInfo::FlightSqlServerStatementTimeout, 0_i32);
    info.append(SqlInfo::FlightSqlServerTransactionTimeout, 0_i32);
}

fn syntax(info: &mut SqlInfoDataBuilder) {
    info.append(SqlInfo::SqlDdlCatalog, false);
    info.append(SqlInfo::SqlDdlSchema, true);
    info.append(SqlInfo::SqlDdlTable, true);
    info.append(SqlInfo::SqlIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase as i64);
    info.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    info.append(SqlInfo::SqlQuotedIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityUnknown as i64);
    info.append(SqlInfo::SqlAllTablesAreSelectable, true);
    info.append(SqlInfo::SqlNullOrdering, SqlNullOrdering::SqlNullsSortedHigh as i64);
    // Words of ours beyond those of SQL:2003.
    info.append(
        SqlInfo::SqlKeywords,
        &[
            "ASOF",
            "BITVECTOR",
            "HALFVEC",
            "ILIKE",
            "MATCH_CONDITION",
            "OPTIMIZE",
            "QUALIFY",
            "RETURNING",
            "VACUUM",
            "VECTOR",
        ][..],
    );
    info.append(
        SqlInfo::SqlNumericFunctions,
        &[
            "abs", "acos", "asin", "atan", "atan2", "ceil", "cos", "degrees", "exp", "floor", "ln", "log10", "pi",
            "power", "radians", "random", "round", "signum", "sin", "sqrt", "tan", "trunc",
        ][..],
    );
    info.append(
        SqlInfo::SqlStringFunctions,
        &[
            "ascii",
            "chr",
            "concat",
            "left",
            "length",
            "lower",
            "lpad",
            "ltrim",
            "octet_length",
            "position",
            "repeat",
            "replace",
            "reverse",
            "right",
            "rpad",
            "rtrim",
            "substr",
            "trim",
            "upper",
        ][..],
    );
    info.append(SqlInfo::SqlSystemFunctions, &["coalesce", "nullif"][..]);
    info.append(
        SqlInfo::SqlDatetimeFunctions,
        &[
            "current_date",
            "current_time",
            "current_timestamp",
            "date_part",
            "date_trunc",
            "extract",
            "now",
            "to_timestamp",
        ][..],
    );
    info.append(SqlInfo::SqlSearchStringEscape, "\\");
    info.append(SqlInfo::SqlExtraNameCharacters, "");
    info.append(SqlInfo::SqlSupportsColumnAliasing, true);
    info.append(SqlInfo::SqlNullPlusNullIsNull, true);
    info.append(SqlInfo::SqlSupportsConvert, conversions());
    info.append(SqlInfo::SqlSchemaTerm, "schema");
    info.append(SqlInfo::SqlProcedureTerm, "procedure");
    info.append(SqlInfo::SqlCatalogTerm, "catalog");
    info.append(SqlInfo::SqlCatalogAtStart, true);
}

/// Which types CAST brings to which, by `SqlSupportsConvert`.
fn conversions() -> BTreeMap<i32, Vec<i32>> {
    const BIGINT: i32 = 0;
    const BIT: i32 = 2;
    const CHAR: i32 = 3;
    const DATE: i32 = 4;
    const DECIMAL: i32 = 5;
    const FLOAT: i32 = 6;
    const INTEGER: i32 = 7;
    const NUMERIC: i32 = 12;
    const REAL: i32 = 13;
    const SMALLINT: i32 = 14;
    const TIMESTAMP: i32 = 16;
    const TINYINT: i32 = 17;
    const VARCHAR: i32 = 19;
    let numbers = [BIGINT, DECIMAL, FLOAT, INTEGER, NUMERIC, REAL, SMALLINT, TINYINT];
    let texts = [CHAR, VARCHAR];
    let mut all = BTreeMap::new();
    for from in numbers {
        all.insert(from, numbers.into_iter().chain(texts).chain([BIT]).collect());
    }
    all.insert(BIT, numbers.into_iter().chain(texts).collect());
    for from in texts {
        all.insert(from, numbers.into_iter().chain(texts).chain([BIT, DATE, TIMESTAMP]).collect());
    }
    all.insert(DATE, texts.into_iter().chain([TIMESTAMP]).collect());
    all.insert(TIMESTAMP, texts.into_iter().chain([DATE]).collect());
    all
}

fn grammar(info: &mut SqlInfoDataBuilder) {
    info.append(SqlInfo::SqlSupportsTableCorrelationNames, true);
    info.append(SqlInfo::SqlSupportsDifferentTableCorrelationNames, false);
    info.append(SqlInfo::SqlSupportsExpressionsInOrderBy, true);
    info.append(SqlInfo::SqlSupportsOrderByUnrelated, true);
    // GROUP BY columns that are not selected, and expressions.
    info.append(SqlInfo::SqlSupportedGroupBy, mask(&[0, 1]));
    info.append(SqlInfo::SqlSupportsLikeEscapeClause, false);
    info.append(SqlInfo::SqlSupportsNonNullableColumns, true);
    // Minimum, core and extended grammar of ODBC.
    info.append(SqlInfo::SqlSupportedGrammar, mask(&[0, 1]));
    // Entry level of SQL-92.
    info.append(SqlInfo::SqlAnsi92SupportedLevel, mask(&[0]));
    // Foreign keys and CHECK are not kept.
    info.append(SqlInfo::SqlSupportsIntegrityEnhancementFacility, false);
    // Limited and full outer joins.
    info.append(SqlInfo::SqlOuterJoinsSupportLevel, mask(&[1, 2]));
    info.append(SqlInfo::SqlSchemasSupportedActions, mask(&[]));
    info.append(SqlInfo::SqlCatalogsSupportedActions, mask(&[]));
    info.append(SqlInfo::SqlSupportedPositionedCommands, mask(&[]));
    info.append(SqlInfo::SqlSelectForUpdateSupported, false);
    info.append(SqlInfo::SqlStoredProceduresSupported, false);
    // In comparisons, EXISTS and IN.
    info.append(SqlInfo::SqlSupportedSubqueries, mask(&[0, 1, 2]));
    info.append(SqlInfo::SqlCorrelatedSubqueriesSupported, true);
    // UNION and UNION ALL.
    info.append(SqlInfo::SqlSupportedUnions, mask(&[0, 1]));
}

/// Zero stands for no bound, and for one that is not known.
fn bounds(info: &mut SqlInfoDataBuilder) {
    for unbounded in [
        SqlInfo::SqlMaxBinaryLiteralLength,
        SqlInfo::SqlMaxCharLiteralLength,
        SqlInfo::SqlMaxColumnNameLength,
        SqlInfo::SqlMaxColumnsInGroupBy,
        SqlInfo::SqlMaxColumnsInIndex,
        SqlInfo::SqlMaxColumnsInOrderBy,
        SqlInfo::SqlMaxColumnsInSelect,
        SqlInfo::SqlMaxColumnsInTable,
        SqlInfo::SqlMaxConnections,
        SqlInfo::SqlMaxCursorNameLength,
        SqlInfo::SqlMaxIndexLength,
        SqlInfo::SqlDbSchemaNameLength,
        SqlInfo::SqlMaxProcedureNameLength,
        SqlInfo::SqlMaxCatalogNameLength,
        SqlInfo::SqlMaxRowSize,
        SqlInfo::SqlMaxStatements,
        SqlInfo::SqlMaxTableNameLength,
        SqlInfo::SqlMaxTablesInSelect,
        SqlInfo::SqlMaxUsernameLength,
    ] {
        info.append(unbounded, 0_i64);
    }
    info.append(SqlInfo::SqlMaxRowSizeIncludesBlobs, true);
    info.append(SqlInfo::SqlMaxStatementLength, engine::text::TEXT_BYTES_MAX as i64);
}

fn transactions(info: &mut SqlInfoDataBuilder) {
    // Each statement is its own transaction on one snapshot of each table.
    info.append(SqlInfo::SqlDefaultTransactionIsolation, 0_i64);
    info.append(SqlInfo::SqlTransactionsSupported, false);
    info.append(SqlInfo::SqlSupportedTransactionsIsolationLevels, mask(&[0]));
    info.append(SqlInfo::SqlDataDefinitionCausesTransactionCommit, false);
    info.append(SqlInfo::SqlDataDefinitionsInTransactionsIgnored, false);
    // Forward only, read only.
    info.append(SqlInfo::SqlSupportedResultSetTypes, mask(&[1]));
    info.append(SqlInfo::SqlSupportedConcurrenciesForResultSetUnspecified, mask(&[1]));
    info.append(SqlInfo::SqlSupportedConcurrenciesForResultSetForwardOnly, mask(&[1]));
    info.append(SqlInfo::SqlSupportedConcurrenciesForResultSetScrollSensitive, mask(&[]));
    info.append(SqlInfo::SqlSupportedConcurrenciesForResultSetScrollInsensitive, mask(&[]));
    info.append(SqlInfo::SqlBatchUpdatesSupported, true);
    info.append(SqlInfo::SqlSavepointsSupported, false);
    info.append(SqlInfo::SqlNamedParametersSupported, false);
    info.append(SqlInfo::SqlLocatorsUpdateCopy, false);
    info.append(SqlInfo::SqlStoredFunctionsUsingCallSyntaxSupported, false);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_value() {
        let codes: Vec<u32> = (0..=11).chain([100, 101]).chain(500..=576).collect();
        assert_eq!(sql_info(&codes).unwrap().num_rows(), codes.len());
        assert_eq!(sql_info(&[]).unwrap().num_rows(), codes.len(), "no code asks for all");
        assert_eq!(sql_info(&[8, 504]).unwrap().num_rows(), 2);
        assert_eq!(sql_info(&[99_999]).unwrap().num_rows(), 0);
    }
}
