# A rule for every line of the table of figures; each is drawn by its module from tidy files.
for place, (figure_name, figure) in enumerate(FIGURES.items(), 1):

    rule:
        """Draw a figure of this name."""
        name:
            f"figure_{figure_name}"
        input:
            **figure.inputs,
            images=IMAGES if "scores" in figure.inputs else [],
        output:
            report(
                f"figures/{NAME}/{figure_name}.png",
                caption=f"../report/{figure_name}.rst",
                category="Figures",
                # Reports sort by label: with numbers they keep the order of the table.
                labels={"figure": f"{place:02d} {figure.title}"},
            ),
            f"figures/{NAME}/{figure_name}.pdf",
        log:
            f"logs/{NAME}/figure-{figure_name}.log",
        localrule: True
        conda:
            "../../envs/workflow.yaml"
        params:
            module=figure_name,
            arguments=arguments(E, figure),
            code=lambda w, name=figure_name: E.code_of(f"reproduction.figures.{name}"),
        shell:
            "python -m reproduction.figures.{params.module} {params.arguments:q} "
            "--out {output:q} > {log:q} 2>&1"
