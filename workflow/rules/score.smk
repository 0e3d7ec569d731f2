MANIFESTS = {
    name: [f"models/{model}/manifest.json" for model in models]
    for name, models in E.metrics.items()
}
REFERENCE_GROUPS = list(dict.fromkeys(map(E.group, E.reference_labels)))


rule score:
    """Score the images of a shard against the references and the prompts."""
    input:
        records="results/{experiment}/shards/{group}/{shard}.csv",
        images="results/{experiment}/images/{group}/{shard}",
        references=expand(
            "results/{{experiment}}/shards/{group}/{{shard}}.csv",
            group=REFERENCE_GROUPS,
        ),
        reference_images=expand(
            "results/{{experiment}}/images/{group}/{{shard}}", group=REFERENCE_GROUPS
        ),
        models=sorted({path for paths in MANIFESTS.values() for path in paths}),
        environment=[IMAGEREWARD] if "image_reward" in E.metrics else [],
    output:
        scores="results/{experiment}/scores/{group}/{shard}.csv",
        features=(
            ["results/{experiment}/features/{group}/{shard}.safetensors"]
            if E.set_metrics
            else []
        ),
    log:
        "logs/{experiment}/score-{group}-{shard}.log",
    benchmark:
        "results/{experiment}/benchmarks/score-{group}-{shard}.tsv"
    conda:
        "../../envs/workflow.yaml"
    threads: E.config.threads
    resources:
        gpu=1,
        mem_mb=REQUESTS.mem_mb,
    params:
        options=options(
            metrics=MANIFESTS,
            references=E.config.references,
            threads=E.config.threads,
        ),
        code=lambda w: [
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
        "--scores {output.scores:q} --features {output.features:q} 2>&1 | tee {log:q}"


rule gather:
    """Join the scores of a method's shards, and compute its metrics of whole sets."""
    input:
        shards=lambda w: [f"results/{NAME}/scores/{p}.csv" for p in E.parts(w.label)],
        records="results/{experiment}/records/{label}.csv",
        features=lambda w: E.features([w.label]),
        references=E.features(E.reference_labels),
    output:
        scores="results/{experiment}/scores/{label}.csv",
        sets=["results/{experiment}/sets/{label}.csv"] if E.set_metrics else [],
    log:
        "logs/{experiment}/gather-{label}.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        references=E.config.references,
        code=lambda w: E.code_of("reproduction.stages.gather"),
    shell:
        "python -m reproduction.stages.gather --shards {input.shards:q} "
        "--records {input.records:q} --features {input.features:q} "
        "--reference-features {input.references:q} --references {params.references:q} "
        "--scores {output.scores:q} --sets {output.sets:q} > {log:q} 2>&1"
