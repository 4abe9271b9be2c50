set -x
# Variables, a line for each argument, and further arguments at the end.
DATA_DIR="$HOME/data/sums"
NUM_GPUS=2
LOGGER="wandb"  # or console

uv run --isolated --extra fsdp -m skyrl.train.entrypoints.main_base \
  data.train_data="['$DATA_DIR/train.parquet']" \
  data.val_data="['$DATA_DIR/validation.parquet']" \
  trainer.policy.model.path="Qwen/Qwen2.5-0.5B-Instruct" \
  trainer.placement.policy_num_gpus_per_node=$NUM_GPUS \
  generator.inference_engine.num_engines=$NUM_GPUS \
  trainer.logger="$LOGGER" \
  trainer.resume_mode=null \
  trainer.ckpt_path="$HOME/ckpts/sums" \
  $@
