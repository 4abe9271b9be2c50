"""Selection of the files of a folder by git's rules. This package can be used on its own."""
