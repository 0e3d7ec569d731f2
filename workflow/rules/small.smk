# The built-in plans: small models and their kernels.
#
# Nothing else in the workflow depends on these rules: the kernels live in git, in
# eigencache/built_in.safetensors.  To make them again, run
#
#     snakemake --use-conda --cores 2 built_in
#
# and copy results/train/built_in.safetensors over that file; results/benchmarks/built_in.csv then
# judges it.
# shapes-flow, letters-flow, letters-epsilon and the three of v take minutes on one CPU core, the
# others one or two minutes on a GPU and a night without.

SMALL = [
    "shapes-flow",
    "letters-flow",
    "twemoji-flow",
    "letters-epsilon",
    "emoji-epsilon",
    "shapes-epsilon",
    "letters-v",
    "shapes-v",
    "emoji-v",
]
# The package of a model's pictures, and where in it they are; drawn ones are in none.
PICTURES = dict.fromkeys(SMALL, ("fluent-emoji-3d", "assets"))
PICTURES["twemoji-flow"] = ("emoji-datasource-twitter", "img/twitter/64")
EMBEDDED = "data/emoji-flux"


rule built_in:
    """The kernels of all models that built-in plans are made from."""
    input:
        models=expand("results/train/small/{small}", small=SMALL),
        embedded=EMBEDDED,
        prompts=expand(
            "data/prompts/emoji-{kind}.txt", kind=["calibration", "evaluation"]
        ),
    output:
        "results/train/built_in.safetensors",
    log:
        "results/train/logs/built_in.log",
    conda:
        "../../envs/workflow.yaml"
    shell:
        "python -m training.kernels --out {output} {input.embedded} {input.models}"
        " --threads {threads} 2>&1 | tee {log}"


rule small_model:
    """Train one small model."""
    input:
        data=EMOJI,
        pictures=lambda wildcards: f"results/train/npm/{PICTURES[wildcards.small][0]}",
    output:
        directory("results/train/small/{small}"),
    log:
        "results/train/logs/small-{small}.log",
    benchmark:
        "results/train/benchmarks/small-{small}.tsv"
    wildcard_constraints:
        small="|".join(SMALL),
    conda:
        "../../envs/workflow.yaml"
    params:
        assets=lambda wildcards, input: f"{input.pictures}/{PICTURES[wildcards.small][1]}",
    shell:
        "python -m training.small {wildcards.small} --data {input.data} --assets {params.assets}"
        " --out {output} --threads {threads} 2>&1 | tee {log}"
