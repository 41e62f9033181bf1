//! The rules that turn plain SQL into searches, those that keep times exact, one file per rule, and where DataFusion's own
//! apply.

pub mod exact_times;
pub mod fetch_less;
pub mod find_search;
pub mod plain_instants;
mod rewrite_exprs;
pub mod time_casts;
pub mod where_it_applies;
