//! Metadata commands: catalogs, schemas, tables and their columns, keys. No data is read for any of them.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int32Array, RecordBatch, Scalar, StringArray, UInt8Array};
use arrow::compute::kernels::comparison::like;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_flight::sql::metadata::{GetCatalogsBuilder, GetDbSchemasBuilder};
use arrow_flight::sql::{CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetTables};
use engine::{CATALOG, DEFAULT_SCHEMA, Objects, RelationInfo, RelationKind, sql_type_name};
use tonic::Status;

use crate::status::{malformed, status_of};
use crate::type_info::precision;
use crate::wire::Types;

/// The kinds of relations in the words of JDBC.
const TABLE_TYPES: [(RelationKind, &str); 4] = [
    (RelationKind::External, "EXTERNAL TABLE"),
    (RelationKind::System, "SYSTEM TABLE"),
    (RelationKind::Table, "TABLE"),
    (RelationKind::View, "VIEW"),
];

fn table_type(kind: RelationKind) -> &'static str {
    TABLE_TYPES.iter().find(|(other, _)| *other == kind).map_or("TABLE", |(_, name)| name)
}

fn failed(error: impl std::fmt::Display) -> Status {
    Status::internal(format!("the metadata cannot be put together: {error}"))
}

/// `CommandGetCatalogs`.
pub(crate) fn catalogs() -> Result<RecordBatch, Status> {
    let mut builder = GetCatalogsBuilder::new();
    builder.append(CATALOG);
    builder.build().map_err(failed)
}

/// `CommandGetTableTypes`.
pub(crate) fn table_types() -> Result<RecordBatch, Status> {
    batch(vec![("table_type", false, texts(TABLE_TYPES.iter().map(|(_, name)| (*name).to_owned()).collect()))])
}

/// `CommandGetDbSchemas`.
pub(crate) async fn schemas(objects: &Objects, command: CommandGetDbSchemas) -> Result<RecordBatch, Status> {
    let mut builder: GetDbSchemasBuilder = command.into_builder();
    for schema in objects.schemas().await.map_err(|error| status_of(&error))? {
        builder.append(CATALOG, schema);
    }
    builder.build().map_err(|error| malformed("the filter of schemas", error))
}

/// `CommandGetTables`: only the columns of tables that pass the filters are looked up.
pub(crate) async fn tables(objects: &Objects, command: CommandGetTables, types: Types) -> Result<RecordBatch, Status> {
    let relations = objects.relations().await.map_err(|error| status_of(&error))?;
    let mut chosen = matching(&relations, command.db_schema_filter_pattern.as_deref(), |relation| &relation.schema)?;
    let by_name = matching(&relations, command.table_name_filter_pattern.as_deref(), |relation| &relation.name)?;
    let has_catalog = command.catalog.as_deref().is_none_or(|catalog| catalog == CATALOG);
    for (chosen, by_name) in chosen.iter_mut().zip(by_name) {
        *chosen &= by_name && has_catalog;
    }
    let (include_schema, wanted) = (command.include_schema, command.table_types.clone());
    let mut builder = command.into_builder();
    for (relation, _) in relations.iter().zip(chosen).filter(|(_, chosen)| *chosen) {
        let kind = table_type(relation.kind);
        if !wanted.is_empty() && !wanted.iter().any(|name| name == kind) {
            continue;
        }
        let columns = match include_schema {
            // A table that cannot be opened is listed without columns; the statement that reads it will say why.
            true => objects.columns(&relation.schema, &relation.name).await.ok().flatten(),
            false => None,
        };
        let columns = columns.map_or_else(Schema::empty, |columns| described(&types.schema(&columns), Some(relation)));
        builder.append(CATALOG, &relation.schema, &relation.name, kind, &columns).map_err(failed)?;
    }
    builder.build().map_err(|error| malformed("the filter of tables", error))
}

fn matching(
    relations: &[RelationInfo],
    pattern: Option<&str>,
    name: impl Fn(&RelationInfo) -> &String,
) -> Result<Vec<bool>, Status> {
    let Some(pattern) = pattern else { return Ok(vec![true; relations.len()]) };
    let names = StringArray::from_iter_values(relations.iter().map(name));
    let pattern = Scalar::new(StringArray::from(vec![pattern]));
    let found: BooleanArray = like(&names, &pattern).map_err(|error| malformed("the pattern", error))?;
    Ok(found.iter().map(|found| found == Some(true)).collect())
}

