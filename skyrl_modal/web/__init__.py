"""The web page of the runs: its server, and the export of a run as one HTML file. It requires the extra ``ui``."""
