from reproduction.experiment import hash_of


rule calibrate:
    input:
        model=f"models/{E.config['model']}/manifest.json",
        prompts=E.config["calibration"]["prompts"],
    output:
        expand("results/{{experiment}}/kernels/{kernel}.safetensors", kernel=E.kernels),
    log:
        "logs/{experiment}/calibrate.log",
    benchmark:
        "results/{experiment}/benchmarks/calibrate.tsv"
    conda:
        "../../envs/workflow.yaml"
    threads: E.config["threads"]
    resources:
        gpu=1,
        low_memory=int(E.config["low_memory"]),  # no result depends on it
    params:
        prompts=hash_of(E.calibration_prompts),
        seed=E.config["calibration"]["seed"],
        sampler=json.dumps(E.config["sampler"]),
        threads=E.config["threads"],
        code=source_hash("reproduction.stages.calibrate"),
    shell:
        "python -m reproduction.devices.lease {resources.gpu} -- "
        "python -m reproduction.stages.calibrate --model {input.model} --prompts {input.prompts} "
        f"--num-prompts {len(E.calibration_prompts)} --seed {{params.seed}} "
        "--sampler {params.sampler:q} --threads {threads} "
        "--low-memory {resources.low_memory} --kernels {output} 2>&1 | tee {log}"
