//! The bytes of one catalog file. Nothing is read or written here.
//!
//! Two lines of JSON, each ending in a line feed:
//!
//! ```text
//! {"sagitta_catalog":1,"number":7,"nonce":"…","bytes":123,"crc32":"89abcdef"}
//! {"schemas":{"public":{"relations":{"docs":{"kind":"table","id":"…","location":"…",…}}}}}
//! ```
//!
//! `sagitta_catalog` is the magic and the version of the format, `number` the number in the file's name, `nonce` a
//! random text by which a writer knows its own file again (32 hexadecimal digits, a dash, and their CRC-32; older files
//! have the digits alone), `bytes` and `crc32` (CRC-32/ISO-HDLC) the length and the checksum of the second line without
//! its line feed. A reader refuses a newer version and ignores unknown fields.
//!
//! Version 2 added the retention of tables, version 3 `users`: `{"anna":{"password_hash":"…","is_admin":false,"grants":
//! {"public":"read"}}}`, version 4 the `id` of a user. A file that has a successor may be written again without the hashes of
//! passwords that hold no more (`history.rs`); nothing else in it changes. A catalog is written in the oldest version that says all of it: older programs still read it, and
//! those that would lose a retention, the users or their ids when they write the next catalog refuse it.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use serde::{Deserialize, Serialize};

use super::{Catalog, ExternalTable, Relation, SchemaEntry, TableEntry, ViewEntry};
use crate::error::{Result, StorageError};
use crate::numbered::is_damaged_nonce;
use crate::retention::Retention;
use crate::users::{Role, UserEntry};

/// The newest version that this program reads, written if there are users with ids.
pub(crate) const VERSION: u32 = 4;

/// The version that is written if there are users, all without ids.
const VERSION_WITH_USERS: u32 = 3;

/// The version that is written if a table has a retention.
const VERSION_WITH_RETENTION: u32 = 2;

/// The version that is written otherwise.
const VERSION_PLAIN: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Header {
    sagitta_catalog: u32,
    number: u64,
    nonce: String,
    bytes: usize,
    crc32: String,
}

#[derive(Serialize, Deserialize)]
struct Body {
    schemas: BTreeMap<String, StoredSchema>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    users: BTreeMap<String, StoredUser>,
}

#[derive(Serialize, Deserialize)]
struct StoredSchema {
    relations: BTreeMap<String, StoredRelation>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum StoredRelation {
    Table {
        id: String,
        location: String,
        created_at_us: i64,
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        defaults: BTreeMap<String, String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retention: Option<Retention>,
    },
    External {
        format: String,
        location: String,
        #[serde(default)]
        options: Vec<(String, String)>,
        /// An Arrow IPC stream without batches, in hexadecimal digits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        schema_ipc: Option<String>,
        created_at_us: i64,
    },
    View {
        sql: String,
        created_at_us: i64,
    },
}

#[derive(Serialize, Deserialize)]
struct StoredUser {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password_hash: Option<String>,
    is_admin: bool,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    grants: BTreeMap<String, Role>,
}

/// What a catalog file holds.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) catalog: Catalog,
    pub(crate) nonce: String,
}

/// The bytes of `catalog` as file number `catalog.number`.
pub(crate) fn encode(catalog: &Catalog, nonce: &str) -> Result<Vec<u8>> {
    let mut schemas = BTreeMap::new();
    for (name, schema) in &catalog.schemas {
        let mut relations = BTreeMap::new();
        for (name, relation) in &schema.relations {
            relations.insert(name.clone(), store(relation)?);
        }
        schemas.insert(name.clone(), StoredSchema { relations });
    }
    let users = catalog.users.iter().map(|(name, user)| {
        let UserEntry { id, password_hash, is_admin, grants } = user.clone();
        (name.clone(), StoredUser { id, password_hash, is_admin, grants })
    });
    let body = to_json(&Body { schemas, users: users.collect() })?;
    let header = to_json(&Header {
        sagitta_catalog: version_of(catalog),
        number: catalog.number,
        nonce: nonce.to_owned(),
        bytes: body.len(),
        crc32: format!("{:08x}", crc32fast::hash(body.as_bytes())),
    })?;
    Ok(format!("{header}\n{body}\n").into_bytes())
}

/// The oldest version that can say what is in the catalog.
fn version_of(catalog: &Catalog) -> u32 {
    if !catalog.users.is_empty() {
        let has_ids = catalog.users.values().any(|user| !user.id.is_empty());
        return if has_ids { VERSION } else { VERSION_WITH_USERS };
    }
    let mut relations = catalog.schemas.values().flat_map(|schema| schema.relations.values());
    let has_retention =
        relations.any(|relation| matches!(relation, Relation::Table(TableEntry { retention: Some(_), .. })));
    if has_retention { VERSION_WITH_RETENTION } else { VERSION_PLAIN }
}

