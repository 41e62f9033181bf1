//! The primary key of a CREATE TABLE. That it is kept is storage's work.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::sql::sqlparser::ast::{
    self, ColumnOption, CreateTable, Ident, OrderByOptions, PrimaryKeyConstraint, TableConstraint,
};
use planner::vector_type::sql_type_name;

use crate::change::folded;
use crate::{Error, Result};

/// The columns of the primary key in order; none if there is no key.
///
/// # Errors
/// Two keys, a column that does not exist or has a type without a firm equality, clauses that are not carried out.
pub(crate) fn primary_key(create: &CreateTable, schema: &Schema) -> Result<Vec<String>> {
    let mut keys: Vec<Vec<String>> = vec![];
    for (column, field) in create.columns.iter().zip(schema.fields()) {
        for option in &column.options {
            if let ColumnOption::PrimaryKey(constraint) = &option.option {
                check(constraint, option.name.as_ref())?;
                keys.push(vec![field.name().clone()]);
            }
        }
    }
    for constraint in &create.constraints {
        if let TableConstraint::PrimaryKey(constraint) = constraint {
            check(constraint, None)?;
            keys.push(constraint.columns.iter().map(column_name).collect::<Result<_>>()?);
        }
    }
    let key = match (keys.pop(), keys.is_empty()) {
        (None, _) => return Ok(vec![]),
        (Some(key), true) => key,
        (Some(_), false) => {
            return Err(Error::invalid(
                "a table has one primary key; name several columns of it as PRIMARY KEY (a, b)",
            ));
        }
    };
    for (at, name) in key.iter().enumerate() {
        check_column(name, create, schema)?;
        if key[..at].contains(name) {
            return Err(Error::invalid(format!("column \"{name}\" is twice in the primary key")));
        }
    }
    Ok(key)
}

/// The same columns; those of the key are NOT NULL.
pub(crate) fn with_key_not_null(schema: &Schema, key: &[String]) -> Schema {
    let field = |field: &Arc<Field>| match key.contains(field.name()) {
        true => Arc::new(field.as_ref().clone().with_nullable(false)),
        false => Arc::clone(field),
    };
    Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>())
}

/// # Errors
/// A name, an index type, options, DEFERRABLE: none of them would do anything.
fn check(constraint: &PrimaryKeyConstraint, name: Option<&Ident>) -> Result<()> {
    let PrimaryKeyConstraint { name: own, index_name, index_type, columns: _, index_options, characteristics } =
        constraint;
    if name.or(own.as_ref()).is_some() {
        return Err(Error::unsupported("a name of a primary key is not supported; leave CONSTRAINT name out"));
    }
    if index_name.is_some() || index_type.is_some() || !index_options.is_empty() || characteristics.is_some() {
        return Err(Error::unsupported(
            "clauses behind PRIMARY KEY are not supported; write id BIGINT PRIMARY KEY, or PRIMARY KEY (a, b)",
        ));
    }
    Ok(())
}

fn column_name(column: &ast::IndexColumn) -> Result<String> {
    let is_plain = column.operator_class.is_none()
        && column.column.with_fill.is_none()
        && column.column.options == OrderByOptions::default();
    match &column.column.expr {
        ast::Expr::Identifier(name) if is_plain => Ok(folded(name)),
        _ => Err(Error::unsupported(format!(
            "PRIMARY KEY ({column}) is not supported; it names columns: PRIMARY KEY (a, b)"
        ))),
    }
}

/// # Errors
/// No such column, NULL and PRIMARY KEY at once, a type whose values cannot be told apart for sure.
fn check_column(name: &str, create: &CreateTable, schema: &Schema) -> Result<()> {
    let Some(at) = schema.fields().iter().position(|field| field.name() == name) else {
        return Err(Error::invalid(format!("the primary key names column \"{name}\", which the table does not have")));
    };
    if create.columns[at].options.iter().any(|option| matches!(option.option, ColumnOption::Null)) {
        return Err(Error::invalid(format!("column \"{name}\" is in the primary key and cannot be NULL")));
    }
    let field = schema.field(at);
    let data_type = field.data_type();
    let is_firm = data_type.is_integer()
        || data_type.is_temporal()
        || matches!(
            data_type,
            DataType::Boolean
                | DataType::Utf8
                | DataType::LargeUtf8
                | DataType::Binary
                | DataType::LargeBinary
                | DataType::FixedSizeBinary(_)
                | DataType::Decimal128(..)
                | DataType::Decimal256(..)
        );
    if is_firm {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "column \"{name}\" is a {} and cannot be in a primary key; keys are integers, texts, dates, times and decimals",
        sql_type_name(field)
    )))
}
