"""Conversations that requests name in their kv_transfer_params: what they say, and telling the daemon of it."""

from __future__ import annotations

import difflib
import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import kavern

logger = logging.getLogger("vllm.kavern")

_NAME, _PRIORITY, _TTL = "kavern.conversation", "kavern.priority", "kavern.ttl_s"
_NAME_BYTES_MAX = 240  # the daemon's limit, less what scoping adds
_PRIORITY_DEFAULT = 50
_TTL_MAX_S = 1e12  # an integer of JSON may be more than any float


@dataclass(frozen=True)
class Wish:
    """What a request asks for. None: as the daemon is configured."""

    name: str  # the daemon's: scoped
    priority: int | None = None
    ttl_s: float | None = None

    def within(self, limits: kavern.ConversationLimits) -> tuple[int, float]:
        """Priority and seconds that the daemon makes of it."""
        priority = _PRIORITY_DEFAULT if self.priority is None else self.priority
        ttl_s = limits.ttl_default if self.ttl_s is None else self.ttl_s
        return min(priority, limits.priority_max), min(ttl_s, limits.ttl_max)


def wish_of(params: Mapping[str, Any] | None, salt: str | None) -> Wish | None:
    """None: the request says nothing of conversations. Raises ValueError, which names the key and what was expected."""
    ours = {key: value for key, value in (params or {}).items() if key.startswith("kavern.")}
    if not ours:
        return None
    known = (_NAME, _PRIORITY, _TTL)
    for key in ours:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ValueError(f"unknown key {key}; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"))
    name, priority, ttl_s = (ours.get(key) for key in known)
    if name is None:
        raise ValueError(f"{' and '.join(ours)} without {_NAME}")
    # As JSON has it, a string may hold half a character.
    if not isinstance(name, str) or not 0 < len(name.encode(errors="replace")) <= _NAME_BYTES_MAX:
        raise ValueError(f"{_NAME}: got {_shown(name)}, expected a string of 1 to {_NAME_BYTES_MAX} bytes")
    if priority is not None and (type(priority) is not int or not 0 <= priority <= 100):
        raise ValueError(f"{_PRIORITY}: got {_shown(priority)}, expected an integer from 0 to 100")
    if ttl_s is not None and (type(ttl_s) not in (int, float) or not 0 < ttl_s < _TTL_MAX_S):
        raise ValueError(f"{_TTL}: got {_shown(ttl_s)}, expected seconds above 0")
    return Wish(_scoped(name, salt), priority, None if ttl_s is None else float(ttl_s))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."


def _scoped(name: str, salt: str | None) -> str:
    """No two salts, and no salt and none, have a name in common."""
    raw = name.encode(errors="surrogatepass")
    if not salt:
        # Half characters cannot be sent as they are.
        return f"plain:{name}" if name.isprintable() else f"hashed:{hashlib.sha256(raw).hexdigest()}"
    salted = salt.encode(errors="surrogatepass")
    return f"salted:{hashlib.sha256(len(salted).to_bytes(8, 'big') + salted + raw).hexdigest()}"


@dataclass
class _Turn:
    namespace: kavern.Namespace
    wish: Wish
    keys: list[bytes]
    until: float  # then it is told of what has been stored by then


class Teller:
    """Tells the daemon of turns that ended, in a thread of its own: the engine waits for no answer.

    The turn's last blocks may still be on their way when it ends; the directory says when they are there.
    """

    QUEUED_MAX = 1024
    LOOK_EVERY_S = 0.01

    def __init__(self, patience_s: float):
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._turns: list[_Turn] = []
        self._outcomes: deque[str] = deque()  # names of counters
        self._closed = False
        self._thread: threading.Thread | None = None
        self._complained = False

    def tell(self, namespace: kavern.Namespace, wish: Wish, keys: list[bytes]) -> bool:
        """keys: of the turn's blocks, from the first on. False: too many wait already, it is not told."""
        turn = _Turn(namespace, wish, keys, time.monotonic() + self._patience_s)
        with self._changed:
            if self._closed or len(self._turns) >= self.QUEUED_MAX:
                self._outcomes.append("conversation_failures")
                return False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kavern-teller", daemon=True)
                self._thread.start()
            self._turns.append(turn)
            self._changed.notify()
        return True

    def take_outcomes(self) -> list[str]:
        """Names of counters, one for each turn since the last call."""
        return [self._outcomes.popleft() for _ in range(len(self._outcomes))]

    def close(self) -> None:
        """What waits is not told any more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._turns and not self._closed:
                    self._changed.wait(self.LOOK_EVERY_S)
                while not self._turns and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                turns = list(self._turns)
            # In order: of two turns of one conversation the later one is what counts.
            held: set[str] = set()
            done = []
            for turn in turns:
                if turn.wish.name not in held and self._is_due(turn):
                    self._tell(turn)
                    done.append(turn)
                else:
                    held.add(turn.wish.name)
            with self._changed:
                self._turns = [turn for turn in self._turns if not any(turn is other for other in done)]

    @staticmethod
    def _is_due(turn: _Turn) -> bool:
        return turn.namespace.match(turn.keys[-1:]) == 1 or time.monotonic() >= turn.until

    def _tell(self, turn: _Turn) -> None:
        try:
            # From the first block on: what does not follow its ancestors is of no use to the next turn.
            blocks = turn.namespace.match(turn.keys)
            if blocks == 0:
                raise kavern.NotFoundError("none of its blocks is stored")
            turn.namespace.update_conversation(
                turn.wish.name,
                turn.keys[blocks - 1],
                blocks * turn.namespace.spec.layout.tokens_per_block,
                priority=turn.wish.priority,
                ttl=turn.wish.ttl_s,
            )
            self._outcomes.append("conversations")
        except kavern.KavernError as error:
            self._outcomes.append("conversation_failures")
            log = logger.debug if self._complained else logger.warning
            self._complained = True
            log("Kavern: a conversation could not be told to the daemon: %s", error)
