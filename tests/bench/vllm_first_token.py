#!/usr/bin/env python3
"""Time to the first token of a turn: prefix in Kavern after the engine was killed and started again, prefix still in the
engine, prefix nowhere; and what Kavern costs when nothing hits. The three in turn in each of the engine's lives, after
a warm-up of the same shape with other tokens, so that they meet the same machine.

    build/vllm/bin/python tests/bench/vllm_first_token.py --address unix:///run/kavern/kavern.sock

Prints medians and the middle half of all repetitions. A benchmark, not a test: it fails for nothing.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import math
import os
import pathlib
import random
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy/vllm"))

from engine import Engine, transfer_config  # noqa: E402

# Kavern's own, and gRPC's, which nothing else in vLLM starts.
CLIENT_THREADS = ("kavern-", "grpc_", "default-execut", "resolver-execu", "event_engine", "timer_manager")
# Quantiles of Student's t distribution, by degrees of freedom: 97.5 %.
STUDENT_95 = {4: 2.776, 9: 2.262, 14: 2.145, 19: 2.093, 29: 2.045}


def completion(engine: Engine, prompt: list[int], salt: str) -> float:
    """Seconds until the first token of a completion of one token."""
    body = {"model": "model", "prompt": prompt, "max_tokens": 1, "temperature": 0, "cache_salt": salt}
    began = time.monotonic()
    connection, response = engine.post("/v1/completions", body)
    response.read()
    connection.close()
    return time.monotonic() - began


def spread(seconds: list[float]) -> str:
    low, middle, high = statistics.quantiles(seconds, n=4)
    return f"{statistics.median(seconds) * 1e3:8.1f} ms  ({low * 1e3:.1f} to {high * 1e3:.1f})"


def against_target(value: float, target: float, unit: str = "", digits: int = 2) -> str:
    return f"(target <= {target:.{digits}f}{unit}: {'met' if value <= target else 'MISSED'})"


def copy_bytes_per_second(size: int) -> float:
    """One thread's plain copy, between buffers of that size: the median of nine."""
    source, target = bytearray(os.urandom(1 << 20)) * (size >> 20), bytearray(size >> 20 << 20)
    seconds = []
    for _ in range(9):
        began = time.perf_counter()
        memoryview(target)[:] = source
        seconds.append(time.perf_counter() - began)
    return len(source) / statistics.median(seconds)


def loads(engine: Engine) -> tuple[float, float]:
    """How many there were, and their bytes."""
    samples = engine.metrics()
    return samples.get("vllm:kavern_loads_total", 0.0), samples.get("vllm:kavern_load_bytes_total", 0.0)


class Tokens:
    """Random ones: no two calls of prompt() have a block in common but for the prefix."""

    def __init__(self, seed: int):
        self._draw = random.Random(seed)

    def prompt(self, prefix: list[int], new_tokens: int) -> list[int]:
        return prefix + [self._draw.randrange(100, 40000) for _ in range(new_tokens)]


def restart(engine: Engine, shapes: list[tuple[int, int]], tokens: Tokens) -> None:
    """An engine that has just started takes several times as long for the first request of a shape."""
    engine.kill()
    engine.start()
    for prefix_tokens, new_tokens in shapes:
        prefix = tokens.prompt([], prefix_tokens)
        for _ in range(2):  # computed, and with its prefix there
            completion(engine, tokens.prompt(prefix, new_tokens), "warm-up")


def first_tokens(engine: Engine, shapes: list[tuple[int, int]], lives: int) -> None:
    """shapes: tokens of prefix, new tokens."""
    tokens = Tokens(1)
    prefixes = {shape: tokens.prompt([], shape[0]) for shape in shapes}
    for prefix in prefixes.values():
        completion(engine, prefix, "kept")
    arms = {shape: {"engine": [], "kavern": [], "recompute": []} for shape in shapes}
    loaded = {shape: [0.0, 0.0] for shape in shapes}
    for life in range(lives):
        restart(engine, shapes, tokens)
        for shape in shapes:
            before = loads(engine)
            took = {"kavern": completion(engine, tokens.prompt(prefixes[shape], shape[1]), "kept")}
            loaded[shape] = [grown + now - then for grown, now, then in zip(loaded[shape], loads(engine), before)]
            took["engine"] = completion(engine, tokens.prompt(prefixes[shape], shape[1]), "kept")
            took["recompute"] = completion(engine, tokens.prompt(prefixes[shape], shape[1]), f"salt {life}")
            for arm, seconds in took.items():
                arms[shape][arm].append(seconds)
    for shape in shapes:
        count, size = loaded[shape]
        assert count == lives, "a prefix was not in Kavern"
        print(f"{shape[0]} tokens of prefix, {shape[1]} new, {lives} restarts of the engine")
        tell(arms[shape], size / count)


def tell(arms: dict[str, list[float]], load_bytes: float) -> None:
    for arm, seconds in arms.items():
        print(f"  {arm:10} {spread(seconds)}")
    engine_s, kavern_s, recompute_s = (statistics.median(arms[arm]) for arm in ("engine", "kavern", "recompute"))
    copy_speed = copy_bytes_per_second(int(load_bytes))
    may_add_ms = 1e3 * load_bytes / copy_speed + 10
    ratio, added_ms = kavern_s / engine_s, 1e3 * (kavern_s - engine_s)
    print(f"  kavern / engine {ratio:.3f} {against_target(ratio, 1.10)}; kavern / recompute {kavern_s / recompute_s:.3f}")
    print(f"  added {added_ms:.1f} ms {against_target(added_ms, may_add_ms, ' ms', 1)}", end="")
    print(f", which is {load_bytes / 1e6:.0f} MB at memcpy's {copy_speed / 1e9:.1f} GB/s, and 10 ms")


