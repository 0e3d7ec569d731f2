COSTS = E.config.figures.costs


rule costs:
    """Measure what steps take and what the cache holds, by tap."""
    input:
        model=f"models/{E.config.model}/manifest.json",
        prompts=E.config.prompts,
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
    params:
        images=COSTS.images,
        full_steps=COSTS.budget,
        seed=E.config.seed,
        pipeline=E.config.pipeline or [],
        arguments=json.dumps(E.config.arguments.stated),
        dtype=E.config.dtype,
        threads=E.config.threads,
        low_memory=int(E.config.low_memory),
        anchor_device=E.config.anchor_device or [],
        code=code_of("reproduction.stages.costs"),
    shell:
        "python -m reproduction.devices.lease {resources.gpu} -- "
        "python -m reproduction.stages.costs --model {input.model:q} "
        "--pipeline {params.pipeline:q} --arguments {params.arguments:q} --dtype {params.dtype:q} "
        "--prompts {input.prompts:q} "
        "--images {params.images:q} --full-steps {params.full_steps:q} --seed {params.seed:q} "
        "--threads {threads} --low-memory {params.low_memory:q} "
        "--anchor-device {params.anchor_device:q} --table {output:q} 2>&1 | tee {log:q}"
