#!/usr/bin/env bash
# Defaults that the environment can replace, arithmetic, conditions, an array.
: "${NUM_GPUS:=8}"
: "${BATCH:=$((NUM_GPUS * 16))}"
: "${STEP_WISE:=false}"
ARGS=(trainer.train_batch_size="$BATCH" "trainer.run_name=two parts")
if [ "$STEP_WISE" = "true" ]; then
  ARGS+=(generator.step_wise_trajectories=true)
else
  EXTRA="generator.batched=true"
fi
case "${MODE:-full}" in
  full) ARGS+=(trainer.epochs=3) ;;
  *) ARGS+=(trainer.epochs=1) ;;
esac
python3 -u -m skyrl.train.entrypoints.main_base "${ARGS[@]}" $EXTRA \
  trainer.placement.policy_num_gpus_per_node="$NUM_GPUS" trainer.epochs=4 "$@"
