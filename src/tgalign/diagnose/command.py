"""The work of ``tgalign diagnose``: load what is named, diagnose, and say the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from tgalign.diagnose.probes import ProbeSet, read_probes, write_probes
from tgalign.errors import UserError
from tgalign.files import is_free
from tgalign.pretrained import read_part

LAB = "lab"
PER_SCENE = 12


def run_diagnosis(
    model: Path,
    out: Path,
    probes: str,
    *,
    per_scene: int | None,
    clip: Path | None,
    progress: bool,
    place: tuple[str, str] | None = None,
    **options: Any,
) -> str:
    """Diagnose a checkpoint.

    Args:
        model: Its folder.
        out: Where the result goes.
        probes: ``lab``, or a folder of probes.
        per_scene: Pairs per scene at most; None: ``PER_SCENE`` of the lab, all of a folder.
        clip: Folder of a CLIP; None: the lab's with the lab's probes, else none.
        progress: Whether to draw progress bars.
        place: Device and dtype in which ``tgalign evaluate`` loads the model, of which the result
            tells the dtype; None: an accelerator if there is one, and the checkpoint's own dtype.
        options: The others of ``tgalign.diagnose.run.diagnose``.

    Returns:
        The verdict, and where the report lies.

    Raises:
        UserError: Whatever cannot be loaded or read.
    """
    from tgalign.checkpoint import load_lvlm
    from tgalign.diagnose.run import diagnose
    from tgalign.evaluate.local_host import load_on
    from tgalign.report.diagnosis_verdict import headline, sentences

    found = _probes(probes, per_scene)
    about: dict[str, Any] = {"model": str(model), "weights": _weights(model)}
    if clip is not None:
        about["clip_weights"] = _weights(clip)
    elif probes == LAB:
        from tgalign.lab.assets import ASSETS, CLIP

        clip = ASSETS / CLIP
    if place is None:
        loaded, processor = load_lvlm(model)
    else:
        loaded, processor = load_on(model, *place)
        about["dtype"] = place[1]
    result = diagnose(
        loaded,
        processor,
        found,
        out,
        clip=None if clip is None else _clip(clip),
        progress=progress,
        about=about,
        **options,
    )
    said = "\n".join([f"{headline(result)}.", *sentences(result)])
    return f"{said}\n\nresult  {out / 'diagnosis.json'}\nreport  {out / 'report.html'}"


def write_lab_probes(out: Path, seed: int, per_scene: int, objects: Any, style: Any) -> str:
    """Draw the lab's probes and write them as a folder.

    Raises:
        UserError: Unknown objects or style, or ``out`` is not empty.
    """
    from tgalign.lab.objects import Objects, Style
    from tgalign.lab.probes import lab_probes

    for name, given, known in (("objects", objects, Objects), ("style", style, Style)):
        if given not in get_args(known):
            raise UserError(f"{name} {given!r}: expected one of {', '.join(get_args(known))}")
    if not is_free(out):
        raise UserError(f"{out} is not empty: give another --out")
    probes = lab_probes(seed, per_scene=per_scene, objects=objects, style=style)
    return str(write_probes(probes, out))


def _probes(probes: str, per_scene: int | None) -> ProbeSet:
    if probes != LAB:
        return read_probes(Path(probes)).at_most(per_scene)
    from tgalign.lab.probes import lab_probes

    return lab_probes(0, per_scene=per_scene or PER_SCENE)


def _clip(path: Path) -> tuple[Any, Any, Any]:
    from transformers import AutoImageProcessor

    from tgalign.synthetic import load_clip

    return *load_clip(path), read_part(AutoImageProcessor, path, "CLIP's image processor")


def _weights(model: Path) -> dict[str, list[int]]:
    """Size and time of the weights' files: other weights in the same folder are another model."""
    files = sorted(model.glob("*.safetensors"))
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
