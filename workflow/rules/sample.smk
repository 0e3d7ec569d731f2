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
        prompts=PROMPTS,
        # The images do not depend on the last two, but the seconds and the memory recorded do.
        options=lambda w: options(
            label=w.label,
            method=E.spec(w.label)["method"],
            budgets=E.budgets(w.label),
            num_prompts=len(E.prompts),
            shard=int(w.shard),
            shards=len(E.shards),
            seed=E.config.seed,
            timed=E.config.timed_prompts,
            images=f"results/{NAME}/images",
            **E.pipeline,
            low_memory=E.config.low_memory,
            anchor_device=E.config.anchor_device,
        ),
        code=E.code_of("reproduction.stages.sample"),
    shell:
        "python -m reproduction.devices.lease {resources.gpu} -- "
        "python -m reproduction.stages.sample --model {input.model:q} --plans {input.plans:q} "
        "--prompts {input.prompts:q} {params.options:q} --records {output:q} 2>&1 | tee {log:q}"
