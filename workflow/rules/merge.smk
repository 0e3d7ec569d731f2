rule merge:
    input:
        expand("results/{{experiment}}/shards/{{label}}/{shard}.csv", shard=E.shards),
    output:
        "results/{experiment}/records/{label}.csv",
    log:
        "logs/{experiment}/merge-{label}.log",
    conda:
        "../../envs/workflow.yaml"
    params:
        num_prompts=len(E.prompts),
        code=source_hash("eigencache.stages.merge"),
    shell:
        "python -m eigencache.stages.merge --shards {input} --count {params.num_prompts} "
        "--records {output} > {log} 2>&1"
