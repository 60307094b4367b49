"""The rows on answers of a comparison of two results files: accuracy, mAP, word errors, and what transcripts took."""

from __future__ import annotations

from leanear.benchmarks.analysis import correct_answers, logits_of, truth_of
from leanear.benchmarks.compare.compare_rows import (
    BETTER,
    NOISE,
    WORSE,
    Figure,
    Quantity,
    Row,
    Side,
    Sides,
    both_known,
    measured_row,
    missing_row,
    part_reason,
    ratio_of_sums,
    share_row,
    unpaired_change,
)
from leanear.benchmarks.compare.compare_times import times
from leanear.benchmarks.speech_analysis import clip_errors
from leanear.benchmarks.summary import (
    NO_CHANGE,
    Interval,
    mcnemar_p_value,
    paired_change,
    wilson_interval,
    word_error_change,
    word_error_rate,
)
from leanear.benchmarks.tagging import MEAN_AP, tag_change, tag_quality
from leanear.runtimes.process.notes import plural

SIGNIFICANT = 0.05
ACCURACY = Quantity("accuracy", "accuracy", "share", lower_is_better=False)
MEAN_AVERAGE_PRECISION = Quantity("mean_average_precision", MEAN_AP, "share", lower_is_better=False)
WORD_ERROR_RATE = Quantity("word_error_rate", "word error rate", "share")
TRANSCRIBING = Quantity("transcribing", "real-time factor (RTF), evaluation clips", "ratio", timed=True)
OTHER_CLIPS = "not comparable: the evaluation clips are others"


def quality_rows(sides: Sides) -> list[Row]:
    """Accuracy of a classifier, or its mAP; word errors and time of transcripts. Paired where the clips are the same.

    Raises:
        BadInput: a time in one of the files is no time.
    """
    if sides[0].results.is_speech:
        return [_transcribing_row(sides), _word_row(sides)]
    return [_tags_row(sides) if sides[0].results.is_tagging else _accuracy_row(sides)]


def same_clips(sides: Sides) -> bool:
    """Whether both were evaluated on the same clips, by hash, name and truth."""
    a, b = (side.content for side in sides)
    if not a.clips or not b.clips or a.clips.sha256 != b.clips.sha256:
        return False
    truth = ("names", "references") if sides[0].results.is_speech else ("names", "label_ids", "labels")
    return all(getattr(a.accuracy, key) == getattr(b.accuracy, key) for key in truth)


def _accuracy_row(sides: Sides) -> Row:
    values = [_accuracy(side) for side in sides]
    a, b = (side.content.accuracy for side in sides)
    if not both_known(values):
        return missing_row(ACCURACY, values)
    if a.labels != b.labels:
        return missing_row(ACCURACY, values, "not comparable: the models know other labels")
    if not same_clips(sides):
        change = unpaired_change(_right_interval(sides[0]), _right_interval(sides[1]))
        return share_row(ACCURACY, values, change, _verdict(change, lower_is_better=False), _unpaired_note(sides))
    truth, answers = a.label_ids, [side.content.accuracy.roles[side.role].predicted_ids for side in sides]
    right = [[answer == label for answer, label in zip(each, truth)] for each in answers]
    lost = sum(one and not other for one, other in zip(*right))
    won = sum(other and not one for one, other in zip(*right))
    p_value = mcnemar_p_value(lost, won)
    verdict = NOISE if p_value >= SIGNIFICANT else BETTER if won > lost else WORSE
    note = (
        f"paired by clip, {plural(len(truth), 'clip')}: right in A alone {lost}, in B alone {won}, "
        f"McNemar's exact p {p_value:.2g}"
    )
    return share_row(ACCURACY, values, paired_change(lost, won, len(truth)), verdict, note)


def _accuracy(side: Side) -> Figure:
    reason = _no_answers(side)
    return Figure(None, reason) if reason else Figure(_right_interval(side).estimate)


def _right_interval(side: Side) -> Interval:
    accuracy = side.content.accuracy
    truth = accuracy.label_ids
    return wilson_interval(correct_answers(accuracy.roles[side.role].predicted_ids, truth), len(truth))


