"""Conventions of SkyRL: scripts, paths and file formats. A new version of SkyRL changes this folder only."""
