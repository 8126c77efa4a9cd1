"""Suites by name: the lab, folders of pictures, and the public ones that ``suites.yaml`` lists."""

from __future__ import annotations

from pathlib import Path

from tgalign.errors import UserError
from tgalign.evaluate.items import Suite


def suite_names() -> list[str]:
    """All names that ``load_suite`` takes, beside a path to a file like ``suites.yaml``."""
    from tgalign.evaluate.suites.table import shipped_specs

    return ["lab", "lab_icons", "folder", *shipped_specs()]


def load_suite(name: str, data: Path | None = None, *, seed: int = 0) -> Suite:
    """Read or draw a suite.

    Args:
        name: One of ``suite_names()``, or the path of a YAML file that describes one.
        data: The user's download; the lab needs none.
        seed: Of the lab's pictures.

    Raises:
        UserError: An unknown name, a missing folder, or a download that lacks something.
    """
    if name in ("lab", "lab_icons"):
        from tgalign.evaluate.suites.lab import lab_items

        return lab_items(seed, style="emoji" if name == "lab" else "icons")
    from tgalign.evaluate.suites.table import read_specs, shipped_specs, table_suite

    own = name.endswith((".yaml", ".yml"))
    specs = read_specs(Path(name)) if own else shipped_specs()
    if name != "folder" and not own and name not in specs:
        raise UserError(
            f"unknown suite {name!r}; expected one of {', '.join(suite_names())}, or a YAML file"
        )
    if data is None:
        where = f" ({specs[name].source})" if name in specs else ""
        raise UserError(f"suite {name} is read from your own download{where}: give --data FOLDER")
    if name == "folder":
        from tgalign.evaluate.suites.folder import folder_suite

        return folder_suite(data)
    if own:
        if len(specs) != 1:
            raise UserError(f"{name} describes {len(specs)} suites; expected one in a file")
        name = next(iter(specs))
    return table_suite(name, specs[name], data)
