from reproduction.experiment import hash_of


rule calibrate:
    """Record the kernels of the methods on the calibration prompts."""
    input:
        model=f"models/{E.config.model}/manifest.json",
        prompts=E.config.calibration.prompts,
        images=E.config.calibration_images,  # that the prompts name
    output:
        expand("results/{{experiment}}/kernels/{kernel}.safetensors", kernel=E.kernels),
    log:
        "logs/{experiment}/calibrate.log",
    benchmark:
        "results/{experiment}/benchmarks/calibrate.tsv"
    conda:
        "../../envs/workflow.yaml"
    threads: E.config.threads
    resources:
        gpu=1,
        mem_mb=REQUESTS.mem_mb,
        runtime=REQUESTS.runtime((1 + len(E.calibration_prompts)) * STEPS),
        low_memory=int(E.config.low_memory),  # no result depends on it
    params:
        prompts=hash_of(E.calibration_prompts),
        options=options(
            num_prompts=len(E.calibration_prompts),
            seed=E.config.calibration.seed,
            **E.pipeline,
        ),
        code=lambda w: E.code_of("reproduction.stages.calibrate"),
    shell:
        "python -m reproduction.devices.lease {resources.gpu} -- "
        "python -m reproduction.stages.calibrate --model {input.model:q} "
        "--prompts {input.prompts:q} {params.options:q} "
        "--low-memory {resources.low_memory} --kernels {output:q} 2>&1 | tee {log:q}"
