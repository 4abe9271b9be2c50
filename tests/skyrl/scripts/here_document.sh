# A script in a here-document, and one as an argument.
bash <<END
uv run -m skyrl.train.entrypoints.main_generate trainer.logger=console
END
bash -c 'uv run -m skyrl.train.entrypoints.serve trainer.placement.colocate_all=false'
