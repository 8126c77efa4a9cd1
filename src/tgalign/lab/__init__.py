"""tgalign.lab."""
