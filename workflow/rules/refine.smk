from reproduction.experiment import hash_of


rule refine:
    """Make the plans of a method with the network: fitted, or tried for a quality."""
    input:
        kernel=lambda w: (
            []  # the closed loop makes its own
            if E.is_closed(w.label)
            else f"results/{w.experiment}/kernels/{E.kernel(w.label)}.safetensors"
        ),
        model=f"models/{E.config.model}/manifest.json",
        prompts=E.config.calibration.prompts,
        images=E.config.calibration_images,  # that the prompts name
    output:
        expand(
            "results/{{experiment}}/plans/{{label}}/{budget}.safetensors",
            budget=E.config.budgets,
        ),
    log:
        "logs/{experiment}/refine-{label}.log",
    benchmark:
        "results/{experiment}/benchmarks/refine-{label}.tsv"
    wildcard_constraints:
        label=one_of(set(E.refined) - set(E.bounded)),
    # The longest job of an experiment, with sampling to follow: the sooner it starts the better.
    priority: 10
    conda:
        "../../envs/workflow.yaml"
    threads: E.config.threads
    resources:
        gpu=1,
        mem_mb=REQUESTS.mem_mb,
        # What a closed loop computes at most; for a target quality it tries some six budgets.
        runtime=REQUESTS.runtime(
            lambda w: (16 if E.is_closed(w.label) else 1)
            * (6 if w.label in E.bounded else len(E.config.budgets))
            * len(E.calibration_prompts)
            * STEPS
        ),
        low_memory=int(E.config.low_memory),  # no result depends on it
    params:
        prompts=hash_of(E.calibration_prompts),
        options=lambda w: options(
            method=json.dumps(E.spec(w.label)),
            num_prompts=len(E.calibration_prompts),
            seed=E.config.calibration.seed,
            **E.pipeline,
        ),
        code=lambda w: E.code_of("reproduction.stages.refine", w.label),
    shell:
        "python -m reproduction.devices.lease {resources.gpu} -- "
        "python -m reproduction.stages.refine --model {input.model:q} --kernel {input.kernel:q} "
        "--prompts {input.prompts:q} {params.options:q} "
        "--low-memory {resources.low_memory} --plans {output:q} 2>&1 | tee {log:q}"


use rule refine as refine_for_quality with:
    output:
        "results/{experiment}/plans/{label}/psnr.safetensors",
    log:
        "logs/{experiment}/refine-{label}.log",
    benchmark:
        "results/{experiment}/benchmarks/refine-{label}.tsv"
    wildcard_constraints:
        label=one_of(E.bounded),
