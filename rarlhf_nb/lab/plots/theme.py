"""The look that all figures share: template, colours, line styles, names. One colour per method."""

import colorsys
import html

import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from rarlhf_nb.lab.methods import MethodKey, method_name

SCHEDULE_COLORS = ["#332288", "#999933", "#882255", "#222222"]  # not used for any method
# Tol's "muted" colours, with different symbols, since eight colours alone are hard to tell apart.
CLUSTER_COLORS = ["#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#AA4499"]
CLUSTER_SYMBOLS = ["circle", "square", "diamond", "cross", "x", "triangle-up", "star", "hexagon"]
LABELS = {  # with 1 for the label of the wanted texts
    0: ("negative text", "#CC6677"),
    1: ("positive text", "#4477AA"),
    -1: ("unlabelled text", "#8A8A8A"),
    2: ("text of another label", "#DDCC77"),
}
REWARD, KL = "reward (logit)", "KL from the SFT policy (nats per completion)"
# White paper, so that a figure looks the same in a light and in a dark notebook.
AXIS = {"gridcolor": "#E5E5E5", "zerolinecolor": "#BBBBBB", "linecolor": "#888888", "ticks": "outside"}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "Helvetica, Arial, sans-serif", "size": 14, "color": "#222222"},
        "title": {"x": 0.01, "xanchor": "left", "yref": "container", "yanchor": "top", "font": {"size": 17}},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": SCHEDULE_COLORS,
        "xaxis": AXIS,
        "yaxis": AXIS,
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "yref": "container", "yanchor": "top"},
        # In pixels. Top: title, two rows of legend, panel title. Bottom: ticks and axis title.
        "margin": {"l": 75, "r": 25, "t": 100, "b": 65},
        "hoverlabel": {"font": {"size": 13}},
        "bargap": 0,
    }
)


def laid_out(figure: go.Figure, title: str = "", height: int = 480, **layout) -> go.Figure:
    """The figure in the project's look; with a title, the legend lies directly below the title."""
    figure.update_layout(template=TEMPLATE, **({"title_text": title} if title else {}), height=height, **layout)
    if title:
        figure.update_layout(title_y=1 - 14 / height, legend_y=1 - 40 / height)
    return figure


def label_text(name: str) -> str:
    """The name of a method or run for a figure, escaped because plotly interprets HTML tags."""
    return html.escape(method_name(name))


def method_color(method: str) -> str:
    """The colour of a method; in a sweep, the hue of its method, darker for a smaller alpha."""
    key = MethodKey.parse(method)
    color, alpha = key.method.color, key.alpha
    if alpha is None:
        return color
    hue, lightness, saturation = colorsys.rgb_to_hls(*(part / 255 for part in hex_to_rgb(color)))
    channels = colorsys.hls_to_rgb(hue, min(0.85, lightness * (0.4 + alpha)), saturation)
    return "#" + "".join(f"{round(255 * channel):02X}" for channel in channels)


def faint(method: str, opacity: float) -> str:
    """A method's colour at the given opacity."""
    red, green, blue = hex_to_rgb(method_color(method))
    return f"rgba({red}, {green}, {blue}, {opacity})"


def line_style(method: str) -> dict:
    """The line of a method: solid or, in a sweep, dashed with shorter dashes for a smaller alpha."""
    alpha = MethodKey.parse(method).alpha
    dash = "solid" if alpha is None else "dash" if alpha > 0.3 else "dashdot" if alpha > 0.15 else "dot"
    return {"color": method_color(method), "dash": dash, "width": 2.5}
