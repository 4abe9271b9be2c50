"""Two modules of the SkyRL checkout: its configuration, and its class for metrics.

The packages that contain them import torch, transformers and vLLM, which this trainer does not need. The packages are
therefore created without their own code, so that an import loads only the module that it names.
"""

from __future__ import annotations

import os
import sys
import types
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(os.environ["SKYRL_REPO_ROOT"])

for name in ("skyrl", "skyrl.train", "skyrl.train.utils"):
    package = types.ModuleType(name)
    package.__path__ = [str(ROOT.joinpath(*name.split(".")))]
    sys.modules.setdefault(name, package)
sys.path[:0] = [str(ROOT), str(ROOT / "skyrl-gym")]

from skyrl.train.config import SkyRLTrainConfig, get_config_as_dict  # noqa: E402  # found by what is above
from skyrl.train.utils.tracking import Tracking  # noqa: E402

__all__ = ["ROOT", "QuickstartConfig", "Tracking", "get_config_as_dict"]


@dataclass
class QuickstartConfig(SkyRLTrainConfig):
    """The configuration of SkyRL's trainers, with all of its keys."""

    def __post_init__(self) -> None:
        """Check nothing: SkyRL's own method imports vLLM, to check the settings of inference engines."""
