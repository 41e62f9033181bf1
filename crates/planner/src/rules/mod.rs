//! The rules that turn plain SQL into searches, one file per rule, and where DataFusion's own apply.

pub mod fetch_less;
pub mod find_search;
pub mod where_it_applies;
