"""Failures that SkyRL itself reports, and those of the data, models and trackers that it loads."""

from __future__ import annotations

from skyrl_modal.skyrl.failures.rule import FailureRule, Weight

_SKYRL = "SkyRL of August 2026"
_PATH = r"['\"]?(?P<path>[^'\"\n]{1,300}?)['\"]?"

CONFIGURATION_RULES = (
    FailureRule(
        code="wandb-key-missing",
        cause="trainer.logger is wandb, and WANDB_API_KEY is not set where the trainer runs.",
        remedy="Pass the key as a secret (secrets=[SecretSpec(...)], --secret WANDB_API_KEY), or set "
        "trainer.logger=console.",
        terms=("`WANDB_API_KEY` is required", "api_key not configured", "No API key configured"),
        pattern=r"`WANDB_API_KEY` is required|(?:wandb: ERROR )?(?:api_key not configured|No API key configured)",
        source="skyrl/train/utils/utils.py:501; wandb/sdk/wandb_login.py",
        versions=f"{_SKYRL}, wandb 0.16 to 0.31",
    ),
    FailureRule(
        code="wandb-key-refused",
        cause="Weights & Biases refuses the key, or the key may not write to this entity.",
        remedy="Check WANDB_API_KEY and WANDB_ENTITY, or set trainer.logger=console.",
        terms=("wandb.errors", "wandb: ERROR"),
        pattern=r"(?:wandb: ERROR )?(?:[^\n]{0,200}?)(?:HTTP 40[13]|permission denied|API key must be|invalid API key"
        r"|user is not logged in|API key verification failed)",
        source="wandb/errors",
        versions="wandb 0.16 to 0.31",
    ),
    FailureRule(
        code="config-key-unknown",
        cause="SkyRL's configuration {section} has no field {keys}.",
        remedy="Correct the name of the override. Keys of older versions may have been renamed; the message "
        "lists those that exist.",
        terms=("Invalid fields",),
        pattern=r"Invalid fields (?P<keys>\{[^}\n]{0,300}\}) for (?P<section>\w{1,100})\. Valid fields are",
        source="skyrl/train/config/config.py:1573",
        versions=_SKYRL,
    ),
    FailureRule(
        code="batch-sizes-do-not-divide",
        cause="Batch sizes and numbers of GPUs do not divide: {detail}.",
        remedy=(
            "Choose train_batch_size, policy_mini_batch_size and micro_*_batch_size_per_gpu so that each is "
            "a multiple of "
            "the next for this number of GPUs."
        ),
        terms=("should be divisible by", "must be divisible by data-parallel size"),
        pattern=r"(?P<detail>[^\n]{0,40}?(?:batch_size|world_size|size_per_gpu)[^\n]{0,200}?"
        r"(?:should be divisible by|must be divisible by)[^\n.]{0,200})",
        source="skyrl/train/utils/utils.py:58-190; skyrl/train/sft_trainer.py:1746",
        versions=_SKYRL,
    ),
    FailureRule(
        code="dataset-too-small",
        cause="The dataset has {rows} rows after the length filter, fewer than train_batch_size={batch}.",
        remedy="Reduce trainer.train_batch_size, or increase trainer.max_prompt_length so that fewer prompts "
        "are removed.",
        terms=("dataset should be at least as large as",),
        pattern=r"dataset should be at least as large as `?train_batch_size`? ?(?P<batch>\d*),? got size (?P<rows>\d+)",
        source="skyrl/train/entrypoints/main_base.py:85",
        versions=_SKYRL,
    ),
    FailureRule(
        code="dynamic-sampling-limit",
        cause="Dynamic sampling found no prompts whose samples have different rewards.",
        remedy=(
            "Use data that is neither too easy nor too hard for the model, or increase "
            "trainer.algorithm.dynamic_sampling.max_sample_batches."
        ),
        terms=("hitting dynamic sampling limit",),
        pattern=r"Exiting training loop due to hitting dynamic sampling limit",
        source="skyrl/train/trainer.py:1631",
        versions=_SKYRL,
    ),
    FailureRule(
        code="setup-failed",
        cause="SkyRL failed before the first training step.",
        remedy="Look at the error after this line. There is no checkpoint to resume.",
        terms=("Setup failed before tracker was initialized",),
        pattern=r"Setup failed before tracker was initialized",
        weight=Weight.CONSEQUENCE,
        source="skyrl/train/entrypoints/main_base.py:334",
        versions=_SKYRL,
    ),
    FailureRule(
        code="training-failed",
        cause="Training failed at step {step} with {type}.",
        remedy="Look at the traceback after this line; the logs of the workers may contain an earlier error.",
        terms=("Training failed at step ",),
        pattern=r"Training failed at step (?P<step>\d+) with (?P<type>[\w.]{1,100})",
        weight=Weight.CONSEQUENCE,
        source="skyrl/train/utils/tracking.py:117",
        versions=_SKYRL,
    ),
    FailureRule(
        code="tests-failed",
        cause="A test failed: {test}.",
        remedy="Look at the report of the test in the output.",
        terms=("FAILED ", "ERROR "),
        pattern=r"(?:FAILED|ERROR) (?P<test>[\w./-]{1,200}\.py(?:::[^\n]{1,200}?)?)(?: - |$)",
        returncodes=frozenset((1,)),
        weight=Weight.CERTAIN,
        source="the short test summary of pytest",
        versions="pytest 7 to 9",
    ),
)

