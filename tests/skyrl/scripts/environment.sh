# An environment that the script creates, and a folder in the checkout.
set -e
uv venv .venv
source .venv/bin/activate
pip install -e .
mkdir -p logs
python -m skyrl.train.main_sft seed=8 > logs/sft.log
