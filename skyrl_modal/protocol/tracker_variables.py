"""Variables by which the trackers of SkyRL write their files to the volume, and all attempts log to one W&B run."""

from __future__ import annotations

#: The folder below the folder of a run in which trackers write their files.
TRACKERS_FOLDER = "trackers"


def tracker_variables(run_folder: str) -> dict[str, str]:
    """Return the variables with the places of the trackers' files. They apply where the user has defined no other.

    W&B creates the folder ``wandb`` in the one that is named here. MLflow has a database: since version 3 it refuses
    to write to a folder (``file:``).

    Args:
        run_folder: The folder of the run's records, on a volume.

    Example:
        >>> tracker_variables("/root/data/.skyrl_modal/runs/r1")["TENSORBOARD_DIR"]
        '/root/data/.skyrl_modal/runs/r1/trackers/tensorboard'
    """
    folder = f"{run_folder}/{TRACKERS_FOLDER}"
    return {
        "TENSORBOARD_DIR": f"{folder}/tensorboard",
        "WANDB_DIR": folder,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "SWANLAB_LOG_DIR": f"{folder}/swanlab",
    }


def wandb_variables(run_id: str) -> dict[str, str]:
    """Return the variables by which all attempts of a run log to one W&B run, whose id is the run's.

    W&B permits ids of up to 128 characters, without ``:;,#?/'`` (wandb 0.31, ``Settings.validate_run_id``).

    Example:
        >>> wandb_variables("20260101-120000-a1b2c3")
        {'WANDB_RUN_ID': '20260101-120000-a1b2c3', 'WANDB_RESUME': 'allow'}
    """
    return {"WANDB_RUN_ID": run_id, "WANDB_RESUME": "allow"}
