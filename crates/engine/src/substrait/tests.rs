//! Plans that DataFusion's producer makes of queries over tables like ours, run here and compared with SQL.

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use arrow::util::pretty::pretty_format_batches;
use datafusion::catalog::MemTable;
use datafusion::datasource::provider_as_source;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, col, lit};
use datafusion::prelude::SessionContext;
use datafusion_substrait::logical_plan::producer::to_substrait_plan;
use datafusion_substrait::substrait::proto::rel::RelType;
use datafusion_substrait::substrait::proto::{self, Plan, Rel, plan_rel};
use prost::Message;

use super::*;
use crate::{Engine, EngineOptions, ErrorKind};

const TABLES: &[&str] = &[
    "CREATE TABLE docs (id BIGINT, body TEXT, emb VECTOR(2))",
    "INSERT INTO docs VALUES (1, 'one', '[1, 0]'), (2, 'two', '[0, 1]'), (3, NULL, '[1, 1]'), (4, 'four', NULL)",
    "CREATE SCHEMA s",
    "CREATE TABLE s.marks (doc BIGINT, mark DOUBLE)",
    "INSERT INTO s.marks VALUES (1, 0.5), (1, 1.5), (2, 2.5), (9, 3.5)",
    "CREATE VIEW texts AS SELECT id, body FROM docs WHERE body IS NOT NULL",
];

async fn engine() -> Engine {
    let engine = Engine::open("memory:", EngineOptions::default()).await.unwrap();
    let session = engine.session();
    for sql in TABLES {
        session.execute(sql).await.unwrap();
    }
    engine
}

/// A producer that knows tables like ours; Substrait has no vectors, so they are lists.
fn producer() -> SessionContext {
    let state = planner::install(SessionStateBuilder::new()).build();
    let context = SessionContext::new_with_state(state);
    let list = DataType::List(Arc::new(Field::new_list_field(DataType::Float32, true)));
    let table = |fields: Vec<Field>| Arc::new(MemTable::try_new(Arc::new(Schema::new(fields)), vec![vec![]]).unwrap());
    let (id, body) = (Field::new("id", DataType::Int64, true), Field::new("body", DataType::Utf8, true));
    context.register_table("docs", table(vec![id.clone(), body.clone(), Field::new("emb", list, true)])).unwrap();
    context.register_table("texts", table(vec![id, body])).unwrap();
    let marks = vec![Field::new("doc", DataType::Int64, true), Field::new("mark", DataType::Float64, true)];
    let schema = Arc::new(datafusion::catalog::MemorySchemaProvider::new());
    context.catalog("datafusion").unwrap().register_schema("s", schema).unwrap();
    context.register_table("s.marks", table(marks)).unwrap();
    context
}

async fn plan_of(sql: &str) -> Plan {
    let context = producer();
    let plan = context.sql(sql).await.unwrap().into_unoptimized_plan();
    *to_substrait_plan(&plan, &context.state()).unwrap()
}

async fn run(session: &Session, plan: &Plan) -> Result<Vec<arrow::array::RecordBatch>> {
    session.run(&session.substrait(&plan.encode_to_vec())?).await?.collect().await
}

fn shown(batches: &[arrow::array::RecordBatch]) -> String {
    pretty_format_batches(batches).unwrap().to_string()
}

