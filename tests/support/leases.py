"""What tests of leases observe on the loopback."""

from __future__ import annotations

from tests.support.loopback import LoopbackModal


def lease_keys(server: LoopbackModal) -> list[bytes]:
    """Return the serialized keys of all leases."""
    return [key for found in server.plane.dicts.dicts.values() for key in found.entries]


def wait_for_end(server: LoopbackModal) -> None:
    """Wait until all containers have exited and all apps are stopped."""
    server.wait_for_no_container()
    apps = server.apps
    server.wait_until(lambda: all(app.stopped_at for app in apps), what="an app has not ended")
