//! Recall and rates at each setting: one session and two in this process, clients over Flight.

use benches::Failure;
use benches::flight_client;
use benches::rates::recall;
use engine::{Engine, EngineOptions};
use server::ServerOptions;

use crate::dataset::Dataset;
use crate::embedded::{Search, build, load, searchers, timed};
use crate::results::{Results, Title, decimal, milliseconds, quoted};
use crate::{Method, Options, filtered};

const CLIENTS: [usize; 2] = [1, 8];

/// Builds the index in an engine of its own and measures what is wanted of it.
///
/// # Errors
/// What the engine says.
pub async fn run(method: &Method, options: &Options, dataset: &Dataset, results: &mut Results) -> Result<(), Failure> {
    let flight = method.flight.filter(|config| options.wants(config));
    if flight.is_none() && !options.wants(method.sql) {
        return Ok(());
    }
    let engine = Engine::open("memory:", EngineOptions::default()).await?;
    load(&engine, "docs", dataset.rows(dataset.rows)?).await?;
    let built = build(&engine, "docs", method, &dataset.metric, &dataset.subject()).await?.fields()?;
    if options.wants(method.sql) {
        results.emit(&Title { kind: "build", config: method.sql }, &built)?;
        search(&engine, method, dataset, results).await?;
        filtered::stored(&engine, method, dataset, results).await?;
    }
    if let Some(config) = flight {
        results.emit(&Title { kind: "build", config }, &built)?;
        over_flight(&engine, config, dataset, results).await?;
    }
    Ok(())
}

/// Prepared searches of one session and of two, at each setting.
async fn search(engine: &Engine, method: &Method, dataset: &Dataset, results: &mut Results) -> Result<(), Failure> {
    let sql = dataset.sql("");
    for setting in method.settings.iter().copied() {
        let at_setting = Search { sql: &sql, setting, bound: None };
        let mut one = searchers(engine, 1, &at_setting).await?;
        let recall = recall(&mut one[0], &dataset.queries).await?;
        let (alone, alone_usage) = timed(one, &dataset.queries).await?;
        let two = searchers(engine, 2, &at_setting).await?;
        let (both, both_usage) = timed(two, &dataset.queries).await?;
        results.emit(
            &Title { kind: "search", config: method.sql },
            &[
                ("setting", quoted(setting)),
                ("recall10", decimal(recall, 4)),
                ("qps_1t", decimal(alone.qps, 1)),
                ("other_1t", decimal(alone_usage.other_cores(), 2)),
                ("cpu_1t", decimal(alone_usage.own_cores(), 2)),
                ("qps_2t", decimal(both.qps, 1)),
                ("other_2t", decimal(both_usage.other_cores(), 2)),
                ("cpu_2t", decimal(both_usage.own_cores(), 2)),
                ("p50", milliseconds(alone.p50)),
                ("p99", milliseconds(alone.p99)),
                ("qps_one", decimal(alone.qps, 1)),
                ("lat_other", decimal(alone_usage.other_cores(), 2)),
            ],
        )?;
    }
    Ok(())
}

/// Prepared searches of several clients over loopback, in sessions as the server gives them out.
async fn over_flight(engine: &Engine, config: &str, dataset: &Dataset, results: &mut Results) -> Result<(), Failure> {
    let settings = engine.session().all_settings()?;
    let target = settings.iter().find(|(name, ..)| name == "recall_target").ok_or("there is no recall_target")?;
    let options = ServerOptions { listen: ([127, 0, 0, 1], 0).into(), http: None, ..ServerOptions::default() };
    let listener = server::bind(&options).await?;
    let uri = format!("http://{}", listener.local_addr()?);
    let serving = tokio::spawn(server::serve_on(listener, engine.clone(), options, std::future::pending()));
    let sql = dataset.sql("");
    for clients in CLIENTS {
        let mut connections = vec![];
        for _ in 0..clients {
            connections.push(flight_client::Prepared::new(&uri, &sql).await?);
        }
        let recall = recall(&mut connections[0], &dataset.queries).await?;
        let (reached, usage) = timed(connections, &dataset.queries).await?;
        let mut fields = vec![
            ("setting", quoted(&format!("recall_target = {}, clients = {clients}", target.1))),
            ("clients", clients.to_string()),
            ("recall10", decimal(recall, 4)),
            ("qps", decimal(reached.qps, 1)),
            ("p50", milliseconds(reached.p50)),
            ("p99", milliseconds(reached.p99)),
            ("lat_other", decimal(usage.other_cores(), 2)),
        ];
        if clients == 1 {
            fields.extend([
                ("qps_1t", decimal(reached.qps, 1)),
                ("other_1t", decimal(usage.other_cores(), 2)),
                ("cpu_1t", decimal(usage.own_cores(), 2)),
                ("qps_one", decimal(reached.qps, 1)),
            ]);
        }
        results.emit(&Title { kind: "search", config }, &fields)?;
    }
    serving.abort();
    Ok(())
}
