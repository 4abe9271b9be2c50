"""Content-addressed copies of selected files, which later edits do not affect."""
