"""The pages that people read: every file has its line, links lead somewhere, tables say what the code says."""

import ast
import re
import shlex
import shutil
import string
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rllr.evaluate.label_metrics import method_metrics
from rllr.evaluate.quality import statistics
from rllr.methods import METHODS
from rllr.tasks import Task

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "workflow" / "scripts"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
TRAINED_BY = {"sft": "SFT", "ppo": "PPO", "dpo": "DPO"}


def lines_of(page):
    """The lines of a page that are not in a fenced block."""
    inside, lines = False, []
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            lines.append(line)
    return lines


def anchors(page) -> set[str]:
    """The names by which a code host links to a page's headings."""
    titles = [line.lstrip("# ").lower() for line in lines_of(page) if re.match("#+ ", line)]
    kept = string.ascii_lowercase + string.digits + " -_"
    return {"".join(c for c in title if c in kept).replace(" ", "-") for title in titles}


def test_every_file_has_one_line_in_the_architecture():
    named = re.findall(r"^\| `([\w/]+\.(?:py|smk))` \|", ARCHITECTURE.read_text(), re.MULTILINE)
    programs = [str(path.relative_to(PROGRAMS)) for path in PROGRAMS.rglob("*.py")]
    rules = [path.name for path in (ROOT / "workflow" / "rules").glob("*.smk")]
    assert sorted(named) == sorted(programs + rules)


def test_every_kind_of_config_file_is_in_the_architecture():
    text = ARCHITECTURE.read_text()
    for path in (ROOT / "config").iterdir():
        assert f"| `{path.name}` |" in text or f"| `{path.name}/<" in text, path.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_broken(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(lines_of(page))):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"\b(?:workflow|tests|benchmarks)/[\w/-]+\.(?:py|smk)\b", text):
        assert (ROOT / path).exists(), path


def test_the_table_of_methods_is_the_registry():
    expected = ["| method | starts from | trained by, on | recipe |", "|---|---|---|---|"]
    for name, method in METHODS.items():
        start = "base model" if method.start == "base" else f"`{method.start}`"
        if method.section and method.start != "base":
            start = f"merged {start}"
        trained = f"{TRAINED_BY[method.section]}, `{method.data}`" if method.section else "nothing more"
        expected.append(f"| `{name}` | {start} | {trained} | {method.recipe} |")
    assert "\n".join(expected) + "\n\n" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_results_with_other_settings_say_so():
    """Figures of an earlier day stand beside their date."""
    text = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    assert "2026-11-22, before the cue writer's rationales were shortened (2026-11-25)" in text


