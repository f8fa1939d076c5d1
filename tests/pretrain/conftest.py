import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("pair.py")


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory):
    """What the two processes of pair.py found, by rank."""
    out = tmp_path_factory.mktemp("pair")
    port = str(20_000 + os.getpid() % 20_000)
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    common["PYTHONPATH"] = str(SCRIPT.parents[1])  # so that pair.py finds this folder as the package that it is here
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, out], env={**common, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:  # one that waits for a dead partner must not outlive the test
            process.kill()
            process.wait()
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]
