"""tgalign.diagnose."""
