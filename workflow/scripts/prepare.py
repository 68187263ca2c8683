"""Make the data files that every stage reads, checked, with a report of what is in them.

    python workflow/scripts/prepare.py --config config/data/demo.yaml --out results/data/demo

The config is a file of config/data. Paths in it are relative to the current folder. Writes the files listed in
rllr.data.FILES as JSON lines, tasks.json, report.json and report.svg: all, or none if a row is not as it should be.
"""

import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rllr.cli import UserError, log, parser, run
from rllr.config import load_yaml
from rllr.data import FILES, asks_for
from rllr.data.spec import load_config
from rllr.files import stage_lock, write_json
from rllr.tasks import dump_tasks


@dataclass(frozen=True)
class Arguments:
    config: Path  # a data config
    packages: Path  # folder with the package files that the config names
    out: Path  # folder of the data files
    cache: Path | None  # the endpoint's answers; None: beside the data files
    workers: int  # processes; files do not depend on it


def arguments() -> Arguments:
    command = parser(__doc__)
    command.add_argument("--config", type=Path, required=True, help="data config (YAML)")
    command.add_argument("--packages", type=Path, default=Path("results/packages"), help="folder with package files")
    command.add_argument("--out", type=Path, required=True, help="folder for the data files")
    command.add_argument("--cache", type=Path, help="file for an endpoint's answers (default: OUT/cache.sqlite)")
    command.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores)")
    return Arguments(**vars(command.parse_args()))


def check_filled(path: Path, folder: Path, counts: Counter) -> None:
    """Raise UserError if a file that the config asks for has got no rows."""
    config = load_yaml(path)
    for file in FILES:
        asked = asks_for(config, file)
        # What validation gets from a release depends on the files that it has.
        if not asked or asked == "release.validation" or (folder / f"{file}.jsonl").stat().st_size:
            continue
        dropped = [f"{rows} {key[1]}: {key[2]}" for key, rows in counts.most_common() if key[0] == "dropped"]
        why = f"; dropped: {'; '.join(dropped[:3])}" if dropped else ""
        raise UserError(f"{path}: {asked} asks for rows, but {file}.jsonl would have none{why}")


def main() -> None:
    args = arguments()
    config = load_config(args.config)

    from rllr.data import overview as report
    from rllr.data.build import build
    from rllr.data.release import build_release

    with stage_lock(args.out), tempfile.TemporaryDirectory(dir=args.out, prefix=".prepare-") as temporary:
        folder = Path(temporary)
        if config.release:
            built = build_release(config, folder)
        else:
            built = build(config, args.packages, folder, args.cache or args.out / "cache.sqlite", args.workers)
        described = report.make_report(built)
        if config.tokenizers:
            described["tokens"] = report.token_lengths(folder, config.tokenizers, config.cutoff)
        report.log_table(described)
        check_filled(args.config, folder, built["counts"])
        write_json(folder / "tasks.json", dump_tasks(config.tasks))
        write_json(folder / "report.json", described)
        report.plot(described, folder / "report.svg")
        # Everything is there and checked: only now do earlier results give way.
        for name in (*(f"{file}.jsonl" for file in FILES), "tasks.json", "report.json", "report.svg"):
            os.replace(folder / name, args.out / name)
    log(f"{args.out}: done")


if __name__ == "__main__":
    run(main)
