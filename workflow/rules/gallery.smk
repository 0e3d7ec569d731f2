# The first page of `snakemake --report`, to which figures and tables add themselves.


report: "../report/workflow.rst"


rule gallery:
    """Make the page that shows all runs side by side, with their images in it."""
    input:
        records=[f"results/{NAME}/records/{label}.csv" for label in E.labels],
        images=IMAGES,
        scores=f"results/{NAME}/scores.csv",
        summary=f"results/{NAME}/summary.csv",
    output:
        # Not in the report, where browsers refuse a page of this size; its first page links here.
        f"results/{NAME}/gallery.html",
    log:
        f"logs/{NAME}/gallery.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        options=options(
            title=NAME,
            budgets=E.config.figures.gallery.budgets,
            prompts=E.config.figures.gallery.prompts,
            size=E.config.figures.gallery.size,
        ),
        code=lambda w: E.code_of("reproduction.gallery.page"),
    shell:
        "python -m reproduction.gallery.page --records {input.records:q} "
        "--scores {input.scores:q} --summary {input.summary:q} {params.options:q} "
        "--page {output:q} > {log:q} 2>&1"
