"""What a type checker knows of the package, as pip installed it."""

import inspect
import subprocess
import sys

import kavern
import pytest
import typed_worker


@pytest.mark.parametrize("what", [[typed_worker.__file__], ["-m", "kavern", "-m", "kavern._kavern"]])
def test_a_strict_type_checker_has_nothing_to_say(what, tmp_path):
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path, *what]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_program_that_it_accepts_runs(daemon):
    assert typed_worker.main(daemon.address) == (0 + 1 + 0 + 3 + 3, [[None] * 3])


def test_every_name_of_the_package_says_what_it_is():
    classes = {name: value for name, value in vars(kavern).items() if name in kavern.__all__}
    silent = {name for name, cls in classes.items() if not cls.__dict__.get("__doc__")}
    assert silent == set()
    described = ["LayerGroup", "KvLayout", "BlockKeyChain", "StoreResult", "FetchResult", "ConnectionInfo", "NamespaceSpec"]
    plain = {"BlockKeyChain.tokens_per_block", "LayerGroup.kind", "NamespaceSpec.layout"}  # names and types say it all
    for name in described:
        for member, value in vars(classes[name]).items():
            signature_only = inspect.isdatadescriptor(value) and (value.__doc__ or "(self)").startswith("(self)")
            if signature_only and not member.startswith("_"):
                silent.add(f"{name}.{member}")
    assert silent == plain
