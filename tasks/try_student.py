"""What a student and its prompts cannot do, told before the teacher is tuned for them."""

from collections.abc import Sequence

from core.distill import students
from core.distill.interface import needed
from core.distill.study import Study, method_named
from core.models.load import shape

TEMPLATES = {"masked": "template", "causal": "causal_template"}
LONGEST = 4  # texts that are answered
NEEDS_ENCODER = ("probe", "random_head", "setfit")


def check_pool(study: Study) -> None:
    """Refuse a problem without unlabelled texts: there a teacher has nothing to say.

    Raises:
        ValueError: the pool is empty.
    """
    if not len(study.few.pool):
        raise ValueError(
            f"n={study.config.n:g} and k={study.config.k} leave no unlabelled text of task {study.task.name}, whose "
            f"train split has {len(study.task.splits().train)}; give a larger n or a smaller k"
        )


def check_templates(study: Study) -> None:
    """Refuse a prompt from which a language model cannot answer.

    Raises:
        ValueError: no template for a kind of model that is used, or one that leaves out the text or the second text.
    """
    for role, model in (("teacher", study.config.teacher), ("student", study.config.student)):
        if model.kind not in TEMPLATES:
            continue  # a sentence encoder reads the text itself
        key, template = TEMPLATES[model.kind], getattr(study.prompt, model.kind)
        who = f"the {role} {model.asset}, a {model.kind} language model"
        if not template:
            raise ValueError(f"task {study.task.name} has no {key}, which {who}, reads; add one to its YAML")
        for slot in ("{text}", "{pair}") if study.task.kind == "pair" else ("{text}",):
            if slot not in template:
                raise ValueError(
                    f"{key} of task {study.task.name} has no {slot}: {who}, would answer without reading it"
                )


def check_methods(study: Study, methods: Sequence[str]) -> None:
    """Refuse methods that do not fit the student or the depths of the two models.

    Raises:
        ValueError: naming the method.
    """
    student = study.config.student
    depth = student.layers or shape(student.asset)[1]
    for name in methods:
        method = method_named(name)
        if method.kind in NEEDS_ENCODER and student.kind != "encoder":
            raise ValueError(
                f"method {name} needs a sentence encoder as student, {student.asset} is a {student.kind} language "
                "model; leave it out of methods, or give another student"
            )
        if method.distill is not None:
            try:
                needed(method.distill.losses, depth, study.teacher_shape[1])
            except ValueError as error:
                raise ValueError(f"method {name} does not fit these models: {error}") from None


def try_student(study: Study) -> None:
    """Let the student answer the longest texts.

    Raises:
        ValueError: it cannot, and why.
    """
    parts = [getattr(study.few, name) for name in ("train", "dev", "pool", "test")]
    longest = [max(range(len(part)), key=lambda i: len(part.texts[i])) for part in parts]
    try:
        model = study.student()
        for part, place in zip(parts, longest):
            students.answers(model, part.take([place]))
    except Exception as error:  # whatever transformers and torch raise for a model that they know in part
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"student {study.config.student.asset} cannot answer task {study.task.name}: {reason}"
        ) from error
