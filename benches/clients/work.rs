//! One client: it does one piece of work after the other, each chosen by its own random numbers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::arrow::array::{ArrayRef, Int64Array, RecordBatch};
use futures::stream::TryStreamExt;
use tonic::{Code, Status};

use crate::flight::{Client, status_of};
use crate::load::{BUCKETS, Documents, FILTERS, K, Random, event_schema, events, integers, noise, vectors};
use crate::tally::{Tally, Trouble, Work, is_cancelled, refusal};

/// How often each kind of work is done, of all weights together.
const WEIGHTS: [(Work, usize); 14] = [
    (Work::Search, 30),
    (Work::FilteredSearch, 16),
    (Work::Scan, 3),
    (Work::SlowScan, 2),
    (Work::HalfScan, 5),
    (Work::Sort, 2),
    (Work::Aggregate, 4),
    (Work::Ingest, 10),
    (Work::NewTable, 3),
    (Work::Change, 4),
    (Work::Definition, 3),
    (Work::Metadata, 5),
    (Work::Poll, 5),
    (Work::Cancel, 5),
];
/// The longest pause between two batches of a scan that is read slowly.
const SLOWNESS: Duration = Duration::from_millis(30);
/// One client in this many goes away without closing its session.
const RUDE: usize = 8;
/// Reading all rows with their vectors is for few: in between a client rests.
const REST: Duration = Duration::from_millis(200);

/// A client and what it has done.
pub struct Worker {
    number: usize,
    uri: String,
    documents: Arc<Documents>,
    random: Random,
    tally: Tally,
    /// Rows of its own that the server has acknowledged.
    rows: i64,
    /// Changes of its counter.
    changes: i64,
    made: u64,
}

/// A connection with its prepared searches.
struct Connected {
    client: Client,
    search: Vec<u8>,
    filtered: Vec<u8>,
}

impl Worker {
    pub fn new(number: usize, uri: String, documents: Arc<Documents>, seed: u64) -> Self {
        let random = Random::new(seed ^ (number as u64 + 1).wrapping_mul(0xd6e8_feb8_6659_fd93));
        Self { number, uri, documents, random, tally: Tally::default(), rows: 0, changes: 0, made: 0 }
    }

    /// Works until the time has come.
    pub async fn run(mut self, until: Instant) -> Tally {
        let mut connected = None;
        while Instant::now() < until {
            let Some(there) = &connected else {
                let began = Instant::now();
                match self.connect().await {
                    Ok(made) => {
                        self.tally.count(Work::Connect, began.elapsed(), Ok(()));
                        connected = Some(made);
                    }
                    Err(trouble) => {
                        self.tally.count(Work::Connect, began.elapsed(), Err(trouble));
                        self.pause(REST).await;
                    }
                }
                continue;
            };
            let work = self.choose();
            let began = Instant::now();
            let outcome = self.work(there, work).await;
            let is_ended = matches!(&outcome, Err(Trouble::Told(status)) if status.code() == Code::Unauthenticated);
            if is_ended {
                // The session was idle for too long while the client waited: it logs in anew.
                connected = None;
                continue;
            }
            if self.tally.count(work, began.elapsed(), outcome) {
                self.pause(REST).await;
            }
        }
        if let Some(Connected { client, search, .. }) = connected
            && !self.number.is_multiple_of(RUDE)
        {
            // Whether the session had ended by itself, nobody asks.
            let _ = client.close_prepared(&search).await;
            let _ = client.close().await;
        }
        self.tally.acknowledge(self.number, self.rows, self.changes);
        self.tally
    }

    async fn pause(&mut self, most: Duration) {
        tokio::time::sleep(most.mul_f64(0.1 + self.random.below(90) as f64 / 100.0)).await;
    }

    fn choose(&mut self) -> Work {
        let all = WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut at = self.random.below(all);
        for (work, weight) in WEIGHTS {
            if at < weight {
                return work;
            }
            at -= weight;
        }
        Work::Search
    }

    async fn connect(&mut self) -> Result<Connected, Trouble> {
        let client = Client::connect(&self.uri).await?;
        let search = client.prepare(&format!("SELECT id FROM docs ORDER BY emb <-> $1 LIMIT {K}")).await?;
        let sql = format!("SELECT id FROM docs WHERE bucket < $1 ORDER BY emb <-> $2 LIMIT {K}");
        let filtered = client.prepare(&sql).await?;
        Ok(Connected { client, search, filtered })
    }

