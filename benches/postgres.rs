//! A client of PostgreSQL with pgvector: rows in and out by binary COPY, a prepared search. It speaks the protocol (version 3,
//! chapter "Frontend/Backend Protocol" of PostgreSQL's manual) by itself, and only as much of it as this takes: a crate for it
//! would change the features of crates that Lance and DataFusion are built on.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use engine::arrow::array::{AsArray, RecordBatch};
use engine::arrow::datatypes::{Float32Type, Int64Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Failure;
use crate::rates::Searcher;

/// Rows that are put together into columns, or sent at once.
const BATCH_ROWS: usize = 1_024;
/// Bytes that are read at once at least.
const READ_BYTES: usize = 256 << 10;
/// How every stream of binary COPY begins; flags and an extension, both empty, follow.
const COPY_HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// In place of a number of columns: the rows are over.
const COPY_END: i16 = -1;

/// A connection.
pub struct Postgres {
    stream: TcpStream,
    incoming: BytesMut,
}

/// A message with its length, put behind others.
fn put_message(out: &mut BytesMut, kind: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(kind);
    let start = out.len();
    out.put_u32(0);
    body(out);
    let length = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

fn put_text(out: &mut BytesMut, text: &str) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

/// A value with its length: the dimension and nothing, 16 bits each, then the numbers of the vector.
fn put_vector(out: &mut BytesMut, vector: &[f32]) {
    out.put_u32(4 + 4 * vector.len() as u32);
    out.put_u16(vector.len() as u16);
    out.put_u16(0);
    for value in vector {
        out.put_f32(*value);
    }
}

/// A value that was fetched; NULL is none that we ask for.
fn take_value(row: &mut Bytes) -> Result<Bytes, Failure> {
    let length = usize::try_from(row.try_get_i32()?).map_err(|_| "a value is NULL")?;
    if row.len() < length {
        return Err("a row is cut short".into());
    }
    Ok(row.split_to(length))
}

impl Postgres {
    /// Connects to the database `postgres` as the user `bench`, who needs no password.
    ///
    /// # Errors
    /// No server at `address` that lets him in.
    pub async fn connect(address: &str) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut out = BytesMut::new();
        out.put_slice(b"\0\0\0\x24\0\x03\0\0user\0bench\0database\0postgres\0\0");
        let length = out.len() as u32;
        out[..4].copy_from_slice(&length.to_be_bytes());
        let mut connection = Self { stream, incoming: BytesMut::with_capacity(READ_BYTES) };
        connection.stream.write_all(&out).await?;
        connection.until(b'Z').await?;
        Ok(connection)
    }

    /// The next message: its kind and its content.
    async fn message(&mut self) -> Result<(u8, Bytes), Failure> {
        loop {
            if let Some(mut head) = self.incoming.get(1..5) {
                let length = 1 + head.get_u32() as usize;
                if self.incoming.len() >= length {
                    let mut message = self.incoming.split_to(length).freeze();
                    let kind = message.get_u8();
                    message.advance(4);
                    if kind == b'E' {
                        return Err(String::from_utf8_lossy(&message).replace('\0', " ").into());
                    }
                    return Ok((kind, message));
                }
            }
            self.incoming.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.incoming).await? == 0 {
                return Err("the server closed the connection".into());
            }
        }
    }

    /// Reads up to a message of this kind.
    async fn until(&mut self, kind: u8) -> Result<Bytes, Failure> {
        loop {
            let (found, message) = self.message().await?;
            if found == kind {
                return Ok(message);
            }
        }
    }

    async fn ask(&mut self, sql: &str) -> Result<(), Failure> {
        let mut out = BytesMut::new();
        put_message(&mut out, b'Q', |out| put_text(out, sql));
        Ok(self.stream.write_all(&out).await?)
    }

    /// Runs statements without rows.
    ///
    /// # Errors
    /// What the server says.
    pub async fn run(&mut self, sql: &str) -> Result<(), Failure> {
        self.ask(sql).await?;
        self.until(b'Z').await?;
        Ok(())
    }

    /// Sends rows of an id and a vector into a table that has these columns.
    ///
    /// # Errors
    /// What the server says.
    pub async fn copy_in(&mut self, table: &str, base: &[RecordBatch]) -> Result<(), Failure> {
        self.ask(&format!("COPY {table} FROM STDIN (FORMAT binary)")).await?;
        self.until(b'G').await?;
        let mut out = BytesMut::new();
        put_message(&mut out, b'd', |out| out.put_slice(COPY_HEAD));
        for batch in base {
            let embeddings = batch.column(1).as_fixed_size_list();
            let dim = usize::try_from(embeddings.value_length())?;
            let ids = batch.column(0).as_primitive::<Int64Type>().values();
            let values = embeddings.values().as_primitive::<Float32Type>().values();
            for (ids, values) in ids.chunks(BATCH_ROWS).zip(values.chunks(BATCH_ROWS * dim)) {
                put_message(&mut out, b'd', |out| {
                    for (id, vector) in ids.iter().zip(values.chunks(dim)) {
                        out.put_i16(2);
                        out.put_u32(8);
                        out.put_i64(*id);
                        put_vector(out, vector);
                    }
                });
                self.stream.write_all(&out).await?;
                out.clear();
            }
        }
        put_message(&mut out, b'd', |out| out.put_i16(COPY_END));
        put_message(&mut out, b'c', |_| {});
        self.stream.write_all(&out).await?;
        self.until(b'Z').await?;
        Ok(())
    }

    /// Fetches the rows of a query for an id and a vector as columns of values, and lets go of these now and then. Returns
    /// their bytes.
    ///
    /// # Errors
    /// What the server says.
    pub async fn copy_out(&mut self, sql: &str) -> Result<usize, Failure> {
        self.ask(&format!("COPY ({sql}) TO STDOUT (FORMAT binary)")).await?;
        self.until(b'H').await?;
        let (mut ids, mut values, mut bytes): (Vec<i64>, Vec<f32>, usize) = (vec![], vec![], 0);
        let mut is_first = true;
        loop {
            let (kind, mut row) = self.message().await?;
            if kind == b'Z' {
                return Ok(bytes + size_of_val(ids.as_slice()) + size_of_val(values.as_slice()));
            }
            if kind != b'd' {
                continue;
            }
            if std::mem::take(&mut is_first) {
                row.advance(COPY_HEAD.len());
            }
            if row.is_empty() || row.get_i16() == COPY_END {
                continue;
            }
            ids.push(take_value(&mut row)?.try_get_i64()?);
            let vector = take_value(&mut row)?;
            let numbers = vector[4..].chunks_exact(4);
            values.extend(numbers.map(|value| f32::from_be_bytes([value[0], value[1], value[2], value[3]])));
            if ids.len() == BATCH_ROWS {
                bytes += size_of_val(ids.as_slice()) + size_of_val(values.as_slice());
                ids.clear();
                values.clear();
            }
        }
    }
}

