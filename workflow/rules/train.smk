# Training of emoji-flux and emoji-clip from the emoji pictures, to the model cards.
#
# Nothing else in the workflow depends on these rules: the trained weights live in git under
# data/emoji-flux and data/emoji-clip.  To replace them by a retrained model, run
#
#     snakemake --use-conda --cores 2 emoji_models
#
# look at results/train/flux/contact-sheet.png and at the card beside it, and copy results/train/flux
# and results/train/clip-card over data/emoji-flux and data/emoji-clip.  With a GPU the training takes
# minutes, on two CPU cores a night.  `emoji_bundle` packs it for a GPU elsewhere.

import csv

with open("data/emoji/packages.tsv", newline="") as file:
    NPM = {row["key"]: row for row in csv.DictReader(file, delimiter="\t")}

EMOJI = "data/emoji/emoji.tsv"
ASSETS = "results/train/npm/fluent-emoji-3d/assets"
# Everything is trained from nothing; with START = "data/emoji-flux" the training goes on from that
# model's weights, autoencoder and tokenizers.
START = ""
# Captions that the card's proof leaves to the experiments.
APART = expand("data/prompts/emoji-{kind}.txt", kind=["calibration", "evaluation"])
# On shared cores, OpenMP threads that spin for long or change cores stop each other.
SPIN = "GOMP_SPINCOUNT=100000 OMP_PROC_BIND=true"


rule emoji_models:
    """Both trained models with their cards."""
    input:
        "results/train/flux/README.md",
        "results/train/clip-card/README.md",


rule npm_package:
    """Fetch a package with npm's own client, check its hash, unpack it."""
    output:
        directory("results/train/npm/{key}"),
    log:
        "results/train/logs/npm-{key}.log",
    wildcard_constraints:
        key="|".join(NPM),
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        spec=lambda wildcards: "{package}@{version}".format(**NPM[wildcards.key]),
        tarball=lambda wildcards: NPM[wildcards.key]["tarball"],
        sha256=lambda wildcards: NPM[wildcards.key]["sha256"],
    shell:
        """
        (
            mkdir -p {output}
            npm pack --pack-destination {output} {params.spec}
            echo "{params.sha256}  {output}/{params.tarball}" | sha256sum --check -
            tar -xzf {output}/{params.tarball} -C {output} --strip-components 1
            rm {output}/{params.tarball}
        ) >{log} 2>&1
        """


rule emoji_sheet:
    """Check the pinned labels against emojibase and draw every emoji once, to look at."""
    input:
        data=EMOJI,
        pictures="results/train/npm/fluent-emoji-3d",
        labels="results/train/npm/emojibase-data",
    output:
        "results/train/renderings.png",
    log:
        "results/train/logs/sheet.log",
    conda:
        "../../envs/workflow.yaml"
    params:
        assets=ASSETS,
    shell:
        "python -m training.data --data {input.data} --assets {params.assets}"
        " --emojibase {input.labels}/en/data.json --out {output} 2>&1 | tee {log}"


rule emoji_flux:
    """Train autoencoder, flow transformer and text encoders, distil guidance, judge the pictures.

    What a run that was stopped has done is kept in checkpoints beside the outputs.
    """
    input:
        data=EMOJI,
        pictures="results/train/npm/fluent-emoji-3d",
        checked="results/train/renderings.png",
        prompts="data/prompts/emoji-card.txt",
        apart=APART,
        start=[START] if START else [],
    output:
        pipeline=directory("results/train/run/pipeline"),
        reports=expand(
            "results/train/run/{report}.json",
            report=["flow", "distil", "emoji-flux-proof"],
        ),
        sheet="results/train/run/emoji-flux.png",
    log:
        "results/train/logs/flux.log",
    benchmark:
        "results/train/benchmarks/flux.tsv"
    conda:
        "../../envs/workflow.yaml"
    threads: 2
    params:
        assets=ASSETS,
        spin=SPIN,
        start=f"--start {START}" if START else "",
    shell:
        "{params.spin} python -m training.run --data {input.data} --assets {params.assets}"
        " --prompts {input.prompts} --apart {input.apart} {params.start}"
        " --out results/train/run --threads {threads} 2>&1 | tee {log}"


rule emoji_bundle:
    """Pack that training into one folder for a machine with a GPU and no network."""
    input:
        data=EMOJI,
        pictures="results/train/npm/fluent-emoji-3d",
        prompts="data/prompts/emoji-card.txt",
        apart=APART,
        start=[START] if START else [],
    output:
        directory("results/train/bundle"),
    log:
        "results/train/logs/bundle.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        assets=ASSETS,
        start=f"--start {START}" if START else "",
    shell:
        "python -m training.bundle --data {input.data} --assets {params.assets}"
        " --prompts {input.prompts} --apart {input.apart} {params.start}"
        " --out {output} 2>&1 | tee {log}"


rule emoji_clip:
    """Train the CLIP of the same domain."""
    input:
        data=EMOJI,
        pictures="results/train/npm/fluent-emoji-3d",
        checked="results/train/renderings.png",
    output:
        model=directory("results/train/clip/model"),
        report="results/train/clip/clip.json",
    log:
        "results/train/logs/clip.log",
    benchmark:
        "results/train/benchmarks/clip.tsv"
    conda:
        "../../envs/workflow.yaml"
    threads: 2
    params:
        assets=ASSETS,
        spin=SPIN,
    shell:
        "{params.spin} python -m training.clip --data {input.data} --assets {params.assets}"
        " --out results/train/clip --threads {threads} 2>&1 | tee {log}"


rule emoji_cards:
    """Write the model directories as they are shipped: weights, reports, contact sheet, card."""
    input:
        data=EMOJI,
        flux=rules.emoji_flux.output,
        clip=rules.emoji_clip.output,
    output:
        "results/train/flux/README.md",
        "results/train/clip-card/README.md",
    log:
        "results/train/logs/cards.log",
    conda:
        "../../envs/workflow.yaml"
    shell:
        "python -m training.card --data {input.data}"
        " --flux results/train/run results/train/flux"
        " --clip results/train/clip results/train/clip-card 2>&1 | tee {log}"
