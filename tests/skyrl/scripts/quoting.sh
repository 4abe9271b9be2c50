# Values with quotes, spaces, line ends, and a length that no single write holds.
LONG=$(printf 'a%.0s' {1..6000})
uv run -m skyrl.train.entrypoints.main_base \
  generator.sampling_params.stop='["</sql>", "</solution>"]' \
  trainer.run_name="back\\slash and
two lines — ü" \
  trainer.project_name="$LONG"
