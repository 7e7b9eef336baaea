"""Recipes in YAML files: equal after the round trip, safe to read, refused where not ours."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qtrain import (
    Arithmetic,
    Forward,
    GradInput,
    GradWeight,
    NormRecipe,
    Recipe,
    center,
    deviations,
    hadamard,
    load_recipe,
    quantize,
    recipes,
    save_recipe,
)
from qtrain.files.plain_yaml import parsed
from qtrain.files.yaml_writer import dumped
from qtrain.recipe_file import accumulator_of
from qtrain.recipe_words import call, named
from quantizers import (
    OFF,
    FloatFormat,
    Granularity,
    IntFormat,
    Off,
    QTensor,
    Quantizer,
    Rounding,
    Scale,
    TableFormat,
    absmax,
    accumulators,
    bf16,
    blocks,
    ceil,
    chunked_minmax,
    e2m1,
    e3m0,
    e4m3,
    e5m2,
    e8m0,
    ema,
    floor,
    fp16,
    fp32,
    groups,
    half_away,
    history,
    minmax,
    nearest_even,
    nf4,
    per_axis,
    per_channel,
    per_sample,
    per_tensor,
    per_token,
    percentile,
    stochastic,
    toward_zero,
)

NAMED = [
    *(recipes.get(name) for name in recipes.names()),
    *(
        recipes.get(n, bits)
        for n in recipes.names()
        if recipes.takes_bits(n)
        for bits in (2, 5, 16)
    ),
    recipes.int8(unit="bf16"),
    recipes.banner2018(variant="code"),
    recipes.banner2018(variant="convnet"),
    replace(recipes.int8(), activation=fp16, narrow=True),
]


@pytest.mark.parametrize("recipe", NAMED, ids=lambda recipe: recipe.name)
def test_named_recipes_come_back_equal(recipe: Recipe, tmp_path: Path) -> None:
    path = save_recipe(recipe, tmp_path / "a.yaml")
    found = load_recipe(path)
    assert found == recipe and str(found) == str(recipe)
    assert save_recipe(found, tmp_path / "b.yml").read_bytes() == path.read_bytes()


def test_a_named_recipe_comes_back_with_its_widths(tmp_path: Path) -> None:
    found = load_recipe(save_recipe(recipes.int8(), tmp_path / "a.yaml"))
    assert found.at(4) == recipes.int8(4)
    other = replace(recipes.int8(), activation=bf16)
    assert load_recipe(save_recipe(other, tmp_path / "a.yaml")).with_bits is None


class _Draws:
    """Recipes of everything that is built in, at random."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def valid(self, make: Callable[[], Any]) -> Any:
        """The first that is not refused."""
        while True:
            with contextlib.suppress(ValueError):
                return make()

    def one(self, *options: Any) -> Any:
        return self.random.choice(options)

    def format(self) -> Any:
        bits = self.random.randrange(2, 17)
        own = FloatFormat(
            4, 3, bias=11, specials="fn", overflow="nan", signed=self.one(True, False)
        )
        integer = IntFormat(bits, signed=self.one(True, False), symmetric=self.one(True, False))
        named = (e4m3, e5m2, e2m1, e3m0, nf4, TableFormat((-1.0, 0.0, 0.25)))
        return self.one(integer, *named, FloatFormat(3, 4, name="mine"), own)

    def rounding(self) -> Rounding:
        plain = (nearest_even, half_away, toward_zero, floor, ceil)
        return self.one(*plain, stochastic(), stochastic(self.random.randrange(1, 24)))

    def range(self) -> Any:
        plain = self.one(absmax, minmax, chunked_minmax(), chunked_minmax(7), percentile(0.999))
        average = ema(plain, momentum=self.one(0.1, 1e-7, 1.0), train_on="running")
        before = (
            ema(plain, use="previous"),
            history(self.one(1, 1024), self.one("max", "last"), plain),
        )
        return self.one(plain, average, *before)

    def scale(self) -> Scale:
        levels = Scale(e4m3, over=Scale(fp32, top=448), reciprocal=self.one(True, False))
        tried = Scale(e4m3, candidates=(6, 4), by=self.one("mse", "absmax"))
        plain = Scale(self.one(e8m0, e4m3, fp16), rounding=self.one(ceil, floor, stochastic(8)))
        return self.one(plain, Scale(), Scale(e8m0, rule="rceil", headroom=1.0625), levels, tried)

    def transform(self) -> Any:
        rotation = self.one(hadamard(), hadamard(4, (1, -1, -1, 1)), hadamard(32, "step"))
        return self.one(None, rotation, center("grad_output", "input", then=rotation))

    def quantizer(self) -> Any:
        if self.random.random() < 0.15:
            return OFF
        if self.random.random() < 0.15:
            return Quantizer(
                format=self.one(bf16, fp16, e4m3), range=None, rounding=self.rounding()
            )
        cut = (per_tensor, per_token, per_sample, per_channel(), per_axis(0, -1))
        tiles = (Granularity(((-1, 32),), rest="each"), Granularity(((1, 4), (-1, 8))))
        return Quantizer(
            format=self.format(), range=self.range(),
            granularity=self.one(*cut, *tiles, blocks(32), blocks(16, 16)),
            scale=self.scale(), rounding=self.rounding(),
        )  # fmt: skip

    def norm(self) -> NormRecipe:
        fixed = deviations.range_(self.random.randrange(1, 20), "paper", times=self.one(1.0, 0.3))
        named = deviations.get(self.one(*deviations.names()))
        few = Arithmetic(format=fp16, accumulator=bf16, sums="halved")
        return NormRecipe(
            deviation=self.one(fixed, named, deviations.topk(3)),
            statistics_gradient=self.one("exact", "detached"),
            input=self.valid(self.quantizer),
            grad_output=self.valid(self.quantizer),
            activation=self.one(None, e5m2),
            arithmetic=self.one(None, few),
        )

    def recipe(self) -> Recipe:
        name = self.one("mine", "a: b", "off", "é", "x\n# y", '"', "", "1.0", "null", "int8")
        return Recipe(
            name=name,
            forward=Forward(input=self.valid(self.quantizer), weight=self.valid(self.quantizer)),
            grad_input=GradInput(
                grad_output=self.valid(self.quantizer), weight=self.one(None, OFF)
            ),
            grad_weight=GradWeight(
                grad_output=self.valid(self.quantizer),
                input=self.valid(self.quantizer),
                transform=self.transform(),
                source=self.one("input", "forward"),
            ),
            activation=self.one(
                None,
                e4m3,
                FloatFormat(5, 1),
                self.valid(self.quantizer),
                Quantizer(format=nf4, granularity=groups(64)),
            ),
            norm=self.one(None, self.valid(self.norm)),
        )


