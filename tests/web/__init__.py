"""Tests of the web page: its server, and what it reads of runs."""
