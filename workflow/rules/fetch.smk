# A model of a hub is fetched where Snakemake itself runs: a cluster's nodes may have no connection.

with open("data/models.tsv") as file:
    PINS = file.readlines()


rule fetch:
    input:
        # What counts are the lines of the model, below.
        table=ancient("data/models.tsv"),
    output:
        # Kept while the job runs: what it says was checked need not be asked of a hub again.
        update("models/{model}/manifest.json"),
    log:
        "logs/fetch/{model}.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        pins=lambda w: [p for p in PINS if p.split("\t")[0] == w.model],
        path=lambda w: [
            p for p in [E.config["model_path"]] if p and w.model == E.config["model"]
        ],
        code=source_hash("eigencache.stages.fetch"),
    shell:
        # The stage tries again by itself, so the rule has no `retries`.
        "HF_HUB_OFFLINE=0 python -m eigencache.stages.fetch --table {input.table} "
        "--model {wildcards.model} --model-path {params.path:q} --manifest {output} "
        "2>&1 | tee {log}"
