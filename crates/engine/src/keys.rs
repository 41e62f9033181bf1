//! The primary key of a CREATE TABLE. That it is kept is storage's work.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema};
use datafusion::sql::sqlparser::ast::{
    self, ColumnOption, CreateTable, Ident, OrderByOptions, PrimaryKeyConstraint, TableConstraint,
};
use planner::resolve::RelationName;
use planner::sql_type::sql_type_name;

use crate::change::folded;
use crate::{Error, Result};

/// The name of a table's primary key, as PostgreSQL makes it. It is not stored: it changes with the table's name.
pub(crate) fn key_name(table: &str) -> String {
    format!("{table}_pkey")
}

/// The columns of the primary key in order; none if there is no key.
///
/// # Errors
/// Another name than [`key_name`], two keys, a column that does not exist or has a type without a firm equality, clauses
/// that are not carried out.
pub(crate) fn primary_key(create: &CreateTable, schema: &Schema) -> Result<Vec<String>> {
    let called = key_name(&RelationName::of_sql(&create.name)?.table);
    let mut keys: Vec<Vec<String>> = vec![];
    for (column, field) in create.columns.iter().zip(schema.fields()) {
        for option in &column.options {
            if let ColumnOption::PrimaryKey(constraint) = &option.option {
                check(constraint, option.name.as_ref(), &called)?;
                keys.push(vec![field.name().clone()]);
            }
        }
    }
    for constraint in &create.constraints {
        if let TableConstraint::PrimaryKey(constraint) = constraint {
            check(constraint, None, &called)?;
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
/// Another name than the key has, an index type, options, DEFERRABLE: none of them would do anything.
fn check(constraint: &PrimaryKeyConstraint, name: Option<&Ident>, called: &str) -> Result<()> {
    let PrimaryKeyConstraint { name: own, index_name, index_type, columns: _, index_options, characteristics } =
        constraint;
    if let Some(name) = name.or(own.as_ref())
        && folded(name) != called
    {
        return Err(Error::unsupported(format!(
            "a primary key is called after its table, and cannot be called {name}; write CONSTRAINT {called}, or leave CONSTRAINT out"
        )));
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
    if storage::can_be_key(field.data_type()) {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "column \"{name}\" is a {} and cannot be in a primary key; keys are integers, texts, dates, times and decimals",
        sql_type_name(field)
    )))
}
