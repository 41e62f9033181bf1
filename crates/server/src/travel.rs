//! What a handle holds, so that any server of the database can go on with it: the statement and its values, and of an answer what
//! it read and when.
//!
//! On the server that gave a handle out, its id finds what it stands for, and nothing is parsed or planned again. Elsewhere, or
//! after a restart, a prepared statement is prepared again and an answer is planned again on the same versions. What cannot be
//! done twice (a change that was carried out), what tells of one server (`system`), and what is too large to be
//! carried about stays where it is; elsewhere the error says so.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use engine::{PinnedRelation, Pins, Plan, Statement};
use prost::{Enumeration, Message, Oneof};
use tonic::Status;

use crate::seal::unknown;
use crate::statements::Asked;

/// The longest statement that travels, in bytes.
pub(crate) const STATEMENT_BYTES_MAX: usize = 16 << 10;
/// The most that the values of a statement may hold to travel, in bytes as they are sent.
pub(crate) const VALUES_BYTES_MAX: usize = 16 << 10;
/// The most that a ticket holds of its statement: an answer of 256 parts has as many tickets, and drivers take 16 MiB at once.
const REPLAY_BYTES_MAX: usize = 40 << 10;

/// What is in a handle.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Body {
    #[prost(oneof = "Content", tags = "1, 2")]
    pub(crate) content: Option<Content>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum Content {
    #[prost(message, tag = "1")]
    Prepared(Prepared),
    #[prost(message, tag = "2")]
    Ticket(Ticket),
}

/// A prepared statement.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Prepared {
    /// None if it does not travel.
    #[prost(oneof = "Source", tags = "1, 2")]
    pub(crate) source: Option<Source>,
    /// Which values were bound to it; 0 for none.
    #[prost(fixed64, tag = "3")]
    pub(crate) binding: u64,
    /// These values, an Arrow IPC stream, if they travel.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub(crate) values: Option<Bytes>,
}

/// What a statement was made from.
#[derive(Clone, PartialEq, Eq, Oneof)]
pub(crate) enum Source {
    #[prost(string, tag = "1")]
    Sql(String),
    #[prost(bytes = "bytes", tag = "2")]
    Substrait(Bytes),
}

/// An answer, or a part of one.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Ticket {
    /// The whole if absent.
    #[prost(uint32, optional, tag = "1")]
    pub(crate) part: Option<u32>,
    /// Microseconds since the epoch.
    #[prost(int64, tag = "2")]
    pub(crate) planned_us: i64,
    #[prost(int64, tag = "3")]
    pub(crate) expires_us: i64,
    #[prost(message, optional, tag = "4")]
    pub(crate) replay: Option<Replay>,
    /// Why there is no replay.
    #[prost(enumeration = "Kept", tag = "5")]
    pub(crate) kept: i32,
}

/// Why an answer stays with the server that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub(crate) enum Kept {
    /// It does not: it can be planned again.
    No = 0,
    /// The statement was carried out.
    CarriedOut = 1,
    /// It tells of that server.
    OfServer = 2,
    /// It is too large to be carried about.
    TooLarge = 3,
}

/// What it takes to plan an answer again.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Replay {
    #[prost(oneof = "Source", tags = "1, 2")]
    pub(crate) source: Option<Source>,
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub(crate) values: Option<Bytes>,
    /// The types on the wire.
    #[prost(string, tag = "4")]
    pub(crate) types: String,
    /// One plan for each row of values.
    #[prost(message, repeated, tag = "5")]
    pub(crate) plans: Vec<PlanPins>,
}

