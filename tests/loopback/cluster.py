"""Clusters: to come; functions without one pass through here untouched."""

from __future__ import annotations

from typing import Any

from .records import Container, Function
from .rpc import Service


class Clusters(Service):
    """Gangs of containers that run one input together."""

    def pump(self, function: Function) -> None:
        raise NotImplementedError

    async def prepare(self, container: Container, process: Any) -> None:
        """Before a container is laid out."""

    async def release(self, container: Container) -> None:
        """After a container has ended."""

    async def next_input(self, container: Container) -> Any:
        raise NotImplementedError

    def put_output(self, container: Container, entry: Any, item: Any) -> None:
        raise NotImplementedError

    def ended(self, container: Container, code: int) -> None:
        raise NotImplementedError
