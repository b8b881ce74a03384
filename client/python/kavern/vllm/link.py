"""One process's connection to the daemon: opened when it is there, rested when it is in trouble."""

from __future__ import annotations

import concurrent.futures
import logging
import time

import kavern

logger = logging.getLogger("vllm.kavern")


class Breaker:
    """Keeps an engine from waiting for a daemon that does not answer, again and again.

    After trouble nothing is asked of it for a while, which doubles up to a maximum with every trouble after that and
    starts anew after a success.
    """

    FIRST_S = 0.5
    MAX_S = 8.0

    def __init__(self, clock=time.monotonic):
        self._clock = clock
        self._rest_s = 0.0
        self._until = 0.0

    @property
    def closed(self) -> bool:
        """Whether the daemon may be asked."""
        return self._clock() >= self._until

    def trouble(self) -> None:
        if not self.closed:
            return  # of something asked before
        if self._rest_s == 0.0:
            logger.warning("Kavern does not answer: going on without it, trying again from time to time")
        self._rest_s = min(max(self._rest_s * 2, self.FIRST_S), self.MAX_S)
        self._until = self._clock() + self._rest_s

    def success(self) -> None:
        if self._rest_s > 0.0:
            logger.warning("Kavern answers again")
        self._rest_s = 0.0
        self._until = 0.0


class Link:
    """A client, and the namespace of this engine's KV once the daemon has been there."""

    RETRY_S = 1.0
    # How long a step waits for the answer; it may come to a later one.
    OPEN_PATIENCE_S = 0.05

    def __init__(self, settings, name: str):
        self._settings = settings
        self._name = name
        self.breaker = Breaker()
        self._client = kavern.Client(
            settings.address,
            tenant=settings.tenant,
            client_name=name,
            deadline=settings.load_timeout_s,
            copy_threads=settings.copy_threads,
            verify_checksums=settings.verify_checksums,
            any_processor=True,
        )
        self._spec = None
        self._namespace = None
        self._tenant = ""  # of the namespace
        self._was_attached = False
        self._opener = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="kavern-open")
        self._opening: concurrent.futures.Future | None = None  # of _spec
        self._retry_at = 0.0
        self._warned = False

    def use(self, spec: kavern.NamespaceSpec, wait_s: float = 0.0) -> None:
        """What namespace() opens from now on. wait_s: how long to wait for the daemon here."""
        self._spec = spec
        self._namespace = self._opening = None
        self._retry_at = 0.0
        if wait_s > 0:
            try:
                self._client.wait_until_attached(deadline=wait_s)
            except kavern.KavernError:
                pass  # said by namespace()
        self._open(max(wait_s, self.OPEN_PATIENCE_S))

    def poll(self) -> bool:
        """Once a step. Whether all keys are others from now on: the daemon came back with another tenant for this process."""
        connection = self._client.connection
        if connection.attached and not self._was_attached:
            logger.info("Kavern: %s attached to %s as tenant %s", self._name, self._settings.address, connection.tenant)
        elif self._was_attached and not connection.attached:
            logger.warning("Kavern: %s goes on without the daemon, which is away", self._name)
        self._was_attached = connection.attached
        if not connection.attached or self._namespace is None or connection.tenant == self._tenant:
            return False
        logger.warning("Kavern: the daemon came back with another tenant, %s, which shares nothing", connection.tenant)
        self.use(self._spec)
        return True

    def namespace(self) -> kavern.Namespace | None:
        """None while the daemon has never been there. Keys are unknown until then: the tenant is part of them."""
        if self._namespace is None and self._spec is not None:
            self._open(self.OPEN_PATIENCE_S)
        return self._namespace

    def _open(self, patience_s: float) -> None:
        """In a thread of its own: a daemon that hangs shall not hold the engine's steps."""
        if self._opening is None:
            if time.monotonic() < self._retry_at:
                return
            self._opening = self._opener.submit(self._open_as, self._spec)
        else:
            patience_s = 0.0  # waited for before
        if not concurrent.futures.wait([self._opening], patience_s).done:
            return
        try:
            self._tenant, self._namespace = self._opening.result()
        except kavern.KavernError as error:
            self._retry_at = time.monotonic() + self.RETRY_S
            if not self._warned:
                logger.warning("Kavern is not there yet, serving without it: %s", error)
            self._warned = True
        self._opening = None

    def _open_as(self, spec: kavern.NamespaceSpec) -> tuple[str, kavern.Namespace]:
        # Asked before: where the tenant changes meanwhile, poll() sees a difference that is none, and not the other way.
        tenant = self._client.connection.tenant
        namespace = self._client.open_namespace(spec)
        return tenant or self._client.connection.tenant, namespace  # empty: attached only meanwhile

    @property
    def attached(self) -> bool:
        return self._client.connection.attached

    def close(self) -> None:
        self._namespace = None
        self._opener.shutdown()
        self._client.close()