/// Reads file number `number`. `file` names it in messages.
///
/// # Errors
/// [`StorageError::Corrupt`] if a checksum, length or number differs, [`StorageError::Unsupported`] for a newer
/// version.
pub(crate) fn decode(bytes: &[u8], number: u64, file: &str) -> Result<Decoded> {
    let corrupt =
        |why: String| StorageError::corrupt(format!("catalog file {file} is damaged ({why}); restore it from a copy"));
    let text = std::str::from_utf8(bytes).map_err(|_| corrupt("it is not text".to_owned()))?;
    let (header, rest) = text.split_once('\n').ok_or_else(|| corrupt("it has no header line".to_owned()))?;
    let header: Header =
        serde_json::from_str(header).map_err(|error| corrupt(format!("its header cannot be read: {error}")))?;
    if header.sagitta_catalog > VERSION {
        return Err(StorageError::unsupported(format!(
            "catalog file {file} has format {} and this program reads up to {VERSION}; use a newer sagitta",
            header.sagitta_catalog
        )));
    }
    let body = rest.strip_suffix('\n').ok_or_else(|| corrupt("its end is missing".to_owned()))?;
    if body.len() != header.bytes {
        return Err(corrupt(format!("it holds {} bytes instead of {}", body.len(), header.bytes)));
    }
    let crc32 = format!("{:08x}", crc32fast::hash(body.as_bytes()));
    if crc32 != header.crc32 {
        return Err(corrupt(format!("its checksum is {crc32} instead of {}", header.crc32)));
    }
    if is_damaged_nonce(&header.nonce) {
        return Err(corrupt("its nonce is not what was written".to_owned()));
    }
    if header.number != number {
        return Err(corrupt(format!("it says it is number {}", header.number)));
    }
    let body: Body =
        serde_json::from_str(body).map_err(|error| corrupt(format!("its body cannot be read: {error}")))?;
    let mut schemas = BTreeMap::new();
    for (name, schema) in body.schemas {
        let mut relations = BTreeMap::new();
        for (name, relation) in schema.relations {
            let relation = load(relation).map_err(|error| corrupt(format!("relation {name}: {error}")))?;
            relations.insert(name, relation);
        }
        schemas.insert(name, SchemaEntry { relations });
    }
    let users = body.users.into_iter().map(|(name, user)| {
        let StoredUser { id, password_hash, is_admin, grants } = user;
        (name, UserEntry { id, password_hash, is_admin, grants })
    });
    let catalog = Catalog { number, schemas, users: users.collect() };
    Ok(Decoded { catalog, nonce: header.nonce })
}

fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|error| StorageError::internal("the catalog cannot be written as JSON").with_source(error))
}

fn store(relation: &Relation) -> Result<StoredRelation> {
    Ok(match relation.clone() {
        Relation::Table(TableEntry { id, location, created_at_us, defaults, retention }) => {
            StoredRelation::Table { id, location, created_at_us, defaults, retention }
        }
        Relation::External(ExternalTable { format, location, options, schema, created_at_us }) => {
            let schema_ipc = schema.map(|schema| schema_to_hex(&schema)).transpose()?;
            StoredRelation::External { format, location, options, schema_ipc, created_at_us }
        }
        Relation::View(ViewEntry { sql, created_at_us }) => StoredRelation::View { sql, created_at_us },
    })
}

fn load(relation: StoredRelation) -> Result<Relation> {
    Ok(match relation {
        StoredRelation::Table { id, location, created_at_us, defaults, retention } => {
            Relation::Table(TableEntry { id, location, created_at_us, defaults, retention })
        }
        StoredRelation::External { format, location, options, schema_ipc, created_at_us } => {
            let schema = schema_ipc.map(|hex| schema_from_hex(&hex)).transpose()?;
            Relation::External(ExternalTable { format, location, options, schema, created_at_us })
        }
        StoredRelation::View { sql, created_at_us } => Relation::View(ViewEntry { sql, created_at_us }),
    })
}

fn schema_to_hex(schema: &Schema) -> Result<String> {
    let failed = |error| StorageError::internal("the columns of an external table cannot be stored").with_source(error);
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::try_new(&mut bytes, schema).map_err(failed)?;
    writer.finish().map_err(failed)?;
    drop(writer);
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or('0');
    Ok(bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect())
}

