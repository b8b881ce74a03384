"""Kavern's client: keep the KV blocks of conversations in kavernd, and take them back.

    client = kavern.Client("unix:///run/kavern/kavern.sock")
    client.wait_until_attached()                                       # raises where there is no daemon in time
    ns = client.open_namespace(kavern.NamespaceSpec("llama-3-8b", kavern.KvLayout.of_model("llama-3-8b", 16)))
    chain = ns.chain()
    chain.append(token_ids)
    cached = ns.match(chain.keys)                                      # shared memory, no call
    if cached:
        fetched = ns.fetch_into(chain.keys[:cached], blocks[:cached])  # copied and verified
    ...                                                                # prefill the rest
    if cached < len(chain):
        ns.store(chain.keys[cached:], blocks[cached:], parent=chain.keys[cached - 1] if cached else None)

A cache may forget: every call may raise, and the worker then recomputes. It never lies: bytes that a call reports as
fetched are the bytes stored under that key.
"""

from kavern._kavern import (
    BlockKeyChain,
    Client,
    ConnectionInfo,
    ConversationInfo,
    ConversationLimits,
    ConversationTerms,
    Durability,
    FetchLease,
    FetchResult,
    KvLayout,
    LayerGroup,
    LayerGroupKind,
    Namespace,
    NamespaceSpec,
    PagedKv,
    PagedResult,
    PlanRange,
    PrefetchProgress,
    StoreLease,
    StoreOutcome,
    StoreResult,
    TensorLayout,
    TurnPlan,
)
from kavern.errors import (
    AbortedError,
    AlreadyExistsError,
    CancelledError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    KavernError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)

__all__ = [
    "AbortedError",
    "AlreadyExistsError",
    "BlockKeyChain",
    "CancelledError",
    "Client",
    "ConnectionInfo",
    "ConversationInfo",
    "ConversationLimits",
    "ConversationTerms",
    "DataLossError",
    "DeadlineExceededError",
    "Durability",
    "FailedPreconditionError",
    "FetchLease",
    "FetchResult",
    "InternalError",
    "InvalidArgumentError",
    "KavernError",
    "KvLayout",
    "LayerGroup",
    "LayerGroupKind",
    "Namespace",
    "NamespaceSpec",
    "NotFoundError",
    "OutOfRangeError",
    "PagedKv",
    "PagedResult",
    "PermissionDeniedError",
    "PlanRange",
    "PrefetchProgress",
    "ResourceExhaustedError",
    "StoreLease",
    "StoreOutcome",
    "StoreResult",
    "TensorLayout",
    "TurnPlan",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
]
