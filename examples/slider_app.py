"""A slider per reward: move one, and the image follows.

    pip install "gradio>=5"
    python examples/slider_app.py [--port 7860] [--checkpoint FOLDER]

The page is served on this machine only, and nothing is sent anywhere. The shipped checkpoint (examples/tiny/slider) is
the tiny model, trained by benchmarks/slider.py.
"""

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from slider_engine import SHIPPED, Drawn, SliderEngine, rebalanced

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
try:
    import gradio
except ImportError as error:
    raise SystemExit(f"error: {error}; the app needs: pip install 'gradio>=5'") from error


class App:
    """The page's callbacks.

    Args:
        engine: the model.
    """

    def __init__(self, engine: SliderEngine) -> None:
        self.engine = engine

    def show(self, text: str, seed: float, *omega: float) -> tuple[Any, str, Figure]:
        """Image, scores and front for settled sliders."""
        total = sum(omega)
        exact = [value / total for value in omega] if total > 0 else [1 / len(omega)] * len(omega)
        try:
            drawn = self.engine.generate(text, int(seed), exact)
        except ValueError as error:
            raise gradio.Error(str(error)) from error
        scores = ", ".join(f"{name} **{value:.2f}**" for name, value in drawn.scores.items())
        return drawn.pixels(), f"This image: {scores}", self.front(exact, drawn)

    def move(self, moved: int, *values: float) -> list[float]:
        """All sliders after number ``moved`` was."""
        return [round(value, 4) for value in rebalanced(values, moved, values[moved])]

    def front(self, omega: list[float], drawn: Drawn) -> Figure:
        """Mean scores on held-out prompts over ω, where ω is on it, and this image's own scores."""
        x, y = self.engine.rewards[:2]
        figure = Figure(figsize=(5, 4), layout="constrained")
        axes = figure.subplots()
        points = [(scores[x], scores[y]) for _, scores in self.engine.front]
        axes.plot(*zip(*points, strict=True), "o-" if len(self.engine.rewards) == 2 else "o", color="#1b9e77", ms=4)
        here = self.engine.expected(omega)
        axes.plot([here[x]], [here[y]], "o", color="#d95f02", ms=13, label="this preference, mean over prompts")
        axes.plot([drawn.scores[x]], [drawn.scores[y]], "k*", ms=11, label="this image")
        axes.set_title("the front: means over held-out prompts", fontsize=9)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.legend(fontsize=8, loc="lower left")
        return figure

    def page(self) -> "gradio.Blocks":
        """The whole page."""
        engine = self.engine
        start = [1 / len(engine.rewards)] * len(engine.rewards)
        with gradio.Blocks(title="ParetoSlider, tiny model", analytics_enabled=False) as page:
            with gradio.Row():
                with gradio.Column():
                    captions = engine.captions()
                    text = gradio.Dropdown(captions, value=captions[0], label="prompt", allow_custom_value=True)
                    seed = gradio.Number(0, label="seed", precision=0)
                    sliders = [
                        gradio.Slider(0, 1, value, step=0.01, label=name, elem_id=f"slider-{name}")
                        for name, value in zip(engine.rewards, start, strict=True)
                    ]
                    scores = gradio.Markdown()
                image = gradio.Image(show_label=False, type="numpy", format="png", elem_id="image")
                front = gradio.Plot(show_label=False)
            inputs, outputs = [text, seed, *sliders], [image, scores, front]
            for number, slider in enumerate(sliders):
                # "input" is the user's own move; what it sets the other sliders to starts no further round.
                moved = slider.input(
                    partial(self.move, number), sliders, sliders, show_progress="hidden", trigger_mode="always_last"
                )
                moved.then(self.show, inputs, outputs, show_progress="hidden")
            for box in (text, seed):
                box.change(self.show, inputs, outputs, show_progress="hidden")
            page.load(self.show, inputs, outputs, show_progress="hidden")
        return page


def main() -> None:
    """Load the checkpoint and serve the page until stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED, help="a folder that benchmarks/slider.py shipped")
    arguments = parser.parse_args()
    try:
        engine = SliderEngine(arguments.checkpoint)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    page = App(engine).page()
    page.launch(server_name="127.0.0.1", server_port=arguments.port, share=False, quiet=False)


if __name__ == "__main__":
    main()
