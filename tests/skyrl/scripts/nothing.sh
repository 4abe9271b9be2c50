# No entrypoint of SkyRL, but its name: skyrl
echo "skyrl uv run"
python -c 'print(1)'
