//! What is drawn on the terminal while something runs: a line for statements, a bar for imports.
//!
//! Both draw on standard error, only if it is a terminal, and are gone before anything else is printed.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::Progress;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Statements that take less leave no trace.
const QUIET_TIME: Duration = Duration::from_millis(500);
/// How often the line is drawn.
pub const DRAW_INTERVAL: Duration = Duration::from_millis(100);

/// Whether progress can be drawn at all.
pub fn is_possible() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The line of a running statement.
pub struct ProgressLine {
    is_wanted: bool,
    started: Instant,
    source: Option<Arc<Progress>>,
    bar: Option<ProgressBar>,
}

impl ProgressLine {
    /// A line for a statement that starts now; it is drawn only if `is_wanted`.
    pub fn new(is_wanted: bool) -> ProgressLine {
        ProgressLine { is_wanted, started: Instant::now(), source: None, bar: None }
    }

    /// From now on, shows what this counts.
    pub fn watch(&mut self, source: Arc<Progress>) {
        self.source = Some(source);
    }

    /// Draws the line if it is time to.
    pub fn draw(&mut self) {
        if !self.is_wanted || self.started.elapsed() < QUIET_TIME {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{spinner} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style)
        });
        bar.set_message(describe(self.source.as_deref(), self.started.elapsed()));
        bar.tick();
    }

    /// Takes the line off the terminal; a later [`ProgressLine::draw`] brings it back.
    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Takes the line off for good.
    pub fn end(&mut self) {
        self.clear();
        self.is_wanted = false;
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.clear();
    }
}

/// `123,456 of 1,000,000 rows, 12 %, 35 MiB of 120 MiB, 3.2 s`: what is known of it.
fn describe(source: Option<&Progress>, elapsed: Duration) -> String {
    let mut parts = Vec::new();
    if let Some(progress) = source {
        let (rows, rows_total) = (progress.rows_done(), progress.rows_total());
        match rows_total {
            Some(total) if total >= rows && total > 0 => {
                parts.push(format!("{} of {} rows", HumanCount(rows), HumanCount(total)));
                parts.push(format!("{} %", u128::from(rows) * 100 / u128::from(total)));
            }
            _ if rows > 0 => parts.push(format!("{} rows", HumanCount(rows))),
            _ => {}
        }
        let (bytes, bytes_total) = (progress.bytes_done(), progress.bytes_total());
        match bytes_total {
            Some(total) if total >= bytes => parts.push(format!("{} of {}", HumanBytes(bytes), HumanBytes(total))),
            _ if bytes > 0 => parts.push(HumanBytes(bytes).to_string()),
            _ => {}
        }
    }
    if parts.is_empty() {
        parts.push("running".to_owned());
    }
    parts.push(format!("{:.1} s", elapsed.as_secs_f64()));
    parts.push("Ctrl-C cancels".to_owned());
    parts.join(", ")
}

/// The bar of an import.
pub struct ImportBar {
    bar: ProgressBar,
    source: Arc<Progress>,
}

impl ImportBar {
    /// A bar over what `source` counts.
    pub fn new(is_wanted: bool, source: Arc<Progress>) -> ImportBar {
        let target = if is_wanted { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        ImportBar { bar: ProgressBar::with_draw_target(None, target), source }
    }

    /// Draws what has been counted.
    pub fn draw(&self) {
        const WITH_TOTAL: &str = "{wide_bar} {percent:>3} %  {bytes} of {total_bytes}  {msg}  {eta} left";
        const WITHOUT_TOTAL: &str = "{spinner} {bytes}  {msg}";
        let total = self.source.bytes_total().filter(|total| *total > 0);
        let template = if total.is_some() { WITH_TOTAL } else { WITHOUT_TOTAL };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("━╸─"));
        }
        let rows = self.source.rows_done();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "shown"
        )]
        let rows_per_second = (rows as f64 / self.bar.elapsed().as_secs_f64().max(0.001)) as u64;
        self.bar.set_message(format!("{} rows  {} rows/s", HumanCount(rows), HumanCount(rows_per_second)));
        match total {
            Some(total) => self.bar.set_length(total),
            None => self.bar.unset_length(),
        }
        self.bar.set_position(self.source.bytes_done());
        self.bar.tick();
    }

    /// Takes the bar off the terminal.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for ImportBar {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_is_known() {
        let text = describe(None, Duration::from_millis(3210));
        assert_eq!(text, "running, 3.2 s, Ctrl-C cancels");
    }
}
