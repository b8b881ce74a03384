#!/usr/bin/env python3
"""A real chat model takes its conversation back: once after the engine was killed, once after engine and daemon were.
Called by deploy/quickstart.sh --with-vllm.

    demo.py --python ENVIRONMENT/bin/python --model FOLDER --binaries build/release/bin --directory EMPTY_FOLDER
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from dataclasses import dataclass

from conversations import play
from engine import Answer, Engine, transfer_config
from kavern_daemon import Daemon

_TURNS = 6
_MAX_TOKENS = 32
# Turns counted from 0.
_ENGINE_KILLED_BEFORE = 4
_BOTH_KILLED_BEFORE = 5
_KILLED = {_ENGINE_KILLED_BEFORE: "engine", _BOTH_KILLED_BEFORE: "engine and daemon"}

# vLLM's name of a source of cached prompt tokens: the table's.
_SOURCES = {"device": "engine", "host": "RAM", "disk": "NVMe"}


@dataclass
class Turn:
    answer: Answer
    cached: dict[str, int]  # prompt tokens that were not computed, by where they came from


def cached_so_far(engine: Engine) -> dict[str, int]:
    samples = engine.metrics()
    name = 'vllm:prompt_tokens_cached_by_source_total{source="%s"}'
    return {ours: int(samples.get(name % theirs, 0)) for theirs, ours in _SOURCES.items()}


def start(engine: Engine, label: str) -> None:
    engine.start()
    # The first request of a shape is slow in every engine.
    warm_up: list[dict] = []
    for _ in range(_TURNS):
        warm_up.append({"role": "user", "content": f"Warm-up {label}. " + "All is well. " * 90})
        warm_up.append({"role": "assistant", "content": "Yes."})
    engine.chat(warm_up[:-1], 4)


def kill(engine: Engine, daemon: Daemon | None, turn: int) -> None:
    """What is killed before a turn; the daemon is started again."""
    if daemon is not None:
        daemon.wait_until_written()
    engine.kill()
    if daemon is not None and turn == _BOTH_KILLED_BEFORE:
        daemon.kill()
        daemon.start()


def play_all(engine: Engine, daemon: Daemon | None, label: str) -> list[Turn]:
    turns, history = [], []
    print(f"   {label}: start", flush=True)
    start(engine, label)
    for turn in range(_TURNS):
        if turn in _KILLED:
            what = _KILLED[turn] if daemon is not None else "engine"
            print(f"   {label}: SIGKILL to {what}, start again", flush=True)
            kill(engine, daemon, turn)
            start(engine, label)
        before = cached_so_far(engine)
        answer = play(engine, 0, history, turn, _MAX_TOKENS)
        after = cached_so_far(engine)
        turns.append(Turn(answer, {source: after[source] - before[source] for source in after}))
        print(f"   {label}: turn {turn + 1}, first token after {answer.first_token_s:.2f} s", flush=True)
    return turns


def print_table(mine: list[Turn], plain: list[Turn]) -> None:
    print("\n        prompt     cached tokens, from     first token, s         same    killed")
    print("  turn  tokens  engine     RAM    NVMe  with Kavern  without  answer    before")
    for turn, (ours, theirs) in enumerate(zip(mine, plain)):
        cached = "  ".join(f"{ours.cached[source]:6}" for source in _SOURCES.values())
        same = "yes" if ours.answer.text == theirs.answer.text else "NO"
        row = f"  {turn + 1:4}  {ours.answer.prompt_tokens:6}  {cached}  {ours.answer.first_token_s:11.2f}"
        print(f"{row}  {theirs.answer.first_token_s:7.2f}  {same:>6}    {_KILLED.get(turn, '')}".rstrip())


def complaints(mine: list[Turn], plain: list[Turn]) -> list[str]:
    """What must not be."""
    found = []
    if any(ours.answer.text != theirs.answer.text for ours, theirs in zip(mine, plain)):
        found.append("An answer differs.")
    if mine[_ENGINE_KILLED_BEFORE].cached["RAM"] == 0:
        found.append("After the engine was killed, nothing came out of Kavern.")
    last = mine[_BOTH_KILLED_BEFORE]
    if 2 * last.cached["NVMe"] <= last.answer.prompt_tokens:
        found.append("After engine and daemon were killed, less than half of the prompt came from NVMe.")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--binaries", type=pathlib.Path, required=True, help="folder of kavernd and kavern")
    parser.add_argument("--directory", type=pathlib.Path, required=True)
    options = parser.parse_args()

    # Debian's oldest processors have no instructions for bfloat16, and take ten times as long with it.
    arguments = ["--dtype", "float32"]
    folders = {name: options.directory / name for name in ("without", "with", "daemon")}
    for folder in folders.values():
        folder.mkdir()
    with Engine(options.python, options.model, folders["without"], arguments=arguments) as engine:
        plain = play_all(engine, None, "without Kavern")
    with Daemon(options.binaries, folders["daemon"]) as daemon:
        daemon.start()
        transfer = transfer_config(daemon.address)
        with Engine(
            options.python, options.model, folders["with"], kv_transfer_config=transfer, arguments=arguments
        ) as engine:
            mine = play_all(engine, daemon, "with Kavern")

    print_table(mine, plain)
    for complaint in complaints(mine, plain):
        print(complaint, file=sys.stderr)
    return 1 if complaints(mine, plain) else 0


if __name__ == "__main__":
    sys.exit(main())
