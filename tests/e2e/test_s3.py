"""A database in an S3 bucket: moto's server stands in for the store, over real HTTP on the loopback."""

import concurrent.futures
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import boto3
import lance
import pytest
from conftest import ROOT, Sagitta

BUCKET = "arrows"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def moto():
    """A server of its own, with the bucket made."""
    port = free_port()
    server = subprocess.Popen(
        [os.path.join(os.path.dirname(sys.executable), "moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(url, timeout=1)
                break
            except OSError:
                assert server.poll() is None, "moto_server ended"
                time.sleep(0.1)
        else:
            raise AssertionError("moto_server does not answer")
        client(url).create_bucket(Bucket=BUCKET)
        yield url
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(scope="module")
def endpoint():
    with moto() as url:
        yield url


def client(url: str):
    return boto3.client("s3", endpoint_url=url, aws_access_key_id="key", aws_secret_access_key="secret", region_name="us-east-1")


def environment(url: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT": url,
        "AWS_ALLOW_HTTP": "true",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


@pytest.fixture
def s3(endpoint, request) -> Sagitta:
    return Sagitta(f"s3://{BUCKET}/{request.node.name}", environment(endpoint))


def test_create_load_search_and_open_again(s3, endpoint):
    s3.load(ROOT / "examples/packages.parquet", "packages")
    assert s3.value("SELECT count(*) FROM packages") == 10_000
    query = "SELECT name FROM packages ORDER BY embedding <=> (SELECT embedding FROM packages WHERE name = 'black') LIMIT 3"
    assert s3.column(query) == ["black", "spicecode", "robotframework-robocop"]
    assert s3.column(query.replace("ORDER", "WHERE u < 5000 ORDER")) != []
    s3.ok("-c", "CREATE TABLE t (id BIGINT, emb VECTOR(2))", "-c", "INSERT INTO t VALUES (1, '[1,0]')", "-c", "INSERT INTO t VALUES (2, '[0,1]')")
    # Each call is a process of its own: what the last wrote is what the next reads.
    assert s3.column("SELECT id FROM t ORDER BY emb <-> '[0,1]' LIMIT 5") == [2, 1]
    s3.ok("-c", "DROP TABLE t")
    assert "t" in s3.fails("SELECT * FROM t")


def test_the_options_do_what_the_variables_do(endpoint):
    pairs = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "aws_region": "us-east-1", "aws_endpoint": endpoint, "allow_http": "true"}
    options = tuple(word for key, value in pairs.items() for word in ("--storage-option", f"{key}={value}"))
    without = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    database = Sagitta(f"s3://{BUCKET}/by-option", without, options)
    database.ok("-c", "CREATE TABLE t (id INT)", "-c", "INSERT INTO t VALUES (7)")
    assert database.column("SELECT id FROM t") == [7]
    assert Sagitta(f"s3://{BUCKET}/by-option", environment(endpoint)).column("SELECT id FROM t") == [7]


def test_two_databases_of_one_bucket_are_apart(endpoint):
    one, two = (Sagitta(f"s3://{BUCKET}/apart/{name}", environment(endpoint)) for name in ("one", "two"))
    one.ok("-c", "CREATE TABLE t (id INT)")
    two.ok("-c", "CREATE TABLE u (id INT)")
    assert one.column("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'") == ["t"]
    assert two.column("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'") == ["u"]


def test_processes_that_create_tables_at_once_all_succeed(s3):
    def create(process: int):
        words = [word for n in range(3) for word in ("-c", f"CREATE TABLE t_{process}_{n} (id INT)")]
        return s3.run(*words)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        for done in pool.map(create, range(3)):
            assert done.returncode == 0, done.stderr
    names = s3.column("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1")
    assert names == [f"t_{process}_{n}" for process in range(3) for n in range(3)]


def test_of_processes_that_create_one_table_one_succeeds(s3):
    s3.ok("-c", "SELECT 1")
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda i: s3.run("-c", "CREATE TABLE contested (id INT)"), range(3)))
    assert sorted(done.returncode for done in results) == [0, 1, 1], [done.stderr for done in results]


def test_files_in_a_bucket_are_imported_read_in_place_and_written(s3, endpoint):
    client(endpoint).upload_file(str(ROOT / "tests/fixtures/fruits.parquet"), BUCKET, "files/fruits.parquet")
    s3.load(f"s3://{BUCKET}/files/fruits.parquet", "fruits")
    assert s3.column("SELECT id FROM fruits ORDER BY emb <-> '[3,4]' LIMIT 1") == [3]
    s3.ok("-c", f"CREATE EXTERNAL TABLE outside STORED AS PARQUET LOCATION 's3://{BUCKET}/files/fruits.parquet'")
    assert s3.column("SELECT id FROM outside ORDER BY emb <-> '[3,4]' LIMIT 1") == [3]
    s3.ok("-c", f"COPY (SELECT id FROM fruits WHERE id < 3) TO 's3://{BUCKET}/files/out.parquet'")
    s3.load(f"s3://{BUCKET}/files/out.parquet", "back")
    assert s3.column("SELECT id FROM back ORDER BY id") == [1, 2]


def test_lance_opens_our_tables_in_the_bucket(s3, endpoint):
    s3.ok("-c", "CREATE TABLE t (id BIGINT, emb VECTOR(2))", "-c", "INSERT INTO t VALUES (1, '[1,0]'), (2, NULL)")
    prefix = s3.data.removeprefix(f"s3://{BUCKET}/")
    listed = client(endpoint).list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
    (root,) = {entry["Key"].split(".lance/")[0] + ".lance" for entry in listed if ".lance/" in entry["Key"]}
    options = {key.lower(): value for key, value in environment(endpoint).items() if key.startswith("AWS")}
    dataset = lance.dataset(f"s3://{BUCKET}/{root}", storage_options=options)
    assert dataset.to_table().to_pylist() == [{"id": 1, "emb": [1, 0]}, {"id": 2, "emb": None}]


def test_a_missing_bucket_is_named(endpoint):
    error = Sagitta("s3://no-such-bucket/db", environment(endpoint)).fails("CREATE TABLE t (id INT)")
    assert "no-such-bucket" in error and "bucket" in error.replace("no-such-bucket", "")


def test_an_endpoint_that_does_not_answer_is_named():
    url = f"http://127.0.0.1:{free_port()}"
    error = Sagitta(f"s3://{BUCKET}/db", environment(url)).fails("CREATE TABLE t (id INT)")
    assert url.removeprefix("http://") in error or "endpoint" in error or "connect" in error.lower()



def test_wrong_credentials_are_refused_and_said_so():
    with moto() as url:
        iam = boto3.client("iam", endpoint_url=url, aws_access_key_id="key", aws_secret_access_key="secret", region_name="us-east-1")
        iam.create_user(UserName="anna")
        everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
        iam.put_user_policy(UserName="anna", PolicyName="all", PolicyDocument=json.dumps(everything))
        # From here on the server checks every request.
        plain = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset-auth", b"0", plain), timeout=10)
        error = Sagitta(f"s3://{BUCKET}/db", environment(url)).fails("CREATE TABLE t (id INT)")
        assert "credentials" in error.lower() or "access" in error.lower() or "forbidden" in error.lower(), error
        assert "secret" not in error.lower().replace("secret_access_key", ""), "no secret is printed"
