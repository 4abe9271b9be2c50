"""Records and messages shared by caller and container; standard library only."""
