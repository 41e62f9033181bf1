"""The dialect: what SQLAlchemy's own suite does not know, which is vectors and what is not there."""

import datetime
import decimal

import numpy as np
import pytest

sqlalchemy = pytest.importorskip("sqlalchemy")

import sqlalchemy as sa
from sqlalchemy import exc, orm
from sqlalchemy.dialects.postgresql import insert

import sagitta
from sagitta.sqlalchemy import BITVECTOR, VECTOR, SagittaDialect, type_of


def compiled(statement, **options) -> str:
    return " ".join(str(statement.compile(dialect=SagittaDialect(**options))).split())


METADATA = sa.MetaData()
DOCS = sa.Table(
    "docs",
    METADATA,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("body", sa.String(50)),
    sa.Column("price", sa.Numeric(10, 2)),
    sa.Column("at", sa.DateTime),
    sa.Column("emb", VECTOR(3)),
    sa.Column("half", VECTOR(3, "FLOAT16")),
    sa.Column("code", BITVECTOR(8)),
)


# --- Without a server -------------------------------------------------------------------------------------------------


def test_a_table_is_defined_in_the_types_of_the_server():
    assert compiled(sa.schema.CreateTable(DOCS)) == (
        "CREATE TABLE docs ( id BIGINT NOT NULL, body VARCHAR(50), price NUMERIC(10, 2), at TIMESTAMP, emb VECTOR(3), "
        "half VECTOR(3, FLOAT16), code BITVECTOR(8), PRIMARY KEY (id) )"
    )


@pytest.mark.parametrize(
    ("expression", "sql"),
    [
        (DOCS.c.emb.l2_distance([1, 2, 3]), "docs.emb <-> ?"),
        (DOCS.c.emb.cosine_distance([1, 2, 3]), "docs.emb <=> ?"),
        (DOCS.c.emb.max_inner_product([1, 2, 3]), "docs.emb <#> ?"),
        (DOCS.c.emb.l1_distance([1, 2, 3]), "docs.emb <+> ?"),
        (DOCS.c.code.hamming_distance("00001111"), "docs.code <~> ?"),
        (DOCS.c.code.jaccard_distance("00001111"), "docs.code <%> ?"),
        (DOCS.c.emb.l2_distance(DOCS.c.half) < 1, "(docs.emb <-> docs.half) < ?"),
        (1 - DOCS.c.emb.cosine_distance([1, 2, 3]), "? - (docs.emb <=> ?)"),
    ],
)
def test_distances_are_operators(expression, sql):
    assert compiled(expression).replace("(", "").replace(")", "") == sql.replace("(", "").replace(")", "")


def test_constants_are_written_into_the_sql():
    statement = sa.select(DOCS.c.id).where(DOCS.c.emb.l2_distance(np.array([1, 2, 3])) < 1, DOCS.c.body == "it's\\")
    text = str(statement.compile(dialect=SagittaDialect(), compile_kwargs={"literal_binds": True}))
    assert "docs.emb <-> '[1,2,3]'" in text
    assert "'it''s\\'" in text


@pytest.mark.parametrize(
    ("name", "type_"),
    [
        ("BIGINT", "BIGINT"),
        ("TEXT", "TEXT"),
        ("VARCHAR(20)", "VARCHAR(20)"),
        ("DECIMAL(10, 2)", "NUMERIC(10, 2)"),
        ("TIMESTAMP", "TIMESTAMP"),
        ("TIMESTAMP(9)", "TIMESTAMP"),
        ("TIMESTAMP WITH TIME ZONE", "TIMESTAMP WITH TIME ZONE"),
        ("TIMESTAMP(3) WITH TIME ZONE", "TIMESTAMP WITH TIME ZONE"),
        ("TIME", "TIME"),
        ("TIME(9)", "TIME"),
        ("VECTOR(384)", "VECTOR(384)"),
        ("VECTOR(384, INT8)", "VECTOR(384, INT8)"),
        ("BITVECTOR(64)", "BITVECTOR(64)"),
        ("TEXT[]", "TEXT[]"),
        ("VECTOR(8)[]", "VECTOR(8)[]"),
        ("BIGINT UNSIGNED", "NUMERIC(20, 0)"),
        ("DOUBLE", "DOUBLE PRECISION"),
    ],
)
def test_types_are_reflected(name, type_):
    assert type_of(name).compile(SagittaDialect()) == type_


