"""Handles and tickets hold what they stand for: any server of the database goes on with them, for their user alone."""

import contextlib
import os
import pathlib
import time

import adbc_driver_flightsql.dbapi
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from conftest import Sagitta
from flight_sql import Client, command, field, fields, serving, statement

REFUSED = (flight.FlightError, pa.ArrowException)


@contextlib.contextmanager
def two_servers(data: pathlib.Path, folder: pathlib.Path, *options: str):
    """Two servers of one database."""
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    with serving(data, folder / "one", *options) as one, serving(data, folder / "two", *options) as two:
        yield one, two


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    with two_servers(folder / "data", folder) as (one, two):
        client = one.client()
        client.rows("CREATE TABLE docs (id BIGINT, emb VECTOR(2))")
        client.rows("INSERT INTO docs VALUES (1, '[1, 0]'), (2, '[0, 1]'), (3, '[1, 1]')")
        client.rows("CREATE VIEW all_docs AS SELECT id FROM docs")
        yield one, two


def of_prepared(handle: bytes) -> flight.FlightDescriptor:
    return flight.FlightDescriptor.for_command(command("CommandPreparedStatementQuery", field(1, handle)))


def bound(client: Client, handle: bytes, values: pa.RecordBatch) -> bytes:
    """The handle that holds the values."""
    writer, reader = client.flight.do_put(of_prepared(handle), values.schema, client.options)
    writer.write_batch(values)
    writer.done_writing()
    updated = fields(reader.read().to_pybytes())[1][0]
    writer.close()
    return updated


def rows(client: Client, handle: bytes) -> list[dict]:
    info = client.flight.get_flight_info(of_prepared(handle), client.options)
    return [row for endpoint in info.endpoints for row in client.get(endpoint.ticket).read_all().to_pylist()]


def vector(*elements: float) -> pa.RecordBatch:
    return pa.record_batch([pa.array([list(elements)], pa.list_(pa.float32(), len(elements)))], names=["q"])


SEARCH = "SELECT id FROM docs ORDER BY emb <-> $1 LIMIT 1"


def test_a_prepared_statement_goes_on_at_another_server(both):
    one, two = (server.client() for server in both)
    handle = one.prepare(SEARCH)[1][0]
    updated = [bound(one, handle, vector(*query)) for query in [(0.9, 0.0), (0.0, 0.9), (1.0, 1.1)]]
    assert len({handle, *updated}) == 4
    # Each handle holds its own values, on either server, in any order.
    for client in (two, one, two):
        assert [rows(client, one_of) for one_of in updated] == [[{"id": 1}], [{"id": 2}], [{"id": 3}]]
    again = bound(two, updated[0], vector(0.0, 1.0))
    assert rows(two, again) == rows(one, again) == [{"id": 2}]
    assert rows(one, handle) == [{"id": 3}], "the first handle stands for what was bound last where one is connected"


def test_a_change_is_prepared_here_and_applied_there(both):
    one, two = (server.client() for server in both)
    one.rows("CREATE TABLE changed (a INT)")
    handle = one.prepare("INSERT INTO changed VALUES ($1)")[1][0]
    descriptor = flight.FlightDescriptor.for_command(command("CommandPreparedStatementUpdate", field(1, handle)))
    values = pa.record_batch([pa.array([7, 8], pa.int32())], names=["a"])
    writer, reader = two.flight.do_put(descriptor, values.schema, two.options)
    writer.write_batch(values)
    writer.done_writing()
    assert fields(reader.read().to_pybytes())[1] == [2]
    writer.close()
    assert one.rows("SELECT a FROM changed ORDER BY a") == [{"a": 7}, {"a": 8}]


