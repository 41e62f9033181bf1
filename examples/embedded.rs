//! The engine inside a program: no server, no shell. Run it with
//! `cargo run --release -p examples --bin embedded [folder]`; without a folder the database lives in memory.
//!
//! It makes a table, fills it, prepares a search once and runs it with several vectors.

use std::error::Error;
use std::sync::Arc;

use engine::arrow::array::{Array, AsArray, FixedSizeListArray, Float32Array, RecordBatch};
use engine::arrow::datatypes::{DataType, Field, Float64Type};
use engine::{Answer, Engine, EngineOptions, ScalarValue};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let location = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let engine = Engine::open(&location, EngineOptions::default()).await?;
    let session = engine.session();

    session.execute("CREATE OR REPLACE TABLE colours (name TEXT NOT NULL, rgb VECTOR(3))").await?;
    let answer = session
        .execute(
            "INSERT INTO colours VALUES
               ('red', '[1, 0, 0]'), ('green', '[0, 1, 0]'), ('blue', '[0, 0, 1]'),
               ('orange', '[1, 0.6, 0]'), ('pink', '[1, 0.7, 0.8]'), ('navy', '[0, 0, 0.5]')",
        )
        .await?;
    if let Answer::Done(done) = answer {
        println!("{} {} rows", done.tag, done.rows.unwrap_or(0));
    }

    // Planned once; each run binds its parameters and sees the newest rows.
    let nearest = session.prepare("SELECT name, rgb <-> $1 AS distance FROM colours ORDER BY distance LIMIT 2").await?;
    for (title, rgb) in [("tomato", [1.0, 0.4, 0.3]), ("sky", [0.5, 0.8, 0.9])] {
        println!("nearest to {title}:");
        let Answer::Rows(rows) = nearest.run(&[vector(&rgb)?]).await? else {
            return Err("a query gives rows".into());
        };
        for batch in rows.collect().await? {
            print(&batch)?;
        }
    }
    Ok(())
}

/// A vector as a parameter: a list of fixed length.
fn vector(values: &[f32]) -> Result<ScalarValue, Box<dyn Error>> {
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let list = FixedSizeListArray::try_new(
        item,
        i32::try_from(values.len())?,
        Arc::new(Float32Array::from(values.to_vec())),
        None,
    )?;
    Ok(ScalarValue::FixedSizeList(Arc::new(list)))
}

/// Prints the rows of an answer of a name and a distance.
fn print(batch: &RecordBatch) -> Result<(), Box<dyn Error>> {
    let names = engine::arrow::compute::cast(batch.column(0), &DataType::Utf8)?;
    let distances = batch.column(1).as_primitive::<Float64Type>();
    for (name, distance) in names.as_string::<i32>().iter().zip(distances.values()) {
        println!("  {:8} {distance:.3}", name.unwrap_or("?"));
    }
    Ok(())
}
