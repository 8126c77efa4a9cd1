"""``python -m tgalign``."""

from tgalign.cli import main

main()
