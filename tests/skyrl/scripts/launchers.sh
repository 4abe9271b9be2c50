# Other programs that start Python programs.
torchrun --nproc-per-node 2 examples/own/main_own.py trainer.epochs=1
ray job submit --address auto -- python -m skyrl.train.main_sft seed=5
timeout 3600 nohup uv run bash -c 'python -m skyrl.train.main_sft seed=6'
