"""Many clients at once on a server with little memory, in short: `benches/clients` is the long run and says what it proves."""

import os
import pathlib
import subprocess

from conftest import binary

SECONDS = "15"


def test_many_clients_stay_within_the_memory_and_leave_nothing_behind(tmp_path):
    program = pathlib.Path(binary()).with_name("clients")
    words = ["--seconds", SECONDS, "--clients", "24", "--memory", "1G", "--rows", "60000", "--dim", "64"]
    done = subprocess.run(
        [program, *words],
        env={**os.environ, "SAGITTA_BIN": binary(), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "all as it should be" in done.stdout
    for kind in ["Search", "FilteredSearch", "HalfScan", "Ingest", "Cancel"]:
        assert f"\n{kind} " in done.stdout, f"nobody did a {kind}:\n{done.stdout}"
