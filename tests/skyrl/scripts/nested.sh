# Another script beside this one, with an environment of its own.
SCRIPT_DIR="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
WANDB_RUN_GROUP="outer" bash "$SCRIPT_DIR/simple.sh" trainer.epochs=7 "$@"
