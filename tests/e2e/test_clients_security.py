"""The Python client against servers that ask who it is, and that encrypt: passwords, tokens, certificates."""

import pathlib
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, Sagitta
from test_clients_python import served  # It skips this module too if the driver is missing.

sys.path.insert(0, str(ROOT / "clients/python/src"))

import sagitta


def create_users(database: Sagitta, *statements: str) -> None:
    for statement in statements:
        done = database.run("-c", statement)
        if "not built yet" in done.stderr:
            pytest.skip("there are no users yet: WHO MAY CONNECT IS NOT TESTED")
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def asking(tmp_path_factory):
    """A server that asks: its address, and a token of the user bot."""
    folder = tmp_path_factory.mktemp("asking")
    database = Sagitta(str(folder / "data"))
    create_users(database, "CREATE USER anna PASSWORD 'p@ss wörd:#' ADMIN", "CREATE USER bot PASSWORD 'unused' ADMIN")
    database.ok("-c", "CREATE TABLE t (id INT)", "-c", "INSERT INTO t VALUES (1)")
    tokens = folder / "tokens"
    tokens.write_text("# who may come without a password\ntoken-of-the-bot bot\n")
    tokens.chmod(0o600)
    with served(folder / "data", "--auth", "--token-file", str(tokens)) as uri:
        yield uri


def ids(connection) -> list[int]:
    return connection.query("SELECT id FROM t")["id"].to_pylist()


def test_a_user_is_let_in_by_name_and_password(asking):
    with sagitta.connect(asking, "anna", "p@ss wörd:#", settings={"exact": True}) as connection:
        assert ids(connection) == [1]
        assert connection.query("SHOW exact").column(0)[0].as_py() == "on"


def test_the_name_and_the_password_may_be_in_the_address(asking):
    with sagitta.connect(asking.replace("://", "://anna:p%40ss%20w%C3%B6rd%3A%23@")) as connection:
        assert ids(connection) == [1]


def test_a_token_is_a_user(asking):
    with sagitta.connect(asking, token="token-of-the-bot") as connection:
        assert ids(connection) == [1]


@pytest.mark.parametrize(
    "login",
    [{}, {"user": "anna"}, {"user": "anna", "password": "wrong"}, {"user": "nobody", "password": "x"}, {"token": "guessed"}],
    ids=["nothing", "no password", "wrong password", "unknown user", "unknown token"],
)
def test_nobody_else_is_let_in(asking, login):
    with pytest.raises(sagitta.Error) as caught:
        sagitta.connect(asking, **login)
    assert "Unauthenticated" in str(caught.value)
    assert "wörd" not in str(caught.value)


# --- Encryption -------------------------------------------------------------------------------------------------------


