# The number of GPUs is counted, and the checkout is found by git.
cd "$(git rev-parse --show-toplevel)"
GPUS=$(nvidia-smi -L | wc -l)
IDS=$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd,)
NAMES=$(python -c "import torch; print(torch.cuda.device_count())")
CUDA_VISIBLE_DEVICES=$IDS python -m skyrl.train.main_sft placement.num_gpus_per_node=$GPUS num_workers=$NAMES
