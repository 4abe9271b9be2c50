"""Run a command from a SkyRL checkout on Modal, with Modal's command line.

    modal run examples/main.py --command "uv run examples/train/gsm8k/gsm8k_dataset.py --output_dir /root/data/gsm8k"
    MODAL_GPU=A100:4 MODAL_APP_NAME=me_skyrl_app \
        modal run examples/main.py --command "bash examples/train/gsm8k/run_gsm8k_modal.sh \\
            trainer.ckpt_path=/root/data/ckpts/gsm8k trainer.resume_mode=latest"

The checkout is searched in $SKYRL_REPO_ROOT, then from the working directory and from this file upwards. In the
container it is mounted at /root/SkyRL, and the volume skyrl-data at /root/data. Ray runs when the command starts. The
exit code is that of the command.
"""

from __future__ import annotations

import sys

from skyrl_modal import Launcher
from skyrl_modal.modal_run import ModalRun

runner = ModalRun(Launcher())  # MODAL_GPU and MODAL_APP_NAME are defaults of the launcher
app = runner.app


@app.local_entrypoint()
def main(command: str = "nvidia-smi") -> None:
    """Run COMMAND in the container."""
    result = runner.run(command)
    if result.returncode:  # Modal reports every exit as an uncaught exception, also one with the code 0
        sys.exit(result.returncode)
