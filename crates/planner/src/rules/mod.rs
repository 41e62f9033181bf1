//! The rules that turn plain SQL into searches, one file per rule.

pub mod fetch_less;
pub mod find_search;
