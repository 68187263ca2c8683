# What is checked before any work: config files, and what the targets need of config and data. Input functions and params
# would else meet it, one by one.

import re

from snakemake.cli import parse_args


@one_line
def check_config():
    for model in [*config["models"], *config["overrides"]]:
        model_config(model)
    for data in {data_of(model) for model in config["models"]}:
        data_config(data)


def targets():
    """The files asked for, by Snakemake's own reading of its command line; those of `rule all` where none are."""
    if Path(sys.argv[0]).stem not in ("snakemake", "__main__"):  # used as a library
        return []
    if Path(workflow.main_snakefile) != ROOT / "Snakefile":  # a module: targets are the other workflow's
        return []
    _, arguments = parse_args(sys.argv[1:])
    if arguments.target_jobs or arguments.list_rules or arguments.unlock:
        return []
    named = set(arguments.targets) or {"all"}
    asked = [target for target in arguments.targets if target.startswith("results/")]
    page = named & {"all", "report", "results/report.html"}
    summary = {"summary", "results/differences.svg", *(f"results/summary.{form}" for form in ("tsv", "md", "html"))}
    for model in config["models"]:
        if page or named & summary:
            asked += [f"results/{model}/{method}/metrics.json" for method in config["methods"]]
        if page:
            asked += [f"results/{model}/{reward_model}/quality.json" for reward_model in REPORT_MODELS]
    return asked


@one_line
def check_targets():
    """The models, methods and stages among the targets."""
    for target in targets():
        if match := re.match(r"results/data/([^/]+)/", target):
            data_made_from(match[1])
        match = re.match(r"results/(?!data/|packages/|\.)([^/]+)/([^/]+)/(.*?)/?$", target)
        if match:
            model, method, what = match.groups()
            model_config(model)
            if method not in {*SECTIONS, *METHODS, "base", "logs"}:
                raise UserError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
            if what == "model" and method not in METHODS:
                raise UserError(f"{target}: expected a method, found {method}; known: {', '.join(METHODS)}")
            if what == "model" and METHODS[method].section is None:
                start = METHODS[method].start
                raise UserError(f"{method} has no model of its own: it is {start}, and a choice among its answers")
            predicted = ["metrics.json", "predictions.jsonl", "model.json", "model", "confusion.svg", "coverage.svg"]
            asked = ["predict"] if method in METHODS and what in predicted else []
            asked += ["quality"] if what in ["quality.json", "reliability.svg"] else []
            check_stages(model, method, asked)


def check_stages(model, method, asked):
    """The configs of the stages that a method rests on, and that the data has the rows that these and `asked` need."""
    before = [] if method in METHODS and METHODS[method].start == "base" else ["sft_wrat"]
    rewards = METHODS[method].reward_models if method in METHODS else []
    data = data_of(model)
    data_made_from(data)
    for stage in dict.fromkeys([*before, method, *rewards, *asked]):
        if stage not in SECTIONS:
            continue
        values, what = stage_yaml(model, stage), TOLD.get(stage, stage)
        needed = {file: what for file in needed_files(stage)}
        if values.get("keep") == "best":
            needed["validation"] = f"keep: best of {stage}"
        if capped(model, stage) and values["label_reward_threshold"] == "auto":
            needed["label_sensitive_pairs_for_validation"] = f"label_reward_threshold: auto of {stage}"
        for file, what in needed.items():
            if not asks_for(data_config(data), file):
                raise UserError(
                    f"config/data/{data}.yaml: {missing_rows(data_config(data), file)}; {what} needs {file}.jsonl"
                )


def capped(model, stage):
    """Whether a method's label reward is that of a head, which tau caps beside a rationale reward."""
    label = METHODS[stage].label_reward if stage in METHODS else None
    by_model = label in REWARD_MODELS and METHODS[stage].rationale_reward
    return by_model and stage_yaml(model, label)["score"] == "head"


TOLD = {"predict": "prediction", "quality": "reward quality"}  # stages that go by another name among people
check_config()
check_targets()