    async fn work(&mut self, there: &Connected, work: Work) -> Result<(), Trouble> {
        let client = &there.client;
        match work {
            Work::Search | Work::Connect => self.search(client, &there.search, None).await,
            Work::FilteredSearch => {
                let filter = self.random.below(FILTERS.len());
                self.search(client, &there.filtered, Some(filter)).await
            }
            Work::Scan => self.scan(client, None, usize::MAX).await,
            Work::SlowScan => self.scan(client, Some(SLOWNESS), usize::MAX).await,
            Work::HalfScan => {
                let batches = 1 + self.random.below(8);
                self.scan(client, None, batches).await
            }
            Work::Sort => self.sort(client).await,
            Work::Aggregate => self.aggregate(client).await,
            Work::Ingest => self.ingest(client).await,
            Work::NewTable => self.new_table(client).await,
            Work::Change => self.change(client).await,
            Work::Definition => self.define(client).await,
            Work::Metadata => match client.metadata().await? {
                0 => Err(Trouble::Wrong("there is no metadata".to_owned())),
                _ => Ok(()),
            },
            Work::Poll => self.poll(client).await,
            Work::Cancel => self.cancel(client).await,
        }
    }

    async fn search(&mut self, client: &Client, handle: &[u8], filter: Option<usize>) -> Result<(), Trouble> {
        let number = self.random.below(1 << 16);
        let all = FILTERS.len() - 1;
        let (query, expected) = self.documents.query(number, filter.unwrap_or(all));
        let vector = vectors(query.to_vec(), self.documents.dim);
        let values = match filter {
            None => vec![("$1", vector)],
            Some(filter) => {
                let bucket = Int64Array::from(vec![FILTERS[filter]]);
                vec![("$1", Arc::new(bucket) as ArrayRef), ("$2", vector)]
            }
        };
        let values = RecordBatch::try_from_iter(values).map_err(|error| Trouble::Wrong(error.to_string()))?;
        let found = integers(&client.run(handle, values).await?, 0);
        match found == expected {
            true => Ok(()),
            false => Err(Trouble::Wrong(format!("the nearest are {expected:?}, and {found:?} were found"))),
        }
    }

    /// Reads the documents, `batches` of them at most.
    async fn scan(&mut self, client: &Client, slowness: Option<Duration>, batches: usize) -> Result<(), Trouble> {
        let mut rows = client.query("SELECT id, emb FROM docs").await?;
        let (mut count, mut sum, mut seen) = (0, 0, 0);
        while seen < batches {
            let Some(batch) = rows.try_next().await.map_err(status_of)? else { break };
            seen += 1;
            count += batch.num_rows();
            sum += integers(std::slice::from_ref(&batch), 0).iter().sum::<i64>();
            if let Some(slowness) = slowness {
                self.pause(slowness).await;
            }
        }
        if batches < usize::MAX || (count, sum) == (self.documents.rows, self.documents.sum_of_ids()) {
            return Ok(());
        }
        Err(Trouble::Wrong(format!("a scan gave {count} rows whose ids are {sum} together")))
    }

    /// More than fits into the memory that one statement has, in the end.
    async fn sort(&mut self, client: &Client) -> Result<(), Trouble> {
        let mut rows = client.query("SELECT id, noise, emb FROM docs ORDER BY noise, id").await?;
        let (mut count, mut last) = (0, (i64::MIN, i64::MIN));
        while let Some(batch) = rows.try_next().await.map_err(status_of)? {
            let batch = std::slice::from_ref(&batch);
            for (id, number) in integers(batch, 0).into_iter().zip(integers(batch, 1)) {
                if (number, id) <= last || number != noise(id) {
                    return Err(Trouble::Wrong(format!("({number}, {id}) comes after {last:?}")));
                }
                last = (number, id);
                count += 1;
            }
        }
        match count == self.documents.rows {
            true => Ok(()),
            false => Err(Trouble::Wrong(format!("{count} rows were sorted"))),
        }
    }

    async fn aggregate(&mut self, client: &Client) -> Result<(), Trouble> {
        let groups = if self.random.below(2) == 0 { BUCKETS as usize } else { self.documents.rows };
        let column = if groups == BUCKETS as usize { "bucket" } else { "id" };
        let sql = format!(
            "SELECT count(*), sum(n) FROM (SELECT {column}, count(*) AS n, min(noise) FROM docs GROUP BY {column})"
        );
        let batches = client.rows(&sql).await?;
        let (found, rows) = (integers(&batches, 0), integers(&batches, 1));
        match found == [groups.min(self.documents.rows) as i64] && rows == [self.documents.rows as i64] {
            true => Ok(()),
            false => Err(Trouble::Wrong(format!("{groups} groups have {found:?} members and {rows:?} rows"))),
        }
    }

    async fn ingest(&mut self, client: &Client) -> Result<(), Trouble> {
        let (dim, count) = (self.documents.dim, 1 + self.random.below(4_000));
        let (first, half) = (self.rows, count / 2);
        let batches =
            vec![events(self.number, first, half, dim), events(self.number, first + half as i64, count - half, dim)];
        let written = client.ingest("events", false, event_schema(dim), batches).await?;
        self.rows += written;
        match written == count as i64 {
            true => Ok(()),
            false => Err(Trouble::Wrong(format!("{written} of {count} rows were acknowledged"))),
        }
    }

