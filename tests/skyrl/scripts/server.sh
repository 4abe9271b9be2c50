#!/bin/bash
# A server in the background, a loop that waits for it, and a client.
set -euo pipefail
MODEL="Qwen/Qwen3-0.6B"
CONFIG='{"trainer.placement.policy_num_gpus_per_node": 2, "generator": {"inference_engine": {"num_engines": 2}}}'
mkdir -p "$HOME/logs"
setsid uv run --extra tinker -m skyrl.tinker.api --base-model "$MODEL" --backend fsdp --port 8000 \
  --backend-config "$CONFIG" >"$HOME/logs/server.log" 2>&1 &
SERVER=$!
trap 'kill -TERM -- -$SERVER 2>/dev/null || true; sleep 5' EXIT
deadline=$(($(date +%s) + 600))
until curl -sSf http://localhost:8000/api/v1/healthz >/dev/null 2>&1; do
  if (($(date +%s) > deadline)) || ! kill -0 $SERVER 2>/dev/null; then
    echo "the server did not start" >&2
    exit 1
  fi
  sleep 5
done
kill -0 $SERVER
[ -d "$HOME/cookbook" ] || git clone --depth 1 https://example.invalid/cookbook.git "$HOME/cookbook"
cd "$HOME/cookbook"
git checkout --detach 0123abc
TINKER_API_KEY=unused uv run --with tinker python -m cookbook.train base_url=http://localhost:8000 model="$MODEL"
wait
