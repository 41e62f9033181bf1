"""Every Python block of the README runs, in the order of the page; those of Spark are run by `test_spark.py`."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"
PATTERN = r"(<!-- run by test_spark.py -->\n)?```python\n(.*?)```"


def blocks(*, of_spark: bool) -> list[str]:
    return [code for spark, code in re.findall(PATTERN, README.read_text(), re.DOTALL) if bool(spark) is of_spark]


def run(codes: list[str], uri: str, **names) -> None:
    """Runs blocks as one program on the server of the tests."""
    address = uri.partition("://")[2].partition("/")[0]
    for code in codes:
        exec(compile(code.replace("127.0.0.1:32100", address), str(README), "exec"), names)


def test_the_readme_has_blocks():
    assert len(blocks(of_spark=False)) >= 9
    assert len(blocks(of_spark=True)) == 2


def test_every_block_of_the_readme_runs(uri):
    for module in ("polars", "pandas", "sqlalchemy"):
        pytest.importorskip(module)
    run(blocks(of_spark=False), uri)
