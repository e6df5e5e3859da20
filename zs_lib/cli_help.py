"""Examples and notes that `zs COMMAND --help` shows below the options."""

HELP = {
    "reproduce": """
  zs reproduce  # the tiny study: notebooks 00 to 04, their tables and figures
  zs reproduce --only 06  # one notebook, with the runs that it needs
  zs reproduce --profile smoke --full  # every notebook with a handful of steps, in minutes
  zs reproduce --executor ray --address HOST:6379  # runs on the nodes of a Ray cluster; or --executor slurm

Runs are kept in data/runs (or ZS_RUNS) and found the next time; killed ones resume from their checkpoints.
Each takes the CPUs and GPUs that [resources] of the profile give to its kind; as many as fit are made at
once, each with GPUs of its own (of those in CUDA_VISIBLE_DEVICES, if set). Without [resources]: one a core.
On a cluster (pip install -c constraints.txt -e '.[cluster]') each run is a task with as much; ZS_RUNS is then
a folder that all machines see under one path, and a run whose node is lost resumes elsewhere. SLURM's
partition, account and time: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT.
""",
    "train": """
  zs train zerosearch --seed 1
  zs train zerosearch --set policy.steps=16 --set policy.learning_rate=1e-3
  zs train zerosearch --set tracker=tensorboard  # or wandb (both: pip install -e '.[trackers]'), trackio
  torchrun --nproc_per_node 4 -m zs_lib train zerosearch --profile paper
  accelerate launch --config_file zs_lib/launch/fsdp2.yaml --num_processes 4 -m zs_lib train zerosearch \\
    --profile paper --set policy.trainer=trl --set policy.objective.minibatch_rollouts=160

Several GPUs train in a process each; sharding = "fsdp2" in [resources.policy] parts the model among them. A
GPU on which another process of yours trains is an error that names that process. Notebook 13 has the rest:
training by TRL, sampling by vLLM.
""",
    "sweep": """
  zs sweep search-r1 --grid policy.learning_rate=1e-4,1e-3 --grid policy.group_size=4,6
  zs sweep zerosearch --range policy.learning_rate=1e-4:1e-2:log --trials 8 --seeds 3
""",
    "plan": """
  zs plan --profile paper  # memory, hours and dollars of each stage, and how to start it
  zs plan --profile paper --full --gpus 8  # every arm of every study; what to change where one does not fit
  zs plan --profile paper --simulate  # what saturates first on 10, 100 and 1,000 GPUs
""",
    "figures": """
  zs figures  # redraw figures/ from the recorded results, without training
  zs figures --profile smol --out mine
  zs figures --from-store --out mine  # of what lies in the store: own_training and own_heldout show every arm
  zs figures --from-store --runs zerosearch policy-3fa0c1@2 --out mine
  zs figures --width column --format pdf --format svg --out paper  # for an article of two columns

PNGs have 200 dots an inch; PDFs embed their fonts (TrueType), SVGs draw text as paths. Git keeps the PNGs in
figures/ as wide as a page, and no others. LaTeX tables need the packages booktabs,
array and longtable; those with sentences are meant for a landscape page. The best of a column is bold, if the
interval of its difference from each other is above 0, over seeds and questions.
""",
    "tables": """
  zs tables core  # held-out scores of the core arms, as Markdown
  zs tables own_heldout --from-store --runs zerosearch search-r1@0  # those of your own runs
  zs tables --from-store --out mine
""",
    "report": """
  zs report --out site  # 4 MB of files: open site/index.html, or publish the folder
  zs report --from-store --out site  # with the claims and tables of your own runs
""",
    "claims": """
  zs claims  # the paper's claims, tested on the recorded results
  zs claims --profile smol --json
  zs claims --from-store --set evaluation.questions_per_subset=20 --out mine  # of a study with that override
""",
    "runs list": """
  zs runs list  # last column: values that are not the profile's, like learning_rate=0.001
""",
    "runs show": """
  zs runs show zerosearch@1  # the run of seed 1 of the arm zerosearch; of several such arms the newest
""",
    "runs diff": """
  zs runs diff zerosearch@0 policy-3fa0c1@0  # an arm's name, or the beginning of a folder's
""",
    "runs record": """
  zs runs record --seeds 5  # shows how the record changes, and refuses to lose rows, arms or seeds
  zs runs record --seeds 3 --shrink  # loses what it shows; git restores the record before
""",
    "runs export": """
  zs runs export RUN my-policy  # then AutoModelForCausalLM.from_pretrained("my-policy")
""",
    "export verl": """
  zs export verl zerosearch --out recipe  # data, configuration, reward and search tool for verl
""",
    "search": """
  zs search "capital of Norway"
  zs search "capital of Norway" --engine simulated # asks the simulator of the run store
  zs search Norway --engine python:mine.search  # a function of yours: see notebook 13
  zs search "capital of Norway" --engine search-r1:http://127.0.0.1:8000

Profiles name engines in the same way, as policy.engine and evaluation.engine. Answers of SerpAPI, Serper and
Wikipedia are cached in data/search_cache (or ZS_SEARCH_CACHE) and never paid for twice.
""",
    "ask": """
  zs ask "what is the capital of Norway?"  # the newest run of the profile's first policy
  zs ask "what is the capital of Norway?" --policy search-r1
""",
    "simulate": """
  zs simulate "Norway capital" --question "what is the capital of Norway?" --quality noisy
""",
    "eval": """
  zs eval --data mine.jsonl  # scores on your own questions (question, golden_answers); resumes
  zs eval --data mine.csv --columns golden_answers=label --policy tiny-S-instruct
""",
    "serve retriever": """
  zs serve retriever --engine bm25 --corpus wiki-18.jsonl --port 8000  # Search-R1's and ZeroSearch's protocol

BM25 indexes a file once, in about 1 GB of memory however large it is, and keeps the index in data/indexes
(or ZS_INDEXES), memory-mapped and found by the file's content: about twice the file's size on the disk,
four times while it is built.
""",
    "serve simulator": """
  zs serve simulator --model tiny-L --port 8001  # OpenAI's protocol; by vLLM where it is installed
  zs serve simulator --model tiny-L --replicas 3  # each on a GPU of its own; prints their address

An engine's address may list replicas, URL,URL,…: they share the queries, and one that fails is set aside for
a while. The address is part of an arm, so its runs are found by it.
""",
    "bench": """
  zs bench  # speed beside TRL and others, into figures/benchmarks.md
""",
    "models try": """
  zs models try HuggingFaceTB/SmolLM2-135M-Instruct  # as the policy of smol: two to four minutes of a CPU
  zs models try Qwen/Qwen2.5-0.5B --profile smol --seconds 600

Eight questions are answered with the real engine, sampled as in training; then again after 5, 10, 20, 40 and
80 steps of format SFT, until 95% of the turns are valid actions or the time is up. Nothing is kept.
""",
    "models fetch": """
  zs models fetch google/gemma-3-270m --agree  # for the profile smol-sizes, once you have agreed to its terms
""",
}
"""Command -> text, shown as it stands. A line of examples begins with two blanks."""
