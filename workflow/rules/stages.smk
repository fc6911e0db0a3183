"""The stages: one shell line each, the same as in dvc.yaml but for the copy of what they say.

A plan also names the contents of what lies outside (sources, initial weights): what holds other bytes
changes its plan, whatever its time (fsd/experiment/sources.py). So inputs are plans and outputs alone.
"""


localrules:
    all,
    report,


rule prepare:
    input:
        plan="results/plan/{dataset}/data.json",
    output:
        "data/{dataset}/manifest.json",
    log:
        "logs/prepare/{dataset}.log",
    benchmark:
        "logs/prepare/{dataset}.tsv"
    threads: cores()
    shell:
        "fsd prepare --dataset {wildcards.dataset} 2>&1 | tee {log}"


rule teacher:
    input:
        plan="results/plan/{dataset}/teacher/0.json",
        data="data/{dataset}/manifest.json",
    output:
        weights="results/runs/{dataset}/teacher/0/weights.pt",
        provenance="results/runs/{dataset}/teacher/0/provenance.json",
        log="results/runs/{dataset}/teacher/0/log.jsonl",
    log:
        "logs/teacher/{dataset}.log",
    benchmark:
        "logs/teacher/{dataset}.tsv"
    priority: 2  # most of the others wait for it
    threads: training_threads()
    shell:
        "fsd teacher --dataset {wildcards.dataset} 2>&1 | tee {log}"


rule train:
    input:
        plan="results/plan/{dataset}/{method}/{seed}.json",
        data="data/{dataset}/manifest.json",
        teacher=teaching,
    output:
        weights="results/runs/{dataset}/{method}/{seed}/weights.pt",
        provenance="results/runs/{dataset}/{method}/{seed}/provenance.json",
        log="results/runs/{dataset}/{method}/{seed}/log.jsonl",
    log:
        "logs/train/{dataset}/{method}/{seed}.log",
    benchmark:
        "logs/train/{dataset}/{method}/{seed}.tsv"
    wildcard_constraints:
        method="(?!teacher/)[a-z0-9_]+",
    priority: training_priority
    threads: training_threads()
    shell:
        "fsd train --dataset {wildcards.dataset} --method {wildcards.method} --seed {wildcards.seed} 2>&1 | tee {log}"


rule evaluate:
    input:
        plan="results/plan/{dataset}/evaluate.json",
        weights="results/runs/{dataset}/{method}/{seed}/weights.pt",
        data="data/{dataset}/manifest.json",
    output:
        metrics="results/runs/{dataset}/{method}/{seed}/metrics.json",
        detections="results/runs/{dataset}/{method}/{seed}/detections.json",
        preview="results/runs/{dataset}/{method}/{seed}/preview.jpg",
        attention="results/runs/{dataset}/{method}/{seed}/attention.jpg",
    log:
        "logs/evaluate/{dataset}/{method}/{seed}.log",
    benchmark:
        "logs/evaluate/{dataset}/{method}/{seed}.tsv"
    priority: 2  # short, and the gate reads it
    threads: training_threads()
    shell:
        "fsd evaluate --dataset {wildcards.dataset} --method {wildcards.method} --seed {wildcards.seed} 2>&1 | tee {log}"


rule report:
    input:
        plan="results/plan/report/{experiment}.json",
        paper="paper/reference.yaml",
        ambiguities="paper/ambiguities.yaml",
        metrics=metrics_of_experiment,
    output:
        markdown=report("results/tables/{experiment}.md", category="Tables"),
        csv="results/tables/{experiment}.csv",
        latex="results/tables/{experiment}.tex",
        provenance="results/tables/{experiment}.provenance.json",
        page=report("results/report/{experiment}.html", category="Page"),
    log:
        "logs/report/{experiment}.log",
    benchmark:
        "logs/report/{experiment}.tsv"
    shell:
        "fsd report --experiment {wildcards.experiment} 2>&1 | tee {log}"
