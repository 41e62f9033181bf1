//! `sagitta import`: loads files into a table, with a bar that moves.

use std::sync::Arc;
use std::time::Instant;

use engine::{Format, ImportMode, ImportOptions, Progress};

use crate::args::{Import, InputFormat};
use crate::console::{Console, Outcome, in_words, stopped};
use crate::progress::{DRAW_INTERVAL, ImportBar};
use crate::report::Report;

/// Runs the import; errors are shown here.
pub async fn run(import: Import, mut console: Console) -> Outcome {
    let table = import.table.clone();
    let options = ImportOptions {
        mode: mode_of(&import),
        format: import.format_in.map(format_of),
        sources: import.sources,
        table: import.table,
    };
    let started = Instant::now();
    let counted = Arc::new(Progress::default());
    let bar = ImportBar::new(console.progress, counted.clone());
    let session = console.session.clone();
    let mut task = console.workers.spawn(async move { session.import(options, counted).await });
    let mut ticks = tokio::time::interval(DRAW_INTERVAL);
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    let ended = loop {
        tokio::select! {
            biased;
            _ = &mut interrupt => {
                task.abort();
                bar.clear();
                eprintln!("cancelled, {table} is as it was");
                return Outcome::Interrupted;
            }
            ended = &mut task => break ended,
            _ = ticks.tick() => bar.draw(),
        }
    };
    bar.clear();
    let rows = match ended.unwrap_or_else(|error| Err(stopped(&error))) {
        Ok(rows) => rows,
        Err(error) => {
            console.show(Report::of(&error, None));
            return Outcome::Failed;
        }
    };
    let count = if rows == 1 { "row" } else { "rows" };
    let line = format!("imported {rows} {count} into {table} in {}", in_words(started.elapsed()));
    if !console.quiet && console.tell(&line).is_err() {
        return Outcome::PipeClosed;
    }
    Outcome::Done
}

fn mode_of(import: &Import) -> ImportMode {
    match (import.create, import.append, import.replace) {
        (_, _, true) => ImportMode::Replace,
        (true, true, _) => ImportMode::CreateOrAppend,
        (false, true, _) => ImportMode::Append,
        (_, false, _) => ImportMode::Create,
    }
}

fn format_of(format: InputFormat) -> Format {
    match format {
        InputFormat::Parquet => Format::Parquet,
        InputFormat::Csv => Format::Csv,
        InputFormat::Jsonl => Format::Json,
        InputFormat::Arrow => Format::Arrow,
        InputFormat::Npy => Format::Npy,
        InputFormat::Lance => Format::Lance,
    }
}
