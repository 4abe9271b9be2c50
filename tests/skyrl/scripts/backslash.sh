# The last line of the command has no backslash.
set -x
uv run -m skyrl.train.entrypoints.main_base \
  trainer.ckpt_interval=-1
  $@
