//! `sagitta`: the one binary. Here: the process itself, that is its environment, its threads and its exit status.
//! What the commands do is in the modules; what SQL means is in `engine`.

// A statement is one deep future, from its text to the reads of its files.
#![recursion_limit = "256"]

mod args;
mod config;
mod connection;
mod console;
mod import;
mod print;
mod progress;
mod report;
mod run;
mod serve;
mod shell;

use std::process::ExitCode;
use std::time::Duration;

/// Planning makes and drops many small values: with the system's allocator that is a third of a short statement.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Deep expressions are planned by recursion: a worker's stack holds what the main thread's would.
const WORKER_STACK_BYTES: usize = 16 << 20;
/// Threads beyond those that a statement uses: one that was cancelled gives its own back only at its next pause, and
/// the statement after it shall not wait for that.
const WORKERS_SPARE: usize = 2;
/// Threads that wait for files. Each keeps memory of its own that it has freed: hundreds would hold more than the statements.
const BLOCKING_THREADS_MAX: usize = 32;
/// How long background work may take to notice that the process ends.
const SHUTDOWN_MAX: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get).max(2);
    set_lance_environment(cores);
    let args = match args::Args::from_command_line() {
        Ok(args) => args,
        Err(error) => {
            // A closed pipe behind `--help` is no error, and there is nobody left to tell.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let setup = match serve::setup(&args) {
        Ok(setup) => setup,
        Err(outcome) => return outcome.exit_code(),
    };
    if setup.is_none() {
        start_log();
    }
    let threads = setup.as_ref().map_or(args.global.threads, serve::Setup::threads);
    let workers = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.unwrap_or(cores) + WORKERS_SPARE)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_stack_size(WORKER_STACK_BYTES)
        .enable_all()
        .build();
    // The terminal has a runtime of its own on this thread: workers that are busy with a statement for seconds on end
    // look after neither clocks nor signals, and the terminal wants both, above all then.
    let terminal = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (workers, terminal) = match (workers, terminal) {
        (Ok(workers), Ok(terminal)) => (workers, terminal),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!(
                "error: cannot start threads: {error}; raise the limit on processes (ulimit -u) or use --threads 1"
            );
            return ExitCode::from(1);
        }
    };
    let outcome = match setup {
        Some(setup) => serve::run(setup, &terminal, workers.handle()),
        None => run::run(args, &terminal, workers.handle()),
    };
    // Whoever waits for standard input, waits for good.
    terminal.shutdown_background();
    workers.shutdown_timeout(SHUTDOWN_MAX);
    outcome.exit_code()
}

/// Gives Lance as many decoding threads as there are cores, unless the user has decided.
///
/// Left alone, Lance reserves two cores for I/O and decodes on what remains: nothing, on a small machine.
fn set_lance_environment(cores: usize) {
    const LANCE_CPU_THREADS: &str = "LANCE_CPU_THREADS";
    if std::env::var_os(LANCE_CPU_THREADS).is_none() {
        #[expect(unsafe_code, reason = "Lance reads this setting from the environment alone")]
        // SAFETY: called first in `main`, before the runtime or any other thread exists, so no one reads the
        // environment meanwhile.
        unsafe {
            std::env::set_var(LANCE_CPU_THREADS, cores.to_string());
        }
    }
}

/// Has the allocator give freed pages back to the system at once, or only after a while. A server's memory limit is meant for
/// the process, and what one statement has freed would stay with its threads while the next one takes anew. But at
/// once means to fault in each buffer of each scan: more than half of what a server did for a stream of vectors.
fn return_freed_memory(at_once: bool) {
    /// `mi_option_purge_delay` of mimalloc 2 and 3, in milliseconds.
    const PURGE_DELAY: core::ffi::c_int = 15;
    /// Longer than a statement waits for its next buffer.
    const LATER: core::ffi::c_long = 1_000;
    #[expect(unsafe_code, reason = "mimalloc reads this setting from the environment before main, or is told so")]
    // SAFETY: the declaration is that of mimalloc.h; the function sets an atomic number, and may be called at any time.
    unsafe {
        unsafe extern "C" {
            fn mi_option_set(option: core::ffi::c_int, value: core::ffi::c_long);
        }
        mi_option_set(PURGE_DELAY, if at_once { 0 } else { LATER });
    }
}

/// Sends the log of a shell to standard error when `SAGITTA_LOG` asks for it (`SAGITTA_LOG=debug`, `SAGITTA_LOG=storage=trace`).
fn start_log() {
    if let Ok(filter) = std::env::var("SAGITTA_LOG") {
        let filter = tracing_subscriber::EnvFilter::new(filter);
        // It fails only if a log was started before, and this is the only place that starts one.
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    }
}