def test_types_that_are_not_known_are_null_types():
    assert isinstance(type_of("STRUCT(a INTEGER)"), sa.types.NullType)
    assert isinstance(type_of("STRUCT(a INTEGER)[]"), sa.types.NullType)


def test_what_is_not_there_is_left_out_only_if_asked():
    metadata = sa.MetaData()
    sa.Table("a", metadata, sa.Column("id", sa.Integer, primary_key=True))
    table = sa.Table(
        "b",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("a", sa.ForeignKey("a.id")),
        sa.Column("u", sa.Integer, unique=True),
        sa.CheckConstraint("u > 0"),
    )
    text = compiled(sa.schema.CreateTable(table))
    assert all(word in text for word in ("FOREIGN KEY", "UNIQUE", "CHECK"))
    text = compiled(sa.schema.CreateTable(table), ignore_constraints=True)
    assert text == "CREATE TABLE b ( id INTEGER NOT NULL, a INTEGER, u INTEGER, PRIMARY KEY (id) )"


def test_what_cannot_be_said_is_an_error_with_a_way_out():
    for statement in (
        sa.select(DOCS).with_for_update(),
        sa.schema.CreateTable(sa.Table("j", sa.MetaData(), sa.Column("x", sa.JSON))),
        sa.schema.CreateTable(sa.Table("i", sa.MetaData(), sa.Column("x", sa.Integer, sa.Identity()))),
        sa.schema.CreateTable(sa.Table("v", sa.MetaData(), sa.Column("x", VECTOR()))),
    ):
        with pytest.raises(exc.CompileError):
            compiled(statement)
    with pytest.raises(ValueError, match="shape"):
        VECTOR(3).bind_processor(None)([1, 2])
    with pytest.raises(ValueError, match="int8"):
        VECTOR(2, "INT8").bind_processor(None)([1.5, 2])
    with pytest.raises(ValueError, match="element"):
        VECTOR(3, "FLOAT64")


def test_the_address_is_that_of_connect():
    _, options = SagittaDialect().create_connect_args(sa.make_url("sagitta://a%40b:p%3Aw@db:7/lab?transport=tls&token=t"))
    assert options == {"uri": "sagitta://db:7/lab?transport=tls", "user": "a@b", "password": "p:w", "token": "t"}
    with pytest.raises(exc.ArgumentError, match="frobs"):
        SagittaDialect().create_connect_args(sa.make_url("sagitta://db?frobs=1"))


# --- With a server ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(uri):
    made = sa.create_engine("sagitta://" + uri.partition("://")[2].partition("/")[0])
    yield made
    made.dispose()


@pytest.fixture
def docs(engine, lab):
    table = DOCS.to_metadata(sa.MetaData(), schema=lab)
    table.create(engine)
    return table


ROW = {
    "id": 1, "body": "it's", "price": decimal.Decimal("1.50"), "at": datetime.datetime(2026, 1, 2, 3, 4, 5, 6),
    "emb": [1, 0, 0], "half": np.array([0.5, 1, 2]), "code": "00001111",
}  # fmt: skip


def test_rows_go_in_and_come_back(engine, docs):
    with engine.connect() as connected:
        assert connected.execute(docs.insert(), [ROW, {**ROW, "id": 2, "emb": None}]).rowcount == 2
        connected.commit()
        first, second = connected.execute(sa.select(docs).order_by(docs.c.id)).all()
    assert first[:4] == (1, "it's", decimal.Decimal("1.50"), ROW["at"])
    np.testing.assert_array_equal(first.emb, np.array([1, 0, 0], np.float32))
    assert first.half.dtype == np.float16
    assert first.code.tolist() == [0b11110000] or first.code.tolist() == [0b00001111]
    assert second.emb is None


def test_a_search(engine, docs):
    rng = np.random.default_rng(2)
    emb = rng.normal(size=(100, 3)).astype(np.float32)
    with engine.connect() as connected:
        connected.execute(docs.insert(), [{"id": i, "emb": emb[i]} for i in range(100)])
        connected.commit()
        distance = docs.c.emb.l2_distance(emb[7]).label("distance")
        found = connected.execute(sa.select(docs.c.id, distance).where(docs.c.id >= 5).order_by(distance).limit(5)).all()
    expected = np.argsort(np.linalg.norm(emb[5:] - emb[7], axis=1))[:5] + 5
    assert [row.id for row in found] == expected.tolist()