DATA_RULES = (
    FailureRule(
        code="data-file-missing",
        cause="The data file {path} does not exist where the command runs.",
        remedy=(
            "Run the dataset script first, with the same paths and the same volume. $HOME differs between images: give "
            "absolute paths below the volume, and list them with skyrl-modal ls."
        ),
        terms=(".parquet", ".jsonl", ".json'"),
        pattern=r"(?:(?<=FileNotFoundError: )|Unable to find |\[Errno 2\] No such file or directory: "
        r"|Couldn't find any data file at "
        r"|No such file or directory: )" + _PATH.replace("?)['", r"?\.(?:parquet|jsonl?))['") + r"(?:\.|,|$| )",
        source="skyrl/train/dataset/dataset.py:41; datasets/data_files.py; pyarrow",
        versions=f"{_SKYRL}, datasets 2.16 to 4.4",
    ),
    FailureRule(
        code="data-file-damaged",
        cause="A data file is damaged or was not written completely.",
        remedy="Run the dataset script again, and wait for its end before the training starts.",
        terms=("Parquet magic bytes not found", "Could not open Parquet input source"),
        pattern=r"(?:Could not open Parquet input source|Parquet magic bytes not found)",
        source="pyarrow",
        versions="pyarrow 16 to 26",
    ),
    FailureRule(
        code="dataset-not-found",
        cause="There is no dataset {name} on the Hugging Face hub, or it may not be read.",
        remedy=(
            "A path must end with .parquet, .json or .jsonl: anything else is a name on the hub. Private datasets need "
            "HF_TOKEN in the environment of Ray's processes."
        ),
        terms=("not found on Hugging Face", "doesn't exist on the Hub"),
        pattern=r"Dataset [`'](?P<name>[^`'\n]{1,200})[`'] (?:not found on Hugging Face|doesn't exist on the Hub)",
        source="skyrl/train/dataset/dataset.py:52; datasets/load.py",
        versions=f"{_SKYRL}, datasets 2.16 to 4.4",
    ),
    FailureRule(
        code="model-gated",
        cause="A model or dataset on the Hugging Face hub is gated, and this account may not read it.",
        remedy=(
            "Accept its licence on its page, and pass HF_TOKEN as a secret (secrets=[SecretSpec(...)], "
            "--secret HF_TOKEN), "
            "so that Ray's processes have it too."
        ),
        terms=("GatedRepoError", "You are trying to access a gated repo", "Access to model ", "Access to dataset "),
        pattern=r"(?:(?<=GatedRepoError: )|You are trying to access a gated repo"
        r"|Access to (?:model|dataset) \S{1,200} is restricted)",
        source="huggingface_hub/errors.py; transformers/utils/hub.py",
        versions="huggingface_hub 0.20 to 1.1, transformers 4.40 to 4.57",
    ),
    FailureRule(
        code="model-not-found",
        cause="A model or dataset does not exist on the Hugging Face hub, or is private and the token is "
        "missing or wrong.",
        remedy="Check the name or the path, and pass HF_TOKEN as a secret for a private one.",
        terms=(
            "RepositoryNotFoundError",
            "is not a local folder and is not a valid model identifier",
            "HFValidationError",
        ),
        pattern=r"(?:(?<=RepositoryNotFoundError: )|(?<=HFValidationError: )"
        r"|[^\n]{1,200} is not a local folder and is not a valid model identifier)",
        source="huggingface_hub/errors.py; transformers/utils/hub.py",
        versions="huggingface_hub 0.20 to 1.1, transformers 4.40 to 4.57",
    ),
    FailureRule(
        code="hub-rejects-token",
        cause="The Hugging Face hub answers {status} to a request.",
        remedy=(
            "401: HF_TOKEN is missing or wrong. 403: the token has no permission. 429: too many requests; "
            "pass HF_TOKEN, "
            "and keep the cache (HF_HOME) on a volume."
        ),
        terms=("Client Error",),
        pattern=r"(?P<status>4(?:01|03|29)) Client Error\b[^\n]{0,300}?(?:huggingface\.co|hf\.co|for url)",
        weight=Weight.POSSIBLE_CONSEQUENCE,
        source="huggingface_hub/utils/_http.py",
        versions="huggingface_hub 0.20 to 1.1",
    ),
    FailureRule(
        code="hub-unreachable",
        cause="The Hugging Face hub cannot be reached, and the files are not in the cache.",
        remedy="Check the network and HF_ENDPOINT, or download the model to a volume first and set HF_HOME to it.",
        terms=("couldn't connect to 'http", "LocalEntryNotFoundError", "OfflineModeIsEnabled", "Couldn't reach '"),
        pattern=r"(?:We couldn't connect to 'http|(?<=LocalEntryNotFoundError: )|(?<=OfflineModeIsEnabled: )"
        r"|Couldn't reach '[^'\n]{1,200}' on the Hub)",
        source="huggingface_hub/errors.py; transformers/utils/hub.py",
        versions="huggingface_hub 0.20 to 1.1, transformers 4.40 to 4.57",
    ),
)

