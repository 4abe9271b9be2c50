"""A small checkout in the form of SkyRL's: configuration, mains and scripts, written for the tests."""

from __future__ import annotations

import shutil
from pathlib import Path

SCRIPTS = Path(__file__).with_name("scripts")

_CONFIG = """
@dataclass
class LoraConfig(BaseConfig):
    rank: int = 0
    lora_sync_path: str = "/tmp/skyrl_lora_sync"


@dataclass
class ModelConfig(BaseConfig):
    path: Optional[str] = None
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class MegatronLoraConfig(BaseConfig):
    merge_lora: bool = True


@dataclass
class MegatronConfig(BaseConfig):
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    context_parallel_size: int = 1
    lora_config: MegatronLoraConfig = field(default_factory=MegatronLoraConfig)


@dataclass
class PolicyConfig(BaseConfig):
    model: ModelConfig = field(default_factory=lambda: copy.deepcopy(ModelConfig(path="Qwen/Qwen2.5-1.5B-Instruct")))
    sequence_parallel_size: int = 1
    megatron_config: MegatronConfig = field(default_factory=MegatronConfig)


@dataclass
class CriticConfig(BaseConfig):
    model: ModelConfig = field(default_factory=ModelConfig)
    sequence_parallel_size: int = 1


@dataclass
class PlacementConfig(BaseConfig):
    colocate_all: bool = True
    colocate_policy_ref: bool = True
    policy_num_nodes: int = 1
    policy_num_gpus_per_node: int = 1
    critic_num_nodes: int = 1
    critic_num_gpus_per_node: int = 1
    ref_num_nodes: int = 1
    ref_num_gpus_per_node: int = 1


@dataclass
class AlgorithmConfig(BaseConfig):
    use_kl_loss: bool = True
    use_kl_in_reward: bool = False


@dataclass
class FullyAsyncConfig(BaseConfig):
    enabled: bool = False
    simulate_training: bool = False


@dataclass
class EngineConfig(BaseConfig):
    run_engines_locally: bool = True
    external_server_urls: Optional[List[str]] = None
    num_engines: int = 1
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    engine_init_kwargs: Dict[str, Any] = field(default_factory=dict)


@dataclass
class SamplingParams(BaseConfig):
    stop: Optional[List[str]] = None


@dataclass
class GeneratorConfig(BaseConfig):
    inference_engine: EngineConfig = field(default_factory=EngineConfig)
    n_samples_per_prompt: int = 5
    batched: bool = False
    step_wise_trajectories: bool = False
    sampling_params: SamplingParams = field(default_factory=SamplingParams)


@dataclass
class TrainerConfig(BaseConfig):
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    strategy: str = "fsdp"
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    ref: PolicyConfig = field(default_factory=PolicyConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    fully_async: FullyAsyncConfig = field(default_factory=FullyAsyncConfig)
    resume_mode: Optional[str] = "latest"
    log_path: str = "/tmp/skyrl-logs"
    ckpt_path: str = field(default_factory=lambda: os.path.expanduser("~/ckpts/"))
    max_ckpts_to_keep: int = -1
    ckpt_interval: int = 10
    hf_save_interval: int = -1
    export_path: str = field(default_factory=lambda: os.path.expanduser("~/exports/"))
    epochs: int = 1
    train_batch_size: int = 1024
    policy_mini_batch_size: int = 256
    critic_mini_batch_size: int = 256
    micro_train_batch_size_per_gpu: int = 1
    eval_interval: int = 5
    dump_data_batch: bool = False
    dump_eval_results: bool = True
    logger: str = "wandb"
    project_name: str = "skyrl"
    run_name: str = "test_run"


@dataclass
class DataConfig(BaseConfig):
    train_data: List[str] = field(default_factory=lambda: [os.path.expanduser("~/data/gsm8k/train.parquet")])
    val_data: List[str] = field(default_factory=lambda: [os.path.expanduser("~/data/gsm8k/validation.parquet")])


@dataclass
class EnvironmentConfig(BaseConfig):
    search: SearchEnvConfig = field(default_factory=SearchEnvConfig)


@dataclass
class SkyRLTrainConfig(BaseConfig):
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
"""
_SFT_CONFIG = """
@dataclass
class SFTPlacementConfig(BaseConfig):
    num_nodes: int = 1
    num_gpus_per_node: int = 4


@dataclass
class SFTConfig(BaseConfig):
    model: ModelConfig = field(default_factory=lambda: ModelConfig(path="Qwen/Qwen3-0.6B"))
    placement: SFTPlacementConfig = field(default_factory=SFTPlacementConfig)
    megatron_config: MegatronConfig = field(default_factory=lambda: MegatronConfig(pipeline_model_parallel_size=1))
    strategy: str = "megatron"
    batch_size: int = 4
    micro_train_batch_size_per_gpu: int = 1
    use_sequence_packing: bool = False
    dummy_run_full_ctx: bool = False
    logger: str = "console"
    ckpt_path: str = ""
    ckpt_interval: int = 0
    max_ckpts_to_keep: int = -1
    resume_from: str = ""
    hf_save_interval: int = 0
    export_path: str = ""
    seed: int = 42
    num_workers: int = 8
"""
_MAIN_OWN = """
from skyrl.train.config import TrainerConfig, make_config
from skyrl.train.entrypoints.main_base import BasePPOExp


class OwnTrainerConfig(TrainerConfig):
    bonus: int = 1


OwnConfig = make_config(trainer_cls=OwnTrainerConfig)


def main() -> None:
    cfg = OwnConfig.from_cli_overrides(sys.argv[1:])
    BasePPOExp(cfg).run()
"""
_MAIN_ASYNC = """
from skyrl.train.config import SkyRLTrainConfig

from .experiment import AsyncExp


def main() -> None:
    AsyncExp(SkyRLTrainConfig.from_cli_overrides(sys.argv[1:])).run()
"""
_EXPERIMENT = """
from skyrl.train.entrypoints.main_base import BasePPOExp
from skyrl.train.fully_async_trainer import FullyAsyncRayPPOTrainer


class AsyncExp(BasePPOExp):
    def get_trainer(self, *args):
        return FullyAsyncRayPPOTrainer(*args)
"""
_MAIN_BENCHMARK = """
from skyrl.train.config import SkyRLTrainConfig
from skyrl.train.entrypoints.main_base import BasePPOExp
from skyrl.train.trainer import RayPPOTrainer


class StepTrainer(RayPPOTrainer):
    async def train(self):
        for _ in range(5):
            await self.train_critic_and_policy(make_batch())


class BenchmarkExp(BasePPOExp):
    def get_trainer(self, *args):
        return StepTrainer(*args)


def main() -> None:
    BenchmarkExp(SkyRLTrainConfig.from_cli_overrides(sys.argv[1:])).run()
"""
_MAIN_ENGINES = """
from skyrl.train.config import SkyRLTrainConfig
from skyrl.train.entrypoints.main_base import BasePPOExp


class RemoteExp(BasePPOExp):
    def get_inference_client(self):
        return connect()


def main() -> None:
    RemoteExp(SkyRLTrainConfig.from_cli_overrides(sys.argv[1:])).run()
"""
#: A training loop of the user's own that takes SkyRL's arguments.
_MAIN_LOOP = """\
import sys

from skyrl.train.config import SkyRLTrainConfig

import loop

config = SkyRLTrainConfig.from_cli_overrides(sys.argv[1:])
"""
_LOOP = "def save(config):\n    open(config.trainer.ckpt_path)\n"
_FILES = {
    "skyrl-gym/skyrl_gym/__init__.py": "",
    "skyrl/train/config/config.py": _CONFIG,
    "skyrl/train/config/sft_config.py": _SFT_CONFIG,
    "examples/own/main_own.py": _MAIN_OWN,
    "examples/own/main_async.py": _MAIN_ASYNC,
    "examples/own/experiment.py": _EXPERIMENT,
    "examples/own/main_benchmark.py": _MAIN_BENCHMARK,
    "examples/own/main_engines.py": _MAIN_ENGINES,
    "examples/own/main_loop.py": _MAIN_LOOP,
    "examples/own/loop.py": _LOOP,
    "examples/own/print_config.py": _MAIN_LOOP.replace("import loop", "print"),
    "examples/own/sums_dataset.py": "import datasets\n",
    "examples/own/broken.py": "def main(:\n",
    ".gitignore": ".env\n.venv/\n",
    ".env": "WANDB_API_KEY=a-key-of-the-user\n",
}


def create_checkout(root: Path) -> Path:
    """Create the checkout in a folder, with the scripts in ``scripts/``, and return its root."""
    for name, text in _FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    shutil.copytree(SCRIPTS, root / "scripts")
    return root
