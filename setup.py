"""Packaging of marble_opt. Every upper or lower bound has its reason beside it."""

from pathlib import Path

from setuptools import setup

VERSION = next(
    line.split('"')[1]
    for line in Path(__file__).with_name("marble_opt").joinpath("__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

setup(
    name="marble_opt",
    version=VERSION,
    description="Gradient balancing for post-training diffusion and flow models with several rewards",
    long_description=Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # kernels/ has no __init__.py and another name when installed: a package `kernels` in the root would shadow the one
    # on the package index that transformers imports.
    packages=[
        "marble_opt",
        "marble_opt.per_sample",
        "marble_opt.per_sample.layers",
        "marble_opt.losses",
        "marble_opt.preferences",
        "marble_kernels",
    ],
    package_dir={"marble_kernels": "kernels"},
    package_data={"marble_opt": ["py.typed"], "marble_kernels": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.6",  # first version with weights_only=True as torch.load's default
        "numpy",
    ],
    extras_require={
        # Reference solvers. qpth is not listed: 0.0.18 declares numpy<2 but runs on numpy 2, so it is
        # installed by `pip install --no-deps qpth==0.0.18` (the Makefile does).
        "solvers": [
            "cvxpy>=1.5",  # first with Clarabel as its default QP solver
            "osqp>=1.0",  # the option `polish` became `polishing`
            "scipy",
        ],
        "bench": [
            "quadprog",
            "pymoo",  # the hypervolume of benchmarks/slider.py; in tests ZDT's values and fronts
            "scipy",  # distances to the front of comparison/classic_quadratics.py
            "scikit-learn",  # the data of comparison/digits.py
            "torchjd[quadprog-projector]>=0.18",  # first with that extra, which its UPGrad and DualProj need
        ],
        "examples": [
            "diffusers>=0.37",  # first with LTX2Pipeline; Flux's blocks as preferences.install knows them since 0.35
            "peft>=0.15",  # several adapters on a diffusers model
            "transformers",
            "accelerate",  # examples/integrations/flow_grpo_loop.py
            "safetensors",
            "tokenizers",
            "sentencepiece",  # only for pipelines whose T5 has no tokenizer.json
            "huggingface_hub",
            "omegaconf>=2.3",  # first with optional and nested types in structured configs
            "pillow>=10.1",  # first with load_default(size), for the labels of sample grids
            "rapidocr>=3.10",  # the OCR reward; first tried with its models in the wheel
            "onnxruntime",  # what rapidocr computes with
            "requests",  # rewards on a server
            "scipy",
            "matplotlib",
            "tqdm",
        ],
        "server": [
            "fastapi>=0.115",  # oldest tried
            "uvicorn>=0.30",  # oldest tried; its h11 connection is subclassed
            "requests",
            "pillow>=10.1",
            "pyyaml",
        ],
        "wandb": ["wandb"],
        "app": ["gradio>=5"],  # tried with 6.31
        "triton": ["triton>=3.3; platform_system == 'Linux'"],  # torch's CUDA builds bring their own
        "tensorboard": ["tensorboard"],
        "test": [
            "pytest>=8",
            "pytest-xdist",  # two processes: most tests wait for others that they have started
            "hypothesis",
            "tensorboard",
            "fastapi",
            "uvicorn",
            "pyyaml",
            "build",
            "triton; platform_system == 'Linux'",
            "accelerate",  # the loops that Marble is put into: prepare, accumulate, save_state
            "pytorch-lightning",  # manual optimisation around Marble; skipped where it is missing
            "schedulefree",  # a base optimizer with modes; skipped where it is missing
        ],
        "lint": ["ruff>=0.14", "mypy>=1.15"],
    },
    classifiers=["Programming Language :: Python :: 3", "Topic :: Scientific/Engineering :: Artificial Intelligence"],
)
