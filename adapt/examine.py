"""What a run of `rootstock adapt` says without any label of the target: scores of its candidates, and diagnostics of the last one.

Candidates are the last state and, with `evaluate.every`, states during the training, whose outputs are kept in RUN/candidates/. Nothing
here has target labels: the target is opened without.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import phase
from ..core.config.resolve import Duration
from ..core.distributed import broadcast_text
from ..core.errors import UserError
from ..core.evaluate.diagnosis import BatchNormInputs, count_predicted_classes
from ..core.evaluate.features import evaluating
from ..core.evaluate.pictures import spread
from ..core.evaluate.trained import calibration_entry
from ..core.files import write_tensors
from ..core.images.images import Images
from ..core.images.split import hash_order
from ..core.run.directory import Run
from .changes import NEAREST_MEAN, OWN_GUESS, Beforehand, nearest_means
from .chosen import LAST, check_select, chosen, keep_weights, load_weights
from .gaps import DomainGap, domain_gap, gap_words, gaps_as_result
from .health import health
from .kept_states import FOLDER, keep_tests, name_of, path_of, read_candidates
from .sets import SOURCE, Reader, Sets
from .shown import ShownTest
from .validators.candidate import CandidateModel, SourceFeatures, SourceOutputs, TargetOutputs
from .validators.mixval import mixed_consistency
from .validators.registry import VALIDATORS
from .validators.selection import as_result, choose, score_candidates
from .validators.stored import candidate_of, tensors_of

if TYPE_CHECKING:
    from ..core.model.classifier import Classifier

FEWEST_IMAGES = 50
# What is logged of a candidate during the training, since it costs next to nothing.
LOGGED = ("source_validation", "entropy", "im")


def examine_options(
    *,
    every: Duration | None = None,
    images: int = 1000,
    held_out: float = 0.0,
    mixval: bool = False,
    half: bool = False,
    select: str = LAST,
) -> None:
    """The `evaluate` section of `rootstock adapt`: scores of candidates by validators that see no target label, and diagnostics.

    every: How often a candidate is kept during the training: steps, `10ep` or `10%`; null for none. Their outputs, and those of the last
        state, lie in RUN/candidates, 4 bytes a number, where `rootstock validators score` finds them. Methods that change the network after
        their last step (adabn, prototypes, tent, eata, roid) have the last state alone.
    images: How many images of each domain candidates are shown, at least 50, drawn by content; all of a smaller set. The measures see these
        alone; the tests see every image.
    held_out: Part of the source's training images of each class that no training sees, so that validators can use its labels, from 0 to
    0.5; 0 holds none out, and leaves out the validators that need it.
    mixval: Whether candidates are shown mixed target images too, as the validator MixVal needs; it doubles the images that are read.
    select: Which candidate is exported, and tested as `classifier`, chosen without a label of the target: last; rule, a filter by source
        validation and then im; or a validator by its name. It needs `every`; the weights of all candidates then lie in RUN/candidates, too.
    half: Whether the outputs of candidates are rounded to float16 before any validator sees them: 2 bytes a number in RUN/candidates.
    """


def check_examination(options: Mapping[str, Any], sharding: str) -> None:
    """Raises UserError for numbers out of range, and for a choice that cannot be made. sharding: `run.sharding`."""
    if options["images"] < FEWEST_IMAGES:
        raise UserError(
            f"evaluate.images: expected at least {FEWEST_IMAGES}, got {options['images']}; `evaluate: null` takes no measures"
        )
    if not 0.0 <= options["held_out"] <= 0.5:
        raise UserError(f"evaluate.held_out: expected a number from 0 to 0.5, got {options['held_out']}; 0.1 is usual")
    check_select(options, sharding)


class Examination:
    """Shows states of one training the same images of both domains, and scores them. Its methods are called on every process alike."""

    def __init__(
        self,
        run: Run,
        options: Mapping[str, Any],
        sets: Sets,
        read: Reader,
        pictures: Reader,
        show: Callable[..., dict[str, ShownTest]],
        keeps_head: bool,
    ) -> None:
        """read: images -> what the classifier takes; pictures: images -> pictures, which may be mixed; show: (classifier, rows by test) ->
        what it makes of the tests. keeps_head: whether the training begins with a trained head.
        """
        self.run, self.read, self.pictures, self.show, self.mixval = run, read, pictures, show, options["mixval"]
        self.keeps_head = keeps_head
        self.rows = {name: spread(len(images), options["images"]) for name, images in sets.tests.items()}
        self.half: bool = options["half"]
        self.select: str = options["select"]
        held_out = sets.held_out
        self.source, self.target = (sampled(part, options["images"], run.seed) for part in sets.training().values())
        self.held_out = None if held_out is None else sampled(held_out, options["images"], run.seed)
        self.folder = run.dir / FOLDER
        self.before: DomainGap | None = None
        self.first: Beforehand | None = None
        self.last: CandidateModel | None = None
        if self.target.labels is not None:
            raise ValueError("the target of an adaptation has no labels")

    def start(self, classifier: Classifier) -> None:
        """Measure how far apart the domains are before the training, in the initial features."""
        inputs = (BatchNormInputs(), BatchNormInputs())
        first = self.candidate(classifier.to(self.run.device), 0, forwards=False, inputs=inputs)
        self.before = self._gap(first, inputs)
        assert first.trained is not None and self.source.labels is not None
        of_source, labels = first.trained.features, self.source.labels
        shown = self.show(classifier, self.rows)
        k = len(classifier.classes)
        guesses = {
            name: found.logits.argmax(1) if self.keeps_head else nearest_means(of_source, labels, found.features, k)
            for name, found in shown.items()
        }
        features = {SOURCE: of_source, **{name: found.features for name, found in shown.items()}}
        how = OWN_GUESS if self.keeps_head else NEAREST_MEAN
        self.first = Beforehand(self.source, self.rows, features, guesses, how, of_source)

    @property
    def exported(self) -> int:
        """The step of the state that is exported, after `conclude`."""
        assert self.last is not None
        return self.last.step

    def began(self) -> Beforehand | None:
        """The state before the training, after `conclude`."""
        if self.first is None or self.last is None or self.last.trained is None:
            return None
        return self.first._replace(source_after=self.last.trained.features)

    def __call__(self, method: Any) -> dict[str, float]:
        """Called by `fit` at each evaluation: keep a candidate, and return what is logged of it."""
        candidate, tested = (
            self._rounded(self.candidate(method.classifier, phase.NOW.step)),
            {name: found.logits for name, found in self.show(method.classifier).items()},
        )
        if self.run.main:
            self.folder.mkdir(exist_ok=True)
            write_tensors(path_of(self.folder, candidate.step), tensors_of(candidate, self.half))
            keep_tests(self.folder, candidate.step, tested)
            if self.select != LAST:
                keep_weights(self.folder, candidate.step, method.classifier)
        found = count_predicted_classes(candidate.target.logits)
        if found.alarm:
            self.run.log(f"WARNING: after step {candidate.step}: {found.alarm}")
        scored = {name: VALIDATORS[name] for name in LOGGED if not VALIDATORS[name].lacks([candidate])}
        scores = {name: one.score(candidate) for name, one in scored.items()}
        return {"effective_classes": found.effective, **scores}

    def conclude(self, classifier: Classifier, steps: int, every: int) -> dict[str, Any]:
        """The entries of a result, after the last of `steps` steps. every: steps between candidates, 0 for the last state alone.

        Where `select` picks another candidate, the classifier has its weights then, and the measures are of it.
        """
        inputs = (BatchNormInputs(), BatchNormInputs())
        last = self._rounded(self.candidate(classifier, steps, inputs=inputs))
        kept = range(every, steps, every) if every else range(0)
        lost = list[str]()
        candidates = [*read_candidates(self.folder, kept, lost.append), last]
        for sentence in lost:
            self.run.log(f"WARNING: {sentence}")
        scoring = score_candidates(candidates)
        choice, selected = choose(scoring), {}
        if self.select != LAST:
            picked = candidates[chosen(self.select, scoring, choice, self.run.log)]
            selected = {"selected": picked.name}
            if picked is not last:
                load_weights(self.folder, picked.step, classifier)
                inputs = (BatchNormInputs(), BatchNormInputs())
                last = self._rounded(self.candidate(classifier, picked.step, inputs=inputs))
        self.last = last
        after, predicted = self._gap(last, inputs), count_predicted_classes(last.target.logits)
        if words := gap_words(self.before, after):
            self.run.log(f"domains: {words}")
        if predicted.alarm:
            self.run.log(f"WARNING: the classifier may have collapsed: {predicted.alarm}")
        # Of the main process, which has the rows.
        trained = json.loads(broadcast_text(json.dumps(health(self.run.rows())) if self.run.main else ""))
        if trained["lost"]:
            self.run.log(f"WARNING: {trained['lost']}")
        shown = {"source": len(self.source), "target": len(self.target)}
        if self.held_out is not None:
            shown["held_out"] = len(self.held_out)
        held_out = last.source
        sure = {} if held_out is None else calibration_entry(held_out.logits, held_out.labels, "held-out source images")
        return {
            **sure,
            "validators": {
                **as_result(scoring, choice),
                **selected,
                "images": shown,
                **({"lost": lost} if lost else {}),
            },
            "diagnostics": {
                "target": predicted._asdict(),
                **gaps_as_result(self.before, after),
                "training": trained,
            },
        }

    def candidate(
        self,
        classifier: Classifier,
        step: int,
        *,
        forwards: bool = True,
        inputs: tuple[BatchNormInputs, BatchNormInputs] | None = None,
    ) -> CandidateModel:
        """The outputs of a classifier in eval mode. forwards: whether held-out source and mixed images are shown too.

        inputs: what gets to know how source and target images reach the layers of BatchNorm.
        """
        of_source, of_target = (None, None) if inputs is None else inputs
        features, logits = self._outputs(classifier, self.target, of_target)
        units = [None if one.groups is None else one.units() for one in (self.target, self.source)]
        target = TargetOutputs(features, logits, self.target.keys(), units[0])
        trained = SourceFeatures(self._outputs(classifier, self.source, of_source)[0], self.source.keys(), units[1])
        held_out = None
        if forwards and self.held_out is not None:
            assert self.held_out.labels is not None
            features, logits = self._outputs(classifier, self.held_out)
            held_out = SourceOutputs(features, logits, self.held_out.labels.cpu(), self.held_out.keys())
        weight = classifier.head.weight.detach().float().cpu() if isinstance(classifier.head, nn.Linear) else None
        mixed = self._mixed(classifier) if forwards and self.mixval else None
        found = CandidateModel(name_of(step), step, target, held_out, trained, weight, mixed)
        # Now, while the network is in this state.
        return found if mixed is None else dataclasses.replace(found, mixed=mixed_consistency(found))

    def _rounded(self, candidate: CandidateModel) -> CandidateModel:
        """The candidate with the numbers that are kept of it."""
        if not self.half:
            return candidate
        return candidate_of(candidate.name, candidate.step, tensors_of(candidate, half=True))

    def _outputs(
        self, classifier: Classifier, images: Images, inputs: BatchNormInputs | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features [N, D] and logits [N, K], float32 on the CPU."""
        found = list[tuple[Tensor, Tensor]]()
        for batch in self.read(images):  # which may encode the pictures through frozen layers: those don't count
            with nullcontext() if inputs is None else inputs.watching(classifier):
                found.append(_show(classifier, batch))
        features, logits = (torch.cat(parts) for parts in zip(*found, strict=True))
        if not bool(features.isfinite().all() & logits.isfinite().all()):
            raise UserError("the network's features are not finite; the training has diverged, so lower optim.lr")
        return features, logits

    def _mixed(self, classifier: Classifier) -> Callable[[Tensor, Tensor, float], Tensor]:
        def forward(first: Tensor, second: Tensor, share: float) -> Tensor:
            pairs = zip(*(self.pictures(self.target.select(rows)) for rows in (first, second)), strict=True)
            return torch.cat([_show(classifier, share * a + (1 - share) * b)[1] for a, b in pairs])

        return forward

    def _gap(self, candidate: CandidateModel, inputs: tuple[BatchNormInputs, BatchNormInputs]) -> DomainGap:
        trained, target = candidate.trained, candidate.target
        assert trained is not None
        features, units = (trained.features, target.features), (self.source.units(), self.target.units())
        return domain_gap(features, units, inputs, self.run.seed)


def sampled(images: Images, limit: int, seed: int) -> Images:
    """About `limit` of the images, whole identities in the hash order of the seed: by content, never by label; all if there are no more."""
    if len(images) <= limit:
        return images
    keys = images.keys()
    order = hash_order(keys, seed)
    chosen = torch.tensor(order[: max(1, limit * len(order) // len(images))], dtype=torch.int64)
    return images.select(torch.isin(keys, chosen).nonzero()[:, 0])


def _show(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features [n, D] that the head sees, and logits [n, K], float32 on the CPU, of the very forward that is exported and tested."""
    seen: list[Tensor] = []
    hook = classifier.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with evaluating(classifier), torch.no_grad():
            logits = classifier(images)
    finally:
        hook.remove()
    return seen[0].float().cpu(), logits.float().cpu()
