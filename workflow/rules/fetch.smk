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
            p
            for p in [
                E.config["metric_models"].get(w.model)
                or (w.model == E.config["model"] and E.config["model_path"])
            ]
            if p
        ],
        code=source_hash("reproduction.stages.fetch"),
    shell:
        # The stage tries again by itself, so the rule has no `retries`.
        "HF_HUB_OFFLINE=0 python -m reproduction.stages.fetch --table {input.table} "
        "--model {wildcards.model} --model-path {params.path:q} --manifest {output} "
        "2>&1 | tee {log}"


# ImageReward wants other versions than the workflow, so it has an environment of its own.

IMAGEREWARD = "build/imagereward/installed.txt"


rule image_reward_environment:
    input:
        "envs/imagereward.txt",
    output:
        IMAGEREWARD,
    log:
        "logs/image-reward-environment.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        folder=lambda w, output: os.path.dirname(output[0]),
    shell:
        """
        (
            if command -v uv; then
                uv venv --clear --python "$(command -v python)" {params.folder}
                uv pip install --python {params.folder}/bin/python -r {input}
                uv pip freeze --python {params.folder}/bin/python >{output}
            else
                python -m venv --clear {params.folder}
                {params.folder}/bin/pip install -r {input}
                {params.folder}/bin/pip freeze >{output}
            fi
        ) 2>&1 | tee {log}
        """
