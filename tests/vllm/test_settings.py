"""What the connector refuses to start with, and how long it leaves a daemon in trouble alone."""

from types import SimpleNamespace

import kavern
import pytest
from kavern.vllm import settings
from kavern.vllm.identity import check_version
from kavern.vllm.link import Breaker
from kavern.vllm.worker import is_trouble


@pytest.mark.parametrize(
    "extra, message",
    [
        ({"kavern.adress": "x"}, "did you mean kavern.address"),
        ({"kavern_address": "unix:///x"}, "they begin with kavern."),
        ({"address": "unix:///x"}, "address is no key of Kavern's"),
        ({"kavern.copy_threads": "2"}, "kavern.copy_threads: got '2', expected int"),
        ({"kavern.copy_threads": True}, "expected int"),
        ({"kavern.load_timeout_s": 0}, "expected a number above 0"),
        ({"kavern.verify_checksums": 1}, "expected bool"),
    ],
)
def test_settings_say_what_they_expected(extra, message):
    with pytest.raises(ValueError, match=message):
        settings.parse(extra)
    assert settings.parse({"kavern.load_timeout_s": 3, "other.key": 1}).load_timeout_s == 3.0


@pytest.mark.parametrize("version", ["0.31.0", "0.32.1", "0.33.1", "1.0"])
def test_a_release_that_was_not_tried_is_refused(version):
    with pytest.raises(kavern.UnimplementedError, match=f"vLLM {version}: this connector was tried with"):
        check_version(version, untried=False)
    check_version(version, untried=True)
    check_version("0.32.0+cpu", untried=False)


def test_trouble_rests_the_daemon_and_success_ends_it():
    now = [0.0]
    breaker = Breaker(clock=lambda: now[0])
    rests = []
    for _ in range(6):
        breaker.trouble()
        breaker.trouble()  # of something asked before: counts once
        began = now[0]
        while not breaker.closed:
            now[0] += 0.25
        rests.append(now[0] - began)
    assert rests == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    breaker.success()
    breaker.trouble()
    assert not breaker.closed
    now[0] += 0.5
    assert breaker.closed


def test_a_load_of_which_a_part_came_too_late_is_trouble():
    gone, late = kavern.NotFoundError("gone"), kavern.DeadlineExceededError("late")
    for error, errors, trouble in (
        (None, [[None, None]], False),
        (None, [[None, gone], [gone]], False),
        (None, [[None, None], [None, late]], True),
        (kavern.UnavailableError("away"), [[]], True),
        (kavern.ResourceExhaustedError("full"), [], False),
    ):
        assert is_trouble(SimpleNamespace(error=error, errors=errors)) is trouble