/// The same columns with what drivers look up in their metadata: names of types, digits, whose they are.
pub(crate) fn described(schema: &Schema, relation: Option<&RelationInfo>) -> Schema {
    let field = |field: &Arc<Field>| {
        let mut metadata: HashMap<String, String> = field.metadata().clone();
        let mut say = |key: &str, value: String| metadata.insert(format!("ARROW:FLIGHT:SQL:{key}"), value);
        say("CATALOG_NAME", CATALOG.to_owned());
        if let Some(relation) = relation {
            say("SCHEMA_NAME", relation.schema.clone());
            say("TABLE_NAME", relation.name.clone());
        }
        say("TYPE_NAME", sql_type_name(field));
        if let Some((digits, scale)) = precision(field.data_type()) {
            say("PRECISION", digits.to_string());
            say("SCALE", scale.to_string());
        }
        let is_text = matches!(field.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
        say("IS_CASE_SENSITIVE", u8::from(is_text).to_string());
        say("IS_AUTO_INCREMENT", "0".to_owned());
        say("IS_READ_ONLY", u8::from(relation.is_none_or(|relation| relation.kind != RelationKind::Table)).to_string());
        say("IS_SEARCHABLE", "1".to_owned());
        field.as_ref().clone().with_metadata(metadata)
    };
    Schema::new_with_metadata(schema.fields().iter().map(field).collect::<Vec<_>>(), schema.metadata().clone())
}

fn batch(fields: Vec<(&str, bool, ArrayRef)>) -> Result<RecordBatch, Status> {
    let schema: Vec<Field> =
        fields.iter().map(|(name, nullable, array)| Field::new(*name, array.data_type().clone(), *nullable)).collect();
    let columns = fields.into_iter().map(|(.., array)| array).collect();
    RecordBatch::try_new(Arc::new(Schema::new(schema)), columns).map_err(failed)
}

fn texts(values: Vec<String>) -> ArrayRef {
    Arc::new(StringArray::from(values))
}

/// `CommandGetPrimaryKeys`.
pub(crate) async fn primary_keys(objects: &Objects, command: &CommandGetPrimaryKeys) -> Result<RecordBatch, Status> {
    let schema = command.db_schema.as_deref().filter(|schema| !schema.is_empty()).unwrap_or(DEFAULT_SCHEMA);
    let is_here = command.catalog.as_deref().is_none_or(|catalog| catalog.is_empty() || catalog == CATALOG);
    let key = match is_here {
        true => objects.primary_key(schema, &command.table).await.map_err(|error| status_of(&error))?,
        false => vec![],
    };
    let count = key.len();
    let same = |text: &str| texts(vec![text.to_owned(); count]);
    let numbers = Int32Array::from_iter_values((1..).take(count));
    batch(vec![
        ("catalog_name", true, same(CATALOG)),
        ("db_schema_name", true, same(schema)),
        ("table_name", false, same(&command.table)),
        ("column_name", false, texts(key)),
        ("key_name", true, same(&Objects::primary_key_name(&command.table))),
        ("key_sequence", false, Arc::new(numbers)),
    ])
}

/// `CommandGetExportedKeys`, `CommandGetImportedKeys` and `CommandGetCrossReference`: there are no foreign keys.
pub(crate) fn foreign_keys() -> Result<RecordBatch, Status> {
    let none = || texts(vec![]);
    let rule = || -> ArrayRef { Arc::new(UInt8Array::from(Vec::<u8>::new())) };
    batch(vec![
        ("pk_catalog_name", true, none()),
        ("pk_db_schema_name", true, none()),
        ("pk_table_name", false, none()),
        ("pk_column_name", false, none()),
        ("fk_catalog_name", true, none()),
        ("fk_db_schema_name", true, none()),
        ("fk_table_name", false, none()),
        ("fk_column_name", false, none()),
        ("key_sequence", false, Arc::new(Int32Array::from(Vec::<i32>::new()))),
        ("fk_key_name", true, none()),
        ("pk_key_name", true, none()),
        ("update_rule", false, rule()),
        ("delete_rule", false, rule()),
    ])
}

/// The schema of a prepared answer, with what drivers look up.
pub(crate) fn prepared_schema(schema: &SchemaRef, types: Types) -> Schema {
    described(&types.schema(schema), None)
}
