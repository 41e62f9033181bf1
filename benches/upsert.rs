//! Upsert of 1,000 rows into 1,000,000 × 128 with a primary key, and a delete by key, through SQL.
//!
//! `cargo bench -p benches --bench upsert -- [FOLDER] [ROWS]`
//!
//! The rival is Lance's own `merge_insert` with a BTree on the key, on the same rows in the same rounds:
//! `benches/upsert_lance.py`. About half of the rows of a round are there and are replaced, the others are new. The
//! rows come from a table of 1,000 rows that is made outside the timed part.

use std::path::PathBuf;
use std::time::Instant;

use benches::{Failure, in_folder, open, report, written};
use engine::Session;

const ROWS: usize = 1_000_000;
const DIM: usize = 128;
const CHANGES: usize = 1_000;
const ROUNDS: usize = 15;

fn main() -> Result<(), Failure> {
    let arguments = benches::arguments();
    let rows = arguments.get(1).map_or(Ok(ROWS), |text| text.parse())?;
    in_folder(arguments.first(), "upsert", |folder| run(folder, rows))
}

async fn run(folder: PathBuf, rows: usize) -> Result<(), Failure> {
    let session = open(&folder).await?;
    session.execute(&format!("CREATE TABLE docs (id BIGINT PRIMARY KEY, tenant INT, emb VECTOR({DIM}))")).await?;
    let start = Instant::now();
    written(&session, &format!("INSERT INTO docs {}", selected("value", &format!("generate_series(0, {})", rows - 1))))
        .await?;
    println!("data: {rows} × {DIM} f32 with a key, loaded in {:.1} s", start.elapsed().as_secs_f64());
    drop(session);

    let session = open(&folder).await?;
    let upsert = "INSERT INTO docs SELECT * FROM changes \
                  ON CONFLICT (id) DO UPDATE SET tenant = excluded.tenant, emb = excluded.emb";
    let (mut upserts, mut deletes) = (vec![], vec![]);
    for round in 0..ROUNDS {
        make_changes(&session, round, rows).await?;
        let start = Instant::now();
        let count = written(&session, upsert).await?;
        upserts.push(start.elapsed());
        if count != CHANGES as u64 {
            return Err(format!("{count} rows were upserted in place of {CHANGES}").into());
        }
        let key = round * 7919 % rows;
        let start = Instant::now();
        written(&session, &format!("DELETE FROM docs WHERE id = {key}")).await?;
        deletes.push(start.elapsed());
    }
    report("upsert of 1,000 rows", upserts);
    report("delete of one key", deletes);
    Ok(())
}

/// Rows by their keys, by a rule that the rival's script knows too: element i of row k is `(k · (i + 1) mod 101) / 101`.
fn selected(key: &str, source: &str) -> String {
    let elements: Vec<String> = (1..=DIM).map(|at| format!("({key} * {at} % 101) / 101.0")).collect();
    format!(
        "SELECT {key} AS id, {key} % 100 AS tenant, ARRAY[{}]::VECTOR({DIM}) AS emb FROM {source}",
        elements.join(", ")
    )
}

async fn make_changes(session: &Session, round: usize, rows: usize) -> Result<(), Failure> {
    let (first, last) = (round * CHANGES, (round + 1) * CHANGES - 1);
    // 1999 and twice the rows have no divisor in common: the keys of all rounds differ.
    let keys = format!("(SELECT value * 1999 % {} AS k FROM generate_series({first}, {last}))", 2 * rows);
    session.execute(&format!("CREATE OR REPLACE TABLE changes AS {}", selected("k", &keys))).await?;
    Ok(())
}
