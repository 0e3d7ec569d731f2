COSTS = E.config.figures.costs


rule costs:
    """Measure what steps take and what the cache holds, by tap."""
    input:
        model=f"models/{E.config.model}/manifest.json",
        prompts=E.config.prompts,
        images=E.config.evaluation_images,  # that the prompts name
    output:
        "results/{experiment}/costs.csv",
    log:
        "logs/{experiment}/costs.log",
    benchmark:
        "results/{experiment}/benchmarks/costs.tsv"
    conda:
        "../../envs/workflow.yaml"
    threads: E.config.threads
    resources:
        gpu=1,
        mem_mb=REQUESTS.mem_mb,
        runtime=REQUESTS.runtime(6 * (1 + COSTS.images) * STEPS),
    params:
        options=options(
            images=COSTS.images,
            full_steps=COSTS.budget,
            seed=E.config.seed,
            **E.pipeline,
            low_memory=E.config.low_memory,
            anchor_device=E.config.anchor_device,
        ),
        code=lambda w: E.code_of("reproduction.stages.costs"),
    shell:
        "python -m reproduction.devices.lease {resources.gpu} -- "
        "python -m reproduction.stages.costs --model {input.model:q} "
        "--prompts {input.prompts:q} {params.options:q} --table {output:q} 2>&1 | tee {log:q}"
