rule merge:
    """Join the records of a method's shards, after checking that nothing is missing."""
    input:
        shards=lambda w: [f"results/{NAME}/shards/{p}.csv" for p in E.parts(w.label)],
        images=lambda w: [f"results/{NAME}/images/{p}" for p in E.parts(w.label)],
    output:
        "results/{experiment}/records/{label}.csv",
    log:
        "logs/{experiment}/merge-{label}.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        options=lambda w: options(
            label=w.label,
            count=len(E.prompts),
            settings=E.sampling(E.group(w.label)),
        ),
        code=lambda w: E.code_of("reproduction.stages.merge"),
    shell:
        "python -m reproduction.stages.merge --shards {input.shards:q} {params.options:q} "
        "--records {output:q} > {log:q} 2>&1"