/// [`Pins`].
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PlanPins {
    #[prost(int64, tag = "1")]
    moment_ns: i64,
    #[prost(message, repeated, tag = "2")]
    settings: Vec<Setting>,
    #[prost(uint32, tag = "3")]
    partitions: u32,
    #[prost(uint32, tag = "4")]
    part_count: u32,
    #[prost(message, repeated, tag = "5")]
    relations: Vec<Relation>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Setting {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// [`PinnedRelation`].
#[derive(Clone, PartialEq, Eq, Message)]
struct Relation {
    #[prost(string, tag = "1")]
    schema: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    at: String,
    #[prost(string, tag = "4")]
    id: String,
    #[prost(uint64, optional, tag = "5")]
    version: Option<u64>,
}

impl Body {
    /// # Errors
    /// Bytes that no server of this version has sealed.
    pub(crate) fn read(body: Bytes) -> Result<Self, Status> {
        Self::decode(body).map_err(|_| unknown())
    }
}

impl Source {
    /// What a statement is made from; `None` if it is too long to travel, or may hold a secret.
    pub(crate) fn of(statement: &Statement) -> Option<Self> {
        let source = match statement.substrait_bytes() {
            Some(bytes) if bytes.len() <= STATEMENT_BYTES_MAX => Self::Substrait(Bytes::copy_from_slice(bytes)),
            None if statement.holds_no_secret() && statement.written().len() <= STATEMENT_BYTES_MAX => {
                Self::Sql(statement.written().to_owned())
            }
            _ => return None,
        };
        Some(source)
    }
}

impl Ticket {
    /// The ticket of an answer that was just planned or carried out; its parts differ in their number.
    pub(crate) fn of(asked: &Asked, plans: &[Plan], types: &str) -> Self {
        let (replay, kept) = match replay(asked, plans, types) {
            Ok(replay) => (Some(replay), Kept::No),
            Err(kept) => (None, kept),
        };
        Self { part: None, planned_us: micros(SystemTime::now()), expires_us: 0, replay, kept: kept as i32 }
    }

    /// How long ago the answer was planned.
    pub(crate) fn elapsed(&self) -> Duration {
        let now = micros(SystemTime::now());
        Duration::from_micros(u64::try_from(now.saturating_sub(self.planned_us)).unwrap_or(0))
    }

    pub(crate) fn is_expired(&self) -> bool {
        self.expires_us < micros(SystemTime::now())
    }

    /// The error for an answer that another server has.
    pub(crate) fn kept_elsewhere(&self) -> Status {
        let why = match self.kept() {
            Kept::CarriedOut => "its statement was carried out, which is not done twice",
            Kept::OfServer => "it tells of the server that was asked",
            Kept::TooLarge | Kept::No => "its statement or its values are too large to be carried about",
        };
        Status::not_found(format!(
            "the answer is with the server that ran the statement, or is gone with it: {why}; fetch it there"
        ))
    }
}

fn replay(asked: &Asked, plans: &[Plan], types: &str) -> Result<Replay, Kept> {
    if plans.is_empty() {
        return Err(Kept::CarriedOut);
    }
    let source = Source::of(asked.statement()).ok_or(Kept::TooLarge)?;
    let values = match &asked.bound {
        Some(bound) => Some(bound.travelling.clone().ok_or(Kept::TooLarge)?),
        None => None,
    };
    let pins: Option<Vec<PlanPins>> = plans.iter().map(|plan| plan.pins().map(PlanPins::from)).collect();
    let plans = pins.ok_or(Kept::OfServer)?;
    let replay = Replay { source: Some(source), values, types: types.to_owned(), plans };
    if replay.encoded_len() > REPLAY_BYTES_MAX { Err(Kept::TooLarge) } else { Ok(replay) }
}

impl From<Pins> for PlanPins {
    fn from(pins: Pins) -> Self {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let relation = |relation: PinnedRelation| {
            let PinnedRelation { schema, name, at, id, version } = relation;
            Relation { schema, name, at, id, version }
        };
        Self {
            moment_ns: pins.moment_ns,
            settings: pins.settings.into_iter().map(|(name, value)| Setting { name, value }).collect(),
            partitions: count(pins.partitions),
            part_count: count(pins.part_count),
            relations: pins.relations.into_iter().map(relation).collect(),
        }
    }
}

impl From<PlanPins> for Pins {
    fn from(pins: PlanPins) -> Self {
        let relation = |relation: Relation| {
            let Relation { schema, name, at, id, version } = relation;
            PinnedRelation { schema, name, at, id, version }
        };
        Self {
            moment_ns: pins.moment_ns,
            settings: pins.settings.into_iter().map(|setting| (setting.name, setting.value)).collect(),
            partitions: pins.partitions as usize,
            part_count: pins.part_count as usize,
            relations: pins.relations.into_iter().map(relation).collect(),
        }
    }
}

/// Values as they travel; `None` if there are too many.
pub(crate) fn travelling(values: &RecordBatch) -> Option<Bytes> {
    // What is far too much is not even encoded: buffers may be shared, so this counts more than there is.
    if values.get_array_memory_size() > 64 * VALUES_BYTES_MAX {
        return None;
    }
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::try_new(&mut bytes, &values.schema()).ok()?;
    writer.write(values).and_then(|()| writer.finish()).ok()?;
    drop(writer);
    (bytes.len() <= VALUES_BYTES_MAX).then(|| bytes.into())
}

/// The values that have travelled.
pub(crate) fn arrived(bytes: &[u8]) -> Result<RecordBatch, Status> {
    let failed = |_| unknown();
    let reader = StreamReader::try_new(bytes, None).map_err(failed)?;
    let schema = reader.schema();
    let batches = reader.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    concat_batches(&schema, &batches).map_err(failed)
}

/// Microseconds since the epoch.
pub(crate) fn micros(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
