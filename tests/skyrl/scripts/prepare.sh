# Data that are prepared if they are absent, then a main of the checkout by its path.
set -eux
: "${DATA_DIR:=/scratch/sums}"
if [ ! -f "$DATA_DIR/train.parquet" ]; then
  uv run examples/own/sums_dataset.py --output_dir "$DATA_DIR" --rows 100
fi
uv run --isolated python examples/own/main_own.py --variant small \
  data.train_data="['$DATA_DIR/train.parquet']" data.val_data="['$DATA_DIR/test.parquet']" trainer.bonus=2
