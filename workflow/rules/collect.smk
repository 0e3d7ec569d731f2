# What streams hold along one calibration run, to look at; nothing else in the workflow needs it.

from eigencache.plan import TAPS


rule collect:
    """Record what streams hold along one calibration run; made by its path alone."""
    input:
        model=f"models/{E.config.model}/manifest.json",
        prompts=E.config.calibration.prompts,
    output:
        "results/{experiment}/collected/{tap}.safetensors",
    log:
        "logs/{experiment}/collect-{tap}.log",
    wildcard_constraints:
        tap=one_of(TAPS),
    conda:
        "../../envs/workflow.yaml"
    threads: E.config.threads
    resources:
        gpu=1,
        low_memory=int(E.config.low_memory),  # no result depends on it
    params:
        index=E.config.collect.prompt,
        features=E.config.collect.features,
        streams=lambda w: E.config.collect.streams.get(w.tap, ["*"]),
        seed=E.config.calibration.seed,
        pipeline=E.config.pipeline or [],
        arguments=json.dumps(E.config.arguments.stated),
        dtype=E.config.dtype,
        code=code_of("reproduction.stages.collect"),
    shell:
        "python -m reproduction.devices.lease {resources.gpu} -- "
        "python -m reproduction.stages.collect --model {input.model:q} "
        "--pipeline {params.pipeline:q} --arguments {params.arguments:q} --dtype {params.dtype:q} "
        "--prompts {input.prompts:q} "
        "--index {params.index:q} --seed {params.seed:q} "
        "--low-memory {resources.low_memory} --threads {threads} "
        "--tap {wildcards.tap:q} --streams {params.streams:q} "
        "--features {params.features:q} --trajectory {output:q} > {log:q} 2>&1"
