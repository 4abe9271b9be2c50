"""SkyRL's file formats, and the hook that is loaded into a run's Python processes. Standard library only."""
