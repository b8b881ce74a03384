"""The example of the README, as a user runs it."""

import pathlib
import subprocess
import sys

WORKER = pathlib.Path(__file__).parent.parent / "examples" / "worker.py"


def run(address: str) -> str:
    return subprocess.run([sys.executable, WORKER, address], check=True, capture_output=True, text=True).stdout


def test_the_second_run_fetches_what_the_first_stored(make_daemon):
    daemon = make_daemon(ram="64MiB")
    assert run(daemon.address) == "16 blocks: 0 fetched, 16 computed\n"
    assert run(daemon.address) == "16 blocks: 16 fetched, 0 computed\n"


def test_without_a_daemon_it_computes_everything(tmp_path):
    assert run(f"unix://{tmp_path}/nobody.sock") == "no daemon: computed everything\n"