def _tags_row(sides: Sides) -> Row:
    values = [_mean_ap(side) for side in sides]
    if not both_known(values):
        return missing_row(MEAN_AVERAGE_PRECISION, values)
    a, b = (side.content.accuracy for side in sides)
    if a.labels != b.labels:
        return missing_row(MEAN_AVERAGE_PRECISION, values, "not comparable: the models know other labels")
    logits, truths = [logits_of(side.results, side.role) for side in sides], [truth_of(side.results) for side in sides]
    if same_clips(sides):
        change = tag_change(logits[0], logits[1], truths[0]).interval
        labels = plural(int(truths[0].any(axis=0).sum()), "label")
        note = f"paired by clip, {plural(len(truths[0]), 'clip')}; over {labels}"
    else:
        change = unpaired_change(*(tag_quality(*pair).mean_ap for pair in zip(logits, truths)))
        note = _unpaired_note(sides)
    return share_row(MEAN_AVERAGE_PRECISION, values, change, _verdict(change, lower_is_better=False), note)


def _mean_ap(side: Side) -> Figure:
    reason = _no_answers(side)
    if reason:
        return Figure(None, reason)
    return Figure(tag_quality(logits_of(side.results, side.role), truth_of(side.results)).mean_ap.estimate)


def _word_row(sides: Sides) -> Row:
    values = [_word_errors(side) for side in sides]
    if not both_known(values):
        return missing_row(WORD_ERROR_RATE, values)
    counted = [side.content.accuracy.word_errors for side in sides]
    words = [each.reference_words for each in counted]
    errors = [clip_errors(side.content.accuracy, side.role) for side in sides]
    if same_clips(sides) and words[0] == words[1]:
        paired = word_error_change(errors[0], errors[1], words[0])
        change = paired.change
        note = (
            f"paired by clip, {plural(len(words[0]), 'clip')}: fewer errors in A on {paired.only_dense_better}, "
            f"in B on {paired.only_slim_better}"
        )
    else:
        change = unpaired_change(word_error_rate(errors[0], words[0]), word_error_rate(errors[1], words[1]))
        note = _unpaired_note(sides)
    if counted[0].metric != counted[1].metric:
        note += "; counted by two metrics"
    return share_row(WORD_ERROR_RATE, values, change, _verdict(change, lower_is_better=True), note)


def _word_errors(side: Side) -> Figure:
    reason, accuracy = _no_answers(side), side.content.accuracy
    if reason:
        return Figure(None, reason)
    if accuracy.word_errors is None:
        return Figure(None, f"word errors were not counted yet; `leanear report {side.results.path}` does")
    words = sum(accuracy.word_errors.reference_words)
    if not words:
        return Figure(None, "there is no word in the transcripts of the clips")
    return Figure(sum(clip_errors(accuracy, side.role)) / words)


def _transcribing_row(sides: Sides) -> Row:
    """Seconds of compute per second of audio over the evaluation clips."""
    values = [_transcribing(side) for side in sides]
    if not both_known(values):
        return missing_row(TRANSCRIBING, values)
    if not same_clips(sides):
        return missing_row(TRANSCRIBING, values, OTHER_CLIPS)
    before, after = (side.content.accuracy.roles[side.role].seconds for side in sides)
    note = f"paired by clip, {plural(len(before), 'clip')}, one process on each side"
    return measured_row(TRANSCRIBING, values, ratio_of_sums(before, after), NO_CHANGE, note)


def _transcribing(side: Side) -> Figure:
    reason, accuracy = _no_answers(side), side.content.accuracy
    if reason:
        return Figure(None, reason)
    seconds = times(side, f"accuracy.roles.{side.role}.seconds", accuracy.roles[side.role].seconds)
    audio_s = sum(times(side, "accuracy.audio_s", accuracy.audio_s))
    return Figure(sum(seconds) / audio_s) if audio_s else Figure(None, "the file does not say how long the clips are")


def _no_answers(side: Side) -> str:
    """Why there are no answers to evaluation clips; nothing where there are."""
    accuracy = side.content.accuracy
    if accuracy.status != "ok" or side.role not in accuracy.roles:
        return part_reason(accuracy)
    truth = accuracy.references if side.results.is_speech else accuracy.label_ids
    return "" if truth else "there are no evaluation clips in the file"


def _unpaired_note(sides: Sides) -> str:
    a, b = (len(side.content.accuracy.names) for side in sides)
    return f"not paired, for the clips of A ({a:,}) and of B ({b:,}) are not the same: the interval is wider"


def _verdict(change: Interval, *, lower_is_better: bool) -> str:
    if change.low <= 0 <= change.high:
        return NOISE
    return WORSE if (change.estimate > 0) == lower_is_better else BETTER
