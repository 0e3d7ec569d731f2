rule fetch:
    input:
        table="data/models.tsv",
    output:
        "models/{model}/manifest.json",
    log:
        "logs/fetch/{model}.log",
    conda:
        "../../envs/workflow.yaml"
    params:
        code=source_hash("eigencache.stages.fetch"),
    shell:
        "python -m eigencache.stages.fetch --table {input.table} --model {wildcards.model} "
        "--manifest {output} > {log} 2>&1"
