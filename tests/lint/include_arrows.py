#!/usr/bin/env python3
"""Checks that #include lines follow the arrows of docs/ARCHITECTURE.md.

CMake's include roots already stop most wrong includes from compiling; this also sees headers that nothing
compiles, relative includes, and includes that a transitively linked target would let through.

Usage: include_arrows.py ROOT            exit 1 and one line per violation
       include_arrows.py --self-test     proves that the check can fail
"""

from __future__ import annotations

import pathlib
import re
import sys
import tempfile

# folder -> what it may include of ours. "messages" are the generated kavern/v1/*.pb.h,
# "grpc" the generated kavern/v1/*.grpc.pb.h and gRPC's own headers, "shm" the one header of proto/.
ALLOWED: dict[str, set[str]] = {
    "base": {"base"},
    "proto": {"shm"},
    "tiers/policy": {"base", "tiers"},
    "tiers": {"base", "shm", "tiers"},
    "service/session": {"base", "shm", "tiers", "service"},
    "service": {"base", "shm", "messages", "grpc", "tiers", "service"},
    "client": {"base", "shm", "messages", "grpc", "client"},
    "tests": {"base", "shm", "messages", "grpc", "tiers", "service", "client", "tests"},
}
# The only files of the product that know gRPC: sanitizers and fuzzers reach everything else.
GRPC_FILES = (
    "service/grpc_calls", "service/grpc_server", "service/daemon",
    "client/admin_client", "client/client_factory", "client/grpc_control_plane",
)

INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]')


def kind_of(target: str) -> str | None:
    """Which of our folders an include path names; None for everything that is not ours."""
    if target.startswith("proto/"):
        return "shm"
    if target.startswith("kavern/v1/"):
        return "grpc" if target.endswith(".grpc.pb.h") else "messages"
    if target.startswith(("grpc/", "grpcpp/", "grpc++/")):
        return "grpc"
    head = target.split("/", 1)[0]
    return head if head in {"base", "tiers", "service", "client", "tests"} else None


def violations(root: pathlib.Path) -> list[str]:
    found = []
    folders = ("base", "proto", "tiers", "service", "client", "tests")
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in {".h", ".cc"}:
                continue
            name = path.relative_to(root).as_posix()
            rule = max((r for r in ALLOWED if name.startswith(r + "/")), key=len)
            for number, line in enumerate(path.read_text().splitlines(), 1):
                match = INCLUDE.match(line)
                if not match:
                    continue
                target = match.group(1)
                where = f"{name}:{number}: includes {target}: "
                kind = kind_of(target)
                if ".." in target.split("/"):
                    found.append(where + "name the file from the top of the tree")
                elif kind is not None and kind not in ALLOWED[rule]:
                    found.append(where + f"{rule}/ may include only {', '.join(sorted(ALLOWED[rule]))}")
                elif kind == "grpc" and rule != "tests" \
                        and name.rsplit(".", 1)[0] not in GRPC_FILES:
                    found.append(where + f"only {', '.join(GRPC_FILES)} may know gRPC")
                elif rule == "tiers/policy" and kind == "tiers" \
                        and not target.startswith("tiers/policy/"):
                    found.append(where + "policies take facts: they know base and each other only")
    return found


def self_test() -> int:
    planted = {
        "base/a.h": '#include "tiers/b.h"',
        "tiers/b.h": '#include "service/c.h"',
        "tiers/d.cc": "#include <grpcpp/grpcpp.h>",
        "tiers/policy/e.cc": '#include "tiers/index/block_index.h"',
        "client/f.cc": '#include "tiers/b.h"',
        "service/g.cc": '#include "tests/fakes/h.h"',
        "client/attachment.cc": '#include "kavern/v1/kavern.grpc.pb.h"',
        "client/cli/j.cc": "#include <grpcpp/grpcpp.h>",
        "service/daemon_status.cc": "#include <grpcpp/grpcpp.h>",
        "service/i.cc": '#include "../base/a.h"',
    }
    allowed = {
        "service/grpc_server.cc": '#include "tiers/b.h"\n#include "kavern/v1/kavern.grpc.pb.h"',
        "tests/ok.cc": '#include "service/c.h"\n#include "client/f.h"',
    }
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory)
        for name, text in {**planted, **allowed}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text + "\n")
        found = violations(root)
    caught = {line.split(":", 1)[0] for line in found}
    missed = set(planted) - caught
    wrong = caught - set(planted)
    if missed or wrong:
        print(f"self-test: not caught {sorted(missed)}, wrongly caught {sorted(wrong)}")
        return 1
    print(f"self-test: caught all {len(planted)} planted violations and nothing else")
    return 0


def main() -> int:
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    found = violations(pathlib.Path(sys.argv[1]))
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
