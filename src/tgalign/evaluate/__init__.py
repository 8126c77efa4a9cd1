"""tgalign.evaluate."""