def openssl(folder: pathlib.Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> pathlib.Path:
    """A folder with an authority (ca), a server's certificate (server) and a client's (client)."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: TLS IS NOT TESTED")
    folder = tmp_path_factory.mktemp("certificates")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl(folder, "req", "-x509", *key, "-days", "2", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem")
    for name, extension in (
        ("server", "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n"),
        ("client", "extendedKeyUsage=clientAuth\n"),
    ):
        (folder / f"{name}.ext").write_text(extension)
        openssl(folder, "req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl(
            folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.pem",
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory, certificates):
    arguments = ("--tls-certificate", str(certificates / "server.pem"), "--tls-key", str(certificates / "server.key"))
    with served(tmp_path_factory.mktemp("encrypted") / "data", *arguments, scheme="grpc+tls") as uri:
        yield uri


def one(connection) -> int:
    return connection.query("SELECT 1 AS one")["one"][0].as_py()


def test_a_server_is_trusted_by_its_authority(encrypted, certificates):
    authority = certificates / "ca.pem"
    for given in (authority, str(authority), authority.read_text(), authority.read_bytes()):
        with sagitta.connect(encrypted, tls_root_certs=given) as connection:
            assert one(connection) == 1
    address = encrypted.replace("grpc+tls://127.0.0.1", "flightsql://localhost")
    with sagitta.connect(address, tls_root_certs=authority, settings={"exact": True}) as connection:
        assert one(connection) == 1


def test_a_server_that_is_not_trusted_is_refused_with_the_way_to_trust_it(encrypted):
    with pytest.raises(sagitta.Error, match="tls_root_certs"):
        sagitta.connect(encrypted)
    with sagitta.connect(encrypted, tls_skip_verify=True) as connection:
        assert one(connection) == 1


def test_plain_text_to_an_encrypted_server_is_explained(encrypted):
    with pytest.raises(sagitta.Error):
        sagitta.connect(encrypted.replace("grpc+tls", "grpc"))


def test_a_client_shows_its_certificate(tmp_path, certificates):
    arguments = ("--tls-certificate", str(certificates / "server.pem"), "--tls-key", str(certificates / "server.key"))
    database = Sagitta(str(tmp_path / "data"))
    create_users(database, "CREATE USER client PASSWORD 'unused' ADMIN")
    with served(
        tmp_path / "data", *arguments, "--tls-client-ca", str(certificates / "ca.pem"), scheme="grpc+tls"
    ) as uri:
        with pytest.raises(sagitta.Error):
            sagitta.connect(uri, tls_root_certs=certificates / "ca.pem")
        with sagitta.connect(
            uri,
            tls_root_certs=certificates / "ca.pem",
            tls_client_cert=certificates / "client.pem",
            tls_client_key=certificates / "client.key",
        ) as connection:
            assert one(connection) == 1


# --- The user whom a certificate names ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def named(tmp_path_factory, certificates):
    """A server whose clients are the users in their certificates, and what each connects with."""
    folder = tmp_path_factory.mktemp("named")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for name, subject in [("anna", "/O=root/CN=anna"), ("ghost", "/CN=ghost"), ("nameless", "/O=anna"), ("two", "/CN=anna/CN=root")]:
        openssl(folder, "req", *key, "-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl(
            folder, "x509", "-req", "-in", f"{name}.csr", "-CA", str(certificates / "ca.pem"), "-CAkey",
            str(certificates / "ca.key"), "-CAcreateserial", "-days", "2", "-extfile", str(certificates / "client.ext"),
            "-out", f"{name}.pem",
        )  # fmt: skip
    database = Sagitta(str(folder / "data"))
    create_users(
        database, "CREATE USER root PASSWORD 'r' ADMIN", "CREATE USER anna PASSWORD 'a'", "CREATE SCHEMA hers",
        "CREATE TABLE hers.t AS SELECT 1 AS id", "CREATE TABLE others AS SELECT 2 AS id", "GRANT READ ON SCHEMA hers TO anna",
    )  # fmt: skip
    arguments = ("--tls-certificate", str(certificates / "server.pem"), "--tls-key", str(certificates / "server.key"))
    authority = ("--tls-client-ca", str(certificates / "ca.pem"), "--tls-client-user")

    def connect(name: str, *login: str, **options):
        return sagitta.connect(
            uri, *login, tls_root_certs=certificates / "ca.pem", tls_client_cert=folder / f"{name}.pem",
            tls_client_key=folder / f"{name}.key", **options,
        )  # fmt: skip

    with served(folder / "data", *arguments, *authority, scheme="grpc+tls") as uri:
        connect.database = database
        yield connect


def test_a_certificate_names_its_user(named):
    for login in ((), ("anna", "a")):
        with named("anna", *login) as connection:
            assert connection.query("SELECT id FROM hers.t")["id"].to_pylist() == [1]
            assert connection.query("SELECT name FROM system.users")["name"].to_pylist() == ["anna"]
            with pytest.raises(sagitta.Error, match="no table"):
                connection.query("SELECT id FROM others")


@pytest.mark.parametrize(
    ("certificate", "login", "message"),
    [
        ("anna", ("root", "r"), "names another user"),
        ("anna", ("anna", "wrong"), "password is wrong"),
        ("ghost", (), "no such user"),
        ("ghost", ("anna", "a"), "names another user"),
        ("nameless", (), "no common name"),
        ("two", (), "no common name"),
    ],
)
def test_a_certificate_is_nobody_elses(named, certificate, login, message):
    with pytest.raises(sagitta.Error, match=message):
        named(certificate, *login).query("SELECT 1")


def test_the_configuration_shows_that_certificates_name_users(tmp_path):
    database = Sagitta(str(tmp_path / "data"), environment={"SAGITTA_SERVER_TLS_CLIENT_USER": "true"})
    refused = database.run("config")
    assert refused.returncode != 0 and "server.tls_client_ca" in refused.stderr
    assert b"tls_client_user = true" in refused.stdout
