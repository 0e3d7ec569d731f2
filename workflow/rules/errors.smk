ERRORS = E.config.figures.errors


rule errors:
    """Measure what cached runs miss at every step, beside what was predicted."""
    input:
        model=f"models/{E.config.model}/manifest.json",
        prompts=E.config.prompts,
        images=E.config.evaluation_images,  # that the prompts name
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
        mem_mb=REQUESTS.mem_mb,
        runtime=REQUESTS.runtime(
            (1 + len(E.planned)) * (1 + len(ERRORS.prompts)) * STEPS
        ),
        low_memory=int(E.config.low_memory),  # no result depends on it
    params:
        options=options(
            indices=ERRORS.prompts,
            seed=E.config.seed,
            anchor_device=E.config.anchor_device,
            **E.pipeline,
        ),
        code=lambda w: E.code_of("reproduction.stages.errors"),
    shell:
        "python -m reproduction.devices.lease {resources.gpu} -- "
        "python -m reproduction.stages.errors --model {input.model:q} --plans {input.plans:q} "
        "--kernel {input.kernel:q} --prompts {input.prompts:q} {params.options:q} "
        "--low-memory {resources.low_memory} --table {output:q} 2>&1 | tee {log:q}"
