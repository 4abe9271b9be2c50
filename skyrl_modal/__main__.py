"""``python -m skyrl_modal`` is the command line."""

from skyrl_modal.cli import main

if __name__ == "__main__":
    main()
