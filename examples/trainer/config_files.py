"""Presets and YAML files, one on top of another."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

PRESETS = Path(__file__).parents[1] / "presets"
# What has entries of its own names, which may be taken away again.
_REMOVABLE = ("rewards", "sources")


def read(name: str) -> DictConfig:
    """A preset or a YAML file, on top of the one it names as ``base``."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
        raise ValueError(f"no config {name!r}: give the path of a YAML file or one of the presets {known}")
    loaded = OmegaConf.load(path)
    base = loaded.pop("base", None)
    return merged(OmegaConf.create() if base is None else read(base), loaded)


def merged(base: DictConfig, own: DictConfig) -> DictConfig:
    """``own`` on top of ``base``; a reward or source that is null in ``own`` is left out.

    Raises ``ValueError`` for a null that has nothing to leave out: a name misspelt, or settings forgotten.
    """
    for section in _REMOVABLE:
        given, known = own.get(section), base.get(section) or {}
        if not isinstance(given, DictConfig):
            continue
        for name in [name for name, value in given.items() if value is None]:
            if name not in known:
                raise ValueError(
                    f"{section}.{name} is null, which leaves out what a preset or base brings, but that has only "
                    f"{', '.join(known) or 'none'}; an entry without settings of its own is written {name}: {{}}"
                )
            del known[name], given[name]
    return OmegaConf.merge(base, own)  # type: ignore[return-value]
