"""Callers on Modal whose sink does not return."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from skyrl_modal import VolumeSpec
from tests.backends.modal.conftest import Script
from tests.support.loopback import LoopbackModal

CALLER = """
import signal, sys, threading
from skyrl_modal import Launcher, VolumeSpec

gate, chunks = threading.Event(), []
signal.signal(signal.SIGUSR1, lambda *_: gate.set())

def sink(data):
    chunks.append(data)
    if len(chunks) == 1:
        print("blocked", flush=True)
    gate.wait()

launcher = Launcher(checkout=sys.argv[1], volumes=[VolumeSpec(name=sys.argv[2])], ray=None, gpu=None)
try:
    result = launcher.run(sys.argv[3], output=sink)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise SystemExit(77)
print(result.state, result.returncode, sum(map(len, chunks)), flush=True)
"""


def test_blocked_sink_does_not_end_the_run(
    server: LoopbackModal, script: Callable[..., Script], checkout: Path, volume: VolumeSpec
) -> None:
    """The caller sends heartbeats while its sink blocks; the run ends, and the sink then receives all output.

    Without heartbeats, the control plane of the tests ends the app after 3 seconds.
    """
    caller = script(CALLER, str(checkout), volume.name, "echo up; seq 200000; sleep 5; exit 7")
    caller.wait_for("blocked")

    server.wait_for_no_container(30)
    caller.process.send_signal(signal.SIGUSR1)
    code, out, _ = caller.end()

    size = len("up\n") + sum(len(f"{number}\n") for number in range(1, 200_001))
    assert (code, out) == (0, f"failed 7 {size}\n")


def test_ctrl_c_stops_the_run_while_a_sink_blocks(
    server: LoopbackModal, script: Callable[..., Script], checkout: Path, volume: VolumeSpec
) -> None:
    """The first Ctrl-C stops the run, although the main thread does not return; the second one interrupts the sink."""
    caller = script(CALLER, str(checkout), volume.name, "echo up; sleep 600")
    caller.wait_for("blocked")

    caller.process.send_signal(signal.SIGINT)
    server.wait_for_no_container(30)
    assert caller.process.poll() is None

    caller.process.send_signal(signal.SIGINT)
    code, out, _ = caller.end()
    assert (code, out) == (77, "interrupted\n")
