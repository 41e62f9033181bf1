//! The engine inside a program: no server, no shell. Run it with
//! `cargo run --release --bin embedded [folder]`; without a folder the database lives in memory.
//!
//! It makes a table, fills it, prepares a search once and runs it with several vectors.

use std::error::Error;

use engine::arrow::util::pretty::pretty_format_batches;
use engine::{Answer, Engine, EngineOptions};

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
        let rows = nearest.run(&[engine::vector(rgb)]).await?.collect().await?;
        println!("nearest to {title}:\n{}", pretty_format_batches(&rows)?);
    }
    Ok(())
}
