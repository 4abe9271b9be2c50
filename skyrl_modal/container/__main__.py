"""Run one rank as a process, from the path of this file: see ``process_entrypoint``.

Python compiles a program that is started by its path each time, so this file has few lines.
"""

import gc
import os
import sys

if __package__ in (None, ""):  # started by its path, by any Python, which may not have the package's dependencies
    sys.path.insert(0, os.path.realpath(os.path.join(__file__, "..", "..", "..")))

gc.disable()  # what the imports create remains until the end
from skyrl_modal.container.process_entrypoint import main  # noqa: E402  # the path has to be set before

gc.freeze()
gc.enable()

if __name__ == "__main__":
    os._exit(main())  # without the clean-up of the interpreter, which takes time: nothing is buffered