/// A connection with its search prepared.
pub struct Search(Postgres);

impl Search {
    /// On a connection of its own: see [`Search::on`].
    ///
    /// # Errors
    /// What the server says.
    pub async fn new(address: &str, sql: &str) -> Result<Self, Failure> {
        Self::on(Postgres::connect(address).await?, sql).await
    }

    /// The answer of `sql` has ids, BIGINT, in its first column; `$1` is the vector.
    ///
    /// # Errors
    /// What the server says.
    pub async fn on(mut connection: Postgres, sql: &str) -> Result<Self, Failure> {
        let mut out = BytesMut::new();
        put_message(&mut out, b'P', |out| {
            put_text(out, "search");
            put_text(out, sql);
            out.put_u16(0);
        });
        put_message(&mut out, b'S', |_| {});
        connection.stream.write_all(&out).await?;
        connection.until(b'Z').await?;
        Ok(Self(connection))
    }

    async fn found(&mut self, query: &[f32]) -> Result<Vec<i64>, Failure> {
        let mut out = BytesMut::new();
        put_message(&mut out, b'B', |out| {
            put_text(out, "");
            put_text(out, "search");
            // Of values and of columns: one format, the binary one, for all.
            for number in [1, 1, 1] {
                out.put_u16(number);
            }
            put_vector(out, query);
            for number in [1, 1] {
                out.put_u16(number);
            }
        });
        put_message(&mut out, b'E', |out| {
            put_text(out, "");
            out.put_u32(0);
        });
        put_message(&mut out, b'S', |_| {});
        self.0.stream.write_all(&out).await?;
        let mut ids = vec![];
        loop {
            let (kind, mut row) = self.0.message().await?;
            match kind {
                b'D' => {
                    let columns = row.try_get_i16()?;
                    ids.push(take_value(&mut row)?.try_get_i64()?);
                    for _ in 1..columns {
                        take_value(&mut row)?;
                    }
                }
                b'Z' => return Ok(ids),
                _ => {}
            }
        }
    }
}

impl Searcher for Search {
    async fn nearest(&mut self, query: &[f32]) -> Result<Vec<i64>, String> {
        self.found(query).await.map_err(|error| error.to_string())
    }
}
