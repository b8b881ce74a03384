"""The examples of the README and of the package's docstring, as a user runs them."""

import pathlib
import re
import subprocess
import sys
import textwrap

import kavern

ROOT = pathlib.Path(__file__).parents[3]
WORKER = ROOT / "client/python/examples/worker.py"


def run(address: str) -> str:
    return subprocess.run([sys.executable, WORKER, address], check=True, capture_output=True, text=True).stdout


def test_the_second_run_fetches_what_the_first_stored(make_daemon):
    daemon = make_daemon(ram="64MiB")
    assert run(daemon.address) == "16 blocks: 0 fetched, 16 computed\nnext turn: 16 to fetch\n"
    assert run(daemon.address) == "16 blocks: 16 fetched, 0 computed\nnext turn: 16 to fetch\n"


def test_without_a_daemon_it_computes_everything(tmp_path):
    assert run(f"unix://{tmp_path}/nobody.sock") == "no daemon: computed everything\n"


def test_the_readmes_excerpts_are_of_programs_that_are_run():
    section = (ROOT / "README.md").read_text().partition("## From a worker\n")[2].partition("\n## ")[0]
    excerpts = re.findall(r"(?:^ {6,}.*\n|^\n(?= {6}))+", section, re.MULTILINE)
    programs = WORKER.read_text() + (ROOT / "client/examples/worker.cc").read_text()
    assert len(excerpts) == 4  # two of C++, two of Python
    for excerpt in excerpts:
        assert re.sub("^    ", "", excerpt, flags=re.MULTILINE).strip("\n") in programs


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
