"""Every SQL block of the README runs, in the order of the page, on the shipped data."""

import re

import pytest
from conftest import ROOT, Sagitta


def blocks() -> list[str]:
    return re.findall(r"```sql\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Sagitta:
    database = Sagitta(str(tmp_path_factory.mktemp("readme") / "data"))
    database.load(ROOT / "examples/packages.parquet", "packages")
    database.load(ROOT / "examples/wishes.parquet", "wishes")
    return database


def test_the_readme_has_sql():
    assert len(blocks()) >= 5


def test_every_block_of_the_readme_runs(database, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for number, block in enumerate(blocks()):
        file = tmp_path / f"block{number}.sql"
        file.write_text(block.replace("/tmp/", f"{tmp_path}/"))
        done = database.run("-f", str(file))
        assert done.returncode == 0, f"{block}\n{done.stdout.decode()}\n{done.stderr}"
