# A variable that has to be set.
: "${SYNC_DIR:?Set SYNC_DIR to a folder for this run}"
uv run -m skyrl.train.entrypoints.main_base trainer.ckpt_path="$SYNC_DIR"