@pytest.mark.filterwarnings("ignore:.*stochastic")  # of scales that clip
@pytest.mark.parametrize("seed", range(150))
def test_recipes_of_built_in_quantizers_come_back_equal(seed: int, tmp_path: Path) -> None:
    draws = _Draws(seed)
    recipe = draws.valid(draws.recipe)
    found = load_recipe(save_recipe(recipe, tmp_path / "a.yaml"))
    assert found == recipe
    for place, slot in recipe.slots.items():
        assert type(found.slots[place].quantizer) is type(slot.quantizer)


def test_a_file_trains_as_its_recipe(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    path = save_recipe(recipes.int8(4), tmp_path / "a.yaml")
    outputs = [
        quantize(net, recipe=r)(torch.ones(3, 6)) for r in (recipes.int8(4), load_recipe(path))
    ]
    assert torch.equal(*outputs)


BY_HAND = """\
# what I want to try
name: mine
forward:
    input:
        format: e4m3          # a name
        granularity:
            sizes: [[-1, 32]]
            rest: each
        scale:
            format: e8m0
            rounding: ceil

    weight: {}
grad_input:
    grad_output:
        format:
            FloatFormat:
                exponent: 5
                mantissa: 2
        rounding: stochastic(8)
norm:
    deviation: range
"""


def test_a_file_by_hand_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(BY_HAND.replace("    weight: {}\n", ""))
    blocks = Quantizer(
        format=e4m3,
        granularity=Granularity(((-1, 32),), rest="each"),
        scale=Scale(e8m0, rounding=ceil),
    )
    gradient = Quantizer(format=FloatFormat(5, 2), rounding=stochastic(8))
    assert load_recipe(path) == Recipe(
        name="mine",
        forward=Forward(input=blocks),
        grad_input=GradInput(grad_output=gradient),
        norm=NormRecipe(deviation=deviations.range_()),
    )


REFUSED = [
    ("nmae: x", r"Recipe: field: got 'nmae', need one of name, .*; did you mean 'name'"),
    ("name: x\nforward:\n  inptu: null", r"forward: field: got 'inptu'.*did you mean 'input'"),
    ("name: x\nforward:\n  input:\n    fromat: int8", r"forward.input: field: .* 'format'"),
    ("name: x\nforward:\n  input:\n    rounding: floor", "forward.input: format is missing"),
    ("name: x\nactivation: bf61", r"activation: got 'bf61', which is no name .*'bf16'"),
    ("name: x\nactivation: int8", "activation: got IntFormat.*=Quantizer.format='int8'"),
    ("name: x\nforward:\n  input:\n    format: 8", "forward.input: format: got 8, need an IntF"),
    ("name: x\nforward:\n  input:\n    format:\n      bits: 8", "forward.input.format: got a map"),
    ("name: x\nforward:\n  input:\n    format: int8\n    rounding:\n      mode: up", "rounding"),
    ("name: x\nforward: int8", "forward: got IntFormat|forward: got 'int8'"),
    ("name: x\nforward:\n  input: 3", "forward.input: got 3, need a quantizer"),
    (
        "name: x\nforward:\n  input:\n    Settings:\n      format: int8",
        "forward.input: got Settings",
    ),
    ("name: [1]", "name: got .1,., need a string"),
    ("name: x\nslots: null", "field: got 'slots'"),
    ("name: x\nwith_bits: null", "field: got 'with_bits'"),
    ("", "Recipe: name is missing"),
    ("name: !!python/object/apply:os.system [ls]", "line 1: .* is no name or number"),
    ("name: x\nname: y", "line 2: name stands here a second time"),
    ("- name", "line 1: need `name: value`"),
    ("name: off", "line 1: 'off' is true, false or null .* in double quotes, \"off\""),
    ("name: x\nforward: {input: OFF}", "line 2: 'OFF' is true, false"),
    ("name: x\nforward: {input: {format: e4m3}", "line 2: a } or a comma is missing"),
    ("name: x\nforward: {input: null, input: null}", "line 2: input stands here a second time"),
    ("name: x\nforward: {null}", "line 2: 'null' in braces, need `name: value`"),
    ("name: x\nforward: [input: null]", "line 2: 'input:' is a field; .* braces"),
    ("name: x\nforward: {input: {granularity: blocks(16, 16}}", "'blocks.16' is no whole call"),
    ("name: x\nforward: {input: {granularity: blocks(16, 16) a}}", "'blocks.16' is no whole call"),
    ("name: " + "[" * 100_000, "nested too deeply"),
    ("name: " + "9" * 10_000, "line 1: a number of too many digits"),
]


@pytest.mark.parametrize(("text", "says"), REFUSED, ids=[says[:30] for _, says in REFUSED])
def test_what_is_no_recipe_is_refused_by_its_place(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"(?s)a.yaml: .*{says}"):
        load_recipe(path)


IN_WORDS = """\
name: by hand
forward:
  input: {format: e4m3, granularity: blocks(32), scale: {format: e8m0, rule: rceil}}
  weight:
    format: IntFormat(4)
    granularity: blocks(16, 16)   # a tile
    scale: {format: e4m3, over: Scale(fp32, top=448), rounding: ceil}
grad_input:
  grad_output: Quantizer(format=e5m2, rounding=stochastic(8), granularity=per_axis(0, -1))
  weight: {format: e4m3, granularity: per_channel(), range: history(16, "max")}
grad_weight:
  grad_output:
    format: e4m3
    granularity: per_tensor
    range: ema(percentile(0.999), momentum=0.01)
  transform: center(grad_output, input, then=hadamard(4, [1, -1, -1, 1]))  # rotated
  input: {granularity: "blocks(None)", format: e4m3}
activation: {format: nf4, granularity: groups(64)}
norm:
  deviation: topk(3)
"""


def test_a_file_by_hand_says_things_as_python_does(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(IN_WORDS)
    drawn = Quantizer(format=e5m2, rounding=stochastic(8), granularity=per_axis(0, -1))
    over = Scale(e4m3, over=Scale(fp32, top=448), rounding=ceil)
    assert load_recipe(path) == Recipe(
        name="by hand",
        forward=Forward(
            input=Quantizer(
                format=e4m3, granularity=blocks(32), scale=Scale(e8m0, rule="rceil")
            ),
            weight=Quantizer(
                format=IntFormat(4), granularity=blocks(16, 16), scale=over
            ),
        ),
        grad_input=GradInput(
            grad_output=drawn,
            weight=Quantizer(format=e4m3, granularity=per_channel(), range=history(16)),
        ),
        grad_weight=GradWeight(
            grad_output=Quantizer(
                format=e4m3, range=ema(percentile(0.999), momentum=0.01)
            ),
            input=Quantizer(format=e4m3, granularity=blocks(None)),
            transform=center("grad_output", "input", then=hadamard(4, (1, -1, -1, 1))),
        ),
        activation=Quantizer(format=nf4, granularity=groups(64)),
        norm=NormRecipe(deviation=deviations.topk(3)),
    )  # fmt: skip


WORDS = [
    ("granularity: blokcs(32)", "granularity: got 'blokcs.32.'; did you mean 'blocks'"),
    ("granularity: blocks", r"granularity: got 'blocks', which is called: blocks.size, across=1"),
    ("granularity: per_tensor()", "per_tensor takes no arguments: write per_tensor"),
    ("granularity: blocks()", r"need blocks\(size, across=1\) \(missing a required argument"),
    ("granularity: blocks(0)", r"granularity: blocks\(0\): block size: got 0, need"),
    ("granularity: blocks(1, 2, 3)", "need blocks.*too many"),
    ("granularity: blocks(16, acros=2)", "need blocks.*unexpected keyword argument 'acros'"),
    ("granularity: blocks(2 ** 9)", r"2 \*\* 9 is no number, name or call"),
    ("granularity: blocks(__import__('os').x)", "is no number, name or call"),
    ("granularity: exec('1')", "got .exec.*may be one of"),
    ("granularity: (lambda: 1)(2)", "is no name or number"),
    ("granularity: blocks(32)(1)", "it is no call"),
    ("granularity: blocks(32))", "granularity: got 'blocks.32..', need a name with its arguments"),
    ("granularity: stochastic(8)", "input: granularity: got Rounding"),
    ("rounding: stochastic(99)", r"rounding: stochastic\(99\): random_bits: got 99"),
    ("range: ema(minmx)", "range: ema.minmx.: rule: got 'minmx', .*mean 'minmax'"),
    ("scale: Scale(e8m0, rule=rciel)", "scale: Scale.*rule: got 'rciel'.*mean 'rceil'"),
    ("granularity: " + "blocks(" * 5000 + ")" * 5000, "granularity: got 'blocks.*need a name"),
]


@pytest.mark.parametrize(("line", "says"), WORDS, ids=[line[:30] for line, _ in WORDS])
def test_words_that_say_nothing_are_refused(line: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"name: x\nforward:\n  input:\n    format: e4m3\n    {line}\n")
    with pytest.raises(ValueError, match=says):
        load_recipe(path)


def test_granularities_and_transforms_are_written_as_python_does(tmp_path: Path) -> None:
    text = save_recipe(recipes.mxfp4(), tmp_path / "a.yaml").read_text()
    assert "granularity: blocks(32)\n" in text and "transform: hadamard(32, step)\n" in text
    flat = Recipe(name="x", activation=Quantizer(format=nf4, granularity=groups(64)))
    assert "granularity: groups(64)\n" in save_recipe(flat, tmp_path / "c.yaml").read_text()
    text = save_recipe(recipes.nvfp4(), tmp_path / "b.yaml").read_text()
    assert "granularity: blocks(16, 16)\n" in text


class SlowScale:
    def __call__(self, x: Tensor, *, state: Any, key: Any = None, training: bool = True) -> QTensor:
        return QTensor(x)


@dataclass(frozen=True, kw_only=True)
class Own(Quantizer):
    """A subclass with the fields of the built-in one."""


class Quiet(Off):
    """Equal to OFF, and perhaps not the same."""


@pytest.mark.parametrize("own", [SlowScale(), Own(format=e4m3), Quiet()], ids=["a", "b", "c"])
def test_a_class_of_ones_own_is_refused(own: Any, tmp_path: Path) -> None:
    recipe = Recipe(name="x", forward=Forward(weight=own))
    with pytest.raises(
        ValueError, match=r"forward\.weight: .* of a class of its own \((Own|Slow|Quiet)"
    ):
        save_recipe(recipe, tmp_path / "a.yaml")
    ranged = Quantizer(format=e4m3, range=lambda x, block, *, state, training: (x, x))
    with pytest.raises(ValueError, match=r"forward\.weight\.range: .* of a class of its own"):
        save_recipe(Recipe(name="x", forward=Forward(weight=ranged)), tmp_path / "a.yaml")
    assert not list(tmp_path.iterdir())


def test_paths_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"need a path that ends in \.yaml"):
        save_recipe(recipes.int8(), tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"none\.yaml is no file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(TypeError, match="recipe: got 'int8', need a Recipe"):
        save_recipe("int8", tmp_path / "a.yaml")  # type: ignore[arg-type]
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"b\.yaml: .*utf-8"):
        load_recipe(tmp_path / "b.yaml")


TREES: list[tuple[str, Mapping[str, Any]]] = [
    ("a: 1\n", {"a": 1}),
    ("a:\n  b: null\n  c:\n    d: true\ne: {}\n", {"a": {"b": None, "c": {"d": True}}, "e": {}}),
    ("a: [[0, 1], [-1, null], []]\n", {"a": [[0, 1], [-1, None], []]}),
    ("a: 1.0e-07\nb: 0.1\nc: 1.5e+300\n", {"a": 1e-07, "b": 0.1, "c": 1.5e300}),
    ('a: "off"\nb: "1.0"\nc: "x: y"\n', {"a": "off", "b": "1.0", "c": "x: y"}),
    ("a: blocks(16, 16)\nb: [x, z]\n", {"a": "blocks(16, 16)", "b": ["x", "z"]}),
    ('a: ["x, y", "{", "a: b"]\n', {"a": ["x, y", "{", "a: b"]}),
    ('"*": 1\n"off": 2\n"a: b":\n  "\\"": 3\n', {"*": 1, "off": 2, "a: b": {'"': 3}}),
    ('a: stochastic(8)\nb: at 4 bits\nc: ""\n', {"a": "stochastic(8)", "b": "at 4 bits", "c": ""}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "tree"), TREES)
def test_plain_data_is_yaml(text: str, tree: Mapping[str, Any]) -> None:
    assert dumped(tree) == text and parsed(text) == tree


PLAIN = [
    ("a: 1e-3\nb: .05\nc: -2.\nd: +4", {"a": 1e-3, "b": 0.05, "c": -2.0, "d": 4}),
    ("a: timm:resnet18\nb: my_net.py:build", {"a": "timm:resnet18", "b": "my_net.py:build"}),
    ("a: {m: ../mine.yaml, k: b:c}", {"a": {"m": "../mine.yaml", "k": "b:c"}}),
    ("a: /data/cifar  # there\nb: 8m\nc: a#b", {"a": "/data/cifar", "b": "8m", "c": "a#b"}),
    ("a: ~\nb: True\nc: -x\nd: it's", {"a": None, "b": True, "c": "-x", "d": "it's"}),
    ("a:\n  - x\n  - .5\n  - [1, 2]\nb: 1", {"a": ["x", 0.5, [1, 2]], "b": 1}),
    ("a:\n-   b: 1\n    c: 2\n- - 3\n  - 4\nd: 5", {"a": [{"b": 1, "c": 2}, [3, 4]], "d": 5}),
    ("a:\n  b:\n    - c: {d: 1}\n", {"a": {"b": [{"c": {"d": 1}}]}}),
    ("{a: x, b: [1,\n  # all\n  2], 'c d': {}}", {"a": "x", "b": [1, 2], "c d": {}}),
    ('{"a":"x", "b": {"c":[1, null]}}', {"a": "x", "b": {"c": [1, None]}}),
    ("'it''s': 'x: #y'  # z\nint8-hot: 1\n4bit: 2", {"it's": "x: #y", "int8-hot": 1, "4bit": 2}),
    ("---\na:\n  x:y", {"a": "x:y"}),
    ("a : 1\nb  : {c : x, d: 2}", {"a": 1, "b": {"c": "x", "d": 2}}),
]  # fmt: skip


@pytest.mark.cases(99, 1)
@pytest.mark.parametrize(("text", "tree"), PLAIN)
def test_what_needs_no_quotes_elsewhere_needs_none(text: str, tree: Mapping[str, Any]) -> None:
    found = parsed(text)
    assert found == tree and repr(found) == repr(tree)  # 1 is no 1.0


UNREAD = [
    *(f"a: {word}" for word in ("&b", "*b", "!b", "|", ">", "%b", "@b", "`b", "b: c", "b:", "- b")),
    *(f"a: {word}" for word in ("010", "0x1f", "1_0", "1:30", "2026-11-28", ".inf", "<<", "1e999")),
    *("off: 1", "1: 2", "a:\n\tb: 1", "a: 1\n---\nb: 2", "? a", "a:", "a:\n-", "a: [b\nc: 1"),
    *("- a", "a", "a: b\n  c", "a:\n  - b\n c: 1", "a: {b}", "a: {b: }", "a: 'b' c", "a: 'b"),
    *("--- {a: 1}", "--- a: 1", "a: 1\na : 2"),
]


@pytest.mark.cases(99, 1)
@pytest.mark.parametrize("text", UNREAD)
def test_what_is_not_read_is_refused_by_its_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^line [123]: "):
        parsed(text)


def test_the_documented_file_is_that_of_the_recipe_before_it(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    python, shown = text.index("fp8 = Recipe("), text.index("```yaml\n") + len("```yaml\n")
    names: dict[str, Any] = dict(globals())
    exec(text[python : text.index("\nmodel", python)], names)
    path = save_recipe(names["fp8"], tmp_path / "a.yaml")
    assert path.read_text() == text[shown : text.index("```", shown)]


def test_accumulators_in_files(tmp_path: Path) -> None:
    fp8, whole = Quantizer(format=e4m3), Quantizer(format=IntFormat(8))
    own = accumulators.Aligned(4, 5, 6, None, (e4m3,), "my unit")
    for forward, grad_weight in (
        (accumulators.get("H100", "e4m3", promote=128), accumulators.exact()),
        (own, accumulators.sequential(FloatFormat(6, 9), chunk=64, rounding=stochastic(8))),
    ):
        made = Recipe(
            name="x",
            forward=Forward(input=fp8, weight=fp8, accumulator=forward),
            grad_weight=GradWeight(grad_output=fp8, accumulator=grad_weight),
        )
        assert load_recipe(save_recipe(made, tmp_path / "x.yaml")) == made
    text = "name: x\nforward: {input: {format: int8}, weight: {format: int8}, accumulator: "
    for word, want in (
        ("integer(16, overflow=wrap)", accumulators.integer(16, overflow="wrap")),
        (
            "sequential(FloatFormat(6, 9), chunk=64)",
            accumulators.sequential(FloatFormat(6, 9), chunk=64),
        ),
    ):
        (tmp_path / "y.yaml").write_text(f'{text}"{word}"}}\n')
        assert load_recipe(tmp_path / "y.yaml").forward == Forward(
            input=whole, weight=whole, accumulator=want
        )


def test_a_format_that_has_no_name_is_said_by_its_widths() -> None:
    assert named("e5m10", "forward.accumulator") == FloatFormat(5, 10)
    with pytest.raises(ValueError, match=r"'e9m10', which is no name"):
        named("e9m10", "forward.accumulator")


@pytest.mark.parametrize(
    "accumulator",
    [
        accumulators.exact(),
        accumulators.sequential(FloatFormat(5, 10), product=e4m3, chunk=16, inside="rounded"),
        accumulators.sequential(FloatFormat(6, 9), rounding=stochastic(8), chunk=64),
        accumulators.sequential(FloatFormat(6, 9), chunk=64, inside="exact"),
        accumulators.sequential(FloatFormat(4, 7, bias=10, specials="finite"), compensated=True),
        accumulators.aligned(terms=4, bits=5, kept=6, promote=8),
        accumulators.get("H100", "e4m3", promote=128),
        accumulators.integer(16, overflow="wrap"),
    ],
    ids=str,
)
def test_an_accumulator_is_read_as_it_is_shown(accumulator: accumulators.Accumulator) -> None:
    assert accumulator_of(str(accumulator)) == accumulator
    with pytest.raises(ValueError, match=r"accumulator: got .*, need sequential\(fp16\)"):
        accumulator_of("fp16")
    for other, near in (("blocks(32)", ""), ("sequental(fp16)", r"; did you mean 'sequential'\?")):
        need = "need one of [a-z, ]*"  # the nearest first
        with pytest.raises(ValueError, match=f"accumulator: got '[a-z]*', {need}{near}$"):
            accumulator_of(other)


def test_a_call_that_misses_its_name_is_answered_with_the_nearest_first() -> None:
    with pytest.raises(
        ValueError, match=r"^x: got 'block\(16\)'; did you mean 'blocks'\? In front"
    ):
        call("block(16)", "x")
