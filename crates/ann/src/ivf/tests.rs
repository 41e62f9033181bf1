//! Tests of the family of lists.
