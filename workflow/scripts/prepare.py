"""Make the data files that every stage reads, checked, with a report of what is in them.

    python workflow/scripts/prepare.py --config config/data/demo.yaml --out results/data/demo

The config is a file of config/data. Paths in it are relative to the current folder. Writes the files of
rllr.data.catalogue.FILES as JSON lines, tasks.json, report.json and report.svg: all, or none if a row is not as it
should be.
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rllr.cli import UserError, log, parser, run
from rllr.config import load_yaml
from rllr.data.catalogue import FILES, asks_for
from rllr.data.spec import load_config
from rllr.files import atomic_dir, write_json
from rllr.provenance import text_digest
from rllr.store import build_once, link
from rllr.tasks import dump_tasks


@dataclass(frozen=True)
class Arguments:
    config: Path  # a data config
    name: str | None  # its name among people, config/data/<name>.yaml; None: the file as given
    packages: Path  # folder with the package files that the config names
    out: Path  # folder of the data files
    store: Path | None  # shared store: they are kept there, and `out` becomes a link to them
    workers: int  # processes; files do not depend on it


def arguments() -> Arguments:
    command = parser(__doc__)
    command.add_argument("--config", type=Path, required=True, help="data config (YAML)")
    command.add_argument("--name", help="name of the data; messages then speak of config/data/NAME.yaml")
    command.add_argument("--packages", type=Path, default=Path("results/packages"), help="folder with package files")
    command.add_argument("--out", type=Path, required=True, help="folder for the data files")
    command.add_argument("--store", type=Path, help="shared store that keeps the files; OUT becomes a link to them")
    command.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores)")
    return Arguments(**vars(command.parse_args()))


def check_filled(config: dict, where: str, folder: Path, counts: Counter) -> None:
    """Raise UserError if a file that the config asks for has got no rows."""
    for file in FILES:
        asked = asks_for(config, file)
        # What validation gets from a release depends on the files that it has.
        if not asked or asked == "release.validation" or (folder / f"{file}.jsonl").stat().st_size:
            continue
        dropped = [f"{rows} {key[1]}: {key[2]}" for key, rows in counts.most_common() if key[0] == "dropped"]
        why = f"; dropped: {'; '.join(dropped[:3])}" if dropped else ""
        raise UserError(f"{where}: {asked} asks for rows, but {file}.jsonl would have none{why}")


def write_files(args: Arguments, raw: dict, where: str, cache: Path, folder: Path) -> None:
    """Every file of the data, checked, into the empty `folder`."""
    config = load_config(raw, where)

    from rllr.data import overview
    from rllr.data.build import build
    from rllr.data.release import build_release

    if config.release:
        built = build_release(config, folder)
    else:
        built = build(config, args.packages, folder, cache, args.workers)
    described = overview.make_report(built, config.specs)
    if config.tokenizers:
        described["tokens"] = overview.token_lengths(folder, config.tokenizers, config.cutoff)
    overview.log_table(described)
    check_filled(raw, where, folder, built["counts"])
    write_json(folder / "tasks.json", dump_tasks(config.tasks))
    write_json(folder / "report.json", described)
    overview.plot(described, folder / "report.svg")


def main() -> None:
    args = arguments()
    raw = load_yaml(args.config)
    if isinstance(raw, dict):
        raw.pop("rests_on", None)  # the workflow's note of what else the files are made from
    where = f"config/data/{args.name}.yaml" if args.name else str(args.config)
    load_config(raw, where)
    if args.store:
        digest = text_digest(args.config.read_text(encoding="utf-8"))
        name = args.name or args.config.stem
        entry, cache = args.store / "data" / f"{name}-{digest}", args.store / "data" / f"{name}.cache.sqlite"
        build_once(entry, lambda folder: write_files(args, raw, where, cache, folder))
        link(entry, args.out)
    else:
        with atomic_dir(args.out) as folder:
            write_files(args, raw, where, args.out.with_name(f"{args.out.name}.cache.sqlite"), folder)
    log(f"{args.out}: done")


if __name__ == "__main__":
    run(main)