def test_changes_return_what_they_changed(engine, docs):
    with engine.connect() as connected:
        assert connected.execute(docs.insert().values(id=1, body="a").returning(docs.c.id)).all() == [(1,)]
        statement = insert(docs).values([{"id": 1, "body": "b"}, {"id": 2, "body": "c"}])
        statement = statement.on_conflict_do_update(index_elements=["id"], set_={"body": statement.excluded.body})
        connected.execute(statement)
        assert connected.execute(docs.update().where(docs.c.id == 2).values(body="d")).rowcount == 1
        assert connected.execute(sa.select(docs.c.body).order_by(docs.c.id)).scalars().all() == ["b", "d"]
        assert connected.execute(docs.delete().returning(docs.c.id)).all().__len__() == 2
        connected.commit()


def test_the_database_is_inspected(engine, docs, lab):
    with engine.connect() as connected:
        connected.execute(sa.text(f"CREATE VIEW {lab}.seen AS SELECT id FROM {lab}.docs"))
        connected.commit()
    inspector = sa.inspect(engine)
    assert lab in inspector.get_schema_names()
    assert inspector.get_table_names(lab) == ["docs"]
    assert inspector.get_view_names(lab) == ["seen"]
    assert "SELECT" in inspector.get_view_definition("seen", lab)
    assert inspector.get_pk_constraint("docs", lab)["constrained_columns"] == ["id"]
    assert inspector.default_schema_name == "public"
    with pytest.raises(exc.NoSuchTableError):
        inspector.get_columns("nowhere", lab)
    reflected = sa.Table("docs", sa.MetaData(), schema=lab, autoload_with=engine)
    types = {column.name: column.type.compile(engine.dialect) for column in reflected.columns}
    assert types == {
        "id": "BIGINT", "body": "VARCHAR(50)", "price": "NUMERIC(10, 2)", "at": "TIMESTAMP", "emb": "VECTOR(3)",
        "half": "VECTOR(3, FLOAT16)", "code": "BITVECTOR(8)",
    }  # fmt: skip
    assert reflected.primary_key.columns.keys() == ["id"]
    assert not reflected.c.id.nullable
    assert reflected.c.body.nullable


def test_the_orm(engine, docs):
    base = orm.declarative_base()

    class Doc(base):
        __table__ = docs

    with orm.Session(engine) as session:
        session.add_all([Doc(id=1, body="a", emb=[1, 0, 0]), Doc(id=2, body="b", emb=[0, 1, 0])])
        session.commit()
        nearest = session.scalars(sa.select(Doc).order_by(Doc.emb.cosine_distance([0, 2, 0]))).first()
        assert nearest.body == "b"
        nearest.emb = np.array([0, 0, 1])
        session.commit()
        assert session.get(Doc, 2).emb.tolist() == [0, 0, 1]
        session.delete(session.get(Doc, 1))
        session.commit()
        assert session.scalar(sa.select(sa.func.count()).select_from(Doc)) == 1


def test_a_rollback_that_undoes_nothing_warns(engine, docs):
    with engine.connect() as connected:
        connected.execute(docs.insert().values(id=1))
        with pytest.warns(exc.SAWarning, match="cannot undo"):
            connected.rollback()
        assert connected.scalar(sa.select(sa.func.count()).select_from(docs)) == 1
        connected.rollback()


def test_errors_are_those_of_sqlalchemy(engine, docs):
    with engine.connect() as connected:
        with pytest.raises(exc.DBAPIError, match="nowhere"):
            connected.execute(sa.text("SELECT * FROM nowhere"))
        with pytest.raises(exc.DBAPIError, match="(?i)syntax|expected|parse|selec"):
            connected.execute(sa.text("SELEC 1"))
        assert connected.scalar(sa.text("SELECT 1")) == 1


def test_pandas_reads_and_polars_reads(engine, docs):
    pandas = pytest.importorskip("pandas")
    with engine.connect() as connected:
        connected.execute(docs.insert().values(id=1, body="a"))
        connected.commit()
        assert pandas.read_sql(sa.select(docs.c.id, docs.c.body), connected).values.tolist() == [[1, "a"]]


def test_the_dialect_is_found_by_its_name():
    assert sa.create_engine("sagitta://127.0.0.1").dialect.name == "sagitta"
    assert sa.create_engine("sagitta+flightsql://127.0.0.1").dialect.name == "sagitta"
    assert issubclass(sagitta.NotSupportedError, sagitta.Error)
