"""tgalign.report."""
