# RLLR: label-sensitive reward for natural language understanding.
# An index: each stage stands in one file of workflow/rules, its program in workflow/scripts.
#
#   snakemake --cores all results/mistral/rllr_mix/metrics.json
#   snakemake --cores all                # everything that config/config.yaml lists
#   snakemake -n results/mistral/rllr_mix/metrics.json

from os.path import exists

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

min_version("9.27")

# As a module that Snakemake reads out of a repository there would be no programs beside it.
if not exists(str(workflow.current_basedir)):
    raise WorkflowError("rllr runs out of a folder: git clone it, and name the clone's Snakefile as the module's")


configfile: f"{workflow.current_basedir}/config/config.yaml"


# A run folder's own, laid over the project's.
if exists("config/config.yaml"):

    configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/config.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/base.smk"
include: "workflow/rules/sft.smk"
include: "workflow/rules/reward.smk"
include: "workflow/rules/ppo.smk"
include: "workflow/rules/dpo.smk"
include: "workflow/rules/predict.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/summary.smk"


report: "workflow/report/workflow.rst"


rule all:
    default_target: True
    input:
        results=expand(
            "results/{model}/{method}/{file}",
            model=config["models"],
            method=config["methods"],
            file=["metrics.json", "predictions.jsonl"],
        ),
        summary=expand("results/summary.{format}", format=["tsv", "md", "html"]),
        report="results/report.html",
    localrule: True