def test_the_headline_is_that_of_the_result_files():
    lines = (ROOT / "docs/results/demo/summary.tsv").read_text(encoding="utf-8").splitlines()
    head, *rows = [line.split("\t") for line in lines]
    means: dict[str, list[float]] = {}
    for row in (dict(zip(head, row, strict=True)) for row in rows):
        means.setdefault(row["method"], []).append(float(row["mean"]))
    for page in ("README.md", "docs/results.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for method in ("sft_wrat", "rllr_mix"):
            assert f"`{method}` {100 * sum(means[method]) / len(means[method]):.1f}" in " ".join(text.split()), page


def test_the_tables_are_those_of_the_result_files(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import tables

    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert {name for _, name, *_ in tables.BLOCK.findall(text)} == {
        f"docs/results/{name}" for name in ("demo", "ratings", "study")
    }
    assert tables.filled(text) == text
    assert tables.filled(tables.BLOCK.sub(r"\1\4", text)) == text  # none is kept that the files do not give


OUTPUTS = (ROOT / "docs" / "outputs.md").read_text(encoding="utf-8")


def explained(key: str, text: str = OUTPUTS) -> bool:
    """Whether a key stands, as code, in the first cell of a table's row or in the text."""
    return f"`{key}`" in text


def test_every_key_of_the_metrics_is_explained():
    tasks = {
        "films": Task("films", "label", ("bad", "good"), f1="good"),
        "stars": Task("stars", "stars", ("1", "2", "3")),
        "likeness": Task("likeness", "score", low=0, high=5, metric="pearson"),
    }
    sure = {
        "films": {"probabilities": {"bad": 0.3, "good": 0.7}},
        "stars": {"probabilities": {"1": 0.5, "2": 0.3, "3": 0.2}},
        "likeness": {"expectation": 2.5},
    }
    labels = {"films": ("bad", "good"), "stars": ("1", "3"), "likeness": ("1", "4")}
    rows = [
        {"task": task, "label": label, "prediction": label, **sure[task]}
        for task in tasks
        for label in labels[task] * 2
    ]
    metrics = method_metrics(rows, tasks)
    for key in {*metrics, *(key for found in metrics["tasks"].values() for key in found)}:
        assert explained(key), key


def test_every_key_of_reward_quality_is_explained():
    rows = [{"id": str(i // 2), "task": "films", "correct": i % 2 == 0, "reward": float(i)} for i in range(8)]
    found = statistics(rows)
    for key in {*found, *found["quintiles"][0], *found["tasks"]["films"]}:
        assert explained(key), key


def written_keys(path: Path, *functions: str) -> set[str]:
    """Constant keys of the dictionaries, and of what is assigned to them, in functions of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name in functions:
            for node in ast.walk(function):
                if isinstance(node, ast.Dict):
                    found |= {key.value for key in node.keys if isinstance(key, ast.Constant)}
                if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
                    found |= {node.slice.value} if isinstance(node.slice, ast.Constant) else set()
    return found


# Of single responses; the log has their means, under other names where they are named here.
RENAMED = {"correct": "label_accuracy", "unparsed": "unparsed_rate", "eos": "eos_rate"}


def test_every_key_of_the_ppo_log_is_explained():
    folder = PROGRAMS / "rllr" / "ppo"
    keys = written_keys(folder / "iteration.py", "advantages", "optimise", "update", "statistics")
    keys |= written_keys(folder / "run.py", "resume", "iterate", "validate", "accuracy", "write_outputs")
    keys = {RENAMED.get(key, key) for key in keys if isinstance(key, str)} - {"lr"}  # the optimiser's own name
    keys |= {f"seconds_{phase}" for phase in ("rollout", "scoring", "advantages", "optimisation")}
    keys |= {"label_reward", "rationale_reward"}
    assert len(keys) > 25
    for key in sorted(keys):
        assert explained(key), key


def test_every_key_of_a_prediction_and_of_the_model_file_is_explained():
    folder = PROGRAMS / "rllr" / "predict"
    keys = written_keys(folder / "test_file.py", "prediction") | written_keys(folder / "confidence.py", "certainty")
    keys |= written_keys(folder / "model_file.py", "describe") | {"temperatures", "max_new_tokens", "votes"}
    for key in sorted(keys):
        assert explained(key), key


def test_commands_of_make_exist():
    targets = set(re.findall(r"^([\w.$()/-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    targets = {target.replace("$(ENV)", ".venv") for target in targets}
    for page in [*PAGES, ROOT / ".github" / "workflows" / "ci.yml"]:
        for target in re.findall(r"(?:`|run: |^)make ([\w./-]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert target in targets, (page.name, target)


def test_hooks_have_the_pinned_versions():
    pinned = dict(line.split("==") for line in (ROOT / "requirements-dev.txt").read_text().split() if "==" in line)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    for hook in [hook for hook in hooks if hook["language"] != "system"]:  # those run what the environment has
        (dependency,) = hook["additional_dependencies"]
        name, version = dependency.split("==")
        assert pinned[name] == version


def test_hosted_checks_are_what_the_project_has():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert set(jobs) == {"lint", "unit", "workflow", "dry-run"}


def test_workflow_files_of_the_code_host_follow_their_published_schema():
    files = [str(path) for path in (ROOT / ".github" / "workflows").iterdir()]
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_forms_have_labels():
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        fields = yaml.safe_load(form.read_text())
        assert form.name == "config.yml" or all("label" in part["attributes"] for part in fields["body"])


def test_the_site_builds_without_a_broken_link():
    command = ["make", "-o", ".venv/.ready-dev", f"BIN={Path(sys.executable).parent}", "docs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.name for path in (ROOT / "site" / "docs").iterdir()}
    assert pages >= {path.stem for path in (ROOT / "docs").glob("*.md")}


def shell_commands(page: Path) -> list[str]:
    """The commands that begin with snakemake in a page's sh blocks, with their continuation lines."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip().startswith("snakemake ")]


COMMANDS = sorted({command for page in PAGES for command in shell_commands(page)})


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what Snakemake reads of the project, with own data named mydata."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("config", "workflow", "profiles"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(ROOT / name, folder / name)
    own = yaml.safe_load((folder / "config" / "data" / "own.yaml").read_text())
    (folder / "config" / "data" / "mydata.yaml").write_text(yaml.safe_dump(own))
    for task in own["tasks"].values():
        for file in [file for split in ("train", "test") for file in task.get(split, {}).get("files", [])]:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).touch()
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_snakemake_plan_something(checkout, command):
    arguments = shlex.split(command.replace("$PWD", str(checkout)), comments=True)[1:]
    # `--touch` touches what is there, and here nothing is.
    dry = [] if "--rulegraph" in arguments else ["-n"]
    arguments = [*dry, *(a for a in arguments if a not in ("-n", "--touch"))]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments], cwd=checkout, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "digraph" in done.stdout if not dry else "Nothing to be done" not in done.stdout + done.stderr


MODULE = """
module rllr:
    snakefile: "{project}/Snakefile"
    config: config

use rule * from rllr as rllr_*

rule mine:
    default_target: True
    input: "results/tiny/sft/metrics.json"
    output: "results/mine/of/another/kind.txt"
    shell: "cp {{input}} {{output}}"
"""


def test_another_workflow_uses_the_rules_as_a_module(checkout, tmp_path):
    (tmp_path / "workflow").mkdir()
    (tmp_path / "workflow" / "Snakefile").write_text(MODULE.format(project=checkout))
    command = [sys.executable, "-m", "snakemake", "-n", "--cores", "1", "--configfile", checkout / "config/config.yaml"]
    for target in ([], ["--", "results/mine/of/another/kind.txt"]):  # one that would be no model of this project's
        done = subprocess.run([*command, *target], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        text = done.stdout + done.stderr
        assert done.returncode == 0, text
        assert re.search(r"^rllr_sft +1$", text, re.MULTILINE) and re.search(r"^mine +1$", text, re.MULTILINE)


def test_the_picture_is_snakemakes_graph(checkout):
    """Drawn anew it is the same; and an edge of Snakemake's is an arrow, or implied by arrows."""
    (recipe,) = re.findall(r"^figures:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    arguments = recipe.replace("\\\n", " ").split("|")[0].split()[1:]
    command = [sys.executable, "-m", "snakemake", *arguments]
    dot = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=120).stdout
    (checkout / "docs").mkdir()
    program = shutil.copy(ROOT / "docs" / "stages.py", checkout / "docs")
    subprocess.run([sys.executable, program], input=dot, text=True, check=True)
    for name in ("stages-light.svg", "stages-dark.svg"):
        drawn = (checkout / "docs" / name).read_text()
        assert drawn == (ROOT / "docs" / name).read_text()
        labels = re.findall(r"<text [^>]*>(.*?)</text>", drawn)
        names = {"_".join(filter(None, re.split(r"<[^>]*>", label))) for label in labels}  # two words in two lines
        assert names == set(re.findall(r'label = "(\w+)"', dot)) - {
            "resolved",
            "figure",
        }


def test_programs_in_the_pages_take_the_options_given():
    """Options of `python workflow/scripts/<program>.py ...` are those that the program has."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for program, rest in re.findall(r"python\s+workflow/scripts/(\w+)\.py([^`\n]*)", text):
            source = (PROGRAMS / f"{program}.py").read_text()
            for option in re.findall(r"(?<=\s)--[a-z-]+", rest.split("#")[0]):
                assert option == "--help" or f'"{option}"' in source, (page.name, program, option)
