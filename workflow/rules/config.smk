# What a job rests on, as a file: the configuration with digests of the code and the files behind it.


rule resolved:
    input:
        register,
    output:
        "{path}.yaml",
    log:
        "{path}.log",
    wildcard_constraints:
        path=r"results/(\.code/\w+|data/[^/]+/config|[^/]+/base|[^/]+/(" + "|".join(SECTIONS) + r")/config)",
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=100,
        runtime=1,
    params:
        text=lambda wildcards: RESOLVED.get(f"{wildcards.path}.yaml", ""),
    message:
        "Resolving {wildcards.path}"
    shell:
        "printf '%s' {params.text:q} > {output:q} 2> {log:q}"
