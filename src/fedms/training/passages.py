"""Token ids of passages, and the expert's states where they predict a token."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fedms.config.sections import ModelConfig
from fedms.core.errors import FedmsError
from fedms.data.federated import OpenRows, Samples
from fedms.data.passages import Passage
from fedms.model.arrays import moved
from fedms.model.backbone import Backbone
from fedms.model.expert import Expert
from fedms.model.next_token import log_probability
from fedms.training.inputs import TextInputs, text_inputs
from fedms.training.runner import Runner


class PassageInputs(TextInputs):
    """Token ids of passages: a start token, the prompt, the answer, an end token.

    What is read is all but the last token, what is predicted all but the first. Of a passage that is too
    long, the prompt loses its first tokens, but no more than the answer leaves it half of the room for.
    """

    def __init__(self, passages: Any, tokenizer: Any, max_length: int) -> None:
        super().__init__(passages, tokenizer, max_length)
        ends = tokenizer.eos_token_id
        if ends is None:
            raise FedmsError("task: text needs a tokenizer with an end token (eos_token)")
        self._end = int(ends)
        start = tokenizer.bos_token_id
        self._start = self._end if start is None else int(start)
        self._answers: dict[int, int] = {}

    def _of(self, rows: np.ndarray) -> list[np.ndarray]:
        return [each[:-1] for each in self.whole(rows)]

    def whole(self, rows: np.ndarray) -> list[np.ndarray]:
        """Each passage's tokens, with those of start and end."""
        for row in map(int, rows):
            if row not in self._ids:
                self._ids[row], self._answers[row] = self._encoded(self._texts[row])
        return [self._ids[int(row)] for row in rows]

    def opening(self, text: str, asked: bool, room: int) -> list[int]:
        """Tokens before those of an answer to a prompt, or where not `asked` of the beginning of a text.

        Of more than `room` tokens, the first ones of the text are left out.
        """
        words = self._words(text)
        if asked and getattr(self._tokenizer, "chat_template", None):
            words = self._words(self._in_chat(text))
        return [self._start, *words[max(0, len(words) + 1 - room) :]]

    @property
    def end(self) -> int:
        """The end token."""
        return self._end

    def answers(self, rows: np.ndarray) -> np.ndarray:
        """How many tokens at the end of each passage are its answer, [len(rows)]."""
        self.whole(rows)
        return np.array([self._answers[int(row)] for row in rows], dtype=np.int64)

    def _encoded(self, passage: Any) -> tuple[np.ndarray, int]:
        assert isinstance(passage, Passage)
        prompt, answer = self._parts(passage)
        room = self._max_length
        answer = answer[: room - min(len(prompt), room // 2)]
        prompt = prompt[max(0, len(prompt) - (room - len(answer))) :]
        return np.array([self._start, *prompt, *answer], dtype=np.int32), len(answer)

    def _parts(self, passage: Passage) -> tuple[list[int], list[int]]:
        """Tokens of prompt and answer. A chat template says how a conversation begins, turns and ends."""
        prompt, answer = passage.prompt, passage.answer
        if prompt is None or not getattr(self._tokenizer, "chat_template", None):
            return self._words(prompt or ""), [*self._words(answer), self._end]
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        asked = self._in_chat(prompt)
        whole = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
        if not whole.startswith(asked):
            raise FedmsError("the model's chat template does not put an answer behind its prompt")
        return self._words(asked), self._words(whole[len(asked) :])

    def _in_chat(self, prompt: str) -> str:
        """The prompt as the user's turn, up to where the answer begins."""
        turn = [{"role": "user", "content": prompt}]
        asked: str = self._tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return asked

    def _words(self, text: str) -> list[int]:
        found: list[int] = self.encode([text], add_special_tokens=False)[0]
        return found


def passage_inputs(
    passages: OpenRows | list[Passage], backbone: Backbone, config: ModelConfig
) -> PassageInputs:
    """The model inputs of passages.

    Raises:
        FedmsError: the model has no tokenizer, or one without an end token.
    """
    texts = text_inputs([], backbone, config)
    return PassageInputs(passages, texts.tokenizer, texts.max_length)


def token_states(
    runner: Runner,
    expert: Expert | None,
    samples: Samples,
    boundary: int,
    picks: np.ndarray,
    trained: list[int] | None = None,
    answers_alone: bool = False,
) -> tuple[Tensor, Tensor]:
    """States that predict a token each, [T, d], and these tokens [T]: of all tokens or of answers alone."""
    inputs = cast(PassageInputs, runner.cache.inputs)
    rows = samples.rows[picks]
    ids, answers = inputs.whole(rows), inputs.answers(rows)
    states = runner.states(expert, samples, boundary, picks, trained)
    skipped = [
        len(each) - 1 - count if answers_alone else 0 for each, count in zip(ids, answers, strict=True)
    ]
    longest = states.shape[1]
    places = np.concatenate(
        [
            np.arange(line * longest + skip, line * longest + len(each) - 1)
            for line, (each, skip) in enumerate(zip(ids, skipped, strict=True))
        ]
    )
    targets = np.concatenate([each[skip + 1 :] for each, skip in zip(ids, skipped, strict=True)])
    runner.book_words(len(places), trained is not None)
    device = states.device
    chosen = states.flatten(0, 1).index_select(0, moved(torch.from_numpy(places), device))
    return chosen, moved(torch.from_numpy(targets.astype(np.int64)), device)


def token_loss(
    runner: Runner, expert: Expert, samples: Samples, boundary: int, picks: np.ndarray, trained: list[int]
) -> Tensor:
    """Mean of -log p over the batch's answer tokens."""
    states, targets = token_states(runner, expert, samples, boundary, picks, trained, answers_alone=True)
    return -log_probability(states, runner.backbone.vocabulary, targets).mean()
