export HF_HOME=/root/data/hf
start_training() {
  local module=$1
  shift
  exec uv run --isolated -m "$module" trainer.placement.colocate_all=false "$@"
}
