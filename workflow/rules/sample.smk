from snakemake.logging import logger

from reproduction.experiment import hash_of

PROMPTS = hash_of(E.prompts)
# What tables of images name.
IMAGES = [f"results/{NAME}/images/{g}/{shard}" for g in E.groups for shard in E.shards]
if workflow.is_main_process:
    logger.info(f"shards: {E.sharding}")


rule sample:
    """Sample all budgets of the methods of a group over one shard of the prompts."""
    input:
        model=f"models/{E.config.model}/manifest.json",
        prompts=E.config.prompts,
        images=E.config.evaluation_images,  # that the prompts name
        plans=lambda w: [path for label in E.groups[w.group] for path in E.plans(label)],
    output:
        records="results/{experiment}/shards/{group}/{shard}.csv",
        images=directory("results/{experiment}/images/{group}/{shard}"),
    log:
        "logs/{experiment}/sample-{group}-{shard}.log",
    benchmark:
        "results/{experiment}/benchmarks/sample-{group}-{shard}.tsv"
    # Longer than what can run beside it, scores and figures.
    priority: 5
    conda:
        "../../envs/workflow.yaml"
    threads: E.config.threads
    resources:
        gpu=1,
        mem_mb=REQUESTS.mem_mb,
        runtime=REQUESTS.runtime(lambda w: len(E.groups[w.group]) * E.sharding.longest),
    params:
        prompts=PROMPTS,
        # The images do not depend on the last two, but the seconds and the memory recorded do.
        options=lambda w: options(
            **E.sampling(w.group),
            shard=int(w.shard),
            timed=E.config.timed_prompts,
            threads=E.config.threads,
            low_memory=E.config.low_memory,
            anchor_device=E.config.anchor_device,
        ),
        code=lambda w: E.code_of("reproduction.stages.sample"),
    shell:
        "python -m reproduction.devices.lease {resources.gpu} -- "
        "python -m reproduction.stages.sample --model {input.model:q} --plans {input.plans:q} "
        "--prompts {input.prompts:q} {params.options:q} --images {output.images:q} "
        "--records {output.records:q} 2>&1 | tee {log:q}"