#[tokio::test]
async fn a_plan_answers_as_its_sql_does() {
    let session = engine().await.session();
    for sql in [
        "SELECT id, body FROM docs WHERE id > 1 ORDER BY id",
        "SELECT body || '!' AS b, id * 2 AS twice FROM docs WHERE body LIKE 't%' OR id IN (1, 3) ORDER BY twice DESC",
        "SELECT d.id, m.mark FROM docs d JOIN s.marks m ON d.id = m.doc ORDER BY m.mark",
        "SELECT d.id, m.mark FROM docs d LEFT JOIN s.marks m ON d.id = m.doc AND m.mark > 1 ORDER BY d.id, m.mark",
        "SELECT doc, count(*) AS n, sum(mark) AS s FROM s.marks GROUP BY doc HAVING count(*) > 0 ORDER BY doc",
        "SELECT a.id FROM docs a JOIN docs b ON a.id < b.id ORDER BY a.id, b.id LIMIT 3",
        "SELECT id FROM texts ORDER BY id LIMIT 1 OFFSET 1",
        "SELECT id FROM docs UNION ALL SELECT doc FROM s.marks ORDER BY id LIMIT 5",
        "SELECT id FROM docs WHERE id IN (SELECT doc FROM s.marks) ORDER BY id",
        "SELECT id FROM docs WHERE EXISTS (SELECT 1 FROM s.marks WHERE mark > 2) ORDER BY id",
        "SELECT id, rank() OVER (ORDER BY id DESC) AS r FROM docs ORDER BY id",
        "SELECT CASE WHEN id > 2 THEN 'big' ELSE 'small' END AS size, CAST(id AS VARCHAR) AS t FROM docs ORDER BY id",
        "SELECT id, id AS again FROM docs ORDER BY id",
        "SELECT * FROM (VALUES (1, 'a'), (2, 'b')) AS v (x, y) ORDER BY x",
        "SELECT 1 AS one",
    ] {
        let expected = session.execute(sql).await.unwrap().collect().await.unwrap();
        let batches = run(&session, &plan_of(sql).await).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert_eq!(shown(&batches), shown(&expected), "{sql}");
    }
}

/// `SELECT id FROM docs WHERE … ORDER BY l2_distance(emb, query) LIMIT k`, as a producer says it.
fn search(filter: Option<Expr>, query: Expr) -> Plan {
    let context = producer();
    let state = context.state();
    let distance = Arc::clone(&state.scalar_functions()["l2_distance"]);
    let table = futures::executor::block_on(context.table_provider("docs")).unwrap();
    let scan = LogicalPlanBuilder::scan("docs", provider_as_source(table), None).unwrap();
    let scan = match filter {
        Some(filter) => scan.filter(filter).unwrap(),
        None => scan,
    };
    let plan = scan
        .project(vec![col("id"), distance.call(vec![col("emb"), query]).alias("d")])
        .unwrap()
        .sort(vec![col("d").sort(true, false)])
        .unwrap()
        .limit(0, Some(2))
        .unwrap()
        .project(vec![col("id")])
        .unwrap()
        .build()
        .unwrap();
    *to_substrait_plan(&plan, &state).unwrap()
}

fn list(elements: &[f32]) -> ScalarValue {
    let elements: Vec<ScalarValue> = elements.iter().map(|element| ScalarValue::from(*element)).collect();
    ScalarValue::List(ScalarValue::new_list_nullable(&elements, &DataType::Float32))
}

fn ids(batches: &[arrow::array::RecordBatch]) -> Vec<i64> {
    batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
}

#[tokio::test]
async fn the_nearest_rows_of_a_plan_are_a_search() {
    let session = engine().await.session();
    for (filter, expected) in [(None, vec![2, 3]), (Some(col("id").lt(lit(3_i64))), vec![2, 1])] {
        let plan = search(filter, Expr::Literal(list(&[0.1, 0.9]), None));
        let statement = session.substrait(&plan.encode_to_vec()).unwrap();
        let StatementKind::Substrait(plan) = &statement.kind else { panic!("another kind") };
        let Dispatched::Planned(logical, state, _) = session.plan_substrait(plan, &[]).await.unwrap() else {
            panic!("not planned")
        };
        let optimized = state.optimize(&logical).unwrap().display_indent().to_string();
        assert!(optimized.contains("VectorSearch"), "{optimized}");
        assert_eq!(ids(&session.run(&statement).await.unwrap().collect().await.unwrap()), expected);
    }
}

