"""Runs as a caller sees them. (The folder is not named ``runs``: the function ``skyrl_modal.runs`` has that name.)"""
