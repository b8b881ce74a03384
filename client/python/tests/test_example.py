"""The examples of the README and of the package's docstring, as a user runs them."""

import pathlib
import subprocess
import sys
import textwrap

import kavern

WORKER = pathlib.Path(__file__).parent.parent / "examples" / "worker.py"


def run(address: str) -> str:
    return subprocess.run([sys.executable, WORKER, address], check=True, capture_output=True, text=True).stdout


def test_the_second_run_fetches_what_the_first_stored(make_daemon):
    daemon = make_daemon(ram="64MiB")
    assert run(daemon.address) == "16 blocks: 0 fetched, 16 computed\n"
    assert run(daemon.address) == "16 blocks: 16 fetched, 0 computed\n"


def test_without_a_daemon_it_computes_everything(tmp_path):
    assert run(f"unix://{tmp_path}/nobody.sock") == "no daemon: computed everything\n"


def test_what_the_packages_docstring_shows_runs(make_daemon):
    daemon = make_daemon(ram="64MiB")
    lines = [line for line in kavern.__doc__.splitlines() if line.startswith("    ")]
    program = textwrap.dedent("\n".join(lines)).replace("unix:///run/kavern/kavern.sock", daemon.address)
    for cached in (0, 4):
        blocks = [bytearray(kavern.KvLayout.of_model("llama-3-8b", 16).part_bytes()) for _ in range(4)]
        names = {"kavern": kavern, "token_ids": range(64), "blocks": blocks}
        exec(program, names)
        assert names["cached"] == cached
    assert names["fetched"].fetched_blocks == cached