@pytest.mark.parametrize("sql", ["SELECT id FROM {}", "SELECT count(*) AS n FROM {}", "SELECT id, now() AS t FROM {}", "SELECT n.id FROM {} n JOIN {} m ON n.id = m.id"])
def test_a_ticket_is_redeemed_elsewhere_on_the_same_snapshot(both, sql, request):
    one, two = (server.client() for server in both)
    table = f"pinned_{abs(hash(request.node.name))}"
    one.rows(f"CREATE TABLE {table} (id BIGINT)")
    one.rows(f"INSERT INTO {table} VALUES (1), (2)")
    info = one.info(sql.format(table, table))
    one.rows(f"INSERT INTO {table} VALUES (3)")
    two.rows(f"DELETE FROM {table} WHERE id = 1")
    there = two.get(info.endpoints[0].ticket).read_all()
    assert there.schema == info.schema
    here = one.get(info.endpoints[0].ticket).read_all()
    key = [(name, "ascending") for name in here.column_names]
    assert there.sort_by(key).to_pylist() == here.sort_by(key).to_pylist()
    assert two.get(info.endpoints[0].ticket).read_all().num_rows == here.num_rows, "again"


def test_what_a_ticket_reads_elsewhere_is_what_was_pinned(both):
    one, two = (server.client() for server in both)
    for sql in [
        "CREATE TABLE moments (id BIGINT)",
        "INSERT INTO moments VALUES (1)",
        "CREATE TAG first ON moments",
        "INSERT INTO moments VALUES (2)",
    ]:
        one.rows(sql)
    told = "SELECT n.id FROM moments n LEFT JOIN moments FOR VERSION AS OF 'first' f ON f.id = n.id WHERE f.id IS NULL"
    tagged = one.info(told)
    (then,) = one.rows("SELECT max(committed_at) AS t FROM table_history('moments')")
    one.rows(f"SET as_of = '{then['t'].isoformat()}Z'")
    past = one.info("SELECT count(*) AS n FROM moments")
    one.rows("RESET as_of")
    one.rows("INSERT INTO moments VALUES (3)")
    one.rows("DROP TAG first ON moments")
    one.rows("CREATE TAG first ON moments")
    assert two.get(tagged.endpoints[0].ticket).read_all().to_pylist() == [{"id": 2}]
    assert two.get(past.endpoints[0].ticket).read_all().to_pylist() == [{"n": 2}]
    assert two.rows("SELECT count(*) AS n FROM moments") == [{"n": 3}], "the other session is where it was"


def test_a_relation_that_was_replaced_is_not_taken_for_the_one_before(both):
    one, two = (server.client() for server in both)
    one.rows("CREATE TABLE replaced (id BIGINT)")
    one.rows("CREATE VIEW of_it AS SELECT 1 AS a")
    table, view = one.info("SELECT * FROM replaced"), one.info("SELECT * FROM of_it")
    one.rows("DROP TABLE replaced")
    one.rows("CREATE TABLE replaced (id BIGINT)")
    one.rows("CREATE OR REPLACE VIEW of_it AS SELECT 2 AS a")
    for info in (table, view):
        with pytest.raises(REFUSED, match="was replaced since"):
            two.get(info.endpoints[0].ticket).read_all()


def test_parts_are_fetched_from_several_servers(both):
    one, two = (server.client() for server in both)
    with adbc_driver_flightsql.dbapi.connect(both[0].uri, autocommit=True) as connection, connection.cursor() as cursor:
        numbers = pa.table({"n": pa.array(range(400_000))})
        for start in range(0, 400_000, 100_000):
            cursor.adbc_ingest("numbers", numbers.slice(start, 100_000), mode="create_append")
    asking = flight.FlightCallOptions(headers=[*one.options_headers, (b"x-sagitta-endpoints", b"256")])
    info = one.flight.get_flight_info(statement("SELECT n FROM numbers WHERE n % 2 = 0"), asking)
    assert len(info.endpoints) > 1
    one.rows("INSERT INTO numbers VALUES (-2)")
    found = []
    for number, endpoint in enumerate(info.endpoints):
        found.extend((two, one)[number % 2].get(endpoint.ticket).read_all().column(0).to_pylist())
    assert sorted(found) == list(range(0, 400_000, 2))


