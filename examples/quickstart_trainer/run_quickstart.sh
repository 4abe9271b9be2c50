#!/usr/bin/env bash
# Train the policy of the quickstart. Arguments replace the values below, as in SkyRL's own scripts:
#   python prepare.py --output-dir /root/data/quickstart/dataset
#   bash run_quickstart.sh trainer.epochs=4 trainer.policy.optimizer_config.lr=0.01
set -e
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
data=${SKYRL_DATA:-/root/data}/quickstart

exec python "$here/main_quickstart.py" \
  data.train_data="['$data/dataset/train.jsonl']" \
  data.val_data="['$data/dataset/validation.jsonl']" \
  environment.env_class=gsm8k \
  trainer.epochs=2 \
  trainer.train_batch_size=16 \
  trainer.policy_mini_batch_size=16 \
  trainer.update_epochs_per_batch=4 \
  trainer.policy.optimizer_config.lr=0.015 \
  trainer.placement.policy_num_gpus_per_node=1 \
  trainer.eval_interval=10 \
  trainer.ckpt_interval=10 \
  trainer.ckpt_path="$data/ckpts" \
  trainer.export_path="$data/exports" \
  trainer.logger=console \
  trainer.project_name=quickstart \
  generator.n_samples_per_prompt=8 \
  "$@"