#[tokio::test]
async fn parameters_of_a_plan_are_bound() {
    let session = engine().await.session();
    let field = Field::new("$1", list(&[0.0]).data_type(), true);
    let placeholder = datafusion::logical_expr::expr::Placeholder::new_with_field("$1".into(), Some(Arc::new(field)));
    let plan = search(None, Expr::Placeholder(placeholder)).encode_to_vec();
    let prepared = session.prepare_parsed(session.substrait(&plan).unwrap()).await.unwrap();
    let description = prepared.description();
    assert_eq!((description.parameters.len(), description.is_update), (1, false));
    assert_eq!(description.columns.as_ref().unwrap().field(0).name(), "id");
    for (query, expected) in [([0.1, 0.9], [2, 3]), ([0.9, 0.1], [1, 3])] {
        assert_eq!(ids(&prepared.run(&[list(&query)]).await.unwrap().collect().await.unwrap()), expected);
    }
    let error = session.run(&session.substrait(&plan).unwrap()).await.unwrap_err();
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("$1"), "{error}");
}

#[tokio::test]
async fn a_plan_reads_what_its_user_may_read_at_the_moment_of_the_session() {
    let engine = engine().await;
    let owner = engine.session();
    for sql in
        ["CREATE USER root PASSWORD 'p' ADMIN", "CREATE USER anna PASSWORD 'p'", "GRANT READ ON SCHEMA s TO anna"]
    {
        owner.execute(sql).await.unwrap();
    }
    let anna = engine.session_as("anna").await.unwrap();
    let (marks, docs) = (plan_of("SELECT count(*) AS n FROM s.marks").await, plan_of("SELECT id FROM docs").await);
    assert_eq!(ids(&run(&anna, &marks).await.unwrap()), [4]);
    for plan in [docs, plan_of("SELECT id FROM texts").await] {
        let error = run(&anna, &plan).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
        assert!(error.message.contains("there is no table"), "{error}");
    }
    let then = owner.execute("SELECT max(committed_at) FROM table_history('s.marks')").await.unwrap();
    let then = then.collect().await.unwrap();
    let then = arrow::util::display::array_value_to_string(then[0].column(0), 0).unwrap();
    owner.execute("INSERT INTO s.marks VALUES (7, 7)").await.unwrap();
    assert_eq!(ids(&run(&anna, &marks).await.unwrap()), [5]);
    anna.set_setting("as_of", &format!("{then}Z")).unwrap();
    assert_eq!(ids(&run(&anna, &marks).await.unwrap()), [4]);
}

/// A plan of one relation.
fn bare(rel: RelType) -> Plan {
    let root = proto::RelRoot { input: Some(Rel { rel_type: Some(rel) }), names: vec![] };
    Plan { relations: vec![proto::PlanRel { rel_type: Some(plan_rel::RelType::Root(root)) }], ..Plan::default() }
}

