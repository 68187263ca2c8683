"""Tokenizers: the one that a folder publishes, as a fast tokenizer of the generic class."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllr.cli import UserError
from rllr.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


def load(source: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a published folder.

    tokenizer.json is taken as it is: transformers 5 rebuilds some tokenizers (Llama's) from vocabulary and merges, and
    then a text that follows a special token loses the space that the published one puts before it.

    Raises:
        UserError: the folder has no tokenizer that can be read without its publisher's code.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if (source / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(source)
    if (source / "tokenizer.model").is_file():
        return from_sentencepiece(source / "tokenizer.model", published_settings(source))
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{source}: no readable tokenizer ({str(error).splitlines()[0]})") from None


def published_settings(source: Path) -> dict[str, str]:
    """bos, eos, unk and pad as the folder's tokenizer_config.json names them, and its chat template."""
    path = source / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    named = {key: config.get(key) for key in ("bos_token", "eos_token", "unk_token", "pad_token", "chat_template")}
    return {key: token["content"] if isinstance(token, dict) else token for key, token in named.items() if token}


def from_sentencepiece(
    path: Path, special: dict[str, str], markers: dict[str, int] | None = None, added: tuple[str, ...] = ()
) -> "PreTrainedTokenizerFast":
    """A fast tokenizer with the ids and the segmentation of a sentencepiece model.

    Args:
        path: tokenizer.model.
        special: names of the special tokens; control pieces of the model stand in for those not given.
        markers: tokens of the chat template and the ids they must have; never split.
        added: tokens that follow the model's own in the vocabulary.

    Raises:
        UserError: the file is not a sentencepiece model, or a marker has another id.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast
    from transformers.tokenization_utils_base import generate_merges

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made when it is imported
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError:
        raise UserError(f"{path}: not a sentencepiece model") from None
    model: Any
    steps: list[Any]
    pieces, kind = proto.pieces, type(proto.pieces[0])
    names = [piece.piece for piece in pieces]
    unknown = proto.trainer_spec.unk_id
    if proto.trainer_spec.model_type == proto.trainer_spec.BPE:
        vocabulary = {name: index for index, name in enumerate([*names, *added])}
        # As sentencepiece ranks them: by score, which need not fall with the id (Baichuan2's starts anew at 99968), and
        # over normal pieces alone, so that no text merges into a control token. Among pieces of one score it takes the
        # leftmost in the text; a rank cannot say that, but longer left parts first is the same for runs of a character.
        normal = {piece.piece: piece.score for piece in pieces if piece.type == kind.NORMAL}
        merges = generate_merges(vocabulary, normal, skip_tokens=vocabulary.keys() - normal.keys())
        model = models.BPE(vocabulary, merges, unk_token=names[unknown], fuse_unk=True, byte_fallback=True)
    else:
        # Text never becomes a control token: none is likelier than the same text in pieces.
        plain, never = (kind.NORMAL, kind.USER_DEFINED), -1e4
        scored = [(piece.piece, piece.score if piece.type in plain else never) for piece in pieces]
        scored += [(name, never) for name in added]
        model = models.Unigram(scored, unk_id=unknown, byte_fallback=proto.trainer_spec.byte_fallback)

    tokenizer = Tokenizer(model)
    spec = proto.normalizer_spec
    steps = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        from tokenizers import Regex

        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    decoding = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*decoding, *([decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else [])])

    # Whole words only: ChatGLM3's `sop` is a special token, the middle of `philosophy` is not.
    control = [piece.piece for piece in pieces if piece.type in (kind.CONTROL, kind.UNKNOWN)]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in control])
    symbols = [piece.piece for piece in pieces if piece.type == kind.USER_DEFINED]
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in symbols])
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, single_word=name.isalpha()) for name in markers or {}]
    )
    for name, wanted in (markers or {}).items():
        if tokenizer.token_to_id(name) != wanted:
            raise UserError(f"{path}: {name} has id {tokenizer.token_to_id(name)}, published: {wanted}")

    trained = proto.trainer_spec
    own = {"bos_token": trained.bos_id, "eos_token": trained.eos_id, "unk_token": unknown}
    special = {key: names[index] for key, index in own.items() if index >= 0} | special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
