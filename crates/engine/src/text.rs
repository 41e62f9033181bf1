//! SQL text for editors: token classes and completeness. Pure functions over the engine's own tokenizer.

pub use planner::statement::TEXT_BYTES_MAX;
pub use planner::tokens::{KEYWORDS, TokenClass, classify as tokens, is_complete, may_hold_password};
