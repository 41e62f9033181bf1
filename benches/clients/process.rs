//! The server as a process: started, watched, asked for its figures, stopped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use benches::Failure;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long the server may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often its memory is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A server that runs.
pub struct Serving {
    child: Child,
    http: String,
    /// Where Flight clients connect.
    pub uri: String,
    /// What it was given.
    pub limit_bytes: u64,
    temporary: PathBuf,
    log: PathBuf,
}

/// What the server holds at a moment.
#[derive(Debug, Clone, Default)]
pub struct Moment {
    pub resident_bytes: u64,
    pub files: usize,
    pub sessions: u64,
    pub handles: u64,
    pub running: u64,
    pub queued: u64,
    pub waiting: u64,
    pub reserved_bytes: u64,
    pub temporary_files: usize,
}

/// What was seen while the clients worked.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    pub resident_bytes_max: u64,
    pub resident_bytes_last: u64,
    pub reserved_bytes_max: u64,
    pub waiting_max: u64,
    pub files_max: usize,
    /// The figures were asked for, and nobody answered.
    pub silences: usize,
}

/// A task that watches.
pub struct Watching {
    task: tokio::task::JoinHandle<Watched>,
    is_over: Arc<AtomicBool>,
}

impl Watching {
    pub async fn stop(self) -> Watched {
        self.is_over.store(true, Ordering::Relaxed);
        self.task.await.unwrap_or_default()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It has ended by itself if all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn binary() -> Result<PathBuf, Failure> {
    if let Some(path) = std::env::var_os("SAGITTA_BIN") {
        return Ok(path.into());
    }
    let path = std::env::current_exe()?.with_file_name("sagitta");
    if path.exists() { Ok(path) } else { Err("build sagitta first: cargo build --release --workspace --bins".into()) }
}

fn bytes(text: &str) -> Result<u64, Failure> {
    let (number, factor) = match text.strip_suffix(['M', 'G']) {
        Some(number) => (number, if text.ends_with('M') { 1 << 20 } else { 1 << 30 }),
        None => (text, 1),
    };
    Ok(number.parse::<u64>()? * factor)
}

impl Serving {
    pub async fn start(place: &Path, memory: &str, idle: Duration, settings: &[String]) -> Result<Self, Failure> {
        let (temporary, log) = (place.join("tmp"), place.join("log"));
        std::fs::create_dir_all(&temporary)?;
        let seconds = idle.as_secs();
        let mut command = Command::new(binary()?);
        command
            .args(["serve", "--memory-limit", memory, "--data"])
            .arg(place.join("data"))
            .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--set", "limits.statements_max=32"])
            .args(["--set", "limits.queue_max=128", "--set", "limits.queue_time_max=10s"])
            .args(["--set", &format!("limits.session_idle_max={seconds}s")])
            .args(["--set", &format!("limits.handle_lifetime={seconds}s")]);
        for setting in settings {
            command.args(["--set", setting]);
        }
        let child = command
            .env("TMPDIR", &temporary)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .spawn()?;
        let mut serving =
            Self { child, http: String::new(), uri: String::new(), limit_bytes: bytes(memory)?, temporary, log };
        serving.wait_for_addresses().await?;
        Ok(serving)
    }

    /// The addresses are in what it prints when it is ready.
    async fn wait_for_addresses(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if self.child.try_wait()?.is_some() {
                break;
            }
            let text = std::fs::read_to_string(&self.log)?;
            let after = |word: &str| {
                let line = text.lines().find_map(|line| line.trim().strip_prefix(word));
                line.and_then(|line| line.split_whitespace().next().map(|found| found.trim_end_matches(';').to_owned()))
            };
            if let (Some(flight), Some(http)) = (after("Flight SQL"), after("HTTP"))
                && text.contains("connect with")
            {
                self.uri = format!("http://{flight}");
                self.http = http.trim_start_matches("http://").to_owned();
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(format!("the server did not start: {}", std::fs::read_to_string(&self.log)?).into())
    }

    fn process(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.child.id()))
    }

    /// What it holds now.
    pub async fn now(&self) -> Option<Moment> {
        moment(&self.process(), &self.http, &self.temporary).await
    }

    /// What it holds as soon as nobody is connected and nothing is left of those who were, or when patience ends.
    pub async fn settled(&self, patience: Duration) -> Moment {
        let began = Instant::now();
        loop {
            let now = self.now().await.unwrap_or_default();
            if now.is_quiet() || began.elapsed() > patience {
                return now;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Looks at it again and again.
    pub fn watch(&self) -> Watching {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let (process, http, temporary) = (self.process(), self.http.clone(), self.temporary.clone());
        let task = tokio::spawn(async move {
            let mut watched = Watched::default();
            let mut looks = 0;
            while !over.load(Ordering::Relaxed) {
                let resident = status(&process, "VmRSS:").unwrap_or(0);
                watched.resident_bytes_max = watched.resident_bytes_max.max(resident);
                watched.resident_bytes_last = resident;
                // Its own figures cost it something: now and then.
                if looks % 20 == 0 {
                    match moment(&process, &http, &temporary).await {
                        Some(now) => {
                            watched.reserved_bytes_max = watched.reserved_bytes_max.max(now.reserved_bytes);
                            watched.waiting_max = watched.waiting_max.max(now.waiting);
                            watched.files_max = watched.files_max.max(now.files);
                        }
                        None => watched.silences += 1,
                    }
                }
                looks += 1;
                tokio::time::sleep(LOOK).await;
            }
            watched.resident_bytes_max = watched.resident_bytes_max.max(status(&process, "VmHWM:").unwrap_or(0));
            watched
        });
        Watching { task, is_over }
    }

    /// Lets it end by itself.
    pub async fn stop(mut self) -> Result<(), Failure> {
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                return if status.success() { Ok(()) } else { Err(format!("the server ended with {status}").into()) };
            }
            tokio::time::sleep(LOOK).await;
        }
        Err("the server did not end when it was told to".into())
    }
}

impl Moment {
    fn is_quiet(&self) -> bool {
        let held = [self.sessions, self.handles, self.running, self.queued, self.waiting, self.reserved_bytes];
        held.iter().all(|held| *held == 0) && self.temporary_files == 0 && self.resident_bytes > 0
    }
}

/// What is not as it was before the clients came.
pub fn complaints(
    serving: &Serving,
    watched: &Watched,
    before: &Moment,
    after: &Moment,
    files_kept: usize,
) -> Vec<String> {
    let mut wrong = vec![];
    if !after.is_quiet() {
        wrong.push(format!("the clients have left, and the server still holds {after:?}"));
    }
    if after.files > before.files + files_kept {
        wrong.push(format!("{} files are open, and {} were before", after.files, before.files));
    }
    if watched.resident_bytes_max > serving.limit_bytes / 10 * 11 {
        wrong.push(format!("{} bytes of memory for a limit of {}", watched.resident_bytes_max, serving.limit_bytes));
    }
    let log = std::fs::read_to_string(&serving.log).unwrap_or_default();
    let bad = ["panicked", "mistake of the engine", " ERROR "];
    wrong.extend(log.lines().filter(|line| bad.iter().any(|bad| line.contains(bad))).take(5).map(str::to_owned));
    wrong
}

async fn moment(process: &Path, http: &str, temporary: &Path) -> Option<Moment> {
    let text = tokio::time::timeout(Duration::from_secs(10), metrics(http)).await.ok()?.ok()?;
    let figure = |name: &str| {
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
        line.split(' ').nth(1)?.parse::<f64>().ok().map(|figure| figure as u64)
    };
    Some(Moment {
        resident_bytes: status(process, "VmRSS:")?,
        files: std::fs::read_dir(process.join("fd")).ok()?.count(),
        sessions: figure("sagitta_sessions")?,
        handles: figure("sagitta_handles")?,
        running: figure("sagitta_statements_running")?,
        queued: figure("sagitta_statements_queued")?,
        waiting: figure("sagitta_memory_waiting")?,
        reserved_bytes: figure("sagitta_memory_reserved_bytes")?,
        temporary_files: files_below(temporary),
    })
}

async fn metrics(http: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(http.replace("localhost", "127.0.0.1")).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

/// A figure of the process in bytes.
fn status(process: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(process.join("status")).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

fn files_below(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries.flatten().map(|entry| if entry.path().is_dir() { files_below(&entry.path()) } else { 1 }).sum()
}
