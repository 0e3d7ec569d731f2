from reproduction.experiment import hash_of


rule refine:
    """Fit the plans of a method with the network in the loop."""
    input:
        kernel=lambda w: f"results/{w.experiment}/kernels/{E.kernel(w.label)}.safetensors",
        model=f"models/{E.config.model}/manifest.json",
        prompts=E.config.calibration.prompts,
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
        low_memory=int(E.config.low_memory),  # no result depends on it
    params:
        method=lambda w: json.dumps(E.spec(w.label)),
        prompts=hash_of(E.calibration_prompts),
        seed=E.config.calibration.seed,
        pipeline=E.config.pipeline or [],
        arguments=json.dumps(E.config.arguments.stated),
        dtype=E.config.dtype,
        threads=E.config.threads,
        code=lambda w: code_of("reproduction.stages.refine", w.label),
    shell:
        "python -m reproduction.devices.lease {resources.gpu} -- "
        "python -m reproduction.stages.refine --model {input.model:q} "
        "--pipeline {params.pipeline:q} --arguments {params.arguments:q} --dtype {params.dtype:q} "
        "--kernel {input.kernel:q} "
        "--method {params.method:q} --prompts {input.prompts:q} "
        f"--num-prompts {len(E.calibration_prompts)} --seed {{params.seed}} "
        "--threads {threads} "
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
