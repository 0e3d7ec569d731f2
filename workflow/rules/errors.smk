ERRORS = E.config.figures.errors


rule errors:
    """Measure what cached runs miss at every step, beside what was predicted."""
    input:
        model=f"models/{E.config.model}/manifest.json",
        prompts=E.config.prompts,
        plans=expand(
            "results/{{experiment}}/plans/{label}/{budget}.safetensors",
            label=[label for label in E.planned if label in E.budgeted],
            budget=ERRORS.budget,
        ),
        kernel="results/{experiment}/kernels/output.full.second-moment.safetensors",
    output:
        "results/{experiment}/errors.csv",
    log:
        "logs/{experiment}/errors.log",
    benchmark:
        "results/{experiment}/benchmarks/errors.tsv"
    conda:
        "../../envs/workflow.yaml"
    threads: E.config.threads
    resources:
        gpu=1,
        low_memory=int(E.config.low_memory),  # no result depends on it
    params:
        indices=ERRORS.prompts,
        seed=E.config.seed,
        pipeline=E.config.pipeline or [],
        arguments=json.dumps(E.config.arguments.stated),
        dtype=E.config.dtype,
        threads=E.config.threads,
        anchor_device=E.config.anchor_device or [],
        code=code_of("reproduction.stages.errors"),
    shell:
        "python -m reproduction.devices.lease {resources.gpu} -- "
        "python -m reproduction.stages.errors --model {input.model:q} "
        "--pipeline {params.pipeline:q} --arguments {params.arguments:q} --dtype {params.dtype:q} "
        "--plans {input.plans:q} "
        "--kernel {input.kernel:q} --prompts {input.prompts:q} --indices {params.indices:q} "
        "--seed {params.seed:q} --threads {threads} "
        "--low-memory {resources.low_memory} --anchor-device {params.anchor_device:q} "
        "--table {output:q} 2>&1 | tee {log:q}"
