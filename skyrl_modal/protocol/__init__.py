"""Records and messages that caller and container share: dataclasses, enums and one codec. Standard library only."""
