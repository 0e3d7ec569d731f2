rule score:
    input:
        records="results/{experiment}/records/{label}.csv",
        reference="results/{experiment}/records/full.csv",
        clip=f"models/{E.config['clip']}/manifest.json",
    output:
        "results/{experiment}/scores/{label}.csv",
    log:
        "logs/{experiment}/score-{label}.log",
    benchmark:
        "results/{experiment}/benchmarks/score-{label}.tsv"
    conda:
        "../../envs/workflow.yaml"
    threads: E.config["threads"]
    params:
        code=source_hash("eigencache.stages.score"),
    shell:
        "python -m eigencache.stages.score --records {input.records} "
        "--reference {input.reference} --clip {input.clip} --threads {threads} "
        "--scores {output} 2>&1 | tee {log}"
