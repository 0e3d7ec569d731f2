from snakemake.logging import logger

from reproduction.experiment import hash_of

PROMPTS = hash_of(E.prompts)
if workflow.is_main_process:
    logger.info(f"shards: {E.sharding}")


rule sample:
    """Sample all budgets of one method over one shard of the prompts."""
    input:
        model=f"models/{E.config.model}/manifest.json",
        prompts=E.config.prompts,
        plans=lambda w: E.plans(w.label),
    output:
        "results/{experiment}/shards/{label}/{shard}.csv",
    log:
        "logs/{experiment}/sample-{label}-{shard}.log",
    benchmark:
        "results/{experiment}/benchmarks/sample-{label}-{shard}.tsv"
    conda:
        "../../envs/workflow.yaml"
    threads: E.config.threads
    resources:
        gpu=1,
    params:
        method=lambda w: E.spec(w.label)["method"],
        budgets=E.config.budgets,
        num_prompts=len(E.prompts),
        prompts=PROMPTS,
        shards=len(E.shards),
        seed=E.config.seed,
        pipeline=E.config.pipeline or [],
        arguments=json.dumps(E.config.arguments.stated),
        dtype=E.config.dtype,
        timed=E.config.timed_prompts,
        threads=E.config.threads,
        # The images do not depend on these, but the seconds and the memory recorded do.
        low_memory=int(E.config.low_memory),
        anchor_device=E.config.anchor_device or [],
        images="results/{experiment}/images",
        code=code_of("reproduction.stages.sample"),
    shell:
        "python -m reproduction.devices.lease {resources.gpu} -- "
        "python -m reproduction.stages.sample --model {input.model:q} "
        "--pipeline {params.pipeline:q} --arguments {params.arguments:q} --dtype {params.dtype:q} "
        "--label {wildcards.label:q} "
        "--method {params.method:q} --budgets {params.budgets:q} --plans {input.plans:q} "
        "--prompts {input.prompts:q} --num-prompts {params.num_prompts:q} "
        "--shard $((10#{wildcards.shard:q})) --shards {params.shards:q} --seed {params.seed:q} "
        "--timed {params.timed:q} --threads {params.threads:q} "
        "--low-memory {params.low_memory:q} --anchor-device {params.anchor_device:q} "
        "--images {params.images:q} --records {output:q} 2>&1 | tee {log:q}"
