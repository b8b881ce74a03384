"""The exceptions of Kavern: one for every status code of the client library."""

from __future__ import annotations


class KavernError(Exception):
    """Any failed call. A cache may forget: go on without it."""

    code = 2


class CancelledError(KavernError):
    """What was asked for was called off, by the caller or with its lease, before it had ended."""

    code = 1


class InvalidArgumentError(KavernError, ValueError):
    """Names the field, what it was and what was expected."""

    code = 3


class DeadlineExceededError(KavernError, TimeoutError):
    """No answer by the deadline. What was asked for may have been done all the same."""

    code = 4


class NotFoundError(KavernError, LookupError):
    """A miss."""

    code = 5


class AlreadyExistsError(KavernError):
    """Of no call of this version: what exists is told by StoreOutcome.EXISTS."""

    code = 6


class PermissionDeniedError(KavernError):
    """The daemon has no tenant for this process's user, or not the one asked for, or the call is for operators."""

    code = 7


class ResourceExhaustedError(KavernError):
    """Refused by quota, admission or back-pressure: do not retry at once."""

    code = 8


class FailedPreconditionError(KavernError):
    """The client, namespace or lease is not valid, or not valid any more."""

    code = 9


class AbortedError(KavernError):
    """Of no call of this version: every status code has its exception."""

    code = 10


class OutOfRangeError(KavernError):
    """Of no call of this version: every status code has its exception."""

    code = 11


class UnimplementedError(KavernError, NotImplementedError):
    """Names the feature."""

    code = 12


class InternalError(KavernError):
    """The daemon or a device did what it must not: worth a report."""

    code = 13


class UnavailableError(KavernError, ConnectionError):
    """The daemon is away; the client attaches again by itself."""

    code = 14


class DataLossError(KavernError):
    """The bytes failed their checksum; the block was dropped."""

    code = 15


class UnauthenticatedError(KavernError):
    """The daemon does not know the session (any more); the client attaches again by itself."""

    code = 16


_BY_CODE = {cls.code: cls for cls in KavernError.__subclasses__()}


def from_code(code: int, message: str) -> KavernError:
    """The exception of a status code, not raised."""
    return _BY_CODE.get(code, KavernError)(message)
