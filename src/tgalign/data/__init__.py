"""tgalign.data."""
