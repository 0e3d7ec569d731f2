# A model of a hub is fetched where Snakemake itself runs: a cluster's nodes may have no connection.

from reproduction.models.requests import Requests

with open("data/models.tsv") as file:
    PINS = file.readlines()

# What jobs that load a model ask a cluster for.
REQUESTS = Requests(E.config.dtype, E.config.step_seconds)
STEPS = E.config.arguments.num_inference_steps


rule fetch:
    """Fetch a model, and check every file against data/models.tsv."""
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
                E.config.metric_models.get(w.model)
                or (w.model == E.config.model and E.config.model_path)
            ]
            if p
        ],
        # A misspelt argument is told before large files are fetched.
        called=lambda w: (
            [
                *(["--pipeline", E.config.pipeline] if E.config.pipeline else []),
                "--arguments",
                *sorted(E.config.arguments.stated),
            ]
            if w.model == E.config.model
            else []
        ),
    shell:
        # The stage tries again by itself, so the rule has no `retries`.
        "HF_HUB_OFFLINE=0 python -m reproduction.stages.fetch --table {input.table:q} "
        "--model {wildcards.model:q} --model-path {params.path:q} --manifest {output:q} "
        "{params.called:q} "
        "2>&1 | tee {log:q}"


# ImageReward wants other versions than the workflow, so it has an environment of its own.

IMAGEREWARD = "build/imagereward/installed.txt"


rule image_reward_environment:
    """Build the environment of ImageReward, whose requirements exclude the workflow's."""
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
                uv venv --clear --python "$(command -v python)" {params.folder:q}
                uv pip install --python {params.folder:q}/bin/python -r {input:q}
                uv pip freeze --python {params.folder:q}/bin/python >{output:q}
            else
                python -m venv --clear {params.folder:q}
                {params.folder:q}/bin/pip install -r {input:q}
                {params.folder:q}/bin/pip freeze >{output:q}
            fi
        ) 2>&1 | tee {log:q}
        """
