//! The messages of Flight's session actions and the newest field of a prepared statement, which arrow-flight 58 lacks.
//!
//! Field numbers: `Flight.proto` and `FlightSql.proto` of Apache Arrow. The session messages are sent as they are, not
//! inside an `Any`.

use std::collections::HashMap;

use prost::{Enumeration, Message, Oneof};

/// `SetSessionOptionsRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct SetSessionOptionsRequest {
    #[prost(map = "string, message", tag = "1")]
    pub session_options: HashMap<String, SessionOptionValue>,
}

/// `SessionOptionValue`: an absent value takes the option back.
#[derive(Clone, PartialEq, Message)]
pub struct SessionOptionValue {
    #[prost(oneof = "OptionValue", tags = "1, 2, 3, 4, 5")]
    pub option_value: Option<OptionValue>,
}

/// The value of a session option.
#[derive(Clone, PartialEq, Oneof)]
pub enum OptionValue {
    #[prost(string, tag = "1")]
    String(String),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(sfixed64, tag = "3")]
    Int64(i64),
    #[prost(double, tag = "4")]
    Double(f64),
    #[prost(message, tag = "5")]
    StringList(StringListValue),
}

/// A list of texts.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StringListValue {
    #[prost(string, repeated, tag = "1")]
    pub values: Vec<String>,
}

/// `SetSessionOptionsResult`: the options that were not set.
#[derive(Clone, PartialEq, Message)]
pub struct SetSessionOptionsResult {
    #[prost(map = "string, message", tag = "1")]
    pub errors: HashMap<String, SetSessionOptionError>,
}

/// Why an option was not set.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct SetSessionOptionError {
    #[prost(enumeration = "SetError", tag = "1")]
    pub value: i32,
}

/// `SetSessionOptionsResult.ErrorValue`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum SetError {
    Unspecified = 0,
    InvalidName = 1,
    InvalidValue = 2,
    Error = 3,
}

/// `GetSessionOptionsResult`.
#[derive(Clone, PartialEq, Message)]
pub struct GetSessionOptionsResult {
    #[prost(map = "string, message", tag = "1")]
    pub session_options: HashMap<String, SessionOptionValue>,
}

/// `CloseSessionResult`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct CloseSessionResult {
    #[prost(enumeration = "CloseStatus", tag = "1")]
    pub status: i32,
}

/// `CloseSessionResult.Status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum CloseStatus {
    Unspecified = 0,
    Closed = 1,
    Closing = 2,
    NotCloseable = 3,
}

/// `ActionCreatePreparedStatementResult` with `is_update`, by which drivers know how to run the statement.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CreatePreparedStatementResult {
    #[prost(bytes = "bytes", tag = "1")]
    pub prepared_statement_handle: bytes::Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub dataset_schema: bytes::Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub parameter_schema: bytes::Bytes,
    #[prost(bool, optional, tag = "4")]
    pub is_update: Option<bool>,
}

/// The name of [`CreatePreparedStatementResult`] inside an `Any`.
pub const CREATE_PREPARED_STATEMENT_RESULT: &str =
    "type.googleapis.com/arrow.flight.protocol.sql.ActionCreatePreparedStatementResult";

/// What a statement without rows did, for our own client: in the metadata of its endpoint.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Outcome {
    /// The statement's kind, such as `INSERT`.
    #[prost(string, tag = "1")]
    pub tag: String,
    /// How many rows it wrote, where it wrote rows.
    #[prost(uint64, optional, tag = "2")]
    pub rows: Option<u64>,
}

impl From<OptionValue> for SessionOptionValue {
    fn from(value: OptionValue) -> Self {
        Self { option_value: Some(value) }
    }
}
