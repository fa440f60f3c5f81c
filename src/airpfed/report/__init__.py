"""Report: records and summary to one self-contained page."""
