"""tgalign: Text-Guided Alignment for vision-language models."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("tgalign")
except PackageNotFoundError:  # the source on the path, not installed
    __version__ = "0+unknown"
