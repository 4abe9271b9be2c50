"""Copies of selected files, stored by content, which later edits do not change."""
