from snakemake.logging import logger

from reproduction.experiment import hash_of

PROMPTS = hash_of(E.prompts)
if workflow.is_main_process:
    logger.info(f"shards: {E.sharding}")


rule sample:
    input:
        model=f"models/{E.config['model']}/manifest.json",
        prompts=E.config["prompts"],
        plans=lambda w: E.plans(w.label),
    output:
        "results/{experiment}/shards/{label}/{shard}.csv",
    log:
        "logs/{experiment}/sample-{label}-{shard}.log",
    benchmark:
        "results/{experiment}/benchmarks/sample-{label}-{shard}.tsv"
    conda:
        "../../envs/workflow.yaml"
    threads: E.config["threads"]
    resources:
        gpu=1,
    params:
        method=lambda w: E.spec(w.label)["method"],
        budgets=E.config["budgets"],
        num_prompts=len(E.prompts),
        prompts=PROMPTS,
        shards=len(E.shards),
        seed=E.config["seed"],
        sampler=json.dumps(E.config["sampler"]),
        timed=E.config["timed_prompts"],
        threads=E.config["threads"],
        # The images do not depend on these, but the seconds and the memory recorded do.
        low_memory=int(E.config["low_memory"]),
        anchor_device=E.config["anchor_device"] or [],
        images="results/{experiment}/images",
        code=source_hash("reproduction.stages.sample"),
    shell:
        "python -m reproduction.devices.lease {resources.gpu} -- "
        "python -m reproduction.stages.sample --model {input.model} --label {wildcards.label} "
        "--method {params.method} --budgets {params.budgets} --plans {input.plans} "
        "--prompts {input.prompts} --num-prompts {params.num_prompts} "
        "--shard $((10#{wildcards.shard})) --shards {params.shards} --seed {params.seed} "
        "--sampler {params.sampler:q} --timed {params.timed} --threads {params.threads} "
        "--low-memory {params.low_memory} --anchor-device {params.anchor_device} "
        "--images {params.images} --records {output} 2>&1 | tee {log}"
