"""Conversations to play: what users say, long enough that history is worth keeping."""

from __future__ import annotations

_SUBJECTS = [
    ("tides", "the moon", "harbours", "fishermen", "salt marshes"),
    ("bread", "yeast", "millers", "ovens", "long winters"),
    ("bridges", "arches", "rivers", "masons", "heavy carts"),
    ("clocks", "pendulums", "sailors", "towers", "quiet rooms"),
]

_TURNS = [
    "Here are my notes about {0}. {notes} First, tell me in one sentence what these notes are about.",
    "Now think of {1}. {notes} What do they have to do with {0}?",
    "I also wrote this about {2}. {notes} Which of it surprises you?",
    "My friend knows more about {3}. {notes} What should I ask?",
    "Last of all, {4}. {notes} Sum up our talk about {0} in one sentence.",
    "And once more, shorter, please. {notes}",
]


def user_turn(conversation: int, turn: int, sentences: int = 12) -> str:
    """What the user of a conversation says in a turn, both counted from 0."""
    words = _SUBJECTS[conversation % len(_SUBJECTS)]
    notes = " ".join(
        f"Note {turn + 1}.{i + 1}: {words[i % 5]} and {words[(i * 2 + turn) % 5]} were seen {i + 3 + conversation} times "
        f"near {words[(i + turn + 1) % 5]}."
        for i in range(sentences)
    )
    return _TURNS[turn % len(_TURNS)].format(*words, notes=notes)


def play(engine, conversation: int, history: list[dict], turn: int, max_tokens: int, **extra):
    """Plays one turn; history grows by it. Returns the engine's answer."""
    history.append({"role": "user", "content": user_turn(conversation, turn)})
    answer = engine.chat(history, max_tokens, **extra)
    history.append({"role": "assistant", "content": answer.text})
    return answer
