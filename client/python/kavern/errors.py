"""The exceptions of Kavern: one for every status code of the client library."""

from __future__ import annotations


class KavernError(Exception):
    """Any failed call. A cache may forget: go on without it."""

    code = 2


class CancelledError(KavernError):
    code = 1


class InvalidArgumentError(KavernError, ValueError):
    """Names the field, what it was and what was expected."""

    code = 3


class DeadlineExceededError(KavernError, TimeoutError):
    code = 4


class NotFoundError(KavernError, LookupError):
    """A miss."""

    code = 5


class AlreadyExistsError(KavernError):
    code = 6


class PermissionDeniedError(KavernError):
    code = 7


class ResourceExhaustedError(KavernError):
    """Refused by quota, admission or back-pressure: do not retry at once."""

    code = 8


class FailedPreconditionError(KavernError):
    """The client, namespace or lease is not valid, or not valid any more."""

    code = 9


class AbortedError(KavernError):
    code = 10


class OutOfRangeError(KavernError):
    code = 11


class UnimplementedError(KavernError, NotImplementedError):
    """Names the feature."""

    code = 12


class InternalError(KavernError):
    code = 13


class UnavailableError(KavernError, ConnectionError):
    """The daemon is away; the client attaches again by itself."""

    code = 14


class DataLossError(KavernError):
    """The bytes failed their checksum; the block was dropped."""

    code = 15


class UnauthenticatedError(KavernError):
    code = 16


_BY_CODE = {cls.code: cls for cls in KavernError.__subclasses__()}


def from_code(code: int, message: str) -> KavernError:
    """The exception of a status code, not raised."""
    return _BY_CODE.get(code, KavernError)(message)