fn schema_from_hex(hex: &str) -> Result<SchemaRef> {
    let digits = hex.as_bytes();
    let byte = |pair: &[u8]| {
        let text = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(text, 16).ok()
    };
    let bytes: Option<Vec<u8>> = digits.chunks(2).map(|pair| if pair.len() == 2 { byte(pair) } else { None }).collect();
    let bytes = bytes.ok_or_else(|| StorageError::corrupt("its columns are no hexadecimal digits"))?;
    let reader = StreamReader::try_new(Cursor::new(bytes), None)
        .map_err(|error| StorageError::corrupt(format!("its columns cannot be read: {error}")))?;
    Ok(Arc::clone(&reader.schema()))
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field};

    use uuid::Uuid;

    use super::*;
    use crate::catalog::{CreateMode, DEFAULT_SCHEMA, TableName};
    use crate::numbered::nonce;

    fn sample() -> Catalog {
        let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int32, true)]));
        let relations = [
            (
                "t",
                Relation::Table(TableEntry {
                    id: "id".into(),
                    location: "public/t-1.lance".into(),
                    created_at_us: 5,
                    defaults: BTreeMap::from([("a".into(), "1 + 1".into())]),
                    retention: Some(Retention::ForMs(1_000)),
                }),
            ),
            (
                "e",
                Relation::External(ExternalTable {
                    format: "CSV".into(),
                    location: "/x.csv".into(),
                    options: vec![("format.delimiter".into(), ";".into())],
                    schema: Some(schema),
                    created_at_us: 6,
                }),
            ),
            ("v", Relation::View(ViewEntry { sql: "SELECT 'ä\n'".into(), created_at_us: 7 })),
        ];
        let mut catalog = Catalog::default();
        for (name, relation) in relations {
            let name = TableName::new(DEFAULT_SCHEMA, name);
            catalog = catalog.with_relation(&name, relation, CreateMode::ErrorIfExists).unwrap().unwrap().0;
        }
        catalog.number = 3;
        catalog
    }

    fn with_users() -> Catalog {
        let anna = UserEntry {
            id: "5f0c".into(),
            password_hash: Some("$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA".into()),
            is_admin: false,
            grants: BTreeMap::from([(DEFAULT_SCHEMA.into(), Role::Write), ("ä".into(), Role::Admin)]),
        };
        let root = UserEntry { is_admin: true, ..UserEntry::default() };
        Catalog { users: BTreeMap::from([("anna".into(), anna), ("root \"x\"".into(), root)]), ..sample() }
    }

    #[test]
    fn a_catalog_survives_its_bytes() {
        for catalog in [sample(), with_users()] {
            let bytes = encode(&catalog, "nonce").unwrap();
            let decoded = decode(&bytes, 3, "3.json").unwrap();
            assert_eq!(decoded.catalog, catalog);
            assert_eq!(decoded.nonce, "nonce");
        }
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_noticed() {
        let good = encode(&with_users(), "nonce").unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            match decode(&bad, 3, "3.json") {
                // The nonce and an older version are not part of the content.
                Ok(decoded) => {
                    assert_eq!(decoded.catalog, with_users(), "a flip at byte {at} changed the content silently")
                }
                Err(error) => assert!(error.to_string().contains("3.json"), "{error}"),
            }
            assert!(decode(&good[..at], 3, "3.json").is_err(), "truncated at {at}");
        }
        assert!(decode(&good, 4, "4.json").is_err());
    }

    #[test]
    fn a_flipped_bit_in_a_nonce_is_noticed() {
        let nonce = nonce(Uuid::from_u128(77));
        let good = String::from_utf8(encode(&sample(), &nonce).unwrap()).unwrap();
        assert_eq!(decode(good.as_bytes(), 3, "3.json").unwrap().nonce, nonce);
        let start = good.find(&nonce).unwrap();
        for bit in start * 8..(start + nonce.len()) * 8 {
            let mut bad = good.clone().into_bytes();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad, 3, "3.json").is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_format_is_refused_with_a_next_step() {
        let text = String::from_utf8(encode(&with_users(), "n").unwrap()).unwrap();
        let newer = text.replacen("\"sagitta_catalog\":4", "\"sagitta_catalog\":5", 1);
        let error = decode(newer.as_bytes(), 3, "3.json").unwrap_err();
        assert!(
            matches!(error, StorageError::Unsupported(_)) && error.to_string().contains("newer sagitta"),
            "{error}"
        );
    }

    #[test]
    fn a_catalog_is_written_in_the_oldest_version_that_says_all_of_it() {
        let name = TableName::new(DEFAULT_SCHEMA, "t");
        let without = sample().with_retention(&name, "id", None).unwrap();
        let forever = sample().with_retention(&name, "id", Some(Retention::Forever)).unwrap();
        let users_alone = Catalog { users: with_users().users, ..without.clone() };
        let without_ids = Catalog { users: BTreeMap::from([("a".into(), UserEntry::default())]), ..without.clone() };
        let all = [(with_users(), 4), (users_alone, 4), (without_ids, 3), (sample(), 2), (forever, 2), (without, 1)];
        for (catalog, version) in all {
            let bytes = encode(&catalog, "n").unwrap();
            assert!(bytes.starts_with(format!("{{\"sagitta_catalog\":{version},").as_bytes()), "{catalog:?}");
            assert_eq!(decode(&bytes, 3, "3.json").unwrap().catalog, catalog);
        }
    }
}