    fn own_name(&mut self) -> String {
        self.made += 1;
        format!("own_{}_{}", self.number, self.made)
    }

    async fn new_table(&mut self, client: &Client) -> Result<(), Trouble> {
        let (dim, count, table) = (self.documents.dim, 1 + self.random.below(2_000), self.own_name());
        client.ingest(&table, true, event_schema(dim), vec![events(self.number, 0, count, dim)]).await?;
        let count_all = format!("SELECT count(*) FROM {table} WHERE emb IS NOT NULL");
        let found = self.insisting(|| client.rows(&count_all)).await?;
        let drop = format!("DROP TABLE {table}");
        self.insisting(|| client.update(&drop)).await?;
        match integers(&found, 0) == [count as i64] {
            true => Ok(()),
            false => Err(Trouble::Wrong(format!("a table of {count} rows has {:?}", integers(&found, 0)))),
        }
    }

    /// Tries until it is not refused: what was begun is brought to its end.
    async fn insisting<T, F: Future<Output = Result<T, Status>>>(
        &mut self,
        call: impl Fn() -> F,
    ) -> Result<T, Trouble> {
        loop {
            match call().await {
                Err(status) if refusal(&status).is_some() => self.pause(REST).await,
                other => return Ok(other?),
            }
        }
    }

    async fn change(&mut self, client: &Client) -> Result<(), Trouble> {
        let sql = format!(
            "INSERT INTO counters VALUES ({}, 1) ON CONFLICT (client) DO UPDATE SET count = counters.count + 1",
            self.number
        );
        let changed = client.update(&sql).await?;
        self.changes += changed;
        if changed == 1 { Ok(()) } else { Err(Trouble::Wrong(format!("{changed} counters were changed"))) }
    }

    async fn define(&mut self, client: &Client) -> Result<(), Trouble> {
        let table = self.own_name();
        client.update(&format!("CREATE TABLE {table} (a INT, b TEXT)")).await?;
        for sql in [
            format!("INSERT INTO {table} VALUES (1, 'x'), (2, 'y')"),
            format!("ALTER TABLE {table} ADD COLUMN c BIGINT DEFAULT 7"),
            format!("UPDATE {table} SET c = a WHERE b = 'y'"),
        ] {
            self.insisting(|| client.update(&sql)).await?;
        }
        let (select, drop) = (format!("SELECT c FROM {table} ORDER BY a"), format!("DROP TABLE {table}"));
        let found = self.insisting(|| client.rows(&select)).await?;
        self.insisting(|| client.update(&drop)).await?;
        match integers(&found, 0) == [7, 2] {
            true => Ok(()),
            false => Err(Trouble::Wrong(format!("the new column holds {:?}", integers(&found, 0)))),
        }
    }

    /// A statement that is polled; every other answer is left lying.
    async fn poll(&mut self, client: &Client) -> Result<(), Trouble> {
        let mut descriptor = Client::polled("SELECT bucket, count(*) AS n FROM docs GROUP BY bucket ORDER BY bucket");
        let info = loop {
            let told = client.poll(descriptor).await?;
            match told.flight_descriptor {
                Some(next) => descriptor = next,
                None => break told.info.unwrap_or_default(),
            }
        };
        if self.random.below(2) == 0 {
            return Ok(());
        }
        let batches: Vec<RecordBatch> = client.fetch(&info).await?.try_collect().await.map_err(status_of)?;
        let count: i64 = integers(&batches, 1).iter().sum();
        match count == self.documents.rows as i64 {
            true => Ok(()),
            false => Err(Trouble::Wrong(format!("the buckets hold {count} documents"))),
        }
    }

    /// Begins something long and ends it: by its information, or by KILL QUERY.
    async fn cancel(&mut self, client: &Client) -> Result<(), Trouble> {
        let info = client.plan("SELECT id, emb FROM docs ORDER BY noise DESC").await?;
        let mut rows = client.fetch(&info).await?;
        let wait = Duration::from_millis(self.random.below(300) as u64);
        let _ = tokio::time::timeout(wait, rows.try_next()).await;
        if self.random.below(2) == 0 {
            client.cancel(info).await?;
        } else {
            let kill = format!("KILL QUERY '{}'", String::from_utf8_lossy(&info.app_metadata));
            self.insisting(|| client.update(&kill)).await?;
        }
        loop {
            match rows.try_next().await.map_err(status_of) {
                Ok(Some(_)) => {}
                // It was faster than its end.
                Ok(None) => return Ok(()),
                Err(status) if is_cancelled(&status) => return Ok(()),
                Err(status) => return Err(status.into()),
            }
        }
    }
}
