"""The tasks that ship, one literal each: benchmarks as they are published, and the worlds of ``toy/``."""

from __future__ import annotations

from pathlib import Path

from .task import EvalTask


BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{{}}."

COUNTDOWN = (
    "Using the numbers {numbers}, create an equation that equals {target}. You can use basic arithmetic operations (+, -, *, /) and "
    "each number must be used exactly once. Return the final equation in <answer> </answer> tags, for example "
    "<answer> (1 + 2) / 3 </answer>."
)
SUDOKU = (
    "Solve this 4x4 Sudoku: {puzzle}\nIt has 16 characters, row by row; 0 is an empty cell. Every row, column and 2x2 box holds the "
    "digits 1 to 4. Return the 16 digits of the solution in <answer> </answer> tags."
)
CHOICES = "{question}\nA. {choices[0]}\nB. {choices[1]}\nC. {choices[2]}\nD. {choices[3]}\nAnswer with the letter of the right option."

PROMPTS = Path(__file__).parents[2] / "recipes" / "prompts"
READINGS = "unigrpo.runs.evaluate.readings"
SUMMARIES = "unigrpo.runs.evaluate.summaries"

TASKS: dict[str, EvalTask] = {
    "gsm8k": EvalTask(
        about="grade-school word problems (arXiv 2110.14168)",
        path="openai/gsm8k",
        config="main",
        template="{question}" + BOXED,
        columns={"solution": "answer"},
        judge="unigrpo.runs.accuracy:integer_match",
        vote=f"{READINGS}:answered",
    ),
    "math500": EvalTask(
        about="500 competition problems of MATH (arXiv 2305.20050)",
        path="HuggingFaceH4/MATH-500",
        template="{problem}" + BOXED,
        columns={"solution": "answer"},
        judge="math_correctness",
        vote=f"{READINGS}:answered",
        category="subject",
    ),
    "mmlu": EvalTask(
        about="multiple choice over 57 subjects (arXiv 2009.03300)",
        path="cais/mmlu",
        config="all",
        template=CHOICES,
        columns={"solution": "answer"},
        prepare=f"{READINGS}:lettered",
        judge="multiple_choice",
        vote=f"{READINGS}:chosen",
        category="subject",
    ),
    "countdown": EvalTask(
        about="make a number of three or four others (TinyZero)",
        path="Jiayi-Pan/Countdown-Tasks-3to4",
        split="train",
        template=COUNTDOWN,
        columns={"numbers": "nums"},
        judge=f"{READINGS}:made",
    ),
    "sudoku": EvalTask(
        about="4 x 4, as d1 asks it (arXiv 2504.12216); give its CSV",
        path="",
        template=SUDOKU,
        columns={"puzzle": "Puzzle", "solution": "Solution"},
        prepare=f"{READINGS}:whole_grids",
        judge="sudoku",
        metric="cells_right",
    ),
    "geoqa": EvalTask(
        about="geometry with a figure, the rows of GEOQA that R1-V uses",
        path="leonardPKU/GEOQA_R1V_Train_8K",
        split="train[-256:]",
        task="mmu",
        template="{problem}",
        judge="answer_correctness",
        vote=f"{READINGS}:answered",
    ),
    "clevr": EvalTask(
        about="counting in rendered scenes, CLEVR-CoGenT A as R1-V uses it",
        path="leonardPKU/clevr_cogen_a_train",
        split="train[-256:]",
        task="mmu",
        template="{problem}",
        judge="answer_correctness",
        vote=f"{READINGS}:answered",
    ),
    "pope": EvalTask(
        about="is it in the picture? yes or no (arXiv 2305.10355)",
        path="lmms-lab/POPE",
        task="mmu",
        template="{question}\nAnswer the question using a single word or phrase.",
        columns={"solution": "answer"},
        judge="answer_correctness",
        vote=f"{READINGS}:yes_no",
        cluster="image_source",
        category="category",
        summary=f"{SUMMARIES}:yes_no_scores",
    ),
    "mme": EvalTask(
        about="two questions a picture, yes or no (arXiv 2306.13394)",
        path="lmms-lab/MME",
        task="mmu",
        template="{question}",
        columns={"solution": "answer"},
        judge="answer_correctness",
        vote=f"{READINGS}:yes_no",
        cluster="question_id",
        category="category",
        summary=f"{SUMMARIES}:mme_scores",
    ),
    "captions": EvalTask(
        about="captions of COCO pictures by CLIP score (arXiv 2104.08718)",
        path="lmms-lab/COCO-Caption",
        split="val",
        task="mmu",
        template="Describe this picture in one or two plain sentences.",
        judge="clip_score",
        metric="clip_score",
    ),
    "t2i": EvalTask(
        about="pictures of the 120 held-out prompts that ship, by CLIP score",
        path=str(PROMPTS / "t2i_heldout.txt"),
        task="t2i",
        judge="clip_score",
        metric="clip_score",
        num_samples=2,
    ),
    "geneval": EvalTask(
        about="pictures for GenEval's own detectors (arXiv 2310.11513)",
        path="",
        task="t2i",
        layout="geneval",
        num_samples=4,
    ),
    "geneval2": EvalTask(
        about="pictures for GenEval 2 (arXiv 2512.16853)",
        path="",
        task="t2i",
        layout="geneval2",
        num_samples=1,
    ),
    "wise": EvalTask(
        about="pictures for WISE's judge (arXiv 2503.07265)",
        path="",
        task="t2i",
        layout="wise",
        num_samples=1,
    ),
    "dpg": EvalTask(
        about="pictures for DPG-Bench (arXiv 2403.05135)",
        path="",
        task="t2i",
        layout="dpg",
        num_samples=4,
    ),
    "oneig": EvalTask(
        about="pictures for OneIG-Bench (arXiv 2506.07977)",
        path="",
        task="t2i",
        layout="oneig",
        num_samples=4,
    ),
    "arithmetic": EvalTask(
        about="toy: sums in words",
        path="builtin:arithmetic",
        judge="unigrpo.runs.accuracy:integer_match",
        vote=f"{READINGS}:answered",
    ),
    "running_sums": EvalTask(
        about="toy: every total on the way",
        path="builtin:running_sums",
        judge="unigrpo.toy.running_sums:solved",
        vote=f"{READINGS}:written",
    ),
    "toy_countdown": EvalTask(
        about="toy: make a number of three others",
        path="builtin:countdown",
        judge="unigrpo.toy.countdown:solved",
    ),
    "toy_sudoku": EvalTask(
        about="toy: 4 x 4",
        path="builtin:sudoku",
        judge="unigrpo.toy.sudoku:solved",
        vote=f"{READINGS}:written",
    ),
    "shapes": EvalTask(
        about="toy: coloured shapes drawn, read from the pixels",
        path="builtin:shapes",
        task="t2i",
        judge="unigrpo.toy.pixel_check:right_picture",
    ),
    "shapes_mmu": EvalTask(
        about="toy: questions about pictures of shapes",
        path="builtin:shapes",
        task="mmu",
        judge="unigrpo.runs.accuracy:answer_match",
        vote=f"{READINGS}:written",
        category="question",
    ),
    "riddles": EvalTask(
        about="toy: a thought, then the shape that it says",
        path="builtin:riddles",
        task="r2i",
        judge="unigrpo.toy.pixel_check:right_picture",
    ),
}
"""Name -> task. One of your own needs no line here: ``--tasks pkg.mod:attr``."""
