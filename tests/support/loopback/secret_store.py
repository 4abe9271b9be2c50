"""Secrets: named ones that a test declares, and anonymous ones that an app creates.

Assumptions about Modal: a request for a named secret that does not exist, or that lacks a required key, is refused with
NOT_FOUND. Values are never returned.
"""

from __future__ import annotations

from typing import Any

import attrs
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .records import new_id
from .rpc import Context, Service


@attrs.frozen
class Secret:
    """A secret; its name is empty if an app created it from values."""

    name: str
    env: dict[str, str] = attrs.field(repr=False)
    id: str = attrs.field(factory=lambda: new_id("st"))


class Secrets(Service):
    """RPCs about secrets."""

    def __init__(self, plane: Any) -> None:
        super().__init__(plane)
        self.secrets: dict[str, Secret] = {}
        self.names: dict[tuple[str, str], str] = {}

    def declare(self, name: str, env: dict[str, str], environment: str = "main") -> Secret:
        secret = Secret(name, dict(env))
        self.secrets[secret.id] = secret
        self.names[environment, name] = secret.id
        return secret

    def env(self, secret_ids: list[str]) -> dict[str, str]:
        return {name: value for secret_id in secret_ids for name, value in self.secrets[secret_id].env.items()}

    @staticmethod
    def _metadata(secret: Secret) -> api_pb2.SecretMetadata:
        return api_pb2.SecretMetadata(name=secret.name, keys=sorted(secret.env))

    async def SecretGetOrCreate(
        self, request: api_pb2.SecretGetOrCreateRequest, context: Context
    ) -> api_pb2.SecretGetOrCreateResponse:
        environment = request.environment_name or "main"
        if request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
            found = self.names.get((environment, request.deployment_name))
            if found is None:
                text = f"Secret {request.deployment_name!r} not found in environment {environment!r}."
                raise GRPCError(Status.NOT_FOUND, text)
            secret = self.secrets[found]
            missing = [key for key in request.required_keys if key not in secret.env]
            if missing:
                text = f"Secret is missing key(s) {', '.join(missing)}."
                raise GRPCError(Status.NOT_FOUND, text)
        elif request.deployment_name:
            secret = self.declare(request.deployment_name, dict(request.env_dict), environment)
        else:
            secret = Secret("", dict(request.env_dict))
            self.secrets[secret.id] = secret
        return api_pb2.SecretGetOrCreateResponse(secret_id=secret.id, metadata=self._metadata(secret))

    async def SecretGetInfo(self, request: Any, context: Context) -> Any:
        if request.secret_id not in self.secrets:
            raise GRPCError(Status.NOT_FOUND, f"Secret {request.secret_id!r} not found.")
        return api_pb2.SecretGetInfoResponse(metadata=self._metadata(self.secrets[request.secret_id]))

    async def SecretList(self, request: Any, context: Context) -> Any:
        environment = request.environment_name or "main"
        items = [
            api_pb2.SecretListItem(label=name, secret_id=secret_id, metadata=self._metadata(self.secrets[secret_id]))
            for (where, name), secret_id in self.names.items()
            if where == environment
        ]
        return api_pb2.SecretListResponse(items=items, environment_name=environment)
