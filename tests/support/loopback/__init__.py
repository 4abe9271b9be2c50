"""A local stand-in for Modal's control plane on 127.0.0.1, for the real client and container runtime. See README.md."""

from .server import LoopbackModal

__all__ = ["LoopbackModal"]
