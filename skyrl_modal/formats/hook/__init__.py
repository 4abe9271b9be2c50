"""The folder in front of PYTHONPATH in a run. Python executes its ``sitecustomize.py`` in each process of the run.

The other modules of this folder are loaded by their paths, and only in processes that need them. All of them run on the
Python of the command, which can be any from 3.9 on, without any package.
"""
