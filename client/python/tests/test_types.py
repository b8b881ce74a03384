"""What a type checker knows of the package, as pip installed it."""

import subprocess
import sys

import pytest
import typed_worker


@pytest.mark.parametrize("what", [[typed_worker.__file__], ["-m", "kavern", "-m", "kavern._kavern"]])
def test_a_strict_type_checker_has_nothing_to_say(what, tmp_path):
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path, *what]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_program_that_it_accepts_runs(daemon):
    assert typed_worker.main(daemon.address) == (0 + 1 + 0 + 3 + 3, [[None] * 3])
