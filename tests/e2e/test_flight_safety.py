"""Who may do what on a server: passwords, tokens, certificates, rights, files, limits."""

import subprocess

import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from flight_sql import command, field, serving, statement

REFUSED = (flight.FlightError, pa.ArrowException)
PASSWORDS = {"root": "r00t'pass", "ada": "adas password", "bob": "b"}
TOKEN = "a-static-token-for-bob"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server that asks who one is: root may do all, ada changes rows of `public`, bob reads `shared`."""
    folder = tmp_path_factory.mktemp("guarded")
    from conftest import Sagitta

    local = Sagitta(str(folder / "data"))
    local.ok("-c", "CREATE USER root PASSWORD 'r00t''pass' ADMIN")
    (folder / "tokens").write_text(f"# token user\n{TOKEN} bob\n")
    (folder / "open").mkdir()
    (folder / "open" / "rows.csv").write_text("a,b\n1,x\n2,y\n")
    (folder / "secret.csv").write_text("a\n1\n")
    words = ["--auth", "--token-file", str(folder / "tokens"), "--set", f"server.allowed_roots={folder / 'open'}"]
    with serving(folder / "data", folder, *words) as server:
        root = server.client(("root", PASSWORDS["root"]))
        for sql in [
            "CREATE USER ada PASSWORD 'adas password'",
            "CREATE USER bob PASSWORD 'b'",
            "CREATE SCHEMA shared",
            "CREATE TABLE public.private (id INT)",
            "CREATE TABLE shared.docs (id INT)",
            "INSERT INTO shared.docs VALUES (1), (2)",
            "GRANT WRITE ON SCHEMA public TO ada",
            "GRANT READ ON SCHEMA shared TO bob",
        ]:
            root.rows(sql)
        server.folder = folder
        yield server


@pytest.mark.parametrize("login", [("root", "wrong"), ("nobody", "x"), ("", ""), ("root", "")])
def test_a_wrong_name_or_password_is_refused_alike(guarded, login):
    with pytest.raises(flight.FlightUnauthenticatedError, match="user name or the password is wrong"):
        guarded.client(login)


def test_whoever_shows_nothing_is_refused_everywhere(guarded):
    client = guarded.client(None)
    calls = [
        lambda: client.info("SELECT 1"),
        lambda: client.act("GetSessionOptions", b""),
        lambda: list(client.flight.list_flights()),
        lambda: client.flight.get_schema(statement("SELECT 1")),
        lambda: list(client.flight.list_actions()),
    ]
    for call in calls:
        # pyarrow has no class of its own for this error of get_schema.
        with pytest.raises((flight.FlightUnauthenticatedError, OSError), match="asks who you are"):
            call()


def test_tokens_and_adbc_log_in(guarded):
    options = {"username": "ada", "password": PASSWORDS["ada"]}
    with adbc_driver_flightsql.dbapi.connect(guarded.uri, db_kwargs=options, autocommit=True) as adbc, adbc.cursor() as cursor:
        cursor.execute("INSERT INTO private VALUES (7)")
        cursor.execute("SELECT count(*) FROM private")
        assert cursor.fetchone()[0] >= 1
        cursor.execute("SET recall_target = 0.5")
        cursor.execute("SHOW recall_target")
        assert cursor.fetchone() == ("0.5",)
    header = {"adbc.flight.sql.authorization_header": f"Bearer {TOKEN}"}
    with adbc_driver_flightsql.dbapi.connect(guarded.uri, db_kwargs=header, autocommit=True) as adbc, adbc.cursor() as cursor:
        cursor.execute("SELECT id FROM shared.docs ORDER BY id")
        assert cursor.fetchall() == [(1,), (2,)]
    wrong = {"adbc.flight.sql.authorization_header": "Bearer guessed"}
    with pytest.raises(adbc_driver_manager.Error, match="connect again|unknown"):
        with adbc_driver_flightsql.dbapi.connect(guarded.uri, db_kwargs=wrong, autocommit=True) as adbc, adbc.cursor() as cursor:
            cursor.execute("SELECT 1")


def test_rights_hold_and_what_is_hidden_stays_hidden(guarded):
    bob = guarded.client(("bob", "b"))
    assert bob.rows("SELECT count(*) AS n FROM shared.docs") == [{"n": 2}]
    for sql, message in [
        ("INSERT INTO shared.docs VALUES (3)", "may not change rows"),
        ("CREATE TABLE shared.mine (a INT)", "may not define"),
        ("CREATE USER eve PASSWORD 'x'", "may not create users"),
        ("SELECT * FROM private", 'no table "private"'),
    ]:
        with pytest.raises(REFUSED, match=message):
            bob.rows(sql)
    names = {row["table_name"] for row in bob.rows("SELECT table_name FROM information_schema.tables WHERE table_schema NOT IN ('system', 'information_schema')")}
    assert names == {"docs"}
    info = guarded.client(("root", PASSWORDS["root"])).info("SELECT * FROM private")
    with pytest.raises(REFUSED, match="handle is unknown"):
        bob.get(info.endpoints[0].ticket).read_all()


def test_a_right_that_is_taken_back_is_gone_at_the_next_statement(guarded):
    root = guarded.client(("root", PASSWORDS["root"]))
    ada = guarded.client(("ada", PASSWORDS["ada"]))
    root.rows("GRANT READ ON SCHEMA shared TO ada")
    prepared = ada.prepare("SELECT id FROM shared.docs WHERE id = $1")
    assert len(ada.rows("SELECT id FROM shared.docs")) == 2 and prepared
    root.rows("REVOKE ALL ON SCHEMA shared FROM ada")
    with pytest.raises(REFUSED, match="no table"):
        ada.rows("SELECT id FROM shared.docs")


def test_only_files_below_the_allowed_roots_are_touched(guarded):
    root = guarded.client(("root", PASSWORDS["root"]))
    folder = guarded.folder
    allowed = folder / "open"
    assert root.rows(f"SELECT a FROM '{allowed}/rows.csv' ORDER BY a") == [{"a": 1}, {"a": 2}]
    root.rows(f"COPY shared.docs TO '{allowed}/out.parquet'")
    (allowed / "link.csv").symlink_to(folder / "secret.csv")
    for path in [
        f"{folder}/secret.csv",
        f"{allowed}/../secret.csv",
        f"file://{folder}/secret.csv",
        f"FILE://{allowed}/%2e%2e/secret.csv",
        f"{allowed}/link.csv",
        "/etc/passwd.csv",
        "s3://bucket/x.csv",
        f"{folder}/data/public/x.csv",
    ]:
        for sql in [
            f"SELECT * FROM '{path}'",
            f"CREATE EXTERNAL TABLE stolen STORED AS CSV LOCATION '{path}'",
            f"COPY private FROM '{path}'",
            f"COPY private TO '{path}'",
        ]:
            with pytest.raises(REFUSED) as raised:
                root.rows(sql)
            assert "allowed" in str(raised.value) or "no table" in str(raised.value), (sql, raised.value)
    assert (folder / "secret.csv").read_text() == "a\n1\n"


def test_no_secret_is_shown(guarded):
    root = guarded.client(("root", PASSWORDS["root"]))
    root.rows("CREATE USER carl PASSWORD 'wholly secret words'")
    with pytest.raises(REFUSED) as raised:
        root.rows("CREATE USER carl PASSWORD 'wholly secret words'")
    assert "wholly secret" not in str(raised.value)
    listed = root.rows("SELECT query FROM system.slow_queries UNION ALL SELECT query FROM system.queries")
    assert not any("wholly secret" in row["query"] for row in listed)
    log = guarded.log.read_text()
    assert "wholly secret" not in log and TOKEN not in log and PASSWORDS["ada"] not in log


def test_a_server_without_users_says_how_to_make_one(sagitta):
    refused = sagitta.run("serve", "--auth", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
    assert refused.returncode != 0 and "CREATE USER" in refused.stderr


def certificate(folder, name: str, subject: str, issuer: str | None) -> None:
    """A key and a certificate signed by `issuer`, or by itself."""
    extension = folder / f"{name}.ext"
    extension.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:" + ("FALSE" if issuer else "TRUE") + "\n")
    run = lambda *words: subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)  # noqa: E731
    run("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={subject}")
    signer = ["-CA", f"{issuer}.pem", "-CAkey", f"{issuer}.key", "-CAcreateserial"] if issuer else ["-signkey", f"{name}.key"]
    run("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", "-days", "2", "-extfile", extension.name, *signer)


def test_tls_encrypts_and_asks_for_certificates(tmp_path):
    certificate(tmp_path, "ca", "test authority", None)
    certificate(tmp_path, "server", "localhost", "ca")
    certificate(tmp_path, "client", "ada", "ca")
    certificate(tmp_path, "stranger", "stranger", None)
    read = lambda name: (tmp_path / name).read_bytes()  # noqa: E731
    words = ["--tls-certificate", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "server.key"), "--tls-client-ca", str(tmp_path / "ca.pem")]
    with serving(tmp_path / "data", tmp_path, *words) as server:
        uri = f"grpc+tls://localhost:{server.port}"
        known = {"tls_root_certs": read("ca.pem")}
        client = flight.FlightClient(uri, cert_chain=read("client.pem"), private_key=read("client.key"), **known)
        info = client.get_flight_info(statement("SELECT 1 AS a"))
        assert client.do_get(info.endpoints[0].ticket).read_all().to_pylist() == [{"a": 1}]
        for other in [
            flight.FlightClient(uri, **known),
            flight.FlightClient(uri, cert_chain=read("stranger.pem"), private_key=read("stranger.key"), **known),
            flight.FlightClient(uri, cert_chain=read("client.pem"), private_key=read("client.key"), tls_root_certs=read("stranger.pem")),
            flight.FlightClient(server.uri),
        ]:
            with pytest.raises((*REFUSED, OSError)):
                other.get_flight_info(statement("SELECT 1"), flight.FlightCallOptions(timeout=20))
        from conftest import Sagitta

        shell = Sagitta(str(tmp_path / "unused"), environment={"SAGITTA_CONNECT": uri}, options=("--tls-ca", str(tmp_path / "ca.pem"), "--client-certificate", str(tmp_path / "client.pem"), "--client-key", str(tmp_path / "client.key")))
        assert shell.sql("SELECT 2 AS b") == [{"b": 2}]


def test_limits_refuse_clearly(tmp_path):
    words = ["--set", "limits.rows_max=10", "--set", "limits.handles_per_session_max=3", "--set", "limits.sessions_max=2"]
    with serving(tmp_path / "data", tmp_path, *words) as server:
        client = server.client()
        assert len(client.rows("SELECT value FROM range(10)")) == 10
        with pytest.raises(REFUSED, match="more than 10 rows"):
            client.rows("SELECT value FROM range(11)")
        for _ in range(2):
            client.prepare("SELECT 1")
        with pytest.raises(REFUSED, match="handles_per_session_max"):
            for _ in range(3):
                client.info("SELECT 1")
        server.client()
        with pytest.raises(REFUSED, match="sessions_max"):
            server.client()


def test_the_statements_of_a_user_have_so_much_memory(tmp_path):
    from conftest import Sagitta

    local = Sagitta(str(tmp_path / "data"))
    local.ok("-c", "CREATE USER ada PASSWORD 'a' ADMIN", "-c", "CREATE USER bob PASSWORD 'b' ADMIN")
    words = ["--auth", "--memory-limit", "512M", "--set", "limits.memory_per_user_max=16M", "--set", "limits.queue_time_max=1s"]
    with serving(tmp_path / "data", tmp_path, *words) as server:
        ada, bob = server.client(("ada", "a")), server.client(("bob", "b"))
        # What a join keeps cannot be spilled: all rows of one side.
        join = "SELECT count(*) FROM generate_series(1, {0}) a(x) JOIN generate_series(1, {0}) b(x) ON a.x = b.x"
        assert ada.rows(join.format(1000))[0] == {"count(*)": 1000}
        with pytest.raises(REFUSED, match="limits.memory_per_user_max = 16.0 MiB"):
            ada.rows(join.format(3_000_000))
        # A sort spills, and ends.
        last = ada.rows("SELECT value FROM generate_series(1, 1000000) s(value) ORDER BY value % 1009, value OFFSET 999999")
        assert last[0]["value"] % 1009 == 1008
        # Values that are bound count for whoever binds them, and for nobody else.
        values = pa.record_batch({"$1": pa.array(["x" * (6 << 20)])})
        for client, number in [(ada, 1), (bob, 1), (ada, 2)]:
            handle = client.prepare("SELECT length($1::text) AS n")[1][0]
            descriptor = flight.FlightDescriptor.for_command(command("CommandPreparedStatementQuery", field(1, handle)))

            def bind():
                writer, reader = client.flight.do_put(descriptor, values.schema, client.options)
                writer.write_batch(values)
                writer.done_writing()
                reader.read()
                writer.close()

            if number == 1:
                bind()
                continue
            with pytest.raises(REFUSED, match="a set of bound values takes .* limits.memory_per_user_max"):
                bind()
