"""A Modal control plane of our own on 127.0.0.1, for the real client and the real container runtime. See README.md."""

from .server import LoopbackModal

__all__ = ["LoopbackModal"]
