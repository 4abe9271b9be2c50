"""SkyRL's file formats, read with the standard library only, by the caller and in the container."""
