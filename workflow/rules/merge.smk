rule merge:
    """Join the records of a method's shards, after checking that nothing is missing."""
    input:
        expand("results/{{experiment}}/shards/{{label}}/{shard}.csv", shard=E.shards),
    output:
        "results/{experiment}/records/{label}.csv",
    log:
        "logs/{experiment}/merge-{label}.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        options=lambda w: options(
            count=len(E.prompts), settings=json.dumps(E.sampling(w.label))
        ),
        code=E.code_of("reproduction.stages.merge"),
    shell:
        "python -m reproduction.stages.merge --shards {input:q} {params.options:q} "
        "--records {output:q} > {log:q} 2>&1"
