"""Run a command from a SkyRL checkout on Modal, by Modal's own command line.

    modal run examples/main.py --command "uv run examples/train/gsm8k/gsm8k_dataset.py --output_dir /root/data/gsm8k"
    MODAL_GPU=A100:4 MODAL_APP_NAME=me_skyrl_app \
        modal run examples/main.py --command "bash examples/train/gsm8k/run_gsm8k_modal.sh"

The checkout is found from $SKYRL_REPO_ROOT, the working directory, or this file, upwards. It is in the container at
/root/SkyRL, the volume skyrl-data at /root/data, and a Ray is up. It ends with the command's own exit code.
"""

from __future__ import annotations

import sys

from skyrl_modal import Launcher
from skyrl_modal.modal_run import ModalRun

runner = ModalRun(Launcher())  # MODAL_GPU and MODAL_APP_NAME are the launcher's defaults
app = runner.app


@app.local_entrypoint()
def main(command: str = "nvidia-smi") -> None:
    """Run COMMAND in the container."""
    result = runner.run(command)
    sys.exit(result.returncode)
