# What streams hold along one calibration run, to look at; nothing else in the workflow needs it.

from eigencache.plan import TAPS


rule collect:
    """Record what streams hold along one calibration run; made by its path alone."""
    input:
        model=f"models/{E.config.model}/manifest.json",
        prompts=E.config.calibration.prompts,
        images=E.config.calibration_images,  # that the prompts name
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
        mem_mb=REQUESTS.mem_mb,
        runtime=REQUESTS.runtime(STEPS),
        low_memory=int(E.config.low_memory),  # no result depends on it
    params:
        options=lambda w: options(
            tap=w.tap,
            index=E.config.collect.prompt,
            features=E.config.collect.features,
            streams=E.config.collect.streams.get(w.tap, ["*"]),
            seed=E.config.calibration.seed,
            **E.pipeline,
        ),
        code=lambda w: E.code_of("reproduction.stages.collect"),
    shell:
        "python -m reproduction.devices.lease {resources.gpu} -- "
        "python -m reproduction.stages.collect --model {input.model:q} "
        "--prompts {input.prompts:q} {params.options:q} "
        "--low-memory {resources.low_memory} --trajectory {output:q} > {log:q} 2>&1"