CHECKPOINT_RULES = (
    FailureRule(
        code="checkpoint-pointer-damaged",
        cause="latest_ckpt_global_step.txt is empty or damaged: the run that wrote it was ended meanwhile.",
        remedy=(
            "Write the number of the newest complete folder global_step_N into it, or use "
            "trainer.resume_mode=from_path "
            "with trainer.resume_path=.../global_step_N."
        ),
        terms=("invalid literal for int() with base 10: ",),
        pattern=r"invalid literal for int\(\) with base 10: ",
        context=r"ckpt_iteration|latest_ckpt|load_checkpoint|resume",
        source="skyrl/train/trainer.py:1745",
        versions=_SKYRL,
    ),
    FailureRule(
        code="checkpoint-folder-inconsistent",
        cause="The checkpoint folder has newer checkpoints than its pointer file {file}: they are from another run.",
        remedy="Use another trainer.ckpt_path, or move the newer folders away.",
        terms=("Inconsistent checkpoint folder",),
        pattern=r"Inconsistent checkpoint folder\. Latest checkpoint file (?P<file>\S{1,300}) points",
        source="skyrl/train/utils/trainer_utils.py:192",
        versions=_SKYRL,
    ),
    FailureRule(
        code="checkpoint-incomplete",
        cause="The checkpoint is incomplete: {path} does not exist.",
        remedy=(
            "Resume from the newest complete folder (trainer.resume_mode=from_path), with the same number of "
            "GPUs: FSDP "
            "stores one file for each rank."
        ),
        terms=(
            "Fully-async state file not found at",
            "Model checkpoint not found: ",
            "Extra state checkpoint not found: ",
            "Checkpoint directory not found: ",
            "Checkpoint path not found: ",
        ),
        pattern=r"(?:Fully-async state file not found at|(?:Model|Extra state) checkpoint not found:"
        r"|Checkpoint (?:directory|path) not found:) (?P<path>[^\n]{1,300})",
        source="skyrl/train/fully_async_trainer.py:1190; fsdp_strategy.py:472-495; trainer.py:1770",
        versions=_SKYRL,
    ),
    FailureRule(
        code="checkpoint-file-damaged",
        cause="A file of a checkpoint or model is damaged or was not written completely.",
        remedy="Resume from an older folder global_step_N, or remove the damaged download from the cache (HF_HOME).",
        terms=(
            "PytorchStreamReader failed",
            "Error while deserializing header",
        ),
        pattern=r"(?:PytorchStreamReader failed|Error while deserializing header)",
        source="torch/serialization.py; safetensors",
        versions="torch 2.6 to 2.9, safetensors 0.4 to 0.7",
    ),
    FailureRule(
        code="checkpoint-pickle-damaged",
        cause="A pickled file of a checkpoint or model is damaged or was not written completely.",
        remedy="Resume from an older folder global_step_N.",
        terms=("Ran out of input", "pickle data was truncated", "invalid load key"),
        pattern=r"(?:Ran out of input|pickle data was truncated|invalid load key)",
        context=r"torch[./]load|torch/serialization|load_checkpoint|\.pt\b|ckpt|checkpoint",
        source="Python's pickle; torch/serialization.py",
        versions="torch 2.6 to 2.9",
    ),
)
