# Several trainers, one after the other.
set -euo pipefail
for seed in 1 2 3; do
  uv run -m skyrl.train.main_sft seed=$seed ckpt_path="/root/data/sft/$seed" "$@" 2>&1 | tee "/tmp/sft-$seed.log"
done
