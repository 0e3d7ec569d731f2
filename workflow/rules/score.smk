from eigencache.metrics import METRICS

SET_METRICS = [name for name in E.metrics if METRICS[name].whole]
MANIFESTS = {
    name: [f"models/{model}/manifest.json" for model in models]
    for name, models in E.metrics.items()
}


rule score:
    """Score the images of one method against the references and the prompts."""
    input:
        records="results/{experiment}/records/{label}.csv",
        references=expand(
            "results/{{experiment}}/records/{label}.csv", label=E.reference_labels
        ),
        models=sorted({path for paths in MANIFESTS.values() for path in paths}),
        environment=[IMAGEREWARD] if "image_reward" in E.metrics else [],
    output:
        scores="results/{experiment}/scores/{label}.csv",
        sets=["results/{experiment}/sets/{label}.csv"] if SET_METRICS else [],
    log:
        "logs/{experiment}/score-{label}.log",
    benchmark:
        "results/{experiment}/benchmarks/score-{label}.tsv"
    conda:
        "../../envs/workflow.yaml"
    threads: E.config.threads
    resources:
        gpu=1,
    params:
        options=options(
            metrics=json.dumps(MANIFESTS),
            references=E.config.references,
            threads=E.config.threads,
        ),
        code=[
            E.code_of(module)
            for module in (
                "reproduction.stages.score",
                *(f"eigencache.metrics._{name}" for name in E.metrics),
            )
        ],
    shell:
        "python -m reproduction.devices.lease {resources.gpu} -- "
        "python -m reproduction.stages.score --records {input.records:q} "
        "--reference-records {input.references:q} --models {input.models:q} {params.options:q} "
        "--scores {output.scores:q} --sets {output.sets:q} 2>&1 | tee {log:q}"
