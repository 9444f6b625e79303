"""What passes that reconstruct share: fit what is missing, hand the engine an objective, report what it did."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import attrs
from attrs import validators as v
from torch.fx import GraphModule

from qpass.errors import PreconditionError, did_you_mean
from qpass.images.drawn import identity
from qpass.manager import Pass, PassContext, PassResult
from qpass.recipe.structure import to_data
from qpass.run.fingerprint import digest
from qpass.slots import slots
from qpass.source import source_hash
from qpass_passes.fitting import FittingOptions, choose_rows
from qpass_passes.peculiar import peculiar
from qpass_passes.reconstruction.block import Trace
from qpass_passes.reconstruction.chain import cut_into
from qpass_passes.reconstruction.engine import Reconstruction
from qpass_passes.reconstruction.objective import Objective, Precision


@attrs.frozen(kw_only=True)
class LearningPass(FittingOptions, Pass):
    """A pass that learns rounding or step sizes; the rest of the graph is left as it is."""

    needs: ClassVar[frozenset[str]] = frozenset({"specs"})
    # the graph itself is the teacher, and biases that were corrected are not the original's
    conflicts: ClassVar[frozenset[str]] = frozenset({"corrected", "realised"})

    iterations: int = attrs.field(
        default=20_000, validator=v.ge(1), metadata={"help": "at most, for each layer or block"}
    )
    batch: int = attrs.field(default=32, validator=v.ge(1), metadata={"help": "calibration rows in an iteration"})
    rows: int = attrs.field(
        default=5_120, validator=v.ge(4), metadata={"help": "calibration rows to learn from; all, where fewer"}
    )
    precision: Precision = attrs.field(
        default="float32",
        metadata={
            "help": "of products while learning; `auto`: bfloat16 where the machine has instructions for it, and "
            "its error is small beside that of rounding"
        },
    )
    compiled: bool = attrs.field(
        default=False, metadata={"help": "compile each block: pays from some thousand iterations on"}
    )
    balance: float = attrs.field(
        default=0.0,
        validator=[v.ge(0), v.le(2)],
        metadata={
            "help": "weigh each timestep by the inverse power of the error that a block begins with there: 0, as in "
            "the papers, none; 1: all timesteps count alike, whatever their error"
        },
    )
    settle: bool = attrs.field(
        default=True, metadata={"help": "stop early where no rounding has anything left to learn"}
    )

    @abstractmethod
    def objective(self) -> Objective:
        """What the engine is to do."""

    def chosen(self, **fixed: Any) -> Objective:
        """An objective with all options that it and this pass both have, and what is fixed for the method."""
        names = {field.name for field in attrs.fields(type(self))} & {
            field.name for field in attrs.fields(Objective)
        }
        return Objective(**{name: getattr(self, name) for name in names - set(fixed)}, **fixed)

    def key(self, graph: GraphModule, ctx: PassContext) -> str:
        """A hash of all that determines the result: under it, finished blocks are kept."""
        # a machine that has no bf16 learns with `auto` as it would with float32
        asked = self.precision if self.objective().half(ctx.device) else "float32"
        options = to_data(attrs.evolve(self, precision=asked))
        parts = [identity(graph, ctx), options, to_data(ctx.calibration), source_hash("qpass_passes")]
        return digest(parts)[:16]


@attrs.frozen(kw_only=True, slots=False)  # two bases with slots cannot be joined
class RoundingOptions:
    """Of a pass whose weights learn which way they are rounded."""

    rate: float = attrs.field(default=1e-3, validator=v.gt(0), metadata={"help": "learning rate of the rounding"})
    strength: float = attrs.field(default=0.01, validator=v.ge(0), metadata={"help": "of the regularizer"})
    warmup: float = attrs.field(
        default=0.2, validator=[v.ge(0), v.lt(1)], metadata={"help": "share of iterations without the regularizer"}
    )
    polish: int = attrs.field(
        default=0,
        validator=v.ge(0),
        metadata={
            "help": "moves of single codes by one level, at most, in each output channel of a block's last layers "
            "once it has learned, each where it lowers the block's squared error most; 0, as in the papers: none"
        },
    )


@attrs.frozen(kw_only=True, slots=False)
class JointOptions(RoundingOptions):
    """Of a pass whose weights and step sizes of inputs learn together, inputs rounded meanwhile."""

    step_rate: float = attrs.field(
        default=4e-5, validator=v.gt(0), metadata={"help": "learning rate of the step sizes"}
    )
    step_decay: bool = attrs.field(
        default=True, metadata={"help": "let that rate fall to 0 along a cosine, as QDrop's code does"}
    )
    norm: float = attrs.field(default=2.0, validator=v.gt(0), metadata={"help": "power of the error in the loss"})
    drop: float = attrs.field(
        default=0.5,
        validator=[v.ge(0), v.lt(1)],
        metadata={"help": "share of values inside left unrounded, in 256ths"},
    )


@attrs.frozen(kw_only=True)
class ChainPass(LearningPass):
    """A pass that learns along the whole chain of blocks."""

    only: tuple[str, ...] = attrs.field(
        default=(),
        validator=v.deep_iterable(v.instance_of(str), v.instance_of(tuple)),
        metadata={"help": "globs of the layers or blocks that learn, by name; all, where there are none"},
    )

    def requires(self, graph: GraphModule, ctx: PassContext) -> None:
        """Every glob of `only` matches something."""
        unit = self.objective().unit
        if unit == "layer" and not any(True for _ in slots(graph)):
            return  # before `assign` nobody knows which layers are rounded
        names = [block.name for block in cut_into(graph, unit)]
        for glob in self.only:
            if not any(fnmatchcase(name, glob) for name in names):
                raise PreconditionError(
                    f"{self.name}: the glob {glob!r} in 'only' matches no {unit}, {did_you_mean(glob, names)}"
                )

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        """Fit, learn, and leave codes and step sizes at their slots."""
        objective = self.objective()
        self.fit_missing(graph, ctx, self.name, inputs=objective.activations)
        samples = choose_rows(ctx.get(ctx.calibration, graph), self.rows, ctx.seed)
        made = Reconstruction(
            graph=graph, samples=samples, objective=objective, ctx=ctx, key=self.key(graph, ctx), match=self.only
        )
        notes = {"rows": len(samples), **peculiar(graph, samples, ctx.device)}
        return PassResult(graph=graph, changed=True, notes={**notes, "blocks": told(made.run())})


def told(traces: Sequence[Trace]) -> dict[str, dict[str, Any]]:
    """What a report says of each block: all but how long it took."""
    return {
        one.block: {
            "loss": [float(f"{one.before:.4g}"), float(f"{one.after:.4g}")],
            "iterations": one.iterations,
            "flipped": round(one.flipped, 4),
            **({"unpolished": float(f"{one.unpolished:.4g}")} if one.unpolished else {}),
            **({"precision": "bfloat16"} if one.half else {}),
            **({} if one.kept else {"kept": "what was there before, which was better"}),
        }
        for one in traces
    }