def last_turns(engine: Engine, lives: int) -> None:
    """Three conversations of four turns, 1,917 tokens at the last, before which the engine is killed."""
    tokens = Tokens(2)
    lengths = [479, 958, 1438, 1917]
    arms: dict[str, list[float]] = {"kavern": [], "recompute": []}
    for life in range(lives):
        conversations = [tokens.prompt([], lengths[-1]) for _ in range(3)]
        for length in lengths[:-1]:
            for conversation in conversations:
                completion(engine, conversation[:length], "kept")
        restart(engine, [(lengths[-2], lengths[-1] - lengths[-2])], tokens)
        for number, conversation in enumerate(conversations):
            arms["kavern"].append(completion(engine, conversation, "kept"))
            arms["recompute"].append(completion(engine, conversation, f"salt {life} {number}"))
    print(f"last of 4 turns, {lengths[-1]} tokens, 3 conversations, {lives} restarts of the engine")
    for arm, seconds in arms.items():
        print(f"  {arm:10} {spread(seconds)}")
    kavern_s, recompute_s = (statistics.median(arms[arm]) for arm in ("kavern", "recompute"))
    print(f"  kavern / recompute {kavern_s / recompute_s:.3f} {against_target(kavern_s / recompute_s, 0.40)}")


def kavern_cpu_seconds(engine: Engine) -> float:
    """CPU time of the threads that Kavern's client and its gRPC have in the engine's processes."""
    total = 0
    for process in engine.processes():
        for task in pathlib.Path(f"/proc/{process}/task").iterdir():
            if (task / "comm").read_text().startswith(CLIENT_THREADS):
                total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def nothing_hits(engines: dict[str, Engine], rounds: int, requests: int, tokens: int) -> None:
    """Engines without Kavern ("plain", "again") and one with it in turn, the same prompts, none of them seen before."""
    draw = random.Random(1)
    kavern = engines["kavern"]

    def round_s(engine: Engine, prompts: list[list[int]]) -> float:
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda prompt: completion(engine, prompt, "never again"), prompts))
        return time.monotonic() - began

    took: dict[str, list[float]] = {name: [] for name in engines}
    before, cpu_before = {}, 0.0
    for number in range(-1, rounds):
        if number == 0:  # the first round warmed up
            before, cpu_before = kavern.metrics(), kavern_cpu_seconds(kavern)
        prompts = [[draw.randrange(100, 40000) for _ in range(tokens)] for _ in range(requests)]
        for name in draw.sample(sorted(engines), len(engines)):
            seconds = round_s(engines[name], prompts)
            if number >= 0:
                took[name].append(seconds)
    after, cpu = kavern.metrics(), kavern_cpu_seconds(kavern) - cpu_before
    grown = {name: after[f"vllm:kavern_{name}_total"] - before.get(f"vllm:kavern_{name}_total", 0.0)
             for name in ("hook_seconds", "save_bytes", "hit_tokens", "save_failures")}  # fmt: skip
    assert grown["hit_tokens"] == 0
    wall = sum(took["kavern"])
    print(f"nothing hits: {rounds} rounds of {requests} requests of {tokens} tokens, each round by every engine")
    for name, seconds in took.items():
        print(f"  {name:10} {rounds * requests / sum(seconds):.3f} requests a second{against(took['plain'], seconds, name)}")
    print(f"  {grown['save_bytes'] / 1e6:.0f} MB saved in {wall:.1f} s; {grown['save_failures']:.0f} saves failed")
    print(f"  in hooks {grown['hook_seconds'] * 1e3:.0f} ms, CPU time of Kavern's threads {cpu * 1e3:.0f} ms:", end="")
    percent = 100 * (grown["hook_seconds"] + cpu) / wall
    print(f" {percent:.2f} % of the time {against_target(percent, 1.0, ' %', 0)}; plain copies of as many bytes", end="")
    print(f" {1e3 * grown['save_bytes'] / copy_bytes_per_second(64 << 20):.0f} ms")


def against(plain: list[float], other: list[float], name: str) -> str:
    if other is plain:
        return ""
    logs = [math.log(one / two) for one, two in zip(plain, other)]
    mean, error = statistics.mean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    low, high = (math.exp(mean + sign * STUDENT_95[len(logs) - 1] * error) for sign in (-1, 1))
    return f"; {name} / plain {math.exp(mean):.3f} (95 % of a paired t-test: {low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True)
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "build/models/smollm2-135m-instruct")
    parser.add_argument("--lives", type=int, default=7, help="of the engine, each with all first tokens (default 7; 0: none)")
    parser.add_argument("--rounds", type=int, default=10, choices=sorted(n + 1 for n in STUDENT_95),
                        help="pairs of rounds where nothing hits (default 10)")  # fmt: skip
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:

        def engine(name: str, transfer: dict | None) -> Engine:
            (pathlib.Path(directory) / name).mkdir()
            return Engine(
                sys.executable,
                options.model,
                pathlib.Path(directory) / name,
                kv_transfer_config=transfer,
                arguments=["--max-model-len", "4096"],
            )

        with (
            engine("kavern", transfer_config(options.address)) as kavern,
            engine("plain", None) as plain,
            engine("again", None) as again,
        ):
            kavern.start()
            if options.lives > 0:
                first_tokens(kavern, [(1792, 32), (1792, 256)], options.lives)
                last_turns(kavern, (options.lives + 1) // 2)
            plain.start()
            again.start()
            nothing_hits({"plain": plain, "again": again, "kavern": kavern}, options.rounds, 16, 512)


if __name__ == "__main__":
    main()
