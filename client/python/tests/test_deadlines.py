"""A daemon that hangs: every call that can wait ends by its own deadline, and what it held comes back."""

import ast
import contextlib
import ctypes
import os
import pathlib
import signal
import time

import kavern
import pytest
from conftest import PART_BYTES, keys_of, payload, spec_of
from daemon import Daemon

SHORT = 0.1
# The client's own deadline is so long that a call that used it would show.
LONG = 120.0
PATIENCE = 30.0


def _is_stopped(task: pathlib.Path) -> bool:
    with contextlib.suppress(OSError):  # it ended
        return (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


@contextlib.contextmanager
def stopped(daemon):
    os.kill(daemon.process.pid, signal.SIGSTOP)
    give_up = time.monotonic() + PATIENCE
    while not all(_is_stopped(task) for task in pathlib.Path(f"/proc/{daemon.process.pid}/task").iterdir()):
        assert time.monotonic() < give_up  # a thread that runs meanwhile could still answer
    try:
        yield
    finally:
        os.kill(daemon.process.pid, signal.SIGCONT)


def leases(daemon) -> int:
    return daemon.status()["leases"]


@pytest.fixture
def patient(daemon):
    with kavern.Client(daemon.address, deadline=LONG) as client:
        client.wait_until_attached(20)
        yield client


def test_every_call_ends_by_its_deadline_and_what_it_held_comes_back(daemon, patient):
    ns = patient.open_namespace(spec_of())
    keys = keys_of(ns, 1, 4)
    ns.store(keys[:2], [payload(key) for key in keys[:2]])
    read = ns.fetch(keys[:2])
    filled, unfilled = ns.begin_store(keys[2:3], parent=keys[1]), ns.begin_store(keys_of(ns, 100, 1))
    filled.fill(0, payload(keys[2]))
    targets = [bytearray(PART_BYTES) for _ in keys]
    calls = [
        lambda: patient.ping(SHORT),
        lambda: patient.open_namespace(spec_of("other"), deadline=SHORT),
        lambda: patient.open_namespace_of_config(
            {"num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 64, "dtype": "int8"},
            4,
            model="m",
            weights_revision="w",
            deadline=SHORT,
        ),
        lambda: ns.store(keys[3:], [payload(keys[3])], parent=keys[2], deadline=SHORT),
        lambda: ns.begin_store(keys[3:], parent=keys[2], deadline=SHORT),
        lambda: ns.fetch_into(keys, targets, deadline=SHORT),
        lambda: ns.fetch(keys, deadline=SHORT),
        lambda: ns.prefetch(keys, deadline=SHORT),
        lambda: ns.update_conversation("chat", keys[1], 8, deadline=SHORT),
        lambda: ns.describe_conversation("chat", deadline=SHORT),
        lambda: filled.commit(SHORT),
        lambda: read.release(SHORT),
    ]
    began = time.monotonic()
    with stopped(daemon):
        for call in calls:
            with pytest.raises(kavern.DeadlineExceededError):
                call()
        unfilled.abort(SHORT)
        assert ns.match(keys, deadline=SHORT) == 2  # shared memory: nobody is asked
    while leases(daemon) > 0:
        assert time.monotonic() - began < PATIENCE
    assert time.monotonic() - began < PATIENCE
    patient.ping()


def test_a_match_over_tcp_ends_by_its_deadline(tmp_path):
    daemon = Daemon(tmp_path, ram="16MiB", tcp=True, more=f"tenants: [{{name: default, uids: [{os.getuid()}]}}]\n")
    daemon.start()
    try:
        with kavern.Client(daemon.tcp_address(), deadline=LONG) as client:
            client.wait_until_attached(20)
            ns = client.open_namespace(spec_of())
            keys = keys_of(ns, 1, 2)
            ns.store(keys, [payload(key) for key in keys])
            assert ns.match(keys) == 2
            began = time.monotonic()
            with stopped(daemon):
                assert ns.match(keys, deadline=SHORT) == 0
                assert ns.match_tiers(keys, deadline=SHORT) == []
                with pytest.raises(kavern.DeadlineExceededError):
                    client.wait_until_attached(SHORT)
            assert time.monotonic() - began < PATIENCE
    finally:
        daemon.stop()


def test_a_client_closes_though_the_daemon_does_not_hear_what_it_gave_back(daemon):
    client = kavern.Client(daemon.address, deadline=LONG)
    client.wait_until_attached(20)
    ns = client.open_namespace(spec_of())
    keys = keys_of(ns, 1, 1)
    ns.store(keys, [payload(key) for key in keys])
    lease = ns.fetch(keys)
    began = time.monotonic()
    with stopped(daemon):
        del lease, ns
        client.close(SHORT)
        assert time.monotonic() - began < PATIENCE
    client.close(SHORT)
    with pytest.raises(kavern.FailedPreconditionError):
        client.ping(SHORT)
    daemon.kill()  # what it did not hear of it keeps until this process ends: it would wait for that


def test_copies_of_pages_are_waited_for_by_the_deadline_and_never_left_behind(daemon, patient):
    ns = patient.open_namespace(spec_of())
    (key,) = keys_of(ns, 1, 1)
    ns.store([key], [payload(key)])
    memory = ctypes.create_string_buffer(PART_BYTES)
    layout = kavern.TensorLayout([(ctypes.addressof(memory), PART_BYTES, PART_BYTES)], 1)
    paged = kavern.PagedKv(ns, [layout], tensors=memory, load_deadline=LONG)
    began = time.monotonic()
    with stopped(daemon):
        number = paged.begin_load([([key], [0])])
        with pytest.raises(kavern.DeadlineExceededError, match="not closed"):
            paged.close(SHORT)
        assert time.monotonic() - began < PATIENCE
    assert paged.drain(PATIENCE)  # it still is what it was
    assert [(result.id, result.error) for result in paged.take_results()] == [(number, None)]
    assert memory.raw == payload(key)
    paged.close(PATIENCE)
    paged.close(SHORT)
    with pytest.raises(kavern.FailedPreconditionError):
        paged.take_results()


@pytest.mark.parametrize("deadline", [0, -1, float("nan")])
def test_a_deadline_that_is_none_is_refused(patient, deadline):
    for call in (patient.ping, patient.close):
        with pytest.raises(ValueError, match="deadline: got"):
            call(deadline)
    patient.ping()


# What answers without asking anybody.
NEVER_WAITS = {
    "BlockKeyChain": {"append", "keys_between", "set_extra_keys", "truncate"},
    "FetchLease": {"status", "checksum", "tier", "copy_to"},
    "KvLayout": {"of_model", "part_bytes"},
    "Namespace": {"chain", "report_prefill"},
    "StoreLease": {"fill", "set_checksum"},
    # Its calls end by the deadlines that it is made with, or wait for as long as `patience` says.
    "PagedKv": {"begin_load", "begin_store", "layer_written", "gather", "give_up", "take_results"},
}


def test_no_other_method_can_wait_without_a_deadline():
    stubs = ast.parse((pathlib.Path(kavern.__file__).parent / "_kavern.pyi").read_text())
    without, with_one = {}, 0
    for cls in (node for node in stubs.body if isinstance(node, ast.ClassDef)):
        for method in (node for node in cls.body if isinstance(node, ast.FunctionDef)):
            if method.name.startswith("_") or any(ast.unparse(d) == "property" for d in method.decorator_list):
                continue
            names = [argument.arg for argument in method.args.args + method.args.kwonlyargs]
            if "deadline" in names:
                with_one += 1
            else:
                without.setdefault(cls.name, set()).add(method.name)
    assert without == NEVER_WAITS
    assert with_one >= 15