def test_what_cannot_be_done_twice_stays_with_its_server(both):
    one, two = (server.client() for server in both)
    one.rows("CREATE TABLE once (a INT)")
    for sql, why in [
        ("INSERT INTO once VALUES (1) RETURNING a", "was carried out"),
        ("SELECT * FROM system.queries", "tells of the server"),
        ("SELECT 'x" + "x" * 20_000 + "' AS t", "too large"),
    ]:
        info = one.info(sql)
        with pytest.raises(REFUSED, match=why):
            two.get(info.endpoints[0].ticket).read_all()
        assert one.get(info.endpoints[0].ticket).read_all().num_rows >= 1
    assert one.rows("SELECT count(*) AS n FROM once") == [{"n": 1}]
    wide = vector(*[float(number) for number in range(8_000)])
    handle = bound(one, one.prepare("SELECT vector_dims($1) AS n")[1][0], wide)
    assert rows(one, handle) == [{"n": 8_000}]
    with pytest.raises(REFUSED, match="bind them again"):
        rows(two, handle)
    assert rows(two, bound(two, handle, wide)) == [{"n": 8_000}]
    long = one.prepare("SELECT '" + "x" * 20_000 + "' AS t")[1][0]
    with pytest.raises(REFUSED, match="prepare it here"):
        rows(two, long)


def test_a_restarted_server_goes_on(tmp_path):
    with serving(tmp_path / "data", tmp_path) as server:
        client = server.client()
        client.rows("CREATE TABLE docs (id BIGINT, emb VECTOR(2))")
        client.rows("INSERT INTO docs VALUES (1, '[1, 0]'), (2, '[0, 1]')")
        handle = bound(client, client.prepare(SEARCH)[1][0], vector(0.1, 0.8))
        info = client.info("SELECT count(*) AS n FROM docs")
        client.rows("INSERT INTO docs VALUES (3, NULL)")
    with serving(tmp_path / "data", tmp_path) as server:
        client = server.client()
        assert rows(client, handle) == [{"id": 2}]
        assert client.get(info.endpoints[0].ticket).read_all().to_pylist() == [{"n": 2}]
        (body,) = client.act("RenewFlightEndpoint", field(1, info.endpoints[0].serialize()))
        renewed = flight.FlightEndpoint.deserialize(body)
        assert renewed.expiration_time.as_py() > info.endpoints[0].expiration_time.as_py()
        assert client.get(renewed.ticket).read_all().to_pylist() == [{"n": 2}]


def test_a_ticket_is_too_old_everywhere(tmp_path):
    with two_servers(tmp_path / "data", tmp_path, "--set", "limits.handle_lifetime=1s") as servers:
        ticket = servers[0].client().info("SELECT 1 AS a").endpoints[0].ticket
        for client in [server.client() for server in servers]:
            until = time.monotonic() + 60
            with pytest.raises(REFUSED, match="handle is unknown"):
                while time.monotonic() < until:
                    assert client.get(ticket).read_all().num_rows == 1


def test_whatever_is_changed_in_a_handle_it_is_refused(both):
    one, two = (server.client() for server in both)
    handle = bound(one, one.prepare(SEARCH)[1][0], vector(1.0, 0.0))
    ticket = fields(fields(one.info("SELECT id FROM docs").endpoints[0].ticket.ticket)[2][0])[1][0]
    for good, fetched in [
        (handle, lambda client, bad: client.flight.get_flight_info(of_prepared(bad), client.options)),
        (ticket, lambda client, bad: client.get(flight.Ticket(command("TicketStatementQuery", field(1, bad)))).read_all()),
    ]:
        bad = [good[:length] for length in (0, 1, 16, 20, 51, len(good) - 1)] + [good + b"x", b"\0" * len(good), os.urandom(200)]
        for at in range(0, len(good), 7):
            bad.append(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])
        for client in (one, two):
            for one_of in bad:
                with pytest.raises(REFUSED, match="handle is unknown"):
                    fetched(client, one_of)
            fetched(client, good)
    with pytest.raises(REFUSED, match="that of a prepared statement"):
        one.get(flight.Ticket(command("TicketStatementQuery", field(1, handle)))).read_all()
    with pytest.raises(REFUSED, match="that of an answer"):
        rows(one, ticket)


