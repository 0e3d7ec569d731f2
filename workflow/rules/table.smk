rule table:
    input:
        records=expand("results/{{experiment}}/records/{label}.csv", label=E.labels),
        scores=expand("results/{{experiment}}/scores/{label}.csv", label=E.labels),
    output:
        "results/{experiment}/summary.csv",
    log:
        "logs/{experiment}/table.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        code=source_hash("eigencache.stages.table"),
    shell:
        "python -m eigencache.stages.table --records {input.records} --scores {input.scores} "
        "--summary {output} 2>&1 | tee {log}"
