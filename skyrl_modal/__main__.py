"""The command line as ``python -m skyrl_modal``."""

from skyrl_modal.cli import main

if __name__ == "__main__":
    main()