def test_handles_die_with_their_user_and_are_nobody_elses(tmp_path):
    local = Sagitta(str(tmp_path / "data"))
    local.ok("-c", "CREATE USER root PASSWORD 'r' ADMIN")
    (tmp_path / "tokens").write_text("ada-without-a-password ada\n")
    with two_servers(tmp_path / "data", tmp_path, "--auth", "--token-file", str(tmp_path / "tokens")) as servers:
        root = servers[0].client(("root", "r"))

        def make_ada():
            root.rows("CREATE USER ada PASSWORD 'a'")
            root.rows("GRANT READ ON SCHEMA public TO ada")

        make_ada()
        root.rows("CREATE TABLE docs (id BIGINT)")
        root.rows("INSERT INTO docs VALUES (1)")
        ada = servers[0].client(("ada", "a"))
        elsewhere = servers[1].client(("ada", "a"))
        by_token = Client(servers[0], None)
        by_token.options = flight.FlightCallOptions(headers=[(b"authorization", b"Bearer ada-without-a-password")])
        handle = ada.prepare("SELECT id FROM docs")[1][0]
        ticket = ada.info("SELECT id FROM docs").endpoints[0].ticket
        assert rows(elsewhere, handle) == rows(by_token, handle) == [{"id": 1}]
        for server in servers:
            stranger = server.client(("root", "r"))
            for attempt in (lambda: rows(stranger, handle), lambda: stranger.get(ticket).read_all()):
                with pytest.raises(REFUSED, match="handle is unknown"):
                    attempt()
        assert elsewhere.get(ticket).read_all().num_rows == 1
        root.rows("REVOKE ALL ON SCHEMA public FROM ada")
        with pytest.raises(REFUSED, match="no table"):
            rows(elsewhere, handle)
        root.rows("GRANT READ ON SCHEMA public TO ada")
        root.rows("DROP USER ada")
        make_ada()
        # The sessions are those of the user who was dropped.
        for client in (ada, by_token):
            with pytest.raises(flight.FlightUnauthenticatedError):
                client.get(ticket).read_all()
        with pytest.raises(REFUSED, match="was dropped|session is unknown"):
            rows(elsewhere, elsewhere.prepare("SELECT id FROM docs")[1][0])
        # Whoever has the name now may not use what was the other's.
        for server in servers:
            later = server.client(("ada", "a"))
            assert later.rows("SELECT id FROM docs") == [{"id": 1}]
            for attempt in (lambda: rows(later, handle), lambda: later.get(ticket).read_all()):
                with pytest.raises(REFUSED, match="handle is unknown"):
                    attempt()
        with pytest.raises(flight.FlightUnauthenticatedError, match="was dropped"):
            by_token.rows("SELECT 1")


def test_the_servers_secret_is_nobodys_to_read(tmp_path):
    local = Sagitta(str(tmp_path / "data"))
    local.ok("-c", "CREATE USER root PASSWORD 'r' ADMIN")
    with serving(tmp_path / "data", tmp_path, "--auth", environment={"SAGITTA_LOG_FILTER": "trace"}) as server:
        root = server.client(("root", "r"))
        root.prepare("SELECT 1")
        (key,) = (tmp_path / "data/_keys").iterdir()
        for sql in [f"SELECT * FROM '{key}'", f"CREATE EXTERNAL TABLE k STORED AS JSON LOCATION '{key}'", f"COPY (SELECT 1) TO '{key}'"]:
            with pytest.raises(REFUSED):
                root.rows(sql)
        secret = key.read_text().split('"key":"')[1][:96]
        assert len(set(secret)) > 8 and secret not in server.log.read_text()


def test_an_old_password_leaves_no_hash_behind(tmp_path):
    database = Sagitta(str(tmp_path / "data"))
    database.ok("-c", "CREATE USER root PASSWORD 'r' ADMIN", "-c", "CREATE USER ada PASSWORD 'old'")

    def hashes() -> set[str]:
        files = (tmp_path / "data/_catalog").glob("*.json")
        return {text for file in files for text in file.read_text().split('"') if text.startswith("$argon2")}

    before = hashes()
    assert len(before) == 2
    database.ok("-c", "ALTER USER ada PASSWORD 'new'", "-c", "CREATE SCHEMA s")
    changed = hashes()
    assert len(changed) == 2 and len(changed & before) == 1
    database.ok("-c", "DROP USER ada")
    assert len(hashes()) == 1 and hashes() < before
    assert database.value("SELECT count(*) FROM system.users") == 1
