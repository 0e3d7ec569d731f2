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
    params:
        prompts=E.calibration_prompts,
        seed=E.config["calibration"]["seed"],
        sampler=json.dumps(E.config["sampler"]),
        threads=E.config["threads"],
        code=source_hash("eigencache.stages.calibrate"),
    shell:
        "python -m eigencache.stages.calibrate --model {input.model} --prompts {input.prompts} "
        f"--num-prompts {len(E.calibration_prompts)} --seed {{params.seed}} "
        "--sampler {params.sampler:q} --threads {threads} --kernels {output} 2>&1 | tee {log}"
