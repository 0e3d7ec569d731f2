rule merge:
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
        num_prompts=len(E.prompts),
        settings=lambda w: json.dumps(E.sampling(w.label)),
        code=source_hash("reproduction.stages.merge"),
    shell:
        "python -m reproduction.stages.merge --shards {input} --count {params.num_prompts} "
        "--settings {params.settings:q} --records {output} > {log} 2>&1"
