# The first page of `snakemake --report`, to which figures and tables add themselves.


report: "../report/workflow.rst"


rule gallery:
    input:
        records=expand("results/{{experiment}}/records/{label}.csv", label=E.labels),
        scores="results/{experiment}/scores.csv",
        summary="results/{experiment}/summary.csv",
    output:
        # Not in the report, where browsers refuse a page of this size; its first page links here.
        "results/{experiment}/gallery.html",
    log:
        "logs/{experiment}/gallery.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        budgets=E.config["figures"]["gallery"].get("budgets", []),
        prompts=list(E.gallery_prompts),
        size=E.config["figures"]["gallery"]["size"],
        code=source_hash("reproduction.gallery.page", "page.html", "page.css", "page.js"),
    shell:
        "python -m reproduction.gallery.page --title {wildcards.experiment} "
        "--records {input.records} --scores {input.scores} --summary {input.summary} "
        "--budgets {params.budgets} --prompts {params.prompts} --size {params.size} "
        "--page {output} > {log} 2>&1"