#[tokio::test]
async fn what_is_not_supported_is_an_error_that_says_so() {
    use ErrorKind::{Invalid, NotFound, Unsupported};
    let session = engine().await.session();
    let version = |major_number, minor_number| {
        let version = proto::Version { major_number, minor_number, ..Default::default() };
        Plan { version: Some(version), ..bare(RelType::Read(Box::default())) }
    };
    let rows = Some(Box::new(Rel { rel_type: Some(RelType::Read(Box::default())) }));
    for (plan, kind, text) in [
        (bare(RelType::Write(Box::default())), Unsupported, "as SQL"),
        (bare(RelType::Ddl(Box::default())), Unsupported, "as SQL"),
        (bare(RelType::Exchange(Box::default())), Unsupported, "exchange"),
        (bare(RelType::ExtensionLeaf(Default::default())), Unsupported, "extension"),
        (bare(RelType::HashJoin(Box::default())), Unsupported, "hash join"),
        (bare(RelType::Read(Box::default())), Invalid, "no table"),
        (bare(RelType::Join(Box::default())), Invalid, "left side"),
        (bare(RelType::Cross(Box::new(proto::CrossRel { left: rows, ..Default::default() }))), Invalid, "right side"),
        (Plan::default(), Invalid, "one tree"),
        (version(99, 0), Unsupported, "0.85"),
        (version(0, 1), Unsupported, "0.32"),
    ] {
        let error = run(&session, &plan).await.unwrap_err();
        assert!(error.kind == kind && error.message.contains(text), "{:?} {error}", error.kind);
    }
    // Names of one length can be exchanged in the bytes.
    for (sql, from, to, kind, text) in [
        ("SELECT id FROM docs", "docs", "dosc", NotFound, "there is no table"),
        ("SELECT doc FROM s.marks", "doc", "dok", NotFound, "there is no column"),
        ("SELECT doc FROM s.marks", "marks", "texts", NotFound, "there is no table"),
        ("SELECT id FROM texts", "texts", "marks", NotFound, "there is no table"),
        ("SELECT lower(body) AS b FROM docs", "lower", "lowly", Unsupported, "lowly"),
    ] {
        let changed = replaced(&plan_of(sql).await.encode_to_vec(), from.as_bytes(), to.as_bytes());
        let error = session.run(&session.substrait(&changed).unwrap()).await.unwrap_err();
        assert!(error.kind == kind && error.message.contains(text), "{:?} {error}", error.kind);
    }
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    while let Some(at) = bytes.windows(from.len()).position(|window| window == from) {
        bytes[at..at + from.len()].copy_from_slice(to);
    }
    bytes
}

/// Whatever is done to the bytes of a plan, the answer is one or an error of the user's, and never a panic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_plans_are_errors() {
    let session = engine().await.session();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % below as u64).unwrap()
    };
    let mut plans =
        vec![search(Some(col("id").gt(lit(0_i64))), Expr::Literal(list(&[0.5, 0.5]), None)).encode_to_vec()];
    for sql in [
        "SELECT d.id, sum(m.mark) AS s FROM docs d JOIN s.marks m ON d.id = m.doc WHERE d.id IN (1, 2) GROUP BY d.id ORDER BY s",
        "SELECT CASE WHEN id > 2 THEN 'x' ELSE body END AS c, rank() OVER (ORDER BY id) AS r FROM docs LIMIT 2",
        "SELECT * FROM (VALUES (1, 'a'), (2, 'b')) AS v (x, y)",
    ] {
        plans.push(plan_of(sql).await.encode_to_vec());
    }
    let mut decoded = 0;
    for round in 0..4_000 {
        let mut bytes = plans[round % plans.len()].clone();
        // Lengths stay what they are: else hardly any plan could still be read.
        for _ in 0..=random(2) {
            let at = random(bytes.len());
            match random(2) {
                0 => bytes[at] ^= 1 << random(8),
                _ => bytes[at] = random(256) as u8,
            }
        }
        let Ok(statement) = session.substrait(&bytes) else { continue };
        decoded += 1;
        let answer = session.run(&statement).await;
        let answer = match answer {
            Ok(answer) => answer.collect().await,
            Err(error) => Err(error),
        };
        if let Err(error) = answer {
            assert_ne!(error.kind, ErrorKind::Internal, "round {round}: {error}");
        }
    }
    assert!(decoded > 300, "only {decoded} could be decoded: the test does not test");
}

#[tokio::test]
async fn nesting_is_bounded() {
    // Written from the inside out: a LIMIT (field 3 of Rel) of what its input (field 2) is.
    let mut inner = Rel { rel_type: Some(RelType::Read(Box::default())) }.encode_to_vec();
    for _ in 0..5_000 {
        inner = field(3, &field(2, &inner));
    }
    let bytes = field(3, &field(2, &field(1, &inner)));
    let error = engine().await.session().substrait(&bytes).unwrap_err();
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("recursion"), "{error}");
}

/// A field of a message that holds bytes.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    prost::encoding::encode_varint(content.len() as u64, &mut out);
    out.extend_from_slice(content);
    out
}
