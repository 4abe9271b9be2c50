"""Run one rank as a process, from the path of this file: see ``process_entrypoint``.

Python compiles a program that is started by its path each time, so this file has few lines.
"""

import os
import sys

if __package__ in (None, ""):  # started by its path, by any Python, which may not have the package's dependencies
    sys.path.insert(0, os.path.realpath(os.path.join(__file__, "..", "..", "..")))

from skyrl_modal.container.process_entrypoint import main

if __name__ == "__main__":
    sys.exit(main())
